"""The operators `pattern_*` on CPU tensors: which kernels do a pattern.

Problems that are plain but for the cost of warping are plain ones of other costs, see
`_operators.compositions`: the tiers of `solve` add it to the exponents. With less repeats only the
alignments of the fewest pairs count, which is a cost of warping too; open ends are plain ones in a
frame (`open_ends`). What these do not certify, gamma = 0, other patterns and second derivatives go
to the scalar tier of `pattern_kernels`.
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
from .open_ends import frame_of, frames
from .scaling import AGAIN, FEWEST, NOT_A_NUMBER, SURE
from .solve import EXACT_COST, Batch, Gradients, solve, vectorized
from .task import band_of, batch_of, checked_gamma, checked_lengths
from .threads import run_chunks

NOWHERE = np.empty((0, 0, 0, 0))


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


class _Results(NamedTuple):
    """Values, which of them are certified, and the gradients of `scale` times them."""

    values: np.ndarray  # (P,) float64
    status: np.ndarray
    scale: np.ndarray | None  # None if no gradient is due
    grad: np.ndarray  # (A, B, N, M)
    sums: np.ndarray  # (3, P): by gamma, warp and skip

    def clear(self, items: np.ndarray) -> None:
        self.grad[np.divmod(items, self.grad.shape[1])] = 0.0


def pattern_value(problem: PatternProblem) -> Tensor:
    cost = problem.cost
    if problem.warps_alone:
        return from_array(solve(_warped(problem), None), cost.shape[:-2])
    values = _solve(problem, None, NOWHERE).values
    return from_array(values.astype(NUMPY_TYPE[cost.dtype], copy=False), cost.shape[:-2])


def pattern_gradient(
    problem: PatternProblem, grad_value: Tensor, with_parameters: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    cost, shape = problem.cost, problem.cost.shape[:-2]
    grad, scale = matrix_like(cost, zeros=True), flat(grad_value.to(cost.dtype))
    if problem.warps_alone:
        sums = _warped_gradient(problem, scale, grad, with_parameters)
    else:
        sums = _solve(problem, scale, matrices(grad)).sums
    by_gamma, by_warp, by_skip = (from_array(row.copy(), shape) for row in sums)
    return grad, by_gamma, by_warp, by_skip


def _solve(problem: PatternProblem, scale: np.ndarray | None, grad: np.ndarray) -> _Results:
    """By kernels on vectors where they know the pattern, and what is left by the scalar tier."""
    task = _task(problem)
    pairs, status = task.pairs, np.full(task.pairs, AGAIN, np.uint8)
    results = _Results(np.empty(pairs), status, scale, grad, np.zeros((3, pairs)))
    if pairs and task.gamma.any():
        if not (problem.open_begin or problem.open_end):
            _of_fewest(problem, task, results)
        elif problem.repeat == "xy" and frames(problem.open_begin, problem.open_end):
            _in_frame(problem, task, results)
    rest = np.flatnonzero(status == AGAIN)
    of_costs = (True, scale, grad) if scale is not None else (False, results.values, task.cost)

    def work(first: int, last: int) -> None:
        kernels.solve(rest[first:last], *task, results.values, *of_costs, results.sums)

    if rest.size:
        if scale is not None:
            results.clear(rest)
        size = task.cost.shape[2] * task.cost.shape[3]
        run_chunks(rest.size, EXACT_COST * size * rest.size, work)
    return results


def _on_vectors(task: Batch, results: _Results) -> None:
    """What the kernels on vectors certify of a task, in two precisions."""
    out = np.empty(task.pairs, task.cost.dtype)
    gradients = None
    if results.scale is not None:
        gradients = Gradients(results.scale.astype(out.dtype), True, results.grad)
    vectorized(task, gradients, out, results.status)
    if gradients is not None:
        results.sums[0] = gradients.gamma
    results.values[:] = out
    again = np.flatnonzero(results.status == AGAIN)
    again = np.setdiff1d(again, task.hard, assume_unique=True)
    if task.cost.dtype == np.float32 and again.size:
        part = task.part(again)
        empty = np.empty(again.size), np.empty(again.size, np.uint8)
        scale = None if results.scale is None else results.scale[again]
        grad = NOWHERE if scale is None else np.zeros_like(part.cost)
        theirs = _Results(*empty, scale, grad, np.zeros((3, again.size)))
        _on_vectors(part, theirs)
        results.values[again], results.status[again] = theirs.values, theirs.status
        results.sums[:, again] = theirs.sums
        if scale is not None:
            results.grad[np.divmod(again, task.cost.shape[1])] = grad[0]


def _spread(results: _Results, task: Batch, items: np.ndarray, number: float) -> None:
    """One number as all gradients of some pairs."""
    if results.scale is None:
        return
    n, m = task.lengths
    for q in items:
        results.grad[divmod(q, results.grad.shape[1])][: n[q], : m[q]] = number
        results.sums[:, q] = number


def _of_fewest(problem: PatternProblem, task: _Task, results: _Results) -> None:
    """Without the repeats of one sequence, or of both, alignments are those of the fewest pairs, as
    many as the longer sequence has frames; none if that is the one which may not be repeated.
    """
    batch = batch_of(problem.of(problem.cost))
    batch.warp = np.array([FEWEST])
    _on_vectors(batch, results)
    n, m = batch.lengths
    more = n - m if problem.repeat == "y" else m - n
    none = (more < 0) | ((problem.repeat == "") & (more != 0))
    finite = results.status == SURE
    results.values[finite] += (np.abs(more) * task.warp)[finite]
    if results.scale is not None:
        results.sums[1, finite] = (np.abs(more) * results.scale)[finite]
    without = np.flatnonzero(none & finite)
    results.values[without] = np.inf
    _spread(results, batch, without, 0.0)
    _spread(results, batch, np.flatnonzero(results.status == NOT_A_NUMBER), np.nan)


def _in_frame(problem: PatternProblem, task: _Task, results: _Results) -> None:
    batch = _warped(problem)
    ends = int(problem.open_begin != ""), int(problem.open_end != "")
    frame = frame_of(batch, task.skip, "y" in problem.open_begin + problem.open_end, *ends)
    scale = results.scale
    whole = NOWHERE if scale is None else np.zeros_like(frame.task.cost)
    framed = results._replace(grad=whole)
    _on_vectors(frame.task, framed)
    (n, m), (more, by_gamma, by_price) = batch.lengths, frame.too_low
    finite = results.status == SURE
    warp = np.broadcast_to(task.warp, task.pairs)
    results.values[finite] += (more - (n + m) * warp)[finite]
    if scale is None:
        return
    results.grad[:] = whole[:, :, *frame.inside]
    visits = results.grad.sum((2, 3), dtype=np.float64).reshape(-1)
    wide = scale.astype(np.float64)
    skipped = frame.skipped(whole) + by_price * wide
    sums = by_gamma * wide, 2.0 * visits - (n + m) * wide + skipped, skipped
    results.sums[0, finite] += sums[0][finite]
    results.sums[1:, finite] = np.stack(sums[1:])[:, finite]
    _spread(results, batch, np.flatnonzero(results.status == NOT_A_NUMBER), np.nan)


def _warped(problem: PatternProblem) -> Batch:
    check_prices(problem.warp, problem.skip, False)
    task = batch_of(problem.of(problem.cost))
    task.warp = one_or_all(problem.warp)
    return task


def _warped_gradient(
    problem: PatternProblem, scale: np.ndarray, grad: Tensor, with_parameters: bool
) -> np.ndarray:
    """To grad; returns those by gamma, warp and skip."""
    task = _warped(problem)
    gradients, sums = Gradients(scale, with_parameters, matrices(grad)), np.zeros((3, task.pairs))
    solve(task, gradients)
    if with_parameters:
        visits = gradients.cost.sum((2, 3), dtype=np.float64).reshape(-1)
        n, m = task.lengths
        sums[0] = gradients.gamma
        sums[1] = np.where(visits == 0.0, 0.0, 2.0 * visits - (n + m) * scale)
    return sums


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
