"""Captions of every source become the same file, once each, and train.csv lists what has them."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.vttwins import convert, data, subtitles

SRT = """1
00:00:01,000 --> 00:00:02,500
{\\an8}<i>Cut</i> the onion,
then fry it.

2
00:00:03,000 --> 01:00:04,250
5

3
00:00:05,5 --> 00:00:06,5

"""

VTT = """WEBVTT - a title
Kind: captions

STYLE
::cue { color: red }

NOTE a remark
of two lines

intro
00:01.000 --> 00:02.500 align:start position:0%
<v Ann>Cut &amp; fry</v> it

NOTE no caption

00:03.000 --> 00:04.000
<c.yellow>now</c> eat
"""

# As YouTube's automatic captions: lines roll up, words carry their times, cues of 10 ms between.
ROLLING = """WEBVTT

00:00:00.500 --> 00:00:02.000
 \nfirst<00:00:01.000><c> we</c><00:00:01.500><c> cut</c>

00:00:02.000 --> 00:00:02.010
first we cut
 \n
00:00:02.010 --> 00:00:04.000
first we cut
the<00:00:03.000><c> onions</c>

00:00:04.000 --> 00:00:04.010
the onions
 \n
00:00:04.010 --> 00:00:06.000
the onions
the onions
"""


def texts_of(content: str) -> list[tuple[float, float, str]]:
    cues = subtitles.merge_rolling(subtitles.read_cues(content))
    return [(cue.start, cue.end, " ".join(cue.lines)) for cue in cues]


def test_srt_and_webvtt_are_read_without_their_markup() -> None:
    assert texts_of(SRT) == [(1.0, 2.5, "Cut the onion, then fry it."), (3.0, 3604.25, "5")]
    assert texts_of(VTT) == [(1.0, 2.5, "Cut & fry it"), (3.0, 4.0, "now eat")]
    assert texts_of(VTT.replace("\n", "\r\n")) == texts_of(VTT)


SHIFTED = """1
-00:00:03,000 --> -00:00:01,500
gone

2
-00:00:01,000 --> 00:00:01,250
early

3
0:00:02 --> 0:00:03.5
there

4
0:00:05.250000 --> 0:00:06.1234567
soup

5
1 day, 0:00:07 --> 1 day, 0:00:08
lost

6
00:00:09,000 --> 00:00:10,000
now
"""


@pytest.mark.parametrize("head", ["", "WEBVTT\n\n"])
def test_timings_of_any_writer_are_read_or_end_the_cue_before(head: str) -> None:
    unread: list[str] = []
    cues = subtitles.read_cues(head + SHIFTED, unread)
    assert [(cue.start, cue.end, *cue.lines) for cue in cues] == [
        (0.0, 1.25, "early"), (2.0, 3.5, "there"), (5.25, 6.1234567, "soup"), (9.0, 10.0, "now"),
    ]  # fmt: skip
    assert unread == ["-00:00:03,000 --> -00:00:01,500", "1 day, 0:00:07 --> 1 day, 0:00:08"]
    long = "9" * 9999  # more digits than int() takes
    assert subtitles.read_cues(f"1 --> 2\nx\n{long}:00:01 --> 00:02\ny") == []
    assert subtitles.read_cues(f"0:01.{long} --> 0:03\nx")[0].start == pytest.approx(2)


def test_cues_that_are_left_out_are_counted_and_shown(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = folder / "source" / "b.en.vtt"
    line = [str(source), "--out", str(folder / "data")]
    assert convert.main(line) == 0 and "timing" not in capsys.readouterr().out
    source.write_text(SHIFTED)
    assert convert.main([*line, "--overwrite"]) == 1
    printed = capsys.readouterr().out
    assert "2 cues of 1 files left out, for their timing" in printed
    assert "b.en.vtt: -00:00:03,000 --> -00:00:01,500" in printed
    assert captions_of(folder / "data")["b"][1] == ["early", "there", "soup", "now"]


def test_rolling_captions_say_each_line_once_when_it_appears() -> None:
    assert texts_of(ROLLING) == [
        (0.5, 2.0, "first we cut"),
        (2.01, 4.0, "the onions"),
        (4.01, 6.0, "the onions"),  # said twice, indeed
    ]


WORDS = st.lists(st.sampled_from(["cut", "the", "onion", "fry", "it"]), min_size=1, max_size=4)


@given(lines=st.lists(WORDS, min_size=4, max_size=8), by_word=st.booleans())
def test_what_rolls_is_what_was_said(lines: list[list[str]], by_word: bool) -> None:
    said = [" ".join([*words, f"line{k}"]) for k, words in enumerate(lines)]
    cues, clock = [], 0.0
    for k, line in enumerate(said):
        words = line.split()
        for count in range(1, len(words) + 1) if by_word else [len(words)]:
            shown = [*said[max(k - 1, 0) : k], " ".join(words[:count])]
            cues.append(subtitles.Cue(clock, clock + 1, shown))
            clock += 1
    merged = subtitles.merge_rolling(cues)
    assert [" ".join(cue.lines) for cue in merged] == said
    assert all(a.end <= b.start for a, b in zip(merged, merged[1:], strict=False))


@given(lines=st.lists(WORDS, min_size=2, max_size=8))
def test_captions_that_do_not_roll_stay_as_they_are(lines: list[list[str]]) -> None:
    texts = [" ".join([*words, f"line{k}"]) for k, words in enumerate(lines)]
    cues = [subtitles.Cue(k, k + 1, [text]) for k, text in enumerate(texts)]
    assert subtitles.merge_rolling(cues) == cues


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Sources of five kinds, and videos for most of them."""
    source, videos = tmp_path / "source", tmp_path / "data" / "videos"
    (source / "talks").mkdir(parents=True)
    (source / "talks" / "a.srt").write_bytes("\ufeff1\n0:01 --> 0:02\nCrème\n".encode())
    (source / "b.en.vtt").write_text("WEBVTT\n\n00:01.000 --> 00:02.000\nhello\n")
    (source / "dr. who.de.srt").write_bytes("1\n0:01 --> 0:02\nKäse\n".encode("cp1252"))
    (source / "c.csv").write_text(",start,end,text\n0,4,5,then\n1,1,2,first\n2,6,7,\n")
    raw = {"d": {"start": [1], "end": [2], "text": ["x"]}, "e": {"start": [1], "end": [2, 3]}}
    raw |= {"f": {"start": [1], "end": [2], "text": [None]}, "../g": raw["d"]}
    (source / "raw_caption.json").write_text(json.dumps(raw), encoding="utf-8-sig")
    (source / "h.json").write_text(json.dumps(raw["d"]))
    for name in ("talks/a.mp4", "b.webm", "dr. who.mkv", "cooking/c.mp4", "d.MOV", "z.mp4"):
        (videos / name).parent.mkdir(parents=True, exist_ok=True)
        (videos / name).touch()
    return tmp_path


