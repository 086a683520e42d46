"""Clips from video files with PyAV: exact frame times, seeking, resampling, scaling.

Requirements: av (PyAV), NumPy.

Which frames a clip holds is defined by time alone: frame k of a clip is the picture on screen at
start + k / fps seconds on the file's clock, that is, the last one whose presentation time is not
later. The clock starts with the file and not with its pictures: sound may come first, and captions
are timed by what a player shows. Seeking is only a way to get there sooner; the result is that of
decoding from the beginning (asserted in tests/vttwins/test_vtt_video.py for files with B-frames and
odd time bases).

A picture is what a player shows, too: turned and mirrored as the file says (phones write portrait
films that way), pixels that are not square stretched, and covers left aside.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import cast

import av
import numpy as np
from av.sidedata.sidedata import SideData
from av.stream import Disposition
from av.video.reformatter import VideoReformatter

# A picture is on screen from its presentation time on; a target this close before it counts as it,
# since presentation times are rounded to ticks of the stream's clock.
TIME_SLACK = Fraction(1, 2000)

# Codecs of single pictures. A stream of one of these beside another one is a cover or a preview.
PICTURE_CODECS = ("mjpeg", "png", "bmp", "gif", "webp", "tiff")


class VideoError(Exception):
    """A video that cannot give what was asked; ``reason`` is one word to count by.

    Example:
        >>> error = VideoError("short", "a.mp4: nothing at 9 s, the video ends at 4 s")
        >>> error.reason, str(error)
        ('short', 'a.mp4: nothing at 9 s, the video ends at 4 s')
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type[VideoError], tuple[str, str]]:
        return VideoError, (self.reason, str(self))  # travels between worker processes


