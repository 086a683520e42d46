"""Runs of the real train script: killed and resumed, stopped, on two processes, then evaluated."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import Forked, run_ranks, run_script
from helpers import Forks

from examples.vttwins import (
    checkpoint,
    config,
    evaluate,
    finetune,
    pictures,
    search,
    steps,
    synthetic,
    train,
)
from examples.vttwins.words import Vocabulary

pytestmark = [
    pytest.mark.slow,  # the tests share one run
    pytest.mark.usefixtures("narrow"),
]

ROOT = Path(__file__).resolve().parents[2]
STEPS = 12
SMALL = [
    "--steps", str(STEPS), "--batch", "2", "--clips", "2", "--captions", "3", "--frames", "4",
    "--fps", "5", "--size", "32", "--resize", "34", "--warmup", "2", "--embedding-dim", "16",
    "--threads", "1", "--save-every", "1", "--no-tensorboard", "--device", "cpu",
    "--eval-every", "0",
]  # fmt: skip


def command(data: Path, out: Path, *options: str, processes: int = 1) -> list[str]:
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
        start += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    line = ["-m", "examples.vttwins.train", "demo", "--data", str(data), "--out", str(out)]
    return [*start, *line, *SMALL, *options]


def launch(line: list[str]) -> subprocess.Popen[str]:
    """The command itself, in an interpreter of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.Popen(
        line, cwd=ROOT, env=environment, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def finish(process: subprocess.Popen[str] | Forked, code: int = 0) -> str:
    try:
        output, _ = process.communicate(timeout=900)
    finally:
        process.kill()
    assert process.returncode == code, output[-3000:]
    return output


def losses(out: Path) -> list[float]:
    entries = checkpoint.read_log(out / checkpoint.LOG)
    assert [entry["step"] for entry in entries] == list(range(len(entries)))
    return [entry["loss"] for entry in entries]


def wait_for_steps(out: Path, count: int, process: subprocess.Popen[str] | Forked) -> None:
    limit = time.monotonic() + 600
    while len(checkpoint.read_log(out / checkpoint.LOG)) < count:
        assert process.poll() is None, process.communicate()[0][-3000:]
        assert time.monotonic() < limit, "the run does not advance"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def flawed(narrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The narrated set without one of its videos, so that replacing is part of every run."""
    root = tmp_path_factory.mktemp("flawed") / "data"
    shutil.copytree(narrated, root)
    (root / "videos" / "train_00003.mp4").unlink()
    return root


@pytest.fixture(scope="module")
def whole(flawed: Path, compiled: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run, in this process."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    threads = torch.get_num_threads()
    try:
        train.main(command(flawed, out, "--workers", "0", "--save-every", "1000")[3:])
    finally:
        torch.set_num_threads(threads)
    assert len(losses(out)) == STEPS
    skipped = checkpoint.read_log(out / "skipped-0.jsonl")
    assert len(skipped) == 3  # once in each epoch
    return out


def test_a_run_killed_and_stopped_again_and_again_continues_to_the_same_losses(
    flawed: Path, whole: Path, tmp_path: Path
) -> None:
    out, done = tmp_path / "run", 0
    for number, save_every in ((signal.SIGKILL, 1), (signal.SIGINT, 1000), (signal.SIGTERM, 1000)):
        line = command(flawed, out, "--workers", "1", "--save-every", str(save_every))
        process = Forked(partial(train.main, line[3:]))
        # Two rounds of one step and the step under way leave room before the last step.
        wait_for_steps(out, done + (2 if number == signal.SIGKILL else 1), process)
        began = time.monotonic()
        # To the whole group, as Ctrl-C in a terminal and torchrun send it.
        os.killpg(process.pid, number)
        if number == signal.SIGKILL:
            process.communicate()
        else:
            assert f"{number.name}: saved at step" in finish(process, 128 + number)
            assert time.monotonic() - began < 30
            assert len(losses(out)) == checkpoint.load_checkpoint(out)["step"]
        done = len(losses(out))
        assert done < STEPS
    last = Forked(partial(train.main, line[3:]))
    assert f"going on from step {done} of {STEPS}" in finish(last)
    print("uninterrupted:", losses(whole), "with interruptions:", losses(out), sep="\n")
    assert losses(out) == losses(whole)
    a, b = (torch.load(folder / checkpoint.LAST, weights_only=True) for folder in (whole, out))
    for name, value in a["state_dict"].items():
        assert torch.equal(value, b["state_dict"][name]), name
    assert not list(out.glob("*.tmp"))
    first, second = (checkpoint.read_log(folder / "skipped-0.jsonl") for folder in (whole, out))
    assert first == second


def test_two_processes_take_the_step_of_one(
    narrated: Path, compiled: None, ranks: Forks, tmp_path: Path
) -> None:
    # In float64, as BatchNorm over few clips magnifies the rounding of float32 to 1e-4, and one
    # step, as Adam turns the rounding of gradients near 0 into whole steps.
    options = ("--workers", "0", "--cross-rank-bn", "--steps", "1", "--accumulate", "2")
    script = Path(__file__).with_name("narrow.py")
    one_alone, two_together = (command(narrated, tmp_path / k, *options)[3:] for k in ("1", "2"))
    finish(Forked(partial(run_script, script, *one_alone)))
    # As torchrun would start them, which test_vtt_faults does.
    run_ranks(ranks, script, *two_together)
    (one,), (two,) = (checkpoint.read_log(tmp_path / k / checkpoint.LOG) for k in ("1", "2"))
    for name in ("loss", "gradient_norm", "learning_rate"):
        assert two[name] == pytest.approx(one[name], rel=1e-6), name


def test_other_settings_do_not_continue_a_run_and_leave_it_as_it_was(
    flawed: Path, whole: Path
) -> None:
    before = {path: path.read_bytes() for path in whole.iterdir() if path.is_file()}
    arguments = command(flawed, whole, "--gamma", "0.3")[3:]
    with pytest.raises(SystemExit, match="gamma: 0.1 then, 0.3 now"):
        train.main(arguments)
    assert {path: path.read_bytes() for path in whole.iterdir() if path.is_file()} == before


def test_a_vocabulary_without_its_checkpoint_is_written_anew(flawed: Path, tmp_path: Path) -> None:
    # A run killed before its first checkpoint may have had other captions, or half a file.
    (tmp_path / "vocabulary.json").write_text('["half a li', encoding="utf-8")
    line = command(flawed, tmp_path, "--workers", "0", "--steps", "1")[3:]
    threads = torch.get_num_threads()
    try:
        train.main(line)
    finally:
        torch.set_num_threads(threads)
    assert "red" in Vocabulary.load(tmp_path / "vocabulary.json").ids


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "nowhere"], "train.csv does not exist; --data is the folder"),
        (["--train-csv", "tenth.csv"], "tenth.csv does not exist"),
        (["--word-vectors", "none.bin"], "none.bin does not exist"),
        (["--weights", "none.pth"], "none.pth does not exist"),
        (["--batch", "9"], "8 videos do not fill a batch of 9"),
        (["--device", "foo"], "--device must be cpu or cuda, got 'foo'"),
        (["--device", "cuda:99"], r"no cuda:99: there are \d+ CUDA devices"),
    ],
)
def test_what_is_missing_is_said_in_one_sentence(
    options: list[str], message: str, flawed: Path, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match=message):
        train.main([*command(flawed, tmp_path)[3:], *options])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--operator", "dtw"], "invalid choice: 'dtw'"),
        (["--batch", "0"], "batch must be at least 1, got 0"),
        (["--batch", "1"], "batch must be at least 2 for a contrast"),
        (["--frames", "many"], "invalid int value: 'many'"),
        (["--origin-count", "0"], "origin_count must be at least 1, got 0"),
        (["--seed", "-1"], "seed must be at least 0, got -1"),
        (["--seed", "99999999999999"], "seed must be at most 1000000000000, got 99999999999999"),
        (["--clips", "16"], "tda takes at most 12 clips or captions"),
        (["--gama", "1"], "unrecognized arguments: --gama"),
    ],
)
def test_a_wrong_flag_is_named(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        train.main(["demo", *options])
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) <= 3


def test_a_finished_run_is_evaluated_and_drawn(
    whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate.main([str(whole), "--windows", "2", "--workers", "0"])
    assert "16 sentences, 16 segments; chance R@10 is 62.5 %" in capsys.readouterr().out
    result = json.loads((whole / "evaluation.json").read_text(encoding="utf-8"))
    assert result["pairs"] == 16 and result["unusable"] == {}
    for direction in ("text_to_video", "video_to_text"):
        assert 0 <= result[direction]["R@1"] <= result[direction]["R@10"] <= 100
    pictures.main([str(whole)])
    for name in ("loss.png", "alignment.png"):
        assert (whole / name).read_bytes().startswith(b"\x89PNG")


def test_the_largest_seed_has_numbers_for_the_augmentation() -> None:
    task = object.__new__(train.Narration)
    task.settings = config.preset("demo", seed=config.LARGEST_SEED, batch=3)
    assert task.uniform(10**9).shape == (2, 3)


def test_the_presets_hold_the_papers_hyperparameters() -> None:
    paper = dataclasses.asdict(config.preset("paper"))
    stated = {
        "front_end": "plain", "embedding_dim": 512, "clips": 8, "captions": 8, "frames": 16,
        "fps": 5.0, "size": 224, "operator": "s2dtw", "cost": "shifted_cosine", "gamma": 0.1,
        "dummy_cost": 0.5, "contrastive": True, "direction": "t2v", "temperature": 1.0,
        "tda": True, "tda_tau": 0.02, "epochs": 300, "steps": 0, "learning_rate": 1e-3,
        "warmup_from": 1e-5, "warmup": 100_000, "cross_rank_bn": False,
    }  # fmt: skip
    assert {name: paper[name] for name in stated} == stated
    ablation = dataclasses.asdict(config.preset("ablation"))
    assert {n for n in paper if paper[n] != ablation[n]} == {"epochs", "out", "warmup"}
    assert ablation["epochs"] == 100
    # A tenth of HowTo100M's 1.2 million videos.
    assert ablation["warmup"] < 0.2 * 100 * (120_000 // ablation["batch"])
    release = dataclasses.asdict(config.preset("release"))
    changed = {n: release[n] for n in paper if paper[n] != release[n] and n != "out"}
    assert changed == {"origin_count": 3, "resize": 0, "tda": False}


def test_learning_rate_warms_up_then_anneals() -> None:
    settings = config.preset("paper", warmup=10)
    rates = [steps.learning_rate(step, 110, settings) for step in range(111)]
    assert rates[0] == settings.warmup_from == 1e-5
    assert rates[10] == settings.learning_rate == 1e-3
    assert rates[5] == pytest.approx((1e-5 + 1e-3) / 2)
    assert rates[60] == pytest.approx(0.5e-3) and rates[110] == pytest.approx(0)
    assert rates[:11] == sorted(rates[:11]) and rates[10:] == sorted(rates[10:], reverse=True)


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    checkpoint.write_atomically(path, lambda file: file.write(b"old"))

    def fail(file) -> None:
        file.write(b"new, and incompl")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoint.write_atomically(path, fail)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("end", ['{"st', "5\n", "[]\n"])
def test_a_log_cut_by_a_kill_is_repaired(end: str, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 0}\n{"step": 1}\n{"step": 2}\n' + end, encoding="utf-8")
    log = checkpoint.Log(path, step=2)
    log.write({"step": 2})
    log.close()
    assert [entry["step"] for entry in checkpoint.read_log(path)] == [0, 1, 2]


@pytest.fixture(scope="module")
def word_vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small word2vec text file of the generator's words."""
    path = tmp_path_factory.mktemp("words") / "vectors.txt"
    words = [*synthetic.COLORS, *synthetic.SHAPES, *synthetic.MOTIONS, "the"]
    table = np.random.default_rng(0).normal(size=(len(words), 8)).round(3)
    rows = [f"{w} {' '.join(map(str, v))}\n" for w, v in zip(words, table, strict=True)]
    path.write_text(f"{len(words)} 8\n" + "".join(rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "options",
    [
        ["--front-end", "space_to_depth", "--bf16", "--clip-norm", "0.1"],
        ["--operator", "mil_nce", "--no-tda", "--direction", "t2v", "--word-vectors", "WORDS"],
        ["--no-contrastive", "--cost", "cosine", "--operator", "weak", "--origin-count", "3"],
        ["--accumulate", "2", "--operator", "soft_dtw", "--tensorboard"],
        ["--compile", "--bf16", "--cross-rank-bn", "--operator", "smoothed"],
    ],
    ids=lambda options: " ".join(options),
)
def test_every_option_trains_and_survives_unusable_videos(
    options: list[str],
    narrated: Path,
    word_vectors: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # torch's own backend would take minutes and a C++ compiler for the whole S3D.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    root, out = tmp_path / "data", tmp_path / "run"
    shutil.copytree(narrated, root)
    (root / "videos" / "train_00000.mp4").unlink()
    (root / "captions" / "train_00001.json").write_text("{", encoding="utf-8")
    options = [str(word_vectors) if option == "WORDS" else option for option in options]
    handler = signal.getsignal(signal.SIGTERM)
    threads = torch.get_num_threads()
    line = command(root, out, "--workers", "0", "--save-every", "2", *options, "--steps", "4")[3:]
    try:
        train.main(line)
    finally:
        torch.set_num_threads(threads)
    assert signal.getsignal(signal.SIGTERM) is handler
    entries = checkpoint.read_log(out / checkpoint.LOG)
    assert len(entries) == 4 and all(np.isfinite(entry["loss"]) for entry in entries)
    skipped = checkpoint.read_log(out / "skipped-0.jsonl")
    reasons = {entry["reason"].split(":")[0] for entry in skipped}
    assert reasons == {"missing", "bad_captions"}
    assert entries[-1]["skipped"] == len(skipped)
    assert (out / "tensorboard").exists() == ("--tensorboard" in options)
    model, vocabulary, _, _ = evaluate.load_run(out)
    assert model.text_module.word_embd.num_embeddings == len(vocabulary)


OTHER_WORDS = "vocabulary.json has as many words as the model of .*, but they are not those"


@pytest.mark.parametrize("kept", [checkpoint.LAST, checkpoint.WEIGHTS])
def test_as_many_other_words_are_told_from_those_trained_with(
    kept: str, narrated: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    train.main([*command(narrated, out)[3:], "--workers", "0", "--steps", "1"])
    for name in {checkpoint.LAST, checkpoint.WEIGHTS} - {kept}:
        (out / name).unlink()
    trained_with = Vocabulary.load(out / "vocabulary.json")
    assert evaluate.load_run(out)[1].words == trained_with.words
    tuning = ["youcook2", "--start", str(out), "--data", str(narrated / "videos")]
    tuning += ["--train-csv", str(narrated / "train_segments.csv"), "--out", str(tmp_path / "t")]
    tuning += ["--batch", "4"]
    benchmark = ["youcook2", "--checkpoint", str(out / kept), "--out", str(tmp_path)]
    benchmark += ["--annotation", str(narrated / "test.csv"), "--videos", str(narrated / "videos")]
    Vocabulary(trained_with.words[::-1]).save(out / "vocabulary.json")
    for run in (
        lambda: evaluate.main([str(out), "--device", "cpu"]),
        lambda: evaluate.main([*benchmark, "--device", "cpu"]),
        lambda: search.main([str(out), "red", str(narrated / "videos"), "--device", "cpu"]),
        lambda: pictures.main([str(out)]),
        lambda: finetune.main([*tuning, "--device", "cpu"]),
    ):
        with pytest.raises(SystemExit, match=OTHER_WORDS):
            run()
    assert not (tmp_path / "t").exists()


def test_weights_of_as_many_other_words_do_not_begin_a_run(narrated: Path, tmp_path: Path) -> None:
    first = [*command(narrated, tmp_path / "run")[3:], "--workers", "0", "--steps", "1"]
    train.main(first)
    other = tmp_path / "other"
    shutil.copytree(narrated, other)
    for path in (other / "captions").iterdir():
        text = path.read_text(encoding="utf-8").replace("ring", "rings").replace("red", "reddish")
        path.write_text(text, encoding="utf-8")
    second = [*command(other, tmp_path / "second")[3:], "--workers", "0", "--steps", "1"]
    second += ["--weights", str(tmp_path / "run" / checkpoint.WEIGHTS)]
    with pytest.raises(SystemExit, match="the vocabulary of the captions has as many words"):
        train.main(second)
    assert not (tmp_path / "second").exists()
    second[second.index("--data") + 1] = str(narrated)
    train.main(second)
