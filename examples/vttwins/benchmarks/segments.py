"""Segments of video with a sentence each: YouCook2, MSR-VTT, and CrossTask's trimmed steps.

Requirements: the standard library.

Files that are read, the released lists and the downloaded ones; files.py says what is tolerated:

    YouCook2   CSV end,start,task,text,video_id     youcookii_annotations_trainval.json
    MSR-VTT    CSV key,vid_key,video_id,sentence    JSON with "sentences" or "annotations"
    CrossTask  CSV end,start,task_id,text,video_id  (the downloaded files: crosstask.py)
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.vttwins.benchmarks.files import (
    AnnotationError,
    at,
    read_json,
    read_table,
    to_span,
)

VALIDATION, TRAINING = "validation", "training"


@dataclass(frozen=True)
class Segment:
    """An annotated part of a video: ``text`` happens from ``start`` to ``end`` seconds.

    An infinite end is the end of the video. ``task`` is that of the video, "" where there is none;
    files may lie in a folder of its name.
    """

    video_id: str
    start: float
    end: float
    text: str
    task: str = ""


def read_segments(path: str | Path) -> list[Segment]:
    """Segments of a CSV file with the columns end, start, task (or task_id), text, video_id.

    Raises:
        AnnotationError: a column is missing, or a line is not what the columns promise.
    """
    path = Path(path)
    segments = []
    for line, row in read_table(path, ("end", "start", "text", "video_id"), free="text"):
        task = row.get("task", row.get("task_id"))
        if task is None:
            raise at(path, 1, "lacks the column task (or task_id)")
        start, end = to_span(row["start"], row["end"], path, line)
        segments.append(Segment(row["video_id"], start, end, row["text"], task))
    return _some(segments, path)


def read_youcook2(path: str | Path, subset: str | None = None) -> list[Segment]:
    """Segments of YouCook2: the released CSV file, or the JSON file of the data set.

    Args:
        path: of the file; ``.json`` is the data set's.
        subset: "validation" (the default) or "training", of a JSON file; a CSV file holds one.
    """
    path = Path(path)
    if path.suffix.lower() != ".json":
        if subset is not None:
            raise ValueError(f"{path} is a CSV file, which has no subset {subset!r} to choose")
        return read_segments(path)
    database = read_json(path).get("database")
    if not isinstance(database, dict):
        raise AnnotationError(f'{path}: has no object "database"')
    segments, subsets, wanted = [], set(), subset or VALIDATION
    for video, entry in database.items():
        if not isinstance(entry, dict) or not isinstance(entry.get("annotations", []), list):
            raise AnnotationError(f"{path}: video {video} is no object with annotations")
        subsets.add(str(entry.get("subset")))
        if entry.get("subset") != wanted:
            continue
        for k, item in enumerate(entry.get("annotations", [])):
            where = f"{path}: video {video}, annotation {k}"
            span = item.get("segment") if isinstance(item, dict) else None
            if not isinstance(span, list) or len(span) != 2:
                raise AnnotationError(f'{where}: needs "segment": [start, end], got {item!r}')
            start, end = _json_span(span, where)
            text = _json_text(item.get("sentence"), where)
            segments.append(Segment(video, start, end, text, str(entry.get("recipe_type", ""))))
    if not segments:
        raise AnnotationError(f"{path}: no segments of subset {wanted!r} among {sorted(subsets)}")
    return segments


def read_msrvtt(path: str | Path, videos: Collection[str] | None = None) -> list[Segment]:
    """Whole videos of MSR-VTT with a sentence each; a video has several where the file has.

    Args:
        path: the CSV file of the 1k-A test pairs, or a JSON file ("sentences" of video_id and
            caption, or "annotations" of image_id and caption).
        videos: keep only these ids (a split); each must be there.
    """
    path = Path(path)
    if path.suffix.lower() == ".json":
        pairs = _msrvtt_json(path)
    else:
        rows = read_table(path, ("video_id", "sentence"), free="sentence")
        pairs = [(row["video_id"], row["sentence"]) for _, row in rows]
    if videos is not None:
        lacking = sorted(set(videos) - {video for video, _ in pairs})
        if lacking:
            raise AnnotationError(
                f"{path}: has no sentence of {len(lacking)} videos: {lacking[:5]}"
            )
        wanted = set(videos)
        pairs = [pair for pair in pairs if pair[0] in wanted]
    return _some([Segment(video, 0.0, math.inf, text) for video, text in pairs], path)


def read_video_list(path: str | Path) -> list[str]:
    """Ids of a split, as MSR-VTT's 9k training list: a CSV file with a column video_id."""
    return list(dict.fromkeys(row["video_id"] for _, row in read_table(path, ("video_id",))))


def _msrvtt_json(path: Path) -> list[tuple[str, str]]:
    content = read_json(path)
    for group, name in (("sentences", "video_id"), ("annotations", "image_id")):
        items = content.get(group)
        if not isinstance(items, list):
            continue
        pairs = []
        for k, item in enumerate(items):
            where = f'{path}: entry {k} of "{group}"'
            if not isinstance(item, dict) or not item.get(name):
                raise AnnotationError(f"{where}: needs {name} and caption, got {item!r}")
            pairs.append((str(item[name]), _json_text(item.get("caption"), where)))
        return pairs
    raise AnnotationError(f'{path}: has neither "sentences" nor "annotations"')


def _json_span(span: list[Any], where: str) -> tuple[float, float]:
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in span)
    if not numbers or not 0 <= span[0] <= span[1] < math.inf:
        raise AnnotationError(f"{where}: {span} is no span of seconds")
    return float(span[0]), float(span[1])


def _json_text(text: Any, where: str) -> str:
    if not isinstance(text, str) or not text.strip():
        raise AnnotationError(f"{where}: the text is {text!r}")
    return text.strip()


def _some(segments: list[Segment], path: Path) -> list[Segment]:
    if not segments:
        raise AnnotationError(f"{path}: holds no segments")
    return segments
