"""Speed and memory next to other implementations, in one run.

    make bench-peers PEERS="--maghoumi soft_dtw_cuda.py --divergences soft-dtw-divergences/"
    python -m benchmarks.compare --rounds 1 --largest 300000        # a quick look

Two of the peers are in no registry and are given by path: the file soft_dtw_cuda.py of
Maghoumi/pytorch-softdtw-cuda, and a checkout of google-research/soft-dtw-divergences. Every round
measures every contender once, so that a drift of the machine meets all alike; the tables hold
medians over the rounds. Times are per cell of the cost matrix, the cost given. Every contender's
gradient is also compared with ours in float64.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numba
import torch

from benchmarks import contenders as peers

from .suite import problems
from .suite.memory import peak_bytes

MINIMAL_SAMPLE = 0.05  # seconds; shorter calls are repeated within a sample
MEMORY_SHAPE = (1, 4096, 4096)

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
    """Seconds of each call in each round; the first, unmeasured call of each compiles."""
    for call in calls.values():
        call()
    repeats = {key: math.ceil(MINIMAL_SAMPLE / seconds(call)) for key, call in calls.items()}
    times: Times = {key: [] for key in calls}
    for _ in range(rounds):
        for key, call in calls.items():
            times[key].append(seconds(call, repeats[key]))
    return times


def compare_shape(
    shape: problems.Shape, found: list[peers.Contender], rounds: int, inputs: str
) -> list[dict[str, Any]]:
    """One row a contender: ns a cell, ratios to ours, gradient error."""
    set_threads(1)
    costs = {c.label: problems.cost(shape, c.dtype, inputs) for c in found}
    calls: dict[str, Callable[[], object]] = {}
    for c in found:
        calls[f"{c.label} forward"] = partial(c.forward, costs[c.label])
        calls[f"{c.label} train"] = partial(c.train, costs[c.label])
    times = interleaved(calls, rounds)
    # The float64 contenders see other costs than the float32 ones, by the rounding of the inputs.
    exact = {
        dtype: oracle(found)(problems.cost(shape, dtype, inputs).double())
        for dtype in {c.dtype for c in found}
    }
    cells = math.prod(shape)
    rows: list[dict[str, Any]] = []
    for c in found:
        # Some overwrite what they are given: a fresh cost for the comparison of values.
        value, gradient = c.train(problems.cost(shape, c.dtype, inputs))
        true_value, true_gradient = exact[c.dtype]
        forward, train = (
            statistics.median(times[f"{c.label} {kind}"]) for kind in ("forward", "train")
        )
        rows.append(
            {
                "shape": shape,
                "contender": c.label,
                "forward_ns": forward / cells * 1e9,
                "train_ns": train / cells * 1e9,
                "gradient_error": float((gradient.double() - true_gradient).abs().max()),
                "value_error": float(((value.double() - true_value) / true_value).abs().max()),
                "samples_forward_s": times[f"{c.label} forward"],
                "samples_train_s": times[f"{c.label} train"],
            }
        )
    for row in rows:
        ours = rows[0] if row["contender"].endswith("float32") else rows[1]
        row["train_ratio"] = row["train_ns"] / rows[0]["train_ns"]
        row["train_ratio_same_dtype"] = row["train_ns"] / ours["train_ns"]
    return rows


def oracle(found: list[peers.Contender]) -> Callable[..., Any]:
    (exact,) = (c for c in found if c.name == peers.OURS and c.dtype == torch.float64)
    return exact.train


def train_with_threads(contender: peers.Contender, cost: torch.Tensor, threads: int) -> None:
    set_threads(threads)
    contender.train(cost)


def compare_threads(shapes: list[problems.Shape], rounds: int, inputs: str) -> list[dict[str, Any]]:
    """Ours in float32, forward and backward, with one and with two threads."""
    ours = peers.ours()[0]
    rows = []
    for shape in shapes:
        cost = problems.cost(shape, torch.float32, inputs)

        calls = {str(k): partial(train_with_threads, ours, cost, k) for k in (1, 2)}
        one, two = (statistics.median(t) for t in interleaved(calls, rounds).values())
        cells = math.prod(shape)
        rows.append(
            {
                "shape": shape,
                "one_thread_ns": one / cells * 1e9,
                "two_threads_ns": two / cells * 1e9,
                "ratio": one / two,
            }
        )
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
        {"what": what, "ns": statistics.median(t) / problems.S2DTW_LATTICE_CELLS * 1e9}
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
    calls: dict[str, Callable[[], object]] = {}
    for name, total in found.items():
        calls[f"{name} forward"] = partial(total, x, y)
        calls[f"{name} train"] = lambda total=total: torch.autograd.grad(total(leaf, y), leaf)  # type: ignore[misc]
    times = interleaved(calls, rounds)
    return [
        {
            "shape": shape,
            "contender": name,
            "forward_us": statistics.median(times[f"{name} forward"]) * 1e6,
            "train_us": statistics.median(times[f"{name} train"]) * 1e6,
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
    found, _ = peers.all_contenders(maghoumi, divergences)
    (contender,) = (c for c in found if c.label == label)
    contender.train(problems.cost((1, 300, 300), contender.dtype))
    cost = problems.cost(shape, contender.dtype)
    return peak_bytes(lambda: contender.train(cost)) / cost.nbytes - 1.0


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--maghoumi", type=Path, help="soft_dtw_cuda.py")
    parser.add_argument("--divergences", type=Path, help="folder that holds sdtw_div/")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--inputs", choices=("normal", "walk"), default="normal")
    parser.add_argument("--largest", type=int, default=2**62, help="leave out shapes of more cells")
    parser.add_argument("--output", type=Path, default=Path("build/benchmarks/compare.json"))
    options = parser.parse_args()

    shapes = [shape for shape in problems.SHAPES if math.prod(shape) <= options.largest]
    found, left_out = peers.all_contenders(options.maghoumi, options.divergences)
    report: dict[str, Any] = {
        "cpu": cpu_name(),
        "torch": torch.__version__,
        "numba": numba.__version__,
        "python": platform.python_version(),
        "rounds": options.rounds,
        "inputs": options.inputs,
        "gamma": peers.GAMMA,
        "how": {c.label: c.how for c in found},
        "left_out": left_out,
        "speed": [],
    }
    print(f"{report['cpu']}, torch {report['torch']}, one thread, {options.rounds} rounds, medians")
    for name, reason in left_out.items():
        print(f"Left out: {name} ({reason})")
    print("\n| batch x N x M | | forward, ns a cell | forward + backward | x ours float32 |"
          " x ours, same dtype | gradient error |\n|---|---|---:|---:|---:|---:|---:|")  # fmt: skip
    for shape in shapes:
        rows = compare_shape(shape, found, options.rounds, options.inputs)
        report["speed"] += rows
        for row in rows:
            print(
                f"| {' x '.join(map(str, shape))} | {row['contender']} | {row['forward_ns']:.2f} "
                f"| {row['train_ns']:.2f} | {row['train_ratio']:.1f} "
                f"| {row['train_ratio_same_dtype']:.1f} | {row['gradient_error']:.1e} |",
                flush=True,
            )

    report["threads"] = compare_threads(shapes, options.rounds, options.inputs)
    print("\n| forward + backward, float32 | 1 thread, ns a cell | 2 threads | ratio |"
          "\n|---|---:|---:|---:|")  # fmt: skip
    for row in report["threads"]:
        print(
            f"| {' x '.join(map(str, row['shape']))} | {row['one_thread_ns']:.2f} "
            f"| {row['two_threads_ns']:.2f} | {row['ratio']:.2f} |"
        )

    report["s2dtw"] = measure_s2dtw(options.rounds)
    print("\n| S2DTW, all pairs of 128 sequences of 8, float32 | ns a lattice cell |\n|---|---:|")
    for row in report["s2dtw"]:
        print(f"| {row['what']} | {row['ns']:.2f} |", flush=True)

    report["small_calls"] = []
    print("\n| one call from features, float32 | | forward, us | forward + backward |"
          "\n|---|---|---:|---:|")  # fmt: skip
    for shape in problems.SMALL_CALLS:
        rows = measure_small_calls(shape, options.maghoumi, options.rounds)
        report["small_calls"] += rows
        for row in rows:
            print(
                f"| {' x '.join(map(str, shape))} | {row['contender']} "
                f"| {row['forward_us']:.0f} | {row['train_us']:.0f} |",
                flush=True,
            )

    if math.prod(MEMORY_SHAPE) <= options.largest:
        shape_name = " x ".join(map(str, MEMORY_SHAPE))
        print(f"\n| peak memory beyond cost and gradient, {shape_name} | of the cost |\n|---|---:|")
        report["memory"] = {}
        for contender in found:
            arguments = (contender.label, MEMORY_SHAPE, options.maghoumi, options.divergences)
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                share = pool.apply(extra_memory, arguments)
            report["memory"][contender.label] = share
            print(f"| {contender.label} | {share:.1%} |", flush=True)

    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=1) + "\n")
    print(f"\nWrote {options.output}")


if __name__ == "__main__":
    main()
