"""Train the whole S3D on the generated videos with one row's loss, and measure it.

Requirements: torch, softdtw_kernels, av, NumPy, tqdm.

The settings are the demo's (config.py), but as in the feature world the contrast is t2v and
there is no temporal data augmentation. A run goes on from its last checkpoint. When it is finished
its checkpoint is removed; its weights stay, for the figures, in ``<runs>/<row>-<seed>``. A run of
other settings, or of another generated set, is refused.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from examples.vttwins import checkpoint, config, evaluate, metrics, synthetic, train
from examples.vttwins.ablation.features import effective_rank
from examples.vttwins.ablation.rows import Row
from examples.vttwins.benchmarks import measure, read_segments

WEIGHTS = "model.safetensors"
REMEDY = "give another --out, or delete that folder to train anew"


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
        world = json.loads((Path(self.data) / synthetic.MARKER).read_text(encoding="utf-8"))
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
    if (folder / synthetic.MARKER).exists():
        return
    # An interrupted generation is done again.
    if folder.exists() and any(folder.iterdir()) and not synthetic.is_own(folder):
        raise ValueError(f"{folder} is not empty and holds no generated set; give another --data")
    synthetic.generate(synthetic.World(), folder, workers=2)


def run(row: Row, seed: int, settings: VideoSettings) -> dict[str, float]:
    """Train, or go on training, and measure.

    Raises:
        ValueError: the folder of the run holds one of other settings.
    """
    out = Path(settings.runs) / f"{row.name}-{seed}"
    arguments = command(row, seed, settings, out)
    world = json.loads((Path(settings.data) / synthetic.MARKER).read_text(encoding="utf-8"))
    check_run(out, arguments, world)
    if not (out / WEIGHTS).exists():
        out.mkdir(parents=True, exist_ok=True)
        checkpoint.write_text(out / checkpoint.WORLD, json.dumps(world))
        train.main(arguments)  # a signal leaves with its number, saved
    for name in (checkpoint.LAST, checkpoint.PREVIOUS):  # six times the weights, of no more use
        (out / name).unlink(missing_ok=True)
    return evaluate_run(out, Path(settings.data), settings.windows)


def check_run(out: Path, arguments: list[str], world: dict[str, Any]) -> None:
    """Refuse a run in ``out``, finished or not, that these arguments of train.py do not make.

    Training itself takes more steps as a longer run and leaves a finished run alone; here both
    would be numbers of other settings.

    Raises:
        ValueError: the message says what differs.
    """
    there = checkpoint.settings_of(out)
    if there is None:
        if (out / WEIGHTS).exists():
            raise ValueError(f"{out} holds weights without their settings; {REMEDY}")
        return
    asked, _ = config.parse(arguments, None, config.Settings, config.PRESETS)
    changed = config.differences(there, asked, {}, {})
    if there.get("steps") != asked.steps:
        changed.append(f"steps: {there.get('steps')} then, {asked.steps} now")
    note = out / checkpoint.WORLD  # an older run has none
    if note.exists() and json.loads(note.read_text(encoding="utf-8")) != world:
        changed.append("the generated videos are others")
    if changed:
        raise ValueError(f"{out} holds a run with other settings ({'; '.join(changed)}); {REMEDY}")


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
