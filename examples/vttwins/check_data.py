"""What training would skip, and why, before a long run.

    python -m examples.vttwins.check_data data                # quick: two places of each video
    python -m examples.vttwins.check_data data --thorough     # every caption of each
    python -m examples.vttwins.check_data data --report skipped.csv

checks what train.py takes: train.csv, the captions of each video, and the pictures at its captions.
Exit code: 0 if all can be used; 1 if some would be skipped, or captions left out; 2 if no run could
start, as the list of videos is missing, repeats a video, or lets two share their captions; 3 if a
run could start, but the report could not be written.

Requirements: torch, NumPy, av, tqdm.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tqdm import tqdm

from examples.vttwins.captions import Captions, caption_path, check_listed_once
from examples.vttwins.data import read_column
from examples.vttwins.video import VideoError, VideoReader, find_video

SHOWN = 3  # examples of each reason that are printed


@dataclass(frozen=True)
class Finding:
    """What is wrong with a video. ``fatal``: training skips it; otherwise it skips a part."""

    video: str
    reason: str
    message: str
    fatal: bool


@dataclass(frozen=True)
class Result:
    """What ``check`` found in a folder: the number of videos listed, and what is wrong."""

    videos: int
    findings: list[Finding]

    @property
    def usable(self) -> int:
        return self.videos - len([finding for finding in self.findings if finding.fatal])


def check_video(video: str, root: Path, thorough: bool = False) -> list[Finding]:
    """What is wrong with a video of the data folder ``root``, in the words of training.

    Args:
        video: path relative to ``root``/videos, as in train.csv.
        thorough: decode at each caption rather than at the first and the last.
    """
    findings = []
    try:
        if not video:
            raise VideoError("no_path", "a row of the list of videos has no path")
        captions = Captions.load(caption_path(root / "captions", video))
        with VideoReader(find_video(root / "videos", video)) as reader:
            inside = captions.until(reader.duration, reader.path)
            late, empty = len(captions.text) - len(inside.text), inside.text.count("")
            starts = sorted({max(int(start), 0) for start in inside.start})
            for start in starts if thorough else dict.fromkeys((starts[0], starts[-1])):
                reader.clip(start, 1, 1.0, resize=32)
        for count, reason, what in (
            (late, "late_captions", "start after the end of the video"),
            (empty, "empty_captions", "say nothing"),
        ):
            if count:
                message = f"{video}: {count} of {len(captions.text)} captions {what}"
                findings.append(Finding(video, reason, message, fatal=False))
    except VideoError as error:
        findings.append(Finding(video, error.reason, str(error), fatal=True))
    return findings


def check(
    root: Path, train_csv: str = "train.csv", thorough: bool = False, workers: int = 0
) -> Result:
    """Check the videos of a data folder that its list names.

    Raises:
        ValueError: no run can start with this list; the message says why.
        OSError: the list cannot be read.
    """
    videos = read_column(root / train_csv, "video_path")
    if not videos:
        raise ValueError(f"{root / train_csv} lists no video")
    check_listed_once(videos, root / "captions")
    one = partial(check_video, root=root, thorough=thorough)
    findings = [
        finding
        for found in tqdm(_each(one, videos, workers), total=len(videos), unit="video", leave=False)
        for finding in found
    ]
    return Result(len(videos), findings)


def _each(one: partial[list[Finding]], videos: list[str], workers: int) -> Iterator[list[Finding]]:
    if workers < 2:
        yield from map(one, videos)
        return
    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(one, videos, chunksize=8)


def show(result: Result) -> None:
    """Print counts by reason, with a few examples of each, the most frequent first."""
    print(f"{result.usable} of {result.videos} videos can be used")
    for fatal, what in ((True, "videos would be skipped"), (False, "videos would lose captions")):
        by_reason: dict[str, list[str]] = {}
        for finding in result.findings:
            if finding.fatal == fatal:
                by_reason.setdefault(finding.reason, []).append(finding.message)
        for reason, messages in sorted(by_reason.items(), key=lambda item: -len(item[1])):
            print(f"{len(messages)} {what}: {reason}")
            for message in messages[:SHOWN]:
                print(f"    {message}")
            if len(messages) > SHOWN:
                print(f"    and {len(messages) - SHOWN} more")


def write_report(result: Result, path: Path) -> None:
    """Write all findings as CSV: video, reason, message, skipped (1) or only captions lost (0)."""
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        table = csv.writer(file)
        table.writerow(["video", "reason", "message", "skipped"])
        table.writerows([f.video, f.reason, f.message, int(f.fatal)] for f in result.findings)


def try_report(path: Path) -> None:
    """Find out whether a file can be written, without a trace.

    Raises:
        OSError: it cannot.
    """
    there = path.exists()
    if there and not path.is_file() and not path.is_dir():
        return  # a pipe or a device, which opening would use up
    path.open("a").close()
    if not there:
        path.unlink()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="data folder: train.csv, videos/, captions/")
    parser.add_argument("--train-csv", default="train.csv", help="list of videos in the folder")
    parser.add_argument("--thorough", action="store_true", help="decode at every caption")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--report", type=Path, help="write all findings to this CSV file")
    options = parser.parse_args(arguments)
    if options.report:
        try:  # a check may take hours, so this is said before it
            try_report(options.report)
        except OSError as error:
            print(f"--report {options.report} cannot be written: {error}", file=sys.stderr)
    try:
        result = check(options.folder, options.train_csv, options.thorough, options.workers)
    except (ValueError, OSError) as error:
        print(f"No run can start: {error}")
        return 2
    except BrokenProcessPool:
        print("A process died while it decoded, for lack of memory or by a fault of the decoder.")
        print("With --workers 1, the last video that the progress bar counts is the one before it.")
        return 2
    show(result)
    unwritten = False
    if options.report:
        try:
            write_report(result, options.report)
        except OSError as error:
            print(f"{options.report} is not written: {error}", file=sys.stderr)
            unwritten = True
    if not result.usable:
        print("No run can start: no video can be used")
        return 2
    return 3 if unwritten else 1 if result.findings else 0


if __name__ == "__main__":
    raise SystemExit(main())
