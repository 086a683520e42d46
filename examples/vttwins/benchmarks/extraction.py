"""Videos seen through a model: which windows of each, decoded by workers, encoded, and kept.

Requirements: torch, av, NumPy, tqdm.

A video that cannot be used has no features but a reason. What a window shows is a matter of the
windows of its own piece alone, and pieces are encoded one by one: features do not depend, to the
last bit, on the number of workers or of processes.
"""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from tqdm import tqdm

from examples.vttwins import loading
from examples.vttwins.benchmarks.cache import FeatureCache, Seen
from examples.vttwins.benchmarks.videos import locate
from examples.vttwins.data import ClipShape, crop, to_clip
from examples.vttwins.distributed import Place
from examples.vttwins.metrics import frame_windows, segment_windows
from examples.vttwins.video import VideoError, VideoReader

PIECE = 16  # windows decoded and encoded together, at most
NEAR = 4.0  # seconds between windows that are decoded through rather than sought


class Clips(NamedTuple):
    """Windows uint8 (W, 3, T, S, S), which of them, (W,), are lost, and why if not for the end."""

    pictures: Tensor
    lost: np.ndarray
    problem: VideoError | None = None


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
            found = windows_at(times, reader, shape, required=begin == 0)
            segment, place = np.divmod(piece, self.count)
            gone[segment[found.past & (place == 0)]] = True
            yield Clips(found.pictures, found.broken | gone[segment], found.problem)


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
            found = windows_at(times, reader, shape, required=begin == 0)
            yield Clips(found.pictures, found.broken | found.past, found.problem)


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


class Found(NamedTuple):
    """Windows uint8 (W, 3, T, S, S); which of them, (W,), begin past the end, and which cannot be
    decoded, with the first reason."""

    pictures: Tensor
    past: np.ndarray
    broken: np.ndarray
    problem: VideoError | None


def windows_at(
    times: list[list[Fraction]], reader: VideoReader, shape: ClipShape, required: bool = True
) -> Found:
    """Windows of pictures at times, each picture decoded once; zeros past the end.

    Damage loses the windows that it touches; only around it is anything decoded again.

    Args:
        times: those of each window, windows in ascending order.
        required: raise VideoError if no window has a picture.
    """
    clips = torch.zeros(len(times), 3, shape.frames, shape.size, shape.size, dtype=torch.uint8)
    past, broken = np.ones(len(times), dtype=bool), np.zeros(len(times), dtype=bool)
    problem = None
    groups = deque(_near(times))
    while groups:
        group = groups.popleft()
        targets = sorted({time for k in group for time in times[k]})
        try:
            pictures = crop(reader.pictures(targets, shape.resize), shape.size)
        except VideoError as error:
            if error.reason == "short":
                break  # later ones are past the end as well
            problem = problem or error
            if len(group) > 1:
                groups.extendleft(range(k, k + 1) for k in reversed(group))
            else:
                past[group.start], broken[group.start] = False, True
            continue
        place = {time: k for k, time in enumerate(targets[: len(pictures)])}
        for k in group:
            shown = [place[time] for time in times[k] if time in place]
            if shown:
                clips[k], past[k] = to_clip(pictures[shown], shape.frames), False
    if required and (past | broken).all():
        first = float(times[0][0])
        raise problem or VideoError("short", f"{reader.path}: ends before {first:.2f} s")
    return Found(clips, past, broken, problem)


def _near(times: list[list[Fraction]]) -> Iterator[range]:
    """Runs of windows that are decoded through."""
    begin = 0
    for k in range(1, len(times) + 1):
        if k == len(times) or times[k][0] - times[k - 1][-1] >= NEAR:
            yield range(begin, k)
            begin = k


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
                with loading.reading(path), VideoReader(path) as reader:
                    for clips in item.windows.clips(reader, self.shape):
                        yield Piece(index, clips)
            except VideoError as error:
                reason, message = error.reason, str(error)
            yield Piece(index, None, reason, message)


Encoder = Callable[[Tensor], Tensor]


def _as_it_is(piece: Piece) -> Piece:  # torch's types have collate_fn take lists only
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
    """(index, what was seen) of each item, in the order in which they are done.

    Raises:
        LoadingError: a worker died; the message says what they were reading.
    """
    notes = loading.Notes(workers)
    loader: DataLoader[Any] = DataLoader(
        PieceStream(items, shape),
        batch_size=None,
        collate_fn=_as_it_is,  # type: ignore[arg-type]
        num_workers=workers,
        worker_init_fn=functools.partial(loading.prepare_worker, notes=notes),
        pin_memory=device.type == "cuda",
    )
    parts: dict[int, list[np.ndarray]] = {}
    problems: dict[int, VideoError] = {}
    bar = tqdm(total=len(items), desc=title, mininterval=1, disable=quiet)
    with bar, loading.stream(loader) as stream:
        for index, clips, reason, message in cast(Iterator[Piece], stream):
            if clips is not None:
                video = clips.pictures.to(device, non_blocking=True).float().div_(255)
                video = video.contiguous(memory_format=torch.channels_last_3d)
                features = encode(video).float().cpu().numpy()
                features[clips.lost] = np.nan
                parts.setdefault(index, []).append(features)
                if clips.problem is not None:
                    problems.setdefault(index, clips.problem)
                continue
            whole, problem = parts.pop(index, []), problems.pop(index, None)
            if problem is not None and not reason:
                yield index, Seen(np.concatenate(whole), problem.reason, str(problem))
            else:
                yield index, Seen(None if reason else np.concatenate(whole), reason, message)
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
