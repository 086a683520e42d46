"""Speed, memory and accuracy next to other implementations, in one run.

    make bench-peers                          # all of it, then charts and tables: 8 minutes
    make bench-peers PEERS="--maghoumi soft_dtw_cuda.py --divergences soft-dtw-divergences/"
    python -m benchmarks.compare --quick      # few shapes, one round: does it run?

Two of the peers are in no registry and are given by path: the file soft_dtw_cuda.py of
Maghoumi/pytorch-softdtw-cuda, and a checkout of google-research/soft-dtw-divergences. The CPU code
of the former is also a part of dtw-loss-functions, which is measured in any case.

A contender is checked against float64 on small pairs before it is timed; one that fails is named,
and not timed. Every round measures every contender once, so that a drift of the machine meets all
alike; the tables hold medians over the rounds. Times are per cell of the cost matrix, the cost
given. The report keeps the raw times; benchmarks/charts.py draws it and writes the tables of the
pages.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import math
import multiprocessing
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numba
import torch
from torch import Tensor

from benchmarks import accuracy
from benchmarks import contenders as peers

from .suite import problems
from .suite.memory import peak_bytes

MINIMAL_SAMPLE = 0.05  # seconds; shorter calls are repeated within a sample
SLOW = 2.0  # seconds
MEMORY_SHAPE = (1, 4096, 4096)
CHECKED_SHAPE = (4, 24, 31)
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-9}
ERROR_SIZES = [64, 256, 1024, 4096]
ERROR_GAMMAS = (1.0, 0.1, 0.01)
QUICK_LARGEST = 300_000

Times = dict[str, list[float]]


def set_threads(threads: int) -> None:
    torch.set_num_threads(threads)
    numba.set_num_threads(min(threads, multiprocessing.cpu_count()))


def seconds(call: Callable[[], object], repeats: int = 1) -> float:
    started = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - started) / repeats


def interleaved(calls: Mapping[str, Callable[[], object]], rounds: int) -> Times:
    """Seconds of each call in each round; the first, unmeasured call of each compiles.

    A call that takes seconds is timed once: many rounds of it would be hours for nothing.
    """
    for call in calls.values():
        call()
    once = {key: seconds(call) for key, call in calls.items()}
    times: Times = {key: [taken] if taken > SLOW else [] for key, taken in once.items()}
    for _ in range(rounds):
        for key, call in calls.items():
            if once[key] <= SLOW:
                times[key].append(seconds(call, math.ceil(MINIMAL_SAMPLE / once[key])))
    return times


def exact(cost: torch.Tensor, gamma: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and gradient in float64, from which the errors are counted."""
    (ours,) = (c for c in peers.ours() if c.dtype == torch.float64)
    return ours.train(cost.double(), gamma)


def errors(contender: peers.Contender, cost: torch.Tensor, gamma: float) -> tuple[float, float]:
    """Of the gradient the largest absolute error, of the sum of the values the relative one."""
    true_value, true_gradient = exact(cost, gamma)
    # Some overwrite what they are given.
    value, gradient = contender.train(cost.clone(), gamma)
    value_error = (value.double().sum() - true_value.sum()) / true_value.sum()
    return float((gradient.double() - true_gradient).abs().max()), float(value_error.abs())


def check(found: list[peers.Contender]) -> tuple[list[peers.Contender], dict[str, str]]:
    """Those that compute soft-DTW and its gradient, and what the others get wrong."""
    right, wrong = [], {}
    for c in found:
        gradient, value = errors(c, problems.cost(CHECKED_SHAPE, c.dtype), peers.GAMMA)
        if gradient <= TOLERANCE[c.dtype] and value <= TOLERANCE[c.dtype]:
            right.append(c)
        else:
            wrong[c.label] = f"gradient off by {gradient:.1e}, value by {value:.1e}"
    return right, wrong


def compare_shape(
    shape: problems.Shape, found: list[peers.Contender], rounds: int, inputs: str
) -> list[dict[str, Any]]:
    """One row a contender: seconds of each round, and the errors at this shape."""
    set_threads(1)
    costs = {c.label: problems.cost(shape, c.dtype, inputs) for c in found}
    calls: dict[str, Callable[[], object]] = {}
    for c in found:
        calls[f"{c.label} forward"] = partial(c.forward, costs[c.label], peers.GAMMA)
        calls[f"{c.label} train"] = partial(c.train, costs[c.label], peers.GAMMA)
    times = interleaved(calls, rounds)
    rows: list[dict[str, Any]] = []
    for c in found:
        gradient, value = errors(c, problems.cost(shape, c.dtype, inputs), peers.GAMMA)
        rows.append(
            {
                "shape": shape,
                "contender": c.label,
                "gradient_error": gradient,
                "value_error": value,
                "samples_forward_s": times[f"{c.label} forward"],
                "samples_train_s": times[f"{c.label} train"],
            }
        )
    return rows