def captions_of(root: Path) -> dict[str, tuple[list[float], list[str]]]:
    found = {}
    for path in sorted((root / "captions").rglob("*.json")):
        captions = data.Captions.load(path)
        name = path.relative_to(root / "captions").with_suffix("").as_posix()
        found[name] = (captions.start, captions.text)
    return found


def test_every_kind_of_source_is_converted_and_listed(folder: Path) -> None:
    report = convert.convert([folder / "source"], folder / "data")
    assert captions_of(folder / "data") == {
        "talks/a": ([1], ["Crème"]),
        "b": ([1], ["hello"]),
        "dr. who": ([1], ["Käse"]),
        "c": ([1, 4, 6], ["first", "then", ""]),
        "d": ([1], ["x"]),
        "h": ([1], ["x"]),
    }
    assert not (folder / "data" / "g.json").exists()
    assert {video: why.split(":")[0] for video, why in report.skipped} == {
        "e": "bad_captions", "f": "silent", "../g": "bad_name",
    }  # fmt: skip
    listed = data.read_column(folder / "data" / "train.csv", "video_path")
    assert listed == ["b.webm", "cooking/c.mp4", "d.MOV", "dr. who.mkv", "talks/a.mp4"]
    assert report.written == 6 and report.listed == 5 and report.without_captions == ["z.mp4"]
    before = (folder / "data" / "train.csv").stat().st_mtime_ns
    convert.convert([folder / "source"], folder / "data")  # the same again changes nothing
    assert (folder / "data" / "train.csv").stat().st_mtime_ns == before


def test_nothing_is_replaced_unless_asked_for(folder: Path) -> None:
    convert.convert([folder / "source" / "b.en.vtt"], folder / "data")
    with pytest.raises(ValueError, match="train.csv exists and says something else; give --over"):
        convert.convert([folder / "source" / "c.csv"], folder / "data")
    (folder / "data" / "captions" / "b.json").write_text("{}")
    with pytest.raises(ValueError, match="b.json exists and says something else"):
        convert.convert([folder / "source" / "b.en.vtt"], folder / "data")
    convert.convert([folder / "source"], folder / "data", overwrite=True)
    assert captions_of(folder / "data")["b"][1] == ["hello"]


def test_one_video_has_one_file_of_captions(folder: Path) -> None:
    german = folder / "source" / "b.de.vtt"
    german.write_text("WEBVTT\n\n00:01.000 --> 00:02.000\nhallo\n")
    with pytest.raises(ValueError, match="are captions of the same video; give one of them, or"):
        convert.convert([folder / "source"], folder / "data")
    convert.convert([folder / "source"], folder / "data", language="de")
    assert captions_of(folder / "data")["b"][1] == ["hallo"]


