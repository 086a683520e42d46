"""Captions of your own videos in the layout that training reads: HowTo100M's files, SRT, WebVTT.

    python -m examples.vttwins.convert subtitles/ --out data           # talks/x.en.vtt, talks/y.srt
    python -m examples.vttwins.convert raw_caption.json --out data --with-video

writes data/captions/<video>.json and data/train.csv, which lists the videos under data/videos that
have captions. A source is a file or a folder that is searched for files of these kinds:

    .srt, .vtt   subtitles; "x.en.vtt" belongs to the video x. Rolling captions, in which each cue
                 repeats the lines before it (YouTube's automatic ones), are merged.
    .csv         HowTo100M's, one a video, columns start, end, text
    .json        {"start": [...], "end": [...], "text": [...]} of the video that the file is named
                 after, or HowTo100M's {video: {...}, ...}, read video by video, as it is gigabytes

What is no character in a .json file is replaced by U+FFFD, which is no word. Names that UTF-8 or
the file system cannot write are left out and reported, as train.csv and the captions need them.

Next: python -m examples.vttwins.check_data data. Requirements: NumPy, torch and av through data.py.
"""

from __future__ import annotations

import argparse
import csv
import errno
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from examples.vttwins.captions import Captions, caption_path, shared_captions
from examples.vttwins.subtitles import captions_of_subtitles
from examples.vttwins.video import VideoError, bare_name, find_video, videos_in

KINDS = (".srt", ".vtt", ".csv", ".json")
# What the system says of a name that cannot be written; other errors concern all files.
BAD_NAMES = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.EINVAL)
_LANGUAGE = re.compile(r"\.([a-z]{2,3}(?:-[A-Za-z0-9]{2,8})*)$")


def captions_of_table(path: Path) -> dict[str, list[Any]]:
    """{"start", "end", "text"} of one of HowTo100M's CSV files.

    Raises:
        VideoError: "bad_captions": a column is missing, or the file is no table.
    """
    names = ("start", "end", "text")
    with path.open(newline="", encoding="utf-8-sig") as file:
        table = csv.DictReader(file)
        try:
            if not set(names) <= set(table.fieldnames or ()):
                raise VideoError(
                    "bad_captions",
                    f"{path}: needs the columns start, end, text, has {table.fieldnames}",
                )
            rows = list(table)
        except (csv.Error, UnicodeDecodeError) as error:
            raise VideoError(
                "bad_captions", f"{path}, line {table.line_num + 1}: {error}"
            ) from None
    return {name: [row[name] for row in rows] for name in names}


def json_items(path: Path, block: int = 1 << 20) -> Iterator[tuple[str, Any]]:
    """Items of a JSON object, one after the other, of files larger than the memory, too.

    Raises:
        VideoError: "bad_captions": the file is no JSON object, or is cut.
    """
    try:
        yield from _json_items(path, block)
    except (ValueError, RecursionError) as error:
        raise VideoError("bad_captions", f"{path}: {error}") from None


def _json_items(path: Path, block: int) -> Iterator[tuple[str, Any]]:
    parse, space = json.JSONDecoder().raw_decode, re.compile(r"[\s,:]*")
    # One damaged byte of a caption is not to cost all videos after it.
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        text = file.read(block)
        while text.isspace():
            text = file.read(block)
        begin = text.find("{") + 1
        if not begin or text[: begin - 1].strip():
            raise ValueError("expected a JSON object, {...}")
        while True:
            # `space` also matches nothing, so there always is a match.
            begin = space.match(text, begin).end()  # type: ignore[union-attr]
            try:
                if text[begin : begin + 1] == "}":
                    return
                key, end = parse(text, begin)
                value, end = parse(text, space.match(text, end).end())  # type: ignore[union-attr]
                if end == len(text):  # a number may go on
                    raise ValueError("the file is cut")
            except ValueError as error:
                more = file.read(max(block, len(text) - begin))
                if not more:
                    raise ValueError(f"no JSON object, or a cut one: {error}") from None
                text, begin = text[begin:] + more, 0
                continue
            if not isinstance(key, str):
                raise ValueError(f"expected the name of a video, got {key!r:.60}")
            yield key, value
            begin = end


