"""HowTo100M's layout: a CSV of videos, one caption JSON per video; sequences of clips and captions.

Requirements: torch, NumPy, av through video.py.

    videos.csv               column video_path, relative to the folder of videos
    captions/<video>.json    {"start": [...], "end": [...], "text": [...]}, seconds

Two rules. All randomness of a sample comes from (seed, epoch, index), so batches do not depend on
the number of workers, on the number of ranks or on where a run was resumed. And a video that cannot
be used never stops a run: it is recorded, with the reason, and another one takes its place.
"""

from __future__ import annotations

import csv
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from examples.vttwins import loading
from examples.vttwins.loading import StepBatches as StepBatches
from examples.vttwins.loading import collate as collate
from examples.vttwins.loading import epoch_order as epoch_order
from examples.vttwins.loading import loader as loader
from examples.vttwins.loading import prepare_worker as prepare_worker
from examples.vttwins.video import VideoError, VideoReader
from examples.vttwins.words import TRAIN_WORDS, Vocabulary

ATTEMPTS = 50
LONGEST = 1e6  # seconds; a caption later than 11 days into its video is a mistake


@dataclass(frozen=True)
class ClipShape:
    """What a clip is: ``frames`` at ``fps``, its shorter side scaled to ``resize``, then cut to
    ``size`` x ``size``. ``resize`` None cuts without scaling."""

    frames: int = 16
    fps: float = 5.0
    size: int = 224
    resize: int | None = 224

    @property
    def seconds(self) -> float:
        return self.frames / self.fps


