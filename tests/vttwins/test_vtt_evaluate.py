"""Evaluation of a run on its own test videos, and of any weights with their word vectors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import color_world
import numpy as np
import pytest
import torch

from examples.vttwins import data, evaluate, pictures, search, synthetic, weights
from examples.vttwins.benchmarks import extraction, report
from examples.vttwins.benchmarks.crosstask import write_crosstask_tasks
from examples.vttwins.model import VideoTextModel
from examples.vttwins.words import Vocabulary

SHAPE = data.ClipShape(frames=4, fps=5.0, size=32, resize=32)
WORDS = Vocabulary(["the", *synthetic.COLORS, *synthetic.SHAPES, *synthetic.MOTIONS])


@pytest.fixture(scope="module")
def model() -> VideoTextModel:
    torch.manual_seed(0)
    return VideoTextModel(vocabulary_size=len(WORDS), embedding_dim=8, word_dim=6).eval()


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose model knows the truth, with its data: two tasks, a video that skips a step."""
    color_world.crosstask(tmp_path / "made")
    folder, root = tmp_path / "run", tmp_path / "data"
    folder.mkdir()
    shutil.copytree(tmp_path / "made" / "videos", root / "videos")
    rows = (tmp_path / "made" / "segments.csv").read_text(encoding="utf-8")
    (root / "test.csv").write_text(rows.replace("task_id", "task"), encoding="utf-8")
    shutil.copy(tmp_path / "made" / "release" / "tasks_primary.txt", root)
    settings = {"data": str(root), "frames": 4, "fps": 5.0, "size": 32, "resize": 32}
    (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "model.safetensors").touch()
    Vocabulary(color_world.NAMES).save(folder / "vocabulary.json")
    monkeypatch.setattr(weights, "load_model", lambda path: color_world.Truth())
    return folder


def evaluated(run: Path, *options: str) -> dict[str, Any]:
    evaluate.main([str(run), "--workers", "0", "--device", "cpu", *options])
    return json.loads((run / "evaluation.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("device", "message"),
    [("foo", "--device must be cpu or cuda, got 'foo'"), ("cuda:99", "no cuda:99: there are")],
)
def test_a_device_that_is_not_there_is_said(device: str, message: str, run: Path) -> None:
    with pytest.raises(SystemExit, match=message):
        evaluate.main([str(run), "--device", device])


def test_a_run_is_evaluated_on_its_own_test_videos(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = evaluated(run)
    assert found["pairs"] == 8 and found["unusable"] == {} and found["similarity"] == "dot"
    # Three of the five colors are shown twice: their segments tie.
    assert found["text_to_video"]["R@1"] == found["video_to_text"]["R@1"] == 62.5
    for name in ("CTR (a)", "CTR (b)"):
        assert found[name]["average"] == 100
    assert found["CTR (c)"]["mean"] == 100
    page = capsys.readouterr().out
    assert page == (run / "evaluation.md").read_text(encoding="utf-8") + "\n"
    assert "no benchmark of the paper" in page and "paper, " not in page


def test_a_second_evaluation_of_a_run_decodes_nothing_and_options_act(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = evaluated(run)
    with monkeypatch.context() as patch:
        patch.setattr(extraction, "VideoReader", None)  # opening one would fail
        assert evaluated(run) == first
    changed = evaluated(run, "--frames", "6", "--size", "24", "--windows", "2", "--fps", "10")
    assert changed["clip"] == {"frames": 6, "fps": 10.0, "size": 24, "resize": 24}
    assert changed["windows"] == 2 and changed["CTR (c)"] == first["CTR (c)"]
    assert evaluated(run, "--similarity", "cosine")["similarity"] == "cosine"


def test_the_order_of_steps_comes_from_a_task_file_or_not_at_all(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = run.parent / "data" / "tasks_primary.txt"
    tasks.unlink()
    found = evaluated(run)
    assert "CTR (a)" not in found and "CTR (b)" not in found and found["CTR (c)"]["mean"] == 100
    assert "CTR (a) and (b) need the order of the steps" in capsys.readouterr().out
    write_crosstask_tasks({"23": ["cut"], "7": ["fry"]}, tasks)
    with pytest.raises(SystemExit, match="of video a is no step of task '23' in the task file"):
        evaluated(run)


def test_a_folder_without_a_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no model.safetensors and no last.pt; train first"):
        evaluate.main([str(tmp_path)])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "settings.json is missing"),
        ("{", "settings.json cannot be read"),
        ("[]", "settings.json is not of a run: it lacks data, "),
        ('{"theme": "dark"}', "settings.json is not of a run: it lacks data, "),
    ],
)
def test_settings_of_something_else_are_named(
    content: str | None, message: str, run: Path, narrated: Path
) -> None:
    settings = run / "settings.json"
    settings.unlink()
    if content is not None:
        settings.write_text(content, encoding="utf-8")
    with pytest.raises(SystemExit, match=message):
        evaluated(run)
    with pytest.raises(SystemExit, match=message):
        pictures.main([str(run)])
    color_world.msrvtt(run.parent / "msrvtt")
    benchmark = ["msrvtt", "--checkpoint", str(run), "--workers", "0", "--device", "cpu"]
    for name, path in (("annotation", "list.csv"), ("videos", "videos")):
        benchmark += [f"--{name}", str(run.parent / "msrvtt" / path)]
    benchmark += ["--out", str(run), "--cache", str(run / "features")]
    if content is None:  # a file of weights beside a vocabulary will do
        evaluate.main(benchmark)
    else:
        with pytest.raises(SystemExit, match=message):
            evaluate.main(benchmark)


def test_words_of_other_weights_are_refused(run: Path) -> None:
    Vocabulary(color_world.NAMES[1:]).save(run / "vocabulary.json")
    count = len(color_world.NAMES)
    with pytest.raises(SystemExit, match=f"vocabulary.json has {count} words .* {count + 1}$"):
        evaluated(run)
    with pytest.raises(SystemExit, match=f"vocabulary.json has {count} words .* {count + 1}$"):
        search.main([str(run), "red", str(run), "--device", "cpu"])


def test_a_result_that_cannot_be_written_is_said_before_the_evaluation(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "file").touch()
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "load_run", None)  # to call it would fail
        with pytest.raises(SystemExit, match="--out .*file cannot be written: .*File exists"):
            evaluated(run, "--out", str(run / "file"))
        (run / "evaluation.md").mkdir()
        with pytest.raises(SystemExit, match=r"cannot be written: .*evaluation\.md is a folder"):
            evaluated(run)
    (run / "evaluation.md").rmdir()

    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(report, "write_text", fail)
    with pytest.raises(SystemExit, match="are not written: no space left"):
        evaluated(run)
    assert "8 sentences, 8 segments" in capsys.readouterr().out  # hours of work are not lost


