"""Tiny videos of plain colors in the layout of each benchmark, and models whose truth is known.

Truth reads the color of a clip and of a text, so it is right wherever the protocol is; Constant
gives one answer to everything. The command line in evaluate_truth.py and the tests use both.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from examples.vttwins.video import write_video

FPS, SIZE = 5, 32
LEVELS = (0, 128, 255)
PALETTE = np.array(list(itertools.product(LEVELS, repeat=3))[1:])  # 26 colors, without black
NAMES = ["color" + "".join("lmh"[LEVELS.index(v)] for v in color) for color in PALETTE]


class Truth(nn.Module):
    """Embeds a clip, or a text, as the color that it shows most, or names."""

    words_digest = None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("palette", torch.from_numpy(PALETTE).float() / 255)
        self.text_module = nn.Module()
        self.text_module.word_embd = nn.Embedding(len(NAMES) + 1, 1)

    def encode_video(self, video: Tensor) -> Tensor:
        colors = video.mean((3, 4)).transpose(1, 2)  # (B, T, 3)
        shown = colors.amax(2) > 0.2  # not the zeros after the end
        nearest = torch.cdist(colors, self.palette.expand(len(video), -1, -1)).argmin(2)
        votes = nn.functional.one_hot(nearest, len(self.palette)) * shown[..., None]
        return nn.functional.one_hot(votes.sum(1).argmax(1), len(self.palette)).float()

    def video_features(self, video: Tensor) -> Tensor:
        return self.encode_video(video)

    def encode_text(self, words: Tensor) -> Tensor:
        return nn.functional.one_hot(words, len(NAMES) + 1)[..., 1:].sum(-2).float()


class Constant(Truth):
    """Embeds everything alike."""

    def encode_video(self, video: Tensor) -> Tensor:
        return torch.ones(len(video), len(NAMES))

    def encode_text(self, words: Tensor) -> Tensor:
        return torch.ones(len(words), len(NAMES))


def film(path: Path, *parts: tuple[int, float], size: tuple[int, int] = (SIZE, SIZE)) -> None:
    """Write a video whose parts show a color for some seconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = [
        np.broadcast_to(PALETTE[color].astype(np.uint8), (round(seconds * FPS), *size, 3))
        for color, seconds in parts
    ]
    write_video(path, np.concatenate(pictures), FPS)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())


def youcook2(root: Path) -> None:
    """Two recipes of three segments of 3 s with a second between; list.csv and list.json."""
    rows, database = ["end,start,task,text,video_id"], {}
    for video, place in (("aB3", "226/aB3.mkv"), ("-cD", "-cD.mp4")):
        first = 3 * len(database)
        parts = [p for k in range(3) for p in ((first + k, 3.0), (25, 1.0))]
        film(root / "videos" / place, *parts)
        spans = [(4 * k, 4 * k + 3, NAMES[first + k]) for k in range(3)]
        rows += [f"{end},{start},226,now {text},{video}" for start, end, text in spans]
        database[video] = {
            "subset": "validation",
            "recipe_type": "226",
            "annotations": [{"segment": [s, e], "sentence": f"now {t}"} for s, e, t in spans],
        }
    write(root / "list.csv", "\ufeff" + "\r\n".join(rows) + "\r\n\r\n")
    write(root / "list.json", json.dumps({"database": database}))


def msrvtt(root: Path, videos: int = 4) -> None:
    """Videos of one color and 2 s; list.csv, sentences.json and annotations.json."""
    ids = [f"video{9000 + k}" for k in range(videos)]
    for k, video in enumerate(ids):
        film(root / "videos" / f"{video}.mp4", (k, 2.0), size=(SIZE, 2 * SIZE))
    rows = [f"ret{k},msr{9000 + k},{ids[k]},all {NAMES[k]}" for k in range(videos)]
    write(root / "list.csv", "\n".join(["key,vid_key,video_id,sentence", *rows]))
    for group, name in (("sentences", "video_id"), ("annotations", "image_id")):
        # Two sentences a video, as the data set has twenty.
        entries = [
            {name: video, "caption": f"{word} {NAMES[k]}"}
            for word in ("all", "only")
            for k, video in enumerate(ids)
        ]
        write(root / f"{group}.json", json.dumps({group: entries}))


