"""A result as JSON and as a Markdown table beside the paper's rows.

Requirements: those of checkpoint.py.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from examples.vttwins.benchmarks.measure import CTR_MEANING, CTR_OFFICIAL, CTR_RELEASE
from examples.vttwins.benchmarks.table import BENCHMARKS, Benchmark
from examples.vttwins.checkpoint import write_text

RETRIEVAL_COLUMNS = ("R@1", "R@5", "R@10", "MedR", "MeanR")
DIRECTIONS = {"text_to_video": "text to video", "video_to_text": "video to text"}
SIMILARITIES = {"dot": "dot product", "cosine": "cosine"}
OWN_DATA = (
    "These videos are no benchmark of the paper: compare with chance, and with other checkpoints "
    "on the same files."
)

Rows = dict[str, dict[str, float]]


def try_to_write(path: Path) -> None:
    """Find out whether ``write`` will be able to, and make the folder.

    Raises:
        OSError: it will not.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path.parent):
        pass
    for suffix in (".json", ".md"):
        if path.with_suffix(suffix).is_dir():
            raise IsADirectoryError(f"{path.with_suffix(suffix)} is a folder")


def write(result: dict[str, Any], path: Path) -> str:
    """Write ``path`` with .json and .md at its end; returns the Markdown."""
    text = markdown(result)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path.with_suffix(".json"), json.dumps(result, indent=1, allow_nan=False))
    write_text(path.with_suffix(".md"), text)
    return text


def markdown(result: dict[str, Any]) -> str:
    """The result of evaluate.py as a page: what was measured, the tables, what compares."""
    benchmark = BENCHMARKS.get(result["benchmark"])
    title = benchmark.title if benchmark else result["benchmark"]
    clip = result["clip"]
    rate = f"{clip['fps']:g} frames a second" if clip["fps"] else "the rate of the file"
    lines = [
        f"# {title}",
        "",
        f"Checkpoint {result['checkpoint']} (weights {result['weights']}); windows of "
        f"{clip['frames']} frames at {rate}, {clip['size']} pixels, {result['windows']} a segment.",
        "",
    ]
    for columns, rows in tables(result, benchmark):
        lines += [*_table(columns, rows), ""]
    lines += _remarks(result, benchmark)
    return "\n".join(lines).rstrip() + "\n"


def tables(
    result: dict[str, Any], benchmark: Benchmark | None
) -> list[tuple[tuple[str, ...], Rows]]:
    """(columns, rows) of each table of a result, the paper's rows last."""
    paper = benchmark.paper if benchmark else {}
    found: list[tuple[tuple[str, ...], Rows]] = []
    if "splits" in result:
        columns = (*(f"split {k}" for k in range(1, len(result["splits"]) + 1)), "mean")
        row = dict(zip(columns, [*result["splits"], result["mean"]], strict=True))
        found.append((columns, {"this checkpoint": row, **paper}))
    if "text_to_video" in result:
        result = {**result, result["similarity"]: result}
    rows = {
        f"{words}, {SIMILARITIES[similarity]}": result[similarity][direction]
        for direction, words in DIRECTIONS.items()
        for similarity in SIMILARITIES
        if similarity in result
    }
    if rows:
        found.append((RETRIEVAL_COLUMNS, {**rows, **paper}))
    steps = {
        f"{name} {words}": {"CTR": result[name]["average" if "average" in result[name] else "mean"]}
        for name, words in CTR_MEANING.items()
        if name in result
    }
    if steps:
        if CTR_RELEASE in result:
            steps |= {
                f"{row}: of {CTR_RELEASE} alone": {"CTR": numbers[CTR_RELEASE]}
                for row, numbers in paper.items()
                if CTR_RELEASE in numbers
            }
        found.append((("CTR",), steps))
    return found


def _table(columns: tuple[str, ...], rows: Rows) -> list[str]:
    lines = [f"| | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    for name, numbers in rows.items():
        cells = (f"{numbers[column]:.1f}" if column in numbers else "" for column in columns)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _remarks(result: dict[str, Any], benchmark: Benchmark | None) -> list[str]:
    lines = []
    if "pairs" in result:
        lines.append(
            f"{result['pairs']} sentences, {result['segments']} segments; chance R@10 is "
            f"{result['chance_R@10']:.1f} %."
        )
    size = result["looked_at"]
    if benchmark and benchmark.size and benchmark.size != size:
        lines.append(
            f"The paper's numbers are of {benchmark.size}, these of {size}: they are not the same "
            "test."
        )
    for name, words in (
        ("texts_without_known_words", "texts have no word of the vocabulary and look the same."),
        ("partly_unusable", "videos cannot be decoded in part; no step is found in these seconds."),
        ("unannotated", "videos of the list have no annotation and are not counted."),
    ):
        if result.get(name):
            lines.append(f"{result[name]} {words}")
    whole = CTR_OFFICIAL in result and "pairs" not in result
    what = "Whole videos" if whole else "Videos" if "splits" in result else "Segments"
    for name, words in (
        ("unusable", what),
        ("unusable_whole", "Whole videos"),
        ("unusable_trimmed", "Trimmed segments"),
    ):
        if result.get(name):
            reasons = ", ".join(f"{count} {reason}" for reason, count in result[name].items())
            misses = "whose steps are missed" if words == "Whole videos" else "counted as misses"
            lines.append(
                f"{words} that cannot be used, by reason, {misses}: {reasons} (the JSON file names "
                "them)."
            )
    lines += result.get("remarks", [])
    lines.append(benchmark.comparable if benchmark else OWN_DATA)
    return lines
