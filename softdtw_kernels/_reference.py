"""The operators in plain torch, written as the papers write them: the oracle of every other
backend.

Requirements: torch only; any device with float64.
Everything is computed in float64 and returned in the dtype of the cost. `value`, `smooth` and
`squared_distances` are ordinary differentiable torch functions, so autograd and torch.func give
derivatives of any order; `gradient`, `hessian_product` and `smooth_vjp` are those derivatives, with
the signatures that all backends share (see `ops`). Time and memory are those of (N + M) steps of
about twenty torch calls on vectors of N cells, all kept by autograd.

Sources: Cuturi and Blondel 2017 (soft-DTW); Mensch and Blondel 2018 (second order); Ko et al. 2022
(S2DTW).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._checks import check_lattice
from ._problem import Problem, SmoothedProblem, Smoothing
from ._values import check_gamma_and_lengths, gamma_in_range, lengths_in_range


def softmin(arguments: Tensor, gamma: Tensor) -> Tensor:
    """-gamma log of the sum of exp(-a / gamma) over the first dimension; the minimum where gamma =
    0; +inf where all are.

    An argument of +inf has weight and derivatives 0. Of equal arguments the first one is the
    minimum.
    """
    first = arguments.argmin(0, keepdim=True)
    minimum = arguments.gather(0, first).squeeze(0)
    nothing = minimum == math.inf
    shift = minimum.detach().masked_fill(nothing, 0)
    hard = gamma == 0
    safe_gamma = torch.where(hard, 1, gamma)
    # The mask comes before the exponential: the derivative of a masked infinity is 0 * inf
    # otherwise. What is masked gets the power 0, which the minimum has. The 1 of both is taken off
    # before the sum, where it would round small exponentials away.
    forbidden = arguments == math.inf
    power = (shift - torch.where(forbidden, shift, arguments)) / safe_gamma
    others = (power.exp() - forbidden.double().scatter(0, first, 1.0)).sum(0)
    soft = shift - safe_gamma * torch.log1p(others)
    return torch.where(nothing, math.inf, torch.where(hard, minimum, soft))


def weak_lattice(cost: Tensor, dummy: Tensor) -> Tensor:
    """(*, 2N + 1, 2M + 1): the costs at the odd-odd cells, the dummy cost everywhere else."""
    rows, columns = cost.shape[-2:]
    between = dummy[..., None, None]
    # Rows of real cells alternate with rows of dummies: interleave by stacking, then drop the last
    # dummy's twin.
    gaps = between.expand(cost.shape)
    real_rows = torch.stack((gaps, cost), dim=-1).flatten(-2)
    dummy_rows = between.expand(real_rows.shape)
    lattice = torch.stack((dummy_rows, real_rows), dim=-2).flatten(-3, -2)
    last_column = between.expand(*cost.shape[:-2], 2 * rows, 1)
    lattice = torch.cat((lattice, last_column), dim=-1)
    last_row = between.expand(*cost.shape[:-2], 1, 2 * columns + 1)
    return torch.cat((lattice, last_row), dim=-2)


def per_item_lengths(lengths: Tensor | None, size: int, like: Tensor) -> Tensor:
    """Lengths of shape (*, 1, 1) on the device of `like`, whose shape is (*, N, M)."""
    if lengths is None:
        return torch.full((1,) * like.dim(), size, device=like.device)
    return lengths[..., None, None]


def allowed_cells(cost: Tensor, n: Tensor, m: Tensor, bandwidth: int | None) -> Tensor:
    """The cells within the lengths and the band min(0, m - n) - w <= j - i <= max(0, m - n) + w."""
    i = torch.arange(cost.shape[-2], device=cost.device)[:, None]
    j = torch.arange(cost.shape[-1], device=cost.device)
    inside = (i < n) & (j < m)
    if bandwidth is not None:
        lowest, highest = (m - n).clamp(max=0) - bandwidth, (m - n).clamp(min=0) + bandwidth
        inside = inside & (lowest <= j - i) & (j - i <= highest)
    return inside


def value(problem: Problem) -> Tensor:
    """R[n, m] of R[i, j] = cost[i, j] + softmin(R[i-1, j-1], R[i-1, j], R[i, j-1]); NaN where gamma
    or a length is out of range.
    """
    cost, gamma, dummy, x_lengths, y_lengths, bandwidth = problem
    check_lattice(dummy, bandwidth)
    rows, columns = cost.shape[-2:]
    check_gamma_and_lengths(gamma, x_lengths, y_lengths, rows, columns)
    in_range = lengths_in_range(x_lengths, rows) & lengths_in_range(y_lengths, columns)
    in_range = in_range & gamma_in_range(gamma)
    dtype, lattice = cost.dtype, cost.double()
    n, m = per_item_lengths(x_lengths, rows, cost), per_item_lengths(y_lengths, columns, cost)
    if dummy is not None:
        lattice, n, m = weak_lattice(lattice, dummy.double()), 2 * n + 1, 2 * m + 1
        rows, columns = lattice.shape[-2:]
    inside = allowed_cells(lattice, n, m, bandwidth)
    poison = nan_of_items(lattice, inside)
    lattice = torch.where(inside, lattice, math.inf)

    # Cells of one antidiagonal i + j = k do not depend on each other: row i of vector k is the cell
    # (i, k - i).
    i = torch.arange(rows, device=cost.device)[:, None]
    j = torch.arange(rows + columns - 1, device=cost.device) - i
    skewed = lattice.gather(-1, j.clamp(0, columns - 1).expand(*lattice.shape[:-2], *j.shape))
    skewed = torch.where((0 <= j) & (j < columns), skewed, math.inf)

    gamma = gamma.double()[..., None]
    first, *others = skewed.unbind(-1)
    last = torch.where(i[:, 0] == 0, first, math.inf)
    diagonal, found = torch.full_like(last, math.inf), [last]
    for costs in others:
        up = down(last)
        last = costs + softmin(torch.stack((diagonal, up, last)), gamma)
        found.append(last)
        diagonal = up
    # Lengths out of range are told below.
    cells = torch.stack(found, -1).flatten(-2)
    end = ((n - 1) * len(found) + n + m - 2)[..., 0].clamp(0, cells.shape[-1] - 1)
    result = cells.gather(-1, end.expand(*cells.shape[:-1], 1))

    # One cell alone does not depend on gamma, which gets its gradient of 0 from here.
    result = result + 0 * gamma
    result = result[..., 0]
    # No allowed path: a constant. A NaN at the root makes every derivative of the item NaN.
    result = torch.where(result == math.inf, math.inf, result)
    result = (result + poison) * torch.where(poison.isnan(), math.nan, 1.0)
    return torch.where(in_range, result, math.nan).to(dtype)


def nan_of_items(lattice: Tensor, inside: Tensor) -> Tensor:
    """NaN, with a NaN derivative in every cell inside, for the items that hold a NaN; else 0."""
    of_item = (inside & lattice.isnan()).any(-1, keepdim=True).any(-2, keepdim=True)
    chosen = inside & of_item
    return (torch.where(chosen, lattice, 0.0) * torch.where(chosen, math.nan, 0.0)).sum((-2, -1))


def down(column: Tensor) -> Tensor:
    """The vector moved one row down, +inf entering at the top."""
    return torch.nn.functional.pad(column[..., :-1], (1, 0), value=math.inf)


def gradient(
    problem: Problem,
    grad_value: Tensor,
    with_parameters: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """grad_value times the gradient of `value` in cost, gamma (zeros unless with_parameters) and
    dummy (zeros if None).
    """

    def of_inputs(*inputs: Tensor) -> Tensor:
        return value(_with_inputs(problem, inputs))

    grads: tuple[Tensor, ...] = torch.func.vjp(of_inputs, *_inputs(problem))[1](grad_value)
    nothing = torch.zeros_like(problem.gamma)
    return (
        grads[0],
        grads[1] if with_parameters else nothing,
        nothing if problem.dummy is None else grads[2],
    )


def _inputs(problem: Problem) -> tuple[Tensor, ...]:
    """What has a derivative."""
    cost, gamma, dummy, *_ = problem
    return (cost, gamma) if dummy is None else (cost, gamma, dummy)


def _with_inputs(problem: Problem, inputs: tuple[Tensor, ...]) -> Problem:
    cost, gamma, *dummy = inputs
    return problem._replace(cost=cost, gamma=gamma, dummy=dummy[0] if dummy else None)


def hessian_product(
    problem: Problem,
    grad_value: Tensor,
    tangent_cost: Tensor,
    tangent_gamma: Tensor,
    tangent_dummy: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The derivative of `value` along the tangents, and grad_value times the derivative of its
    gradient along them.
    """

    def along(problem: Problem, scale: Tensor) -> Tensor:
        grads = gradient(problem, scale, True)
        # A cell without expected visits contributes nothing, whatever its tangent holds (padding
        # may hold NaN).
        tangent = torch.where(grads[0] == 0, 0, tangent_cost)
        total = (grads[0] * tangent).double().sum((-2, -1))
        total = total + grads[1] * tangent_gamma
        return total if tangent_dummy is None else total + grads[2] * tangent_dummy

    total, pull_back, *_ = torch.func.vjp(
        lambda *inputs: along(_with_inputs(problem, inputs), grad_value), *_inputs(problem)
    )
    products = pull_back(torch.ones_like(total))
    tangent_value = along(problem, torch.ones_like(grad_value)).to(problem.cost.dtype)
    return (
        tangent_value,
        products[0],
        products[1],
        torch.zeros_like(problem.gamma) if problem.dummy is None else products[2],
    )


