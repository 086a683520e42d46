"""check_data foretells what training skips, in the same words, and its exit code sums it up."""

from __future__ import annotations

import csv
import errno
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from examples.vttwins import check_data, data
from examples.vttwins.video import VideoError, write_video
from examples.vttwins.words import Vocabulary


def write_captions(path: Path, start: list, end: list, text: list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"start": start, "end": end, "text": text}), encoding="utf-8")


@pytest.fixture(scope="module")
def flawed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten videos of 2 s, of which one has a fault of each kind."""
    root = tmp_path_factory.mktemp("flawed")
    videos, captions = root / "videos", root / "captions"
    videos.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (20, 32, 32, 3), np.uint8)
    write_video(videos / "0.mp4", noise, 10)
    for k in range(1, 10):
        shutil.copy(videos / "0.mp4", videos / f"{k}.mp4")
    for k in range(10):
        write_captions(captions / f"{k}.json", [0, 1], [1, 2], ["cut", "fry"])
    (videos / "1.mp4").unlink()
    content = (videos / "2.mp4").read_bytes()
    (videos / "2.mp4").write_bytes(content[: len(content) // 2])
    write_captions(captions / "3.json", [50], [53], ["too late"])
    write_captions(captions / "4.json", [], [], [])
    (captions / "5.json").unlink()
    (captions / "6.json").write_text("{", encoding="utf-8")
    write_captions(captions / "7.json", [0, 1, 70], [1, 2, 80], ["cut", None, "thanks"])
    rows = "".join(f"{k}.mp4,{k}\n" for k in range(10))
    (root / "train.csv").write_text(f"video_path,row\n{rows}\n", encoding="utf-8")
    return root


def test_a_caption_of_no_word_is_none(flawed: Path, tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    for name, text in (("0", ["...!?"]), ("8", ["cut", "\u266a"])):
        shutil.copy(flawed / "videos" / f"{name}.mp4", tmp_path / "videos")
        count = len(text)
        write_captions(tmp_path / "captions" / f"{name}.json", [0] * count, [1] * count, text)
    (silent,) = check_data.check_video("0.mp4", tmp_path)
    assert (silent.reason, silent.fatal) == ("silent", True)
    (partly,) = check_data.check_video("8.mp4", tmp_path)
    assert (partly.reason, partly.fatal) == ("empty_captions", False)


REASONS = {
    "1.mp4": "missing",
    "2.mp4": "broken",
    "3.mp4": "short",
    "4.mp4": "silent",
    "5.mp4": "no_captions",
    "6.mp4": "bad_captions",
}


@pytest.mark.parametrize("thorough", [False, True])
def test_it_finds_what_training_skips(thorough: bool, flawed: Path) -> None:
    result = check_data.check(flawed, thorough=thorough)
    assert result.videos == 10 and result.usable == 4
    fatal = [finding for finding in result.findings if finding.fatal]
    assert {finding.video: finding.reason for finding in fatal} == REASONS
    lost = {finding.reason: finding.message for finding in result.findings if not finding.fatal}
    assert lost == {
        "late_captions": "7.mp4: 1 of 3 captions start after the end of the video",
        "empty_captions": "7.mp4: 1 of 3 captions say nothing",
    }
    training = data.NarratedVideos(
        data.read_column(flawed / "train.csv", "video_path"), flawed / "videos",
        flawed / "captions", Vocabulary(["cut"]), data.ClipShape(2, 5.0, 16, 16), captions=2,
    )  # fmt: skip
    for index, video in enumerate(training.videos):
        skipped = dict(training[0, index]["skipped"])
        assert (video in skipped) == (video in REASONS)
        if video in skipped:
            finding = next(finding for finding in fatal if finding.video == video)
            assert skipped[video] == f"{finding.reason}: {finding.message}"


def test_workers_change_nothing(flawed: Path) -> None:
    assert check_data.check(flawed, workers=2) == check_data.check(flawed)


def test_damage_in_the_middle_is_found_by_the_thorough_check(flawed: Path, tmp_path: Path) -> None:
    shutil.copytree(flawed, tmp_path / "data")
    path = tmp_path / "data" / "videos" / "0.mp4"
    write_video(path, np.random.default_rng(0).integers(0, 255, (60, 32, 32, 3), np.uint8), 10)
    content = bytearray(path.read_bytes())
    begin = content.index(b"mdat") + 4
    third = (len(content) - begin) // 3
    content[begin + third : begin + third + 500] = bytes(500)
    path.write_bytes(content)
    write_captions(
        tmp_path / "data" / "captions" / "0.json", [0, 2, 3, 5], [1, 3, 4, 6], ["a", "b", "c", "d"]
    )
    assert not check_data.check_video("0.mp4", tmp_path / "data")
    found = check_data.check_video("0.mp4", tmp_path / "data", thorough=True)
    assert [finding.reason for finding in found] == ["broken"]


def test_the_exit_code_says_whether_a_run_can_start(
    flawed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report.csv"
    line = [str(flawed), "--workers", "1"]
    assert check_data.main([*line, "--report", str(report)]) == 1
    printed = capsys.readouterr().out
    assert "4 of 10 videos can be used" in printed and "1 videos would be skipped: short" in printed
    with report.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["video"]: row["reason"] for row in rows if row["skipped"] == "1"} == REASONS

    lists = {
        "good.csv": ("video_path\n0.mp4\n8.mp4\n9.mp4\n", 0, "3 of 3 videos can be used"),
        "twice.csv": ("video_path\n0.mp4\n0.mp4\n", 2, "listed more than once, such as '0.mp4'"),
        "shared.csv": ("video_path\n0.mp4\na/0.mp4\n", 2, "0.json would serve 0.mp4 and a/0.mp4"),
        "none.csv": ("video_path\n1.mp4\n2.mp4\n", 2, "no video can be used"),
        "empty.csv": ("video_path\n", 2, "lists no video"),
        "short.csv": ('video_path\n0.mp4\n""\n', 1, "1 videos would be skipped: no_path"),
        "other.csv": ("path\n0.mp4\n", 2, "needs a column 'video_path'"),
    }
    for name, (content, code, sentence) in lists.items():
        (flawed / name).write_text(content, encoding="utf-8")
        assert check_data.main([*line, "--train-csv", name]) == code, name
        assert sentence in capsys.readouterr().out
    assert check_data.main([*line, "--train-csv", "absent.csv"]) == 2
    assert "absent.csv" in capsys.readouterr().out


@pytest.mark.parametrize("train_csv", ["train.csv", "good.csv"])
def test_a_report_that_cannot_be_written_is_said_first_and_costs_no_result(
    train_csv: str, flawed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (flawed / "good.csv").write_text("video_path\n0.mp4\n8.mp4\n9.mp4\n", encoding="utf-8")
    said: list[str] = []

    def check(*arguments: object) -> check_data.Result:
        said.append(capsys.readouterr().err)
        return plain(*arguments)

    plain = check_data.check
    monkeypatch.setattr(check_data, "check", check)
    path = tmp_path / "absent" / "report.csv"
    line = [str(flawed), "--workers", "1", "--train-csv", train_csv, "--report"]
    for report in (path, tmp_path):
        assert check_data.main([*line, str(report)]) == 3
        assert f"--report {report} cannot be written" in said.pop()
        printed = capsys.readouterr()
        assert "videos can be used" in printed.out and "No run can start" not in printed.out
        assert f"{report} is not written: " in printed.err
    good = tmp_path / "report.csv"
    good.write_text("of before")
    assert check_data.main([*line, str(good)]) == (1 if train_csv == "train.csv" else 0)
    assert said == [""] and good.read_text().startswith("video,reason")
    assert check_data.main([str(flawed), "--train-csv", "no.csv", "--report", f"{good}2"]) == 2
    assert not Path(f"{good}2").exists()  # trying the path leaves nothing behind


def test_a_report_that_fails_in_the_end_costs_no_result(
    flawed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(check_data, "write_report", full)
    line = [str(flawed), "--workers", "1", "--report", str(tmp_path / "report.csv")]
    assert check_data.main(line) == 3
    printed = capsys.readouterr()
    assert "4 of 10 videos can be used" in printed.out and "No space left" in printed.err


def test_a_refusal_is_that_of_training(flawed: Path) -> None:
    with pytest.raises(VideoError):
        data.Captions.load(flawed / "captions" / "6.json")
    with pytest.raises(ValueError, match="more than once"):
        check_data.check_listed_once(["0.mp4", "0.mp4"], flawed / "captions")
