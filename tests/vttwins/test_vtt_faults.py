"""What goes wrong in a run ends it within seconds, loses no step and no file of others."""

from __future__ import annotations

import dataclasses
import json
import math
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_vtt_training import command, launch, losses, wait_for_steps
from torch import Tensor, nn

from examples.vttwins import (
    checkpoint,
    config,
    evaluate,
    loading,
    logs,
    run,
    stopping,
    throughput,
    train,
)
from examples.vttwins.distributed import Place
from examples.vttwins.steps import NotFinite, Stepper

pytestmark = [
    pytest.mark.slow,  # the tests share a run
    pytest.mark.usefixtures("narrow"),
]

ROOT = Path(__file__).resolve().parents[2]


class Files(torch.utils.data.Dataset):
    """Samples of which the third goes wrong in the way that is asked for."""

    def __init__(self, fault: str = "") -> None:
        self.fault = fault

    def __getitem__(self, index: int) -> dict[str, Any]:
        with loading.reading(f"videos/{index}.mp4"):
            if index == 2 and self.fault == "stuck":
                time.sleep(600)
            if index == 2 and self.fault == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if index == 2 and self.fault == "error":
                raise ValueError("no such sample")
        return {"video": torch.ones(1), "words": torch.ones(1), "decode_seconds": 0, "skipped": []}


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        ("stuck", loading.LoadingError, r"within 0.5 s; worker 0 has been reading videos/2.mp4"),
        ("killed", loading.LoadingError, r"DataLoader worker"),
        ("error", ValueError, "no such sample"),
        ("interrupted", KeyboardInterrupt, "^$"),
    ],
)
def test_no_worker_outlives_what_ends_a_stream(
    fault: str, error: type[BaseException], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "PATIENCE", 0.5)
    batches = loading.loader(Files(fault), [[i] for i in range(40)], workers=2, timeout=0.5)
    began = time.monotonic()
    with pytest.raises(error, match=message), loading.stream(batches) as stream:
        for k, _ in enumerate(stream):
            if fault == "interrupted" and k == 1:
                raise KeyboardInterrupt
    assert multiprocessing.active_children() == []
    assert time.monotonic() - began < 10


def test_a_process_ends_with_its_error_whatever_loader_it_uses() -> None:
    code = """if True:
        import torch
        from torch.utils.data import DataLoader
        from examples.vttwins.loading import prepare_worker
        numbers = iter(DataLoader(range(1000), num_workers=2, worker_init_fn=prepare_worker))
        next(numbers)
        raise ArithmeticError("the end")
    """
    line = [sys.executable, "-c", code]
    ended = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1 and "the end" in ended.stderr


def test_a_stop_request_waits_for_the_step_but_not_for_a_batch_nor_twice() -> None:
    former = signal.getsignal(signal.SIGINT)
    with stopping.StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.number == signal.SIGINT
        with pytest.raises(stopping.Stopped):
            os.kill(os.getpid(), signal.SIGTERM)
    with stopping.StopRequest() as stop, pytest.raises(stopping.Stopped), stop.waiting():
        os.kill(os.getpid(), signal.SIGTERM)
    with stopping.StopRequest(grace=1), pytest.raises(stopping.Stopped):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert signal.getsignal(signal.SIGINT) is former


def test_a_rank_that_dies_ends_the_others_and_the_last_step_is_saved(
    narrated: Path, compiled: None, tmp_path: Path
) -> None:
    options = ("--workers", "1", "--steps", "1000", "--save-every", "1000")
    process = launch(command(narrated, tmp_path, *options, processes=2))
    wait_for_steps(tmp_path, 1, process)
    listing = ["ps", "-o", "pid=", "--ppid", str(process.pid)]
    ranks = subprocess.run(listing, capture_output=True, text=True, check=True).stdout.split()
    assert len(ranks) == 2
    began = time.monotonic()
    os.kill(int(ranks[1]), signal.SIGKILL)
    output = process.communicate(timeout=120)[0]
    assert process.returncode != 0 and time.monotonic() - began < 30, output[-3000:]
    assert checkpoint.load_checkpoint(tmp_path)["step"] == len(losses(tmp_path)) >= 1


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc = nn.BatchNorm1d(2), nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(x))