def nanoseconds(row: dict[str, Any], kind: str) -> float:
    """A cell of a row of `compare_shape`, the median of its rounds."""
    return statistics.median(row[f"samples_{kind}_s"]) / math.prod(row["shape"]) * 1e9


def measure_errors(
    found: list[peers.Contender], sizes: list[int], gammas: tuple[float, ...]
) -> list[dict[str, Any]]:
    """The error of float32 gradients on random walks, over length and gamma."""
    set_threads(1)
    walks = accuracy.CASES[0]
    rows = []
    for size in sizes:
        cost = walks.cost(size)[None]
        for gamma in gammas:
            for c in found:
                if c.dtype == torch.float32:
                    gradient, value = errors(c, cost, gamma)
                    row = {"length": size, "gamma": gamma, "contender": c.label}
                    rows.append(row | {"gradient_error": gradient, "value_error": value})
    return rows


def train_with_threads(contender: peers.Contender, cost: torch.Tensor, threads: int) -> None:
    set_threads(threads)
    contender.train(cost, peers.GAMMA)


def compare_threads(shapes: list[problems.Shape], rounds: int, inputs: str) -> list[dict[str, Any]]:
    """Ours in float32, forward and backward, with one and with two threads."""
    ours = peers.ours()[0]
    rows = []
    for shape in shapes:
        cost = problems.cost(shape, torch.float32, inputs)

        calls = {str(k): partial(train_with_threads, ours, cost, k) for k in (1, 2)}
        one, two = interleaved(calls, rounds).values()
        ratio = statistics.median(one) / statistics.median(two)
        rows.append({"shape": shape, "samples_1_s": one, "samples_2_s": two, "ratio": ratio})
    return rows


def measure_s2dtw(rounds: int) -> list[dict[str, Any]]:
    """All pairs of 128 sequences of 8, forward and backward, per cell of the 17 x 17 lattices."""
    from softdtw_kernels import s2dtw, s2dtw_from_cost

    set_threads(1)
    cost = problems.s2dtw_cost(torch.float32).requires_grad_()
    x, y = (problems.unit_sequences(seed).requires_grad_() for seed in (1, 2))
    calls: dict[str, Callable[[], object]] = {
        "from the cost, forward": lambda: s2dtw_from_cost(cost.detach()),
        "from the cost, forward + backward": lambda: torch.autograd.grad(
            s2dtw_from_cost(cost).sum(), cost
        ),
        "from 512 features, forward + backward": lambda: torch.autograd.grad(
            s2dtw(x, y, pairwise=True).sum(), (x, y)
        ),
    }
    return [
        {
            "what": what,
            "ns": statistics.median(t) / problems.S2DTW_LATTICE_CELLS * 1e9,
            "samples_s": t,
        }
        for what, t in interleaved(calls, rounds).items()
    ]


def measure_small_calls(
    shape: problems.Shape, maghoumi: Path | None, rounds: int
) -> list[dict[str, Any]]:
    """Microseconds of a call from features, one row a contender; shape: batch, length, features."""
    set_threads(1)
    x, y = (problems.small_features(shape, seed) for seed in (1, 2))
    leaf = x.clone().requires_grad_()
    found, _ = peers.small_calls(maghoumi)
    true = float(found[peers.OURS](x.double(), y.double()))
    for name, total in list(found.items()):
        off = abs(float(total(x, y).sum()) - true)
        if name != "torch.sum" and not off <= TOLERANCE[torch.float32] * abs(true):
            print(f"Not timed: {name}, a small call is off by {off:.1e}")
            del found[name]

    def train(total: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(total(leaf, y), leaf)

    calls: dict[str, Callable[[], object]] = {}
    for name, total in found.items():
        calls[f"{name} forward"] = partial(total, x, y)
        calls[f"{name} train"] = partial(train, total)
    times = interleaved(calls, rounds)
    return [
        {
            "shape": shape,
            "contender": name,
            "samples_forward_s": times[f"{name} forward"],
            "samples_train_s": times[f"{name} train"],
        }
        for name in found
    ]


def extra_memory(
    label: str, shape: problems.Shape, maghoumi: Path | None, divergences: Path | None
) -> float:
    """Peak of forward and backward beyond the cost and its gradient, as a share of the cost.

    Runs in a fresh process, after one call on a small problem that compiles.
    """
    set_threads(1)
    found, _ = peers.all_contenders(maghoumi, divergences, label)
    (contender,) = (c for c in found if c.label == label)
    contender.train(problems.cost((1, 300, 300), contender.dtype), peers.GAMMA)
    cost = problems.cost(shape, contender.dtype)
    return peak_bytes(lambda: contender.train(cost, peers.GAMMA)) / cost.nbytes - 1.0


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"], capture_output=True, text=True
    )
    return done.stdout.strip() or "unknown"


