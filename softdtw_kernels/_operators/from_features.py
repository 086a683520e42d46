"""Soft-DTW from features as one autograd Function, by kernels that never store the cost.

The value, and its first derivatives where none of them will be differentiated again, come from the
fused operators. Any other derivative (double backward, forward mode, torch.func) is that of the
composition cost -> value, with the cost matrix in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._checks import is_distance
from .._modes import PLAIN_TYPES, in_plain_mode, is_recorded
from .._problem import FeatureProblem
from . import kernels, recursion
from .distances import product, squared_distances, squared_distances_vjp
from .function import (
    BatchedFunction,
    EagerFunction,
    choose,
    evaluate,
    forward_rule,
    goes_on,
    may_be_differentiated,
    only,
)

# On CUDA, shorter sequences fill no strip of the kernels, and their cost matrix is small.
LEAST_LENGTH = 32
# On the CPU a strip has so many bytes of rows. Where it does more than so many times the cells that
# there are, lanes that are pairs take less time on a matrix.
STRIP_BYTES, MOST_WORK = 128, 2.5
# With more features, distances and products of a whole matrix take less time a cell.
MANY_DISTANCES, MANY_PRODUCTS = 128, 48
SMALL_CALL = 40_000  # cells: what one thread of the CPU does


def applies(
    backend: str, x: Tensor, y: Tensor, pairwise: bool, bandwidth: int | None, kind: str
) -> bool:
    """Whether a call goes through here, of a cost that kernels compute from features.

    On CUDA all pairs do not, since their costs of the dot types come from one matrix product.
    """
    if backend == "cuda":
        return not pairwise and min(x.shape[-2], y.shape[-2]) >= LEAST_LENGTH
    # A program that is recorded holds for other sizes too: what it does can't depend on them.
    if backend != "numba" or is_recorded():
        return False
    return without_matrix(x, y, bandwidth, kind) or _is_small_call(x, y, pairwise, kind)


def without_matrix(x: Tensor, y: Tensor, bandwidth: int | None, kind: str) -> bool:
    """Whether the CPU stores no costs of such pairs: where that takes less time.

    This must not depend on the size of the batch: the bits of a pair would.
    """
    n, m, size = x.shape[-2], y.shape[-2], x.shape[-1]
    # The gradients by x and y, a pair each, are to take no more memory than those of a matrix.
    if size * (n + m) > 2 * n * m:
        return False
    rows = STRIP_BYTES // x.element_size()
    steps = m + rows - 1
    if bandwidth is not None:  # of a matrix all cells are computed
        steps = min(steps, abs(m - n) + 2 * min(bandwidth, m) + rows)
    many = MANY_DISTANCES if is_distance(kind) else MANY_PRODUCTS
    work = -(-n // rows) * rows * steps * max(1.0, size / many)
    return work <= MOST_WORK * n * m


def _is_small_call(x: Tensor, y: Tensor, pairwise: bool, kind: str) -> bool:
    """Of distances, on the CPU: one Function in place of two, where that is most of the time. Bits
    are those of the two.
    """
    if pairwise or not (in_plain_mode() and type(x) in PLAIN_TYPES and type(y) in PLAIN_TYPES):
        return False
    if not is_distance(kind) or x.dim() > 4:
        return False
    batch, rows = x.shape[:-2], x.shape[-2]
    return batch == y.shape[:-2] and batch.numel() * rows * y.shape[-2] < SMALL_CALL


def value(problem: FeatureProblem) -> Tensor:
    """`ops.fused_value`, differentiable."""
    functions = _FusedValueWithState, FusedValue, _FusedValueTwin
    result: Tensor = evaluate("fused_value", problem, *functions)
    return result


def slope(problem: FeatureProblem) -> Tensor:
    """Zeros that have the derivatives of `value`."""
    result: Tensor = choose(_FusedSlope, _FusedSlopeTwin, problem)
    return result


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
        problem = FeatureProblem(x, y, gamma, x_lengths, y_lengths, bandwidth, kind)
        return kernels.fused_value(problem)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, ctx.bandwidth, ctx.kind = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad_value: Tensor) -> tuple[Any, ...]:
        problem = FeatureProblem(*[*ctx.saved_tensors, ctx.bandwidth, ctx.kind])
        return gradient_by_inputs(problem, None, grad_value, ctx.needs_input_grad)


class FusedValue(EagerFunction, _FusedValueTwin):
    @staticmethod
    @forward_rule
    def jvp(ctx: Any, saved: Sequence[Any], *tangents: Any) -> Tensor:
        problem = FeatureProblem(*[*saved, ctx.bandwidth, ctx.kind])
        x = problem.x
        by_x, by_y, by_gamma, *_ = tangents
        ones = torch.ones(x.shape[:-2], dtype=x.dtype, device=x.device)
        wanted = [tangent is not None for tangent in (by_x, by_y, by_gamma)]
        grads = composed_gradient(problem, ones, *wanted)
        total = torch.zeros_like(problem.gamma, device=x.device)
        lengths = problem.x_lengths, problem.y_lengths
        for grad, tangent, own in zip(grads[:2], (by_x, by_y), lengths, strict=True):
            if tangent is not None:
                # Padding counts for nothing, whatever its tangent holds.
                tangent = within(tangent, own)
                total = total + (grad * tangent).sum((-2, -1), dtype=torch.float64)
        if by_gamma is not None:
            total = total + grads[2] * by_gamma
        return total.to(x.dtype)


def within(tangent: Tensor, lengths: Tensor | None) -> Tensor:
    """Zeros beyond the lengths."""
    if lengths is None:
        return tangent
    frames = torch.arange(tangent.shape[-2], device=tangent.device) < lengths[..., None]
    return torch.where(frames[..., None], tangent, 0)


class _FusedSlopeTwin(_FusedValueTwin):
    """As `recursion._SlopeTwin`."""

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


class _FusedSlope(FusedValue):
    forward = staticmethod(_FusedSlopeTwin.forward)


class _FusedValueWithState(EagerFunction):
    """As `recursion._ValueWithState`."""

    @staticmethod
    def forward(ctx: Any, calls: Any, *args: Any) -> Tensor:
        value, state = calls.fused_value_and_state(FeatureProblem(*args))
        *tensors, ctx.bandwidth, ctx.kind = args
        ctx.calls = calls
        ctx.save_for_backward(*tensors, state)
        return value

    @staticmethod
    def backward(ctx: Any, grad_value: Tensor) -> tuple[Any, ...]:
        *tensors, state = ctx.saved_tensors
        problem = FeatureProblem(*[*tensors, ctx.bandwidth, ctx.kind])
        _, *needs = ctx.needs_input_grad
        state = goes_on(ctx.calls, state, grad_value)
        return None, *gradient_by_inputs(problem, state, grad_value, needs, ctx.calls)


def gradient_by_inputs(
    problem: FeatureProblem,
    state: Tensor | None,
    grad_value: Tensor,
    needs: Sequence[bool],
    calls: Any = None,
) -> tuple[Any, ...]:
    """As `recursion.gradient_by_inputs`."""
    wanted = needs[:3]
    if may_be_differentiated():
        grads = composed_gradient(problem, grad_value, *wanted)
    elif state is None:
        grads = kernels.fused_gradient(problem, grad_value, *wanted)
    else:
        grads = calls.fused_gradient_from_state(problem, state, grad_value, *wanted)
    return *only(grads, wanted), None, None, None, None


def composed_gradient(
    problem: FeatureProblem, grad_value: Tensor, with_x: bool, with_y: bool, with_gamma: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """As `ops.fused_gradient`, differentiable, through the cost matrix."""
    x, y = problem.x, problem.y
    minus_x, minus_y = -x, -y
    distance = is_distance(problem.kind)
    cost = squared_distances(x, y) if distance else product(x, minus_y)
    by_cost, by_gamma, _ = recursion.gradient(problem.of(cost), grad_value, with_gamma)
    if distance:
        return *squared_distances_vjp(x, y, by_cost, with_x, with_y), by_gamma
    by_x = product(by_cost, minus_y.mT) if with_x else x.new_empty(*x.shape[:-1], 0)
    by_y = product(by_cost.mT, minus_x.mT) if with_y else y.new_empty(*y.shape[:-1], 0)
    return by_x, by_y, by_gamma
