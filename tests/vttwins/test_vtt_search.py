"""A model that knows colors finds the second of a color; what cannot be read is only reported."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from examples.vttwins import evaluate, search
from examples.vttwins.data import ClipShape
from examples.vttwins.loading import LoadingError
from examples.vttwins.model import VideoTextModel
from examples.vttwins.video import VideoError, write_video
from examples.vttwins.words import Vocabulary

COLORS = {"red": (250, 0, 0), "green": (0, 250, 0), "blue": (0, 0, 250)}
VOCABULARY = Vocabulary(list(COLORS))
SHAPE = ClipShape(frames=4, fps=2.0, size=16, resize=16)  # 2 s
PLAN = {  # seconds of each color
    "a.mp4": [("red", 3), ("green", 4)],
    "more/b.mp4": [("green", 5), ("blue", 3), ("red", 2)],
}


class KnowsColors(VideoTextModel):
    """Embeds a clip as its mean color, and a word as its color."""

    def encode_video(self, video: Tensor) -> Tensor:
        return video.mean((2, 3, 4))

    def encode_text(self, words: Tensor) -> Tensor:
        return torch.eye(4)[words][..., 1:].amax(-2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("colors")
    (folder / "more").mkdir()
    for name, parts in PLAN.items():
        colors = np.concatenate([np.tile(COLORS[color], (10 * n, 1)) for color, n in parts])
        pictures = np.broadcast_to(colors[:, None, None], (len(colors), 16, 16, 3))
        write_video(folder / name, pictures.astype(np.uint8), 10)
    (folder / "broken.mp4").write_bytes(b"nothing")
    (folder / "notes.txt").write_text("no video")
    return folder


@pytest.fixture(scope="module")
def model() -> KnowsColors:
    return KnowsColors(vocabulary_size=len(VOCABULARY), embedding_dim=3)


def moments(model: KnowsColors, videos: search.Videos, word: str, top: int = 3) -> list:
    found = search.search(search.embed_text(model, VOCABULARY, word), videos, top, apart=2)
    return [(moment.video, moment.second) for moment in found if moment.score > 0.99]


def test_the_moment_of_a_sentence_is_found(model: KnowsColors, folder: Path) -> None:
    videos = search.embed_videos(model, folder, SHAPE)
    assert len(videos.second) == 7 + 10 and videos.names == ["a.mp4", "broken.mp4", "more/b.mp4"]
    ((name, why),) = videos.unusable
    assert name == "broken.mp4" and why.startswith("broken: ")
    # A window of 2 s is of one color where that lasts half a second to both sides of its second.
    assert moments(model, videos, "blue") == [("more/b.mp4", 6)]
    assert {video for video, _ in moments(model, videos, "red")} == {"a.mp4", "more/b.mp4"}
    green = moments(model, videos, "green", top=9)
    for video, second in green:
        begin, end = (3, 7) if video == "a.mp4" else (0, 5)
        assert begin <= second < end
    assert len(green) == 4  # two seconds apart: 4 and 6, 0 or 1 and 3


def test_one_video_is_embedded_as_in_a_folder(model: KnowsColors, folder: Path) -> None:
    alone = search.embed_video(model, folder / "a.mp4", SHAPE)
    videos = search.embed_videos(model, folder, SHAPE)
    assert alone.shape == (7, 3)
    assert np.array_equal(alone, videos.embeddings[videos.video == 0])
    with pytest.raises(VideoError) as caught:
        search.embed_video(model, folder / "broken.mp4", SHAPE)
    assert caught.value.reason == "broken"


def test_the_next_sentence_decodes_nothing(
    model: KnowsColors, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = search.embed_videos(model, folder, SHAPE, cache=tmp_path)
    monkeypatch.setattr(KnowsColors, "encode_video", lambda self, video: 1 / 0)
    again = search.embed_videos(model, folder, SHAPE, cache=tmp_path)
    for field in dataclasses.fields(search.Videos):
        assert np.array_equal(getattr(first, field.name), getattr(again, field.name))


def test_what_cannot_be_searched_is_said(model: KnowsColors, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no word of 'Purple rain' is among the 3 words"):
        search.embed_text(model, VOCABULARY, "Purple rain")
    with pytest.raises(ValueError, match="no videos under"):
        search.embed_videos(model, tmp_path, SHAPE)
    (tmp_path / "x.mp4").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="none of the 1 videos can be used, such as broken: "):
        search.embed_videos(model, tmp_path, SHAPE)
    videos = search.Videos(["a"], np.zeros(1, int), np.zeros(1, int), np.ones((1, 3)), [])
    with pytest.raises(ValueError, match="top >= 1"):
        search.search(np.ones(3), videos, top=0)
    with pytest.raises(ValueError, match=r"sentence must be \(3,\)"):
        search.search(np.ones(4), videos)


def test_the_command_prints_moments_and_what_it_could_not_read(
    model: KnowsColors, folder: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(search, "load_run", lambda run: (model, VOCABULARY, SHAPE, {}))
    line = ["run", "something blue", str(folder), "--cache", str(tmp_path), "--workers", "0"]
    assert search.main([*line, "--top", "1"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["1.000", "0:06", "more/b.mp4"]
    assert printed[1].startswith("not searched: broken: ") and len(printed) == 2
    with pytest.raises(SystemExit, match="no word of"):
        search.main(["run", "Purple", str(folder)])
    for device, message in (("foo", "must be cpu or cuda"), ("cuda:99", "no cuda:99: there are")):
        with pytest.raises(SystemExit, match=message):
            search.main([*line, "--device", device])


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (LoadingError("DataLoader worker died; worker 0 has been reading a.mp4 for 3 s"), None),
        (KeyboardInterrupt(), 130),
    ],
)
def test_a_dead_worker_and_ctrl_c_end_a_search_in_a_sentence(
    error: BaseException, code: int | None, model: KnowsColors, folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(search, "load_run", lambda run: (model, VOCABULARY, SHAPE, {}))
    monkeypatch.setattr(search, "embed_videos", fail)
    with pytest.raises(SystemExit) as ended:
        search.main(["run", "blue", str(folder), "--device", "cpu"])
    assert ended.value.code == (code or str(error))


def test_the_example_of_the_docstring_runs(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a run of random weights, for the form alone."""
    from examples.vttwins.weights import export_safetensors

    run = tmp_path / "build" / "vttwins" / "run"
    run.mkdir(parents=True)
    small = VideoTextModel(vocabulary_size=6, embedding_dim=4)
    export_safetensors(small, run / "model.safetensors")
    Vocabulary(["the", "red", "ring", "spins", "x"]).save(run / "vocabulary.json")
    settings = {"frames": 2, "fps": 1.0, "size": 16, "resize": 16, "data": "d"}
    (run / "settings.json").write_text(json.dumps(settings))
    data = tmp_path / "build" / "vttwins" / "data"
    data.mkdir()
    (data / "videos").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    text = search.__doc__ or ""
    begin, end = text.index("    from pathlib"), text.index("Weights of any other")
    lines = [line[4:] for line in text[begin:end].splitlines()]
    assert len([line for line in lines if line]) == 8
    exec("\n".join(lines), {})
    assert evaluate.load_run(run)[1].words[0] == "the"