class VideoReader:
    """An open video file, to take several clips from; a context manager.

    Args:
        path: file to open.

    Raises:
        VideoError: "missing" (no such file), "unreadable" (the system refuses: rights, disk,
            memory), "broken" (its content cannot be opened), "no_video" (no film: sound only, or a
            cover beside sound).
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        _check_file(self.path)
        try:  # what a file says about itself may be in any encoding, and is of no interest
            self._container = av.open(str(self.path), metadata_errors="replace")
        except (av.FFmpegError, ValueError, OSError) as error:
            raise _failed(self.path, "cannot be opened", error) from None
        try:
            self._stream = _film(self._container, self.path)
            codec, time_base = self._stream.codec_context, self._stream.time_base
            if codec is None or time_base is None:  # a damaged header, or a codec FFmpeg lacks
                raise VideoError("broken", f"{self.path}: the video's codec or clock is unknown")
        except VideoError:
            self._container.close()
            raise
        # Workers are processes already; one thread each also keeps the memory of a worker small.
        codec.thread_count = 1
        self._time_base: Fraction = time_base
        self._first_tick = self._stream.start_time or 0
        self._zero_tick: int | Fraction = self._first_tick  # the file's clock starts here
        if self._container.start_time is not None:
            begin = Fraction(self._container.start_time, av.time_base)
            if abs(begin - self._first_tick * time_base) > TIME_SLACK:  # not only rounded
                self._zero_tick = begin / time_base
        # Width of a pixel, its height being 1; what is far from it is damage.
        aspect = self._stream.sample_aspect_ratio or 1
        self._pixel_width = float(aspect) if Fraction(1, 4) <= aspect <= 4 else 1.0
        # One for all frames: setting one up costs more than scaling.
        self._scaler = VideoReformatter()

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._container.close()

    @property
    def duration(self) -> float | None:
        """Seconds from the start of the clock to the last picture's end, as announced by the file,
        or None; only decoding tells the truth."""
        seconds = 0.0
        if self._stream.duration is not None:
            ticks = self._first_tick + self._stream.duration - self._zero_tick
            seconds = float(ticks * self._time_base)
        elif self._container.duration is not None:
            seconds = self._container.duration / av.time_base
        return seconds if seconds > 0 else None

    def clip(
        self, start: float, frames: int = 16, fps: float = 5.0, resize: int | None = None
    ) -> np.ndarray:
        """Pictures at ``start + k / fps`` for k < frames, as uint8 (found, H, W, 3).

        Fewer than ``frames`` come back where the video ends early. Before the first picture, where
        a file starts with sound alone, the first one is taken.

        Args:
            start: seconds on the file's clock, at least 0.
            frames: pictures wanted.
            fps: pictures per second of the clip, whatever the rate of the file.
            resize: scale the shorter side to this many pixels; None keeps the size.

        Raises:
            VideoError: "short" (the video ends before ``start``), "broken" (decoding failed) or
                "unreadable" (the system refused).
            ValueError: an argument is out of its range.
        """
        if frames < 1 or not (
            math.isfinite(fps) and fps > 0 and math.isfinite(start) and start >= 0
        ):
            raise ValueError(f"need frames >= 1, fps > 0, start >= 0: {frames}, {fps}, {start}")
        step = 1 / Fraction(fps).limit_denominator(100_000)
        first = Fraction(start).limit_denominator(100_000)
        return self.pictures([first + k * step for k in range(frames)], resize)

    def pictures(self, targets: list[Fraction], resize: int | None = None) -> np.ndarray:
        """Pictures on screen at times in ascending order, as uint8 (found, H, W, 3), in one pass.

        Fewer than the targets come back where the video ends early; otherwise as ``clip``.
        """
        first, frames, start = targets[0], len(targets), float(targets[0])
        pictures: list[np.ndarray] = []
        shown: av.VideoFrame | None = None  # the picture on screen before the current one
        image: np.ndarray | None = None  # its pixels, once a target has asked for them
        end = Fraction(0)

        for time, duration, frame in self._frames_from(first):
            while len(pictures) < frames and targets[len(pictures)] < time - TIME_SLACK:
                if shown is not None:
                    image = self._pixels(shown, resize) if image is None else image
                    pictures.append(image)
                else:  # the pictures begin later
                    pictures.append(self._pixels(frame, resize))
            if len(pictures) == frames:
                break
            shown, image, end = frame, None, time + duration
        while shown is not None and len(pictures) < frames and targets[len(pictures)] < end:
            image = self._pixels(shown, resize) if image is None else image
            pictures.append(image)
        if not pictures:
            raise VideoError(
                "short",
                f"{self.path}: nothing at {start:.2f} s, the video ends at {float(end):.2f} s",
            )
        if any(picture.shape != pictures[0].shape for picture in pictures):
            raise VideoError("broken", f"{self.path}: the size of the picture changes in the clip")
        return np.stack(pictures)

    def all_pictures(self, resize: int | None = None) -> Iterator[np.ndarray]:
        """Every picture (H, W, 3) in order, at the rate of the file.

        Raises:
            VideoError: "broken" (decoding failed) or "unreadable" (the system refused).
        """
        for _, _, frame in self._frames_from(Fraction(0)):
            yield self._pixels(frame, resize)

    def _frames_from(self, first: Fraction) -> Iterator[tuple[Fraction, Fraction, av.VideoFrame]]:
        """Frames as (time, duration, frame) in order, the first not later than ``first``."""
        tick = max(int(first / self._time_base + self._zero_tick), self._first_tick)
        for seek_to in dict.fromkeys((tick, self._first_tick)):
            try:
                self._container.seek(seek_to, stream=self._stream, backward=True)
            except (av.FFmpegError, OSError) as error:
                if seek_to == self._first_tick:
                    raise _failed(self.path, "cannot seek", error) from None
                continue
            stream = self._decode()
            head = next(stream, None)
            # A poor index may land behind the target: then decode from the beginning.
            if head is not None and (head[0] <= first + TIME_SLACK or seek_to == self._first_tick):
                yield head
                yield from stream
                return
            if head is None and seek_to == self._first_tick:
                return

    def _decode(self) -> Iterator[tuple[Fraction, Fraction, av.VideoFrame]]:
        rate = self._stream.average_rate or self._stream.guessed_rate or Fraction(25)
        try:
            for frame in self._container.decode(self._stream):
                if frame.pts is None:
                    continue
                time = (frame.pts - self._zero_tick) * self._time_base
                duration = frame.duration * self._time_base if frame.duration else 1 / rate
                yield time, duration, frame
        except (av.FFmpegError, ValueError, OSError) as error:
            raise _failed(self.path, "decoding failed", error) from None

    def _pixels(self, frame: av.VideoFrame, resize: int | None) -> np.ndarray:
        width, height = frame.width, frame.height
        width = max(round(width * self._pixel_width), 1)
        if resize is not None:
            scale = resize / min(width, height)
            width, height = max(round(width * scale), resize), max(round(height * scale), resize)
        try:
            scaled = self._scaler.reformat(
                frame, width=width, height=height, format="rgb24", threads=1
            )
            pixels = scaled.to_ndarray()
        except (av.FFmpegError, ValueError, OSError) as error:  # a damaged or odd pixel format
            raise VideoError("broken", f"{self.path}: cannot be scaled: {error}") from None
        return _as_shown(pixels, frame)


def _failed(path: Path, what: str, error: Exception) -> VideoError:
    """The reason of a failure: of the system, which may pass, or of the content, which will not."""
    refused = isinstance(error, (OSError, MemoryError))
    return VideoError("unreadable" if refused else "broken", f"{path}: {what}: {error}")


def _check_file(path: Path) -> None:
    try:
        regular = stat.S_ISREG(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        raise VideoError("missing", f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # a stale handle, a damaged disk, a name too long
        raise VideoError("unreadable", f"{path}: {error}") from None
    if not regular:
        raise VideoError("missing", f"{path}: not a file")


def _film(container: av.container.InputContainer, path: Path) -> av.VideoStream:
    """The first stream of pictures that is no cover."""
    streams = list(container.streams.video)
    if not streams:
        raise VideoError("no_video", f"{path}: has no video stream")
    streams = [s for s in streams if not s.disposition & Disposition.attached_pic]
    if not streams:
        raise VideoError("no_video", f"{path}: has no film, only a cover")

    def is_picture(stream: av.VideoStream) -> bool:
        return stream.codec_context is not None and stream.codec_context.name in PICTURE_CODECS

    return min(streams, key=is_picture)


def _as_shown(pixels: np.ndarray, frame: av.VideoFrame) -> np.ndarray:
    """Turn and mirror (H, W, 3) as the file's display matrix says, by right angles."""
    beside = [cast(SideData, data) for data in frame.side_data]
    matrix = [bytes(data) for data in beside if data.type.name == "DISPLAYMATRIX"]
    if not matrix or len(matrix[0]) < 36:
        return pixels
    # x' = a x + c y, y' = b x + d y, each shifted back into the picture.
    a, b, _, c, d = np.frombuffer(matrix[0], dtype=np.int32, count=5).tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        pixels = pixels.swapaxes(0, 1)
        a, d = c, b
    return pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


