"""Pictures of a trained run: its loss, and clips against captions with their alignment.

    python -m examples.vttwins.pictures build/vttwins/run

Writes loss.png, and alignment.png: the similarity of each clip of a video to each caption, for the
video's own captions and for those of another video, with the expected alignment (how often a path
drawn from the distribution of S2DTW visits each pair) and the cheapest path on top. Where the
narration is off by a step, swapped or chatter, the path of the matching pair should follow what is
seen and pass over what is not.

Requirements: matplotlib, torch, softdtw_kernels, av.
"""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # pictures go to files; no display is needed

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.lines import Line2D
from torch import Tensor

from examples.vttwins.checkpoint import LOG, read_log
from examples.vttwins.data import Captions, NarratedVideos, read_column, to_clip
from examples.vttwins.evaluate import load_run
from examples.vttwins.model import VideoTextModel
from examples.vttwins.video import VideoReader
from softdtw_kernels import cost_matrix, s2dtw_alignment

FULL_DISK = 450  # area in square points of a pair that every path visits


def draw_loss(log: list[dict[str, Any]], settings: dict[str, Any], path: Path) -> None:
    """Loss over the steps, with its running mean and, for a contrast, the loss of guessing."""
    steps = np.array([entry["step"] for entry in log])
    loss = np.array([entry["loss"] for entry in log])
    width = max(len(loss) // 20, 1)
    mean = np.convolve(loss, np.ones(width) / width, mode="valid")
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(steps, loss, color="0.75", linewidth=1, label="each step")
    axes.plot(steps[width - 1 :], mean, color="C0", linewidth=2, label=f"mean of {width} steps")
    # MIL-NCE guesses among clips in bags: its loss of guessing is another one.
    if settings["contrastive"] and settings["operator"] != "mil_nce":
        batch = settings["batch"]
        axes.axhline(np.log(batch), color="0.4", linestyle=":", label=f"guessing, log {batch}")
    contrast = "contrastive" if settings["contrastive"] else "not contrastive"
    title = f"Training loss: {settings['operator']}, {contrast}"
    axes.set(xlabel="step", ylabel="loss", title=title)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


@torch.no_grad()
def encode(
    model: VideoTextModel, dataset: NarratedVideos, index: int
) -> tuple[Tensor, Tensor, list[np.ndarray], list[str]]:
    """Clips (n, D), captions (m, D), the middle picture of each clip, and the captions' texts."""
    video = dataset.videos[index]
    captions = Captions.load(dataset.caption_path(video))
    count, shape = min(len(captions.text), 8), dataset.shape
    clips, pictures = [], []
    with VideoReader(dataset.video_root / video) as reader:
        for k in range(count):
            middle = (captions.start[k] + captions.end[k]) / 2
            start = max(middle - shape.seconds / 2, 0.0)
            scaled = reader.clip(start, shape.frames, shape.fps, shape.resize)
            edge = (scaled.shape[1] - shape.size) // 2, (scaled.shape[2] - shape.size) // 2
            cut = scaled[:, edge[0] :, edge[1] :][:, : shape.size, : shape.size]
            clips.append(to_clip(cut, shape.frames))
            pictures.append(reader.clip(middle, 1, shape.fps)[0])
    texts = captions.text[:count]
    v = model.encode_video(torch.stack(clips).float().div_(255))
    t = model.encode_text(dataset.vocabulary.encode_all(texts))
    return v, t, pictures, texts


def draw_alignment(
    pairs: list[tuple[str, Tensor, Tensor, list[np.ndarray], list[str]]],
    gamma: float,
    dummy_cost: float,
    path: Path,
) -> None:
    """One panel a pair: similarity as color, expected visits as disks, the cheapest path as a line.

    The clips stand below their columns, with every panel, so that a panel can be read alone.
    """
    figure, grid = plt.subplots(1, len(pairs), figsize=(8 * len(pairs), 7), layout="constrained")
    panels = np.atleast_1d(grid)
    for axes, (title, video, text, pictures, texts) in zip(panels, pairs, strict=True):
        similarity = -cost_matrix(text, video, cost="shifted_cosine").numpy()
        alignment = s2dtw_alignment(text, video, gamma=gamma, dummy_cost=dummy_cost)
        visits = alignment.expected.numpy()
        image = axes.imshow(similarity, cmap="PuOr_r", vmin=-1, vmax=1, aspect="auto")
        steps = alignment.path()
        assert isinstance(steps, Tensor)  # of one pair
        axes.plot(*steps.numpy().T[::-1], color="black", linewidth=2, zorder=2)
        rows, columns = np.nonzero(visits > 0.02)
        axes.scatter(
            columns, rows, s=FULL_DISK * np.minimum(visits[rows, columns], 1),
            facecolor="white", edgecolor="black", linewidth=1.5, zorder=3,
        )  # fmt: skip
        axes.set_yticks(range(len(texts)), [textwrap.fill(t, 24) for t in texts], fontsize=11)
        axes.set_xticks([])
        axes.tick_params(length=0)
        axes.set_ylim(len(texts) + 0.45, -0.5)  # room for the clips
        axes.spines[:].set_visible(False)
        for k, picture in enumerate(pictures):
            place = (k - 0.45, len(texts) - 0.45, 0.9, 0.9)
            inset = axes.inset_axes(place, transform=axes.transData)
            inset.imshow(picture)
            inset.axis("off")
        axes.set_xlabel("clips, in the order of time", fontsize=12)
        axes.set_title(f"{title}\nS2DTW = {alignment.value.item():.2f}", fontsize=14)
    panels[0].set_ylabel("captions, in the order of time", fontsize=12)
    figure.colorbar(image, ax=panels, label="cosine of clip and caption", shrink=0.7, pad=0.01)
    disk = Line2D(
        [], [], linestyle="", marker="o", markersize=FULL_DISK**0.5, markerfacecolor="white",
        markeredgecolor="black", label="expected visits of the pair (a full disk: 1)",
    )  # fmt: skip
    line = Line2D([], [], color="black", linewidth=2, label="cheapest path")
    figure.legend(handles=[disk, line], loc="outside lower center", ncols=2, frameon=False,
                  fontsize=12)  # fmt: skip
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of a training run")
    parser.add_argument("--video", type=int, default=0, help="row of train.csv")
    parser.add_argument("--other", type=int, default=5, help="row whose captions do not match")
    options = parser.parse_args(arguments)
    model, vocabulary, shape, settings = load_run(options.run)
    model.eval()
    log = read_log(options.run / LOG)
    draw_loss(log, settings, options.run / "loss.png")
    root = Path(settings["data"])
    dataset = NarratedVideos(
        read_column(root / settings["train_csv"], "video_path"),
        root / "videos", root / "captions", vocabulary, shape,
    )  # fmt: skip
    video, text, pictures, texts = encode(model, dataset, options.video)
    _, wrong, _, wrong_texts = encode(model, dataset, options.other)
    pairs = [
        ("own narration", video, text, pictures, texts),
        ("another video's narration", video, wrong, pictures, wrong_texts),
    ]
    draw_alignment(pairs, settings["gamma"], settings["dummy_cost"], options.run / "alignment.png")
    print(f"wrote {options.run / 'loss.png'} and {options.run / 'alignment.png'}")


if __name__ == "__main__":
    main()
