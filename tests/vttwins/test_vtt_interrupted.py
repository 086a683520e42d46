"""Signals that come at a bad time cost no step, and what is printed is what is on disk."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from test_vtt_training import command, losses

from examples.vttwins import checkpoint, evaluate, run, steps, stopping, train
from examples.vttwins.words import Vocabulary

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("narrow"),
]


def line(data: Path, out: Path, *options: str) -> list[str]:
    return [
        *command(data, out)[3:],
        "--workers",
        "0",
        "--steps",
        "4",
        "--save-every",
        "1000",
        *options,
    ]


def interrupted(arguments: list[str], number: int) -> None:
    """The train script, in this process, up to a signal."""
    with pytest.raises(SystemExit) as ended:
        train.main(arguments)
    assert ended.value.code == 128 + number


def send(number: int) -> None:
    """A signal to this process, which has it when this returns."""
    os.kill(os.getpid(), number)
    time.sleep(0.01)


def twice() -> None:
    send(signal.SIGINT)
    send(signal.SIGINT)


def before(function: Callable[..., Any], act: Callable[[], None], call: int = 1) -> Any:
    """The function, which acts before one of its calls."""
    count = 0

    def wrapped(*arguments: Any, **named: Any) -> Any:
        nonlocal count
        count += 1
        if count == call:
            act()
        return function(*arguments, **named)

    return wrapped


@pytest.fixture
def stopped_in_step_3(monkeypatch: pytest.MonkeyPatch) -> None:
    loss = before(train.batch_loss, lambda: send(signal.SIGINT), call=3)
    monkeypatch.setattr(train, "batch_loss", loss)


@pytest.mark.usefixtures("stopped_in_step_3")
@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_during_the_save_does_not_destroy_it(
    times: int, narrated: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    act = twice if times == 2 else lambda: send(signal.SIGINT)
    monkeypatch.setattr(torch, "save", before(torch.save, act))
    interrupted(line(narrated, tmp_path), signal.SIGINT)
    assert "SIGINT: saved at step 3 of 4" in capsys.readouterr().out
    assert checkpoint.load_checkpoint(tmp_path)["step"] == len(losses(tmp_path)) == 3


@pytest.mark.usefixtures("stopped_in_step_3")
def test_the_end_of_the_grace_does_not_destroy_a_save(
    narrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "StopRequest", partial(stopping.StopRequest, grace=1))
    monkeypatch.setattr(torch, "save", before(torch.save, lambda: time.sleep(1.2)))
    interrupted(line(narrated, tmp_path), signal.SIGINT)
    assert checkpoint.load_checkpoint(tmp_path)["step"] == 3


@pytest.mark.usefixtures("stopped_in_step_3")
def test_a_second_ctrl_c_in_an_update_of_the_weights_loses_no_step(
    narrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = before(torch.optim.Adam.step, lambda: send(signal.SIGINT), call=3)
    monkeypatch.setattr(torch.optim.Adam, "step", update)
    interrupted(line(narrated, tmp_path), signal.SIGINT)
    assert checkpoint.load_checkpoint(tmp_path)["step"] == 3


def test_a_third_ctrl_c_does_not_disturb_the_rescue_of_the_last_step(
    narrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "batch_loss", before(train.batch_loss, twice, call=3))
    # The rescue begins with this call.
    undo = before(steps.Stepper.undo, lambda: send(signal.SIGINT))
    monkeypatch.setattr(steps.Stepper, "undo", undo)
    interrupted(line(narrated, tmp_path), signal.SIGINT)
    assert checkpoint.load_checkpoint(tmp_path)["step"] == 2


@pytest.mark.parametrize(
    ("save_every", "message"),
    [
        ("2", "SIGINT: step 3 of 4 is not saved; the last checkpoint in OUT is of step 2"),
        ("1000", "SIGINT: step 3 of 4 is not saved; there is no checkpoint in OUT"),
    ],
)
def test_what_could_not_be_saved_is_said(
    save_every: str, message: str, narrated: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def full() -> None:
        raise OSError("no space left")

    monkeypatch.setattr(train, "batch_loss", before(train.batch_loss, twice, call=4))
    rescue = 2 if save_every == "2" else 1  # which of the saves it is
    monkeypatch.setattr(torch, "save", before(torch.save, full, call=rescue))
    interrupted(line(narrated, tmp_path, "--save-every", save_every), signal.SIGINT)
    output = capsys.readouterr().out
    assert "could not be saved: OSError('no space left')" in output
    assert message.replace("OUT", str(tmp_path)) in output


@pytest.mark.parametrize(("function", "call"), [("evaluate", 1), ("batch_loss", 2)])
@pytest.mark.parametrize("length", [2, 4])
def test_an_evaluation_that_an_interruption_left_out_is_made_up(
    function: str, call: int, length: int, narrated: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    module = evaluate if function == "evaluate" else train
    arguments = line(narrated, tmp_path, "--eval-every", "2", "--steps", str(length))
    with monkeypatch.context() as patch:
        act = before(getattr(module, function), lambda: send(signal.SIGINT), call)
        patch.setattr(module, function, act)
        interrupted(arguments, signal.SIGINT)
    assert checkpoint.load_checkpoint(tmp_path)["step"] == 2
    expected = list(range(2, length + 1, 2))
    for _ in range(2):  # the second time nothing is left to do
        train.main(arguments)
        evaluations = checkpoint.read_log(tmp_path / checkpoint.EVALUATIONS)
        assert [entry["step"] for entry in evaluations] == expected


@pytest.mark.parametrize("workers", ["0", "1"])
def test_where_no_video_can_be_used_a_run_ends_in_a_sentence(
    workers: str, narrated: Path, tmp_path: Path
) -> None:
    shutil.copytree(narrated, tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "videos")
    (tmp_path / "data" / "videos").mkdir()
    with pytest.raises(SystemExit) as ended:
        train.main(line(tmp_path / "data", tmp_path / "run", "--workers", workers))
    message = str(ended.value.code)
    assert message.startswith("LoadingError: 8 videos in a row cannot be used")
    assert "Is " in message and "Traceback" not in message


def test_a_full_disk_is_named(
    narrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def save(content: dict[str, Any], file: Any) -> None:
        """As torch.save, whose own error hides that of the disk."""
        if content["step"] < 4:
            return original(content, file)
        with open("/dev/full", "wb", buffering=0) as file.file:
            try:
                file.write(b"content")
            except OSError:
                raise RuntimeError("[enforce fail at inline_container.cc] unexpected pos") from None

    original = torch.save
    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(SystemExit, match=rf"the disk of {tmp_path} is full.*last\.pt"):
        train.main(line(narrated, tmp_path, "--save-every", "2"))
    assert "step 4 of 4 is not saved; the last checkpoint" in capsys.readouterr().out
    assert checkpoint.load_checkpoint(tmp_path)["step"] == 2
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("words", [["red"], None])
def test_words_of_another_run_do_not_continue_one(
    words: list[str] | None, narrated: Path, tmp_path: Path
) -> None:
    train.main(line(narrated, tmp_path, "--steps", "1"))
    path = tmp_path / "vocabulary.json"
    own = Vocabulary.load(path)
    Vocabulary(words or own.words[::-1]).save(path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(SystemExit, match=r"vocabulary.json has .* give --restart to begin anew"):
        train.main(line(narrated, tmp_path, "--steps", "2"))
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    own.save(path)
    train.main(line(narrated, tmp_path, "--steps", "2"))


def test_a_copy_without_times_is_evaluated_with_the_last_weights(
    narrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train.main(line(narrated, tmp_path / "run", "--steps", "2"))
    assert (tmp_path / "run" / "model.safetensors").exists()
    loss = before(train.batch_loss, lambda: send(signal.SIGINT))
    monkeypatch.setattr(train, "batch_loss", loss)
    interrupted(line(narrated, tmp_path / "run"), signal.SIGINT)
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    for path in (tmp_path / "copy").iterdir():
        os.utime(path, (0, 0))
    path = evaluate.checkpoint_of_run(tmp_path / "copy")
    assert path.name == checkpoint.LAST and checkpoint.load_checkpoint(path.parent)["step"] == 3
