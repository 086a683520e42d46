"""The recursion of `_pattern` in plain torch, written as there: the oracle of the kernels, and what
runs where an engine has none.

Requirements: torch only; any device with float64.
All options and their combinations, derivatives of any order. Everything is computed in float64 and
returned in the dtype of the cost. Time and memory are those of `_reference.value` and, at open
ends, of one more matrix in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ._pattern import check_no_band, check_prices, in_range
from ._problem import PatternProblem
from ._reference import allowed_cells, down, nan_of_items, per_item_lengths, softmin
from ._values import check_gamma_and_lengths, gamma_in_range, lengths_in_range


def border(price: Tensor, of_x: Tensor, of_y: Tensor, is_open: str) -> Tensor:
    """What it costs to begin (or end) at a pair, before (or behind) which of_x frames of x and of_y
    of y are; +inf where that is not allowed.
    """
    at_corner = (of_x == 0) & (of_y == 0)
    allowed = at_corner
    if "x" in is_open:
        allowed = allowed | (of_y == 0)
    if "y" in is_open:
        allowed = allowed | (of_x == 0)
    skipped = torch.where(at_corner, 0, price)
    return torch.where(allowed, skipped * (of_x + of_y).clamp(min=0), math.inf)


def value(problem: PatternProblem) -> Tensor:
    """The value of the recursion, differentiable; NaN where a setting or a length is out of
    range.
    """
    cost, gamma, warp, skip, x_lengths, y_lengths, bandwidth, *sides = problem
    repeat, open_begin, open_end = sides
    check_no_band(open_begin, open_end, bandwidth)
    rows, columns = cost.shape[-2:]
    check_gamma_and_lengths(gamma, x_lengths, y_lengths, rows, columns)
    is_open = open_begin != "" or open_end != ""
    check_prices(warp, skip, is_open)
    usable = lengths_in_range(x_lengths, rows) & lengths_in_range(y_lengths, columns)
    usable = usable & gamma_in_range(gamma) & in_range(warp, skip, is_open)
    lattice = cost.double()
    n, m = per_item_lengths(x_lengths, rows, cost), per_item_lengths(y_lengths, columns, cost)
    inside = allowed_cells(lattice, n, m, bandwidth)
    poison = nan_of_items(lattice, inside)
    lattice = torch.where(inside, lattice, math.inf)

    # Antidiagonals, as in `_reference.value`: row i of vector k is the cell (i, k - i).
    i = torch.arange(rows, device=cost.device)[:, None]
    j = torch.arange(rows + columns - 1, device=cost.device) - i
    skewed = lattice.gather(-1, j.clamp(0, columns - 1).expand(*lattice.shape[:-2], *j.shape))
    skewed = torch.where((0 <= j) & (j < columns), skewed, math.inf)
    gamma, warp = gamma.double()[..., None], warp.double()[..., None]
    price = skip.double()[..., None, None]
    if not is_open:  # of no use, and its gradient is 0 whatever it is
        price = torch.where(torch.zeros_like(price, dtype=torch.bool), price, 0)
    begins = border(price, i, j, open_begin).expand(skewed.shape)

    nothing = torch.full_like(skewed[..., 0], math.inf)
    before, last = nothing, nothing
    found = []
    for costs, begin in zip(skewed.unbind(-1), begins.unbind(-1), strict=True):
        arguments = [begin, down(before)]
        if "y" in repeat:
            arguments.append(down(last) + warp)
        if "x" in repeat:
            arguments.append(last + warp)
        together = torch.stack(torch.broadcast_tensors(*arguments))
        before, last = last, costs + softmin(together, gamma)
        found.append(last)
    # Row by row, so that of equal ends the first one has the smallest i, then the smallest j.
    ends = torch.stack(found, -1) + border(price, n - 1 - i, m - 1 - j, open_end)
    result = softmin(ends.flatten(-2).movedim(-1, 0), gamma[..., 0])

    # Every setting gets its gradient of 0 from here where it does not count.
    result = result + 0 * (gamma + warp).sum(-1) + 0 * price[..., 0, 0]
    # No allowed path: a constant. A NaN at the root makes every derivative of the item NaN.
    result = torch.where(result == math.inf, math.inf, result)
    result = (result + poison) * torch.where(poison.isnan(), math.nan, 1.0)
    return torch.where(usable, result, math.nan).to(cost.dtype)


def gradient(
    problem: PatternProblem,
    grad_value: Tensor,
    with_parameters: bool,
    value: Callable[[PatternProblem], Tensor] = value,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """grad_value times the gradient of `value` by cost, gamma, warp and skip; by these three zeros
    unless with_parameters.
    """

    def of_inputs(*inputs: Tensor) -> Tensor:
        cost, gamma, warp, skip = inputs
        return value(problem._replace(cost=cost, gamma=gamma, warp=warp, skip=skip))

    by_cost, *by_settings = torch.func.vjp(of_inputs, *problem[:4])[1](grad_value)
    by_gamma, by_warp, by_skip = (
        grad if with_parameters else torch.zeros_like(grad) for grad in by_settings
    )
    return by_cost, by_gamma, by_warp, by_skip


def hessian_product(
    problem: PatternProblem, grad_value: Tensor, *tangents: Tensor
) -> tuple[Tensor, ...]:
    """Along a direction in cost, gamma, warp and skip: the derivative of `value`, and those of
    grad_value times its gradient by these four.
    """
    device = problem.cost.device  # where numbers for CUDA kernels are not
    # Whole in memory: forward mode refuses what is expanded.
    inputs, directions = (
        tuple(t.to(device).contiguous() for t in tensors) for tensors in (problem[:4], tangents)
    )

    def value_of(*inputs: Tensor) -> Tensor:
        cost, gamma, warp, skip = inputs
        return value(problem._replace(cost=cost, gamma=gamma, warp=warp, skip=skip))

    def of_inputs(*inputs: Tensor) -> tuple[Tensor, ...]:
        found = torch.func.vjp(value_of, *inputs)
        return found[0], *found[1](grad_value)

    products: tuple[Tensor, ...] = torch.func.jvp(of_inputs, inputs, directions)[1]
    return products


def path(problem: PatternProblem) -> list[Tensor]:
    """The cheapest path of every item as (L, 2) indices, (0, 2) if there is none: the support of
    the gradient at gamma = 0.
    """
    cost, gamma, _, _, x_lengths, y_lengths, bandwidth, *_ = problem
    lattice = cost.detach().double()
    n = per_item_lengths(x_lengths, cost.shape[-2], cost)
    m = per_item_lengths(y_lengths, cost.shape[-1], cost)
    inside = allowed_cells(lattice, n, m, bandwidth)
    ones = torch.ones(cost.shape[:-2], dtype=torch.float64, device=cost.device)
    hard = problem._replace(cost=lattice, gamma=torch.zeros_like(gamma))
    visits = gradient(hard, ones, False)[0]
    on_path = ((visits > 0) & inside).reshape(-1, *cost.shape[-2:])
    return [item.nonzero() for item in on_path]
