"""Cues of SRT and WebVTT files, and what rolling captions really say.

Requirements: Python only.
"""

from __future__ import annotations

import codecs
import html
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Share of neighboring cues of which the second repeats a line of the first, from which on a file
# is taken to roll; YouTube's have nearly all, a song of one refrain a few.
ROLLING = 0.3
GAP = 0.5  # seconds between cues that may still repeat lines

_CLOCK = r"(-?)(?:(\d{1,6}):)?(\d{1,2}):(\d{2})(?:[.,](\d{1,9})\d*)?"
_ARROW = "-->"
_TIMING = re.compile(rf"^\s*{_CLOCK}\s*{_ARROW}\s*{_CLOCK}")
_TAGS = re.compile(r"<[^<>]*>|\{\\[^{}]*\}")  # <i>, <c.color>, <00:00:01.000>; {\an8}


@dataclass
class Cue:
    """Lines on screen from ``start`` to ``end`` seconds."""

    start: float
    end: float
    lines: list[str]


def decode(content: bytes) -> str:
    """Text of a subtitle file: by its byte order mark, else UTF-8, else Windows' old encoding."""
    for mark, encoding in (
        (codecs.BOM_UTF8, "utf-8-sig"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    ):
        if content.startswith(mark):
            return content.decode(encoding, errors="replace")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace")


def read_cues(text: str, unread: list[str] | None = None) -> list[Cue]:
    """Cues of an SRT or WebVTT file, in the order of the file, without markup.

    A cue that begins before 0, as tools that shift times leave it, begins at 0. One that also ends
    there is left out, and so is one whose line with an arrow is not understood: its text must not
    become that of the cue before.

    Args:
        text: of the file.
        unread: gets the timings of the cues that are left out.

    Example:
        >>> read_cues("7\\n00:00:01,500 --> 00:00:03\\n<i>stir</i> it\\n\\n8\\n01:00 --> 01:02\\nx")
        [Cue(start=1.5, end=3.0, lines=['stir it']), Cue(start=60.0, end=62.0, lines=['x'])]
    """
    cues: list[Cue] = []
    raw: list[str] = []  # lines since the last timing
    timed = False  # whether they belong to the last cue
    webvtt = text.lstrip().startswith("WEBVTT")

    def finish(is_last: bool) -> None:
        if not timed:
            return
        lines = raw
        if webvtt:  # an empty line ends a cue; a note or the name of the next one may follow
            lines = lines[: lines.index("")] if "" in lines else lines
        elif not is_last and lines and lines[-1].strip().isdigit():
            lines = lines[:-1]  # the number of the next cue
        plain = (html.unescape(_TAGS.sub("", line)) for line in lines)
        cues[-1].lines = [" ".join(line.split()) for line in plain if line.split()]

    for line in text.splitlines():
        if _ARROW not in line:
            raw.append(line)
            continue
        finish(is_last=False)
        raw, found = [], _TIMING.match(line)
        start, end = (_seconds(found.groups()[k : k + 5]) for k in (0, 5)) if found else (-1, -1)
        timed = start >= 0 or end > 0
        if timed:
            cues.append(Cue(max(start, 0.0), max(end, 0.0), []))
        elif unread is not None:
            unread.append(line.strip())
    finish(is_last=True)
    return cues


def _seconds(fields: tuple[str | None, ...]) -> float:
    hours, minutes, seconds, fraction = (field or "0" for field in fields[1:])
    whole = int(hours) * 3600 + int(minutes) * 60 + int(seconds)
    return (whole + int(fraction) / 10 ** len(fraction)) * (-1 if fields[0] else 1)


def _carried(before: list[str], now: list[str]) -> int:
    """How many lines of ``now`` stood there before, the last of them perhaps shorter."""
    for count in range(min(len(before), len(now)), 0, -1):
        if before[-count:-1] == now[: count - 1] and (now[count - 1] + " ").startswith(
            before[-1] + " "
        ):
            return count
    return 0


def merge_rolling(cues: list[Cue]) -> list[Cue]:
    """One cue for each line that rolling captions add; other captions stay as they are.

    Rolling captions show a line again while the next one appears below it, or while it grows word
    by word. Each line is kept once, from when it appears to when the last of its words has.

    Example:
        >>> rolling = [Cue(0, 2, ["cut it"]), Cue(2, 4, ["cut it", "then"]),
        ...            Cue(4, 5, ["cut it", "then fry"]), Cue(5, 7, ["then fry", "and eat"])]
        >>> [(cue.start, cue.end, *cue.lines) for cue in merge_rolling(rolling)]
        [(0, 2, 'cut it'), (2, 5, 'then fry'), (5, 7, 'and eat')]
    """
    shown = [cue for cue in cues if cue.lines]
    pairs = list(zip(shown, shown[1:], strict=False))
    carried = [_carried(a.lines, b.lines) if -GAP < b.start - a.end < GAP else 0 for a, b in pairs]
    if sum(map(bool, carried)) <= ROLLING * len(pairs):
        return shown
    merged: list[Cue] = []
    for cue, before, count in zip(shown, [None, *shown], [0, *carried], strict=False):
        if count and before is not None:
            grown = cue.lines[count - 1][len(before.lines[-1]) :].strip()
            if grown:
                merged[-1].lines[-1] += f" {grown}"
                merged[-1].end = cue.end
        if cue.lines[count:]:
            merged.append(Cue(cue.start, cue.end, cue.lines[count:]))
    return merged


def captions_of_subtitles(path: Path, unread: list[str] | None = None) -> dict[str, list[Any]]:
    """{"start", "end", "text"} of an SRT or WebVTT file; ``unread`` as in ``read_cues``."""
    cues = merge_rolling(read_cues(decode(path.read_bytes()), unread))
    return {
        "start": [cue.start for cue in cues],
        "end": [cue.end for cue in cues],
        "text": [" ".join(cue.lines) for cue in cues],
    }
