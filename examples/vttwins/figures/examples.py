"""Held-out videos with narrations to draw: of a run on real or generated videos, of the world.

Requirements: torch, NumPy; for a run also av.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from examples.vttwins import evaluate
from examples.vttwins.ablation.features import Encoders
from examples.vttwins.ablation.world import Source
from examples.vttwins.benchmarks import read_segments
from examples.vttwins.benchmarks.measure import embed_texts
from examples.vttwins.data import ClipShape, crop, to_clip
from examples.vttwins.figures.draw import Example
from examples.vttwins.loss import SequenceLoss
from examples.vttwins.video import VideoError, VideoReader, find_video

CAPTION_WIDTH = 30  # characters
MOST = 24  # held-out videos that are looked at


@dataclass(frozen=True)
class Narration:
    """Captions of a held-out video, and of what they tell.

    Attributes:
        start, end, text: of each caption.
        seen: what is seen from ``start`` to ``end``.
        told: what the caption tells of; None for chatter.
    """

    start: list[float]
    end: list[float]
    text: list[str]
    seen: list[Hashable]
    told: list[Hashable]

    def cut(self, count: int) -> Narration:
        """The first ``count`` captions."""
        return Narration(
            self.start[:count], self.end[:count], self.text[:count], self.seen[:count],
            self.told[:count],
        )  # fmt: skip


@dataclass(frozen=True)
class Trained:
    """A trained model's held-out videos, and the loss that it was trained with."""

    name: str
    loss: SequenceLoss
    examples: list[Example]


def read_narrations(data: Path) -> dict[str, Narration]:
    """Narrations of the videos of a data folder's test.csv, in its order.

    A generated set has weak narrations with their truth (synthetic.py); else the annotation of a
    video is its narration, and each caption tells of its own segment.

    Raises:
        ValueError, OSError: a file is missing or not what it should be.
    """
    segments = read_segments(data / "test.csv")
    narrations = {}
    for video in dict.fromkeys(s.video_id for s in segments):
        path = data / "narrations" / f"{video}.json"
        if path.exists():
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
                start, end, text, shown = (content[k] for k in ("start", "end", "text", "shown"))
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path} is no narration: {error!r}") from None
            seen: list[Hashable] = [(video, place) for place in range(len(start))]
            told: list[Hashable] = [None if place is None else (video, place) for place in shown]
        else:
            own = sorted((s for s in segments if s.video_id == video), key=lambda s: s.start)
            start, end, text = ([getattr(s, k) for s in own] for k in ("start", "end", "text"))
            seen, told = list(text), list(text)
        narrations[video] = Narration(start, end, text, seen, told)
    return narrations


def of_run(folder: Path, data: Path | None = None, most: int = MOST) -> Trained:
    """The first usable held-out videos of a training run, two at least.

    Args:
        data: the data folder; default the run's.
        most: of them.

    Raises:
        ValueError, OSError: files are missing or damaged, or too few videos can be used.
    """
    model, vocabulary, shape, settings = evaluate.load_run(folder)
    model.eval()
    if data is None and not (Path(settings["data"]) / "test.csv").exists():
        path = Path(settings["data"]) / "test.csv"
        raise ValueError(f"{path} does not exist, where the run had its data: give --data")
    data = data or Path(settings["data"])
    examples: list[Example] = []
    problems: list[str] = []
    for video, narration in read_narrations(data).items():
        if len(examples) == most:
            break
        narration = narration.cut(settings["clips"])
        try:
            clips, frames = look(data / "videos", video, narration, shape)
        except VideoError as error:
            problems.append(f"{video} ({error.reason})")
            continue
        with torch.no_grad():
            embedded = model.encode_video(clips.float().div_(255))
        text = embed_texts(model, narration.text, vocabulary)
        times = zip(narration.start, narration.end, strict=True)
        labels = [f"{clock(start)}-\n{clock(end)}" for start, end in times]
        examples.append(
            Example(
                video, embedded, text, labels,
                [f"{textwrap.fill(words, CAPTION_WIDTH)}  {clock(start)}"
                 for words, start in zip(narration.text, narration.start, strict=True)],
                narration.seen, narration.told, tuple(frames),
                "clips: the middles of these spans", "captions, and when they start",
            )
        )  # fmt: skip
    if problems:
        print(f"held-out videos that cannot be used: {', '.join(problems)}")
    if len(examples) < 2:
        raise ValueError(f"two held-out videos are needed, {data / 'test.csv'} has {len(examples)}")
    return Trained(folder.name, loss_of(settings), examples)


def loss_of(settings: dict[str, Any]) -> SequenceLoss:
    """The loss of a run's settings.

    Raises:
        ValueError: a run that does not align sequences, such as fine-tuning.
    """
    if "operator" not in settings:
        raise ValueError("the run has no operator in its settings: it aligns no sequences")
    names = ("cost", "contrastive", "gamma", "dummy_cost", "origin_count", "direction")
    chosen = {name: settings[name] for name in (*names, "temperature")}
    return SequenceLoss(settings["operator"], **chosen)


def described(loss: SequenceLoss) -> str:
    """The loss in words.

    Example:
        >>> described(SequenceLoss("weak", cost="cosine"))
        'weak, plain cosine, gamma 0.1'
    """
    cost = {"shifted_cosine": "shifted cosine", "cosine": "plain cosine"}[str(loss.cost)]
    gamma = "" if loss.operator == "mil_nce" else f", gamma {loss.gamma:g}"
    return f"{loss.operator}, {cost}{gamma}{'' if loss.contrastive else ', no contrast'}"


def look(
    folder: Path, video: str, narration: Narration, shape: ClipShape
) -> tuple[torch.Tensor, list[np.ndarray]]:
    """A clip in the middle of each caption's span, uint8 (n, 3, T, S, S), and its middle frame."""
    clips, frames = [], []
    with VideoReader(find_video(folder, video)) as reader:
        for start, end in zip(narration.start, narration.end, strict=True):
            middle = (start + end) / 2
            begin = max(middle - shape.seconds / 2, 0.0)
            pictures = reader.clip(begin, shape.frames, shape.fps, shape.resize)
            clips.append(to_clip(crop(pictures, shape.size), shape.frames))
            frames.append(reader.clip(middle, 1, shape.fps)[0])
    return torch.stack(clips), frames


def clock(seconds: float) -> str:
    """A time as m:ss.

    Example:
        >>> clock(83.4)
        '1:23'
    """
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}"


@torch.no_grad()
def of_world(
    name: str, model: Encoders, source: Source, loss: SequenceLoss, count: int = MOST
) -> Trained:
    """``count`` videos of the feature world, drawn for no training; the same for every model."""
    batch = source.videos(count, np.random.default_rng([source.world.seed, 3]))
    examples = []
    for k in range(count):
        task = batch.task[k]
        clips = [f"{task}.{step}" for step in batch.clip_step[k]]
        captions = [f"{task}.{step}" if step >= 0 else "chatter" for step in batch.caption_step[k]]
        seen: list[Hashable] = [(task, step) for step in batch.clip_step[k]]
        told: list[Hashable] = [(task, s) if s >= 0 else None for s in batch.caption_step[k]]
        examples.append(
            Example(
                f"video {k} (task {task})", model.video(batch.video[k]), model.text(batch.text[k]),
                clips, captions, seen, told, (), "clips: task.step", "captions: task.step",
            )
        )  # fmt: skip
    return Trained(name, loss, examples)
