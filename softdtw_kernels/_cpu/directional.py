"""Losses of values and of their derivatives along a direction of the costs: one sweep forward and
one backward give the loss and its gradient.

All is computed in float64. From features, costs and their gradient are in memory for a block of
pairs at a time, which the second cache level holds.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from .._problem import FeatureProblem, Problem
from . import distance_kernels
from .arrays import (
    NOTHING,
    NUMPY_TYPE,
    as_array,
    flat,
    four_dimensional,
    from_array,
    matrix_like,
    three_dimensional,
    without_warnings,
)
from .batch import Batch
from .factors import scaled
from .scaling import near_0
from .second_order import directional
from .solve import solve
from .task import band_of, batch_of, checked_gamma, checked_lengths
from .threads import run_chunks, threads_for

BLOCK = 2**21  # bytes of the costs of a block of pairs, for each thread

Factors = tuple[float, Tensor]  # of the values, and (*) of their derivatives


def of_costs(
    problem: Problem, direction: Tensor, factors: Factors, with_grad: bool
) -> tuple[Tensor, Tensor]:
    """factors[0] V + factors[1] <dV/dcost, direction> of every pair, +inf where V is; if asked for,
    its gradient by the costs, contiguous.
    """
    cost, task = problem.cost, batch_of(problem)
    grad = matrix_like(cost if cost.is_contiguous() else cost.new_empty(cost.shape), zeros=True)
    own = _factors(factors, cost.shape[:-2])
    # Not by NumPy: arrays that are read-only would need a form of every kernel.
    along = four_dimensional(direction.detach()).expand(task.cost.shape)
    loss = _losses(task, along.numpy(), own, with_grad, as_array(four_dimensional(grad)))
    return from_array(loss, cost.shape[:-2]), grad


def of_features(
    problem: FeatureProblem, direction: Tensor, factors: Factors, with_x: bool, with_y: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The same of distances, with the gradients by x and y, or anything where not asked for."""
    x, y, gamma, x_lengths, y_lengths, bandwidth, _ = problem
    batch, rows, columns = x.shape[:-2], x.shape[-2], y.shape[-2]
    xs, ys = as_array(three_dimensional(x)), as_array(three_dimensional(y))
    settings = (
        checked_gamma(gamma),
        checked_lengths(x_lengths, rows, "x_lengths"),
        checked_lengths(y_lengths, columns, "y_lengths"),
    )
    pairs, band = len(xs), band_of(bandwidth, rows, columns)
    own, along = _factors(factors, batch), four_dimensional(direction.detach())[0]
    threads = threads_for(pairs * rows * columns)
    of_thread = max(1, BLOCK // max(1, rows * columns * xs.itemsize))
    size = min(pairs, of_thread * threads)
    costs, mass = (np.empty((size, rows, columns), xs.dtype) for _ in "12")
    by_x = np.empty(xs.shape if with_x else (0, 0, 0), xs.dtype)
    by_y = np.empty(ys.shape if with_y else (0, 0, 0), xs.dtype)
    losses = np.empty(pairs, xs.dtype)
    for first in range(0, pairs, max(1, size)):
        part = slice(first, min(pairs, first + size))
        block = xs[part], ys[part], costs[: part.stop - first], mass[: part.stop - first]
        _distances(*block[:3])
        g, n, m = (a[part] if a.size > 1 else a for a in settings)
        task = Batch(block[2][None], g, NOTHING, n, m, band)
        block[3].fill(0)
        shape = 1, len(block[2]), rows, columns
        cells, of_part = along.expand(shape).numpy(), np.ascontiguousarray(own[:, part])
        losses[part] = _losses(task, cells, of_part, with_x or with_y, block[3][None])
        if with_x or with_y:
            _distances_vjp(block[0], block[1], block[3], by_x[part], by_y[part])
    return (
        from_array(losses, batch),
        from_array(by_x, x.shape) if with_x else x,
        from_array(by_y, y.shape) if with_y else y,
    )


def _factors(factors: Factors, batch: tuple[int, ...]) -> np.ndarray:
    of_derivatives = flat(factors[1].expand(batch))
    both = np.empty((2, of_derivatives.size))
    both[0], both[1] = factors[0], of_derivatives
    return both


@without_warnings
def _losses(
    task: Batch, along: np.ndarray, factors: np.ndarray, with_grad: bool, out: np.ndarray
) -> np.ndarray:
    none = np.zeros(task.pairs)
    of_grad = factors if with_grad else None
    (value, slope), _ = directional(task, (along, none, none), of_grad, out, False)
    if factors[0].any():
        _near_zero(task, value)
    loss = factors[0] * value + factors[1] * slope
    loss[value == np.inf] = np.inf  # whatever its factor is
    return loss.astype(out.dtype, copy=False)


def _near_zero(task: Batch, value: np.ndarray) -> None:
    """Those of the values again, by the tiers of `solve`, whose relative error is not certified."""
    again = np.flatnonzero(near_0(value, task.gamma, 4 * sum(task.lattice)))
    if again.size:
        value[again] = solve(task.part(again), None)


def _distances(x: np.ndarray, y: np.ndarray, out: np.ndarray) -> None:
    pairs, rows, columns = out.shape

    def work(first: int, last: int) -> None:
        distance_kernels.squared_distances(x[None], y[None], first * rows, last * rows, out[None])

    run_chunks(pairs, out.size, work)


def _distances_vjp(
    x: np.ndarray, y: np.ndarray, g: np.ndarray, by_x: np.ndarray, by_y: np.ndarray
) -> None:
    """To those of by_x and by_y that are not empty."""
    starts = np.arange(len(g) + 1)
    own = starts[:-1]

    def work(first: int, last: int) -> None:
        distance_kernels.squared_distances_vjp(
            *(own, starts, own, own, x, y, g),
            *(by_x.size > 0, by_y.size > 0, first, last, by_x, by_y),
        )

    run_chunks(len(g), g.size, work)


def times(by_cost: Tensor, factors: Tensor) -> Tensor:
    """A gradient of `of_costs` times a factor an item: where it is 0, as beyond lengths and band, 0
    whatever the factor is.
    """
    rows, columns = by_cost.shape[-2:]
    out = np.empty((factors.numel(), rows * columns), NUMPY_TYPE[by_cost.dtype])
    scaled(as_array(by_cost).reshape(out.shape), flat(factors), out)
    return from_array(out, by_cost.shape)
