"""The gradient of squared distances in plain torch, blocked, on any device; soft-DTW from features
where no kernel fuses it, through the cost matrix; the cost of warping as one of the pairs.

Requirements: torch only. The gradient is a bilinear form, taken in float64: there it does no harm
that its terms cancel where y is near x or both are far from the origin.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._checks import is_distance
from .._pattern import check_prices
from .._problem import FeatureProblem, PatternProblem, Problem
from . import ops

BLOCK = 1 << 24  # cells converted to float64 at a time


def squared_distances_vjp(
    x: Tensor, y: Tensor, g: Tensor, with_x: bool, with_y: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of <g, |x_i - y_j|^2>: 2 sum_j g_ij (x_i - y_j) and 2 sum_i g_ij (y_j - x_i).

    x (*x, N, D) and y (*y, M, D) broadcast to the leading dimensions of g (*, N, M); the gradients
    have the shapes of x and y, but no features where they are not wanted. Blocks of rows of the
    whole batch; sums in a fixed order, since atomic additions would not repeat to the bit.
    """
    wide_x, wide_y = x.double(), y.double()
    grad_x = torch.zeros_like(wide_x) if with_x else x.new_empty(*x.shape[:-1], 0)
    grad_y = torch.zeros_like(wide_y) if with_y else y.new_empty(*y.shape[:-1], 0)
    step = max(1, BLOCK // max(1, g.shape[:-2].numel() * g.shape[-1]))
    for first in range(0, g.shape[-2], step):
        rows = slice(first, first + step)
        x_block, g_block = wide_x[..., rows, :], g[..., rows, :].double()
        if with_x:
            part = 2 * (x_block * g_block.sum(-1, keepdim=True) - g_block @ wide_y)
            grad_x[..., rows, :] = part.sum_to_size(x_block.shape)
        if with_y:
            part = 2 * (wide_y * g_block.sum(-2)[..., None] - g_block.mT @ x_block)
            grad_y += part.sum_to_size(grad_y.shape)
    return grad_x.to(x.dtype).contiguous(), grad_y.to(y.dtype).contiguous()


def fused_value(problem: FeatureProblem) -> Tensor:
    return ops.value(*problem.of(_cost(problem)))


def fused_gradient(
    problem: FeatureProblem, grad_value: Tensor, with_x: bool, with_y: bool, with_gamma: bool
) -> tuple[Tensor, Tensor, Tensor]:
    x, y = problem.x, problem.y
    by_cost, by_gamma, _ = ops.gradient(*problem.of(_cost(problem)), grad_value, with_gamma)
    if is_distance(problem.kind):
        return *ops.squared_distances_vjp(x, y, by_cost, with_x, with_y), by_gamma
    minus = -by_cost.double()
    by_x = minus @ y.double() if with_x else x[..., :0]
    by_y = minus.mT @ x.double() if with_y else y[..., :0]
    return _result(by_x, x), _result(by_y, y), by_gamma


def _cost(problem: FeatureProblem) -> Tensor:
    x, y = problem.x, problem.y
    if is_distance(problem.kind):
        return ops.squared_distances(x, y)
    return (x.double() @ -y.double().mT).to(x.dtype)


def _result(grad: Tensor, x: Tensor) -> Tensor:
    return grad.to(x.dtype).clone(memory_format=torch.contiguous_format)


# A path of K pairs from the first to the last has 2 K - N - M steps that repeat a frame. With w for
# each of them V_w(C) = V(C + 2 w) - (N + M) w. In float64: w may leave nothing of C in float32.


def pattern_value(problem: PatternProblem) -> Tensor:
    value = ops.value(*_warped(problem))
    unwarped = value - problem.frames * _on_device(problem.warp, problem)
    return unwarped.to(problem.cost.dtype)


def pattern_gradient(
    problem: PatternProblem, grad_value: Tensor, with_parameters: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    wide = grad_value.double()
    by_cost, by_gamma, _ = ops.gradient(*_warped(problem), wide, with_parameters)
    return by_all(by_cost, by_gamma, problem, wide, with_parameters)


def by_all(
    by_cost: Tensor,
    by_gamma: Tensor,
    problem: PatternProblem,
    wide: Tensor,
    with_parameters: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """By cost, gamma, warp and skip, from those of the costs C + 2 w."""
    if not with_parameters:  # which nobody reads
        return like_cost(by_cost, problem), by_gamma, by_gamma.clone(), by_gamma.clone()
    visits = by_cost.sum((-2, -1))
    by_warp = torch.where(visits == 0, 0, 2 * visits - problem.frames * wide)
    return like_cost(by_cost, problem), by_gamma, by_warp, torch.zeros_like(by_warp)


def pattern_hessian_product(
    problem: PatternProblem,
    grad_value: Tensor,
    tangent_cost: Tensor,
    tangent_gamma: Tensor,
    tangent_warp: Tensor,
    tangent_skip: Tensor,
) -> tuple[Tensor, ...]:
    warped, wide = _warped(problem), grad_value.double()
    along = tangent_cost.double() + 2 * tangent_warp[..., None, None]
    slope, by_cost, by_gamma, _ = ops.hessian_product(*warped, wide, along, tangent_gamma, None)
    has_path = ops.value(*warped) != math.inf
    return products_by_all(slope, by_cost, by_gamma, has_path, problem, tangent_warp)


def products_by_all(
    slope: Tensor,
    by_cost: Tensor,
    by_gamma: Tensor,
    has_path: Tensor,
    problem: PatternProblem,
    tangent_warp: Tensor,
) -> tuple[Tensor, ...]:
    """As `by_all`, of the slope and the products with the Hessian."""
    slope = torch.where(has_path, slope - problem.frames * tangent_warp, slope)
    by_warp = 2 * by_cost.sum((-2, -1))
    products = like_cost(by_cost, problem), by_gamma, by_warp, torch.zeros_like(by_warp)
    return slope.to(problem.cost.dtype), *products


def check_warps_alone(problem: PatternProblem) -> None:
    if not problem.warps_alone:
        raise NotImplementedError(
            f"no kernels for {problem.cost.device} have this of other repeats, begins or ends than "
            "those of plain alignments: call the public functions, which then take plain torch"
        )


def _warped(problem: PatternProblem) -> Problem:
    check_warps_alone(problem)
    check_prices(problem.warp, problem.skip, False)
    warp, cost = _on_device(problem.warp, problem), problem.cost.detach()
    warp = torch.where(warp.isfinite(), warp, math.nan)
    return problem.of(cost.double() + 2 * warp[..., None, None])


def _on_device(number: Tensor, problem: PatternProblem) -> Tensor:
    """What for CUDA kernels may be in host memory, as gamma may."""
    return number.to(problem.cost.device)


def like_cost(matrix: Tensor, problem: PatternProblem) -> Tensor:
    """In the dtype and the layout of the cost."""
    return torch.empty_like(problem.cost).copy_(matrix)


def register() -> None:
    """For every device whose engine has no kernel of its own."""
    for of_pattern in (pattern_value, pattern_gradient, pattern_hessian_product):
        kernel = ops.on_costs(of_pattern.__name__, of_pattern)
        ops.library.impl(of_pattern.__name__, kernel, "CompositeExplicitAutograd")
    for function in (squared_distances_vjp, fused_value, fused_gradient):
        name = function.__name__
        kernel = ops.on_features(name, function)
        ops.library.impl(name, kernel, "CompositeExplicitAutograd")


register()