def versions() -> dict[str, str]:
    """Of what is measured, and of what it stands on."""
    names = (
        ("softdtw-kernels", "torch", "numba", "numpy", "pysdtw", "tslearn")
        + ("dtw-loss-functions", "ddtw", "torchdtw")
    )  # fmt: skip
    found = {"python": platform.python_version()}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def title(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--maghoumi", type=Path, help="soft_dtw_cuda.py")
    parser.add_argument("--divergences", type=Path, help="folder that holds sdtw_div/")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--inputs", choices=("normal", "walk"), default="normal")
    parser.add_argument("--largest", type=int, default=2**62, help="leave out shapes of more cells")
    parser.add_argument("--quick", action="store_true", help="small shapes, one round")
    parser.add_argument("--output", type=Path, default=Path("build/benchmarks/peers-cpu.json"))
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.largest = 1, QUICK_LARGEST

    started = time.monotonic()
    shapes = [shape for shape in problems.SHAPES if math.prod(shape) <= options.largest]
    found, left_out = peers.all_contenders(options.maghoumi, options.divergences)
    found, wrong = check(found)
    report: dict[str, Any] = {
        "cpu": cpu_name(),
        "cores": multiprocessing.cpu_count(),
        "threads_of_a_call": 1,
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "versions": versions(),
        "rounds": options.rounds,
        "inputs": options.inputs,
        "gamma": peers.GAMMA,
        "how": {c.label: c.how for c in found},
        "left_out": left_out,
        "failed_the_check": wrong,
        "speed": [],
        "small_calls": [],
        "memory": {},
        "seconds": {},  # since the start, at the end of each part
    }
    print(f"{report['cpu']}, one thread, {options.rounds} rounds, medians")
    for name, reason in left_out.items():
        print(f"Left out: {name} ({reason})")
    for name, reason in wrong.items():
        print(f"Not timed, as it fails the check: {name} ({reason})")
    print("\n| batch x N x M | | forward, ns a cell | forward + backward | gradient error |"
          "\n|---|---|---:|---:|---:|")  # fmt: skip
    for shape in shapes:
        rows = compare_shape(shape, found, options.rounds, options.inputs)
        report["speed"] += rows
        for row in rows:
            print(
                f"| {title(shape)} | {row['contender']} | {nanoseconds(row, 'forward'):.2f} "
                f"| {nanoseconds(row, 'train'):.2f} | {row['gradient_error']:.1e} |",
                flush=True,
            )

    def phase(name: str) -> None:
        report["seconds"][name] = round(time.monotonic() - started)

    phase("speed")
    report["threads"] = compare_threads(shapes, options.rounds, options.inputs)
    for row in report["threads"]:
        print(f"Two threads over one, {title(row['shape'])}: {row['ratio']:.2f} x")

    report["s2dtw"] = measure_s2dtw(options.rounds)
    for row in report["s2dtw"]:
        print(f"S2DTW of all pairs, {row['what']}: {row['ns']:.2f} ns a lattice cell", flush=True)

    print("\n| one call from features, float32 | | forward, us | forward + backward |"
          "\n|---|---|---:|---:|")  # fmt: skip
    for shape in problems.SMALL_CALLS:
        rows = measure_small_calls(shape, options.maghoumi, options.rounds)
        report["small_calls"] += rows
        for row in rows:
            forward, train = (
                statistics.median(row[f"samples_{k}_s"]) * 1e6 for k in ("forward", "train")
            )
            print(f"| {title(shape)} | {row['contender']} | {forward:.0f} | {train:.0f} |")

    phase("small calls")
    sizes = [n for n in ERROR_SIZES if n * n <= options.largest]
    report["errors"] = measure_errors(found, sizes, ERROR_GAMMAS)
    print("\n| walks | gamma | | gradient error |\n|---|---|---|---:|")
    for row in report["errors"]:
        print(
            f"| {row['length']} | {row['gamma']} | {row['contender']} "
            f"| {row['gradient_error']:.1e} |"
        )

    phase("errors")
    shape = MEMORY_SHAPE if not options.quick else (1, 2048, 2048)
    report["memory_shape"] = shape
    print(f"\n| peak memory beyond cost and gradient, {title(shape)} | of the cost |\n|---|---:|")
    for contender in found:
        arguments = (contender.label, shape, options.maghoumi, options.divergences)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            share = pool.apply(extra_memory, arguments)
        report["memory"][contender.label] = share
        print(f"| {contender.label} | {share:.1%} |", flush=True)

    report["minutes"] = round((time.monotonic() - started) / 60, 1)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(finite(report), indent=1) + "\n")
    print(f"\nWrote {options.output}, after {report['minutes']} minutes")


def finite(value: Any) -> Any:
    """NaN and infinities, which JSON has not, as text that `float` reads."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


if __name__ == "__main__":
    main()
