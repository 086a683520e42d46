"""Pictures of a trained run: its loss, and held-out clips against captions with their alignment.

    python -m examples.vttwins.pictures build/vttwins/run

Writes loss.png, with the held-out R@10 where the run was evaluated on its way, and alignment.png:
the cosine of each clip and caption of a held-out video (a row of test.csv), for the video's own
captions and for those of another one, with the expected alignment of the run's own operator and
cost, dummies included, and the cheapest path. True pairs are outlined: on a generated set those
that its narration truly tells of, else the annotated ones. The titles tell how often they are
visited, and how often everything else.

Requirements: matplotlib, torch, softdtw_kernels, av.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # pictures go to files; no display is needed

import matplotlib.pyplot as plt
import numpy as np

from examples.vttwins.checkpoint import EVALUATIONS, LOG, read_log
from examples.vttwins.evaluate import load_run
from examples.vttwins.figures import draw, examples
from examples.vttwins.figures.lattice import ALIGNING, align

DIRECTIONS = {"text_to_video": "text to video", "video_to_text": "video to text"}


def draw_loss(
    log: list[dict[str, Any]],
    settings: dict[str, Any],
    path: Path,
    evaluations: list[dict[str, Any]] | None = None,
) -> None:
    """Loss over the steps, with its running mean and, for a contrast, the loss of guessing.

    Args:
        evaluations: the lines of evaluations.jsonl, with "step" and, in percent, "R@10" in
            "text_to_video" and "video_to_text"; none: no second panel.
    """
    if not log:
        raise ValueError("the log has no steps; train first")
    steps = np.array([entry["step"] for entry in log])
    loss = np.array([entry["loss"] for entry in log])
    width = max(len(loss) // 20, 1)
    mean = np.convolve(loss, np.ones(width) / width, mode="valid")
    panels = 2 if evaluations else 1
    figure, grid = plt.subplots(
        panels, 1, figsize=(7, 1 + 3 * panels), sharex=True, squeeze=False, layout="constrained"
    )
    axes = grid[0, 0]
    axes.plot(steps, loss, color="0.75", linewidth=1, label="each step")
    axes.plot(steps[width - 1 :], mean, color="C0", linewidth=2, label=f"mean of {width} steps")
    # MIL-NCE guesses among clips in bags: its loss of guessing is another one.
    if settings["contrastive"] and settings["operator"] != "mil_nce":
        batch = settings["batch"]
        axes.axhline(np.log(batch), color="0.4", linestyle=":", label=f"guessing, log {batch}")
    contrast = "contrastive" if settings["contrastive"] else "not contrastive"
    title = f"Training loss: {settings['operator']}, {contrast}"
    axes.set(ylabel="loss", title=title)
    if evaluations:
        below = grid[1, 0]
        times = [entry["step"] for entry in evaluations]
        for name, label in DIRECTIONS.items():
            recall = [entry[name]["R@10"] for entry in evaluations]
            below.plot(times, recall, marker="o", markersize=4, label=label)
        below.set(ylabel="R@10 in percent", title="Retrieval of held-out segments", ylim=(0, 100))
    for axes in grid[:, 0]:
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    axes.set(xlabel="step")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_alignment(trained: examples.Trained, path: Path) -> None:
    """The first held-out video with its own captions, and with those of the second."""
    own, other = trained.examples
    loss = trained.loss
    figure, panels = plt.subplots(1, 2, figsize=(17, 8.5), layout="constrained")
    for axes, example in zip(panels, (own, own.told_by(other)), strict=True):
        title = f"{example.name}{' with its own captions' if example is own else ''}"
        if loss.operator in ALIGNING:
            lattice = align(example.text, example.video, loss)
            draw.draw_alignment(axes, lattice, example)
            told = draw.visits_told(lattice, example.matches)
            title += f": {loss.operator} = {lattice.value:.2f}\n{told}"
        else:
            title += f"\n{loss.operator} aligns nothing: cosines only"
            draw.draw_matrix(axes, example.cosines, example)
        draw.title(axes, title, width=80)
    draw.COSINE.bar(figure, list(panels))
    draw.legend(figure, loss.operator in ALIGNING, loss.dummy_cost is not None)
    figure.suptitle(f"{trained.name}: {examples.described(loss)}")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of a training run")
    parser.add_argument("--data", type=Path, help="data folder with test.csv; default the run's")
    options = parser.parse_args(arguments)
    try:
        _, _, _, settings = load_run(options.run)
        log, evaluations = (read_log(options.run / name) for name in (LOG, EVALUATIONS))
        draw_loss(log, settings, options.run / "loss.png", evaluations)
        print(f"wrote {options.run / 'loss.png'}")
        trained = examples.of_run(options.run, options.data, most=2)
        draw_alignment(trained, options.run / "alignment.png")
        print(f"wrote {options.run / 'alignment.png'}")
    except (ValueError, KeyError, OSError) as error:  # a file that is missing or not what it was
        raise SystemExit(f"{type(error).__name__}: {error}") from error


if __name__ == "__main__":
    main()
