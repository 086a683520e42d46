"""The cache of features: what a failure may be kept for, and what tells two files apart."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import av
import color_world
import numpy as np
import pytest
import torch

from examples.vttwins.benchmarks import extraction
from examples.vttwins.benchmarks.cache import FeatureCache, Seen
from examples.vttwins.benchmarks.extraction import EverySecond, Item
from examples.vttwins.data import ClipShape
from examples.vttwins.video import VideoError, VideoReader

SHAPE = ClipShape(frames=4, fps=5.0, size=16, resize=16)


def look(folder: Path, cache: Path) -> list[Seen]:
    """What is seen of a.mp4 and b.mp4: the color of each second."""
    return extraction.extract(
        [Item(name, (), EverySecond()) for name in ("a.mp4", "b.mp4")], folder,
        lambda video: video.mean((2, 3, 4)), SHAPE, torch.device("cpu"),
        cache=FeatureCache(cache, "test", {}),
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, color in (("a", 0), ("b", 1)):
        color_world.film(tmp_path / "videos" / f"{name}.mp4", (color, 2.0))
    return tmp_path / "videos"


def failing(reason: str, opened: list[str]) -> type[VideoReader]:
    """A reader that fails for b.mp4."""

    class Reader(VideoReader):
        def __init__(self, path: str | Path) -> None:
            opened.append(Path(path).name)
            super().__init__(path)
            if Path(path).name == "b.mp4" and reason:
                raise VideoError(reason, "a message")

    return Reader


@pytest.mark.parametrize(
    ("reason", "kept"),
    [("unreadable", False), ("missing", False), ("broken", True), ("short", True),
     ("no_video", True), ("no_duration", True)],
)  # fmt: skip
def test_a_failure_is_kept_if_the_content_of_the_file_explains_it(
    reason: str, kept: bool, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(extraction, "VideoReader", failing(reason, opened))
    first = look(folder, tmp_path / "cache")
    assert [seen.reason for seen in first] == ["", reason] and opened == ["a.mp4", "b.mp4"]
    monkeypatch.setattr(extraction, "VideoReader", failing("", opened))
    again = look(folder, tmp_path / "cache")
    assert opened[2:] == ([] if kept else ["b.mp4"])
    assert (again[1].features is None) == kept
    assert np.array_equal(first[0].features, again[0].features)


def test_windows_that_the_system_refused_are_looked_at_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = VideoReader.pictures
    color_world.film(folder / "b.mp4", (1, 40.0))  # several pieces

    def refuse_late(reader: VideoReader, targets, resize=None) -> np.ndarray:
        if reader.path.name == "b.mp4" and targets[0] > 20:
            raise VideoError("unreadable", "a message")
        return decode(reader, targets, resize)

    with monkeypatch.context() as patch:
        patch.setattr(VideoReader, "pictures", refuse_late)
        _, partly = look(folder, tmp_path / "cache")
    assert partly.reason == "unreadable" and np.isnan(partly.features).any()
    _, whole = look(folder, tmp_path / "cache")
    assert whole.reason == "" and not np.isnan(whole.features).any()


def test_files_of_equal_name_size_and_time_do_not_share_features(
    folder: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    contents = [(folder / f"{name}.mp4").read_bytes() for name in ("a", "b")]
    size = max(map(len, contents))
    a, b = (content + bytes(size - len(content)) for content in contents)
    for place, pair in ((folder, (a, b)), (other, (b, a))):
        for name, content in zip(("a.mp4", "b.mp4"), pair, strict=True):
            (place / name).write_bytes(content)
            os.utime(place / name, (0, 0))
    first, second = look(folder, tmp_path / "cache"), look(other, tmp_path / "cache")
    assert not np.allclose(first[0].features, first[1].features)
    for k in range(2):
        assert np.array_equal(first[k].features, second[1 - k].features)


def test_a_folder_that_moves_keeps_its_features(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = look(folder, tmp_path / "cache")
    folder.rename(tmp_path / "moved")
    monkeypatch.setattr(extraction, "VideoReader", None)  # opening one would fail
    again = look(tmp_path / "moved", tmp_path / "cache")
    assert all(np.array_equal(a.features, b.features) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ETIMEDOUT, errno.ENOMEM])
def test_what_the_system_refuses_is_not_called_broken(
    number: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **options: object) -> None:
        av.error.err_check(-number, str(folder / "a.mp4"))

    with monkeypatch.context() as patch:
        patch.setattr(av, "open", refuse)
        with pytest.raises(VideoError, match=os.strerror(number)) as caught:
            VideoReader(folder / "a.mp4")
    assert caught.value.reason == "unreadable"
