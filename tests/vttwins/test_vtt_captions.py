"""Each video has its own captions, in order and without invented words; a batch holds it once."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from examples.vttwins import data, loading
from examples.vttwins.video import VideoError, write_video
from examples.vttwins.words import Vocabulary, tokenize

SHAPE = data.ClipShape(frames=2, fps=5.0, size=16, resize=16)


def write_captions(path: Path, start: list, end: list, text: list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"start": start, "end": end, "text": text}), encoding="utf-8")


def test_captions_come_from_the_same_folder_then_from_the_bare_name(tmp_path: Path) -> None:
    for file in ("a/x.json", "x.json", "y.json", "dr. who.json", "aB3.json"):
        write_captions(tmp_path / file, [0], [1], [file])

    def text_of(video: str) -> str:
        return data.Captions.load(data.caption_path(tmp_path, video)).text[0]

    assert text_of("a/x.mp4") == "a/x.json" and text_of("b/x.mp4") == "x.json"
    assert text_of("cooking/y.webm") == "y.json"
    assert text_of("dr. who.mp4") == "dr. who.json"  # was cut at its first dot
    assert text_of("c/aB3.mp4.webm") == "aB3.json"
    assert data.caption_path(tmp_path, "d/z.mp4") == tmp_path / "d" / "z.json"


def videos_of(names: list[str], captions: Path, **options) -> data.NarratedVideos:
    return data.NarratedVideos(
        names, captions.parent / "videos", captions, Vocabulary(["a"]), SHAPE, **options
    )


def test_two_videos_that_would_share_a_caption_file_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "captions"
    write_captions(root / "x.json", [0], [1], ["whose?"])
    with pytest.raises(ValueError, match=r"x\.json would serve a/x\.mp4 and b/x\.mp4; give each"):
        videos_of(["a/x.mp4", "c/y.mp4", "b/x.mp4"], root)
    with pytest.raises(ValueError, match="x.mp4 and x.webm"):
        videos_of(["x.mp4", "x.webm"], root)
    write_captions(root / "a" / "x.json", [0], [1], ["mine"])
    videos_of(["a/x.mp4", "c/y.mp4", "b/x.mp4"], root)  # one has its own now
    videos_of(["a/y.mp4", "b/y.mp4"], root)  # none has any: each is skipped, with the reason


def test_a_video_listed_twice_would_be_its_own_negative(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 videos are listed more than once, such as 'a.mp4'"):
        videos_of(["a.mp4", "b.mp4", "a.mp4"], tmp_path)


@pytest.mark.parametrize("nothing", ["null", "NaN", '" "', '""'])
def test_a_caption_that_says_nothing_adds_no_word(nothing: str, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text(f'{{"start": [0, 1], "end": [1, 2], "text": [{nothing}, "stir"]}}')
    assert data.Captions.load(path).text == ["", "stir"]
    path.write_text(f'{{"start": [0], "end": [1], "text": [{nothing}]}}')
    with pytest.raises(VideoError) as caught:
        data.Captions.load(path)
    assert caught.value.reason == "silent"


def test_a_caption_may_be_the_word_nan_or_a_number_but_no_list(tmp_path: Path) -> None:
    write_captions(tmp_path / "c.json", [0, 1, 2], [1, 2, 3], ["nan", "None", 5])
    assert data.Captions.load(tmp_path / "c.json").text == ["nan", "None", "5"]
    assert tokenize(None) == tokenize(float("nan")) == tokenize(np.float32("nan")) == []
    assert Vocabulary.from_captions(["nan", None, float("nan")]).words == ["nan"]
    write_captions(tmp_path / "c.json", [0], [1], [["stir"]])
    with pytest.raises(VideoError, match="must be text"):
        data.Captions.load(tmp_path / "c.json")


@given(spans=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=9))
def test_captions_are_taken_in_the_order_of_their_starts(spans: list[tuple[int, int]]) -> None:
    texts = [str(number) for number in range(len(spans))]
    content = {"start": [s for s, _ in spans], "end": [s + d for s, d in spans], "text": texts}
    captions = data.Captions.from_json(content, "captions")
    assert captions.start == sorted(captions.start)
    for start, end, text in zip(captions.start, captions.end, captions.text, strict=True):
        s, d = spans[int(text)]
        assert (start, end) == (s, s + d)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_is_no_part_of_a_caption_file(encoding: str, tmp_path: Path) -> None:
    text = json.dumps({"start": [0], "end": [1], "text": ["Crème"]}, ensure_ascii=False)
    (tmp_path / "c.json").write_text(text, encoding=encoding)
    assert data.Captions.load(tmp_path / "c.json").text == ["Crème"]


def test_a_table_may_have_a_byte_order_mark_blank_lines_and_short_rows(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_bytes(b'\xef\xbb\xbfvideo_path,task\r\n\r\n a.mp4 ,1\r\n"",2\r\nb.mp4\r\n')
    assert data.read_column(path, "video_path") == ["a.mp4", "", "b.mp4"]
    assert data.read_column(path, "task") == ["1", "2", ""]
    path.write_bytes(b"video_path\n\xff\xfe.mp4\n")
    with pytest.raises(ValueError, match="train.csv"):
        data.read_column(path, "video_path")


@pytest.mark.parametrize("code", ["ESTALE", "EIO"])
def test_a_refusal_of_the_file_system_is_a_reason(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    number = getattr(errno, code)

    def refuse(self: Path) -> bytes:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(VideoError) as caught:
        data.Captions.load(tmp_path / "c.json")
    assert caught.value.reason == "unreadable" and os.strerror(number) in str(caught.value)


@pytest.fixture(scope="module")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 videos of 2 s, video k of the tone 10 k, each with captions at 0, 1 and 90 s."""
    root = tmp_path_factory.mktemp("tones")
    (root / "videos").mkdir()
    for k in range(24):
        write_video(root / "videos" / f"{k:02d}.mp4", np.full((10, 16, 16, 3), 10 * k, np.uint8), 5)
        write_captions(
            root / "captions" / f"{k:02d}.json", [0, 1, 90], [1, 60, 99], ["a", "b", "c"]
        )
    return root


