"""Fine-tuning learns retrieval from lists in the formats of benchmarks, and changes what it may."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from examples.vttwins import checkpoint, finetune, loading, weights
from examples.vttwins.benchmarks.segments import Segment, read_segments
from examples.vttwins.captioned import SegmentSamples, captioned, held_out
from examples.vttwins.data import ClipShape
from examples.vttwins.model import VideoTextModel
from examples.vttwins.steps import learning_rate
from examples.vttwins.video import write_video
from examples.vttwins.words import Vocabulary

pytestmark = [
    pytest.mark.slow,  # the tests share a run
    pytest.mark.usefixtures("narrow"),
]

STEPS = 20


COLORS = {
    "red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "white": (230, 230, 230),
    "yellow": (220, 220, 30),
    "black": (15, 15, 15), "pink": (230, 110, 190), "cyan": (30, 210, 220),
}  # fmt: skip


@pytest.fixture(scope="module")
def colored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 training and 8 test videos of one color each, which the sentence names."""
    root = tmp_path_factory.mktemp("colored")
    rng = np.random.default_rng(0)
    lists = {"train": [], "test": []}
    for k in range(32):
        name, color = list(COLORS.items())[k % 8]
        part = "train" if k < 24 else "test"
        noise = rng.normal(0, 12, (12, 32, 32, 3)) + rng.normal(0, 8)
        pictures = np.clip(np.array(color) + noise, 0, 255).astype(np.uint8)
        (root / "videos").mkdir(exist_ok=True)
        write_video(root / "videos" / f"{part}_{k:05d}.mp4", pictures, 5)
        lists[part].append(f"2.4,0,task,it is {name},{part}_{k:05d}")
    for name, part in (("train_segments.csv", "train"), ("test.csv", "test")):
        text = "\n".join(["end,start,task,text,video_id", *lists[part]])
        (root / name).write_text(text, encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def start(colored: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of weights, and word vectors beside it: one random vector for each word of the set."""
    folder = tmp_path_factory.mktemp("start")
    texts = [s.text for s in read_segments(colored / "test.csv")]
    texts += [s.text for s in read_segments(colored / "train_segments.csv")]
    words = Vocabulary.from_captions(texts).words
    vectors = np.random.default_rng(0).normal(size=(len(words), 16)).round(3)
    rows = [f"{w} {' '.join(map(str, v))}\n" for w, v in zip(words, vectors, strict=True)]
    (folder / "words.txt").write_text("".join(rows), encoding="utf-8")
    torch.manual_seed(0)
    table = F.pad(torch.from_numpy(vectors).float(), (0, 0, 1, 0))
    model = VideoTextModel(
        vocabulary_size=len(table), embedding_dim=16, word_dim=16, word_vectors=table
    )
    # The statistics of BatchNorm must fit the videos, as nothing changes them afterwards.
    samples = SegmentSamples(
        captioned(read_segments(colored / "train_segments.csv")), colored / "videos",
        Vocabulary(words), ClipShape(4, 5.0, 32, 34),
    )  # fmt: skip
    video = torch.cat([samples[0, i]["video"] for i in range(24)]).float() / 255
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm3d)):
        norm.momentum = None
    model.train()
    with torch.no_grad():
        model.encode_video(video)
    weights.export_safetensors(model, folder / "s3d.safetensors")
    return folder


def line(benchmark: str, narrated: Path, start: Path, out: Path, *options: str) -> list[str]:
    return [
        benchmark, "--start", str(start / "s3d.safetensors"), "--data", str(narrated / "videos"),
        "--word-vectors", str(start / "words.txt"), "--out", str(out), "--frames", "4",
        "--fps", "5", "--size", "32", "--resize", "34", "--workers", "0", "--no-tensorboard",
        "--device", "cpu", "--eval-windows", "1", "--learning-rate", "1e-4",
        "--head-rate", "1e-3", *options,
    ]  # fmt: skip


def tuning(colored: Path, start: Path, out: Path, *options: str) -> list[str]:
    lists = ["--train-csv", str(colored / "train_segments.csv")]
    lists += ["--test-csv", str(colored / "test.csv"), "--holdout", "0.1", "--clip-norm", "0"]
    lists += ["--batch", "8", "--frames", "2", *options]
    return line("youcook2", colored, start, out, *lists)


@pytest.fixture(scope="module")
def tuned(colored: Path, start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tuned") / "run"
    command = tuning(colored, start, out)
    finetune.main([*command, "--steps", "5", "--eval-every", "5"])
    finetune.main([*command, "--steps", str(STEPS), "--eval-every", "10"])
    return out


def test_retrieval_is_better_after_than_before(tuned: Path) -> None:
    result = json.loads((tuned / finetune.RESULT).read_text(encoding="utf-8"))
    assert result["steps"] == STEPS and result["after"]["pairs"] == 8
    for way in ("text_to_video", "video_to_text"):
        before, after = (result[when]["cosine"][way]["MeanR"] for when in ("before", "after"))
        assert after < before - 1, (way, before, after)
    table = finetune.table(result)
    assert "8 sentences, 20 steps" in table and "| text to video, cosine |" in table
    losses = [entry["loss"] for entry in checkpoint.read_log(tuned / checkpoint.LOG)]
    assert len(losses) == STEPS and np.mean(losses[-3:]) < np.mean(losses[:3])


def test_statistics_and_word_vectors_stay_and_the_rest_moves(tuned: Path, start: Path) -> None:
    before = weights.read_state_dict(start / "s3d.safetensors")
    after = weights.read_state_dict(tuned / "model.safetensors")
    for name, value in before.items():
        kept = "running" in name or "num_batches" in name or "word_embd" in name
        assert torch.equal(value, after[name]) == kept, name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--eval-windows", "2"], "--eval-windows: 1 then, 2 now"),
        (["--test-csv", "OTHER/test.csv"], "the segments of --test-csv are others"),
        (["--data", "OTHER/videos"], "the test videos in --data are others"),
    ],
)
def test_before_and_after_are_of_the_same_test(
    options: list[str], message: str, tuned: Path, colored: Path, start: Path, tmp_path: Path
) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    shutil.copytree(tuned, run, copy_function=os.link)
    shutil.copytree(colored, other)
    rows = (other / "test.csv").read_text(encoding="utf-8").splitlines()
    (other / "test.csv").write_text("\n".join(rows[:-1]), encoding="utf-8")
    (other / "videos" / "test_00024.mp4").unlink()
    before = {path: path.read_bytes() for path in run.iterdir()}
    options = [option.replace("OTHER", str(other)) for option in options]
    command = tuning(colored, start, run, "--steps", str(STEPS + 1), *options)
    with pytest.raises(SystemExit, match=rf"before the first step, .*\({message}[;)]"):
        finetune.main(command)
    assert {path: path.read_bytes() for path in run.iterdir()} == before
    finetune.main([*command, "--test-csv", ""])  # goes on, and compares nothing
    result = json.loads((run / finetune.RESULT).read_text(encoding="utf-8"))
    assert result["steps"] == STEPS


def test_a_restart_deletes_the_comparison(
    tuned: Path, colored: Path, start: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(tuned, run, copy_function=os.link)
    finetune.main(tuning(colored, start, run, "--test-csv", "", "--steps", "1", "--restart"))
    assert not (run / finetune.RESULT).exists()


@pytest.mark.parametrize("source", ["run", "run/model.safetensors", "link"])
@pytest.mark.parametrize("options", [[], ["--restart"]])
def test_the_run_that_it_starts_from_is_not_deleted(
    source: str, options: list[str], tuned: Path, colored: Path, start: Path, tmp_path: Path
) -> None:
    shutil.copytree(tuned, tmp_path / "run", copy_function=os.link)
    (tmp_path / "run" / checkpoint.LAST).unlink()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    before = sorted(path.name for path in (tmp_path / "run").iterdir())
    words = [] if source.endswith("safetensors") else ["--word-vectors", ""]
    command = tuning(colored, start, tmp_path / "run", *options, *words)
    with pytest.raises(SystemExit, match=r"--start .* is of the run in --out .*another --out"):
        finetune.main([*command, "--start", str(tmp_path / source)])
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_signal_in_the_test_before_or_after_is_the_exit_code_and_the_run_goes_on(
    when: str, number: int, colored: Path, start: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def interrupted(*arguments: object) -> dict:
        nonlocal calls
        calls += 1
        if calls == (1 if when == "before" else 2):
            os.kill(os.getpid(), number)
            time.sleep(5)
        return original(*arguments)

    calls, original = 0, finetune.Retrieval._retrieval
    command = tuning(colored, start, tmp_path / "run", "--steps", "1")
    with monkeypatch.context() as patch:
        patch.setattr(finetune.Retrieval, "_retrieval", interrupted)
        with pytest.raises(SystemExit) as ended:
            finetune.main(command)
    assert ended.value.code == 128 + number
    step = 0 if when == "before" else 1
    assert f"{signal.Signals(number).name}: saved at step {step} of 1" in capsys.readouterr().out
    finetune.main(command)
    result = json.loads((tmp_path / "run" / finetune.RESULT).read_text(encoding="utf-8"))
    assert result.keys() >= {"before", "after", "steps"}


def test_a_worker_that_dies_in_the_test_before_is_said(
    colored: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> dict:
        raise loading.LoadingError("DataLoader worker died; worker 0 has been reading a.mp4")

    monkeypatch.setattr(finetune.Retrieval, "_retrieval", fail)
    with pytest.raises(SystemExit, match=r"^LoadingError: .* has been reading a\.mp4$"):
        finetune.main(tuning(colored, start, tmp_path / "run", "--steps", "1"))


def test_a_clip_that_the_front_end_of_the_start_cannot_take_is_refused(
    colored: Path, start: Path, tmp_path: Path
) -> None:
    table = weights.read_state_dict(start / "s3d.safetensors")["text_module.word_embd.weight"]
    model = VideoTextModel(
        "space_to_depth", vocabulary_size=len(table), embedding_dim=16, word_dim=16,
        word_vectors=table,
    )  # fmt: skip
    weights.export_safetensors(model, tmp_path / "s2d.safetensors")
    command = tuning(colored, start, tmp_path / "run", "--start", str(tmp_path / "s2d.safetensors"))
    with pytest.raises(SystemExit, match="must be even, got size 32, frames 3"):
        finetune.main([*command, "--frames", "3"])
    assert not (tmp_path / "run").exists()


def test_a_test_that_comes_too_late_or_of_unknown_origin_is_refused(
    tuned: Path, colored: Path, start: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(tuned, run, copy_function=os.link)
    command = tuning(colored, start, run, "--steps", str(STEPS + 1))
    (run / finetune.RESULT).unlink()
    with pytest.raises(SystemExit, match="too late to evaluate before the first step"):
        finetune.main(command)
    for text in ('{"before": {}}', "[]", "5", '{"measured": {}}'):
        (run / finetune.RESULT).write_text(text, encoding="utf-8")
        with pytest.raises(SystemExit, match="does not say what it was measured on"):
            finetune.main(command)
    (run / finetune.RESULT).write_text('{"before": {"pairs"', encoding="utf-8")
    with pytest.raises(SystemExit, match=r"finetuning.json is damaged: .* --restart"):
        finetune.main(command)


def test_evaluations_in_between_are_of_videos_held_out(tuned: Path) -> None:
    evaluations = checkpoint.read_log(tuned / checkpoint.EVALUATIONS)
    assert [entry["step"] for entry in evaluations] == [5, 10, 20]
    assert all("R@10" in entry["text_to_video"] for entry in evaluations)


def test_videos_of_msrvtt_have_one_of_their_sentences_an_epoch(
    narrated: Path, start: Path, tmp_path: Path
) -> None:
    spans = read_segments(narrated / "train_segments.csv")
    sentences = [{"video_id": s.video_id, "caption": s.text} for s in spans]
    (tmp_path / "train.json").write_text(json.dumps({"sentences": sentences}), encoding="utf-8")
    ids = [f"train_{i:05d}" for i in range(6)]
    (tmp_path / "ids.csv").write_text("\n".join(["video_id", *ids]), encoding="utf-8")
    test = ["key,vid_key,video_id,sentence", "ret0,a,test_00000,the ring", "ret1,b,test_00001,red"]
    (tmp_path / "test.csv").write_text("\n".join(test), encoding="utf-8")
    lists = ["--train-csv", str(tmp_path / "train.json"), "--train-ids", str(tmp_path / "ids.csv")]
    lists += ["--test-csv", str(tmp_path / "test.csv"), "--batch", "3", "--epochs", "1"]
    finetune.main(line("msrvtt", narrated, start, tmp_path / "run", *lists))
    entries = checkpoint.read_log(tmp_path / "run" / checkpoint.LOG)
    assert len(entries) == 2 and all(math.isfinite(entry["loss"]) for entry in entries)
    result = json.loads((tmp_path / "run" / finetune.RESULT).read_text(encoding="utf-8"))
    assert result["before"]["pairs"] == 2 and result["after"]["unusable"] == {}
    kept = [s for s in spans if s.video_id in ids]
    items = captioned([Segment(s.video_id, 0.0, math.inf, s.text) for s in kept])
    assert len(items) == 6 and len(items[0].texts) >= 6
    vocabulary = Vocabulary.load(tmp_path / "run" / "vocabulary.json")
    samples = SegmentSamples(items, narrated / "videos", vocabulary, ClipShape(4, 5.0, 32, 34))
    drawn = {tuple(samples[epoch, 0]["words"][0].tolist()) for epoch in range(8)}
    own = {tuple(vocabulary.encode(text, 30).tolist()) for text in items[0].texts}
    assert drawn <= own and len(drawn) > 1
    assert torch.equal(samples[1, 0]["video"], samples[1, 0]["video"])
    assert not torch.equal(samples[1, 0]["video"], samples[2, 0]["video"])


def test_the_gradient_of_parts_is_that_of_the_whole() -> None:
    torch.manual_seed(0)
    v, t = (F.normalize(torch.randn(6, 4, dtype=torch.float64), dim=-1) for _ in range(2))
    whole = finetune.info_nce(v, t, slice(None), 0.05)
    parts = [finetune.info_nce(v, t, slice(k, k + 2), 0.05) for k in (0, 2, 4)]
    torch.testing.assert_close(torch.stack(parts).mean(), whole)
    scores = v @ t.T / 0.05
    expected = (scores.logsumexp(0).mean() + scores.logsumexp(1).mean()) / 2 - scores.diag().mean()
    torch.testing.assert_close(whole, expected)


def test_the_defaults_are_those_that_are_stated() -> None:
    settings = finetune.FinetuneSettings(**finetune.PRESETS["msrvtt"], start="run")
    stated = {
        "temperature": 0.05, "learning_rate": 1e-5, "head_rate": 1e-4, "clip_norm": 1.0,
        "batch": 128, "epochs": 20, "frames": 32, "fps": 20.0, "eval_windows": 8,
    }  # fmt: skip
    assert {name: getattr(settings, name) for name in stated} == stated
    youcook2 = finetune.FinetuneSettings(**finetune.PRESETS["youcook2"], start="run")
    assert (youcook2.fps, youcook2.eval_windows) == (10.0, 10)
    rates = [learning_rate(step, 200, settings) for step in range(201)]
    assert rates[0] == 0 and rates[20] == max(rates) == 1e-5 and rates[200] == pytest.approx(0)


def test_videos_held_out_are_a_share_and_never_all() -> None:
    items = captioned([Segment(str(k % 10), k, k + 1.0, "a") for k in range(30)])
    assert len(held_out(items, 0.05, 0)) == 1 and len(held_out(items, 0.25, 0)) == 3
    with pytest.raises(ValueError, match="none is left"):
        held_out(items, 0.95, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--test-csv", "TRAIN"], "8 videos are in the training list and in the test list"),
        (["--test-csv", "nowhere.csv"], "nowhere.csv does not exist; --test-csv names it"),
        (["--word-vectors", ""], "is a file: give its --word-vectors"),
        (["--batch", "999"], "do not fill a batch of 999"),
    ],
)
def test_what_does_not_fit_is_said_in_one_sentence(
    options: list[str], message: str, narrated: Path, start: Path, tmp_path: Path
) -> None:
    train = str(narrated / "train_segments.csv")
    options = [train if option == "TRAIN" else option for option in options]
    with pytest.raises(SystemExit, match=message):
        finetune.main(
            [*line("youcook2", narrated, start, tmp_path / "run", "--train-csv", train), *options]
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--eval-every", "5"], "give holdout"),
        (["--gamma", "0.5"], "unrecognized arguments"),
        (["--holdout", "1"], "holdout must be below 1"),
    ],
)
def test_options_without_a_part_in_it_are_refused(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        finetune.main(["youcook2", "--start", "run", *options])
    assert message in capsys.readouterr().err
