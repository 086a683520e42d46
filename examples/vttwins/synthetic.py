"""Write a small narrated-video set to disk: real mp4 files and caption JSONs, HowTo100M's layout.

    python -m examples.vttwins.synthetic --out build/vttwins/data

Requirements: av, NumPy.

World: each task is a fixed background and an ordered list of steps; a step is a colored shape that
does something ("red ring spins"). A training video shows some of its task's steps in order, and its
narration is only weakly aligned, as instruction videos are: all captions come one step early or
late (or in time), neighbors are swapped with probability 1/4, and 3 in 10 are chatter. A test video
shows all steps of its task; the annotation of the test clips is exact, and no two test clips of the
set share a caption. Nuisances: position, size, speed, brightness, a gray distractor, noise.

    train.csv  (video_path)            videos/train_00000.mp4   captions/train_00000.json
    test.csv   (end, start, task, text, video_id: as YouCook2's)
    train_segments.csv  (the same for the training videos, exact: for fine-tuning)
    tasks_primary.txt   (the steps of each task in order: as CrossTask's)
    narrations/test_00000.json         a weak narration of a test video, for pictures: captions with
                                       "shown", the place of what each tells of (null: chatter)
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import math
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from examples.vttwins.benchmarks.crosstask import TASKS, write_crosstask_tasks
from examples.vttwins.checkpoint import write_text
from examples.vttwins.video import write_video

COLORS = {
    "red": (230, 40, 40),
    "green": (40, 200, 60),
    "blue": (50, 80, 240),
    "yellow": (240, 220, 50),
    "purple": (170, 60, 220),
    "cyan": (50, 220, 220),
    "orange": (250, 140, 30),
    "white": (245, 245, 245),
}
SHAPES = ("square", "circle", "triangle", "cross", "ring")
# No motion is told apart by left and right: training clips are flipped at random.
MOTIONS = ("rises", "falls", "grows", "shrinks", "blinks", "spins", "waits")
TEMPLATES = (
    "the {color} {shape} {motion}",
    "now the {color} {shape} {motion}",
    "next you see how the {color} {shape} {motion}",
    "and here the {color} {shape} {motion} for a while",
    "then a {color} {shape} {motion}",
)
CHATTER = (
    "hello and welcome back to my channel",
    "do not forget to subscribe",
    "let me know in the comments below",
    "this is my favorite part",
    "I have done this many times before",
    "thank you so much for watching",
    "it took me a long time to learn",
    "you can find the link below",
)
MARKER = "world.json"  # the parameters of a set that is whole
UNFINISHED = "generating.json"  # those of one that is being written, or was when that was stopped
FORMAT = 3  # of the set on disk; 2 has narrations/, 3 train_segments.csv


@dataclass(frozen=True)
class World:
    """Parameters of the generator; the same ones and the same seed write the same set.

    Raises:
        ValueError: no set can be made with these.
    """

    tasks: int = 12
    steps_per_task: int = 10
    train_videos: int = 120
    size: int = 64
    fps: int = 10
    step_seconds: float = 3.0
    shortest: int = 8  # steps in the shortest training video
    chatter: float = 0.3
    swap: float = 0.25
    seed: int = 0

    def __post_init__(self) -> None:
        least = {
            "tasks": 1,
            "steps_per_task": 1,
            "train_videos": 1,
            "size": 2,
            "fps": 1,
            "step_seconds": 1 / self.fps if self.fps > 0 else 0,
            "shortest": 1,
            "chatter": 0,
            "swap": 0,
            "seed": 0,
        }
        for name, lowest in least.items():
            most = 1 if name in ("chatter", "swap") else math.inf
            value = getattr(self, name)
            if not lowest <= value <= most or value == math.inf:
                between = f"at least {lowest:g}" + (" and at most 1" if most == 1 else "")
                raise ValueError(f"{name} must be {between}, got {value}")
        if self.size % 2:
            raise ValueError(
                f"size must be even, as the coder of the videos wants, got {self.size}"
            )
        self.steps()

    def steps(self) -> list[list[tuple[str, str, str]]]:
        """Steps (color, shape, motion) of each task, all distinct over the whole set.

        A task keeps to three colors, as a recipe keeps to its ingredients.
        """
        rng = np.random.default_rng([self.seed, 0])
        colors, free = list(COLORS), set(itertools.product(COLORS, SHAPES, MOTIONS))
        tasks = []
        for task in range(self.tasks):
            palette = [colors[(3 * task + task // len(colors) + k) % len(colors)] for k in range(3)]
            pool = [step for step in sorted(free) if step[0] in palette]
            if len(pool) < self.steps_per_task:
                raise ValueError(
                    f"{self.tasks} tasks of {self.steps_per_task} distinct steps are too many; "
                    "give fewer tasks or steps_per_task"
                )
            chosen = rng.permutation(len(pool))[: self.steps_per_task]
            tasks.append([pool[i] for i in chosen])
            free -= set(tasks[-1])
        return tasks


def _shape_mask(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Soft mask of a shape of radius 1 at coordinates (u, v) in units of the radius."""
    if shape == "square":
        distance = np.maximum(np.abs(u), np.abs(v)) - 0.85
    elif shape == "circle":
        distance = np.hypot(u, v) - 0.95
    elif shape == "triangle":
        distance = np.maximum(v - 0.6, np.abs(u) * 0.87 - v * 0.5 - 0.55)
    elif shape == "cross":
        distance = np.maximum(
            np.minimum(np.abs(u), np.abs(v)) - 0.3, np.maximum(np.abs(u), np.abs(v)) - 1
        )
    else:  # ring
        distance = np.abs(np.hypot(u, v) - 0.75) - 0.25
    return np.clip(0.5 - 8 * distance, 0, 1)


