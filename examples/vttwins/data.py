"""HowTo100M's layout: a CSV of videos, one caption JSON per video; sequences of clips and captions.

Requirements: torch, NumPy, av through video.py.

    videos.csv               column video_path, relative to the folder of videos
    captions/<video>.json    {"start": [...], "end": [...], "text": [...]}, seconds

The captions of a/x.mp4 are captions/a/x.json or else captions/x.json, as HowTo100M has them.

Two rules. All randomness of a sample comes from (seed, epoch, index), so batches do not depend on
the number of workers, on the number of ranks or on where a run was resumed. And a video that cannot
be used never stops a run: it is recorded, with the reason, and another one takes its place, which
is none of the same batch.
"""

from __future__ import annotations

import csv
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from examples.vttwins import loading
from examples.vttwins.captions import Captions, caption_path, check_listed_once
from examples.vttwins.loading import LoadingError, epoch_order
from examples.vttwins.video import VideoError, VideoReader, find_video
from examples.vttwins.words import TRAIN_WORDS, Vocabulary

ATTEMPTS = 50


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


def read_column(path: str | Path, column: str) -> list[str]:
    """One column of a CSV file with a header; "" where a row is too short to have it.

    Raises:
        ValueError: there is no such column, or the file is not text.
    """
    with Path(path).open(newline="", encoding="utf-8-sig") as file:
        table = csv.DictReader(file)
        try:
            if column not in (table.fieldnames or ()):
                raise ValueError(f"{path}: needs a column {column!r}, has {table.fieldnames}")
            return [(row[column] or "").strip() for row in table]
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}, line {table.line_num + 1}: {error}") from None


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
    # A copy even of what is contiguous: a flipped picture of one pixel is, with a negative stride.
    clip[:, : len(pictures)] = torch.from_numpy(pictures[:frames].transpose(3, 0, 1, 2).copy())
    return clip


class Replacing(Dataset[dict[str, Any]]):
    """Samples of videos, where one that can be used takes the place of one that cannot.

    An item is addressed by (epoch, index); the same address gives the same sample, always. The
    replacement has the same place in another batch of the epoch, so that neither the batch nor its
    other replacements hold it. Only where all of these cannot be used either does any other video
    serve, as ``skipped`` then says.

    Subclasses define ``name``, ``sample``, which raises VideoError, ``hint`` and ``__len__``.
    """

    seed: int
    batch: int  # samples in a batch over all processes, as ``StepBatches`` makes them

    def __len__(self) -> int:
        raise NotImplementedError

    def name(self, index: int) -> str:
        """The video of a sample, for the log."""
        raise NotImplementedError

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """The sample at an index; all that is random comes from ``rng``."""
        raise NotImplementedError

    def hint(self) -> str:
        """What may be wrong where no video can be used."""
        raise NotImplementedError

    def __getitem__(self, address: tuple[int, int]) -> dict[str, Any]:
        epoch, index = address
        rng = np.random.default_rng([self.seed, epoch, index])
        skipped: list[tuple[str, str]] = []
        for candidate, alone in itertools.islice(self._candidates(epoch, index), ATTEMPTS):
            video = self.name(candidate)
            try:
                with loading.reading(video):
                    sample = self.sample(candidate, rng)
            except VideoError as error:
                skipped.append((video, f"{error.reason}: {error}"))
                continue
            if not alone:
                skipped.append(
                    (video, "repeated: too few usable videos, it may be twice in a batch")
                )
            return {**sample, "index": candidate, "skipped": skipped}
        raise LoadingError(
            f"{len(skipped)} videos in a row cannot be used, the last ones: {skipped[-5:]}. "
            f"{self.hint()}"
        )

    def _candidates(self, epoch: int, index: int) -> Iterator[tuple[int, bool]]:
        """The video at ``index``, then its replacements, each with whether no other sample of the
        batch can hold it."""
        yield index, True
        # The sample's own generator is not used, as what follows an attempt depends on the video.
        rng = np.random.default_rng([self.seed, epoch, index, 1])
        order = epoch_order(self.seed, epoch, len(self))
        position = int(np.flatnonzero(order == index)[0])
        places = np.arange(len(order))
        batch_of, place = divmod(places, self.batch)
        outside = batch_of != batch_of[position]
        own = outside & (place == place[position])
        for part in (own, outside & ~own, ~outside & (places != position)):
            for candidate in order[rng.permutation(places[part])]:
                yield int(candidate), part is own


class NarratedVideos(Replacing):
    """Training samples: a random window of consecutive captions and a clip in the span of each.

    An item is addressed by (epoch, index); the same address gives the same sample, always. It
    holds ``video`` uint8 (n, 3, T, H, W), ``words`` int64 (m, W), ``decode_seconds``, ``index`` of
    the video in it, and ``skipped``: pairs (path, "reason: message") of the videos that could not
    be used before this one.

    Args:
        videos: paths relative to ``video_root``, each once; "" (a row without one) is skipped.
        video_root, caption_root: folders.
        vocabulary: turns captions into ids.
        shape: of a clip.
        captions: m, consecutive captions in a sample; the last is repeated where a video has fewer.
        clips: n; default m. Clip k is taken in the span of caption floor(k m / n).
        max_words: words kept of a caption.
        augment: random crop and horizontal flip; otherwise the middle.
        seed: of everything random.
        batch: videos in a batch over all processes, as ``StepBatches`` makes them.

    Raises:
        ValueError: no videos, a video listed twice, or two that would share a caption file.
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
        batch: int = 1,
    ) -> None:
        if not any(videos):
            raise ValueError("no videos to train on")
        if batch < 1:
            raise ValueError(f"batch must be at least 1, got {batch}")
        self.videos = videos
        self.video_root, self.caption_root = Path(video_root), Path(caption_root)
        check_listed_once(videos, self.caption_root)
        self.vocabulary, self.shape, self.max_words = vocabulary, shape, max_words
        self.captions, self.clips = captions, clips or captions
        self.augment, self.seed, self.batch = augment, seed, batch

    def __len__(self) -> int:
        return len(self.videos)

    def caption_path(self, video: str) -> Path:
        return caption_path(self.caption_root, video)

    def name(self, index: int) -> str:
        return self.videos[index]

    def hint(self) -> str:
        return (
            f"Is {self.video_root} the folder of videos and {self.caption_root} that of captions?"
        )

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        video = self.videos[index]
        if not video:
            raise VideoError("no_path", "a row of the list of videos has no path")
        captions = Captions.load(self.caption_path(video))
        began = time.perf_counter()
        clips = []
        with VideoReader(find_video(self.video_root, video)) as reader:
            captions = captions.until(reader.duration, reader.path)
            count = len(captions.text)
            first = int(rng.integers(max(count - self.captions, 0) + 1))
            window = [min(first + k, count - 1) for k in range(self.captions)]
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
