"""A picture is what a player shows at that time: turned, stretched, in step with the sound."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from examples.vttwins.video import VideoError, VideoReader, bare_name, find_video, write_video

COLORS = {"red": (230, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 230), "gray": (90, 90, 90)}


def corners(height: int = 32, width: int = 48) -> np.ndarray:
    """A picture with red at the top left, green, blue and gray after it, clockwise."""
    picture = np.zeros((height, width, 3), dtype=np.uint8)
    top, left = slice(0, height // 2), slice(0, width // 2)
    bottom, right = slice(height // 2, None), slice(width // 2, None)
    for name, place in zip(
        COLORS, ((top, left), (top, right), (bottom, right), (bottom, left)), strict=True
    ):
        picture[place] = COLORS[name]
    return picture


def clockwise(picture: np.ndarray) -> list[str]:
    """The colors of the four corners, clockwise from the top left."""
    h, w = picture.shape[:2]
    found = []
    for y, x in ((h // 4, w // 4), (h // 4, -w // 4), (-h // 4, -w // 4), (-h // 4, w // 4)):
        distance = {
            name: np.abs(picture[y, x].astype(int) - color).sum() for name, color in COLORS.items()
        }
        found.append(min(distance, key=lambda name: distance[name]))
    return found


@pytest.fixture(scope="module")
def upright(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shown") / "upright.mp4"
    write_video(path, np.repeat(corners()[None], 10, 0), fps=10)
    return path


def with_matrix(path: Path, out: Path, a: int, b: int, c: int, d: int) -> Path:
    """The same mp4 with another display matrix in its track header."""
    content = bytearray(path.read_bytes())
    begin = content.index(b"tkhd") + 4 + 40
    one, unit = 1 << 16, 1 << 30
    content[begin : begin + 36] = struct.pack(
        ">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, unit
    )
    out.write_bytes(content)
    return out


TURNS = {  # (a, b, c, d): x' = a x + c y, y' = b x + d y; what stands at the corners then
    "upright": ((1, 0, 0, 1), ["red", "green", "blue", "gray"]),
    "quarter turn": ((0, 1, -1, 0), ["gray", "red", "green", "blue"]),
    "half turn": ((-1, 0, 0, -1), ["blue", "gray", "red", "green"]),
    "three quarters": ((0, -1, 1, 0), ["green", "blue", "gray", "red"]),
    "mirrored": ((-1, 0, 0, 1), ["green", "red", "gray", "blue"]),
    "upside down": ((1, 0, 0, -1), ["gray", "blue", "green", "red"]),
    "turned and mirrored": ((0, 1, 1, 0), ["red", "gray", "blue", "green"]),
}


@pytest.mark.parametrize("turn", TURNS)
def test_pictures_are_turned_and_mirrored_as_the_file_says(
    turn: str, upright: Path, tmp_path: Path
) -> None:
    matrix, expected = TURNS[turn]
    path = with_matrix(upright, tmp_path / "turned.mp4", *matrix)
    with VideoReader(path) as reader:
        clip, small = reader.clip(0.0, 2, 5.0), reader.clip(0.0, 2, 5.0, resize=16)
    lying = "upright" in turn or turn in ("half turn", "mirrored", "upside down")
    assert clip.shape == (2, 32, 48, 3) if lying else clip.shape == (2, 48, 32, 3)
    assert small.shape == (2, 16, 24, 3) if lying else small.shape == (2, 24, 16, 3)
    assert clockwise(clip[0]) == clockwise(small[1]) == expected


def encode(
    container: av.container.OutputContainer,
    stream: av.VideoStream,
    tones: list[int],
    first: int = 0,
) -> None:
    """Pictures of one gray each, numbered from ``first`` on, at the stream's rate."""
    for number, tone in enumerate(tones, first):
        picture = np.full((stream.height, stream.width, 3), tone, dtype=np.uint8)
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame.pts = number
        container.mux(stream.encode(frame))


def add_film(container: av.container.OutputContainer, size: int = 32) -> av.VideoStream:
    stream = container.add_stream("libx264", rate=10)
    stream.width = stream.height = size
    stream.pix_fmt = "yuv420p"
    return stream


