"""Videos with a class each and three splits: HMDB51 and UCF101.

Requirements: the standard library.

Files that are read, the released lists and the folders of the downloaded ones:

    HMDB51  CSV video_id,label,split1,split2,split3    <class>_test_split{1,2,3}.txt
    UCF101  CSV video_id,label,split1,split2,split3    classInd.txt, {train,test}list0{1,2,3}.txt

In a split, 1 is a training video, 2 a test one, 0 an unused one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from examples.vttwins.benchmarks.files import (
    AnnotationError,
    at,
    read_table,
    read_text,
    to_integer,
)
from examples.vttwins.metrics import TEST, TRAIN, UNUSED

SPLITS = 3


@dataclass(frozen=True)
class LabelledVideo:
    """A video of a class: its file's name, folders it may lie in, and its part in each split."""

    video_id: str
    label: str
    splits: tuple[int, ...]
    folders: tuple[str, ...] = field(default=())


def read_hmdb51(path: str | Path) -> list[LabelledVideo]:
    """HMDB51: the released CSV file, or the folder testTrainMulti_7030_splits.

    Raises:
        AnnotationError: a line, a file or a folder that is not what the format promises.
    """
    path = Path(path)
    if not path.is_dir():
        videos = []
        for video, label, splits in _read_csv(path):
            name = label.removesuffix("_test")
            videos.append(LabelledVideo(video, name, splits, (name,)))
        return videos
    files: dict[str, dict[int, Path]] = {}
    for file in sorted(path.iterdir()):
        if found := re.fullmatch(r"(.+)_test_split([123])\.txt", file.name):
            files.setdefault(found[1], {})[int(found[2])] = file
    if not files:
        raise AnnotationError(f"{path}: has no files <class>_test_split1.txt")
    videos = []
    for label, of_split in files.items():
        lacking = [k for k in range(1, SPLITS + 1) if k not in of_split]
        if lacking:
            raise AnnotationError(f"{path}: {label}_test_split{lacking[0]}.txt is missing")
        parts: dict[str, list[int]] = {}
        for k, file in of_split.items():
            for line, text in _lines(file):
                name, _, part = text.rpartition(" ")
                value = to_integer(part, UNUSED, TEST, "the part after the name", file, line)
                parts.setdefault(name.strip(), [UNUSED] * SPLITS)[k - 1] = value
        videos += [
            LabelledVideo(name, label, tuple(splits), (label,)) for name, splits in parts.items()
        ]
    return videos


def read_ucf101(path: str | Path) -> list[LabelledVideo]:
    """UCF101: the released CSV file, or the folder ucfTrainTestlist.

    Raises:
        AnnotationError: a line, a file or a folder that is not what the format promises.
    """
    path = Path(path)
    if not path.is_dir():
        return [
            LabelledVideo(PurePosixPath(video).name, label, splits, _ucf_folders(video))
            for video, label, splits in _read_csv(path)
        ]
    labels = {}
    for line, text in _lines(path / "classInd.txt"):
        number, _, name = text.partition(" ")
        if not number.isdecimal() or not name.strip():
            raise at(path / "classInd.txt", line, f"expected a number and a class, got {text!r}")
        labels[name.strip()] = number
    parts: dict[str, list[int]] = {}
    for k in range(1, SPLITS + 1):
        for kind, value in (("train", TRAIN), ("test", TEST)):
            file = path / f"{kind}list0{k}.txt"
            for line, text in _lines(file):
                video = text.split()[0]
                if PurePosixPath(video).parent.name not in labels:
                    raise at(file, line, f"the folder of {video!r} is no class of classInd.txt")
                splits = parts.setdefault(video, [UNUSED] * SPLITS)
                if splits[k - 1] not in (UNUSED, value):
                    raise at(file, line, f"{video} is also a training video of split {k}")
                splits[k - 1] = value
    return [
        LabelledVideo(
            PurePosixPath(video).name,
            labels[PurePosixPath(video).parent.name],
            tuple(splits),
            _ucf_folders(video),
        )
        for video, splits in parts.items()
    ]


def _ucf_folders(video: str) -> tuple[str, ...]:
    """Folders of ``Archery/v_Archery_g01_c01.avi``, with or without the first part.

    The folder HandstandPushups holds files named v_HandStandPushups: both spellings are tried.
    """
    path = PurePosixPath(video)
    names = [path.parent.as_posix()] if path.parent.name else []
    if found := re.match(r"v_(.+)_g\d+_c\d+", path.name):
        names.append(found[1])
    names += [name.replace("HandStand", "Handstand") for name in names]
    names += [name.replace("Handstand", "HandStand") for name in names]
    return tuple(dict.fromkeys(names))


def _read_csv(path: Path) -> list[tuple[str, str, tuple[int, ...]]]:
    columns = tuple(f"split{k}" for k in range(1, SPLITS + 1))
    rows = []
    for line, row in read_table(path, ("video_id", "label", *columns)):
        parts = (to_integer(row[name], UNUSED, TEST, name, path, line) for name in columns)
        rows.append((row["video_id"], row["label"], tuple(parts)))
    if not rows:
        raise AnnotationError(f"{path}: holds no videos")
    return rows


def _lines(path: Path) -> list[tuple[int, str]]:
    """(number, text) of the lines of a file that are not blank."""
    lines = enumerate(read_text(path).splitlines(), start=1)
    return [(number, text.strip()) for number, text in lines if text.strip()]
