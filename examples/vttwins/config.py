"""Settings of a run: one dataclass, three presets, command-line options made from the fields.

Requirements: those of loss.py and model.py, for the names they know.
"""

from __future__ import annotations

import argparse
import dataclasses
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from examples.vttwins.loss import COSTS, DIRECTIONS, OPERATORS
from examples.vttwins.model import FRONT_ENDS

LONGEST_TDA = 12  # 11,854 orders of 12 x 12 similarities, 14 MB a sequence; 0.7 GB at 16


def _f(default: Any, text: str, choices: tuple[str, ...] = (), least: float | None = None) -> Any:
    return field(default=default, metadata={"help": text, "choices": choices, "least": least})


@dataclass(frozen=True)
class Settings:
    """All settings. The defaults are the paper's, but for the batch, which it does not state.

    Raises:
        ValueError: a value that no run can have.
    """

    # Files
    data: str = _f("data/howto100m", "folder with the CSV file, videos/ and captions/")
    out: str = _f(
        "runs/vttwins", "folder for checkpoints and logs; an unfinished run there goes on"
    )
    train_csv: str = _f("train.csv", "CSV file with a column video_path, inside the data folder")
    # Model
    front_end: str = _f("plain", "first layer", choices=FRONT_ENDS)
    embedding_dim: int = _f(512, "size of the common embedding space", least=1)
    word_vectors: str = _f(
        "data/word2vec.pth", "word2vec file (.bin, text, or .pth); empty: learn words from scratch"
    )
    dictionary: str = _f("", "words of a .pth file; default dict.npy beside it")
    weights: str = _f("", "start from this file of weights")
    # Clips
    clips: int = _f(8, "clips in a sample, n", least=1)
    captions: int = _f(8, "captions in a sample, m", least=1)
    frames: int = _f(16, "frames in a clip", least=1)
    fps: float = _f(5.0, "frames per second of a clip", least=0.01)
    size: int = _f(224, "side of a frame in pixels", least=1)
    resize: int = _f(224, "shorter side before the crop; 0: do not scale", least=0)
    # Loss
    operator: str = _f("s2dtw", "what compares two sequences", choices=OPERATORS)
    cost: str = _f("shifted_cosine", "cost of a clip and a caption", choices=COSTS)
    contrastive: bool = _f(True, "compare with the other pairs of the batch")
    gamma: float = _f(0.1, "softness of the minimum", least=0)
    dummy_cost: float = _f(0.5, "cost of a dummy cell")
    origin_count: int = _f(1, "smoothing at the origin: 1 clean, 3 as released")
    direction: str = _f("t2v", "anchors of the contrast", choices=DIRECTIONS)
    temperature: float = _f(1.0, "temperature of the contrast", least=1e-6)
    tda: bool = _f(True, f"temporal data augmentation, for at most {LONGEST_TDA} clips or captions")
    tda_tau: float = _f(0.02, "temperature of the augmentation", least=1e-6)
    # Optimization
    batch: int = _f(128, "sequences in a batch, over all processes", least=1)
    accumulate: int = _f(1, "batches per step; each is contrasted within itself", least=1)
    epochs: int = _f(300, "passes over the videos", least=1)
    steps: int = _f(0, "optimizer steps; 0: from epochs", least=0)
    learning_rate: float = _f(1e-3, "peak learning rate of Adam", least=0)
    warmup_from: float = _f(1e-5, "learning rate at step 0", least=0)
    warmup: int = _f(100_000, "steps of linear warm-up; cosine annealing to 0 follows", least=0)
    clip_norm: float = _f(0.0, "largest norm of the gradient; 0: no limit", least=0)
    bf16: bool = _f(False, "bfloat16 autocast for the encoders")
    compile: bool = _f(False, "torch.compile the encoders")
    cross_rank_bn: bool = _f(False, "BatchNorm statistics over all processes")
    seed: int = _f(0, "seed of everything random", least=0)
    # Machine: may differ when a run is resumed
    device: str = _f("", "cpu or cuda; empty: a GPU if there is one")
    workers: int = _f(8, "processes that decode, per training process", least=0)
    threads: int = _f(0, "torch threads; 0: torch's choice", least=0)
    save_every: int = _f(1000, "steps between checkpoints", least=1)
    tensorboard: bool = _f(True, "write TensorBoard logs")

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            value, choices = getattr(self, f.name), f.metadata["choices"]
            least = f.metadata["least"]
            if choices and value not in choices:
                raise ValueError(f"{f.name} must be one of {', '.join(choices)}, got {value!r}")
            if least is not None and not value >= least:
                raise ValueError(f"{f.name} must be at least {least}, got {value!r}")
        if self.front_end == "space_to_depth" and (self.size % 2 or self.frames % 2):
            raise ValueError(
                "space_to_depth takes blocks of 2 x 2 x 2: size and frames must be even, got size "
                f"{self.size}, frames {self.frames}"
            )
        if self.tda and max(self.clips, self.captions) > LONGEST_TDA:
            raise ValueError(
                f"tda takes at most {LONGEST_TDA} clips or captions, as it weighs all near-by "
                "orders of each sequence; give --no-tda"
            )


MACHINE_FIELDS = ("data", "out", "device", "workers", "threads", "save_every", "tensorboard")

PRESETS: dict[str, dict[str, Any]] = {
    # The narrated set of synthetic.py; minutes on two CPU cores.
    "demo": {
        "data": "build/vttwins/data",
        "out": "build/vttwins/run",
        "word_vectors": "",
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
        usage="%(prog)s {" + ",".join(PRESETS) + "} [--option VALUE ...]; all options: --help",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
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
            parser.add_argument(
                option, type=kind, default=None, help=f"{text} ({f.default!r})",
                choices=f.metadata["choices"] or None,
            )  # fmt: skip
    options = parser.parse_args(arguments)
    names = {f.name for f in dataclasses.fields(Settings)}
    changes = {k: v for k, v in vars(options).items() if k in names and v is not None}
    try:
        return preset(options.preset, **changes), options
    except ValueError as error:
        parser.error(str(error))


def check_files(settings: Settings) -> None:
    """Leave with a sentence where a file or folder that the run needs is missing."""
    root = Path(settings.data)
    hint = "--data is the folder with the CSV file, videos/ and captions/"
    if settings.data == PRESETS["demo"]["data"]:
        hint = f"write the set first: python -m examples.vttwins.synthetic --out {settings.data}"
    needed = [(root / name, hint) for name in (settings.train_csv, "videos", "captions")]
    if settings.word_vectors:
        hint = '--word-vectors names word2vec\'s file; "" learns the words from scratch'
        needed.append((Path(settings.word_vectors), hint))
    if settings.weights:
        needed.append((Path(settings.weights), "--weights names a file of weights"))
    for path, hint in needed:
        if not path.exists():
            raise SystemExit(f"{path} does not exist; {hint}")


def differences(old: dict[str, Any], new: Settings) -> list[str]:
    """Settings that differ and may not, as text; for a run that is to be resumed."""
    current = dataclasses.asdict(new)
    return [
        f"{name}: {old.get(name)!r} then, {value!r} now"
        for name, value in current.items()
        if name not in MACHINE_FIELDS and old.get(name) != value
    ]