def silence(container: av.container.OutputContainer, stream, seconds: int) -> None:
    for second in range(seconds):
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 16000), dtype=np.float32), format="fltp", layout="mono"
        )
        frame.sample_rate, frame.pts = 16000, 16000 * second
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_time_runs_from_the_start_of_the_file_not_of_its_pictures(
    suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"late.{suffix}"
    with av.open(str(path), "w") as container:
        film, sound = add_film(container), container.add_stream("aac", rate=16000)
        silence(container, sound, 6)
        encode(container, film, [20] * 10 + [200] * 10, first=40)  # dark from 4 s, bright from 5 s
        container.mux(film.encode(None))
    with VideoReader(path) as reader:
        assert reader.duration == pytest.approx(6.0, abs=0.2)
        tones = [reader.clip(t, 1, 5.0).mean() for t in (4.2, 5.5, 4.9, 5.0)]
        assert [tone > 100 for tone in tones] == [False, True, False, True]
        across = reader.clip(3.0, 6, 2.0).mean((1, 2, 3))  # the first picture stands until 4 s
        assert [tone > 100 for tone in across] == [False] * 4 + [True] * 2
        assert len(reader.clip(5.5, 5, 5.0)) == 3  # until 6 s
        with pytest.raises(VideoError) as caught:
            reader.clip(6.5, 1, 5.0)
        assert caught.value.reason == "short" and "6.00 s" in str(caught.value)


def test_pixels_that_are_not_square_are_stretched(tmp_path: Path) -> None:
    path = tmp_path / "wide.mp4"
    with av.open(str(path), "w") as container:
        film = add_film(container)
        film.codec_context.sample_aspect_ratio = Fraction(3, 2)
        encode(container, film, [50] * 5)
        container.mux(film.encode(None))
    with VideoReader(path) as reader:
        assert reader.clip(0.0, 1, 5.0).shape == (1, 32, 48, 3)
        assert reader.clip(0.0, 1, 5.0, resize=16).shape == (1, 16, 24, 3)


def jpeg() -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mjpeg") as container:
        stream = container.add_stream("mjpeg", rate=1)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuvj420p"
        encode(container, stream, [250])
        container.mux(stream.encode(None))
    return buffer.getvalue()


def cover_attached(container: av.container.OutputContainer) -> Callable[[], None]:
    container.add_attachment("cover.jpg", "image/jpeg", jpeg())
    return lambda: None


def cover_in_a_stream(container: av.container.OutputContainer) -> Callable[[], None]:
    cover = container.add_stream("mjpeg", rate=1)
    cover.width = cover.height = 64
    cover.pix_fmt = "yuvj420p"
    return lambda: encode(container, cover, [250])


@pytest.mark.parametrize("cover", [cover_attached, cover_in_a_stream])
def test_a_cover_is_not_the_film(cover: Callable, tmp_path: Path) -> None:
    with av.open(str(tmp_path / "covered.mkv"), "w") as container:
        finish = cover(container)
        film = add_film(container)
        finish()
        encode(container, film, [40] * 10)
        container.mux(film.encode(None))
    with VideoReader(tmp_path / "covered.mkv") as reader:
        clip = reader.clip(0.5, 2, 5.0)
    assert clip.shape == (2, 32, 32, 3) and clip.mean() < 60


def test_sound_with_a_cover_is_no_video(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "song.mkv"), "w") as container:
        cover_attached(container)
        silence(container, container.add_stream("aac", rate=16000), 1)
    with pytest.raises(VideoError) as caught:
        VideoReader(tmp_path / "song.mkv")
    assert caught.value.reason == "no_video"


def test_metadata_in_an_old_encoding_are_of_no_interest(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        container.metadata["title"] = "crepe brulee"
        film = add_film(container)
        encode(container, film, [40] * 10)
        container.mux(film.encode(None))
    content = (tmp_path / "a.mp4").read_bytes()
    assert content.count(b"crepe brulee") == 1
    (tmp_path / "a.mp4").write_bytes(
        content.replace(b"crepe brulee", "crêpe brulée".encode("cp1252"))
    )
    with VideoReader(tmp_path / "a.mp4") as reader:
        assert reader.clip(0.0, 1, 5.0).shape == (1, 32, 32, 3)


@pytest.mark.parametrize("code", ["ESTALE", "EIO", "EACCES"])
def test_a_refusal_of_the_file_system_is_a_reason_and_not_a_crash(
    code: str, upright: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))

    monkeypatch.setattr(os, "stat", refuse)
    with pytest.raises(VideoError) as caught:
        VideoReader(find_video(upright.parent, "upright"))
    assert caught.value.reason == "unreadable"
    assert os.strerror(getattr(errno, code)) in str(caught.value)


@pytest.mark.parametrize("name", ["a" * 300, "a\0b"], ids=["too long", "with a zero byte"])
def test_a_name_that_no_file_can_have_is_a_reason_and_not_a_crash(
    name: str, tmp_path: Path
) -> None:
    with pytest.raises(VideoError) as caught:
        VideoReader(find_video(tmp_path, name))
    assert caught.value.reason in ("unreadable", "missing")


def test_a_video_is_found_by_its_id_with_or_without_a_suffix(tmp_path: Path) -> None:
    for name in (
        "a.MOV",
        "b.m4v",
        "c.webm",
        "c.mp4.mkv",
        "d.v2.mp4",
        "e.avi",
        "e.mp4",
        "g.mpg",
        "h.xyz",
    ):
        (tmp_path / name).touch()

    def found(name: str) -> str:
        return find_video(tmp_path, name).name

    assert [found(name) for name in ("a", "b", "a.mov", "d.v2")] == [
        "a.MOV", "b.m4v", "a.MOV", "d.v2.mp4",
    ]  # fmt: skip
    assert found("c.mp4") == "c.mp4.mkv" and found("c") == "c.webm"
    assert found("e.avi") == "e.avi" and found("e") == "e.mp4"
    assert found("f.avi") == "f.avi" and found("f") == "f.mp4"  # there is none
    assert found("g.mpg") == found("g") == "g.mpg" and found("h.xyz") == "h.xyz"
    assert bare_name("x.y/dr. who.mp4") == "x.y/dr. who"