# Of video files; where a video has several files, the first one counts.
SUFFIXES = (
    ".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v",
    ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".ogv", ".ts", ".mts",
)  # fmt: skip


def bare_name(name: str) -> str:
    """The name of a video without the suffixes of video files; other dots stay.

    Example:
        >>> bare_name("cooking/dr. who v1.2.MP4"), bare_name("aB3.mp4.webm")
        ('cooking/dr. who v1.2', 'aB3')
    """
    stem, suffix = os.path.splitext(name)
    return bare_name(stem) if suffix.lower() in SUFFIXES else name


def find_video(folder: str | Path, name: str) -> Path:
    """The file of a video, whatever its container; a path that does not exist if there is none.

    ``name`` may end in a suffix; the file of just that name is then the first choice, and one of
    another suffix the next.
    """
    bare = bare_name(name)
    endings = [*SUFFIXES, *(suffix.upper() for suffix in SUFFIXES)]
    names = [name, *(stem + ending for stem in dict.fromkeys((name, bare)) for ending in endings)]
    for path in (Path(folder) / file for file in names):
        try:
            if path.is_file():
                return path
        except (OSError, ValueError):  # VideoReader will say why
            return path
    return Path(folder) / (name if bare != name else name + SUFFIXES[0])


def videos_in(folder: str | Path) -> list[str]:
    """Video files under a folder, relative to it, in order."""
    folder = Path(folder)
    found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    return sorted(path.relative_to(folder).as_posix() for path in found if path.is_file())


def write_video(path: str | Path, frames: np.ndarray, fps: int, crf: int = 20) -> None:
    """Encode uint8 (T, H, W, 3), H and W even, as mp4: H.264, or MPEG-4 where x264 is missing.

    The file does not depend on the machine: one thread whatever the number of cores, and no vector
    code, as that of x264 for AVX-512 encodes small pictures differently from time to time.
    """
    codec, options = "mpeg4", {}
    if "libx264" in av.codecs_available:
        codec = "libx264"
        options = {"crf": str(crf), "preset": "veryfast", "g": str(2 * fps), "x264-params": "asm=0"}
    with av.open(str(path), "w") as container:
        stream = cast(av.VideoStream, container.add_stream(codec, rate=fps, options=options))
        stream.width, stream.height = frames.shape[2], frames.shape[1]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for picture in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
