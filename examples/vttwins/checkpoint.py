"""The files of a run: checkpoints and logs that survive a kill at any moment.

Requirements: torch.

A file is written under a temporary name, flushed to disk, then renamed: readers see the old file
or the new one, whole. On resuming, the log is cut back to the checkpoint's step, so that no step
stands twice. The last two checkpoints are kept: should one be damaged, there is another.
"""

from __future__ import annotations

import errno
import fnmatch
import hashlib
import json
import os
import secrets
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

LAST = "last.pt"
PREVIOUS = "previous.pt"
WEIGHTS = "model.safetensors"  # at the end of a run; last.pt is then of the same step
NUMBERED = f"step-{8 * '[0-9]'}.pt"
LOG = "log.jsonl"
EVALUATIONS = "evaluations.jsonl"
SETTINGS = "settings.json"
FINETUNING = "finetuning.json"
WORLD = "trained_on.json"  # of a run of the ablation: the parameters of its generated videos
# Temporary files of this program; not those of others, which end in .tmp too.
LEFTOVERS = f"*.vttwins-{8 * '[0-9a-f]'}.tmp"
# All that a run, its evaluation and its pictures write; --restart deletes these and nothing else.
WRITTEN = (
    SETTINGS, "vocabulary.json", LAST, PREVIOUS, NUMBERED, WEIGHTS, LOG,
    EVALUATIONS, "skipped-[0-9].jsonl", "skipped-[0-9]*[0-9].jsonl", "evaluation.json",
    "evaluation.md", FINETUNING, WORLD, "loss.png", "alignment.png",
    "tensorboard/events.out.tfevents.*", LEFTOVERS,
)  # fmt: skip
NEEDED = {"step", "skipped", "state_dict", "optimizer", "settings"}
CLIP_SETTINGS = {"data", "frames", "fps", "size", "resize"}


class RunFilesError(ValueError):
    """A folder that is no run's, or a run without a checkpoint that can be read."""


class _Writer:
    """A binary file that keeps the error of a write, in whose place torch raises one of its own."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.problem: OSError | None = None

    def write(self, content: Any) -> Any:
        try:
            return self.file.write(content)
        except OSError as error:
            self.problem = error
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def write_atomically(path: str | Path, save: Any) -> None:
    """Call ``save(file)`` on a temporary binary file beside ``path``, then rename it.

    Raises:
        OSError: it cannot be written; of a full disk, it says which.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.vttwins-{secrets.token_hex(4)}.tmp")
    writer = None
    try:
        with temporary.open("wb") as file:
            writer = _Writer(file)
            save(writer)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except Exception as error:
        problem = error if isinstance(error, OSError) else writer and writer.problem
        if not problem or problem.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        full = f"the disk of {path.parent.resolve()} is full, it has no space for"
        raise OSError(problem.errno, full, path.name) from error
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":  # the renaming itself reaches the disk with the folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically."""
    write_atomically(path, lambda file: file.write(text.encode("utf-8")))


def remove_leftovers(folder: str | Path) -> None:
    """Remove the temporary files of writers that were killed."""
    for leftover in Path(folder).glob(LEFTOVERS):
        leftover.unlink(missing_ok=True)


def _read_settings(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, OSError) as error:
        raise RunFilesError(f"{path} cannot be read: {error}") from None


def settings_of(folder: str | Path) -> dict[str, Any] | None:
    """The settings of the run in a folder, or None where there is no settings.json.

    Raises:
        RunFilesError: the settings.json there is not one that a run wrote.
    """
    path = Path(folder) / SETTINGS
    if not path.exists():
        return None
    content = _read_settings(path)
    if not isinstance(content, dict) or not {"operator", "train_csv", "seed"} <= content.keys():
        raise RunFilesError(f"{path} holds no settings of a run; choose another folder with --out")
    return content


def clip_settings(folder: str | Path) -> dict[str, Any]:
    """The settings of a run, with those of its clips and its data, which evaluations need.

    Raises:
        RunFilesError: the settings.json is missing, damaged or of something else.
    """
    path = Path(folder) / SETTINGS
    if not path.exists():
        raise RunFilesError(f"{path} is missing, without which {folder} is no run")
    content = _read_settings(path)
    lacking = CLIP_SETTINGS - content.keys() if isinstance(content, dict) else CLIP_SETTINGS
    if lacking:
        raise RunFilesError(f"{path} is not of a run: it lacks {', '.join(sorted(lacking))}")
    return dict(content)


def written_by_run(path: str | Path, folder: str | Path) -> bool:
    """Whether a file is one of those that a run in the folder writes, under whatever name."""
    path, folder = Path(path).resolve(), Path(folder).resolve()
    if not path.is_relative_to(folder):
        return False
    name = path.relative_to(folder).as_posix()
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in WRITTEN)


