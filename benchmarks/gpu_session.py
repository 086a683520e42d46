"""All that is wanted of a GPU, in one call of at most ten minutes, into one file.

    python -m benchmarks.gpu_session --output build/benchmarks/gpu.json [--minutes 10]
        [--maghoumi FILE] [--sdtw-cuda-torch DIRECTORY]

`make gpu` runs it. In this order, each in a process of its own and for a time of its own, so that
what fails or takes too long leaves time for the others: accuracy, repeated bits and graphs; the
sanitizers; times by pass, family and kind of cost; the cycles of a chunk, part by part; the table
with peers and the host's part; other tests. The file is written anew after every step. It says the
device, and for each step how it ended.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

FIRST_TESTS = "bar_at_4096 or repeat_to_the_bit or graph_replays or families_agree"
SANITIZERS = "compute_sanitizer"
TAIL = 4000  # characters of what a step has printed


class Step(NamedTuple):
    name: str
    seconds: float  # at most
    command: tuple[str, ...]  # after the name of Python
    result: Path | None = None  # JSON that it writes


def steps(directory: Path, peers: Sequence[str] = ()) -> list[Step]:
    def tests(chosen: str) -> tuple[str, ...]:
        return ("-m", "pytest", "-q", "--no-header", "-rf", "tests/gpu", "-k", chosen)

    passes, stamps, table = (directory / f"{name}.json" for name in ("passes", "stamps", "table"))
    others = f"not ({FIRST_TESTS} or {SANITIZERS})"
    return [
        Step("accuracy, repeated bits and graphs", 150, tests(FIRST_TESTS)),
        Step("sanitizers", 75, tests(SANITIZERS)),
        Step(
            "times by pass, family and cost",
            150,
            ("-m", "benchmarks.gpu_passes", "--seconds", "130", "--output", str(passes)),
            passes,
        ),
        Step(
            "cycles of a chunk, part by part",
            30,
            ("-m", "benchmarks.gpu_stamps", "--output", str(stamps)),
            stamps,
        ),
        Step(
            "table with peers",
            120,
            ("-m", "benchmarks.gpu", "--quick", "--output", str(table), *peers),
            table,
        ),
        Step("other tests", 75, tests(others)),
    ]


def run_step(step: Step, seconds: float) -> dict[str, Any]:
    """How it ended: `ended` is its exit status, or None where its time was up."""
    begin = time.monotonic()
    if step.result:
        step.result.unlink(missing_ok=True)
    process = subprocess.Popen(
        (sys.executable, *step.command),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        printed, _ = process.communicate(timeout=seconds)
        ended: int | None = process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # with what it has started
        printed, _ = process.communicate()
        ended = None
    result = None
    if step.result and step.result.exists():
        try:
            result = json.loads(step.result.read_text())
        except ValueError:  # it was ended while it wrote
            result = None
    taken = round(time.monotonic() - begin, 1)
    return {"ended": ended, "seconds": taken, "result": result, "printed": printed[-TAIL:]}


def run(wanted: Sequence[Step], minutes: float, output: Path, about: dict[str, Any]) -> bool:
    """Whether all steps ended well. A step that no time is left for is None in the report."""
    end = time.monotonic() + 60 * minutes
    report: dict[str, Any] = {**about, "steps": {step.name: None for step in wanted}}
    output.parent.mkdir(parents=True, exist_ok=True)
    for step in wanted:
        left = end - time.monotonic()
        if left > 0:
            print(f"{step.name}: at most {min(step.seconds, left):.0f} s", flush=True)
            report["steps"][step.name] = done = run_step(step, min(step.seconds, left))
            print(done["printed"], flush=True)
        output.write_text(json.dumps(report, indent=1))
    return all(done and done["ended"] == 0 for done in report["steps"].values())


def about_the_device() -> dict[str, Any]:
    import torch

    if not torch.cuda.is_available():
        sys.exit("benchmarks/gpu_session.py needs a CUDA device, and torch sees none")
    of = torch.cuda.get_device_properties(0)
    return {
        "device": of.name,
        "multiprocessors": of.multi_processor_count,
        "compute_capability": [of.major, of.minor],
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("build/benchmarks/gpu.json"))
    parser.add_argument("--minutes", type=float, default=10, help="of the whole")
    arguments, peers = parser.parse_known_args()  # the others go to benchmarks.gpu
    about = about_the_device()
    wanted = steps(arguments.output.parent, peers)
    if not run(wanted, arguments.minutes - 0.1, arguments.output, about):
        sys.exit("some steps failed or found no time: see their `ended`")


if __name__ == "__main__":
    main()
