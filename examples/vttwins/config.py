"""Settings of a run: one dataclass, presets, command-line options made from the fields.

Requirements: those of loss.py and model.py, for the names they know.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from examples.vttwins.loss import COSTS, DIRECTIONS, OPERATORS
from examples.vttwins.model import FRONT_ENDS

LONGEST_TDA = 12  # 11,854 orders of 12 x 12 similarities, 14 MB a sequence; 0.7 GB at 16
LARGEST_SEED = 10**12  # a million times as much, plus a batch's number, is still an int64


def opt(
    default: Any,
    text: str,
    choices: tuple[str, ...] = (),
    least: float | None = None,
    most: float = math.inf,
) -> Any:
    """A field with the text of its help, the values it may have, the least and the most of them."""
    bounds = {"least": least, "most": most}
    return field(default=default, metadata={"help": text, "choices": choices, **bounds})


@dataclass(frozen=True)
class Settings:
    """All settings. The defaults are the paper's, but for the batch, which it does not state.

    Raises:
        ValueError: a value that no run can have.
    """

    # Fields that are no options of the command line.
    HIDDEN: ClassVar[tuple[str, ...]] = ("benchmark",)

    # Files
    benchmark: str = opt("", "what the run is fine-tuned on; set by finetune.py")
    data: str = opt("data/howto100m", "folder with the CSV file, videos/ and captions/")
    out: str = opt("runs/vttwins", "folder for checkpoints and logs; a run in it goes on")
    train_csv: str = opt("train.csv", "CSV file with a column video_path, inside the data folder")
    # Model
    front_end: str = opt("plain", "first layer", choices=FRONT_ENDS)
    embedding_dim: int = opt(512, "size of the common embedding space", least=1)
    word_vectors: str = opt(
        "data/word2vec.pth", "word2vec file (.bin, text, or .pth); empty: learn words from scratch"
    )
    dictionary: str = opt("", "words of a .pth file; default dict.npy beside it")
    word_limit: int = opt(0, "words to read of a word2vec file, the first ones; 0: all", least=0)
    weights: str = opt("", "start from this file of weights")
    # Clips
    clips: int = opt(8, "clips in a sample, n", least=1)
    captions: int = opt(8, "captions in a sample, m", least=1)
    frames: int = opt(16, "frames in a clip", least=1)
    fps: float = opt(5.0, "frames per second of a clip", least=0.01)
    size: int = opt(224, "side of a frame in pixels", least=1)
    resize: int = opt(224, "shorter side before the crop; 0: do not scale", least=0)
    # Loss
    operator: str = opt("s2dtw", "what compares two sequences", choices=OPERATORS)
    cost: str = opt("shifted_cosine", "cost of a clip and a caption", choices=COSTS)
    contrastive: bool = opt(True, "compare with the other pairs of the batch")
    gamma: float = opt(0.1, "softness of the minimum", least=0)
    dummy_cost: float = opt(0.5, "cost of a dummy cell")
    origin_count: int = opt(1, "smoothing at the origin: 1 clean, 3 as released", least=1)
    direction: str = opt("t2v", "anchors of the contrast", choices=DIRECTIONS)
    temperature: float = opt(1.0, "temperature of the contrast", least=1e-6)
    tda: bool = opt(
        True, f"temporal data augmentation, for at most {LONGEST_TDA} clips or captions"
    )
    tda_tau: float = opt(0.02, "temperature of the augmentation", least=1e-6)
    # Optimization
    batch: int = opt(128, "sequences in a batch, over all processes", least=1)
    accumulate: int = opt(1, "batches per step; each is contrasted within itself", least=1)
    epochs: int = opt(300, "passes over the videos; more than before extend a run", least=1)
    steps: int = opt(0, "optimizer steps; 0: from epochs; more than before extend a run", least=0)
    learning_rate: float = opt(1e-3, "peak learning rate of Adam", least=0)
    warmup_from: float = opt(1e-5, "learning rate at step 0", least=0)
    warmup: int = opt(100_000, "steps of linear warm-up; cosine annealing to 0 follows", least=0)
    clip_norm: float = opt(0.0, "largest norm of the gradient; 0: no limit", least=0)
    bf16: bool = opt(False, "bfloat16 autocast for the encoders")
    bad_steps: int = opt(5, "steps in a row without a finite gradient that end the run", least=1)
    compile: bool = opt(False, "torch.compile the encoders")
    cross_rank_bn: bool = opt(False, "BatchNorm statistics over all processes")
    seed: int = opt(0, "seed of everything random", least=0, most=LARGEST_SEED)
    # Machine: may differ when a run is resumed
    device: str = opt("", "cpu or cuda; empty: a GPU if there is one")
    workers: int = opt(8, "processes that decode, per training process", least=0)
    threads: int = opt(0, "torch threads; 0: torch's choice", least=0)
    timeout: float = opt(600.0, "seconds to wait for a batch of the workers; 0: for ever", least=0)
    checkpointing: bool = opt(
        False, "compute activations again in backward: less memory, more time, the same gradients"
    )
    save_every: int = opt(1000, "steps between checkpoints", least=1)
    keep_every: int = opt(0, "steps between checkpoints that are kept, numbered; 0: none", least=0)
    eval_every: int = opt(0, "steps between evaluations on test.csv; 0: none", least=0)
    eval_windows: int = opt(4, "windows of a segment in these evaluations", least=1)
    tensorboard: bool = opt(True, "write TensorBoard logs")

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            value, choices = getattr(self, f.name), f.metadata["choices"]
            least = f.metadata["least"]
            if choices and value not in choices:
                raise ValueError(f"{f.name} must be one of {', '.join(choices)}, got {value!r}")
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{f.name} must be a finite number, got {value!r}")
            if least is not None and not value >= least:
                raise ValueError(f"{f.name} must be at least {least}, got {value!r}")
            if least is not None and not value <= f.metadata["most"]:
                raise ValueError(f"{f.name} must be at most {f.metadata['most']}, got {value!r}")
        if self.contrastive and self.batch == 1:
            raise ValueError(
                "batch must be at least 2 for a contrast: one sequence has nothing to be told "
                "from, and its loss is always 0"
            )
        if self.compile and self.checkpointing:
            raise ValueError("compile and checkpointing do not go together; choose one")
        check_front_end(self.front_end, self.size, self.frames)
        if self.tda and max(self.clips, self.captions) > LONGEST_TDA:
            raise ValueError(
                f"tda takes at most {LONGEST_TDA} clips or captions, as it weighs all near-by "
                "orders of each sequence; give --no-tda"
            )

    def warmup_of(self, steps: int) -> int:
        """Steps of warm-up in a run of so many steps."""
        return self.warmup


S = TypeVar("S", bound=Settings)

# What may differ when a run goes on: it has no part in the numbers, or only in how many there are.
FREE_FIELDS = (
    "data", "out", "device", "workers", "threads", "timeout", "checkpointing", "save_every",
    "keep_every", "eval_every", "eval_windows", "tensorboard", "bad_steps", "steps", "epochs",
    "test_csv",
)  # fmt: skip
# Files, which may lie elsewhere when a run goes on; their content may not differ.
FILE_FIELDS = ("train_csv", "word_vectors", "dictionary", "weights", "start")

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
        "eval_every": 40,
        "eval_windows": 2,
    },
    "paper": {},
    # What the released code does where the paper says otherwise or nothing: three zeros in the
    # smoothing at the origin, crops of unscaled pictures, no temporal augmentation.
    "release": {"origin_count": 3, "resize": 0, "tda": False, "out": "runs/release"},
    # Supplement, Table 3: a tenth of HowTo100M, 100 epochs; give the tenth as --train-csv. These
    # are about 94,000 steps, fewer than the paper's warm-up: a tenth of it, as of the data.
    "ablation": {"epochs": 100, "warmup": 10_000, "out": "runs/ablation"},
}


def check_front_end(front_end: str, size: int, frames: int) -> None:
    """Refuse clips that a front end cannot take.

    Raises:
        ValueError: the message says what must be even.
    """
    if front_end == "space_to_depth" and (size % 2 or frames % 2):
        raise ValueError(
            "space_to_depth takes blocks of 2 x 2 x 2: size and frames must be even, got size "
            f"{size}, frames {frames}"
        )


def preset(name: str, **changes: Any) -> Settings:
    """Settings of one of ``PRESETS``, some of them changed.

    Example:
        >>> preset("demo", steps=10).steps
        10
    """
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {tuple(PRESETS)}, got {name!r}")
    return Settings(**{**PRESETS[name], **changes})


def parse(
    arguments: list[str] | None,
    description: str | None,
    kind: type[S],
    presets: dict[str, dict[str, Any]],
) -> tuple[S, argparse.Namespace]:
    """Settings of a kind from a command line: a preset, then options that override its fields."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s {" + ",".join(presets) + "} [--option VALUE ...]; all options: --help",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("preset", choices=tuple(presets))
    parser.add_argument(
        "--restart",
        action="store_true",
        help="delete the files that the run in --out wrote, and begin anew",
    )
    hints = typing.get_type_hints(kind)
    for f in dataclasses.fields(kind):
        if f.name in kind.HIDDEN:
            continue
        option = f"--{f.name.replace('_', '-')}"
        text = f.metadata["help"].replace("%", "%%")
        if hints[f.name] is bool:
            parser.add_argument(
                option, action=argparse.BooleanOptionalAction, default=None, help=text
            )
        else:
            parser.add_argument(
                option, type=hints[f.name], default=None, help=f"{text} ({f.default!r})",
                choices=f.metadata["choices"] or None,
            )  # fmt: skip
    options = parser.parse_args(arguments)
    names = {f.name for f in dataclasses.fields(kind)}
    changes = {k: v for k, v in vars(options).items() if k in names and v is not None}
    try:
        return kind(**{**presets[options.preset], **changes}), options
    except ValueError as error:
        parser.error(str(error))


