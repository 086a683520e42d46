"""Samples depend on their address alone; nothing that is wrong with a video stops a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from examples.vttwins import data, loading, synthetic
from examples.vttwins.video import VideoError
from examples.vttwins.words import Vocabulary

SHAPE = data.ClipShape(frames=4, fps=5.0, size=16, resize=20)

WORDS = Vocabulary([*synthetic.COLORS, *synthetic.SHAPES, *synthetic.MOTIONS, "too", "late"])


def dataset(root: Path, videos: list[str] | None = None, **options) -> data.NarratedVideos:
    videos = videos or data.read_column(root / "train.csv", "video_path")
    return data.NarratedVideos(
        videos, root / "videos", root / "captions", WORDS, SHAPE,
        **{"captions": 4, **options},
    )  # fmt: skip


def batches(root: Path, workers: int, **options) -> list[dict]:
    source = dataset(root, **options)
    sampler = loading.StepBatches(len(source), batch=2, steps=6, seed=5)
    return list(loading.loader(source, sampler, workers))


def assert_same_batches(a: list[dict], b: list[dict]) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x["video"], y["video"]) and torch.equal(x["words"], y["words"])
        assert x["skipped"] == y["skipped"]


def test_batches_do_not_depend_on_the_number_of_workers(narrated: Path) -> None:
    alone = batches(narrated, 0)
    assert alone[0]["video"].shape == (2, 4, 3, 4, 16, 16)
    assert alone[0]["video"].dtype == torch.uint8 and alone[0]["words"].shape == (2, 4, 20)
    assert alone[0]["video"].float().std() > 10
    for workers in (1, 2):
        assert_same_batches(alone, batches(narrated, workers))
    other = batches(narrated, 0, seed=1)
    assert any(not torch.equal(x["video"], y["video"]) for x, y in zip(alone, other, strict=True))


def test_augmentation_changes_the_crop_but_not_the_window(narrated: Path) -> None:
    cut, middle = dataset(narrated)[0, 1], dataset(narrated, augment=False)[0, 1]
    assert torch.equal(cut["words"], middle["words"])
    assert not torch.equal(cut["video"], middle["video"])


def test_numbers_of_clips_and_captions_may_differ(narrated: Path) -> None:
    sample = dataset(narrated, captions=3, clips=7)[0, 0]
    assert sample["video"].shape[0] == 7 and sample["words"].shape[0] == 3


def test_short_narration_repeats_its_last_caption(narrated: Path) -> None:
    sample = dataset(narrated, captions=12)[0, 0]
    count = len(data.Captions.load(narrated / "captions" / "train_00000.json").text)
    assert count < 12
    assert (sample["words"][count - 1 :] == sample["words"][count - 1]).all()


@given(
    videos=st.integers(4, 40),
    world=st.sampled_from([1, 2, 4]),
    start=st.integers(0, 30),
    seed=st.integers(0, 3),
)
def test_ranks_share_the_batches_of_one_process_and_resuming_changes_nothing(
    videos: int, world: int, start: int, seed: int
) -> None:
    whole = list(loading.StepBatches(videos, 4, 30, 0, seed))
    parts = [list(loading.StepBatches(videos, 4, 30, start, seed, r, world)) for r in range(world)]
    joined = [sum(pieces, []) for pieces in zip(*parts, strict=True)]
    assert joined == whole[start:]
    per_epoch = videos // 4
    for epoch in range(30 // per_epoch):
        seen = sum(whole[epoch * per_epoch : (epoch + 1) * per_epoch], [])
        assert len(set(seen)) == len(seen) and {e for e, _ in seen} == {epoch}


def test_batches_that_cannot_be_made_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fill a batch"):
        loading.StepBatches(3, 4, 10)
    with pytest.raises(ValueError, match="cannot be divided"):
        loading.StepBatches(30, 4, 10, world=3)


def spoil(root: Path) -> dict[str, str]:
    """Damage six of the eight training videos; return the reason expected for each."""
    video, captions = root / "videos", root / "captions"
    (video / "train_00000.mp4").unlink()
    content = (video / "train_00001.mp4").read_bytes()
    (video / "train_00001.mp4").write_bytes(content[: len(content) // 2])
    synthetic.write_video(video / "train_00002.mp4", np.zeros((2, 32, 32, 3), np.uint8), 10)
    late = {"start": [50.0] * 8, "end": [53.0] * 8, "text": ["too late"] * 8}
    (captions / "train_00002.json").write_text(json.dumps(late), encoding="utf-8")
    silence = {"start": [], "end": [], "text": []}
    (captions / "train_00003.json").write_text(json.dumps(silence), encoding="utf-8")
    (captions / "train_00004.json").unlink()
    (captions / "train_00005.json").write_text('{"start": [1', encoding="utf-8")
    return {
        "train_00000.mp4": "missing",
        "train_00001.mp4": "broken",
        "train_00002.mp4": "short",
        "train_00003.mp4": "silent",
        "train_00004.mp4": "no_captions",
        "train_00005.mp4": "bad_captions",
    }


def test_unusable_videos_are_counted_and_replaced_whatever_the_workers(
    narrated: Path, tmp_path: Path
) -> None:
    root = tmp_path / "spoiled"
    shutil.copytree(narrated, root)
    reasons = spoil(root)
    found = batches(root, 0)
    entries = [entry for batch in found for entry in batch["skipped"]]
    assert {video: why.split(":")[0] for video, why in entries if "repeated" not in why} == reasons
    assert (
        "nothing at 50.00 s, its first caption; the video ends at 0.20"
        in dict(entries)["train_00002.mp4"]
    )
    assert all(batch["video"].float().std() > 10 for batch in found)
    assert_same_batches(found, batches(root, 2))


def test_a_wrong_folder_is_an_error_and_not_an_endless_search(narrated: Path) -> None:
    source = data.NarratedVideos(
        ["a.mp4"], narrated / "nowhere", narrated / "captions", Vocabulary(["a"]), SHAPE
    )
    with pytest.raises(RuntimeError, match="nowhere"):
        source[0, 0]


@pytest.mark.parametrize(
    "content",
    ["[]", '{"start": [0]}', '{"start": [0], "end": [1, 2], "text": ["a"]}',
     '{"start": [NaN], "end": [1], "text": ["a"]}', '{"start": [null], "end": [1], "text": [1]}',
     '{"start": [0], "end": [1e300], "text": ["a"]}', "[" * 100_000,
     '{"start": [1' + "0" * 400 + '], "end": [1], "text": ["a"]}'],
    ids=lambda content: content[:40],
)  # fmt: skip
def test_malformed_captions_are_recognized(content: str, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(content, encoding="utf-8")
    with pytest.raises(VideoError) as caught:
        data.Captions.load(tmp_path / "c.json")
    assert caught.value.reason == "bad_captions"


def test_crop_keeps_the_size_flips_and_pads_small_pictures() -> None:
    pictures = np.arange(2 * 6 * 9 * 3, dtype=np.uint8).reshape(2, 6, 9, 3)
    assert np.array_equal(data.crop(pictures, 6, across=0.0), pictures[:, :, :6])
    assert np.array_equal(data.crop(pictures, 6, across=1.0), pictures[:, :, 3:])
    assert np.array_equal(data.crop(pictures, 6, 0.0, flip=True), pictures[:, :, 5::-1])
    padded = data.crop(pictures, 8)
    assert padded.shape == (2, 8, 8, 3) and not padded[:, 0].any() and not padded[:, -1].any()
    clip = data.to_clip(pictures, 5)
    assert clip.shape == (3, 5, 6, 9) and not clip[:, 2:].any()
    one = data.crop(pictures[:1], 1, across=0.0, down=0.0, flip=True)
    assert data.to_clip(one, 1).flatten().tolist() == pictures[0, 0, 0].tolist()


def test_the_generator_writes_the_same_set_whatever_the_workers(tmp_path: Path) -> None:
    world = synthetic.World(
        tasks=2, steps_per_task=3, train_videos=3, size=32, step_seconds=0.5, shortest=2
    )
    for workers in (1, 2):
        synthetic.generate(world, tmp_path / str(workers), workers)
    files = sorted(p.relative_to(tmp_path / "1") for p in (tmp_path / "1").rglob("*.*"))
    assert len(files) == 17
    for file in files:
        assert (tmp_path / "1" / file).read_bytes() == (tmp_path / "2" / file).read_bytes(), file


SMALL = [
    "--tasks",
    "1",
    "--steps-per-task",
    "2",
    "--train-videos",
    "2",
    "--size",
    "16",
    "--step-seconds",
    "0.2",
    "--workers",
    "1",
]


@pytest.mark.parametrize("marker", [None, "[]", '{"format": "json"}', "{"])
def test_the_generator_leaves_the_files_of_others_alone(marker: str | None, tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("video_path\nmine.mp4\n", encoding="utf-8")
    if marker is not None:
        (tmp_path / "world.json").write_text(marker, encoding="utf-8")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(SystemExit, match="holds no generated set; give another --out"):
        synthetic.main(["--out", str(tmp_path), *SMALL])
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_interrupted_generation_is_done_again_and_another_world_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(synthetic, "write_crosstask_tasks", interrupt)
        with pytest.raises(SystemExit) as ended:
            synthetic.main(["--out", str(tmp_path), *SMALL])
        assert ended.value.code == 130 and not (tmp_path / "world.json").exists()
    for seed in ("0", "0", "1"):
        synthetic.main(["--out", str(tmp_path), *SMALL, "--seed", seed])
        assert json.loads((tmp_path / "world.json").read_text())["seed"] == int(seed)
        assert not (tmp_path / "generating.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tasks", "40"], "40 tasks of 10 distinct steps are too many; give fewer"),
        (["--tasks", "0"], "tasks must be at least 1, got 0"),
        (["--steps-per-task", "0"], "steps_per_task must be at least 1, got 0"),
        (["--size", "63"], "size must be even"),
        (["--size", "0"], "size must be at least 2"),
        (["--fps", "0"], "fps must be at least 1"),
        (["--step-seconds", "0.01"], "step_seconds must be at least 0.1"),
        (["--chatter", "1.5"], "chatter must be at least 0 and at most 1"),
        (["--seed", "-1"], "seed must be at least 0"),
    ],
)
def test_a_world_that_cannot_be_is_refused_in_a_sentence(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        synthetic.main(["--out", str(tmp_path / "out"), *options])
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_a_set_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match=r"(NotADirectory|FileExists)Error: .*file"):
        synthetic.main(["--out", str(tmp_path / "file"), *SMALL])
    with pytest.raises(SystemExit, match=r"NotADirectoryError: .*file"):
        synthetic.main(["--out", str(tmp_path / "file" / "set"), *SMALL])


def test_narration_is_weakly_aligned_and_test_captions_are_distinct() -> None:
    world = synthetic.World()
    steps = world.steps()
    assert len({step for task in steps for step in task}) == 120
    rng = np.random.default_rng(0)
    chatter = exact = 0
    for _ in range(200):
        for step, text in zip(steps[0], synthetic.narrate(steps[0], world, rng)[0], strict=True):
            chatter += text in synthetic.CHATTER
            exact += all(word in text.split() for word in step)
    assert 0.25 < chatter / 2000 < 0.35  # 3 in 10
    assert 0.15 < exact / 2000 < 0.45  # a third of the videos is in time, before swaps and chatter
