"""CrossTask as downloaded: tasks with ordered steps, lists of videos, annotations of seconds.

Requirements: NumPy.

    tasks_primary.txt                   five lines a task: id, title, URL, number of steps, steps
    videos.csv, videos_val.csv          task,video,url, no header
    annotations/<task>_<video>.csv      step,start,end, no header, steps counted from 1

Source: Zhukov et al., "Cross-task weakly supervised learning from instructional videos", CVPR 2019.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from examples.vttwins.benchmarks.files import (
    AnnotationError,
    at,
    read_rows,
    read_text,
    to_integer,
    to_span,
)
from examples.vttwins.benchmarks.segments import Segment

TASK_LINES = ("its id", "its title", "its URL", "its number of steps", "its steps")
TASKS, VIDEOS, VALIDATION, ANNOTATIONS = (
    "tasks_primary.txt", "videos.csv", "videos_val.csv", "annotations",
)  # fmt: skip


@dataclass(frozen=True)
class TaskVideo:
    """A whole video in which a task is done."""

    task: str
    video_id: str


def read_crosstask_tasks(path: str | Path) -> dict[str, list[str]]:
    """Steps of each task, in the order of the file.

    Raises:
        AnnotationError: lines that do not come in fives, or steps that are not as many as stated.
    """
    path = Path(path)
    text = enumerate(read_text(path).splitlines(), start=1)
    lines = [(number, line.strip()) for number, line in text if line.strip()]
    tasks: dict[str, list[str]] = {}
    for first in range(0, len(lines), len(TASK_LINES)):
        block = lines[first : first + len(TASK_LINES)]
        task = block[0][1]
        if len(block) < len(TASK_LINES):
            lack = TASK_LINES[len(block)]
            raise at(path, block[-1][0], f"the file ends where task {task} needs {lack}")
        count = to_integer(block[3][1], 1, 1000, f"steps of task {task}", path, block[3][0])
        steps = [step.strip() for step in block[4][1].split(",")]
        if len(steps) != count or not all(steps):
            raise at(path, block[4][0], f"task {task} is to have {count} steps, these are {steps}")
        if task in tasks:
            raise at(path, block[0][0], f"task {task} stands twice")
        tasks[task] = steps
    if not tasks:
        raise AnnotationError(f"{path}: holds no tasks")
    return tasks


def write_crosstask_tasks(tasks: dict[str, list[str]], path: str | Path) -> None:
    """Write a file that ``read_crosstask_tasks`` reads."""
    blocks = [
        f"{task}\n{task}\nnone\n{len(steps)}\n{','.join(steps)}\n\n"
        for task, steps in tasks.items()
    ]
    Path(path).write_text("".join(blocks), encoding="utf-8")


def read_crosstask_annotation(path: str | Path, seconds: int, steps: int) -> np.ndarray:
    """Which seconds show which step: bool (T, K), from lines step,start,end.

    A step shows in the seconds floor(start) to ceil(end) - 1, cut at the end of the video.

    Args:
        path: of the annotation of one video.
        seconds: T, whole seconds of the video.
        steps: K, of its task.
    """
    return seconds_of(read_spans(path, steps), seconds, steps)


def read_spans(path: str | Path, steps: int) -> list[tuple[int, float, float]]:
    """Lines (step counted from 0, start, end) of the annotation of one video."""
    path = Path(path)
    spans = []
    for line, row in read_rows(path):
        if len(row) != 3:
            raise at(path, line, f"expected step,start,end, got {','.join(row)!r}")
        step = to_integer(row[0], 1, steps, "the step", path, line) - 1
        spans.append((step, *to_span(row[1], row[2], path, line)))
    return spans


def seconds_of(spans: list[tuple[int, float, float]], seconds: int, steps: int) -> np.ndarray:
    """Which seconds show which step, bool (T, K), from (step, start, end)."""
    if seconds < 0 or steps < 1:
        raise ValueError(f"need seconds >= 0 and steps >= 1, got {seconds} and {steps}")
    truth = np.zeros((seconds, steps), dtype=bool)
    for step, start, end in spans:
        truth[math.floor(start) : math.ceil(end), step] = True
    return truth


def read_task_videos(path: str | Path) -> list[TaskVideo]:
    """Videos of a list whose lines begin with task,video."""
    path = Path(path)
    videos = []
    for line, row in read_rows(path):
        if len(row) < 2 or not all(row[:2]):
            raise at(path, line, f"expected task,video,url, got {','.join(row)!r}")
        videos.append(TaskVideo(row[0], row[1]))
    return list(dict.fromkeys(videos))


@dataclass(frozen=True)
class CrossTask:
    """The steps of each task, and its test videos with their annotated (step, start, end).

    ``unannotated`` are the test videos without a file of annotations, which no number counts.
    """

    tasks: dict[str, list[str]]
    spans: dict[TaskVideo, list[tuple[int, float, float]]]
    unannotated: tuple[TaskVideo, ...] = ()

    def segments(self) -> list[Segment]:
        """The trimmed steps, in the order of the videos."""
        return [
            Segment(video.video_id, start, end, self.tasks[video.task][step], video.task)
            for video, spans in self.spans.items()
            for step, start, end in spans
        ]


def read_crosstask(
    folder: str | Path,
    test_list: str | Path | None = None,
    training_list: str | Path | None = None,
) -> CrossTask:
    """Tasks and test videos of the downloaded folder.

    The test videos are those of videos.csv of the tasks in tasks_primary.txt, less those of
    videos_val.csv and of ``training_list``; or those of ``test_list``.

    Args:
        folder: with tasks_primary.txt, videos.csv, videos_val.csv and annotations/.
        test_list: file of lines task,video: exactly the test videos.
        training_list: file of lines task,video: videos that a split trains on.

    Raises:
        AnnotationError: files that do not fit each other.
    """
    folder = Path(folder)
    tasks = read_crosstask_tasks(folder / TASKS)
    if test_list is not None:
        if training_list is not None:
            raise ValueError("give a list of test videos or one of training videos, not both")
        videos = read_task_videos(test_list)
        strange = [video for video in videos if video.task not in tasks]
        if strange:
            raise AnnotationError(f"{test_list}: task {strange[0].task} is not in {folder / TASKS}")
    else:
        lists = [folder / VALIDATION, *([Path(training_list)] if training_list else [])]
        other = {video for path in lists for video in read_task_videos(path)}
        videos = [video for video in read_task_videos(folder / VIDEOS) if video.task in tasks]
        videos = [video for video in videos if video not in other]
    path_of = {v: folder / ANNOTATIONS / f"{v.task}_{v.video_id}.csv" for v in videos}
    spans = {v: read_spans(p, len(tasks[v.task])) for v, p in path_of.items() if p.is_file()}
    if not spans:
        raise AnnotationError(
            f"{folder}: none of the {len(videos)} test videos has a file in {ANNOTATIONS}/"
        )
    return CrossTask(tasks, spans, tuple(video for video in videos if video not in spans))


def from_segments(segments: list[Segment], tasks: dict[str, list[str]]) -> CrossTask:
    """Whole videos out of annotated segments whose texts are steps of their tasks.

    Raises:
        AnnotationError: a task or a step that is not among ``tasks``.
    """
    spans: dict[TaskVideo, list[tuple[int, float, float]]] = {}
    for s in segments:
        if s.text not in tasks.get(s.task, ()):
            raise AnnotationError(
                f"{s.text!r} of video {s.video_id} is no step of task {s.task!r} in the task file"
            )
        row = tasks[s.task].index(s.text), s.start, s.end
        spans.setdefault(TaskVideo(s.task, s.video_id), []).append(row)
    return CrossTask(tasks, spans)
