"""Checkpoints and logs that survive a kill at any moment.

Requirements: torch.

A file is written under a temporary name, flushed to disk, then renamed: readers see the old file
or the new one, whole. On resuming, the log is cut back to the checkpoint's step, so that no step
stands twice.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

LAST = "last.pt"
LOG = "log.jsonl"


def write_atomically(path: str | Path, save: Any) -> None:
    """Call ``save(file)`` on a temporary binary file beside ``path``, then rename it."""
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            save(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
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
    for leftover in Path(folder).glob("*.tmp"):
        leftover.unlink(missing_ok=True)


def save_checkpoint(folder: str | Path, content: dict[str, Any]) -> Path:
    """Write the folder's latest checkpoint."""
    path = Path(folder) / LAST
    write_atomically(path, lambda file: torch.save(content, file))
    return path


def load_checkpoint(folder: str | Path) -> dict[str, Any] | None:
    """The folder's latest checkpoint on the CPU, or None. Never unpickles code."""
    path = Path(folder) / LAST
    if not path.exists():
        return None
    return torch.load(path, map_location="cpu", weights_only=True)


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """Entries of a JSONL log; a last line cut by a kill is left out."""
    entries = []
    path = Path(path)
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                entries.append(json.loads(line))
            except ValueError:
                break
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
