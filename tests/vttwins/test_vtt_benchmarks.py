"""Benchmarks from files to report: who knows the truth scores 100, who says one thing is at chance.

Each benchmark in each format, on the generated videos of color_world.py, by the command line.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import color_world
import pytest
from forked import run_ranks
from helpers import Forks

from examples.vttwins import evaluate, weights
from examples.vttwins.benchmarks import cache, extraction

SMALL = ["--size", "32", "--frames", "4", "--workers", "0", "--device", "cpu"]
TEXT = [*SMALL, "--fps", "5"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all benchmarks."""
    root = tmp_path_factory.mktemp("benchmarks")
    for make in (
        color_world.youcook2, color_world.msrvtt, color_world.crosstask,
        color_world.hmdb51, color_world.ucf101,
    ):  # fmt: skip
        make(root / make.__name__)
    color_world.word_vectors(root / "words.txt")
    return root


class Command:
    """evaluate.py on a benchmark of the world, with a model of color_world."""

    def __init__(self, world: Path, out: Path, patch: pytest.MonkeyPatch) -> None:
        self.world, self.out, self.patch = world, out, patch

    def line(self, benchmark: str, annotation: str, *more: str) -> list[str]:
        root, any_file = self.world / benchmark, str(self.world / "words.txt")
        line = [
            benchmark, "--weights", any_file, "--annotation", str(root / annotation),
            "--videos", str(root / "videos"), "--out", str(self.out),
            "--cache", str(self.out / "features"),
        ]  # fmt: skip
        if benchmark in ("hmdb51", "ucf101"):
            return [*line, *SMALL, *more]
        return [*line, *TEXT, "--word-vectors", str(self.world / "words.txt"), *more]

    def __call__(
        self, model: color_world.Truth, benchmark: str, annotation: str, *more: str
    ) -> dict[str, Any]:
        self.patch.setattr(weights, "load_model", lambda path: model)
        evaluate.main(self.line(benchmark, annotation, *more))
        return json.loads((self.out / f"{benchmark}.json").read_text(encoding="utf-8"))


