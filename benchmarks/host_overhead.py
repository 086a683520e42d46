"""Python's share of a small call on CUDA tensors, measured without a GPU.

    python -m benchmarks.host_overhead [--profile]

Calls go the whole way through autograd, operators, plans and the structs that kernels take, on CPU
tensors and to a launcher that launches nothing. A GPU adds to that, for each launch, what CuPy does
with the struct, which is measured here where CuPy is installed, and the driver's part; torch's
allocations; and the hand-over of a backward to the thread that torch has for the device: see
host_times in benchmarks/gpu.py.
"""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import pstats
import statistics
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import torch

import softdtw_kernels as sk
from softdtw_kernels import _backends as backends
from softdtw_kernels._cuda.operators import Operators
from softdtw_kernels._cuda.recipe import Buffer, Launch, addresses_of
from softdtw_kernels._operators import compositions


class IdleLauncher:
    """Does what `launcher.CupyLauncher` does up to the call of CuPy."""

    multiprocessors, shared_limit = 132, 227 << 10
    family: str | None = None

    def __init__(self) -> None:
        self.launches = 0

    def run(self, launches: Sequence[Launch], buffers: Sequence[Buffer]) -> None:
        addresses = addresses_of(buffers)
        for launch in launches:
            launch.argument(addresses)
        self.launches += len(launches)


class Recorder(IdleLauncher):
    def run(self, launches: Sequence[Launch], buffers: Sequence[Buffer]) -> None:
        self.recorded = launches


class PretendedBackend(Operators):
    """Takes the place of the CPU's."""

    squared_distances_vjp = staticmethod(compositions.squared_distances_vjp)  # CUDA has no kernel


def pretend(launcher: IdleLauncher) -> None:
    """Calls on CPU tensors go to the host of the CUDA kernels, and these to the launcher."""
    backends._loaded["numba"] = PretendedBackend(lambda _: launcher)


def microseconds(call: Callable[[], object], repeats: int = 2000) -> float:
    """Median over single calls."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter_ns()
        call()
        times.append(time.perf_counter_ns() - start)
    return statistics.median(times) / 1e3


def repeated(call: Callable[[], object], repeats: int) -> None:
    for _ in range(repeats):
        call()


def small_calls() -> dict[str, Callable[[], object]]:
    cost = torch.rand(1, 8, 8)
    leaf = torch.rand(1, 8, 8, requires_grad=True)
    x, y = torch.rand(1, 8, 3, requires_grad=True), torch.rand(1, 8, 3, requires_grad=True)

    def both() -> object:
        return torch.autograd.grad(sk.soft_dtw_from_cost(leaf, gamma=0.1).sum(), leaf)

    def from_features() -> object:
        return torch.autograd.grad(sk.soft_dtw(x, y, gamma=0.1).sum(), (x, y))

    return {
        "forward": lambda: sk.soft_dtw_from_cost(cost, gamma=0.1),
        "forward + backward": both,
        "S2DTW forward": lambda: sk.s2dtw_from_cost(cost, gamma=0.1),
        "from features, forward + backward": from_features,
    }


def of_cupy(repeats: int = 2000) -> float | None:
    """Microseconds that CuPy takes for the argument of a launch; None where it is not installed.

    No kernel and no driver are needed: a launch without a kernel fails after its arguments have
    been converted, and one without arguments fails the same way.
    """
    try:
        # Here: the rest of the benchmark does without.
        from cupy.cuda import driver, function, runtime
    except ImportError:
        return None
    kernel = function.Function.__new__(function.Function)
    stream = SimpleNamespace(ptr=0)
    errors = (runtime.CUDARuntimeError, driver.CUDADriverError)

    def launch(*arguments: object) -> None:
        with contextlib.suppress(*errors):
            kernel((1,), (64,), arguments, shared_mem=0, stream=stream)

    recorder = Recorder()
    pretend(recorder)
    sk.soft_dtw_from_cost(torch.rand(1, 8, 8))
    struct = recorder.recorded[0].argument([0] * 16)
    return microseconds(lambda: launch(struct), repeats) - microseconds(launch, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", action="store_true", help="where the time goes")
    arguments = parser.parse_args()
    cupy = of_cupy()
    print("CuPy is not installed" if cupy is None else f"CuPy adds {cupy:.1f} us to a launch")
    launcher = IdleLauncher()
    pretend(launcher)
    for name, call in small_calls().items():
        call()
        before = launcher.launches
        call()
        launches = launcher.launches - before
        print(f"1 x 8 x 8 {name:36} {microseconds(call):7.1f} us, {launches} launches", flush=True)
        if arguments.profile:
            profile = cProfile.Profile()
            profile.runcall(repeated, call, 2000)
            pstats.Stats(profile).sort_stats("tottime").print_stats(22)


if __name__ == "__main__":
    main()
