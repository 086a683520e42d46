"""One call on the CPU: the problem in the form that the kernels take, and the tiers that solve it.

float32 costs are computed in float32 with exponents of 32 bits. Where these do not suffice (paths
that cost more than 10^8 gamma, walls of huge costs, no path at all) the pair is done again in
float64 with 64 bits, and last in the exact tier; so is the hard minimum, gamma = 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from . import _cpu_exact, _cpu_lanes, _cpu_strips
from ._cpu_scaling import COLUMNS, ROWS, conclude, geometry, precision_of, rates, usable
from ._threads import run_chunks

NOTHING = np.empty(0)
SMALL = 1600  # lattice cells up to which lanes are pairs: their weights stay in the second cache
EXACT_COST = 20  # time of a cell in the exact tier over that in the others


@dataclass
class Problem:
    """Four-dimensional costs and one entry a pair for all else."""

    cost: np.ndarray  # (A, B, N, M), any strides; pair q is cost[q // B, q % B]
    gamma: np.ndarray  # (P,) float64, like dummy
    dummy: np.ndarray  # (P,), or empty for a plain lattice
    n: np.ndarray  # (P,) int64, like m
    m: np.ndarray
    bandwidth: int  # negative: none

    @property
    def pairs(self) -> int:
        return self.gamma.size

    @property
    def lattice(self) -> tuple[int, int]:
        rows, columns = self.cost.shape[2:]
        return (2 * rows + 1, 2 * columns + 1) if self.dummy.size else (rows, columns)

    @property
    def cells(self) -> int:
        """About the size of all lattices."""
        rows, columns = self.lattice
        if self.bandwidth >= 0:
            columns = min(columns, abs(rows - columns) + 2 * self.bandwidth + 1)
        return self.pairs * rows * columns

    @property
    def groups(self) -> int:
        """Number of groups of pairs that share vectors."""
        return self.cost.shape[0] * -(-self.cost.shape[1] // precision_of(self.cost).lanes)

    @property
    def geometry(self) -> np.ndarray:
        return geometry(self.n, self.m, self.dummy.size > 0, self.bandwidth)

    def part(self, items: np.ndarray) -> Problem:
        """Some of the pairs, in float64."""
        cost = self.cost[np.divmod(items, self.cost.shape[1])].astype(np.float64)[None]
        dummy = self.dummy[items] if self.dummy.size else self.dummy
        return Problem(cost, self.gamma[items], dummy, self.n[items], self.m[items], self.bandwidth)


@dataclass
class Gradients:
    """Where the gradients of `scale` times the values go."""

    scale: np.ndarray  # (P,)
    with_gamma: bool
    cost: np.ndarray  # (A, B, N, M); cells beyond the lengths or the band stay as they are
    sums: np.ndarray = field(init=False)  # rows: by the dummy cost, and entropies in bits

    def __post_init__(self) -> None:
        self.sums = np.zeros((2, self.scale.size))

    @property
    def dummy(self) -> np.ndarray:
        return self.sums[0]

    @property
    def gamma(self) -> np.ndarray:
        """dV/dgamma = - sum of the visits times the entropies, in nats."""
        return -np.log(2.0) * self.sums[1]

    def put(self, items: np.ndarray, part: Gradients, pairs: int) -> None:
        self.cost[np.divmod(items, pairs)] = part.cost[0]
        self.sums[:, items] = part.sums


def solve(task: Problem, gradients: Gradients | None) -> np.ndarray:
    """Values of all pairs, and their gradients if asked for."""
    if task.pairs == 0:
        return np.empty(0)
    out, sure = vectorized(task, gradients)
    if gradients is not None:
        spread_nan(task, gradients, np.flatnonzero(np.isnan(out)))
    rest = np.flatnonzero(~sure)
    if rest.size and task.cost.dtype == np.float32:
        wider = rest[usable(task.gamma[rest])]
        if wider.size:
            out[wider] = in_float64(task, gradients, wider)
        rest = rest[~usable(task.gamma[rest])]
    if rest.size:
        exact(task, gradients, rest, out)
    return out


def spread_nan(task: Problem, gradients: Gradients, items: np.ndarray) -> None:
    for q in items:
        at = divmod(q, task.cost.shape[1])
        gradients.cost[at][: task.n[q], : task.m[q]] = np.nan
        gradients.sums[:, q] = np.nan


def vectorized(task: Problem, gradients: Gradients | None) -> tuple[np.ndarray, np.ndarray]:
    """Values, and which of them (and of the gradients written) are certified."""
    precision = precision_of(task.cost)
    shapes = task.geometry
    found = np.empty((4, task.pairs))
    common = (task.cost, rates(task.gamma, precision), task.dummy, shapes)
    types = (precision.floats, precision.integers, precision.floor, precision.tiny)
    small = task.lattice[0] * task.lattice[1] <= SMALL
    if gradients is None:
        adjoint = (NOTHING, False, task.cost, found)  # not used
    else:
        adjoint = (
            gradients.scale,
            gradients.with_gamma,
            gradients.cost,
            gradients.sums,
        )

    def work(first: int, last: int) -> None:
        span = (*common, first, last, *types, found)
        if small:
            _cpu_lanes.solve(*span, gradients is not None, *adjoint)
        elif gradients is None:
            _cpu_strips.value(*span)
        else:
            _cpu_strips.gradient(*span, *adjoint)

    run_chunks(task.groups if small else task.pairs, task.cells, work)
    longest = shapes[ROWS] + shapes[COLUMNS]
    return conclude(found, task.gamma, longest, precision, to_return=gradients is None)


def in_float64(task: Problem, gradients: Gradients | None, items: np.ndarray) -> np.ndarray:
    """Some pairs of a float32 problem again."""
    part = task.part(items)
    if gradients is None:
        return solve(part, None)
    some = Gradients(gradients.scale[items], gradients.with_gamma, np.zeros_like(part.cost))
    out = solve(part, some)
    gradients.put(items, some, task.cost.shape[1])
    return out


def exact(task: Problem, gradients: Gradients | None, items: np.ndarray, out: np.ndarray) -> None:
    arguments = (task.cost, task.gamma, task.dummy, task.n, task.m, task.bandwidth)

    def work(first: int, last: int) -> None:
        some = items[first:last]
        if gradients is None:
            _cpu_exact.value(*arguments, some, out)
        else:
            scale, grad, sums = gradients.scale, gradients.cost, gradients.sums
            _cpu_exact.gradient(*arguments, some, scale, out, grad, sums)

    cells = int(task.n[items] @ task.m[items]) * (4 if task.dummy.size else 1)
    run_chunks(items.size, EXACT_COST * cells, work)
