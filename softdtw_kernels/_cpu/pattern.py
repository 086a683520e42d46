"""The operators `pattern_*` on CPU tensors: which kernels do a pattern.

Problems that are plain but for the cost of warping are plain ones of other costs, see
`_operators.compositions`: the tiers of `solve` add it to the exponents. The others go to the scalar
tier of `pattern_kernels`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .._operators import compositions
from .._pattern import check_prices
from .._problem import PatternProblem
from . import pattern_kernels as kernels
from .arrays import (
    NUMPY_TYPE,
    as_array,
    flat,
    four_dimensional,
    from_array,
    matrices,
    matrix_like,
    one_or_all,
)
from .solve import EXACT_COST, Batch, Gradients, solve
from .task import band_of, batch_of, checked_gamma, checked_lengths
from .threads import run_chunks


class _Task(NamedTuple):
    """What the kernels take of a problem after the first and the last pair to do."""

    cost: np.ndarray  # (A, B, N, M)
    gamma: np.ndarray  # (P,) or (1,), like warp and skip
    warp: np.ndarray
    skip: np.ndarray
    n: np.ndarray  # (P,) or empty
    m: np.ndarray
    bandwidth: int
    pattern: int

    @property
    def pairs(self) -> int:
        return self.cost.shape[0] * self.cost.shape[1]


def _task(problem: PatternProblem) -> _Task:
    cost, gamma, warp, skip, x_lengths, y_lengths, bandwidth, *_ = problem
    rows, columns = cost.shape[-2:]
    check_prices(warp, skip, bool(problem.open_begin or problem.open_end))
    return _Task(
        as_array(four_dimensional(cost)),
        checked_gamma(gamma),
        one_or_all(warp),
        one_or_all(skip),
        checked_lengths(x_lengths, rows, "x_lengths"),
        checked_lengths(y_lengths, columns, "y_lengths"),
        band_of(bandwidth, rows, columns),
        _number(problem),
    )


def _number(problem: PatternProblem) -> int:
    names = "repeat", "open_begin", "open_end"
    sides = [side in getattr(problem, name) for name in names for side in "xy"]
    return sum(1 << k for k, given in enumerate(sides) if given)


def pattern_value(problem: PatternProblem) -> Tensor:
    cost = problem.cost
    if problem.warps_alone:
        return from_array(solve(_warped(problem), None), cost.shape[:-2])
    task = _task(problem)
    values = np.empty(task.pairs)

    def work(first: int, last: int) -> None:
        kernels.solve(first, last, *task, values, False, values, task.cost, values[None])

    run_chunks(task.pairs, EXACT_COST * cost.numel(), work)
    return from_array(values.astype(NUMPY_TYPE[cost.dtype], copy=False), cost.shape[:-2])


def pattern_gradient(
    problem: PatternProblem, grad_value: Tensor, with_parameters: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if problem.warps_alone:
        return _warped_gradient(problem, grad_value, with_parameters)
    task, cost = _task(problem), problem.cost
    values, sums = np.empty(task.pairs), np.zeros((3, task.pairs))
    scale, grad = flat(grad_value.double()), matrix_like(cost, zeros=True)
    matrices = as_array(four_dimensional(grad))

    def work(first: int, last: int) -> None:
        kernels.solve(first, last, *task, values, True, scale, matrices, sums)

    run_chunks(task.pairs, EXACT_COST * cost.numel(), work)
    by_gamma, by_warp, by_skip = (from_array(row.copy(), cost.shape[:-2]) for row in sums)
    return grad, by_gamma, by_warp, by_skip


def _warped(problem: PatternProblem) -> Batch:
    check_prices(problem.warp, problem.skip, False)
    task = batch_of(problem.of(problem.cost))
    task.warp = one_or_all(problem.warp)
    return task


def _warped_gradient(
    problem: PatternProblem, grad_value: Tensor, with_parameters: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    task, shape = _warped(problem), problem.cost.shape[:-2]
    grad = matrix_like(problem.cost, zeros=True)
    scale = flat(grad_value.to(problem.cost.dtype))
    gradients = Gradients(scale, with_parameters, matrices(grad))
    solve(task, gradients)
    by_warp = np.zeros(task.pairs)
    if with_parameters:
        visits = gradients.cost.sum((2, 3), dtype=np.float64).reshape(-1)
        n, m = task.lengths
        by_warp = np.where(visits == 0.0, 0.0, 2.0 * visits - (n + m) * scale)
    by_settings = gradients.gamma, by_warp, np.zeros(task.pairs)
    by_gamma, by_w, by_skip = (from_array(a, shape) for a in by_settings)
    return grad, by_gamma, by_w, by_skip


def pattern_hessian_product(
    problem: PatternProblem,
    grad_value: Tensor,
    tangent_cost: Tensor,
    tangent_gamma: Tensor,
    tangent_warp: Tensor,
    tangent_skip: Tensor,
) -> tuple[Tensor, ...]:
    tangents = tangent_gamma, tangent_warp, tangent_skip
    if problem.warps_alone:
        return compositions.pattern_hessian_product(problem, grad_value, tangent_cost, *tangents)
    task, cost = _task(problem), problem.cost
    values, sums = np.zeros(task.pairs), np.zeros((3, task.pairs))
    scale, out = flat(grad_value.double()), matrix_like(cost, zeros=True)
    along = as_array(four_dimensional(tangent_cost.to(cost.dtype)))
    directions, matrices = np.stack([flat(t) for t in tangents]), as_array(four_dimensional(out))

    def work(first: int, last: int) -> None:
        rest = scale, along, directions, values, matrices, sums
        kernels.second_order(first, last, *task, *rest)

    run_chunks(task.pairs, EXACT_COST * cost.numel(), work)
    shape = cost.shape[:-2]
    by_settings = [from_array(row.copy(), shape) for row in sums]
    return from_array(values, shape).to(cost.dtype), out, *by_settings


def pattern_path(problem: PatternProblem) -> list[Tensor]:
    """The cheapest path of every item as (L, 2) indices, (0, 2) if there is none: where the
    gradient of the hard minimum is.
    """
    if problem.warps_alone:
        return compositions.pattern_path(problem)
    hard = problem._replace(
        cost=problem.cost.detach(), gamma=torch.zeros(problem.cost.shape[:-2], dtype=torch.float64)
    )
    ones = torch.ones(problem.cost.shape[:-2], dtype=torch.float64)
    visits = pattern_gradient(hard, ones, False)[0]
    return [(item > 0).nonzero() for item in visits.reshape(-1, *visits.shape[-2:])]
