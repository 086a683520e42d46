"""Samples for fine-tuning: clips of captioned spans of video, listed as the benchmarks do.

Requirements: torch, NumPy, av.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from examples.vttwins.benchmarks import segments
from examples.vttwins.benchmarks.extraction import duration
from examples.vttwins.benchmarks.segments import Segment
from examples.vttwins.benchmarks.videos import locate
from examples.vttwins.data import ClipShape, Replacing, crop, to_clip
from examples.vttwins.metrics import segment_windows
from examples.vttwins.video import VideoReader
from examples.vttwins.words import EVAL_WORDS, Vocabulary


@dataclass(frozen=True)
class Captioned:
    """A span of a video, in seconds, and the sentences about it; folders as in ``locate``."""

    video_id: str
    start: float
    end: float
    texts: tuple[str, ...]
    task: str = ""


def captioned(items: list[Segment]) -> list[Captioned]:
    """The distinct spans of segments, in their order, each with all of its sentences."""
    found: dict[tuple[str, str, float, float], list[str]] = {}
    for s in items:
        found.setdefault((s.video_id, s.task, s.start, s.end), []).append(s.text)
    return [Captioned(v, a, b, tuple(texts), task) for (v, task, a, b), texts in found.items()]


def read_list(benchmark: str, path: str, ids: str, training: bool) -> list[Segment]:
    """Segments of a list in the style of a benchmark, of the videos of another list if given."""
    chosen = segments.read_video_list(ids) if ids else None
    if benchmark == "msrvtt":
        return segments.read_msrvtt(path, chosen)
    subset = segments.TRAINING if training and path.lower().endswith(".json") else None
    found = segments.read_youcook2(path, subset)
    if chosen is None:
        return found
    wanted = set(chosen)
    kept = [s for s in found if s.video_id in wanted]
    if not kept:
        raise ValueError(f"{path} has no segment of the videos in {ids}")
    return kept


def held_out(items: list[Captioned], share: float, seed: int) -> set[str]:
    """Ids of a share of the videos, at least one if the share is not 0; the seed decides which."""
    videos = sorted({item.video_id for item in items})
    count = math.ceil(share * len(videos))
    if count >= len(videos):
        raise ValueError(f"{len(videos)} training videos: none is left if {count} are held out")
    order = np.random.default_rng([seed, 2]).permutation(len(videos))
    return {videos[i] for i in order[:count]}


class SegmentSamples(Replacing):
    """Training samples: a clip of each span, its start uniform in the range of the evaluation.

    Items are as those of ``NarratedVideos``, with one clip and one sentence.

    Args:
        items: spans of video with their sentences.
        root: folder of the videos.
        vocabulary: turns sentences into ids.
        shape: of a clip.
        seed, batch: as in ``Replacing``.
    """

    def __init__(
        self,
        items: list[Captioned],
        root: str | Path,
        vocabulary: Vocabulary,
        shape: ClipShape,
        seed: int = 0,
        batch: int = 1,
    ) -> None:
        self.items, self.root, self.vocabulary, self.shape = items, Path(root), vocabulary, shape
        self.seed, self.batch = seed, batch

    def __len__(self) -> int:
        return len(self.items)

    def name(self, index: int) -> str:
        return self.items[index].video_id

    def hint(self) -> str:
        return f"Is {self.root} the folder of the videos?"

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        item, shape = self.items[index], self.shape
        text = item.texts[int(rng.integers(len(item.texts)))]
        place, across, down, coin = rng.random(4)
        with VideoReader(locate(self.root, item.video_id, (item.task,))) as reader:
            end = duration(reader) if math.isinf(item.end) else item.end
            first, last = segment_windows(item.start, max(end, item.start), 2, shape.seconds)
            start = first + place * (last - first)
            pictures = reader.clip(float(start), shape.frames, shape.fps, shape.resize)
        clip = to_clip(crop(pictures, shape.size, across, down, coin < 0.5), shape.frames)
        return {
            "video": clip[None],
            "words": self.vocabulary.encode(text, EVAL_WORDS)[None],
            "decode_seconds": 0.0,
        }
