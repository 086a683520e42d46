"""The results of an ablation as a table beside the paper's, with a verdict on each claim.

Requirements: NumPy.
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import numpy as np

from examples.vttwins.ablation.criteria import LEAST_SEEDS, Claim, Levels, Table, judge
from examples.vttwins.ablation.rows import PAPER_COLUMNS, ROWS

DECIMALS = {"R@10": 1, "CTR": 1, "probe": 1, "delta_mean": 2, "delta_sd": 3, "effective_rank": 1}
HEADINGS = {"delta_mean": "mean delta", "delta_sd": "sd delta", "effective_rank": "eff. rank"}


def processor() -> str:
    """Name of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def summarize(
    table: Table, seeds: list[int], levels: Levels, context: dict[str, Any]
) -> dict[str, Any]:
    """All that the report says, as plain data; ``context`` is put in front of it.

    A claim is judged if all rows that it compares are there, and ``LEAST_SEEDS`` seeds at least.
    """
    claims = judge(table, levels) if len(seeds) >= LEAST_SEEDS else []
    near = {
        row: [s for s, r in zip(seeds, table[row]["R@10"], strict=True) if r <= levels.collapsed]
        for row in table
    }
    return {
        **context,
        "seeds": seeds,
        "chance_limit": levels.collapsed,
        "near_chance": {row: which for row, which in near.items() if which},
        "rows": {row: {name: _numbers(v) for name, v in table[row].items()} for row in table},
        "claims": [_plain(claim) for claim in claims],
    }


def _numbers(values: np.ndarray) -> dict[str, Any]:
    sd = float(values.std(ddof=1)) if len(values) > 1 else None
    return {"mean": float(values.mean()), "sd": sd, "values": values.tolist()}


def _plain(claim: Claim) -> dict[str, Any]:
    return {
        "claim": claim.name,
        "verdict": claim.verdict,
        "alternatives": [
            [{"clause": c.text, "holds": c.holds} for c in part] for part in claim.alternatives
        ],
    }


def markdown(summary: dict[str, Any]) -> str:
    """The summary as Markdown."""
    metrics = [m for m in DECIMALS if all(m in row for row in summary["rows"].values())]
    first = ["row", *(HEADINGS.get(m, m) for m in metrics)]
    head = [*first, *(f"paper: {name}" for name in PAPER_COLUMNS)]
    seeds = summary["seeds"]
    lines = [f"# {summary['title']}", "", summary["about"], ""]
    lines += [f"Command: `{summary['command']}`. Processor: {summary['processor']}.", ""]
    lines += [f"Mean and standard deviation over {len(seeds)} seeds ({_span(seeds)}).", ""]
    lines += ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in ROWS:
        if row.name not in summary["rows"]:
            continue
        cells = [f"{row.title} (`{row.name}`)"]
        for metric in metrics:
            numbers, places = summary["rows"][row.name][metric], DECIMALS[metric]
            sd = "" if numbers["sd"] is None else f" ± {numbers['sd']:.{places}f}"
            cells.append(f"{numbers['mean']:.{places}f}{sd}")
        cells += [f"{value:g}" for value in row.paper] if row.paper else ["-"] * len(PAPER_COLUMNS)
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "## Claims", ""]
    if not summary["claims"]:
        lines += [f"Not judged: that takes more rows, or {LEAST_SEEDS} seeds at least.", ""]
    elif summary["remark"]:
        lines += [summary["remark"], ""]
    if summary["near_chance"]:
        near = "; ".join(f"{row} {_span(which)}" for row, which in summary["near_chance"].items())
        limit = summary["chance_limit"]
        lines += [f"Runs with R@10 of {limit:g} or less, about chance: {near}.", ""]
    for claim in summary["claims"]:
        lines.append(f"- {claim['claim']}: **{claim['verdict']}**")
        for number, part in enumerate(claim["alternatives"]):
            if number:
                lines.append("  - or")
            lines += [f"  - [{'x' if c['holds'] else ' '}] {c['clause']}" for c in part]
    return "\n".join(lines) + "\n"


def _span(seeds: list[int]) -> str:
    together = seeds == list(range(seeds[0], seeds[-1] + 1)) and len(seeds) > 1
    return f"{seeds[0]}-{seeds[-1]}" if together else ", ".join(map(str, seeds))