@pytest.fixture
def command(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    return Command(world, tmp_path, monkeypatch)


RETRIEVAL = {
    # format: distinct segments, texts among which a video looks for its own
    ("youcook2", "list.csv"): (6, 6),
    ("youcook2", "list.json"): (6, 6),
    ("msrvtt", "list.csv"): (4, 4),
    ("msrvtt", "sentences.json"): (4, 7),
    ("msrvtt", "annotations.json"): (4, 7),
}


@pytest.mark.parametrize(("benchmark", "annotation"), RETRIEVAL)
def test_retrieval_is_perfect_for_the_truth_and_at_chance_for_a_constant(
    benchmark: str, annotation: str, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    segments, texts = RETRIEVAL[benchmark, annotation]
    best = {"R@1": 100.0, "R@5": 100.0, "R@10": 100.0, "MedR": 1.0, "MeanR": 1.0}
    truth = command(color_world.Truth(), benchmark, annotation)
    constant = command(color_world.Constant(), benchmark, annotation)
    assert truth["segments"] == segments and truth["unusable"] == {}
    for similarity in ("dot", "cosine"):
        assert truth[similarity] == {"text_to_video": best, "video_to_text": best}
        for direction, among in (("text_to_video", segments), ("video_to_text", texts)):
            found = constant[similarity][direction]
            assert found["R@1"] == pytest.approx(100 / among)
            assert found["R@5"] == pytest.approx(100 * min(5 / among, 1))
            assert found["MedR"] == found["MeanR"] == (1 + among) / 2
    page = capsys.readouterr().out
    assert "| text to video, dot product | 100.0 | 100.0 | 100.0 | 1.0 | 1.0 |" in page
    row = {"youcook2": "17.2 | 43.8 | 57.2 | 7.0", "msrvtt": "19.4 | 40.0 | 52.5 | 9.0"}[benchmark]
    assert f"| paper, fine-tuned (Tables 1 and 2) | {row} |  |" in page


@pytest.mark.parametrize("annotation", ["list.csv", "splits"])
@pytest.mark.parametrize("benchmark", ["hmdb51", "ucf101"])
def test_the_probe_is_perfect_for_the_truth_and_at_chance_for_a_constant(
    benchmark: str, annotation: str, command: Command
) -> None:
    truth = command(color_world.Truth(), benchmark, annotation, "--frames", "32")
    assert truth["splits"] == [100.0] * 3 and truth["mean"] == 100
    assert truth["unusable"] == {} and (truth["videos"], truth["classes"]) == (6, 2)
    constant = command(color_world.Constant(), benchmark, annotation)
    assert constant["splits"] == [50.0] * 3


@pytest.mark.parametrize("more", [[], ["--segments", "segments.csv"]])
def test_steps_are_found_by_the_truth_where_a_video_skips_one(
    more: list[str], command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    more = [str(command.world / "crosstask" / m) if m.endswith("csv") else m for m in more]
    truth = command(color_world.Truth(), "crosstask", "release", *more)
    for name in ("CTR (a)", "CTR (b)"):
        assert truth[name]["present"] == {"23": 5, "7": 2}
        assert truth[name]["tasks"] == {"23": 100.0, "7": 100.0}
    assert truth["CTR (c)"] == {"tasks": {"23": 100.0, "7": 100.0}, "mean": 100.0}
    page = capsys.readouterr().out
    assert "of CTR (c) alone | 28.2 |" in page and page.count("28.2") == 1
    constant = command(color_world.Constant(), "crosstask", "release", *more)
    # The earliest seconds, of which only the first of video c is right.
    assert constant["CTR (a)"]["tasks"] == {"23": 0.0, "7": 50.0}
    assert constant["CTR (b)"]["average"] == constant["CTR (a)"]["average"] == 25
    assert constant["CTR (c)"]["tasks"] == {"23": pytest.approx(100 / 3), "7": pytest.approx(50)}


def test_a_list_of_trimmed_segments_gives_the_releases_number_alone(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    found = command(color_world.Truth(), "crosstask", "segments.csv")
    assert found["CTR (c)"]["mean"] == 100 and "CTR (a)" not in found
    assert "CTR (a) and (b) need the folder of CrossTask" in capsys.readouterr().out


@pytest.mark.parametrize("benchmark", ["youcook2", "msrvtt", "crosstask", "hmdb51"])
def test_a_second_evaluation_decodes_nothing(
    benchmark: str, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    annotation = "release" if benchmark == "crosstask" else "list.csv"
    first = command(color_world.Truth(), benchmark, annotation)
    with monkeypatch.context() as patch:
        patch.setattr(extraction, "VideoReader", None)  # opening one would fail
        assert command(color_world.Truth(), benchmark, annotation) == first
    other = color_world.Truth()
    other.palette[0] += 1e-3  # another checkpoint
    opened = []

    class Reader(extraction.VideoReader):
        def __init__(self, path: Path) -> None:
            opened.append(path)
            super().__init__(path)

    monkeypatch.setattr(extraction, "VideoReader", Reader)
    command(other, benchmark, annotation)
    looks = 2 if benchmark == "crosstask" else 1
    assert len(opened) == looks * len(set(opened)) > 0
    command(color_world.Truth(), benchmark, annotation, "--size", "24")
    assert len(opened) == 2 * looks * len(set(opened))


def test_unusable_videos_are_counted_by_reason_and_found_again_once_they_come(
    command: Command, tmp_path: Path
) -> None:
    color_world.msrvtt(tmp_path / "msrvtt", videos=8)
    command.world = tmp_path
    color_world.word_vectors(tmp_path / "words.txt")
    videos = tmp_path / "msrvtt" / "videos"
    whole = (videos / "video9001.mp4").read_bytes()
    (videos / "video9001.mp4").unlink()
    (videos / "video9002.mp4").write_bytes(b"damaged")
    for _ in range(2):  # afresh, and from the cache
        found = command(color_world.Truth(), "msrvtt", "list.csv")
        assert found["unusable"] == {"missing": 1, "broken": 1}
        assert {row[0] for row in found["unusable_videos"]} == {"video9001", "video9002"}
        for direction in ("text_to_video", "video_to_text"):
            assert found["dot"][direction]["R@1"] == 75
        constant = command(color_world.Constant(), "msrvtt", "list.csv")
        assert constant["dot"]["text_to_video"]["R@1"] == pytest.approx(100 * 6 / 8 / 6)
    (videos / "video9001.mp4").write_bytes(whole)
    found = command(color_world.Truth(), "msrvtt", "list.csv")
    assert found["unusable"] == {"broken": 1} and found["dot"]["text_to_video"]["R@1"] == 87.5


def test_a_segment_past_the_end_is_no_hit_and_harms_no_other(
    command: Command, tmp_path: Path
) -> None:
    color_world.youcook2(tmp_path / "youcook2")
    color_world.word_vectors(tmp_path / "words.txt")
    command.world = tmp_path
    path = tmp_path / "youcook2" / "list.csv"
    text = path.read_text(encoding="utf-8-sig")
    path.write_text(text + f"90,80,226,{color_world.NAMES[9]},aB3\n", encoding="utf-8")
    found = command(color_world.Truth(), "youcook2", "list.csv")
    assert found["unusable"] == {"short": 1} and found["pairs"] == 7
    assert found["dot"]["text_to_video"]["R@1"] == pytest.approx(600 / 7)
    assert found["dot"]["video_to_text"]["R@1"] == pytest.approx(600 / 7)


def test_missing_videos_miss_all_their_steps(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    color_world.crosstask(tmp_path / "crosstask")
    color_world.word_vectors(tmp_path / "words.txt")
    command.world = tmp_path
    (tmp_path / "crosstask" / "videos" / "23" / "a.mp4").write_bytes(b"damaged")
    found = command(color_world.Truth(), "crosstask", "release")
    assert found["unusable"] == {"broken": 1} and found["CTR (a)"]["present"] == {"23": 5, "7": 2}
    assert found["CTR (a)"]["tasks"]["23"] == pytest.approx(40)
    assert found["CTR (b)"]["tasks"]["23"] == pytest.approx(50)
    assert found["CTR (c)"]["tasks"]["23"] == pytest.approx(40)
    assert found["unusable_trimmed"] == {"broken": 3} and found["looked_at_trimmed"] == 8
    assert [row[:2] for row in found["unusable_videos_trimmed"]] == [["a", "broken"]]
    page = capsys.readouterr().out
    assert "Whole videos that cannot be used, by reason, whose steps are missed: 1 broken" in page
    assert "Trimmed segments that cannot be used, by reason, counted as misses: 3 broken" in page


def test_two_processes_share_the_videos_and_give_the_numbers_of_one(
    command: Command, ranks: Forks, tmp_path: Path
) -> None:
    script = Path(__file__).with_name("evaluate_truth.py")
    expected = command(color_world.Truth(), "msrvtt", "list.csv")
    line = command.line("msrvtt", "list.csv")
    line[line.index("--out") + 1] = str(tmp_path / "two")
    line[line.index("--cache") + 1] = str(tmp_path / "features of two")
    outputs = run_ranks(ranks, script, str(tmp_path / "opened"), *line)
    assert "100.0" in outputs[0] and "100.0" not in outputs[1]  # one of them reports
    opened = [(tmp_path / f"opened.{rank}").read_text().split() for rank in range(2)]
    assert sorted(opened[0] + opened[1]) == [f"video900{k}.mp4" for k in range(4)]
    assert len(opened[0]) == len(opened[1]) == 2
    found = json.loads((tmp_path / "two" / "msrvtt.json").read_text(encoding="utf-8"))
    assert found == expected


def test_a_cache_that_was_interrupted_or_damaged_is_completed(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "ITEMS_OF_A_PART", 1)
    first = command(color_world.Truth(), "msrvtt", "list.csv")
    parts = sorted((command.out / "features").glob("*/part-*.npz"))
    assert len(parts) == 4
    parts[0].unlink()
    parts[1].write_bytes(parts[1].read_bytes()[:50])
    assert command(color_world.Truth(), "msrvtt", "list.csv") == first
    assert not list((command.out / "features").glob("*/*.tmp"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["nowhere"], "nowhere is neither the folder of a run nor one of hmdb51, ucf101"),
        (["youcook2", "--weights", "."], "youcook2 needs --annotation and --videos"),
        (["youcook2", "--annotation", ".", "--videos", "."], "either --checkpoint or --weights"),
        (["youcook2", "--weights", "no.pth"], "--weights no.pth does not exist"),
        (["hmdb51", "--fps", "5"], "--fps does not act in hmdb51"),
        (["ucf101", "--word-vectors", "."], "--word-vectors does not act in ucf101"),
        (["crosstask", "--windows", "2"], "--windows does not act in crosstask"),
        (["msrvtt", "--subset", "training"], "--subset does not act in msrvtt"),
        (["youcook2", "--similarity", "dot"], "--similarity does not act in youcook2"),
        ([".", "--weights", "."], "--weights does not act in the evaluation of a run"),
        ([".", "--frames", "0"], "--frames must be more than 0, got 0"),
        ([".", "--fps", "nan"], "--fps must be more than 0, got nan"),
        ([".", "--workers", "-1"], "--workers must be at least 0"),
        (
            ["msrvtt", "--weights", ".", "--annotation", ".", "--videos", "."],
            "--weights needs --word-vectors",
        ),
    ],
)
def test_an_option_acts_or_is_refused(
    line: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        evaluate.main(line)
    assert caught.value.code == 2 and message in capsys.readouterr().err


def test_files_that_do_not_fit_are_named(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command(color_world.Truth(), "youcook2", "none.csv")
    assert "none.csv does not exist" in capsys.readouterr().err
    with pytest.raises(SystemExit, match=r"list\.csv is a CSV file, which has no subset"):
        command(color_world.Truth(), "youcook2", "list.csv", "--subset", "training")
    with pytest.raises(SystemExit, match="--test-list goes with a folder"):
        command(color_world.Truth(), "crosstask", "segments.csv", "--test-list", str(tmp_path))
    with pytest.raises(SystemExit, match="no video can be used; the first, wave #0.avi"):
        command(color_world.Truth(), "hmdb51", "list.csv", "--videos", str(tmp_path))
    with pytest.raises(SystemExit, match="no video can be used; the first, video9000: .*no such"):
        command(color_world.Truth(), "msrvtt", "list.csv", "--videos", str(tmp_path))
    (tmp_path / "few.txt").write_text("color 0 1\n", encoding="utf-8")
    with pytest.raises(SystemExit, match="has 2 words with the pad, the model of .*words.txt 27"):
        command(
            color_world.Truth(), "msrvtt", "list.csv", "--word-vectors", str(tmp_path / "few.txt")
        )
