"""Times of the device by pass, family and kind of cost: what a change of the CUDA kernels moves.

    python -m benchmarks.gpu_passes --output build/passes.json [--seconds 120]

Each pass of each shape is captured in a CUDA graph over so many inputs that no cache holds them:
the value, the value that leaves a state, the gradient from it, and the gradient that goes forward
too; the families of `_cuda.plan` that are not chosen for the shape as well, on costs from U[0, 1];
and the launches of the fast arithmetic without those of the slow one that follow them. Other kinds
of cost take the passes of the chosen family. Costs, not shapes, decide which numbers a chunk of
rows can be swept in, and how much of the backward sweep is passed over.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from softdtw_kernels._cuda.operators import Operators
from softdtw_kernels._cuda.plan import FAMILIES, choose_family
from softdtw_kernels._cuda.recipe import Buffer, Launch, Launcher
from softdtw_kernels._cuda.variants import Shape
from softdtw_kernels._problem import Problem

SHAPES = [
    (512, 64, 64),
    (4096, 64, 64),
    (512, 256, 256),
    (64, 1024, 1024),
    (8, 4096, 4096),
    (1, 16384, 16384),
]
GAMMA = 0.1
UNIFORM = "U[0, 1]"


def standardised(x: Tensor) -> Tensor:
    return (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)


def walks(pairs: int, n: int, features: int, device: torch.device) -> Tensor:
    return torch.randn(pairs, n, features, device=device, dtype=torch.float64).cumsum(1)


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    return torch.cdist(x, y).square().float()


def cosine_distances(x: Tensor, y: Tensor) -> Tensor:
    x, y = (torch.nn.functional.normalize(s, dim=2) for s in (x, y))
    return (1 - x @ y.mT).float()


Shaped = tuple[int, int, int]
COSTS: dict[str, Callable[[Shaped, torch.device], Tensor]] = {
    UNIFORM: lambda s, d: torch.rand(s, device=d),
    "10 U[0, 1]": lambda s, d: 10 * torch.rand(s, device=d),
    "100 U[0, 1]": lambda s, d: 100 * torch.rand(s, device=d),
    "squared distances, 64 features": lambda s, d: squared_distances(
        torch.randn(s[0], s[1], 64, device=d), torch.randn(s[0], s[2], 64, device=d)
    ),
    "z-normed walks, 4 features": lambda s, d: squared_distances(
        standardised(walks(s[0], s[1], 4, d)), standardised(walks(s[0], s[2], 4, d))
    ),
    "raw walks, 4 features": lambda s, d: squared_distances(
        walks(s[0], s[1], 4, d), walks(s[0], s[2], 4, d)
    ),
    "cosine, 64 features": lambda s, d: cosine_distances(
        torch.randn(s[0], s[1], 64, device=d), torch.randn(s[0], s[2], 64, device=d)
    ),
}


class FastOnly:
    """A launcher without the launches of the slow arithmetic."""

    def __init__(self, launcher: Launcher) -> None:
        self.launcher, self.family = launcher, launcher.family
        self.multiprocessors, self.shared_limit = launcher.multiprocessors, launcher.shared_limit

    def run(self, launches: Sequence[Launch], buffers: Sequence[Buffer]) -> None:
        self.launcher.run([x for x in launches if "-DWITH_WIDE=1" not in x.kernel[1]], buffers)


class Row(NamedTuple):
    shape: Shaped
    cost: str
    family: str
    chosen: bool  # whether calls of this shape go there
    name: str  # of the pass
    milliseconds: float
    share_of_bandwidth: float


class Pass(NamedTuple):
    name: str
    least: int  # bytes of a cell that must move
    call: Callable[..., Any]
    inputs: list[Tensor]


def passes_of(launcher: Launcher, cost: Tensor) -> Iterator[Pass]:
    operators, alone = Operators(lambda _: launcher), FastOnly(launcher)
    fast = Operators(lambda _: alone)
    gamma = torch.full(cost.shape[:1], GAMMA, dtype=torch.float64, device=cost.device)
    ones = cost.new_ones(cost.shape[0])

    def of(cost: Tensor) -> Problem:
        return Problem(cost, gamma, None, None, None, None)

    def from_state(cost: Tensor, state: Tensor) -> Any:
        return operators.gradient_from_state(of(cost), state, ones, False)

    yield Pass("value", 4, lambda c: operators.value(of(c)), [cost])
    yield Pass("value, fast arithmetic alone", 4, lambda c: fast.value(of(c)), [cost])
    yield Pass("value and state", 4, lambda c: operators.value_and_state(of(c)), [cost])
    state = operators.value_and_state(of(cost))[1]
    if state.numel():
        yield Pass("gradient from state", 8, from_state, [cost, state])
    yield Pass("gradient", 12, lambda c: operators.gradient(of(c), ones, False), [cost])


def rows(
    launcher: Launcher,
    device: torch.device,
    shapes: Sequence[Shaped],
    timed: Callable[[Callable[..., Any], list[Tensor]], float],
    bandwidth: float,
) -> Iterator[Row]:
    """The most telling first: shapes on U[0, 1] and z-normed walks, then the other costs, then the
    other families.
    """
    first = (UNIFORM, "z-normed walks, 4 features")
    kinds = [*first, *(k for k in COSTS if k not in first)]
    tasks: list[tuple[Shaped, str, str | None]] = [
        (s, kind, None) for kind in kinds for s in shapes
    ]
    tasks += [(s, UNIFORM, family) for s in shapes for family in FAMILIES]
    for shape, kind, family in tasks:
        of_shape = Shape(torch.float32, *shape, False, -1)
        chosen = choose_family(of_shape, launcher.multiprocessors)
        if family == chosen:
            continue
        torch.manual_seed(0)
        cost = COSTS[kind](shape, device)
        launcher.family = family
        try:
            for name, least, call, inputs in passes_of(launcher, cost):
                ms = timed(call, inputs)
                share = least * cost.numel() / bandwidth / (ms / 1e3)
                yield Row(shape, kind, family or chosen, family is None, name, ms, share)
        finally:
            launcher.family = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("build/passes.json"))
    parser.add_argument(
        "--seconds", type=float, default=120, help="what is not begun by then is left out"
    )
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("benchmarks/gpu_passes.py needs a CUDA device, and torch sees none")
    # Only here: the rest needs no CuPy.
    from benchmarks.gpu import copy_bandwidth, on_device
    from softdtw_kernels._cuda.launcher import launcher_of

    end = time.monotonic() + arguments.seconds
    device = torch.device("cuda", torch.cuda.current_device())
    bandwidth = copy_bandwidth(5)

    def timed(call: Callable[..., Any], inputs: list[Tensor]) -> float:
        return on_device(lambda given: call(*given), inputs, 10)

    found = []
    for row in rows(launcher_of(device.index), device, SHAPES, timed, bandwidth):
        found.append(row._asdict())
        print(*row, flush=True)
        report = {"copy_bandwidth_bytes_per_second": bandwidth, "rows": found}
        arguments.output.write_text(json.dumps(report, indent=1))
        if time.monotonic() > end:
            print("out of time: the rest is left out")
            break


if __name__ == "__main__":
    main()
