"""Which pictures a window holds, and that a second of video is decoded once."""

from __future__ import annotations

from pathlib import Path

import color_world
import numpy as np
import pytest
import torch

from examples.vttwins.benchmarks import extraction
from examples.vttwins.benchmarks.extraction import EverySecond, NativeFrames, Spread
from examples.vttwins.data import ClipShape, crop, to_clip
from examples.vttwins.metrics import segment_windows
from examples.vttwins.video import VideoError, VideoReader

SHAPE = ClipShape(frames=4, fps=5.0, size=32, resize=32)
COUNT = 26  # frames of numbered.mp4, at 5 frames a second


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """numbered.mp4, in which each frame has its own color, and long.mp4 of 20 s."""
    root = tmp_path_factory.mktemp("films")
    color_world.film(root / "numbered.mp4", *((k, 0.2) for k in range(COUNT)))
    color_world.film(root / "long.mp4", *((k, 1.0) for k in range(20)))
    return root


def numbers(clips: torch.Tensor) -> list[list[int]]:
    """The number of each frame of windows (W, 3, T, S, S), -1 for zeros."""
    colors = clips.float().mean((3, 4)).transpose(1, 2)
    nearest = torch.cdist(colors, torch.from_numpy(color_world.PALETTE).float()).argmin(2)
    return torch.where(colors.amax(2) > 30, nearest, -1).tolist()


class Counting(VideoReader):
    passes = 0

    def pictures(self, *arguments, **options):
        self.passes += 1
        return super().pictures(*arguments, **options)


def test_windows_of_segments_hold_what_single_clips_hold(films: Path) -> None:
    spans = ((2.0, 4.9), (0.3, 2.2), (4.5, 5.2))  # not in order, overlapping, near the end
    windows = Spread(spans, 3)
    with Counting(films / "numbered.mp4") as reader:
        (found,) = windows.clips(reader, SHAPE)
        assert reader.passes == 1 and not found.lost.any()
    order = windows.order(SHAPE.seconds, 0.0)
    clips = torch.empty_like(found.pictures)
    clips[order] = found.pictures
    starts = [t for span in spans for t in segment_windows(*span, 3, SHAPE.seconds)]
    with VideoReader(films / "numbered.mp4") as reader:
        for clip, start in zip(clips, starts, strict=True):
            pictures = reader.clip(float(start), SHAPE.frames, SHAPE.fps, SHAPE.resize)
            assert torch.equal(clip, to_clip(crop(pictures, SHAPE.size), SHAPE.frames))
    assert numbers(clips[[0, 6]]) == [[10, 11, 12, 13], [22, 23, 24, 25]]


def test_windows_past_the_end_are_zeros_and_segments_there_are_lost(films: Path) -> None:
    with VideoReader(films / "numbered.mp4") as reader:
        (found,) = Spread(((4.8, 9.0), (5.5, 6.0)), 2).clips(reader, SHAPE)
        assert numbers(found.pictures) == [[24, 25, -1, -1]] + [[-1] * 4] * 3
        # In the order of time: 4.8, 5.5, 5.5 and 7.8 s; the last belongs to the first segment.
        assert found.lost.tolist() == [False, True, True, False]
        with pytest.raises(VideoError, match="ends before 6.00 s"):
            list(Spread(((6.0, 9.0),), 2).clips(reader, SHAPE))


def test_an_infinite_end_is_that_of_the_video(films: Path) -> None:
    with VideoReader(films / "numbered.mp4") as reader:
        (found,) = Spread(((0.0, np.inf),), 3).clips(reader, SHAPE)
        (expected,) = Spread(((0.0, 5.2),), 3).clips(reader, SHAPE)
    assert torch.equal(found.pictures, expected.pictures)
    assert [row[0] for row in numbers(found.pictures)] == [0, 10, 20]


def test_each_second_is_in_the_middle_of_its_window(films: Path) -> None:
    with Counting(films / "numbered.mp4") as reader:
        (found,) = EverySecond().clips(reader, SHAPE)
        assert reader.passes == 1
    # Second t has the frames 5 t to 5 t + 4; four of them are its window.
    firsts = [row[0] for row in numbers(found.pictures)]
    assert firsts == [0, 6, 10, 16, 20]  # 2.5 - 2 and so on, halves to the even one
    longer = ClipShape(frames=16, fps=5.0, size=32, resize=32)
    with VideoReader(films / "numbered.mp4") as reader:
        (found,) = EverySecond().clips(reader, longer)
    # 8 frames on each side, as far as there are as many: 26 - 16 = 10 is the last whole window.
    assert [row[0] for row in numbers(found.pictures)] == [0, 0, 4, 10, 10]
    assert not found.lost.any() and found.pictures[-1].any()


def test_far_windows_are_sought_and_near_ones_decoded_in_one_pass(films: Path) -> None:
    with Counting(films / "long.mp4") as reader:
        (found,) = Spread(((1.0, 2.5), (2.0, 3.5), (12.0, 13.5)), 2).clips(reader, SHAPE)
        assert reader.passes == 2
        assert [row[0] for row in numbers(found.pictures)] == [1, 1, 2, 2, 12, 12]


class Damaged(VideoReader):
    """A file that cannot be decoded from second 6 to 7."""

    def pictures(self, targets, resize=None):
        if any(6 <= time < 7 for time in targets):
            raise VideoError("broken", f"{self.path}: decoding failed")
        return super().pictures(targets, resize)


def test_damage_loses_the_windows_that_it_touches_and_no_others(films: Path) -> None:
    with Damaged(films / "long.mp4") as reader:
        (found,) = Spread(((1.0, 2.5), (5.0, 7.5), (8.0, 9.5), (40.0, 50.0)), 2).clips(
            reader, SHAPE
        )
        assert found.lost.tolist() == [False, False, False, True, False, False, True, True]
        assert [row[0] for row in numbers(found.pictures)] == [1, 1, 5, -1, 8, 8, -1, -1]
        assert found.problem is not None and found.problem.reason == "broken"
        with pytest.raises(VideoError, match="decoding failed"):
            list(Spread(((6.0, 7.0),), 2).clips(reader, SHAPE))
        seconds = np.concatenate([part.lost for part in EverySecond().clips(reader, SHAPE)])
        assert np.flatnonzero(seconds).tolist() == [6]


def test_long_videos_come_in_pieces(films: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with VideoReader(films / "long.mp4") as reader:
        monkeypatch.setattr(extraction, "PIECE", 20)
        (whole,) = EverySecond().clips(reader, SHAPE)
        monkeypatch.setattr(extraction, "PIECE", 8)
        parts = list(EverySecond().clips(reader, SHAPE))
        assert [len(part.pictures) for part in parts] == [8, 8, 4]
        assert torch.equal(torch.cat([part.pictures for part in parts]), whole.pictures)


def test_native_windows_are_consecutive_frames_over_the_whole_video(films: Path) -> None:
    with VideoReader(films / "numbered.mp4") as reader:
        (found,) = NativeFrames(3).clips(reader, SHAPE)
        assert numbers(found.pictures) == [[0, 1, 2, 3], [11, 12, 13, 14], [22, 23, 24, 25]]
        longer = ClipShape(frames=32, fps=0.0, size=32, resize=32)
        (found,) = NativeFrames(2).clips(reader, longer)
        assert numbers(found.pictures) == [[*range(26), *[-1] * 6]] * 2
