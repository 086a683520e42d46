"""Time a cell at inputs that may be a cliff, over that of the plain case of the same size.

    python -m benchmarks.cliffs [--rounds 7] [--only inf]

Forward and backward on one thread of the CPU, calls of a pair in turns, the best of the rounds.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from pathlib import Path

import numba
import torch

from .compare import cpu_name
from .suite.hard_cases import CASES, Call, Case

MINIMAL_SAMPLE = 0.02  # seconds; shorter calls are repeated within a sample


def cpu_seconds(call: Call, repeats: int = 1) -> float:
    started = time.process_time()
    for _ in range(repeats):
        call()
    return (time.process_time() - started) / repeats


def nanoseconds(case: Case, dtype: torch.dtype, rounds: int) -> tuple[float, float]:
    """A cell of the case, and of its plain counterpart."""
    problems = [case.make(dtype), case.plain(dtype)]
    for call, _ in problems:
        call()
    repeats = [math.ceil(MINIMAL_SAMPLE / max(cpu_seconds(call), 1e-6)) for call, _ in problems]
    best = [math.inf, math.inf]
    for _ in range(rounds):
        for k, (call, _) in enumerate(problems):
            best[k] = min(best[k], cpu_seconds(call, repeats[k]))
    (_, cells), (_, plain_cells) = problems
    return best[0] / cells * 1e9, best[1] / plain_cells * 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--output", type=Path, default=Path("build/benchmarks/cliffs.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    report = {
        "cpu": cpu_name(),
        "torch": torch.__version__,
        "numba": numba.__version__,
        "python": platform.python_version(),
        "rows": [],
    }
    print(f"{report['cpu']}, torch {report['torch']}, one thread, best of {options.rounds} rounds")
    print(
        "\n| case | float32, ns a cell | x plain | float64 | x plain |\n|---|---:|---:|---:|---:|"
    )
    for case in CASES:
        if options.only not in case.name:
            continue
        single, plain = nanoseconds(case, torch.float32, options.rounds)
        double, plain_double = nanoseconds(case, torch.float64, options.rounds)
        ratios = single / plain, double / plain_double
        report["rows"].append({"case": case.name, "float32": ratios[0], "float64": ratios[1]})
        print(
            f"| {case.name} | {single:.2f} | {ratios[0]:.2f} | {double:.2f} | {ratios[1]:.2f} |",
            flush=True,
        )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=1) + "\n")
    print(f"\nWrote {options.output}")


if __name__ == "__main__":
    main()
