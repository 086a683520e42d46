"""Soft-DTW from features as one autograd Function, for devices whose kernels never store the cost.

The value, and its first derivatives where none of them will be differentiated again, come from the
fused operators. Any other derivative (double backward, forward mode, torch.func) is that of the
composition cost -> value, with the cost matrix in memory: the Functions of `costs` and `autograd`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import costs
from .._checks import broadcast_batch, is_distance
from . import kernels
from . import recursion as autograd
from .function import (
    BatchedFunction,
    EagerFunction,
    choose,
    forward_rule,
    keeps_state,
    may_be_differentiated,
)

# Shorter sequences fill no strip of the kernels, and their cost matrix is small.
LEAST_LENGTH = 32


def applies(backend: str, x: Tensor, y: Tensor, cost: costs.Cost, pairwise: bool) -> bool:
    """Whether a call of soft_dtw goes through here.

    All pairs do not: their costs of the dot types come from one matrix product.
    """
    if backend != "cuda" or pairwise or costs.fused_rule(cost) is None:
        return False
    return min(x.shape[-2], y.shape[-2]) >= LEAST_LENGTH


def value(
    x: Tensor,
    y: Tensor,
    gamma: Tensor,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    bandwidth: int | None,
    cost: costs.Cost,
) -> Tensor:
    """The value (*) of x (*, N, D) and y (*, M, D), which broadcast, differentiable.

    `cost` is one that `applies` allows; gamma and the lengths have the shape (*).
    """
    x, y, kind = _operands(x, y, cost)
    args = x, y, gamma, x_lengths, y_lengths, bandwidth, kind
    if keeps_state("fused_value_and_state", x, y, gamma):
        return _FusedValueWithState.apply_checked(*args)
    return choose(_FusedValue, _FusedValueTwin, args)


def slope(
    x: Tensor,
    y: Tensor,
    gamma: Tensor,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    bandwidth: int | None,
    cost: costs.Cost,
) -> Tensor:
    """Zeros that have the derivatives of `value`."""
    x, y, kind = _operands(x, y, cost)
    args = x, y, gamma, x_lengths, y_lengths, bandwidth, kind
    return choose(_FusedSlope, _FusedSlopeTwin, args)


def _operands(x: Tensor, y: Tensor, cost: costs.Cost) -> tuple[Tensor, Tensor, str]:
    """The features of equal leading dimensions that the operators take, and their kind of cost."""
    rule = costs.fused_rule(cost)
    if rule is None:
        raise ValueError(f"the cost {cost!r} needs its matrix")
    x, y = rule.prepare(x, y)
    batch = broadcast_batch(x, y)
    return x.expand(*batch, *x.shape[-2:]), y.expand(*batch, *y.shape[-2:]), rule.kind


class _FusedValueTwin(BatchedFunction):
    @staticmethod
    def forward(
        x: Tensor,
        y: Tensor,
        gamma: Tensor,
        x_lengths: Tensor | None,
        y_lengths: Tensor | None,
        bandwidth: int | None,
        kind: str,
    ) -> Tensor:
        return kernels.fused_value(x, y, gamma, x_lengths, y_lengths, bandwidth, kind)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[:5])
        ctx.save_for_forward(*inputs[:5])
        ctx.constants = inputs[5:]

    @staticmethod
    def backward(ctx: Any, grad_value: Tensor) -> tuple[Any, ...]:
        needs = ctx.needs_input_grad[:3]
        args: list[Any] = [*ctx.saved_tensors, *ctx.constants, grad_value, *needs]
        gradient = _composed_gradient if may_be_differentiated() else kernels.fused_gradient
        grads = gradient(*args)
        wanted = [g if need else None for g, need in zip(grads, needs, strict=True)]
        return *wanted, None, None, None, None


class _FusedValue(EagerFunction, _FusedValueTwin):
    @staticmethod
    @forward_rule
    def jvp(ctx: Any, saved: Sequence[Any], *tangents: Any) -> Tensor:
        x = saved[0]
        ones = torch.ones(x.shape[:-2], dtype=x.dtype, device=x.device)
        wanted = (tangent is not None for tangent in tangents[:3])
        args: list[Any] = [*saved, *ctx.constants, ones, *wanted]
        grads = _composed_gradient(*args)
        total = torch.zeros_like(saved[2], device=x.device)
        for grad, tangent in zip(grads[:2], tangents[:2], strict=True):
            if tangent is not None:
                # Padding counts for nothing, whatever its tangent holds.
                tangent = torch.where(grad == 0, 0, tangent)
                total = total + (grad * tangent).sum((-2, -1), dtype=torch.float64)
        if tangents[2] is not None:
            total = total + grads[2] * tangents[2]
        return total.to(x.dtype)


class _FusedSlopeTwin(_FusedValueTwin):
    """As `autograd._SlopeTwin`."""

    @staticmethod
    def forward(
        x: Tensor,
        y: Tensor,
        gamma: Tensor,
        x_lengths: Tensor | None,
        y_lengths: Tensor | None,
        bandwidth: int | None,
        kind: str,
    ) -> Tensor:
        return x.new_zeros(x.shape[:-2])


class _FusedSlope(_FusedValue):
    forward = staticmethod(_FusedSlopeTwin.forward)


class _FusedValueWithState(EagerFunction):
    """As `autograd._ValueWithState`."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        value, state = kernels.fused_value_and_state(*args)
        ctx.save_for_backward(*args[:5], state)
        ctx.constants = args[5:]
        return value

    @staticmethod
    def backward(ctx: Any, grad_value: Tensor) -> tuple[Any, ...]:
        needs = ctx.needs_input_grad[:3]
        *tensors, state = ctx.saved_tensors
        problem: list[Any] = [*tensors, *ctx.constants]
        rest = grad_value, *needs
        if may_be_differentiated():
            grads = _composed_gradient(*[*problem, *rest])
        else:
            grads = kernels.fused_gradient_from_state(*problem, state, *rest)
        wanted = [g if need else None for g, need in zip(grads, needs, strict=True)]
        return *wanted, None, None, None, None


def _composed_gradient(
    x: Tensor,
    y: Tensor,
    gamma: Tensor,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    bandwidth: int | None,
    kind: str,
    grad_value: Tensor,
    with_x: bool,
    with_y: bool,
    with_gamma: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `ops.fused_gradient`, differentiable, through the cost matrix."""
    minus_x, minus_y = -x, -y
    distance = is_distance(kind)
    cost = costs.squared_distances(x, y) if distance else costs.product(x, minus_y)
    problem = cost, gamma, None, x_lengths, y_lengths, bandwidth
    by_cost, by_gamma, _ = autograd.gradient(*problem, grad_value, with_gamma)
    if distance:
        return *costs.squared_distances_vjp(x, y, by_cost, with_x, with_y), by_gamma
    by_x = costs.product(by_cost, minus_y.mT) if with_x else x.new_empty(*x.shape[:-1], 0)
    by_y = costs.product(by_cost.mT, minus_x.mT) if with_y else y.new_empty(*y.shape[:-1], 0)
    return by_x, by_y, by_gamma
