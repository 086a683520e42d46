"""Cycles that a chunk of rows takes in the forward sweep, part by part.

    python -m benchmarks.gpu_stamps --output build/stamps.json

Warps read the clock between the parts (source/notes.cuh): copies and the border awaited, the border
loaded, the checkpoint kept, the rows swept, the border handed on. By family and by how many warps
share a multiprocessor, which hide each other's waits: one, four and eight. The marks themselves
take time too, so that sums of the parts say less than how they compare.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.gpu_passes import GAMMA
from softdtw_kernels._cuda.launcher import CupyLauncher
from softdtw_kernels._cuda.operators import Operators
from softdtw_kernels._cuda.plan import FAMILIES, Plan, fast_plan
from softdtw_kernels._cuda.recipe import Device, Launcher
from softdtw_kernels._cuda.variants import Shape
from softdtw_kernels._problem import Problem

# In the order of the enumeration in source/notes.cuh.
PARTS = (
    "copies awaited",
    "border awaited",
    "border loaded",
    "checkpoint kept",
    "rows swept",
    "border handed on",
)
OPTION, ARRAY = "-DWITH_STAMPS=1", "softdtw_stamps"
SIZE = 512  # of the lattices
WARPS = (1, 4, 8)  # on a multiprocessor, or as near to it as whole items come


class StampedLauncher(CupyLauncher):
    """Launches kernels with marks."""

    def __init__(self, device: int) -> None:
        super().__init__(device)
        self.stamps: list[Any] = []  # of each kernel, on the device

    def module(self, source: str, options: tuple[str, ...]) -> Any:
        module = super().module(source, (*options, OPTION))
        size = 2 * len(PARTS)
        place = module.get_global(ARRAY)
        self.stamps.append(self.cupy.ndarray((size,), self.cupy.uint64, place))
        return module

    def read(self) -> list[int]:
        """Cycles and counts of all parts until now."""
        torch.cuda.synchronize()
        found = [of_kernel.get().tolist() for of_kernel in self.stamps]
        return [sum(numbers) for numbers in zip(*found, strict=True)]


class Row(NamedTuple):
    family: str
    pairs: int
    columns: int  # of a lane
    warps: float  # on a multiprocessor
    part: str
    cycles: float  # on average
    times: int


def plan_with(launcher: Launcher, family: str, warps: int, size: int) -> tuple[int, Plan]:
    """Of as many pairs as it takes for so many warps on a multiprocessor, if they fit."""
    of_device = Device.of(launcher)._replace(family=family)
    most = warps * launcher.multiprocessors
    for pairs in range(1, most + 1):
        plan = fast_plan(Shape(torch.float32, pairs, size, size, False, -1), 0, *of_device)
        if plan.warps >= most:
            break
    return pairs, plan


def rows(
    launcher: Launcher,
    device: torch.device,
    read: Callable[[], Sequence[int]],
    size: int = SIZE,
    warps: Sequence[int] = WARPS,
) -> Iterator[Row]:
    operators = Operators(lambda _: launcher)
    for family in FAMILIES:
        for wanted in warps:
            pairs, plan = plan_with(launcher, family, wanted, size)
            torch.manual_seed(0)
            cost = torch.rand(pairs, size, size, device=device)
            gamma = torch.full((pairs,), GAMMA, dtype=torch.float64, device=device)
            problem = Problem(cost, gamma, None, None, None, None)
            launcher.family = family
            try:
                operators.value(problem)  # compiles
                before = read()
                operators.value(problem)
                taken = [b - a for a, b in zip(before, read(), strict=True)]
            finally:
                launcher.family = None
            of_plan = pairs, plan.variant.columns, plan.warps / launcher.multiprocessors
            for part, cycles, times in zip(PARTS, taken[::2], taken[1::2], strict=True):
                if times:
                    yield Row(family, *of_plan, part, cycles / times, times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("build/stamps.json"))
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("benchmarks/gpu_stamps.py needs a CUDA device, and torch sees none")
    device = torch.device("cuda", torch.cuda.current_device())
    launcher = StampedLauncher(device.index)
    found = []
    for row in rows(launcher, device, launcher.read):
        found.append(row._asdict())
        print(*row, flush=True)
        arguments.output.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
