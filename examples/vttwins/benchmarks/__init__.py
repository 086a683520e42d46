"""The benchmarks of the paper: their files, what they measure, and how a result is reported.

files.py reads text as people have it; segments.py, actions.py and crosstask.py the annotations of
YouCook2 and MSR-VTT, of HMDB51 and UCF101, and of CrossTask. extraction.py sees the videos through
a model, cache.py keeps what it saw; table.py says what each benchmark is, report.py what it gave.
The command is examples.vttwins.evaluate.
"""

from examples.vttwins.benchmarks.actions import LabelledVideo, read_hmdb51, read_ucf101
from examples.vttwins.benchmarks.crosstask import (
    CrossTask,
    read_crosstask,
    read_crosstask_annotation,
    read_crosstask_tasks,
)
from examples.vttwins.benchmarks.files import AnnotationError
from examples.vttwins.benchmarks.segments import (
    Segment,
    read_msrvtt,
    read_segments,
    read_video_list,
    read_youcook2,
)

__all__ = [
    "AnnotationError",
    "CrossTask",
    "LabelledVideo",
    "Segment",
    "read_crosstask",
    "read_crosstask_annotation",
    "read_crosstask_tasks",
    "read_hmdb51",
    "read_msrvtt",
    "read_segments",
    "read_ucf101",
    "read_video_list",
    "read_youcook2",
]