def test_captions_of_videos_that_are_not_there_can_be_left_out(folder: Path) -> None:
    convert.convert([folder / "source"], folder / "data", with_video=True)
    assert set(captions_of(folder / "data")) == {"talks/a", "b", "dr. who", "c", "d"}


def test_videos_that_would_share_captions_are_not_listed(folder: Path) -> None:
    (folder / "data" / "videos" / "other").mkdir()
    (folder / "data" / "videos" / "other" / "b.mp4").touch()
    report = convert.convert([folder / "source"], folder / "data")
    assert report.ambiguous == ["b.webm", "other/b.mp4"] and report.listed == 4


@pytest.mark.parametrize(
    ("name", "content"),
    [("x.json", b'{"a": {"start": [1'), ("x.json", b"[]"), ("x.json", b""), ("x.json", b'{"a" 5'),
     ("x.csv", b"begin,text\n1,a\n"), ("x.csv", b"\xff\xfe\x00"), ("x.json", b"\xff\xfe{")],
)  # fmt: skip
def test_a_damaged_source_is_reported_and_the_others_are_converted(
    name: str, content: bytes, folder: Path
) -> None:
    (folder / "source" / name).write_bytes(content)
    report = convert.convert([folder / "source"], folder / "data")
    assert report.written == 6
    reasons = [why for source, why in report.skipped if source.endswith(name)]
    assert len(reasons) == 1 and reasons[0].startswith("bad_captions: ")


def test_a_bad_character_costs_neither_its_file_nor_what_comes_after(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = '{"start": [0], "end": [1], "text": ["%s"]}'
    said = {"b": "first", "dr. who": r"bad \ud83d x", "d": r"grin \ud83d\ude00", "z": "cut \xff"}
    items = [f'"{video}": {one % text}' for video, text in said.items()]
    items[1:1] = [rf'"caf\udce9": {one % "x"}', rf'"\ud83d": {one % "x"}']
    items[2:2] = [f'"{"n" * 300}": {one % "x"}']
    raw = folder / "raw.json"
    raw.write_bytes(("{" + ",\n".join([*items, f'"z2": {one % "last"}']) + "}").encode("latin-1"))
    out = folder / "data"
    assert convert.main([str(raw), "--out", str(out)]) == 1
    texts = {video: text for video, (_, (text,)) in captions_of(out).items()}
    assert texts == {
        "b": "first", "dr. who": "bad \ufffd x", "d": "grin \U0001f600", "z": "cut \ufffd",
        "z2": "last",
    }  # fmt: skip
    assert "3 left out: bad_name" in capsys.readouterr().out


def test_files_whose_names_are_not_utf8_are_left_out_and_named(folder: Path) -> None:
    odd = os.fsdecode(b"caf\xe9")
    try:
        (folder / "data" / "videos" / f"{odd}.mp4").touch()
        (folder / "source" / f"{odd}.srt").write_text("1\n0:01 --> 0:02\nx\n")
        (folder / "source" / odd).mkdir()
        (folder / "source" / odd / "y.csv").write_text("begin\n")
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    # A process of its own: its output is strict, that of a test is not.
    line = [str(folder / "source"), "--out", str(folder / "data")]
    run = subprocess.run(
        [sys.executable, "-m", "examples.vttwins.convert", *line], capture_output=True,
        env={**os.environ, "PYTHONUTF8": "1"}, cwd=Path(convert.__file__).parents[2], text=True,
    )  # fmt: skip
    assert run.returncode == 1 and not run.stderr
    assert "6 caption files written" in run.stdout and "3 left out: bad_name" in run.stdout
    assert r"caf\udce9.mp4' is not UTF-8" in run.stdout
    assert len(data.read_column(folder / "data" / "train.csv", "video_path")) == 5


@pytest.mark.parametrize("block", [1, 7, 1 << 20])
def test_items_of_a_large_object_are_read_one_by_one(block: int, tmp_path: Path) -> None:
    content = {"a": {"start": [1.25, 2]}, 'quo"te': [], "Crème": {"x": {"y": None}}, "n": -12.5}
    path = tmp_path / "raw.json"
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
    assert dict(convert.json_items(path, block)) == content
    path.write_text(" {} ")
    assert dict(convert.json_items(path, block)) == {}


def test_the_command_says_what_it_did_and_by_its_code_whether_all_went_well(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(folder / "data")
    assert convert.main([str(folder / "source" / "c.csv"), "--out", out]) == 0
    assert "1 videos with captions" in capsys.readouterr().out
    assert convert.main([str(folder / "source"), "--out", out, "--overwrite"]) == 1
    printed = capsys.readouterr().out
    assert "1 left out: silent" in printed and "1 videos have no captions" in printed
    with pytest.raises(SystemExit, match="nowhere: need a folder or a file of .srt, .vtt"):
        convert.main([str(folder / "nowhere"), "--out", out])
    with (folder / "data" / "train.csv").open(newline="") as file:
        assert next(csv.reader(file)) == ["video_path"]
