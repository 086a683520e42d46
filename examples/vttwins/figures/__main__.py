"""Figures 1 to 3 of the paper's supplement, from trained models.

    python -m examples.vttwins.figures                                  # seconds
    python -m examples.vttwins.figures build/vttwins/ablation/runs/*-100 --out build/vttwins/frames

Without runs, small encoders are trained in the feature world of the ablation, one for each loss
that a figure needs. With folders of training runs, of the ablation's --video or of your own, their
held-out videos are drawn with frames and captions; a figure whose runs are not given is left out.

    figure1a.png   the alignment under shifted and under plain cosine     (s2dtw, plain)
    figure1b.png   distances with and without contrast                    (s2dtw, alone)
    figure2.png    the captions of a held-out video with its own clips, and with its hardest
    figure3.png    negative: distances, expected alignment; 3 is another video  (s2dtw)
    gamma.png      one model's alignment under three gammas               (s2dtw)

The names in brackets are rows of ablation/rows.py; a run's settings tell which one it is. Titles
are computed from the numbers, and the videos are the first of the held-out ones.

Requirements: matplotlib, torch, softdtw_kernels, NumPy; for runs also av.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import matplotlib
import torch

matplotlib.use("Agg")  # pictures go to files; no display is needed

from examples.vttwins.ablation import features
from examples.vttwins.ablation.rows import BY_NAME
from examples.vttwins.figures import paper
from examples.vttwins.figures.examples import Trained, of_run, of_world

NEEDED = ("s2dtw", "plain", "alone")


def role(folder: Path) -> str | None:
    """The row of the ablation whose loss a training run had, if it is one of ``NEEDED``."""
    path = folder / "settings.json"
    if not path.exists():
        raise ValueError(f"{folder} is no folder of a training run: it lacks settings.json")
    settings = json.loads(path.read_text(encoding="utf-8"))
    for name in NEEDED:
        if all(settings.get(key) == value for key, value in BY_NAME[name].loss().items()):
            return name
    return None


def from_world(seed: int, steps: int | None) -> dict[str, Trained]:
    """Models of the feature world, trained here."""
    torch.set_num_threads(1)  # the matrices are too small for more
    settings = features.FeatureSettings()
    if steps is not None:
        settings = replace(settings, steps=steps)
    models = {}
    for name in NEEDED:
        print(f"training {name} in the feature world, seed {seed}", flush=True)
        row = BY_NAME[name]
        model, source = features.train(row, seed, settings)
        models[name] = of_world(name, model, source, features.build_loss(row, settings))
    return models


def from_runs(folders: list[Path], data: Path | None) -> dict[str, Trained]:
    """Models of training runs, by the row of the ablation that they are.

    Raises:
        ValueError, OSError: a folder is none of a run, or two are of the same row.
    """
    models: dict[str, Trained] = {}
    for folder in folders:
        name = role(folder)
        if name is None:
            print(f"{folder}: not used, its loss is none of {', '.join(NEEDED)}")
        elif name in models:
            raise ValueError(f"{folder} and {models[name].name} are both of the row {name}")
        else:
            print(f"{folder}: {name}", flush=True)
            models[name] = of_run(folder, data)
    return models


def draw(models: dict[str, Trained], out: Path) -> list[Path]:
    """Draw the figures whose models are there; the paths written."""
    plans = [
        ("figure1a.png", ("s2dtw", "plain"), lambda m, path: paper.paths(m, path)),
        ("figure1b.png", ("s2dtw", "alone"), lambda m, path: paper.distances(m, path)),
        ("figure2.png", ("s2dtw",), lambda m, path: paper.positive_and_negative(m[0], 0, path)),
        ("figure3.png", ("s2dtw",), lambda m, path: paper.positive_and_negative(m[0], 1, path)),
        ("gamma.png", ("s2dtw",), lambda m, path: paper.gammas(m[0], path)),
    ]
    written = []
    for name, needed, make in plans:
        lacking = [row for row in needed if row not in models]
        if lacking:
            print(f"{name}: left out, no run of {' and '.join(lacking)} was given")
            continue
        titles = make([models[row] for row in needed], out / name)
        written.append(out / name)
        print(f"wrote {out / name}")
        for title in titles:
            print("    " + title.replace("\n", "\n    "))
    return written


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m examples.vttwins.figures",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", type=Path, nargs="*", help="folders of training runs")
    parser.add_argument("--out", type=Path, default=Path("build/vttwins/figures"))
    parser.add_argument("--data", type=Path, help="data folder with test.csv; default the runs'")
    parser.add_argument("--seed", type=int, default=0, help="of the feature world")
    parser.add_argument("--steps", type=int, help="of training in the feature world; default 400")
    options = parser.parse_args(arguments)
    if options.seed < 0 or (options.steps is not None and options.steps < 1):
        parser.error(
            f"--seed must be 0 or more, --steps 1 or more, got {options.seed}, {options.steps}"
        )
    if options.runs and options.steps is not None:
        parser.error("--steps is for the feature world, and runs are given")
    if options.data and not options.runs:
        parser.error("--data is for runs, and none is given")
    try:
        if options.runs:
            models = from_runs(options.runs, options.data)
        else:
            models = from_world(options.seed, options.steps)
        if not draw(models, options.out):
            raise SystemExit("no figure was drawn")
    except (ValueError, KeyError, OSError) as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from error


if __name__ == "__main__":
    main()