def crosstask(root: Path) -> None:
    """Two tasks; video b skips a step, video c shows one twice. The folder, and segments.csv.

    Steps last 2 s, with a second of background after each, and before the first but in video c.
    """
    steps = {"23": [0, 1, 2], "7": [3, 4]}
    shown = {("23", "a"): [0, 1, 2], ("23", "b"): [0, 2], ("7", "c"): [0, 1, 0]}
    blocks = [
        f"{task}\ntitle\nhttps://x\n{len(own)}\n{','.join(NAMES[c] for c in own)}\n\n"
        for task, own in steps.items()
    ]
    write(root / "release" / "tasks_primary.txt", "".join(blocks))
    rows = ["end,start,task_id,text,video_id"]
    for (task, video), order in shown.items():
        lead = 0 if video == "c" else 1
        parts = [p for step in order for p in ((steps[task][step], 2.0), (25, 1.0))]
        film(root / "videos" / task / f"{video}.mp4", (25, lead), *parts, (25, 0.4))
        spans = [(step, 3 * k + lead, 3 * k + lead + 2) for k, step in enumerate(order)]
        lines = [f"{step + 1},{start},{end}" for step, start, end in spans]
        write(root / "release" / "annotations" / f"{task}_{video}.csv", "\n".join(lines))
        rows += [f"{e},{s},{task},{NAMES[steps[task][step]]},{video}" for step, s, e in spans]
    names = [",".join(video) for video in shown] + ["23,validation"]
    write(root / "release" / "videos.csv", "\n".join(f"{name},https://x" for name in names))
    write(root / "release" / "videos_val.csv", "23,validation,https://x\n")
    write(root / "segments.csv", "\n".join(rows))


def hmdb51(root: Path) -> None:
    """Two classes of three videos, a split each way; list.csv and the folder of splits."""
    table = ["video_id,label,split1,split2,split3"]
    for k, label in enumerate(("wave", "shoot_ball")):
        parts = {f"{label} #{n}.avi": np.roll([1, 1, 2], n).tolist() for n in range(3)}
        for n, name in enumerate(parts):
            film(root / "videos" / label / name, (k, 1.0 + 8 * n))
        for split in range(3):
            lines = "".join(f"{name} {part[split]} \r\n" for name, part in parts.items())
            write(root / "splits" / f"{label}_test_split{split + 1}.txt", lines)
        table += [f"{n},{label}_test,{p[0]},{p[1]},{p[2]}" for n, p in parts.items()]
    write(root / "list.csv", "\n".join(table))


def ucf101(root: Path) -> None:
    """As hmdb51; one class has a folder that is spelled another way."""
    table = ["video_id,label,split1,split2,split3"]
    write(root / "splits" / "classInd.txt", "1 Archery\n2 HandstandPushups\n")
    lists: dict[str, str] = {}
    for k, (folder, name) in enumerate(
        (("Archery", "Archery"), ("HandstandPushups", "HandStandPushups"))
    ):
        for n in range(3):
            video, parts = f"{folder}/v_{name}_g0{n}_c01.avi", np.roll([1, 1, 2], n).tolist()
            film(root / "videos" / video, (k, 1.0 + n))
            table.append(
                f"{video.replace('.avi', '.mp4')},{k + 1},{parts[0]},{parts[1]},{parts[2]}"
            )
            for split, part in enumerate(parts, start=1):
                kind, label = ("train", f" {k + 1}") if part == 1 else ("test", "")
                file = f"{kind}list0{split}.txt"
                lists[file] = lists.get(file, "") + f"{video}{label}\n"
    for file, text in lists.items():
        write(root / "splits" / file, text)
    write(root / "list.csv", "\n".join(table))


def word_vectors(path: Path) -> None:
    write(path, "".join(f"{name} 0 1\n" for name in NAMES))
