"""The paper's ablation (supplement, Table 3): nine losses, several seeds, a verdict on each claim.

    python -m examples.vttwins.ablation --features     # minutes on two cores
    python -m examples.vttwins.ablation --video        # the whole S3D; an hour on two idle cores

--features trains small encoders in a world of random features whose narrations are weakly aligned
(world.py). --video trains the whole S3D on the generated videos (synthetic.py) at 32 pixels. The
rows are in rows.py; what counts as reproducing a claim was fixed in criteria.py before the runs.

Each row and seed has its own file under --out, written when it is done, and the same command goes
on with what is left. features.md and features.json (or video.md, video.json) sum them up.

Requirements: torch, softdtw_kernels, NumPy; for --video also av and tqdm.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from examples.vttwins.ablation import criteria, features, report, videos
from examples.vttwins.ablation.rows import BY_NAME
from examples.vttwins.ablation.runner import Study, run_jobs
from examples.vttwins.checkpoint import write_text

DATA = Path("build/vttwins/data")
ABOUT = {
    "features": (
        "Two MLP encoders trained in a world of random features with hard narrations: "
        "{chatter:.0%} chit-chat, captions up to {shift} places early or late, neighbors swapped "
        "with probability {swap:g}. R@10 among {retrieval_pairs} held-out pairs (chance "
        "{chance:.0f}); CTR: the best of ten steps for a clip (chance 10); probe: a linear "
        "classifier of all 120 steps on frozen features; delta: -cosine of a clip and a caption; "
        "eff. rank: of the clips' embeddings, however small their spread."
    ),
    "video": (
        "The whole S3D at {size} pixels, {steps} steps of {batch} videos, on {train_videos} "
        "generated narrated videos. R@10 of text to video among {pairs} held-out pairs (chance "
        "{chance:.1f}); CTR: the best of ten steps for a trimmed segment (chance 10). delta: "
        "-cosine of a segment and a caption; eff. rank: of the segments' embeddings, however small "
        "their spread."
    ),
}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.vttwins.ablation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--features", action="store_const", const="features", dest="kind")
    kind.add_argument("--video", action="store_const", const="video", dest="kind")
    parser.add_argument("--out", type=Path, default=Path("build/vttwins/ablation"))
    parser.add_argument(
        "--seeds",
        default="",
        help="such as 100-107 or 0,1; default 100-107, or 100-102 for --video",
    )
    parser.add_argument("--rows", default=",".join(BY_NAME), help="names of rows.py, with commas")
    parser.add_argument("--steps", type=int, default=None, help="of training; default 400, or 160")
    parser.add_argument("--processes", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--data", type=Path, help=f"set of --video, made if new; default {DATA}")
    options = parser.parse_args(arguments)
    default = criteria.SEEDS if options.kind == "features" else criteria.SEEDS[:3]
    try:
        options.seeds = seeds_of(options.seeds) if options.seeds else list(default)
    except ValueError as error:
        parser.error(str(error))
    options.rows = options.rows.split(",")
    unknown = [name for name in options.rows if name not in BY_NAME]
    if len(set(options.rows)) < len(options.rows):
        parser.error(f"--rows names a row twice: {','.join(options.rows)}")
    if unknown:
        parser.error(f"--rows: no row is named {unknown[0]!r}; there are {', '.join(BY_NAME)}")
    if options.data and options.kind == "features":
        parser.error("--data is for --video: the feature world has no files")
    options.data = options.data or DATA
    for name in ("steps", "processes"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name} must be at least 1, got {value}")
    return options


def seeds_of(text: str) -> list[int]:
    """Seeds of a text such as "100-107" or "0,1,5".

    Example:
        >>> seeds_of("3-5,9")
        [3, 4, 5, 9]
    """
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(f"--seeds must be like 100-107 or 0,1,5, got {text!r}")
        seeds += range(int(first), int(last or first) + 1)
    if not seeds or len(set(seeds)) != len(seeds):
        raise ValueError(f"--seeds must be different whole numbers, got {text!r}")
    return sorted(seeds)


def prepare(options: argparse.Namespace) -> tuple[Study, dict[str, Any]]:
    """The study of a command line, and what its report says about it."""
    changes = {"steps": options.steps} if options.steps else {}
    if options.kind == "features":
        settings = features.FeatureSettings(**changes)
        described = settings.described()
        work: Any = partial(features.run, settings=settings)
        chance = 1000 / settings.retrieval_pairs
        numbers = {**described, **described["world"], "chance": chance}
        title = "Ablation in the feature world"
    else:
        videos.prepare_data(options.data)
        settings_v = videos.VideoSettings(str(options.data), str(options.out / "runs"), **changes)
        described = settings_v.described()
        work = partial(videos.run, settings=settings_v)
        numbers = described
        title = "Ablation on generated videos"
    study = Study(work, described, options.out / options.kind)
    about = ABOUT[options.kind].format(**numbers)
    return study, {"title": title, "about": about, "settings": described}


def remark(options: argparse.Namespace) -> str:
    """What a reader of the verdicts must know."""
    if options.kind == "features" and tuple(options.seeds) != criteria.SEEDS:
        return "A trial: these are not the seeds that the criteria were fixed for."
    if options.kind == "video":
        return (
            "The criteria were fixed for the feature world; here the limits of the collapse are "
            "1.5 and 4 times chance, and the seeds are few."
        )
    return ""


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)  # so that the processes are ended too


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    jobs = [(row, seed) for seed in options.seeds for row in options.rows]
    given = sys.argv[1:] if arguments is None else arguments
    former = signal.signal(signal.SIGTERM, _leave)
    try:
        study, context = prepare(options)
        run_jobs(study, jobs, options.processes)
    except (ValueError, RuntimeError, OSError) as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit("stopped; the same command goes on with what is left") from None
    finally:
        signal.signal(signal.SIGTERM, former)
    table: criteria.Table = {}
    for row in options.rows:
        results = [study.load(row, seed) for seed in options.seeds]
        names = results[0] or {}
        table[row] = {n: np.array([r[n] for r in results if r is not None]) for n in names}
    context |= {
        "command": " ".join(["python -m examples.vttwins.ablation", *given]),
        "processor": report.processor(),
        "remark": remark(options),
    }
    levels = criteria.FEATURE_LEVELS if options.kind == "features" else criteria.VIDEO_LEVELS
    summary = report.summarize(table, options.seeds, levels, context)
    text = report.markdown(summary)
    for suffix, content in (("json", json.dumps(summary, indent=1) + "\n"), ("md", text)):
        write_text(options.out / f"{options.kind}.{suffix}", content)
    print(f"\n{text}\nwrote {options.out / options.kind}.md and .json")


if __name__ == "__main__":
    main()
