"""Videos seen through a model: which windows of each, decoded by workers, encoded, and kept.

Requirements: torch, av, NumPy, tqdm.

A video that cannot be used has no features but a reason. What a window shows is a matter of the
windows of its own piece alone, and pieces are encoded one by one: features do not depend, to the
last bit, on the number of workers or of processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from tqdm import tqdm

from examples.vttwins.benchmarks.cache import FeatureCache, Seen
from examples.vttwins.benchmarks.videos import locate
from examples.vttwins.data import ClipShape, crop, prepare_worker, to_clip
from examples.vttwins.distributed import Place
from examples.vttwins.metrics import frame_windows, segment_windows
from examples.vttwins.video import VideoError, VideoReader

PIECE = 32  # windows decoded and encoded together, at most, of a video that has one each second
NEAR = 4.0  # seconds between windows that are decoded through rather than sought


class Clips(NamedTuple):
    """Windows uint8 (W, 3, T, S, S), and which of them show nothing at all, (W,)."""

    pictures: Tensor
    lost: np.ndarray


@dataclass(frozen=True)
class Spread:
    """``count`` windows spread over each of some segments (start, end) of a video.

    An infinite end is that of the video. Windows come in the order of time, see ``order``; one past
    the end of the video is of zeros if its segment begins before the end, and lost if it does not.
    """

    spans: tuple[tuple[float, float], ...]
    count: int

    def starts(self, seconds: float, length: float) -> np.ndarray:
        """Starts (segments * count,) of the windows of each segment, in a video of that length."""
        ends = (length if math.isinf(end) else end for _, end in self.spans)
        pairs = zip((start for start, _ in self.spans), ends, strict=True)
        return np.concatenate(
            [segment_windows(start, max(end, start), self.count, seconds) for start, end in pairs]
        )

    def order(self, seconds: float, length: float) -> np.ndarray:
        """Indices of the windows in the order of time."""
        return np.argsort(self.starts(seconds, length), kind="stable")

    def clips(self, reader: VideoReader, shape: ClipShape) -> Iterator[Clips]:
        endless = any(math.isinf(end) for _, end in self.spans)
        length = duration(reader) if endless else 0.0
        starts = self.starts(shape.seconds, length)
        order = self.order(shape.seconds, length)
        gone = np.zeros(len(self.spans), dtype=bool)  # segments that begin past the end
        for begin in range(0, len(order), PIECE):
            piece = order[begin : begin + PIECE]
            times = [moments(start, shape) for start in starts[piece]]
            clips, lost = windows_at(times, reader, shape, required=begin == 0)
            segment, place = np.divmod(piece, self.count)
            gone[segment[lost & (place == 0)]] = True
            yield Clips(clips, gone[segment])


@dataclass(frozen=True)
class EverySecond:
    """One window for each whole second of a video, the second in its middle.

    Near the ends, where there is no room on one side, it is the first or the last whole window. All
    pictures are on one grid of times, so each is decoded once, whatever the overlap.
    """

    def clips(self, reader: VideoReader, shape: ClipShape) -> Iterator[Clips]:
        seconds = duration(reader)
        last = max(math.floor(seconds * shape.fps) - shape.frames, 0)
        firsts = [
            min(max(round((t + 0.5) * shape.fps - shape.frames / 2), 0), last)
            for t in range(math.floor(seconds))
        ]
        if not firsts:
            raise VideoError("short", f"{reader.path}: lasts {seconds:.2f} s, less than a second")
        step = 1 / Fraction(shape.fps).limit_denominator(100_000)
        for begin in range(0, len(firsts), PIECE):
            piece = firsts[begin : begin + PIECE]
            times = [[(first + k) * step for k in range(shape.frames)] for first in piece]
            yield windows_at(times, reader, shape, required=begin == 0)


@dataclass(frozen=True)
class NativeFrames:
    """``count`` windows of consecutive frames at the rate of the file, spread over the video."""

    count: int

    def clips(self, reader: VideoReader, shape: ClipShape) -> Iterator[Clips]:
        frames = [crop(p[None], shape.size)[0] for p in reader.all_pictures(shape.resize)]
        if not frames:
            raise VideoError("short", f"{reader.path}: holds no picture")
        firsts = frame_windows(len(frames), self.count, shape.frames).tolist()
        parts = [np.stack(frames[first : first + shape.frames]) for first in firsts]
        clips = torch.stack([to_clip(part, shape.frames) for part in parts])
        yield Clips(clips, np.zeros(self.count, dtype=bool))


Windows = Spread | EverySecond | NativeFrames


class Item(NamedTuple):
    """A video, where it may lie under the root, and the windows of it to look at."""

    video_id: str
    folders: tuple[str, ...]
    windows: Windows


def duration(reader: VideoReader) -> float:
    """Seconds of a video, which must say so."""
    if reader.duration is None:
        raise VideoError("no_duration", f"{reader.path}: does not say how long it is; remux it")
    return reader.duration


def moments(start: float, shape: ClipShape) -> list[Fraction]:
    """Times of the frames of a clip that begins at ``start``."""
    first, rate = (Fraction(v).limit_denominator(100_000) for v in (float(start), shape.fps))
    return [first + k / rate for k in range(shape.frames)]


def windows_at(
    times: list[list[Fraction]], reader: VideoReader, shape: ClipShape, required: bool = True
) -> Clips:
    """Windows of pictures at times, each decoded once; zeros past the end.

    Args:
        times: those of each window, windows in ascending order.
        required: raise VideoError "short" if there is no picture at all.
    """
    clips = torch.zeros(len(times), 3, shape.frames, shape.size, shape.size, dtype=torch.uint8)
    lost = np.ones(len(times), dtype=bool)
    begin = 0
    while begin < len(times):
        end = begin + 1
        while end < len(times) and times[end][0] - times[end - 1][-1] < NEAR:
            end += 1
        targets = sorted({time for window in times[begin:end] for time in window})
        try:
            pictures = crop(reader.pictures(targets, shape.resize), shape.size)
        except VideoError as error:
            if error.reason != "short":
                raise
            break  # later ones are past the end as well
        place = {time: k for k, time in enumerate(targets[: len(pictures)])}
        for k in range(begin, end):
            shown = [place[time] for time in times[k] if time in place]
            if shown:
                clips[k], lost[k] = to_clip(pictures[shown], shape.frames), False
        begin = end
    if required and lost.all():
        raise VideoError("short", f"{reader.path}: ends before {float(times[0][0]):.2f} s")
    return Clips(clips, lost)


class Piece(NamedTuple):
    """Some windows of an item, or, without any, its end and why it has none."""

    item: int
    clips: Clips | None
    reason: str = ""
    message: str = ""


class PieceStream(IterableDataset[Piece]):
    """Pieces of items, decoded; each worker takes every so-many-th item."""

    def __init__(self, items: list[tuple[Item, Path]], shape: ClipShape) -> None:
        self.items, self.shape = items, shape

    def __iter__(self) -> Iterator[Piece]:
        info = get_worker_info()
        first, step = (0, 1) if info is None else (info.id, info.num_workers)
        for index in range(first, len(self.items), step):
            item, path = self.items[index]
            reason = message = ""
            try:
                with VideoReader(path) as reader:
                    for clips in item.windows.clips(reader, self.shape):
                        yield Piece(index, clips)
            except VideoError as error:
                reason, message = error.reason, str(error)
            yield Piece(index, None, reason, message)


Encoder = Callable[[Tensor], Tensor]


def _as_it_is(piece: Piece) -> Piece:
    return piece


@torch.no_grad()
def see(
    items: list[tuple[Item, Path]],
    encode: Encoder,
    shape: ClipShape,
    device: torch.device,
    workers: int = 0,
    title: str = "videos",
    quiet: bool = False,
) -> Iterator[tuple[int, Seen]]:
    """(index, what was seen) of each item, in the order in which they are done."""
    stream = DataLoader(
        PieceStream(items, shape),
        batch_size=None,
        collate_fn=_as_it_is,  # type: ignore[arg-type]
        num_workers=workers,
        worker_init_fn=prepare_worker,
        pin_memory=device.type == "cuda",
    )
    parts: dict[int, list[np.ndarray]] = {}
    with tqdm(total=len(items), desc=title, mininterval=1, disable=quiet) as bar:
        for index, clips, reason, message in stream:
            if clips is not None:
                video = clips.pictures.to(device, non_blocking=True).float().div_(255)
                video = video.contiguous(memory_format=torch.channels_last_3d)
                features = encode(video).float().cpu().numpy()
                features[clips.lost] = np.nan
                parts.setdefault(index, []).append(features)
                continue
            whole = parts.pop(index, [])
            yield index, Seen(None, reason, message) if reason else Seen(np.concatenate(whole))
            bar.update()


def extract(
    items: list[Item],
    root: Path,
    encode: Encoder,
    shape: ClipShape,
    device: torch.device,
    workers: int = 0,
    cache: FeatureCache | None = None,
    place: Place | None = None,
    title: str = "videos",
) -> list[Seen]:
    """What is seen of each item; with a cache, only what it lacks is decoded.

    Several processes share the parts of the cache that are to be written, no item being seen twice;
    the first process returns the whole, the others an empty list.
    """
    paths = [locate(root, item.video_id, item.folders) for item in items]
    pairs = list(zip(items, paths, strict=True))
    if cache is None:
        done = dict(see(pairs, encode, shape, device, workers, title))
        return [done[index] for index in range(len(items))]
    place = place or Place()
    cache.open(items, paths, place)
    todo = cache.missing_parts()[place.rank :: place.world]
    lacking = [index for part in todo for index in cache.missing_in(part)]
    mine = [pairs[index] for index in lacking]
    for k, seen in see(mine, encode, shape, device, workers, title, not (place.first and mine)):
        cache.put(lacking[k], seen)
    return cache.close(place)