def check_files(settings: Settings) -> None:
    """Leave with a sentence where a file or folder that the run needs is missing."""
    root = Path(settings.data)
    hint = "--data is the folder with the CSV file, videos/ and captions/"
    if settings.data == PRESETS["demo"]["data"]:
        hint = f"write the set first: python -m examples.vttwins.synthetic --out {settings.data}"
    needed = [(root / name, hint) for name in (settings.train_csv, "videos", "captions")]
    if settings.eval_every:
        needed.append((root / "test.csv", f"{hint}; --eval-every 0 does without test.csv"))
    if settings.word_vectors:
        hint = '--word-vectors names word2vec\'s file; "" learns the words from scratch'
        needed.append((Path(settings.word_vectors), hint))
    if settings.weights:
        needed.append((Path(settings.weights), "--weights names a file of weights"))
    for path, hint in needed:
        if not path.exists():
            raise SystemExit(f"{path} does not exist; {hint}")


def differences(
    old: dict[str, Any], new: Settings, old_files: dict[str, str], new_files: dict[str, str]
) -> list[str]:
    """Settings that differ and may not, as text; for a run that is to go on.

    Args:
        old: the run's settings; a field that it lacks, because it is new, has its default.
        new: those of the command line.
        old_files, new_files: digests of the files that the fields ``FILE_FIELDS`` name. A path may
            differ if the digest does not.
    """
    found = []
    for f in dataclasses.fields(new):
        was, now = old.get(f.name, f.default), getattr(new, f.name)
        if f.name in FREE_FIELDS:
            continue
        if f.name in FILE_FIELDS and f.name in old_files and f.name in new_files:
            if old_files[f.name] != new_files[f.name]:
                found.append(f"{f.name}: the content of {now or was!r} is not what it was")
        elif was != now:
            found.append(f"{f.name}: {was!r} then, {now!r} now")
    return found