def remove_run(folder: str | Path) -> None:
    """Delete the files that a run wrote into a folder, and none other.

    Raises:
        RunFilesError: the folder holds files, but not the settings.json of a run. Nothing is
            deleted.
    """
    folder = Path(folder)
    if settings_of(folder) is None:
        if folder.exists() and any(folder.iterdir()):
            raise RunFilesError(
                f"--restart: {folder} is not empty and holds no {SETTINGS} of a run, so nothing "
                "was deleted; choose another folder with --out"
            )
        return
    for pattern in reversed(WRITTEN):  # the settings last: a deletion cut short can be repeated
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)
    board = folder / "tensorboard"
    if board.is_dir() and not any(board.iterdir()):
        board.rmdir()


def read_tensors(path: str | Path) -> Any:
    """What torch.save wrote into a file, on the CPU. Never unpickles code.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or holds more than tensors and plain data; the message is
            the reason, in one line.
    """
    try:
        if zipfile.is_zipfile(path):  # torch does not look at the checksums
            with zipfile.ZipFile(path) as archive:
                if broken := archive.testzip():
                    raise ValueError(f"wrong checksum of {broken}")
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # damaged zip, other pickles: a dozen types by version
        raise ValueError((str(error).strip() or repr(error)).splitlines()[0]) from None


def save_checkpoint(folder: str | Path, content: dict[str, Any], keep: bool = False) -> Path:
    """Write the folder's latest checkpoint; the one before it stays as ``previous.pt``.

    Args:
        content: with "step".
        keep: write it as ``step-<step>.pt`` too, which nothing overwrites.
    """
    path = Path(folder) / LAST
    if keep:
        snapshot = path.with_name(f"step-{content['step']:08d}.pt")
        write_atomically(snapshot, lambda file: torch.save(content, file))

    def save(file: Any) -> None:
        torch.save(content, file)
        file.flush()
        if path.exists():  # only now, when the new one is whole: a kill leaves one of them
            os.replace(path, path.with_name(PREVIOUS))

    write_atomically(path, save)
    return path


def load_checkpoint(folder: str | Path) -> dict[str, Any] | None:
    """The folder's latest checkpoint that can be read, on the CPU, or None if there is none.

    Never unpickles code. Where neither the last one nor the one before can be read, the numbered
    ones serve, the latest first. Warns where it falls back on an earlier one than the last.

    Raises:
        RunFilesError: there are checkpoints, and none can be read.
    """
    folder, problems = Path(folder), []
    numbered = sorted(folder.glob(NUMBERED), reverse=True)
    for path in (folder / LAST, folder / PREVIOUS, *numbered):
        if not path.exists():
            continue
        try:
            content = read_tensors(path)
            if not isinstance(content, dict) or not content.keys() >= NEEDED:
                raise ValueError(f"it lacks one of {sorted(NEEDED)}")
        except (ValueError, OSError) as error:
            problems.append(f"{path} is damaged ({error})")
            continue
        if problems:
            warnings.warn(
                f"{'; '.join(problems)}; the run goes on from {path}, step {content['step']}",
                stacklevel=2,
            )
        return content
    if problems:
        raise RunFilesError(f"{'; '.join(problems)}. Give --restart to begin anew.")
    return None


def refuse_to_lose(folder: str | Path) -> None:
    """Refuse a folder without a checkpoint, in which a run that begins would write over more.

    Raises:
        RunFilesError: it holds the weights of a run's end, or a log that is no run's.
    """
    folder, own = Path(folder), settings_of(folder) is not None
    # A run that was killed before its first checkpoint leaves a log, which is worth nothing.
    for name in [WEIGHTS] if own else [WEIGHTS, LOG]:
        if (folder / name).exists():
            restart = ", or --restart to begin anew, which deletes it" if own else ""
            raise RunFilesError(
                f"{folder} holds {name}, which would be lost, and no checkpoint to go on from. "
                f"Give another --out{restart}."
            )


def digest(path: str | Path) -> str:
    """SHA-256 of a file's content."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of_lines(lines: Iterable[str]) -> str:
    """SHA-256 of lines of text, however their file ends them."""
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """Entries of a JSONL log; a last line cut by a kill is left out, and what is no log's."""
    entries = []
    path = Path(path)
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                break
            if not isinstance(entry, dict):
                break
            entries.append(entry)
    return entries


class Log:
    """JSONL log of a run: entries with their step, flushed at once.

    Args:
        path: file; entries of ``step`` or later in it are dropped first.
        step: first step that will be written.
    """

    def __init__(self, path: str | Path, step: int = 0) -> None:
        path = Path(path)
        kept = [entry for entry in read_log(path) if entry.get("step", -1) < step]
        write_text(path, "".join(json.dumps(entry) + "\n" for entry in kept))
        self._file = path.open("a", encoding="utf-8")

    def write(self, entry: dict[str, Any]) -> None:
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()
