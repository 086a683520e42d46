"""The derivatives of monotonic alignments: the value -> the expected visits, which are its gradient
but for the sign -> their derivative along a tangent, as in `hessian`.

The visits are computed in the sweep of the value, if a derivative may be asked for, and kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._problem import Monotonic
from . import kernels
from .function import (
    BatchedFunction,
    EagerFunction,
    choose,
    derivative,
    derivative_is_due,
    forward_rule,
    may_be_differentiated,
)
from .hessian import LastDerivative


class MonotonicProduct(LastDerivative):
    fields = len(Monotonic._fields)

    @staticmethod
    def forward(*args: Any) -> Tensor:
        return kernels.monotonic_product(Monotonic(*args[:3]), args[3])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[:3])
        ctx.save_for_forward(*inputs[:3])
        ctx.set_materialize_grads(False)  # nor tangents, in forward mode

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> Any:
        """The Hessian is symmetric."""
        if grad is None:
            return None, None, None, None
        args = *ctx.saved_tensors, grad
        return None, None, None, derivative(MonotonicProduct, _product, args)

    @staticmethod
    @forward_rule
    def jvp(ctx: Any, saved: Sequence[Any], *tangents: Any) -> Any:
        MonotonicProduct.refuse(tangents)
        return MonotonicProduct.apply(*saved, tangents[3])


class Expected(EagerFunction):
    """The expected visits."""

    @staticmethod
    def forward(*args: Any) -> Tensor:
        return _expected(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        args = *ctx.saved_tensors, grad
        return derivative(MonotonicProduct, _product, args), None, None

    @staticmethod
    @forward_rule
    def jvp(ctx: Any, saved: Sequence[Any], *tangents: Any) -> Tensor:
        return MonotonicProduct.apply(*saved, tangents[0])


class _SumTwin(BatchedFunction):
    """The value, and the visits for its gradient; as an output these have no derivative."""

    @staticmethod
    def forward(
        log_probs: Tensor,
        x_lengths: Tensor | None,
        y_lengths: Tensor | None,
        with_expected: bool,
    ) -> tuple[Tensor, Tensor]:
        monotonic = Monotonic(log_probs, x_lengths, y_lengths)
        return kernels.monotonic_sum(monotonic, with_expected)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        value, expected = output
        # Not the value itself, which a caller may change.
        ctx.save_for_backward(*inputs[:3], value == math.inf, expected)
        ctx.save_for_forward(*inputs[:3])
        ctx.mark_non_differentiable(expected)
        ctx.with_expected = inputs[3]

    @staticmethod
    def backward(ctx: Any, by_value: Tensor | None, _: Any) -> tuple[Any, ...]:
        if by_value is None:
            return None, None, None, None
        *args, without_alignment, expected = ctx.saved_tensors
        # Without them: a program that was recorded where no derivative was due.
        if may_be_differentiated() or not ctx.with_expected:
            expected = derivative(Expected, _expected, tuple(args))
        # Without an alignment 0, even if the gradient of the value is not finite.
        scale = torch.where(without_alignment, 0, -by_value)
        return _times(expected, scale[..., None, None]), None, None, None


class MonotonicSum(EagerFunction, _SumTwin):
    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        _SumTwin.setup_context(ctx, inputs, output)
        # Or torch makes a matrix of zeros for the visits. torch.compile does not know this.
        ctx.set_materialize_grads(False)

    @staticmethod
    @forward_rule
    def jvp(ctx: Any, saved: Sequence[Any], *tangents: Any) -> tuple[Tensor, None]:
        expected = Expected.apply(*saved)
        along = torch.where(expected == 0, 0, expected * tangents[0])
        return -along.sum((-2, -1), dtype=torch.float64).to(expected.dtype), None


class _PathTwin(BatchedFunction):
    """Without a derivative."""

    @staticmethod
    def forward(scores: Tensor, x_lengths: Tensor | None, y_lengths: Tensor | None) -> Tensor:
        return kernels.monotonic_path(Monotonic(scores, x_lengths, y_lengths))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return None, None, None


class MonotonicPath(EagerFunction, _PathTwin):
    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return None


def _expected(*args: Any) -> Tensor:
    return kernels.monotonic_sum(Monotonic(*args), True)[1]


def _times(expected: Tensor, scale: Tensor) -> Tensor:
    engine = None if may_be_differentiated() else kernels.engine_of_plain_call((expected, scale))
    if engine is None:
        return expected * scale
    return torch.mul(expected, scale, out=engine.matrix_like(expected, zeros=False))


def _product(*args: Any) -> Tensor:
    return kernels.monotonic_product(Monotonic(*args[:3]), args[3])


def value(monotonic: Monotonic) -> Tensor:
    """Minus the log of the total probability, differentiable."""
    args = *monotonic, derivative_is_due((monotonic.log_probs,))
    result: Tensor = choose(MonotonicSum, _SumTwin, args)[0]
    return result


def path(monotonic: Monotonic) -> Tensor:
    """`ops.monotonic_path`."""
    result: Tensor = choose(MonotonicPath, _PathTwin, monotonic)
    return result
