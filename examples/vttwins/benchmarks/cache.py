"""Features of videos on disk, so that a second evaluation decodes nothing.

Requirements: NumPy, torch.

A folder for each key: the content of the weights, the benchmark, the settings and the list of
items. In it, key.json says what it is, and each file part-*.npz holds a few items, written whole
or not at all. An item is valid as long as its video file has the same name, size, time of change,
beginning and end, wherever it lies; so a video that was missing is looked at once it has come. A
failure is kept only where the content of the file explains it: what the system refused is tried
again. Several processes need a folder that all of them see.
"""

from __future__ import annotations

import hashlib
import json
import stat
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from examples.vttwins import distributed
from examples.vttwins.checkpoint import write_atomically, write_text
from examples.vttwins.distributed import Place

ITEMS_OF_A_PART = 16
FORMAT = 1
NO_FILE = "no file"  # the stamp of a video that is missing
ENDS = 1 << 16  # bytes at the beginning and at the end of a file that tell it from others
# Why an item has no features, or not all, while the file stays the same.
LASTING = ("", "broken", "short", "no_video", "no_duration")


class Seen(NamedTuple):
    """Features (W, D) of the windows of a video, NaN where one is lost, or None if there are none;
    and the reason, one word, why there are none, or not all."""

    features: np.ndarray | None
    reason: str = ""
    message: str = ""


def weights_digest(model: nn.Module) -> str:
    """Digest of all weights but those of the text encoder, wherever they were read from.

    Example:
        >>> a, b = nn.Linear(2, 1), nn.Linear(2, 1)
        >>> weights_digest(a) == weights_digest(b)
        False
        >>> _ = b.load_state_dict(a.state_dict())
        >>> weights_digest(a) == weights_digest(b)
        True
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not name.startswith("text_module."):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


class FeatureCache:
    """Features of a list of items under a key.

    Args:
        root: folder of all caches.
        name: of the benchmark, for the reader of the folder.
        key: what the features depend on beside the items and their files; plain data.
    """

    def __init__(self, root: str | Path, name: str, key: dict[str, Any]) -> None:
        self.root, self.name, self.key = Path(root), name, key

    def open(self, items: Sequence[Any], paths: Sequence[Path], place: Place) -> None:
        """Find out which items of a list are there."""
        listed = hashlib.sha256("\n".join(map(repr, items)).encode()).hexdigest()
        key = {"format": FORMAT, "benchmark": self.name, **self.key, "items": listed}
        text = json.dumps(key, indent=1, sort_keys=True)
        self.folder = self.root / f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
        if place.first:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(self.folder / "key.json", text)
        _wait_for_all()
        if not self.folder.is_dir():
            raise ValueError(f"{self.root} must be a folder that all processes share (see --cache)")
        self._stamps = [_stamp(path) for path in paths]
        count = len(items)
        self._parts = [
            list(range(begin, min(begin + ITEMS_OF_A_PART, count)))
            for begin in range(0, count, ITEMS_OF_A_PART)
        ]
        self._missing: dict[int, list[int]] = {}
        for part, indices in enumerate(self._parts):
            stored = self._stamps_of(part)
            lacking = [i for i in indices if stored.get(i) != self._stamps[i]]
            if lacking:
                self._missing[part] = lacking
        self._done: dict[int, Seen] = {}
        _wait_for_all()  # nobody writes before all have looked

    def missing_parts(self) -> list[int]:
        return list(self._missing)

    def missing_in(self, part: int) -> list[int]:
        """Indices of the items that are to be seen."""
        return self._missing[part]

    def put(self, index: int, seen: Seen) -> None:
        """Keep an item; its part is written once it is complete."""
        self._done[index] = seen
        part = index // ITEMS_OF_A_PART
        if all(i in self._done for i in self._missing[part]):
            self._write(part)

    def close(self, place: Place) -> list[Seen]:
        """Wait for all processes; the first one returns all items, the others nothing."""
        _wait_for_all()
        if not place.first:
            return []
        seen = []
        for part, indices in enumerate(self._parts):
            stored = self._read(part)
            seen += [stored[index] for index in indices]
        return seen

    def _path(self, part: int) -> Path:
        return self.folder / f"part-{part:05d}.npz"

    def _write(self, part: int) -> None:
        lacking = self._missing[part]
        kept = self._read(part) if len(lacking) < len(self._parts[part]) else {}
        rows = [
            self._done.pop(index) if index in lacking else kept[index]
            for index in self._parts[part]
        ]
        some = next((r.features for r in rows if r.features is not None), np.zeros((0, 0), "f4"))
        features = [some[:0] if r.features is None else r.features for r in rows]
        content: dict[str, Any] = {
            "stamps": np.array([self._stamps[index] for index in self._parts[part]]),
            "usable": np.array([r.features is not None for r in rows]),
            "reasons": np.array([r.reason for r in rows]),
            "messages": np.array([r.message for r in rows]),
            "counts": np.array([len(f) for f in features]),
            "features": np.concatenate(features),
        }
        write_atomically(self._path(part), lambda file: np.savez(file, **content))

    def _stamps_of(self, part: int) -> dict[int, str]:
        """Stamps of the items in a file that may be used again; nothing if there is none, or a
        damaged one."""
        try:
            with np.load(self._path(part), allow_pickle=False) as file:
                stamps, reasons = file["stamps"].tolist(), file["reasons"].tolist()
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return {}
        stored = zip(self._parts[part], stamps, reasons, strict=False)
        return {index: stamp for index, stamp, reason in stored if _lasts(stamp, reason)}

    def _read(self, part: int) -> dict[int, Seen]:
        path = self._path(part)
        try:
            with np.load(path, allow_pickle=False) as file:
                content = {name: file[name] for name in file.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} is damaged ({error}): delete it, and run again") from None
        ends = np.cumsum(content["counts"])
        seen = {}
        for k, index in enumerate(self._parts[part]):
            features = content["features"][ends[k] - content["counts"][k] : ends[k]]
            reason, message = str(content["reasons"][k]), str(content["messages"][k])
            seen[index] = Seen(features if content["usable"][k] else None, reason, message)
        return seen


def _wait_for_all() -> None:
    if distributed.world_size() > 1:
        torch.distributed.barrier()


def _lasts(stamp: str, reason: str) -> bool:
    """Whether what was seen stays so while the stamp does."""
    return reason in LASTING or (reason == "missing" and stamp == NO_FILE)


def _stamp(path: Path) -> str:
    """Changes when the file does; that of no file says so.

    Not the path but the content tells files of equal names apart, as data are moved and copied.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return NO_FILE
    except (OSError, ValueError):
        return NO_FILE
    seen = f"{path.name} {status.st_size} {status.st_mtime_ns}"
    try:
        with path.open("rb") as file:
            ends = hashlib.sha256(file.read(ENDS))
            file.seek(max(status.st_size - ENDS, 0))
            ends.update(file.read(ENDS))
    except OSError:
        return f"{seen} unread"
    return f"{seen} {ends.hexdigest()[:16]}"