def render_step(
    step: tuple[str, str, str],
    background: np.ndarray,
    frames: int,
    fps: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Pictures uint8 (frames, H, W, 3) of one step over a background float (H, W, 3)."""
    color, shape, motion = step
    size = background.shape[0]
    time = np.arange(frames) / fps * rng.uniform(0.8, 1.2) + rng.uniform(0, 0.5)
    phase = np.mod(time / 1.5, 1.0)  # each motion repeats every 1.5 s
    x = np.full(frames, rng.uniform(0.35, 0.65))
    y = np.full(frames, rng.uniform(0.4, 0.6))
    radius = np.full(frames, rng.uniform(0.26, 0.34))
    angle = np.full(frames, rng.uniform(-0.15, 0.15))
    opacity = np.ones(frames)
    if motion == "rises":
        y = 0.85 - 0.7 * phase
    elif motion == "falls":
        y = 0.15 + 0.7 * phase
    elif motion == "grows":
        radius = 0.1 + 0.35 * phase
    elif motion == "shrinks":
        radius = 0.45 - 0.35 * phase
    elif motion == "blinks":
        opacity = (np.mod(time, 0.8) < 0.45).astype(float)
    elif motion == "spins":
        angle = angle + 2 * np.pi * time / 1.5
    axis = ((np.arange(size) + 0.5) / size).astype(np.float32)
    x, y, radius = (values.astype(np.float32) for values in (x, y, radius))
    dx = (axis[None, None, :] - x[:, None, None]) / radius[:, None, None]
    dy = (axis[None, :, None] - y[:, None, None]) / radius[:, None, None]
    cos, sin = (f(angle).astype(np.float32)[:, None, None] for f in (np.cos, np.sin))
    mask = (
        _shape_mask(shape, cos * dx + sin * dy, cos * dy - sin * dx)
        * opacity.astype(np.float32)[:, None, None]
    )
    pictures = np.repeat(background[None].astype(np.float32), frames, axis=0)
    gray = rng.uniform(0.05, 0.95, 2)  # a small gray disk that means nothing
    disk = _shape_mask("circle", (axis[None, :] - gray[0]) / 0.07, (axis[:, None] - gray[1]) / 0.07)
    pictures += disk[None, :, :, None] * (150 - pictures)
    tint = (np.array(COLORS[color]) * rng.uniform(0.85, 1.0)).astype(np.float32)
    pictures += mask[..., None] * (tint - pictures)
    pictures += 4 * rng.standard_normal((frames, size, size, 1), dtype=np.float32)
    return np.clip(pictures, 0, 255, out=pictures).astype(np.uint8)


def background_of(task: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Float (H, W, 3): dark stripes, their direction and width fixed by the task."""
    fixed = np.random.default_rng([7, task])
    direction, width = fixed.uniform(0, np.pi), fixed.uniform(4, 12)
    tone = fixed.uniform(25, 75, 3)
    axis = np.arange(size) / size
    wave = np.sin(
        2 * np.pi * width * (np.cos(direction) * axis[None, :] + np.sin(direction) * axis[:, None])
        + rng.uniform(0, 2 * np.pi)
    )
    return (tone[None, None] + 12 * wave[..., None]) * rng.uniform(0.8, 1.2)


def narrate(
    steps: list[tuple[str, str, str]], world: World, rng: np.random.Generator
) -> tuple[list[str], list[int | None]]:
    """One caption a step, weakly aligned: shifted as a whole, swapped, and replaced by chatter.

    Returns:
        The captions, and for each the step that it tells of; None for chatter.
    """
    texts = [describe(step, rng) for step in steps]
    shift = int(rng.integers(-1, 2))
    told = [min(max(i - shift, 0), len(steps) - 1) for i in range(len(steps))]
    for i in range(len(told) - 1):
        if rng.random() < world.swap:
            told[i], told[i + 1] = told[i + 1], told[i]
    captions: list[str] = []
    shown: list[int | None] = []
    for i in told:
        chatter = rng.random() < world.chatter
        captions.append(str(rng.choice(CHATTER)) if chatter else texts[i])
        shown.append(None if chatter else i)
    return captions, shown


def describe(step: tuple[str, str, str], rng: np.random.Generator) -> str:
    color, shape, motion = step
    return str(rng.choice(TEMPLATES)).format(color=color, shape=shape, motion=motion)


def write_one(world: World, out: Path, split: str, index: int) -> list[dict[str, object]]:
    """Write one video and its captions; return its rows of the exact annotation."""
    rng = np.random.default_rng([world.seed, 1 if split == "train" else 2, index])
    task = index % world.tasks
    steps = world.steps()[task]
    if split == "train":
        count = int(rng.integers(min(world.shortest, len(steps)), len(steps) + 1))
        steps = [steps[i] for i in np.sort(rng.permutation(len(steps))[:count])]
    background = background_of(task, world.size, rng)
    parts, rows, clock = [], [], 0
    for step in steps:
        frames = round(world.fps * world.step_seconds * rng.uniform(0.9, 1.3))
        parts.append(render_step(step, background, frames, world.fps, rng))
        start, clock = clock, clock + frames
        text = "the {} {} {}".format(*step)
        rows.append(
            {
                "end": clock / world.fps,
                "start": start / world.fps,
                "task": f"task {task}",
                "text": text,
                "video_id": f"{split}_{index:05d}",
            }
        )
    narration, shown = narrate(steps, world, rng)
    name = f"{split}_{index:05d}"
    write_video(out / "videos" / f"{name}.mp4", np.concatenate(parts), world.fps)
    spans = {"start": [r["start"] for r in rows], "end": [r["end"] for r in rows]}
    exact = [str(row["text"]) for row in rows]
    texts = {"text": narration if split == "train" else exact}
    (out / "captions" / f"{name}.json").write_text(json.dumps(spans | texts), encoding="utf-8")
    if split == "test":
        told = {"text": narration, "shown": shown}
        (out / "narrations" / f"{name}.json").write_text(json.dumps(spans | told), encoding="utf-8")
    return rows


def is_own(folder: Path) -> bool:
    """Whether a folder holds a generated set, or a part of one.

    Example:
        >>> is_own(Path("nowhere"))
        False
    """
    for name in (MARKER, UNFINISHED):
        try:
            content = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(content, dict) and {"format", "tasks", "train_videos"} <= content.keys():
            return True
    return False


def _write_job(job: tuple[World, Path, str, int]) -> list[dict[str, object]]:
    return write_one(*job)


def generate(world: World, out: str | Path, workers: int = 1) -> Path:
    """Write the whole set under ``out``; the files do not depend on ``workers``.

    An existing set of the same parameters is kept, one of others is written over; the marker is
    written last.

    Raises:
        ValueError: the folder holds files of others.
    """
    out = Path(out)
    marker, unfinished = out / MARKER, out / UNFINISHED
    parameters = json.dumps({"format": FORMAT, **world.__dict__}, sort_keys=True)
    if marker.exists() and marker.read_text(encoding="utf-8") == parameters:
        return out
    if out.exists() and any(out.iterdir()) and not is_own(out):
        raise ValueError(f"{out} is not empty and holds no generated set; give another --out")
    out.mkdir(parents=True, exist_ok=True)
    write_text(unfinished, parameters)
    marker.unlink(missing_ok=True)
    for folder in ("videos", "captions", "narrations"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    jobs = [(world, out, "train", i) for i in range(world.train_videos)]
    jobs += [(world, out, "test", i) for i in range(world.tasks)]
    if workers > 1:
        with ProcessPoolExecutor(workers) as pool:
            results = list(pool.map(_write_job, jobs, chunksize=4))
    else:
        results = [_write_job(job) for job in jobs]
    with (out / "train.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["video_path"])
        table.writerows([f"train_{i:05d}.mp4"] for i in range(world.train_videos))
    annotated = {
        "train_segments.csv": results[: world.train_videos],
        "test.csv": results[world.train_videos :],
    }
    for name, part in annotated.items():
        with (out / name).open("w", newline="", encoding="utf-8") as file:
            rows = csv.DictWriter(file, ["end", "start", "task", "text", "video_id"])
            rows.writeheader()
            for result in part:
                rows.writerows(result)
    tasks = {
        f"task {k}": ["the {} {} {}".format(*step) for step in steps]
        for k, steps in enumerate(world.steps())
    }
    write_crosstask_tasks(tasks, out / TASKS)
    os.replace(unfinished, marker)
    return out


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    for name, default in World().__dict__.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    options = vars(parser.parse_args(arguments))
    out, workers = options.pop("out"), options.pop("workers")
    try:
        world = World(**options)
    except ValueError as error:
        parser.error(str(error))
    try:
        generate(world, out, workers)
    except (ValueError, OSError, BrokenProcessPool) as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from error
    except KeyboardInterrupt:
        print("Interrupted. The same line begins anew.", file=sys.stderr)
        raise SystemExit(130) from None
    print(
        f"{out}: {world.train_videos} training videos, {world.tasks} test videos with "
        f"{world.tasks * world.steps_per_task} clip-caption pairs"
    )


if __name__ == "__main__":
    main()
