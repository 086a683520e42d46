"""Text files as people have them: byte order marks, CRLF, blank lines, commas without quotes.

Requirements: the standard library.

A line that is not what its format promises raises a ValueError that names file and line.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class AnnotationError(ValueError):
    """A file that is not what its format promises; the message names the line."""


def at(path: Path, line: int, message: str) -> AnnotationError:
    return AnnotationError(f"{path}, line {line}: {message}")


def read_text(path: str | Path) -> str:
    """Content of a UTF-8 file, without its byte order mark."""
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise AnnotationError(
            f"{path}: byte {error.start} is not UTF-8; convert the file to UTF-8"
        ) from None


def read_json(path: str | Path) -> dict[str, Any]:
    try:
        content = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise AnnotationError(f"{path}: is no JSON: {error}") from None
    if not isinstance(content, dict):
        raise AnnotationError(f"{path}: expected an object, got {type(content).__name__}")
    return content


def read_rows(path: str | Path) -> Iterator[tuple[int, list[str]]]:
    """(line number, stripped fields) of each line of a CSV file that is not blank."""
    reader = csv.reader(io.StringIO(read_text(path), newline=""))
    try:
        for row in reader:
            fields = [field.strip() for field in row]
            if any("\n" in field for field in fields):  # it would swallow the lines that follow
                raise at(Path(path), reader.line_num, "a quote that is opened is not closed")
            if any(fields):
                yield reader.line_num, fields
    except csv.Error as error:
        raise at(Path(path), reader.line_num, f"is no CSV: {error}") from None


def read_table(
    path: str | Path, columns: tuple[str, ...], free: str = ""
) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, {column: value}) of each row under the header of a CSV file.

    The columns may stand in any order, among others. Where a row has more fields than the header,
    the commas too many are taken as those of the column ``free``, as the released files have no
    quotes.

    Raises:
        AnnotationError: the header lacks a column, or a row is short, long, or leaves one empty.
    """
    path = Path(path)
    rows = read_rows(path)
    line, header = next(rows, (1, []))
    lacking = [name for name in columns if name not in header]
    if lacking:
        raise at(path, line, f"lacks the columns {lacking}; the header is {header}")
    for line, row in rows:
        extra = len(row) - len(header)
        if extra > 0 and free:
            place = header.index(free)
            row = [
                *row[:place],
                ", ".join(row[place : place + extra + 1]),
                *row[place + extra + 1 :],
            ]
        if len(row) != len(header):
            raise at(path, line, f"has {len(row)} fields, the header {len(header)}")
        values = dict(zip(header, row, strict=True))
        empty = [name for name in columns if not values[name]]
        if empty:
            raise at(path, line, f"{empty[0]} is empty")
        yield line, values


def to_seconds(value: Any, path: Path, line: int) -> float:
    """A time in a video."""
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if not (0 <= seconds < math.inf):
        raise at(path, line, f"{value!r} is no time in seconds")
    return seconds


def to_span(start: Any, end: Any, path: Path, line: int) -> tuple[float, float]:
    """Start and end of a part of a video."""
    span = to_seconds(start, path, line), to_seconds(end, path, line)
    if span[1] < span[0]:
        raise at(path, line, f"the end, {end} s, comes before the start, {start} s")
    return span


def to_integer(value: str, low: int, high: int, what: str, path: Path, line: int) -> int:
    """An integer from low to high."""
    try:
        number = int(value)
    except ValueError:
        number = low - 1
    if not low <= number <= high:
        raise at(path, line, f"{what} must be an integer from {low} to {high}, got {value!r}")
    return number