def test_an_unusable_video_is_counted_and_is_no_hit(
    model: VideoTextModel, narrated: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "videos"
    shutil.copytree(narrated / "videos", folder)
    (folder / "test_00001.mp4").write_bytes(b"damaged")
    segments = evaluate.read_segments(narrated / "test.csv")
    result = evaluate.evaluate(model, WORDS, segments, folder, SHAPE, windows=2)
    assert result["pairs"] == 16 and result["unusable"] == {"broken": 8}
    assert all(np.isfinite(list(result["text_to_video"].values())))
    for direction in ("text_to_video", "video_to_text"):
        assert result[direction]["R@5"] <= 50  # the other half stands last
    assert result["CTR (c)"]["mean"] <= 50
    nothing = evaluate.evaluate(model, WORDS, segments, tmp_path, SHAPE, windows=2)
    assert nothing["unusable"] == {"missing": 16} and nothing["CTR (c)"]["mean"] == 0
    for direction in ("text_to_video", "video_to_text"):
        assert nothing[direction] == {"R@1": 0, "R@5": 0, "R@10": 0, "MedR": 17, "MeanR": 17}


def test_missing_videos_are_misses_in_a_gallery_of_few(run: Path) -> None:
    for video in ("a", "b"):  # with five of the eight segments
        (run.parent / "data" / "videos" / "23" / f"{video}.mp4").unlink()
    found = evaluated(run)
    for direction in ("text_to_video", "video_to_text"):
        assert found[direction]["R@10"] == 37.5 and found[direction]["MedR"] == 9


def test_whole_videos_that_are_lost_have_an_account_beside_that_of_the_segments(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run.parent / "data" / "videos" / "7" / "c.mp4").write_bytes(b"damaged")
    found = evaluated(run)
    assert (found["looked_at"], found["unusable"]) == (8, {"broken": 3})
    assert (found["looked_at_whole"], found["unusable_whole"]) == (3, {"broken": 1})
    assert [row[:2] for row in found["unusable_videos_whole"]] == [["c", "broken"]]
    assert found["CTR (a)"]["tasks"] == {"23": 100.0, "7": 0.0}
    page = capsys.readouterr().out
    assert "Segments that cannot be used, by reason, counted as misses: 3 broken" in page
    assert "Whole videos that cannot be used, by reason, whose steps are missed: 1 broken" in page


def test_a_run_whose_data_lie_elsewhere_says_which_options_name_them(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = json.loads((run / "settings.json").read_text(encoding="utf-8")) | {"data": "data"}
    (run / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    monkeypatch.chdir(run.parent)
    assert evaluated(run)["pairs"] == 8
    monkeypatch.chdir(run)
    sentence = r"data/test\.csv does not exist.* give --annotation and --videos$"
    with pytest.raises(SystemExit, match=sentence):
        evaluated(run)
    annotation = "--annotation", str(run.parent / "data" / "test.csv")
    with pytest.raises(SystemExit, match=r"data/videos does not exist.* give --videos$"):
        evaluated(run, *annotation)
    videos = "--videos", str(run.parent / "data" / "videos")
    assert evaluated(run, *annotation, *videos)["pairs"] == 8


def test_a_file_of_weights_is_evaluated_with_its_word_vectors(
    model: VideoTextModel, narrated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights.export_safetensors(model, tmp_path / "model.safetensors")
    torch.save(model.text_module.word_embd.weight.detach(), tmp_path / "word2vec.pth")
    np.save(tmp_path / "dict.npy", np.array(WORDS.words))
    line = [
        "youcook2", "--weights", str(tmp_path / "model.safetensors"), "--annotation",
        str(narrated / "test.csv"), "--videos", str(narrated / "videos"), "--windows", "1",
        "--size", "32", "--frames", "4", "--workers", "0", "--device", "cpu", "--cache",
        str(tmp_path / "features"), "--out", str(tmp_path), "--word-vectors",
    ]  # fmt: skip
    evaluate.main([*line, str(tmp_path / "word2vec.pth")])
    assert "16 sentences, 16 segments" in capsys.readouterr().out
    other = tmp_path / "other.txt"
    other.write_text("the 1 0 0 0 0 0\nred 0 1 0 0 0 0\n", encoding="utf-8")
    with pytest.raises(SystemExit, match=f"has 3 words .* {len(WORDS)}"):
        evaluate.main([*line, str(other)])
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(SystemExit, match="not a safetensors file"):
        evaluate.main([*line, str(tmp_path / "word2vec.pth")])
