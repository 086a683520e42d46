"""Accuracy of float32 against float64, as a table in Markdown.

    python -m benchmarks.accuracy                      # N = M = 256, 1024, 4096: a few minutes
    python -m benchmarks.accuracy --sizes 256 1024     # seconds
    python -m benchmarks.accuracy --device cuda --ours # float32 on CUDA, against float64 on the CPU

The problems are pairs of random walks in four dimensions. The gradient is the expected alignment,
the derivative of the value by the cost; its error is the largest absolute one of all cells, that of
the value is relative. Both dtypes get the same float32 cost, or the same float32 features where the
cost is computed from them (then float64 computes the cost in float64, too).

The columns "R in float32" are the recursion as public implementations write it: cumulated costs R
in float32, and a backward pass that rebuilds the weights from their differences. From
features its cost is x^2 + y^2 - 2xy, as is usual there.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from softdtw_kernels import soft_dtw_alignment, soft_dtw_alignment_from_cost

GAMMAS = (1.0, 0.1, 0.01, 0.001)
FEATURES = 4


@dataclass(frozen=True)
class Result:
    """The value and the expected alignment of one problem."""

    value: Tensor  # ()
    expected: Tensor  # (N, M)


@dataclass(frozen=True)
class Case:
    """A kind of problem: how y follows from x, and what is forbidden."""

    name: str
    near: bool = False
    offset: float = 0.0
    forbidden: float = 0.0  # share of cells
    banded: bool = False
    from_features: bool = False

    def sequences(self, size: int) -> tuple[Tensor, Tensor]:
        """Float32 features x and y (N, D)."""
        generator = torch.Generator().manual_seed(size)
        steps = torch.randn(2, size, FEATURES, generator=generator, dtype=torch.float64)
        x, y = steps.cumsum(1)
        if self.near:
            y = x + 1e-3 * steps[1]
        return (x + self.offset).float(), (y + self.offset).float()

    def cost(self, size: int) -> Tensor:
        """Float32 cost (N, M), with a free diagonal where cells are forbidden at random."""
        x, y = (t.double() for t in self.sequences(size))
        cost = torch.cdist(x, y).square().float()
        if self.forbidden:
            generator = torch.Generator().manual_seed(size + 1)
            closed = torch.rand(size, size, generator=generator) < self.forbidden
            cost = cost.masked_fill(closed.fill_diagonal_(False), torch.inf)
        return cost

    def bandwidth(self, size: int) -> int | None:
        return size // 10 if self.banded else None


CASES = (
    Case("walks"),
    Case("walks, band of N / 10", banded=True),
    Case("walks, 10 % forbidden", forbidden=0.1),
    Case("y near x, from features", near=True, from_features=True),
    Case("y near x, offset 100, from features", near=True, offset=100.0, from_features=True),
)


def ours(case: Case, size: int, gamma: float, dtype: torch.dtype, device: str = "cpu") -> Result:
    bandwidth = case.bandwidth(size)
    if case.from_features:
        x, y = (t.to(device, dtype) for t in case.sequences(size))
        alignment = soft_dtw_alignment(x, y, gamma=gamma, bandwidth=bandwidth)
    else:
        cost = case.cost(size).to(device, dtype)
        alignment = soft_dtw_alignment_from_cost(cost, gamma=gamma, bandwidth=bandwidth)
    return Result(alignment.value.cpu(), alignment.expected.cpu())


def usual_cost(case: Case, size: int) -> Tensor:
    """The float32 cost (N, M) that the usual recursion gets."""
    if not case.from_features:
        cost, bandwidth = case.cost(size), case.bandwidth(size)
        if bandwidth is None:
            return cost
        i = torch.arange(size)
        return cost.masked_fill((i[:, None] - i).abs() > bandwidth, torch.inf)
    x, y = case.sequences(size)
    return x.square().sum(-1)[:, None] + y.square().sum(-1) - 2 * x @ y.T


def usual(cost: Tensor, gamma: float) -> Result:
    """Soft-DTW with R in float32, along anti-diagonals; `cost` (N, N).

    Row i of anti-diagonal k is the cell (i, k - i), so the neighbors of a cell stand in the two
    anti-diagonals before it, at its own row or the one above.
    """
    size = cost.shape[0]
    i = torch.arange(size)
    totals = cost.new_full((2 * size + 1, size + 1), torch.inf)  # anti-diagonal k + 2, row i + 1
    totals[0, 0] = 0.0
    costs = cost.new_full((2 * size + 1, size + 2), torch.inf)
    for k in range(2 * size - 1):
        rows = i[max(0, k - size + 1) : min(size, k + 1)]
        before = torch.stack((totals[k, rows], totals[k + 1, rows], totals[k + 1, rows + 1]))
        costs[k + 2, rows + 1] = cost[rows, k - rows]
        softmin = -gamma * torch.logsumexp(-before / gamma, 0)
        totals[k + 2, rows + 1] = cost[rows, k - rows] + softmin
    expected = torch.zeros_like(cost)
    padded = cost.new_zeros(2 * size + 1, size + 2)
    padded[2 * size, size] = 1.0
    sums = torch.cat((totals, torch.full_like(totals[:, :1], torch.inf)), 1)
    for k in range(2 * size - 2, -1, -1):
        rows = i[max(0, k - size + 1) : min(size, k + 1)] + 1
        here, total = sums[k + 2, rows], padded[k + 2, rows].clone()
        steps = [(k + 3, rows), (k + 3, rows + 1), (k + 4, rows + 1)]  # right, down, diagonal
        for later, row in steps:
            if later <= 2 * size:
                weight = torch.exp((sums[later, row] - here - costs[later, row]) / gamma)
                share = padded[later, row] * weight
                # A cell outside the matrix has cost and R of +inf, and no mass.
                total += torch.where(
                    costs[later, row].isinf() & (padded[later, row] == 0), 0, share
                )
        padded[k + 2, rows] = total
        expected[rows - 1, k - rows + 1] = total
    return Result(totals[2 * size, size], expected)


def errors(result: Result, truth: Result) -> tuple[float, float]:
    """The largest absolute error of the gradient and the relative one of the value."""
    gradient = (result.expected.double() - truth.expected).abs().max()
    value = (result.value.double() - truth.value).abs() / truth.value.abs()
    return float(gradient), float(value)


def table(sizes: list[int], device: str, only_ours: bool) -> Iterator[str]:
    """The lines of the table, one a case, size and gamma."""
    columns = ["gradient", "value"]
    if not only_ours:
        columns += ["gradient, R in float32", "value, R in float32"]
    yield f"| case | N = M | gamma | {' | '.join(columns)} |"
    yield "|---" * (3 + len(columns)) + "|"
    for case in CASES:
        for size in sizes:
            for gamma in GAMMAS:
                truth = ours(case, size, gamma, torch.float64)
                numbers = [*errors(ours(case, size, gamma, torch.float32, device), truth)]
                if not only_ours:
                    numbers += errors(usual(usual_cost(case, size), gamma), truth)
                cells = " | ".join(f"{number:.0e}" for number in numbers)
                yield f"| {case.name} | {size} | {gamma:g} | {cells} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 1024, 4096], metavar="N")
    parser.add_argument("--device", default="cpu", help="of the float32 columns of ours")
    parser.add_argument("--ours", action="store_true", help="without the usual recursion")
    arguments = parser.parse_args()
    for line in table(arguments.sizes, arguments.device, arguments.ours):
        print(line, flush=True)


if __name__ == "__main__":
    main()