def stepper(**changes: Any) -> Stepper:
    torch.manual_seed(0)
    model = Model()
    optimizer = torch.optim.Adam(model.parameters())
    settings = config.preset("demo", **changes)

    def loss(network: nn.Module, batch: dict[str, Any], number: int) -> Tensor:
        return network(batch["x"]).square().mean()

    return Stepper(model, model, optimizer, loss, settings, Place())


def batch(value: float = 1.0) -> dict[str, Any]:
    x = torch.arange(8.0).reshape(4, 2)
    x[0, 0] = value
    return {"x": x, "skipped": []}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_step_that_is_not_finite_leaves_everything_as_it_was(value: float) -> None:
    takes = stepper()
    takes(0, 0.1, [batch()])
    state = {k: v.clone() for k, v in takes.model.state_dict().items()}
    moments = [v.clone() for s in takes.optimizer.state.values() for v in s.values()]
    takes(1, 0.1, [batch(), batch(value)])
    assert takes.bad == takes.bad_in_a_row == 1
    for name, before in state.items():
        assert torch.equal(takes.model.state_dict()[name], before), name
    after = [v for s in takes.optimizer.state.values() for v in s.values()]
    assert all(torch.equal(a, b) for a, b in zip(after, moments, strict=True))
    takes(2, 0.1, [batch()])
    assert takes.bad == 1 and takes.bad_in_a_row == 0
    assert not torch.equal(takes.model.fc.weight, state["fc.weight"])


def test_several_bad_steps_in_a_row_are_an_error() -> None:
    takes = stepper(bad_steps=3)
    for step in range(2):
        takes(step, 0.1, [batch(math.nan)])
    with pytest.raises(NotFinite, match=r"3 steps in a row.* step 2\. .*--learning-rate"):
        takes(2, 0.1, [batch(math.nan)])


def test_a_bad_step_of_another_rank_is_skipped_on_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    takes = stepper()
    before = takes.model.fc.weight.clone()
    monkeypatch.setattr("examples.vttwins.distributed.mean_over_ranks", lambda x: x / 2)
    takes(0, 0.1, [batch()])
    assert takes.bad == 1 and torch.equal(takes.model.fc.weight, before)


def test_a_run_whose_gradients_overflow_ends_with_an_error(narrated: Path, tmp_path: Path) -> None:
    options = ["--steps", "9", "--warmup", "0", "--learning-rate", "1e30", "--bad-steps", "2"]
    with pytest.raises(SystemExit, match="NotFinite: .* 2 steps in a row"):
        train.main([*command(narrated, tmp_path)[3:], "--workers", "1", *options])
    assert multiprocessing.active_children() == []
    saved = checkpoint.load_checkpoint(tmp_path)
    assert saved["step"] == 2  # the weights are those after step 0; the last is no whole step
    assert all(v.isfinite().all() for v in saved["state_dict"].values())