def path(problem: Problem) -> list[Tensor]:
    """The cheapest path of every item as (L, 2) indices; of a weak lattice the real pairs on it;
    (0, 2) if none.

    It is the support of the gradient at gamma = 0, which is one optimal path.
    """
    cost, _, _, x_lengths, y_lengths, bandwidth = problem
    lattice = cost.detach().double()
    n = per_item_lengths(x_lengths, cost.shape[-2], cost)
    m = per_item_lengths(y_lengths, cost.shape[-1], cost)
    inside = allowed_cells(lattice, n, m, bandwidth)
    ones = torch.ones(cost.shape[:-2], dtype=torch.float64, device=cost.device)
    visits, _, _ = gradient(problem._replace(cost=lattice, gamma=0 * ones), ones, False)
    on_path = ((visits > 0) & inside).reshape(-1, *cost.shape[-2:])
    return [item.nonzero() for item in on_path]


def smooth(smoothing: Smoothing) -> Tensor:
    """s[i, j] = cost[i, j] + softmin of the costs of the predecessors inside the matrix; 0 beyond
    the lengths.

    The origin has no predecessor: it is given the softmin of `origin_count` zeros.
    """
    cost, gamma, x_lengths, y_lengths, origin_count = smoothing
    rows, columns = cost.shape[-2:]
    check_gamma_and_lengths(gamma, x_lengths, y_lengths, rows, columns)
    n, m = per_item_lengths(x_lengths, rows, cost), per_item_lengths(y_lengths, columns, cost)
    inside = allowed_cells(cost, n, m, None)
    raw = torch.where(inside, cost.double(), 0)
    gamma = gamma.double()[..., None, None]
    framed = torch.nn.functional.pad(raw, (1, 0, 1, 0), value=math.inf)
    predecessors = torch.stack((framed[..., :-1, :-1], framed[..., :-1, 1:], framed[..., 1:, :-1]))
    origin = torch.zeros(rows, columns, dtype=torch.bool, device=cost.device)
    origin[0, 0] = True
    at_origin = -gamma * math.log(origin_count)
    smoothed = raw + torch.where(origin, at_origin, softmin(predecessors, gamma))
    return torch.where(inside, smoothed, 0).to(cost.dtype)