NAMES = [f"{k:02d}.mp4" for k in range(24)]


def test_a_caption_past_the_end_costs_the_caption_and_not_the_video(tones: Path) -> None:
    source = data.NarratedVideos(
        NAMES, tones / "videos", tones / "captions", Vocabulary(["a", "b", "c"]), SHAPE, captions=3
    )
    for index in range(6):
        sample = source[0, index]
        assert sample["skipped"] == [] and sample["index"] == index
        assert sample["words"][:, 0].tolist() == [1, 2, 2]  # "c" is not said in this video
        assert abs(sample["video"].float().mean() - 10 * index) < 6


def shown(root: Path, names: list[str], batch: int, workers: int = 0, **where) -> list[dict]:
    source = data.NarratedVideos(
        names, root / "videos", root / "captions", Vocabulary(["a"]), SHAPE, captions=1, batch=batch
    )
    sampler = loading.StepBatches(len(names), batch, steps=12, seed=0, **where)
    if workers:
        return list(loading.loader(source, sampler, workers))
    batches = ([source[address] for address in addresses] for addresses in sampler)
    return [{**loading.collate(b), "index": [sample["index"] for sample in b]} for b in batches]


def test_a_replacement_is_never_in_the_batch_already(tones: Path) -> None:
    names = [name if k % 3 else f"gone{name}" for k, name in enumerate(NAMES)]
    for batch in shown(tones, names, 4):
        assert max(Counter(batch["index"]).values()) == 1
        assert not any("repeated" in why for _, why in batch["skipped"])
        for index, video in zip(batch["index"], batch["video"], strict=True):
            assert index % 3 and abs(video.float().mean() - 10 * index) < 6


def test_replacements_do_not_depend_on_workers_ranks_or_resuming(tones: Path) -> None:
    names = [name if k % 3 else f"gone{name}" for k, name in enumerate(NAMES)]
    whole = shown(tones, names, 4)
    for other in (shown(tones, names, 4, workers=2), shown(tones, names, 4, start=5)):
        assert len(other) in (len(whole), len(whole) - 5)
        for a, b in zip(whole[-len(other) :], other, strict=True):
            assert torch.equal(a["video"], b["video"]) and a["skipped"] == b["skipped"]
    halves = [shown(tones, names, 4, rank=rank, world=2) for rank in range(2)]
    for a, *parts in zip(whole, *halves, strict=True):
        assert torch.equal(a["video"], torch.cat([part["video"] for part in parts]))


def test_where_too_few_videos_can_be_used_the_run_goes_on_and_says_so(tones: Path) -> None:
    names = [name if k < 3 else f"gone{name}" for k, name in enumerate(NAMES)]
    found = shown(tones, names, 8)
    reasons = [why for batch in found for _, why in batch["skipped"]]
    assert any(why.startswith("repeated: too few usable videos") for why in reasons)
    assert any(why.startswith("no_captions: ") and "no such file" in why for why in reasons)


def test_a_row_without_a_path_is_skipped_and_recorded(tones: Path) -> None:
    names = [*NAMES[:5], "", ""]
    found = shown(tones, names, 2)
    reasons = [entry for batch in found for entry in batch["skipped"]]
    assert reasons and all(entry[0] == "" and "no_path" in entry[1] for entry in reasons)