@pytest.fixture(scope="module")
def ended(narrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps, in folder / "run", on data in folder / "data"."""
    folder = tmp_path_factory.mktemp("ended")
    shutil.copytree(narrated, folder / "data")
    vectors = folder / "vectors.txt"
    rows = [f"{word} {k} 0.5 -1\n" for k, word in enumerate(("red", "ring", "green", "the"))]
    vectors.write_text("".join(rows), encoding="utf-8")
    train.main(short(folder, vectors, "--keep-every", "2", "--eval-every", "2"))
    return folder


def short(folder: Path, vectors: Path, *options: str) -> list[str]:
    line = command(folder / "data", folder / "run", "--workers", "0", "--steps", "4")[3:]
    return [*line, "--word-vectors", str(vectors), "--word-limit", "3", *options]


@pytest.fixture
def copy(ended: Path, tmp_path: Path) -> Path:
    """The run and its data, to be changed; by hard links, so that nothing is written in place."""
    shutil.copytree(ended, tmp_path / "copy", copy_function=os.link)
    return tmp_path / "copy"


def rewrite(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def content(folder: Path) -> dict[str, tuple[int, int, int]]:
    """What tells the files in a folder from others, and whether they were written to."""
    states = ((path, path.stat()) for path in folder.rglob("*") if path.is_file())
    return {str(path): (s.st_ino, s.st_mtime_ns, s.st_size) for path, s in states}


def test_snapshots_are_kept_and_evaluations_written(ended: Path) -> None:
    run = ended / "run"
    snapshots = sorted(run.glob("step-*.pt"))
    assert [path.name for path in snapshots] == ["step-00000002.pt", "step-00000004.pt"]
    assert torch.load(snapshots[0], weights_only=True)["step"] == 2
    evaluations = checkpoint.read_log(run / checkpoint.EVALUATIONS)
    assert [entry["step"] for entry in evaluations] == [2, 4]
    for entry in evaluations:
        for way in ("text_to_video", "video_to_text"):
            assert 0 <= entry[way]["R@1"] <= entry[way]["R@10"] <= 100
    vocabulary = json.loads((run / "vocabulary.json").read_text(encoding="utf-8"))
    assert vocabulary == ["red", "ring", "green"]  # the limit is 3


def test_a_finished_run_goes_on_with_more_steps_and_moved_files(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = copy / "elsewhere.txt"
    (copy / "vectors.txt").rename(moved)
    (copy / "data").rename(copy / "data2")
    listed = (copy / "data2" / "train.csv").read_bytes()
    (copy / "data2" / "all.csv").write_bytes(listed.replace(b"\r\n", b"\n"))
    options = ["--data", str(copy / "data2"), "--train-csv", "all.csv", "--steps", "6"]
    train.main(short(copy, moved, *options))
    output = capsys.readouterr().out
    assert "going on from step 4 of 6" in output
    assert "was to have 4 steps and now has 6" in output and "instead of 0.00e+00" in output
    entries = checkpoint.read_log(copy / "run" / checkpoint.LOG)
    assert [entry["step"] for entry in entries] == list(range(6))
    assert entries[4]["learning_rate"] > 0
    with pytest.raises(SystemExit, match="6 steps, more than the 5"):
        train.main(short(copy, moved, *options, "--steps", "5"))


@pytest.mark.parametrize(
    ("file", "field"), [("vectors.txt", "word_vectors"), ("data/train.csv", "train_csv")]
)
def test_files_with_other_content_do_not_continue_a_run(file: str, field: str, copy: Path) -> None:
    lines = (copy / file).read_text(encoding="utf-8").splitlines(keepends=True)
    rewrite(copy / file, "".join([lines[0], *reversed(lines[1:])]).encode())
    before = content(copy)
    with pytest.raises(SystemExit, match=f"{field}: the content of .* is not what it was"):
        train.main(short(copy, copy / "vectors.txt", "--steps", "6"))
    assert content(copy) == before


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "other"])
def test_a_damaged_checkpoint_is_replaced_by_the_one_before(damage: str, copy: Path) -> None:
    run = copy / "run"
    last = run / checkpoint.LAST
    data = bytearray(last.read_bytes())
    if damage == "other":
        last.unlink()
        torch.save({"step": 4}, last)
    else:
        data[len(data) // 2] ^= 255
        size = {"cut": len(data) // 2, "bit": len(data), "empty": 0}[damage]
        rewrite(last, data[:size])
    with pytest.warns(
        UserWarning, match=r"last.pt is damaged \(.*goes on from .*previous.pt, step 3"
    ):
        saved = checkpoint.load_checkpoint(run)
    assert saved["step"] == 3
    rewrite(run / checkpoint.PREVIOUS, b"")
    with pytest.warns(UserWarning, match=r"previous.pt is damaged .*step-00000004.pt, step 4$"):
        assert checkpoint.load_checkpoint(run)["step"] == 4
    for path in run.glob("step-*.pt"):
        path.unlink()
    with pytest.raises(
        SystemExit, match=r"last.pt is damaged .*previous.pt is damaged .*--restart"
    ):
        train.main(short(copy, copy / "vectors.txt"))


def test_a_restart_deletes_what_the_run_wrote_and_nothing_else(copy: Path) -> None:
    run = copy / "run"
    others = ["notes.txt", "download.2024.tmp", "a.b.123.tmp", "evaluation-notes.json"]
    for name in (*others, "step-best.pt", "skipped-by-hand.jsonl"):
        (run / name).write_text("mine", encoding="utf-8")
    own = ["evaluation.json", "evaluation.md", "last.pt.vttwins-0123abcd.tmp"]
    for name in (*own, "skipped-12.jsonl"):
        (run / name).write_text("the run's", encoding="utf-8")
    (run / "plots").mkdir()
    (run / "plots" / "loss.png").write_bytes(b"mine too")
    listed = (copy / "data" / "train.csv").read_text(encoding="utf-8")
    for name, more in (("twice", "train_00000.mp4\n"), ("shared", "a/train_00000.mp4\n")):
        (copy / "data" / f"{name}.csv").write_text(listed + more, encoding="utf-8")
    before = content(copy)
    line = short(copy, copy / "vectors.txt", "--steps", "1", "--restart")
    for wrong in (
        ["--data", "nowhere"], ["--batch", "99"], ["--weights", str(run / "notes.txt")],
        ["--origin-count", "0"], ["--seed", "99999999999999"],
        ["--train-csv", "twice.csv"], ["--train-csv", "shared.csv"],
        ["--weights", str(run / "model.safetensors")], ["--weights", str(run / "step-00000002.pt")],
    ):  # fmt: skip
        with pytest.raises(SystemExit):
            train.main([*line, *wrong])
        assert content(copy) == before
    train.main(line)
    assert not list(run.glob("step-0*.pt")) and not list(run.glob("skipped-1*.jsonl"))
    assert len(losses(run)) == 1 and not any((run / name).exists() for name in own)
    assert all((run / name).exists() for name in others)
    assert (run / "step-best.pt").exists() and (run / "skipped-by-hand.jsonl").exists()
    assert (run / "plots" / "loss.png").exists()


def test_an_ordinary_start_deletes_its_own_temporary_files_alone(tmp_path: Path) -> None:
    kept = ["movie.tmp", "x.last.pt.123.tmp", "a.vttwins-notes.tmp"]
    for name in (*kept, "last.pt.vttwins-0123abcd.tmp"):
        (tmp_path / name).touch()
    seen = []
    checkpoint.write_atomically(
        tmp_path / "file", lambda file: seen.append(Path(file.name).match(checkpoint.LEFTOVERS))
    )
    assert seen == [True]
    checkpoint.remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, "file"])


def test_weights_that_the_new_run_would_delete_are_refused_without_a_checkpoint_too(
    copy: Path,
) -> None:
    run = copy / "run"
    for name in (checkpoint.LAST, checkpoint.PREVIOUS):
        (run / name).unlink()
    before = content(copy)
    line = short(copy, copy / "vectors.txt", "--weights", str(run / "model.safetensors"))
    with pytest.raises(SystemExit, match="is of the run in --out .*give another --out"):
        train.main(line)
    assert content(copy) == before


def test_a_run_of_which_only_weights_are_left_is_not_written_over(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copy / "run"
    for name in (checkpoint.LAST, checkpoint.PREVIOUS):
        (run / name).unlink()
    line = short(copy, copy / "vectors.txt")
    train.main([*line, "--steps", "5"])  # from the last of the numbered checkpoints
    assert "going on from step 4 of 5" in capsys.readouterr().out and len(losses(run)) == 5
    for path in run.glob("*.pt"):
        path.unlink()
    before = content(run)
    for options in ([], ["--steps", "9"], ["--seed", "4"]):
        with pytest.raises(SystemExit, match=r"holds model.safetensors, which would be lost"):
            train.main([*line, *options])
    assert content(run) == before
    train.main([*line, "--steps", "1", "--restart"])
    assert len(losses(run)) == 1


def test_logs_that_cannot_be_written_lose_no_step(
    narrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = logs.Logs.write

    def fail(self: logs.Logs, entry: dict[str, Any], skipped: list[tuple[str, str]]) -> None:
        if entry["step"] == 2:
            raise OSError("the disk of the logs is gone")
        write(self, entry, skipped)

    monkeypatch.setattr(logs.Logs, "write", fail)
    line = command(narrated, tmp_path, "--workers", "0", "--save-every", "1000")[3:]
    with pytest.raises(SystemExit, match="the disk of the logs is gone"):
        train.main(line)
    saved = checkpoint.load_checkpoint(tmp_path)
    assert saved["step"] == 3  # the step whose line is lacking is whole
    assert {state["step"].item() for state in saved["optimizer"]["state"].values()} == {3}


@pytest.mark.parametrize("name", ["safetensors", "sklearn"])
def test_a_library_that_is_missing_at_the_end_is_told_at_the_start(
    name: str, narrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, name, None)
    if name == "safetensors":
        with pytest.raises(SystemExit, match="need safetensors, which is not installed"):
            train.main(command(narrated, tmp_path / "run", "--workers", "0")[3:])
        assert not (tmp_path / "run").exists()
        return
    line = ["hmdb51", "--weights", str(tmp_path), "--annotation", str(tmp_path)]
    with pytest.raises(SystemExit):
        evaluate.main([*line, "--videos", str(tmp_path)])
    assert "hmdb51 needs scikit-learn, which is not installed" in capsys.readouterr().err


def test_ctrl_c_before_the_first_step_is_no_traceback(
    narrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train.Narration, "model", interrupted)
    with pytest.raises(SystemExit) as ended:
        train.main(command(narrated, tmp_path / "run", "--workers", "0")[3:])
    assert ended.value.code == 130 and capsys.readouterr().err.startswith("Interrupted.")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "nowhere"], "train.csv does not exist; --data is the folder"),
        (["--batch", "9"], "8 videos do not fill a batch of 9"),
        (["--device", "foo"], "--device must be cpu or cuda, got 'foo'"),
    ],
)
def test_throughput_says_what_is_wrong_in_a_sentence(
    options: list[str], message: str, narrated: Path
) -> None:
    with pytest.raises(SystemExit, match=message):
        throughput.main([*command(narrated, Path("unused"))[3:], *options])


def test_throughput_measures_each_part(narrated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    throughput.main(command(narrated, Path("unused"))[3:])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "one step: 2 sequences of 2 clips = 4 clips"
    rows = [line.split() for line in lines[2:6]]
    assert [row[0] for row in rows] == ["decode", "model", "loss", "optimizer"]
    assert sum(float(row[3].rstrip("%")) for row in rows) == pytest.approx(100, abs=0.3)


def test_a_log_of_something_else_is_not_written_over(copy: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / checkpoint.LOG).write_text("precious\n", encoding="utf-8")
    before = content(home)
    with pytest.raises(SystemExit, match=r"holds log.jsonl, which would be lost.* --out\.$"):
        train.main(short(copy, copy / "vectors.txt", "--out", str(home)))
    assert content(home) == before


@pytest.mark.parametrize(("accumulate", "steps"), [(1, 12), (2, 6), (3, 4), (16, 1)])
def test_epochs_are_passes_over_the_videos_whatever_is_accumulated(
    accumulate: int, steps: int, tmp_path: Path
) -> None:
    class Counted(run.Run):  # what the constructor says of the steps, and no more
        def _batches(self, start: int) -> loading.StepBatches:
            raise SystemExit(str(self.steps))

    settings = config.preset(
        "demo", steps=0, epochs=3, batch=2, accumulate=accumulate, out=str(tmp_path)
    )
    task: Any = SimpleNamespace(settings=settings, items=9)
    with pytest.raises(SystemExit, match=f"^{steps}$"):
        Counted(task, Place())


@pytest.mark.parametrize(
    ("settings", "options"),
    [("", ["--restart"])]
    + [(text, options) for text in ('{"a": 4}', "[]", "{") for options in ([], ["--restart"])],
)
def test_a_folder_that_is_no_runs_is_left_alone(
    settings: str, options: list[str], copy: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "log.jsonl").write_text("precious", encoding="utf-8")
    if settings:
        (home / "settings.json").write_text(settings, encoding="utf-8")
    before = content(home)
    with pytest.raises(SystemExit, match=r"another folder with --out|cannot be read"):
        train.main(short(copy, copy / "vectors.txt", "--out", str(home), *options))
    assert content(home) == before


def test_what_goes_on_is_compared_by_content() -> None:
    old = dataclasses.asdict(config.preset("demo", weights="a.pth"))
    new = config.preset("demo", weights="b.pth", workers=3, steps=7)
    assert config.differences(old, new, {"weights": "1"}, {"weights": "1"}) == []
    assert len(config.differences(old, new, {"weights": "1"}, {"weights": "2"})) == 1
    assert len(config.differences(old, new, {}, {"weights": "2"})) == 1  # of an older version
    del old["bad_steps"], old["word_limit"]  # settings that were not there yet
    assert config.differences(old, new, {"weights": "1"}, {"weights": "1"}) == []