@dataclass(frozen=True)
class Captions:
    """Narration of a video: caption i says ``text[i]`` from ``start[i]`` to ``end[i]`` seconds."""

    start: list[float]
    end: list[float]
    text: list[str]

    @classmethod
    def load(cls, path: Path) -> Captions:
        """Read a caption file.

        Raises:
            VideoError: "no_captions" (no file), "bad_captions" (not the format), "silent" (empty).
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise VideoError("no_captions", f"{path}: no such file") from None
        except (ValueError, OSError, RecursionError) as error:
            raise VideoError("bad_captions", f"{path}: {error}") from None
        try:
            start = [float(value) for value in content["start"]]
            end = [float(value) for value in content["end"]]
            text = [str(value) for value in content["text"]]
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise VideoError("bad_captions", f"{path}: needs start, end, text: {error!r}") from None
        if not len(start) == len(end) == len(text):
            raise VideoError(
                "bad_captions", f"{path}: {len(start)} starts, {len(end)} ends, {len(text)} texts"
            )
        wrong = [value for value in (*start, *end) if not abs(value) <= LONGEST]  # NaN too
        if wrong:
            raise VideoError("bad_captions", f"{path}: {wrong[0]} s is no time in a video")
        if not text:
            raise VideoError("silent", f"{path}: no captions")
        return cls(start, end, text)


def read_column(path: str | Path, column: str) -> list[str]:
    """One column of a CSV file with a header."""
    with Path(path).open(newline="", encoding="utf-8") as file:
        table = csv.DictReader(file)
        if column not in (table.fieldnames or ()):
            raise ValueError(f"{path}: needs a column {column!r}, has {table.fieldnames}")
        return [row[column] for row in table]


def crop(
    pictures: np.ndarray, size: int, across: float = 0.5, down: float = 0.5, flip: bool = False
) -> np.ndarray:
    """Cut (T, H, W, 3) to (T, size, size, 3) at a relative place in [0, 1]; 0.5 is the middle.

    Sides shorter than ``size`` are padded with zeros, evenly.
    """
    height, width = pictures.shape[1:3]
    lack_h, lack_w = max(size - height, 0), max(size - width, 0)
    if lack_h or lack_w:
        padding = ((lack_h // 2, lack_h - lack_h // 2), (lack_w // 2, lack_w - lack_w // 2))
        pictures = np.pad(pictures, ((0, 0), *padding, (0, 0)))
        height, width = pictures.shape[1:3]
    top, left = round((height - size) * down), round((width - size) * across)
    pictures = pictures[:, top : top + size, left : left + size]
    return pictures[:, :, ::-1] if flip else pictures


def to_clip(pictures: np.ndarray, frames: int) -> Tensor:
    """uint8 (T, H, W, 3) -> (3, frames, H, W), zeros after the end."""
    clip = torch.zeros(3, frames, *pictures.shape[1:3], dtype=torch.uint8)
    clip[:, : len(pictures)] = torch.from_numpy(
        np.ascontiguousarray(pictures[:frames].transpose(3, 0, 1, 2))
    )
    return clip


class NarratedVideos(Dataset[dict[str, Any]]):
    """Training samples: a random window of consecutive captions and a clip in the span of each.

    An item is addressed by (epoch, index); the same address gives the same sample, always. It
    holds ``video`` uint8 (n, 3, T, H, W), ``words`` int64 (m, W), ``decode_seconds``, and
    ``skipped``: the (path, reason) of videos that could not be used before this one.

    Args:
        videos: paths relative to ``video_root``.
        video_root, caption_root: folders.
        vocabulary: turns captions into ids.
        shape: of a clip.
        captions: m, consecutive captions in a sample; the last is repeated where a video has fewer.
        clips: n; default m. Clip k is taken in the span of caption floor(k m / n).
        max_words: words kept of a caption.
        augment: random crop and horizontal flip; otherwise the middle.
        seed: of everything random.
    """

    def __init__(
        self,
        videos: list[str],
        video_root: str | Path,
        caption_root: str | Path,
        vocabulary: Vocabulary,
        shape: ClipShape,
        captions: int = 8,
        clips: int | None = None,
        max_words: int = TRAIN_WORDS,
        augment: bool = True,
        seed: int = 0,
    ) -> None:
        if not videos:
            raise ValueError("no videos to train on")
        self.videos = videos
        self.video_root, self.caption_root = Path(video_root), Path(caption_root)
        self.vocabulary, self.shape, self.max_words = vocabulary, shape, max_words
        self.captions, self.clips = captions, clips or captions
        self.augment, self.seed = augment, seed

    def __len__(self) -> int:
        return len(self.videos)

    def caption_path(self, video: str) -> Path:
        return self.caption_root / f"{Path(video).name.split('.')[0]}.json"

    def __getitem__(self, address: tuple[int, int]) -> dict[str, Any]:
        epoch, index = address
        rng = np.random.default_rng([self.seed, epoch, index])
        skipped: list[tuple[str, str]] = []
        for _ in range(ATTEMPTS):
            video = self.videos[index]
            try:
                with loading.reading(self.video_root / video):
                    sample = self._sample(video, rng)
            except VideoError as error:
                skipped.append((video, error.reason))
                index = int(rng.integers(len(self.videos)))
                continue
            return {**sample, "skipped": skipped}
        raise RuntimeError(
            f"{ATTEMPTS} videos in a row cannot be used, the last ones: {skipped[-5:]}. "
            f"Is {self.video_root} the folder of videos and {self.caption_root} that of captions?"
        )

    def _sample(self, video: str, rng: np.random.Generator) -> dict[str, Any]:
        captions = Captions.load(self.caption_path(video))
        count = len(captions.text)
        first = int(rng.integers(max(count - self.captions, 0) + 1))
        window = [min(first + k, count - 1) for k in range(self.captions)]
        began = time.perf_counter()
        clips = []
        with VideoReader(self.video_root / video) as reader:
            for k in range(self.clips):
                caption = window[k * self.captions // self.clips]
                start = max(int(captions.start[caption]), 0)
                last = max(int(captions.end[caption] - self.shape.seconds), start)
                second = int(rng.integers(start, last + 1))
                # Drawn even if unused: what follows must not depend on the augmentation.
                across, down, coin = rng.random(3)
                pictures = reader.clip(second, self.shape.frames, self.shape.fps, self.shape.resize)
                if self.augment:
                    pictures = crop(pictures, self.shape.size, across, down, coin < 0.5)
                else:
                    pictures = crop(pictures, self.shape.size)
                clips.append(to_clip(pictures, self.shape.frames))
        return {
            "video": torch.stack(clips),
            "words": self.vocabulary.encode_all((captions.text[i] for i in window), self.max_words),
            "decode_seconds": time.perf_counter() - began,
        }
