"""Settings of a run: one dataclass, three presets, command-line options made from the fields.

Requirements: the standard library.
"""

from __future__ import annotations

import argparse
import dataclasses
import types
import typing
from dataclasses import dataclass, field
from typing import Any


def _f(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Settings:
    """All settings; the defaults are the paper's (specification, section 4)."""

    # Files
    data: str = _f("data/howto100m", "folder with the CSV file, videos/ and captions/")
    out: str = _f(
        "runs/vttwins", "folder for checkpoints and logs; an unfinished run there goes on"
    )
    train_csv: str = _f("train.csv", "CSV file with a column video_path, inside the data folder")
    # Model
    front_end: str = _f("plain", "plain or space_to_depth")
    embedding_dim: int = _f(512, "size of the common embedding space")
    word_vectors: str = _f(
        "", "word2vec file (.bin, text, or .pth); empty: learn words from scratch"
    )
    dictionary: str = _f("", "words of a .pth file; default dict.npy beside it")
    weights: str = _f("", "start from this file of weights")
    # Clips
    clips: int = _f(8, "clips in a sample, n")
    captions: int = _f(8, "captions in a sample, m")
    frames: int = _f(16, "frames in a clip")
    fps: float = _f(5.0, "frames per second of a clip")
    size: int = _f(224, "side of a frame in pixels")
    resize: int = _f(224, "shorter side before the crop; 0: do not scale")
    # Loss
    operator: str = _f("s2dtw", "s2dtw, weak, smoothed, soft_dtw or mil_nce")
    cost: str = _f("shifted_cosine", "shifted_cosine or cosine")
    contrastive: bool = _f(True, "compare with the other pairs of the batch")
    gamma: float = _f(0.1, "softness of the minimum")
    dummy_cost: float = _f(0.5, "cost of a dummy cell")
    origin_count: int = _f(1, "smoothing at the origin: 1 clean, 3 as released")
    direction: str = _f("t2v", "t2v, v2t or symmetric")
    temperature: float = _f(1.0, "temperature of the contrast")
    tda: bool = _f(True, "temporal data augmentation")
    tda_tau: float = _f(0.02, "temperature of the augmentation")
    # Optimization
    batch: int = _f(128, "sequences in a batch, over all processes")
    accumulate: int = _f(1, "batches per step; each is contrasted within itself")
    epochs: int = _f(300, "passes over the videos")
    steps: int = _f(0, "optimizer steps; 0: from epochs")
    learning_rate: float = _f(1e-3, "peak learning rate of Adam")
    warmup_from: float = _f(1e-5, "learning rate at step 0")
    warmup: int = _f(100_000, "steps of linear warm-up; cosine annealing to 0 follows")
    clip_norm: float = _f(0.0, "largest norm of the gradient; 0: no limit")
    bf16: bool = _f(False, "bfloat16 autocast for the encoders")
    compile: bool = _f(False, "torch.compile the encoders")
    cross_rank_bn: bool = _f(False, "BatchNorm statistics over all processes")
    seed: int = _f(0, "seed of everything random")
    # Machine: may differ when a run is resumed
    device: str = _f("", "cpu or cuda; empty: a GPU if there is one")
    workers: int = _f(8, "processes that decode, per training process")
    threads: int = _f(0, "torch threads; 0: torch's choice")
    save_every: int = _f(1000, "steps between checkpoints")
    tensorboard: bool = _f(True, "write TensorBoard logs")


MACHINE_FIELDS = ("data", "out", "device", "workers", "threads", "save_every", "tensorboard")

PRESETS: dict[str, dict[str, Any]] = {
    # The narrated set of synthetic.py; minutes on two CPU cores.
    "demo": {
        "data": "build/vttwins/data",
        "out": "build/vttwins/run",
        "frames": 8,
        "size": 32,
        "resize": 36,
        "direction": "symmetric",
        "batch": 8,
        "steps": 160,
        "learning_rate": 3e-4,
        "warmup_from": 1e-5,
        "warmup": 20,
        "clip_norm": 10.0,
        "workers": 1,
        "save_every": 50,
    },
    "paper": {},
    # Supplement, Table 3: a tenth of HowTo100M, 100 epochs; give the tenth as --train-csv.
    "ablation": {"epochs": 100, "out": "runs/ablation"},
}


def preset(name: str, **changes: Any) -> Settings:
    """Settings of a preset, some of them changed.

    Example:
        >>> preset("demo", steps=10).steps
        10
    """
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {tuple(PRESETS)}, got {name!r}")
    return Settings(**{**PRESETS[name], **changes})


def parse(
    arguments: list[str] | None, description: str | None
) -> tuple[Settings, argparse.Namespace]:
    """Settings from a command line: a preset, then options that override its fields."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("preset", choices=tuple(PRESETS))
    parser.add_argument(
        "--restart", action="store_true", help="delete what is in --out and begin anew"
    )
    hints = typing.get_type_hints(Settings)
    for f in dataclasses.fields(Settings):
        option = f"--{f.name.replace('_', '-')}"
        text = f.metadata["help"].replace("%", "%%")
        if hints[f.name] is bool:
            parser.add_argument(
                option, action=argparse.BooleanOptionalAction, default=None, help=text
            )
        else:
            kind = hints[f.name]
            assert not isinstance(kind, types.UnionType)
            parser.add_argument(option, type=kind, default=None, help=f"{text} ({f.default!r})")
    options = parser.parse_args(arguments)
    names = {f.name for f in dataclasses.fields(Settings)}
    changes = {k: v for k, v in vars(options).items() if k in names and v is not None}
    return preset(options.preset, **changes), options


def differences(old: dict[str, Any], new: Settings) -> list[str]:
    """Settings that differ and may not, as text; for a run that is to be resumed."""
    current = dataclasses.asdict(new)
    return [
        f"{name}: {old.get(name)!r} then, {value!r} now"
        for name, value in current.items()
        if name not in MACHINE_FIELDS and old.get(name) != value
    ]
