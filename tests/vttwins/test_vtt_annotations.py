"""Annotation files: each format says the same, oddities are tolerated, bad lines are named."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from examples.vttwins.benchmarks import (
    AnnotationError,
    LabelledVideo,
    Segment,
    read_crosstask,
    read_crosstask_annotation,
    read_crosstask_tasks,
    read_hmdb51,
    read_msrvtt,
    read_segments,
    read_ucf101,
    read_video_list,
    read_youcook2,
)
from examples.vttwins.benchmarks.crosstask import TaskVideo, write_crosstask_tasks
from examples.vttwins.benchmarks.videos import locate

TASKS = "23\nFry an Egg\nhttps://x\n3\nheat pan,crack egg,serve\n\n7\nTea\nhttps://y\n1\nboil\n\n"


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


ODDITIES: dict[str, Callable[[str], str]] = {
    "plain": str,
    "byte order mark": lambda text: "\ufeff" + text,
    "CRLF": lambda text: text.replace("\n", "\r\n"),
    "blank lines": lambda text: text.replace("\n", "\n\n") + "\n\n",
    "spaces": lambda text: text.replace("\n", " \n"),
    "no last newline": lambda text: text.rstrip("\n"),
}


@pytest.mark.parametrize("oddity", ODDITIES)
def test_odd_files_say_what_plain_ones_say(oddity: str, tmp_path: Path) -> None:
    odd = ODDITIES[oddity]
    path = write(
        tmp_path / "a.csv", odd("end,start,task,text,video_id\n60,47,226,chop onion,aB3\n")
    )
    assert read_youcook2(path) == [Segment("aB3", 47.0, 60.0, "chop onion", "226")]
    path = write(tmp_path / "b.csv", odd("end,start,task_id,text,video_id\n6.5,4,23,serve,-x\n"))
    assert read_segments(path) == [Segment("-x", 4.0, 6.5, "serve", "23")]
    path = write(tmp_path / "c.csv", odd("key,vid_key,video_id,sentence\nret0,msr9,video9,a box\n"))
    assert read_msrvtt(path) == [Segment("video9", 0.0, math.inf, "a box")]
    assert read_video_list(path) == ["video9"]
    table = "video_id,label,split1,split2,split3\n"
    path = write(tmp_path / "d.csv", odd(table + "Some_wave.avi,wave_test,1,2,0\n"))
    assert read_hmdb51(path) == [LabelledVideo("Some_wave.avi", "wave", (1, 2, 0), ("wave",))]
    path = write(tmp_path / "e.csv", odd(table + "Archery/v_Archery_g01_c01.mp4,3,1,2,1\n"))
    expected = [LabelledVideo("v_Archery_g01_c01.mp4", "3", (1, 2, 1), ("Archery",))]
    assert read_ucf101(path) == expected
    write(tmp_path / "ucf" / "classInd.txt", odd("3 Archery\n"))
    for k in (1, 2, 3):
        lists = "", odd("Archery/v_Archery_g01_c01.avi 3\n")
        write(tmp_path / "ucf" / f"trainlist0{k}.txt", lists[k != 2])
        write(tmp_path / "ucf" / f"testlist0{k}.txt", lists[k == 2].replace(" 3", ""))
    (video,) = read_ucf101(tmp_path / "ucf")
    assert video == LabelledVideo("v_Archery_g01_c01.avi", "3", (1, 2, 1), ("Archery",))
    for k, part in ((1, 1), (2, 2), (3, 0)):
        write(tmp_path / "hmdb" / f"shoot_ball_test_split{k}.txt", odd(f"a b#.avi {part} \n"))
    expected = [LabelledVideo("a b#.avi", "shoot_ball", (1, 2, 0), ("shoot_ball",))]
    assert read_hmdb51(tmp_path / "hmdb") == expected
    path = write(tmp_path / "f.csv", odd("2,1.2,3\n3,4,4.5\n2,0,0.1\n"))
    assert read_crosstask_annotation(path, 9, 3).nonzero()[0].tolist() == [0, 1, 2, 4]
    path = write(tmp_path / "tasks.txt", odd(TASKS))
    assert read_crosstask_tasks(path) == {"23": ["heat pan", "crack egg", "serve"], "7": ["boil"]}


def test_commas_without_quotes_belong_to_the_text(tmp_path: Path) -> None:
    text = 'end,start,task,text,video_id\n6,4,2,cut, fry, and serve,x\n9,7,2,"cut, fry",x\n'
    found = read_segments(write(tmp_path / "a.csv", text))
    assert [s.text for s in found] == ["cut, fry, and serve", "cut, fry"]
    found = read_msrvtt(write(tmp_path / "b.csv", "video_id,sentence\nv1,a man, a dog\n"))
    assert found[0].text == "a man, a dog"


def test_the_downloaded_json_files_hold_the_same_as_lists(tmp_path: Path) -> None:
    database = {
        "aB3": {
            "subset": "validation",
            "recipe_type": "226",
            "annotations": [{"id": 0, "segment": [47, 60], "sentence": " chop onion "}],
        },
        "cD4": {
            "subset": "training",
            "recipe_type": "7",
            "annotations": [{"segment": [1.5, 2], "sentence": "boil"}],
        },
        "eF5": {"subset": "testing"},
    }
    path = write(tmp_path / "y.json", "\ufeff" + json.dumps({"database": database}))
    assert read_youcook2(path) == [Segment("aB3", 47.0, 60.0, "chop onion", "226")]
    assert read_youcook2(path, "training") == [Segment("cD4", 1.5, 2.0, "boil", "7")]
    with pytest.raises(AnnotationError, match="'testing' among .*'testing', 'training'"):
        read_youcook2(path, "testing")
    pairs = [("video1", "a box"), ("video1", "a red box"), ("video2", "a dog")]
    expected = [Segment(video, 0.0, math.inf, text) for video, text in pairs]
    for group, name in (("sentences", "video_id"), ("annotations", "image_id")):
        entries = [{name: video, "caption": text} for video, text in pairs]
        path = write(tmp_path / f"{group}.json", json.dumps({group: entries}))
        assert read_msrvtt(path) == expected
        assert read_msrvtt(path, ["video2"]) == expected[2:]
        with pytest.raises(AnnotationError, match=r"no sentence of 1 videos: \['video3'\]"):
            read_msrvtt(path, ["video2", "video3"])


HEAD = "end,start,task,text,video_id\n6,4,2,cut,x\n"
SPLIT = "video_id,label,split1,split2,split3\n"
YOUCOOK: dict[str, Any] = {"subset": "validation", "recipe_type": "1"}


@pytest.mark.parametrize(
    ("reader", "name", "text", "message"),
    [
        (read_segments, "a.csv", "", r"line 1: lacks the columns .*; the header is \[\]"),
        (read_segments, "a.csv", "end,start,text,video_id\n6,4,cut,x", "lacks the column task"),
        (read_segments, "a.csv", HEAD.split("6")[0], "holds no segments"),
        (read_segments, "a.csv", HEAD + "\n6,soon,2,cut,x", "line 4: 'soon' is no time"),
        (read_segments, "a.csv", HEAD + "nan,4,2,cut,x", "line 3: 'nan' is no time"),
        (read_segments, "a.csv", HEAD + "6,-1,2,cut,x", "line 3: '-1' is no time"),
        (read_segments, "a.csv", HEAD + "4,6,2,cut,x", "line 3: the end, 4 s, comes before"),
        (read_segments, "a.csv", HEAD + "6,4,2,cut", "line 3: has 4 fields, the header 5"),
        (read_segments, "a.csv", HEAD + "6,4,2,,x", "line 3: text is empty"),
        (read_segments, "a.csv", HEAD + '6,4,2,"cut,x\n6,4,2,fry,x\n', "quote that is opened"),
        (read_hmdb51, "a.csv", SPLIT + "x.avi,wave_test,1,2,3", "line 2: split3 must be .* '3'"),
        (read_hmdb51, "a.csv", SPLIT + "x.avi,wave_test,1,2", "line 2: has 4 fields"),
        (read_msrvtt, "a.json", "[]", "expected an object, got list"),
        (read_msrvtt, "a.json", "{", "is no JSON"),
        (read_msrvtt, "a.json", '{"videos": []}', 'neither "sentences" nor'),
        (read_msrvtt, "a.json", '{"sentences": [{"video_id": "v"}]}', "entry 0 .*text is None"),
        (read_youcook2, "a.json", "{}", 'no object "database"'),
        (
            read_youcook2, "a.json",
            json.dumps({"database": {"v": YOUCOOK | {"annotations": [{"segment": [5, 2]}]}}}),
            r"video v, annotation 0: \[5, 2\] is no span",
        ),
        (read_crosstask_tasks, "a.txt", "", "holds no tasks"),
        (read_crosstask_tasks, "a.txt", TASKS + "5\nx\n", "line 14: .*task 5 needs its URL"),
        (read_crosstask_tasks, "a.txt", TASKS.replace("3\nh", "4\nh"), "line 5: .*4 steps"),
        (read_crosstask_tasks, "a.txt", TASKS + TASKS, "line 13: task 23 stands twice"),
        (read_crosstask_tasks, "a.txt", TASKS.replace("3\nh", "x\nh"), "line 4: .*got 'x'"),
        (lambda p: read_crosstask_annotation(p, 9, 3), "a.csv", "4,1,2", "line 1: .*1 to 3.*'4'"),
        (lambda p: read_crosstask_annotation(p, 9, 3), "a.csv", "1,1", "expected step,start,end"),
        (lambda p: read_crosstask_annotation(p, 9, 3), "a.csv", "1,-3,2", "'-3' is no time"),
    ],
    ids=itertools.count(),
)  # fmt: skip
def test_a_bad_line_is_named(
    reader: Callable[[Path], Any], name: str, text: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(AnnotationError, match=message) as caught:
        reader(write(tmp_path / name, text))
    assert name in str(caught.value)


def test_files_that_are_not_utf8_or_not_there_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(HEAD.encode() + b"6,4,2,caf\xe9,x\n")
    with pytest.raises(AnnotationError, match=r"a\.csv: byte \d+ is not UTF-8"):
        read_segments(tmp_path / "a.csv")
    with pytest.raises(FileNotFoundError):
        read_ucf101(tmp_path / "none.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(AnnotationError, match="no files <class>_test_split1.txt"):
        read_hmdb51(tmp_path / "empty")
    write(tmp_path / "half" / "wave_test_split1.txt", "a.avi 1\n")
    with pytest.raises(AnnotationError, match=r"wave_test_split2\.txt is missing"):
        read_hmdb51(tmp_path / "half")
    with pytest.raises(ValueError, match="CSV file, which has no subset"):
        read_youcook2(write(tmp_path / "b.csv", HEAD), "training")


def test_seconds_of_a_step_are_those_it_touches_cut_at_the_end(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "1,0.9,2.1\n2,3,4\n2,8.5,99\n1,20,30\n")
    truth = read_crosstask_annotation(path, 10, 3)
    assert truth.shape == (10, 3) and truth.dtype == np.bool_
    assert [np.flatnonzero(column).tolist() for column in truth.T] == [[0, 1, 2], [3, 8, 9], []]
    assert read_crosstask_annotation(path, 0, 3).shape == (0, 3)


def test_the_test_videos_of_crosstask_are_the_list_less_validation_and_training(
    tmp_path: Path,
) -> None:
    write(tmp_path / "tasks_primary.txt", TASKS)
    names = ["23,a", "23,b", "23,c", "7,a", "7,d", "99,e", "23,f"]
    write(tmp_path / "videos.csv", "".join(f"{name},https://x?v=1\n" for name in names))
    write(tmp_path / "videos_val.csv", "23,b,https://x\n")
    for name in ("23_a", "23_b", "23_c", "7_a", "7_d", "99_e"):
        write(tmp_path / "annotations" / f"{name}.csv", "1,2,4.5\n")
    found = read_crosstask(tmp_path)
    assert list(found.spans) == [TaskVideo(*n.split(",")) for n in ("23,a", "23,c", "7,a", "7,d")]
    assert found.unannotated == (TaskVideo("23", "f"),)
    assert found.segments()[-1] == Segment("d", 2.0, 4.5, "boil", "7")
    training = write(tmp_path / "train.csv", "23,c\n7,d\n")
    found = read_crosstask(tmp_path, training_list=training)
    assert list(found.spans) == [TaskVideo("23", "a"), TaskVideo("7", "a")]
    assert list(read_crosstask(tmp_path, test_list=training).spans) == [
        TaskVideo("23", "c"), TaskVideo("7", "d"),
    ]  # fmt: skip
    with pytest.raises(AnnotationError, match=r"test\.csv: task 99 is not in"):
        read_crosstask(tmp_path, test_list=write(tmp_path / "test.csv", "99,e\n"))
    with pytest.raises(AnnotationError, match="none of the 1 test videos has a file"):
        read_crosstask(tmp_path, test_list=write(tmp_path / "test.csv", "23,f\n"))
    with pytest.raises(ValueError, match="not both"):
        read_crosstask(tmp_path, training, training)


def test_tasks_are_read_as_they_were_written(tmp_path: Path) -> None:
    tasks = {"task 1": ["red ring spins", "cut"], "2": ["x"]}
    write_crosstask_tasks(tasks, tmp_path / "tasks_primary.txt")
    assert read_crosstask_tasks(tmp_path / "tasks_primary.txt") == tasks


def test_a_video_is_found_in_its_folder_whatever_its_suffix(tmp_path: Path) -> None:
    write(tmp_path / "HandstandPushups" / "v_HandStandPushups_g01_c01.avi", "")
    write(tmp_path / "226" / "aB3.webm", "")
    write(tmp_path / "cD4.mkv", "")
    table = SPLIT + "v_HandStandPushups_g01_c01.mp4,37,1,1,1\n"
    (video,) = read_ucf101(write(tmp_path / "a.csv", table))
    assert locate(tmp_path, video.video_id, video.folders).is_file()
    assert locate(tmp_path, "aB3", ["226"]) == tmp_path / "226" / "aB3.webm"
    assert locate(tmp_path, "cD4", ["226"]) == tmp_path / "cD4.mkv"
    assert not locate(tmp_path, "none", ["226"]).exists()
