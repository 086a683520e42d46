"""Times and memory of the CUDA backend, against the bandwidth of the device and against peers.

    python -m benchmarks.gpu --output build/gpu.json
        [--maghoumi FILE] [--sdtw-cuda-torch DIRECTORY] [--quick] [--only REGEX]

`make gpu` runs it after the GPU tests. For each shape: forward, and forward + backward, as called
from Python one at a time; both again as the device does them, from a CUDA graph over so many inputs
that no cache holds them; peak memory beyond the inputs; and the share of the copy bandwidth,
measured in the same run, that the least traffic (cost read once forward; read, and its gradient
written, backward) takes of the device's time. From features, where no cost is stored, it may pass
100 %. Peers run on the same inputs where they can: pysdtw if it is installed, the others by their
path. They cannot all be captured in a graph, so ratios compare calls from Python, and a peer's
time against that of our graph is printed beside.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import re
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import softdtw_kernels as sk
from benchmarks.gpu_passes import COSTS, UNIFORM

FROM_COST = [
    (512, 64, 64),
    (512, 256, 256),
    (64, 1024, 1024),
    (8, 4096, 4096),
    (1, 16384, 16384),
]
# Beside U[0, 1], which flatters: costs in use leave the quickest numbers, and have less mass.
IN_USE = (
    "z-normed walks, 4 features",
    "squared distances, 64 features",
    "cosine, 64 features",
)
FROM_FEATURES = [(32, 512, 512, 64)]
ALL_PAIRS = [128, 1024]  # sequences of 8 on each side
GAMMA = 0.1

Loss = Callable[..., Tensor]  # of the inputs, to the sum of the values


@dataclass
class Result:
    """One row of the table; milliseconds are medians, None is not measured."""

    problem: str
    who: str
    forward_ms: float | None
    both_ms: float | None
    peak_mib: float | None
    device_forward_ms: float | None = None
    device_both_ms: float | None = None
    share_of_bandwidth: float | None = None
    error: str = ""


LONGEST_MS = 500  # of all repeats of a call, about; a call that takes longer is made once


def milliseconds(call: Callable[[], Any], repeats: int) -> float:
    """Median over single launches between events, after warming up; fewer of what takes long."""

    def once() -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    call()  # compiles
    expected = once()
    repeats = max(1, min(repeats, int(LONGEST_MS / max(expected, 1e-3))))
    if repeats == 1:
        return expected
    once()
    return statistics.median(once() for _ in range(repeats))


CACHES_BYTES = 256 << 20  # several times what the caches of a device hold
MOST_COPIES = 32


def on_device(call: Callable[[list[Tensor]], Any], inputs: list[Tensor], repeats: int) -> float:
    """Milliseconds of the device for a call: replays of a graph of calls on copies of the inputs.

    All results are kept, so that they too go to memory.
    """
    size = sum(x.numel() * x.element_size() for x in inputs)
    copies = max(1, min(MOST_COPIES, CACHES_BYTES // size))
    sets = [inputs] + [
        [x.detach().clone().requires_grad_(x.requires_grad) for x in inputs]
        for _ in range(copies - 1)
    ]
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        call(sets[0])
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = [call(given) for given in sets]
    time = milliseconds(graph.replay, repeats) / copies
    del kept, graph
    return time


def copy_bandwidth(repeats: int) -> float:
    """Bytes read and written a second, by a copy of 2 GiB."""
    source = torch.empty(2 << 30, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    return 2 * source.numel() / (milliseconds(lambda: target.copy_(source), repeats) / 1e3)


def host_times() -> dict[str, float]:
    """Microseconds of the host for a small call, and for what torch itself does."""
    cost = torch.rand(1, 8, 8, device="cuda")
    leaf, one = cost.clone().requires_grad_(), torch.ones(1, device="cuda")
    gamma = torch.ones(1, dtype=torch.float64)

    def both() -> object:
        return torch.autograd.grad(sk.soft_dtw_from_cost(leaf), leaf, one)

    def both_in_this_thread() -> object:
        with torch.autograd.set_multithreading_enabled(False):
            return both()

    calls = {
        "forward": lambda: sk.soft_dtw_from_cost(cost),
        "the operator of the gradient alone": lambda: torch.ops.softdtw_kernels.gradient(
            cost, gamma, None, None, None, None, one, False
        ),
        "forward + backward": both,
        "forward + backward, not handed over to a thread of torch": both_in_this_thread,
        "torch: a sum": lambda: cost.sum((1, 2)),
        "torch: a sum, forward + backward": lambda: torch.autograd.grad(
            leaf.sum((1, 2)), leaf, one
        ),
    }
    times = {}
    for name, call in calls.items():
        call()
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(200):
            call()
        times[name] = (time.perf_counter() - start) / 200 * 1e6
        torch.cuda.synchronize()
    return times


def measure(
    problem: str,
    who: str,
    loss: Loss,
    inputs: list[Tensor],
    least_bytes: int,
    bandwidth: float,
    repeats: int,
) -> Result:
    """Forward alone, and forward with backward to every input."""

    def forward_of(given: list[Tensor]) -> Any:
        with torch.no_grad():
            return loss(*given)

    def both_of(given: list[Tensor]) -> Any:
        return torch.autograd.grad(loss(*given), given)

    leaves = [x.detach().requires_grad_() for x in inputs]

    def forward() -> None:
        forward_of(inputs)

    def both() -> None:
        both_of(leaves)

    try:
        forward_ms = milliseconds(forward, repeats)
        if forward_ms < LONGEST_MS:
            both()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        both()
        torch.cuda.synchronize()
        peak = (torch.cuda.max_memory_allocated() - before) / 2**20
        both_ms = milliseconds(both, repeats)
        device_forward = device_both = None
        if who == "ours":
            device_forward = on_device(forward_of, inputs, repeats)
            device_both = on_device(both_of, leaves, repeats)
    except Exception as error:  # a peer may fail in any way; the table says how
        return Result(
            problem, who, None, None, None, error=f"{type(error).__name__}: {error}"[:200]
        )
    share = least_bytes / bandwidth / (device_both / 1e3) if least_bytes and device_both else None
    return Result(problem, who, forward_ms, both_ms, peak, device_forward, device_both, share)


def load_file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader, f"not a Python file: {path}"
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def peers_from_features(arguments: argparse.Namespace) -> dict[str, Loss]:
    """Each takes x and y and gives the sum of soft-DTW of squared Euclidean costs."""
    found: dict[str, Loss] = {}
    if arguments.maghoumi:
        maghoumi = load_file(arguments.maghoumi).SoftDTW(use_cuda=True, gamma=GAMMA)

        def of_maghoumi(x: Tensor, y: Tensor) -> Tensor:
            if max(x.shape[1], y.shape[1]) > 1024:  # where it would go to the CPU
                raise ValueError("takes at most 1024 frames on CUDA")
            return maghoumi(x, y).sum()

        found["Maghoumi"] = of_maghoumi
    if importlib.util.find_spec("pysdtw"):
        # Neither this one nor the next is in .venv, where mypy looks.
        import pysdtw  # type: ignore[import-not-found]

        pysdtw_loss = pysdtw.SoftDTW(
            gamma=GAMMA, dist_func=pysdtw.distance.pairwise_l2_squared, use_cuda=True
        )
        found["pysdtw"] = lambda x, y: pysdtw_loss(x, y).sum()
    if arguments.sdtw_cuda_torch:
        sys.path.insert(0, str(arguments.sdtw_cuda_torch))
        import softdtw_cuda  # type: ignore[import-not-found]

        for fused in (False, True):
            module = softdtw_cuda.SoftDTW(gamma=GAMMA, fused=fused)
            name = "sdtw-cuda-torch" + (", fused" if fused else "")
            found[name] = lambda x, y, module=module: module(x, y).sum()
    return found


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    repeats = 5 if arguments.quick else 30
    torch.manual_seed(0)
    bandwidth = copy_bandwidth(repeats)
    results: list[Result] = []

    def add(problem: str, who: str, loss: Loss, inputs: list[Tensor], least_bytes: int) -> None:
        if not re.search(arguments.only, problem):
            return
        results.append(measure(problem, who, loss, inputs, least_bytes, bandwidth, repeats))
        print_row(results[-1])

    for sequences in ALL_PAIRS:
        x, y = (torch.randn(sequences, 8, 512, device="cuda") for _ in range(2))
        least = 4 * 3 * (8 * sequences) ** 2
        name = f"S2DTW all pairs, {sequences**2:,} of 8 x 8"
        add(name, "ours", lambda x, y: sk.s2dtw(x, y, pairwise=True).sum(), [x, y], least)
        cost = -torch.rand(sequences, sequences, 8, 8, device="cuda")
        add(f"{name}, from costs", "ours", lambda c: sk.s2dtw_from_cost(c).sum(), [cost], least)
        # The view that one matrix product is: neighboring pairs lie beside each other.
        cost = -torch.rand(sequences, 8, sequences, 8, device="cuda").transpose(1, 2)
        add(f"{name}, from a view", "ours", lambda c: sk.s2dtw_from_cost(c).sum(), [cost], least)
        del cost
    peers = peers_from_features(arguments)
    for shape, kind in itertools.product(FROM_COST, (UNIFORM, *IN_USE)):
        name = " x ".join(map(str, shape))
        if kind != UNIFORM:
            name += f", {kind}"
        if not re.search(arguments.only, name):
            continue
        cost = COSTS[kind](shape, torch.device("cuda"))
        add(
            name,
            "ours",
            lambda c: sk.soft_dtw_from_cost(c, gamma=GAMMA).sum(),
            [cost],
            12 * cost.numel(),
        )
        del cost
    features = FROM_FEATURES + [(*shape, 4) for shape in FROM_COST]
    for items, n, m, d in features:
        x = torch.randn(items, n, d, device="cuda").cumsum(1)
        y = torch.randn(items, m, d, device="cuda").cumsum(1)
        name = f"{items} x {n} x {m} from {d} features"
        add(
            name,
            "ours",
            lambda x, y: sk.soft_dtw(x, y, gamma=GAMMA).sum(),
            [x, y],
            12 * items * n * m,
        )
        for who, loss in list(peers.items()):
            add(name, who, loss, [x, y], 0)
            if (results[-1].both_ms or 0) > 3 * LONGEST_MS:
                print(f"{who} is left out of what is larger")
                del peers[who]
    return {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "copy_bandwidth_bytes_per_second": bandwidth,
        "host_microseconds": host_times(),
        "results": [asdict(r) for r in results],
        "times_faster_than_the_best_peer": ratios(results),
    }


def ratios(results: list[Result]) -> dict[str, list[float]]:
    """Forward + backward of the best peer over ours, by problem, where some peer ran.

    Over our call from Python, and over our graph.
    """
    best: dict[str, float] = {}
    for r in results:
        if r.who != "ours" and r.both_ms:
            best[r.problem] = min(r.both_ms, best.get(r.problem, r.both_ms))
    return {
        r.problem: [best[r.problem] / r.both_ms, best[r.problem] / r.device_both_ms]
        for r in results
        if r.who == "ours" and r.problem in best and r.both_ms and r.device_both_ms
    }


def print_row(r: Result) -> None:
    if r.error:
        print(f"{r.problem:46} {r.who:22} {r.error}", flush=True)
        return
    share = f"{100 * r.share_of_bandwidth:6.1f} %" if r.share_of_bandwidth else ""
    device = ["" if t is None else f"{t:.4f}" for t in (r.device_forward_ms, r.device_both_ms)]
    print(
        f"{r.problem:46} {r.who:22} {r.forward_ms:9.3f} {r.both_ms:9.3f} "
        f"{device[0]:>9} {device[1]:>9} {r.peak_mib:9.1f} MiB {share}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("build/gpu.json"))
    parser.add_argument("--maghoumi", type=Path, help="the file soft_dtw_cuda.py of Maghoumi")
    parser.add_argument("--sdtw-cuda-torch", type=Path, help="a directory with its package")
    parser.add_argument("--quick", action="store_true", help="five repeats rather than thirty")
    parser.add_argument("--only", default="", help="the problems whose names this matches")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("benchmarks/gpu.py needs a CUDA device, and torch sees none")
    print(
        f"{'ms':46} {'who':22} {'forward':>9} {'+ back':>9} {'graph':>9} {'+ back':>9} "
        f"{'peak':>13} bandwidth"
    )
    report = run(arguments)
    print(f"copy bandwidth {report['copy_bandwidth_bytes_per_second'] / 1e12:.2f} TB/s")
    for name, microseconds in report["host_microseconds"].items():
        print(f"host time of a small call, {name}: {microseconds:.0f} us")
    for problem, (called, graph) in report["times_faster_than_the_best_peer"].items():
        print(f"{problem}: {called:.0f} times faster than the best peer (as a graph {graph:.0f})")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
