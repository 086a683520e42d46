"""The gradient of squared distances in plain torch, blocked, on any device; and soft-DTW from
features where no kernel fuses it, through the cost matrix.

Requirements: torch only. The gradient is a bilinear form, taken in float64: there it does no harm
that its terms cancel where y is near x or both are far from the origin.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import is_distance
from .._problem import FeatureProblem
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


def register() -> None:
    """For every device whose engine has no kernel of its own."""
    for function in (squared_distances_vjp, fused_value, fused_gradient):
        name = function.__name__
        kernel = ops.on_features(name, function)
        ops.library.impl(name, kernel, "CompositeExplicitAutograd")


register()
