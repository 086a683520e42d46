"""Train the whole S3D on the generated videos with one row's loss, and measure it.

Requirements: torch, softdtw_kernels, av, NumPy, tqdm.

The settings are the demo's (config.py), but as in the feature world the contrast is t2v and
there is no temporal data augmentation. A run goes on from its last checkpoint. When it is finished
its checkpoint is removed; its weights stay, for the figures, in ``<runs>/<row>-<seed>``.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from examples.vttwins import checkpoint, evaluate, metrics, synthetic, train
from examples.vttwins.ablation.features import effective_rank
from examples.vttwins.ablation.rows import Row
from examples.vttwins.benchmarks import measure, read_segments

WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class VideoSettings:
    """How a run is trained and measured; the row and the seed come beside it."""

    data: str
    runs: str
    steps: int = 160
    batch: int = 8
    windows: int = 4

    def described(self) -> dict[str, Any]:
        """As plain data, with the world of the videos, for the result's file."""
        world = json.loads((Path(self.data) / "world.json").read_text(encoding="utf-8"))
        plain = {k: v for k, v in asdict(self).items() if k not in ("data", "runs")}
        pairs = world["tasks"] * world["steps_per_task"]
        return {
            **plain,
            "size": 32,
            "direction": "t2v",
            "train_videos": world["train_videos"],
            "pairs": pairs,
            "chance": 1000 / pairs,
            "world": world,
        }


def prepare_data(folder: Path) -> None:
    """Write the demo's set, unless a generated set is there.

    Raises:
        ValueError: the folder holds something else.
    """
    if (folder / "world.json").exists():
        return
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty and holds no generated set; give another --data")
    synthetic.generate(synthetic.World(), folder, workers=2)


def run(row: Row, seed: int, settings: VideoSettings) -> dict[str, float]:
    """Train, or go on training, and measure."""
    out = Path(settings.runs) / f"{row.name}-{seed}"
    if not (out / WEIGHTS).exists():
        train.main(command(row, seed, settings, out))  # a signal leaves with its number, saved
    for name in (checkpoint.LAST, checkpoint.PREVIOUS):  # six times the weights, of no more use
        (out / name).unlink(missing_ok=True)
    return evaluate_run(out, Path(settings.data), settings.windows)


def command(row: Row, seed: int, settings: VideoSettings, out: Path) -> list[str]:
    """Arguments of train.py."""
    loss = row.loss()
    contrast = "--contrastive" if loss.pop("contrastive") else "--no-contrastive"
    options = {**loss, "data": settings.data, "out": out, "steps": settings.steps, "seed": seed}
    options |= {
        "batch": settings.batch,
        "direction": "t2v",
        "workers": 0,
        "threads": 1,
        "eval_every": 0,
    }
    line = ["demo", contrast, "--no-tensorboard", "--no-tda", "--device", "cpu"]
    for name, value in options.items():
        line += [f"--{name.replace('_', '-')}", str(value)]
    return line


@torch.no_grad()
def evaluate_run(run_folder: Path, data: Path, windows: int) -> dict[str, float]:
    """What the table shows, on the held-out videos of the set; see features.measure.

    As in the benchmarks, a segment is the mean of its windows for R@10, and its first one for CTR.
    """
    model, vocabulary, shape, _ = evaluate.load_run(run_folder)
    segments = read_segments(data / "test.csv")
    viewer = measure.Viewer(model, data / "videos", shape)
    found = measure.segment_features(viewer, segments, windows, "segments")
    assert found is not None  # the only process is the first
    features, match, account = found
    if account["unusable"]:
        raise ValueError(f"{data}: held-out videos cannot be used: {account['unusable']}")
    tasks, texts = [s.task for s in segments], [s.text for s in segments]
    seen = torch.from_numpy(features[match])  # (segments, windows, D)
    video, text = seen.mean(1), measure.embed_texts(model, texts, vocabulary)
    v, t = F.normalize(video, dim=-1).double(), F.normalize(text, dim=-1).double()
    delta = -t @ v.T
    return {
        "R@10": metrics.retrieval_metrics(text @ video.T)["R@10"],
        "CTR": metrics.trimmed_step_accuracy(seen[:, 0], text, tasks, texts)["mean"],
        "delta_mean": delta.mean().item(),
        "delta_sd": delta.std().item(),
        "effective_rank": effective_rank(v),
    }
