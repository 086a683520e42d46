"""The operators `pattern_*` on CPU tensors: which kernels do a pattern.

Those of plain lattices know a cost of warping (`warping`), the alignments without the repeats of
one sequence (there too), open ends, and all of it at gamma = 0 (`open_ends`). The scalar tier of
`pattern_kernels` does what these do not certify, and second derivatives.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .._operators import compositions
from .._problem import PatternProblem
from . import pattern_kernels as kernels
from . import small
from .arrays import (
    NUMPY_TYPE,
    as_array,
    flat,
    four_dimensional,
    from_array,
    matrices,
    matrix_like,
    nothing_kept,
    one_or_all,
    without_warnings,
)
from .batch import Batch, places_of
from .ends import Open, ends_of
from .open_ends import solve_hard, solve_open
from .results import Results
from .scaling import AGAIN, precision_of
from .solve import EXACT_COST
from .task import batch_of, checked_price
from .threads import run_chunks
from .warping import (
    NO_ERROR,
    add_price,
    clipped,
    fewest_of,
    keeps_digits,
    repeats_of,
    rounding_of,
    solve_fewest,
    solve_warped,
)

NOWHERE = np.empty((0, 0, 0, 0))


class _Task(NamedTuple):
    """What the kernels of the scalar tier take after the first and the last pair to do."""

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
    return _scalar_task(problem, batch_of(problem.of(problem.cost)), *_prices(problem))


def _scalar_task(
    problem: PatternProblem, plain: Batch, warp: np.ndarray, skip: np.ndarray
) -> _Task:
    rest = plain.n, plain.m, plain.bandwidth, _number(problem)
    return _Task(plain.cost, plain.gamma, warp, skip, *rest)


def _prices(problem: PatternProblem) -> tuple[np.ndarray, np.ndarray]:
    """Of a step that repeats a frame and of a frame left out, their values checked."""
    warp = checked_price(problem.warp, "warp_cost")
    if problem.open_begin or problem.open_end:
        return warp, checked_price(problem.skip, "skip_cost")
    return warp, one_or_all(problem.skip)


def _number(problem: PatternProblem) -> int:
    names = "repeat", "open_begin", "open_end"
    sides = [side in getattr(problem, name) for name in names for side in "xy"]
    return sum(1 << k for k, given in enumerate(sides) if given)


@without_warnings
def pattern_value(problem: PatternProblem) -> Tensor:
    cost = problem.cost
    values = _solve(problem, None, NOWHERE, False).values
    return from_array(values.astype(NUMPY_TYPE[cost.dtype], copy=False), cost.shape[:-2])


@without_warnings
def pattern_gradient(
    problem: PatternProblem, grad_value: Tensor, with_parameters: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    cost, shape = problem.cost, problem.cost.shape[:-2]
    grad, scale = matrix_like(cost, zeros=True), flat(grad_value.to(cost.dtype))
    sums = _solve(problem, scale, matrices(grad), with_parameters).sums
    by_gamma, by_warp, by_skip = (from_array(row.copy(), shape) for row in sums)
    return grad, by_gamma, by_warp, by_skip


def _solve(
    problem: PatternProblem, scale: np.ndarray | None, grad: np.ndarray, with_settings: bool
) -> Results:
    """By the kernels of plain lattices where these know the pattern, else by the scalar tier."""
    plain, (warp, skip) = batch_of(problem.of(problem.cost)), _prices(problem)
    pairs, status = plain.pairs, np.full(plain.pairs, AGAIN, np.uint8)
    sums = np.zeros((3, pairs))
    results = Results(np.empty(pairs), status, scale, with_settings, grad, sums)
    begin, end = problem.open_begin, problem.open_end
    plain.warp = clipped(warp)
    zeros = pairs > 0 and not plain.gamma.all()
    if pairs and plain.gamma.any():
        if problem.warps_alone:
            solve_warped(plain, results)
        elif begin or end:
            solve_open(plain, problem, skip, results)
        else:
            solve_fewest(plain, problem.repeat, warp, results)
    if zeros:
        hard = replace(plain, warp=warp, open=None)
        solve_hard(hard, problem, skip, results)
    rest = np.flatnonzero(status == AGAIN)
    if rest.size == 0:
        return results
    results.clear(rest)
    task = _scalar_task(problem, plain, warp, skip)
    of_costs = (True, scale, grad) if scale is not None else (False, results.values, task.cost)

    def work(first: int, last: int) -> None:
        kernels.solve(rest[first:last], *task, results.values, *of_costs, sums)

    size = task.cost.shape[2] * task.cost.shape[3]
    run_chunks(rest.size, EXACT_COST * size * rest.size, work)
    if scale is not None:
        plain.clear_beyond_band(grad, results.values)
    return results


def monotonic_value(x: Tensor, items: np.ndarray, n: np.ndarray, m: np.ndarray) -> np.ndarray:
    """Of some items of log-probabilities (*, frames, tokens) what `monotonic` gives, and exact next
    to 0 too. Pairs that no alignment visits are forbidden, whatever they hold.
    """
    frames, tokens = x.shape[-2:]
    cost = -x.reshape(-1, frames, tokens)[torch.from_numpy(items)]
    lengths = torch.from_numpy(n), torch.from_numpy(m)
    before = torch.arange(frames)[:, None] - torch.arange(tokens)
    behind = (lengths[0] - lengths[1])[:, None, None] - before
    cost.masked_fill_((before < 0) | (behind < 0), np.inf)
    ones, free = torch.ones(items.size, dtype=torch.float64), torch.zeros(items.size).double()
    problem = PatternProblem(cost, ones, free, free, *lengths, None, "y", "", "")
    return as_array(pattern_value(problem))


def pattern_value_and_state(problem: PatternProblem) -> tuple[Tensor, Tensor]:
    """As `operators.value_and_state`: kept is what the first tier makes."""
    cost = problem.cost
    found = None
    if small.keeps(cost, cost.numel(), *problem[1:4]):
        found = small.as_state(_value_and_kept(problem), cost.shape[:-2])
    return found or (pattern_value(problem), nothing_kept())


def pattern_gradient_from_state(
    problem: PatternProblem, state: Tensor, grad_value: Tensor, with_parameters: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    cost, by_cost = problem.cost, None
    if not with_parameters:
        by_cost = small.gradient_of(problem, state, flat(grad_value.to(cost.dtype)))
    if by_cost is None:
        return pattern_gradient(problem, grad_value, with_parameters)
    a, b, c = (from_array(row, cost.shape[:-2]) for row in np.empty((3, grad_value.numel())))
    return from_array(by_cost, cost.shape), a, b, c  # nobody reads the latter


@without_warnings
def _value_and_kept(problem: PatternProblem) -> tuple[np.ndarray, np.ndarray] | None:
    """The values, and the gradient of their sum by the costs; None if that is not certified."""
    task, (warp, skip) = batch_of(problem.of(problem.cost)), _prices(problem)
    begin, end = problem.open_begin, problem.open_end
    opened = Open(begin, end, problem.repeat, skip)
    if not task.gamma.all():
        task = replace(task, warp=warp, open=opened)
        return None if task.gamma.any() else small.hard_value_and_mass(task)
    of_fewest = not (problem.warps_alone or begin or end)
    task.warp, ends = fewest_of(task) if of_fewest else clipped(warp), None
    if begin or end:
        task.open = opened
        ends = ends_of(opened, task.gamma, task.warp, task.lattice, precision_of(task.cost))
    plan = small.plan_for(task)
    value, mass, status, worth = small.value_and_mass(plan, task.kernel_arguments, ends)
    if worth == small.NOT_ALL:
        return None
    if of_fewest:
        more, none = repeats_of(*task.lengths, problem.repeat)
        mass[places_of(np.flatnonzero(none), mass.shape[1])] = 0.0
        limits = task.gamma, task.n, task.m, *plan.limits
        if not add_price(value, status, more * ~none * warp, *limits, NO_ERROR):
            worth = small.MASS
        value[none] = np.inf
    if worth == small.MASS:
        value = _solve(problem, None, NOWHERE, False).values.astype(value.dtype)
    return value, mass


@without_warnings
def pattern_hessian_product(
    problem: PatternProblem,
    grad_value: Tensor,
    tangent_cost: Tensor,
    tangent_gamma: Tensor,
    tangent_warp: Tensor,
    tangent_skip: Tensor,
) -> tuple[Tensor, ...]:
    tangents = tangent_gamma, tangent_warp, tangent_skip
    task, cost = _task(problem), problem.cost
    on_vectors, composed = _keep_digits(problem, task), None
    if on_vectors.any():
        given = grad_value, tangent_cost, *tangents
        composed = compositions.pattern_hessian_product(problem, *given)
    rest = np.flatnonzero(~on_vectors)
    if composed is not None and rest.size == 0:
        return composed
    values, sums = np.zeros(task.pairs), np.zeros((3, task.pairs))
    scale, out = flat(grad_value.double()), matrix_like(cost, zeros=True)
    along = as_array(four_dimensional(tangent_cost.to(cost.dtype)))
    directions, matrices = np.stack([flat(t) for t in tangents]), as_array(four_dimensional(out))

    def work(first: int, last: int) -> None:
        results = scale, along, directions, values, matrices, sums
        kernels.second_order(rest[first:last], *task, *results)

    run_chunks(rest.size, EXACT_COST * cost.numel() * rest.size // max(1, task.pairs), work)
    shape = cost.shape[:-2]
    by_settings = [from_array(row.copy(), shape) for row in sums]
    found = (from_array(values, shape).to(cost.dtype), out, *by_settings)
    if composed is None:
        return found
    chosen = torch.from_numpy(on_vectors).reshape(shape)
    return tuple(
        torch.where(chosen[..., None, None] if a.dim() == cost.dim() else chosen, a, b)
        for a, b in zip(composed, found, strict=True)
    )


def _keep_digits(problem: PatternProblem, task: _Task) -> np.ndarray:
    """Of which pairs the costs and prices may be summed before they are rounded."""
    if not problem.warps_alone or task.pairs == 0:
        return np.full(task.pairs, problem.warps_alone)
    cost, (n, m) = task.cost.reshape(-1, *task.cost.shape[2:]), task.cost.shape[2:]
    steps = (task.n if task.n.size else n) + (task.m if task.m.size else m)
    rounding = rounding_of(cost, task.warp, task.n, task.m)
    return keeps_digits(rounding, task.gamma, steps, cost.dtype == np.float32)


def pattern_path(problem: PatternProblem) -> list[Tensor]:
    """The cheapest path of every item as (L, 2) indices, (0, 2) if there is none: where the
    gradient of the hard minimum is.
    """
    hard = problem._replace(
        cost=problem.cost.detach(), gamma=torch.zeros(problem.cost.shape[:-2], dtype=torch.float64)
    )
    ones = torch.ones(problem.cost.shape[:-2], dtype=torch.float64)
    visits = pattern_gradient(hard, ones, False)[0]
    return [(item > 0).nonzero() for item in visits.reshape(-1, *visits.shape[-2:])]