def smoothed_value(problem: SmoothedProblem) -> Tensor:
    """S2DTW: the value of the smoothed costs, which stay in float64 on the way."""
    wide = problem._replace(cost=problem.cost.double())
    return value(wide.of(smooth(wide.smoothing))).to(problem.cost.dtype)


def smoothed_gradient(
    problem: SmoothedProblem, grad_value: Tensor, with_parameters: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """grad_value times the gradient of `smoothed_value`, as `gradient`."""
    smoothed = problem.of(smooth(problem.smoothing))
    by_s, by_gamma, by_dummy = gradient(smoothed, grad_value, with_parameters)
    by_cost, by_smoothing = smooth_vjp(problem.smoothing, by_s)
    return by_cost, by_gamma + by_smoothing if with_parameters else by_gamma, by_dummy


def smooth_vjp(smoothing: Smoothing, grad_s: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of <grad_s, smooth> in cost and gamma."""

    def of_inputs(cost: Tensor, gamma: Tensor) -> Tensor:
        return smooth(smoothing._replace(cost=cost, gamma=gamma))

    grads: tuple[Tensor, Tensor] = torch.func.vjp(of_inputs, smoothing.cost, smoothing.gamma)[1](
        grad_s
    )
    return grads


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """(*, N, M) of |x_i - y_j|^2, by differences."""
    differences = x.double()[..., :, None, :] - y.double()[..., None, :, :]
    return differences.square().sum(-1).to(x.dtype)