def captions_in(
    path: Path, name: str, unread: list[str] | None = None
) -> Iterator[tuple[str, Any]]:
    """(video, {"start", "end", "text"}) of a source.

    Args:
        path: of the source.
        name: the video of a source with one.
        unread: gets the timings of the cues of subtitles that are left out.
    """
    suffix = path.suffix.lower()
    if suffix in (".srt", ".vtt"):
        yield name, captions_of_subtitles(path, unread)
    elif suffix == ".csv":
        yield name, captions_of_table(path)
    else:
        alone: dict[str, Any] = {}
        for key, value in json_items(path):
            if isinstance(value, dict):
                yield key, value
            else:
                alone[key] = value
        if alone:
            yield name, alone


@dataclass
class Report:
    """What a conversion did."""

    written: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)  # (video or file, reason: message)
    unread: dict[str, list[str]] = field(default_factory=dict)  # timings by source
    listed: int = 0
    without_captions: list[str] = field(default_factory=list)
    ambiguous: list[str] = field(default_factory=list)


def sources_in(places: list[Path], videos: Path, language: str = "") -> dict[str, Path]:
    """The files to read by the video that each is named after, with its folder in the source.

    Raises:
        ValueError: a source does not exist, or two files belong to one video.
    """
    found: dict[str, Path] = {}
    for place in places:
        if place.is_dir():
            files = sorted(p for p in place.rglob("*") if p.suffix.lower() in KINDS and p.is_file())
        elif place.is_file() and place.suffix.lower() in KINDS:
            files = [place]
        else:
            raise ValueError(f"{place}: need a folder or a file of {', '.join(KINDS)}")
        for file in files:
            name = file.relative_to(place if place.is_dir() else place.parent)
            stem = bare_name(name.with_suffix("").as_posix())
            tag = _LANGUAGE.search(stem)
            # A video whose own name ends like that keeps it.
            if tag and file.suffix.lower() in (".srt", ".vtt") and not _is_video(videos, stem):
                if language and tag[1] != language:
                    continue
                stem = stem[: tag.start()]
            if stem in found:
                raise ValueError(
                    f"{found[stem]} and {file} are captions of the same video; give one of them, "
                    "or --language"
                )
            found[stem] = file
    return found


def _is_video(videos: Path, name: str) -> bool:
    return find_video(videos, name).is_file()


def convert(
    places: list[Path],
    out: Path,
    language: str = "",
    with_video: bool = False,
    overwrite: bool = False,
) -> Report:
    """Write ``out``/captions/*.json for the sources, and ``out``/train.csv.

    Args:
        places: files and folders of captions.
        out: data folder; its videos lie in ``out``/videos.
        language: of subtitles with a tag, "en" in x.en.vtt; the others are left out.
        with_video: leave out captions without a video in ``out``/videos.
        overwrite: replace files that are there already with other content.

    Raises:
        ValueError: a source is missing or given twice, or a file exists with other content.
    """
    report, captions = Report(), out / "captions"
    videos = []
    for video in videos_in(out / "videos"):
        if _is_utf8(video):
            videos.append(video)
        else:
            why = f"bad_name: the file name {video!r} is not UTF-8; rename it"
            report.skipped.append((video, why))
    names = {part for video in videos for part in (bare_name(video), Path(bare_name(video)).name)}
    for stem, source in sources_in(places, out / "videos", language).items():
        unread: list[str] = []
        try:
            for video, content in captions_in(source, stem, unread):
                if with_video and video not in names:
                    continue
                try:
                    path = _inside(captions, video)
                    checked = Captions.from_json(content, f"{source}: {video}")
                except VideoError as error:
                    report.skipped.append((video, f"{error.reason}: {error}"))
                    continue
                try:
                    _write(path, json.dumps(checked.__dict__, ensure_ascii=False), overwrite)
                except OSError as error:
                    if error.errno not in BAD_NAMES:
                        raise
                    report.skipped.append((video, f"bad_name: {video!r:.80}: {error.strerror}"))
                    continue
                report.written += 1
        except VideoError as error:
            report.skipped.append((str(source), f"{error.reason}: {error}"))
        except OSError as error:
            report.skipped.append((str(source), f"unreadable: {error}"))
        if unread and not (with_video and stem not in names):
            report.unread[str(source)] = unread
    report.without_captions = [v for v in videos if not caption_path(captions, v).is_file()]
    described = set(videos) - set(report.without_captions)
    shared = shared_captions(sorted(described), captions).values()
    report.ambiguous = sorted(video for alike in shared for video in alike)
    listed = sorted(described - set(report.ambiguous))
    report.listed = len(listed)
    if listed:
        table = io.StringIO(newline="")
        csv.writer(table).writerows([["video_path"], *([video] for video in listed)])
        _write(out / "train.csv", table.getvalue(), overwrite)
    return report


