"""The captions of a video: reading, checking, ordering, and which file they are in.

Requirements: those of video.py and words.py.

A caption file is {"start": [...], "end": [...], "text": [...]}, in seconds. The captions of the
video a/x.mp4 are captions/a/x.json or else captions/x.json, as HowTo100M has them. What is wrong
with a file is a VideoError: it costs that video, never the run.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.vttwins.video import VideoError, bare_name
from examples.vttwins.words import says_nothing, tokenize

_LONE = re.compile("[\ud800-\udfff]")  # a surrogate without its other half
LONGEST = 1e6  # seconds; a caption later than 11 days into its video is a mistake


@dataclass(frozen=True)
class Captions:
    """Narration of a video: caption i says ``text[i]`` from ``start[i]`` to ``end[i]`` seconds.

    The captions are in the order of their starts; one without words has the text "".
    """

    start: list[float]
    end: list[float]
    text: list[str]

    @classmethod
    def load(cls, path: Path) -> Captions:
        """Read a caption file, in any order and in any encoding that JSON allows.

        Raises:
            VideoError: "no_captions" (no file), "unreadable" (the file system refuses),
                "bad_captions" (not the format), "silent" (no words in it).
        """
        try:
            content = json.loads(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            raise VideoError("no_captions", f"{path}: no such file") from None
        except OSError as error:
            raise VideoError("unreadable", f"{path}: {error}") from None
        except (ValueError, RecursionError) as error:
            raise VideoError("bad_captions", f"{path}: {error}") from None
        return cls.from_json(content, str(path))

    @classmethod
    def from_json(cls, content: Any, source: str) -> Captions:
        """Captions of {"start": [...], "end": [...], "text": [...]}, checked and put in order.

        Raises:
            VideoError: "bad_captions" or "silent"; the message names ``source``.

        Example:
            >>> Captions.from_json({"start": [4, 0], "end": [5, 3], "text": ["then", None]}, "a")
            Captions(start=[0.0, 4.0], end=[3.0, 5.0], text=['', 'then'])
        """
        try:
            start = [float(value) for value in content["start"]]
            end = [float(value) for value in content["end"]]
            text = [_words_of(value) for value in content["text"]]
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise VideoError(
                "bad_captions", f"{source}: needs start, end, text: {error!r}"
            ) from None
        if not len(start) == len(end) == len(text):
            raise VideoError(
                "bad_captions", f"{source}: {len(start)} starts, {len(end)} ends, {len(text)} texts"
            )
        wrong = [value for value in (*start, *end) if not abs(value) <= LONGEST]  # NaN too
        if wrong:
            raise VideoError("bad_captions", f"{source}: {wrong[0]} s is no time in a video")
        if not any(text):
            raise VideoError("silent", f"{source}: no captions with a word")
        order = sorted(range(len(text)), key=lambda i: (start[i], end[i]))
        return cls([start[i] for i in order], [end[i] for i in order], [text[i] for i in order])

    def until(self, seconds: float | None, video: str | Path = "the video") -> Captions:
        """The captions of a video of this length: none starts after its end, none ends after it.

        Raises:
            VideoError: "short": the video ends before its first caption.

        Example:
            >>> Captions([0.0, 4.0], [6.0, 9.0], ["stir", "thanks"]).until(3.0)
            Captions(start=[0.0], end=[3.0], text=['stir'])
        """
        if seconds is None:
            return self
        kept = sum(start < seconds for start in self.start)
        if not kept:
            raise VideoError(
                "short",
                f"{video}: nothing at {self.start[0]:.2f} s, its first caption; the video ends at "
                f"{seconds:.2f} s",
            )
        ends = [min(end, seconds) for end in self.end[:kept]]
        return Captions(self.start[:kept], ends, self.text[:kept])


def _words_of(value: object) -> str:
    """The text of a caption, "" without a word; null and NaN (an empty cell) say nothing.

    Half a character, which JSON allows ("\\ud83d" alone) and UTF-8 does not, is replaced as
    decoders do: it is no word, and the rest of the caption is as good as any.
    """
    if says_nothing(value):
        return ""
    if isinstance(value, (str, int, float)):
        text = _LONE.sub("\ufffd", str(value).strip())
        return text if tokenize(text) else ""
    raise TypeError(f"a caption must be text, got {value!r:.80}")


def caption_paths(root: Path, video: str) -> list[Path]:
    """Where the captions of a video may be, the first choice first.

    Example:
        >>> [str(path) for path in caption_paths(Path("captions"), "a/x.y.mp4")]
        ['captions/a/x.y.json', 'captions/x.y.json']
    """
    name = bare_name(video)
    return list(dict.fromkeys((root / f"{name}.json", root / f"{Path(name).name}.json")))


def caption_path(root: Path, video: str) -> Path:
    """The caption file of a video; the first choice where there is none."""
    paths = caption_paths(root, video)
    return next((path for path in paths if os.path.exists(path)), paths[0])


def shared_captions(videos: list[str], root: Path) -> dict[str, list[str]]:
    """Videos that would read the caption file of another one: {file: videos}.

    Only videos with the same bare name are looked up, so this is quick for any number.
    """
    by_name: dict[str, list[str]] = {}
    for video in filter(None, videos):
        by_name.setdefault(os.path.basename(bare_name(video)), []).append(video)
    by_file: dict[str, list[str]] = {}
    for alike in by_name.values():
        if len(alike) > 1:
            for video in alike:
                by_file.setdefault(str(caption_path(root, video)), []).append(video)
    return {file: alike for file, alike in by_file.items() if len(alike) > 1}


def check_listed_once(videos: list[str], caption_root: Path) -> None:
    """Refuse a list with a video in it twice, or with two that share a caption file.

    Raises:
        ValueError: the message says which.
    """
    counts = Counter(videos)
    repeated = [video for video, count in counts.items() if count > 1 and video]
    if repeated:
        raise ValueError(
            f"{len(repeated)} videos are listed more than once, such as {repeated[0]!r}; list each "
            "once, as a batch would contrast it with itself"
        )
    for file, alike in shared_captions(videos, caption_root).items():
        raise ValueError(
            f"{file} would serve {' and '.join(alike[:2])}; give each its own, such as "
            f"{caption_paths(caption_root, alike[-1])[0]}"
        )
