"""The operators on CPU tensors, by Numba kernels.

Requirements: numba. Imported by the first call on a CPU tensor, never by `import softdtw_kernels`.
Shapes are those of `ops`: cost (*, N, M) of any strides; gamma, dummy and the lengths of shape (*).
Values of gamma and of the lengths are checked here, where reading them costs nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from . import _cpu_costs, _cpu_exact, _cpu_lanes, _cpu_smoothing, _cpu_strips
from ._cpu_cell import FLOOR, LIMIT, RISE, TINY
from ._threads import run_chunks

NOTHING = np.empty(0)
NO_BANDWIDTH = -1
SMALLEST_GAMMA, LARGEST_GAMMA = 1e-28, 1e28  # below, softmin is the minimum to any precision


@dataclass
class Problem:
    """One call in the form that the kernels take: four-dimensional costs and one entry a pair for
    all else.
    """

    cost: np.ndarray  # (A, B, N, M), any strides; pair q is cost[q // B, q % B]
    gamma: np.ndarray  # (P,)
    dummy: np.ndarray  # (P,), or empty for a plain lattice
    n: np.ndarray  # (P,) int64
    m: np.ndarray
    bandwidth: int

    @property
    def arguments(self) -> tuple:
        return self.cost, self.gamma, self.dummy, self.n, self.m, self.bandwidth

    @property
    def pairs(self) -> int:
        return self.gamma.size

    @property
    def cells(self) -> int:
        """About the size of all lattices."""
        rows, columns = self.cost.shape[2:]
        if self.bandwidth >= 0:
            columns = min(columns, abs(rows - columns) + 2 * self.bandwidth + 1)
        return self.pairs * rows * columns * (4 if self.dummy.size else 1)

    def items(self, first: int, last: int) -> np.ndarray:
        return np.arange(first, last)


def four_dimensional(x: Tensor) -> Tensor:
    """(*, N, M) as (A, B, N, M), as a view unless the strides of three or more leading dimensions
    forbid it.
    """
    if x.dim() == 4:
        return x
    if x.dim() < 4:
        return x[(None,) * (4 - x.dim())]
    try:
        return x.view(x.shape[0], -1, *x.shape[-2:])
    except RuntimeError:
        return x.reshape(x.shape[0], -1, *x.shape[-2:])


def as_array(x: Tensor) -> np.ndarray:
    return x.detach().numpy()


def flat(x: Tensor | None) -> np.ndarray:
    return NOTHING if x is None else np.ascontiguousarray(as_array(x)).reshape(-1)


def checked_gamma(gamma: Tensor) -> np.ndarray:
    values = flat(gamma)
    right = (values >= 0) & (values <= LARGEST_GAMMA)
    if not right.all():
        raise ValueError(
            f"gamma must lie between 0 (the hard DTW) and {LARGEST_GAMMA:g}, "
            f"got {values[~right][0]}"
        )
    return values


def checked_lengths(lengths: Tensor | None, pairs: int, size: int, name: str) -> np.ndarray:
    if lengths is None:
        return np.full(pairs, size)
    values = flat(lengths)
    if values.size and not 1 <= values.min() <= values.max() <= size:
        bad = values[(values < 1) | (values > size)][0]
        raise ValueError(f"{name} must lie in 1..{size}, the size of that dimension, got {bad}")
    return values


def problem(
    cost: Tensor,
    gamma: Tensor,
    dummy: Tensor | None,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    bandwidth: int | None,
) -> Problem:
    pairs = cost.shape[:-2].numel()
    return Problem(
        as_array(four_dimensional(cost)),
        checked_gamma(gamma),
        flat(dummy),
        checked_lengths(x_lengths, pairs, cost.shape[-2], "x_lengths"),
        checked_lengths(y_lengths, pairs, cost.shape[-1], "y_lengths"),
        NO_BANDWIDTH if bandwidth is None else bandwidth,
    )


def empty_like(cost: Tensor, zeros: bool) -> Tensor:
    """A matrix for every pair, laid out as the costs if their strides allow a four-dimensional
    view.
    """
    make = torch.zeros_like if zeros else torch.empty_like
    if cost.dim() > 4:
        return make(cost, memory_format=torch.contiguous_format)
    return make(cost)


@dataclass
class Precision:
    """What the vectorized kernels need to know of the type they compute in."""

    kind: tuple[
        np.ndarray, np.ndarray
    ]  # an empty array of the floats, and of the integers of the same size
    limits: tuple[int, float, float, float]

    @classmethod
    def of(cls, floats: type, integers: type) -> Precision:
        name = np.dtype(floats).name
        limits = (FLOOR[name], LIMIT[name], RISE[name], TINY[name])
        return cls((np.empty(0, floats), np.empty(0, integers)), limits)

    @property
    def lanes(self) -> int:
        return 64 // self.kind[0].itemsize


PRECISION = {
    np.dtype(np.float32): Precision.of(np.float32, np.int32),
    np.dtype(np.float64): Precision.of(np.float64, np.int64),
}
SMALL = (
    1600  # lattice cells up to which lanes are pairs: their weights stay in the second cache level
)


@dataclass
class Gradients:
    """Where the gradients of `scale` times the values go."""

    scale: np.ndarray
    with_gamma: bool
    cost: (
        np.ndarray
    )  # (A, B, N, M); zero, or without lengths and band never read before it is written
    gamma: np.ndarray
    dummy: np.ndarray

    @classmethod
    def allocate(
        cls, task: Problem, scale: np.ndarray, with_gamma: bool, cost: np.ndarray
    ) -> Gradients:
        gamma, dummy = np.zeros((2, task.pairs))
        return cls(scale, with_gamma, cost, gamma, dummy)


def solve(task: Problem, gradients: Gradients | None) -> np.ndarray:
    """Values of all pairs, and their gradients if asked for: the vectorized kernels, then what they
    do not certify.

    float32 costs are computed in float32 with exponents of 32 bits; where these do not suffice
    (paths that cost more than 10^8 gamma, walls of huge costs, no path at all) in float64 with 64
    bits, and last in the exact tier.
    """
    out, sure = np.empty(task.pairs), np.zeros(task.pairs, dtype=bool)
    fast(task, gradients, out, sure)
    rest = np.flatnonzero(~sure)
    if rest.size and task.cost.dtype == np.float32:
        usable = task.gamma[rest] > SMALLEST_GAMMA
        wider = rest[usable]
        if wider.size:
            out[wider] = solve_wider(task, gradients, wider)
        rest = rest[~usable]
    if rest.size:
        exact(task, gradients, rest, out)
    return out


def fast(task: Problem, gradients: Gradients | None, out: np.ndarray, sure: np.ndarray) -> None:
    precision = PRECISION[task.cost.dtype]
    rows, columns = task.cost.shape[2:]
    area = (2 * rows + 1) * (2 * columns + 1) if task.dummy.size else rows * columns
    some = gradients or Gradients(NOTHING, False, task.cost, NOTHING, NOTHING)
    if area <= SMALL:

        def work(first: int, last: int) -> None:
            _cpu_lanes.solve(
                *task.arguments,
                first,
                last,
                precision.limits,
                precision.kind,
                gradients is not None,
                some.scale,
                some.with_gamma,
                out,
                sure,
                some.cost,
                some.gamma,
                some.dummy,
            )

        run_chunks(groups(task), task.cells, work)
    elif gradients is None:

        def work(first: int, last: int) -> None:
            items = np.arange(first, last)
            _cpu_strips.value(*task.arguments, items, precision.limits, precision.kind, out, sure)

        run_chunks(task.pairs, task.cells, work)
    else:

        def work(first: int, last: int) -> None:
            _cpu_strips.gradient(
                *task.arguments,
                np.arange(first, last),
                precision.limits,
                precision.kind,
                some.scale,
                some.with_gamma,
                out,
                sure,
                some.cost,
                some.gamma,
                some.dummy,
            )

        run_chunks(task.pairs, task.cells, work)


def groups(task: Problem) -> int:
    """Number of groups of pairs that share vectors."""
    return task.cost.shape[0] * -(-task.cost.shape[1] // PRECISION[task.cost.dtype].lanes)


def solve_wider(task: Problem, gradients: Gradients | None, items: np.ndarray) -> np.ndarray:
    """Some pairs of a float32 problem in float64."""
    at = np.divmod(items, task.cost.shape[1])
    dummy = task.dummy[items] if task.dummy.size else task.dummy
    cost = task.cost[at].astype(np.float64)[None]
    part = Problem(cost, task.gamma[items], dummy, task.n[items], task.m[items], task.bandwidth)
    if gradients is None:
        return solve(part, None)
    some = Gradients.allocate(
        part, gradients.scale[items], gradients.with_gamma, np.zeros_like(cost)
    )
    out = solve(part, some)
    gradients.cost[at] = some.cost[0]
    gradients.gamma[items], gradients.dummy[items] = some.gamma, some.dummy
    return out


def exact(task: Problem, gradients: Gradients | None, items: np.ndarray, out: np.ndarray) -> None:
    def work(first: int, last: int) -> None:
        if gradients is None:
            _cpu_exact.value(*task.arguments, items[first:last], out)
            return
        _cpu_exact.gradient(
            *task.arguments,
            items[first:last],
            gradients.scale,
            out,
            gradients.cost,
            gradients.gamma,
            gradients.dummy,
        )

    run_chunks(items.size, 20 * int(task.n[items] @ task.m[items]), work)


def value(
    cost: Tensor,
    gamma: Tensor,
    dummy: Tensor | None,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    bandwidth: int | None,
) -> Tensor:
    task = problem(cost, gamma, dummy, x_lengths, y_lengths, bandwidth)
    return torch.from_numpy(solve(task, None)).to(cost.dtype).view(cost.shape[:-2])


def gradient(
    cost: Tensor,
    gamma: Tensor,
    dummy: Tensor | None,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    bandwidth: int | None,
    grad_value: Tensor,
    with_gamma: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    task = problem(cost, gamma, dummy, x_lengths, y_lengths, bandwidth)
    partial = x_lengths is not None or y_lengths is not None or bandwidth is not None
    grad = empty_like(cost, zeros=partial)
    gradients = Gradients.allocate(
        task, flat(grad_value.double()), with_gamma, as_array(four_dimensional(grad))
    )
    solve(task, gradients)
    shape = cost.shape[:-2]
    return (
        grad,
        torch.from_numpy(gradients.gamma).view(shape),
        torch.from_numpy(gradients.dummy).view(shape),
    )


def hessian_product(
    cost: Tensor,
    gamma: Tensor,
    dummy: Tensor | None,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    bandwidth: int | None,
    grad_value: Tensor,
    tangent_cost: Tensor,
    tangent_gamma: Tensor,
    tangent_dummy: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    task = problem(cost, gamma, dummy, x_lengths, y_lengths, bandwidth)
    out = empty_like(cost, zeros=True)
    scale, tg, td = flat(grad_value.double()), flat(tangent_gamma), flat(tangent_dummy)
    tangent_value, out_gamma, out_dummy = np.empty((3, task.pairs))

    def work(first: int, last: int) -> None:
        _cpu_exact.hessian_product(
            *task.arguments,
            task.items(first, last),
            scale,
            as_array(four_dimensional(tangent_cost)),
            tg,
            td,
            tangent_value,
            as_array(four_dimensional(out)),
            out_gamma,
            out_dummy,
        )

    run_chunks(task.pairs, task.cells, work)
    shape = cost.shape[:-2]
    return (
        torch.from_numpy(tangent_value).to(cost.dtype).view(shape),
        out,
        torch.from_numpy(out_gamma).view(shape),
        torch.from_numpy(out_dummy).view(shape),
    )


def path(
    cost: Tensor,
    dummy: Tensor | None,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    bandwidth: int | None,
) -> list[Tensor]:
    """The cheapest path of every pair as (L, 2) indices; of a weak lattice the real pairs on it;
    (0, 2) if none.
    """
    gamma = torch.zeros(cost.shape[:-2], dtype=torch.float64)
    task = problem(cost, gamma, dummy, x_lengths, y_lengths, bandwidth)
    paths = []
    for q in range(task.pairs):
        steps = np.empty((2 * (cost.shape[-2] + cost.shape[-1]) + 2, 2), dtype=np.int64)
        length = _cpu_exact.path(task.cost, task.dummy, task.n, task.m, task.bandwidth, q, steps)
        found = steps[:length][::-1]
        if dummy is not None:
            found = found[(found & 1).all(axis=1)] >> 1
        paths.append(torch.from_numpy(found.copy()))
    return paths


def smooth(
    cost: Tensor,
    gamma: Tensor,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    origin_count: float,
) -> Tensor:
    task = problem(cost, gamma, None, x_lengths, y_lengths, None)
    result = empty_like(cost, zeros=x_lengths is not None or y_lengths is not None)
    out = as_array(four_dimensional(result))
    precision, origin = PRECISION[out.dtype], math.log(origin_count)

    def work(first: int, last: int) -> None:
        _cpu_smoothing.smooth(
            task.cost,
            task.gamma,
            task.n,
            task.m,
            origin,
            first,
            last,
            precision.limits,
            precision.kind,
            out,
        )

    run_chunks(groups(task), task.cells, work)
    hard = np.flatnonzero(task.gamma <= SMALLEST_GAMMA)
    if hard.size:
        _cpu_smoothing.hard(task.cost, task.n, task.m, hard, out)
    return result


def smooth_vjp(
    cost: Tensor,
    gamma: Tensor,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    origin_count: float,
    grad_s: Tensor,
) -> tuple[Tensor, Tensor]:
    task = problem(cost, gamma, None, x_lengths, y_lengths, None)
    result = empty_like(cost, zeros=x_lengths is not None or y_lengths is not None)
    grad, adjoint = (as_array(four_dimensional(t)) for t in (result, grad_s))
    grad_gamma = np.zeros(task.pairs)
    precision, origin = PRECISION[grad.dtype], math.log(origin_count)

    def work(first: int, last: int) -> None:
        _cpu_smoothing.smooth_vjp(
            task.cost,
            task.gamma,
            task.n,
            task.m,
            origin,
            first,
            last,
            precision.limits,
            precision.kind,
            adjoint,
            grad,
            grad_gamma,
        )

    run_chunks(groups(task), task.cells, work)
    hard = np.flatnonzero(task.gamma <= SMALLEST_GAMMA)
    if hard.size:
        _cpu_smoothing.hard_vjp(task.cost, task.n, task.m, hard, adjoint, grad)
        grad_gamma[hard] = 0.0
    return result, torch.from_numpy(grad_gamma).view(cost.shape[:-2])


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    rows, columns = x.shape[-2], y.shape[-2]
    out = x.new_empty(*x.shape[:-1], columns)
    ax, ay, aout = (as_array(four_dimensional(t)) for t in (x, y, out))

    def work(first: int, last: int) -> None:
        _cpu_costs.squared_distances(ax, ay, first, last, aout)

    total = aout.shape[0] * aout.shape[1] * rows
    run_chunks(total, total * columns, work)
    return out