def _inside(folder: Path, video: str) -> Path:
    parts = Path(video).parts
    if not parts or ".." in parts or Path(video).is_absolute() or "\0" in video:
        raise VideoError("bad_name", f"{video!r:.80} is no name for a file in {folder}")
    if not _is_utf8(video):
        raise VideoError("bad_name", f"the name {video!r:.80} is not UTF-8")
    return folder / f"{video}.json"


def _is_utf8(name: str) -> bool:
    """Whether a name can be written into train.csv: not with bytes or halves of characters."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _write(path: Path, text: str, overwrite: bool) -> None:
    """Write a file whole or not at all; without a flush to disk each, as there may be a million."""
    content = text.encode("utf-8")
    if path.is_file() and not overwrite:
        if path.read_bytes() == content:
            return
        raise ValueError(f"{path} exists and says something else; give --overwrite to replace it")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _printable(text: str) -> str:
    """Text without halves of characters, which file names may hold and no output takes."""
    return text.encode("utf-8", "backslashreplace").decode()


def show(report: Report, out: Path) -> None:
    """Print what was done, with a few examples of what was not."""
    print(f"{out / 'captions'}: {report.written} caption files written")
    print(f"{out / 'train.csv'}: {report.listed} videos with captions")
    reasons = Counter(reason.split(":")[0] for _, reason in report.skipped)
    for reason, count in reasons.most_common():
        print(f"{count} left out: {reason}")
        for _, why in [entry for entry in report.skipped if entry[1].split(":")[0] == reason][:3]:
            print(f"    {_printable(why)}")
    if report.unread:
        count = sum(map(len, report.unread.values()))
        print(f"{count} cues of {len(report.unread)} files left out, for their timing:")
        for source, lines in list(report.unread.items())[:3]:
            print(f"    {_printable(source)}: {_printable(lines[0])}")
    for names, what in (
        (report.without_captions, "videos have no captions and are not listed"),
        (report.ambiguous, "videos would share captions and are not listed; see captions.py"),
    ):
        if names:
            print(f"{len(names)} {what}, such as {', '.join(names[:3])}")
    if not report.listed:
        print(f"train.csv is not written: no video with captions in {out / 'videos'}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, nargs="+", help="files or folders of captions")
    parser.add_argument("--out", type=Path, required=True, help="data folder, with videos/ in it")
    parser.add_argument("--language", default="", help="of subtitles: en takes x.en.vtt only")
    parser.add_argument(
        "--with-video", action="store_true", help="leave out captions without a video in OUT/videos"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what is there already")
    options = parser.parse_args(arguments)
    try:
        report = convert(
            options.source, options.out, options.language, options.with_video, options.overwrite
        )
    except (ValueError, OSError) as error:
        raise SystemExit(f"{error}") from error
    show(report, options.out)
    return 1 if report.skipped or report.unread or not report.listed else 0


if __name__ == "__main__":
    raise SystemExit(main())
