"""The derivatives of monotonic alignments: one autograd Function for the value and the expected
visits, which are its gradient but for the sign, and one for their derivative.

The visits are computed in the sweep of the value, if a derivative may be asked for, and kept.
"""

from __future__ import annotations

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
    raise_no_third_derivative,
)


class MonotonicProduct(EagerFunction):
    @staticmethod
    def forward(*args: Any) -> Tensor:
        return kernels.monotonic_product(Monotonic(*args[:3]), args[3])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[:3])
        ctx.save_for_forward(*inputs[:3])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        """The Hessian is symmetric; its own derivative is a third one."""
        if ctx.needs_input_grad[0]:
            raise_no_third_derivative()
        return None, None, None, MonotonicProduct.apply(*ctx.saved_tensors, grad)

    @staticmethod
    @forward_rule
    def jvp(ctx: Any, saved: Sequence[Any], *tangents: Any) -> Any:
        if tangents[0] is not None:
            raise_no_third_derivative()
        return MonotonicProduct.apply(*saved, tangents[3])


class _SumTwin(BatchedFunction):
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
        ctx.save_for_backward(*inputs[:3], output[1])
        ctx.save_for_forward(*inputs[:3])
        ctx.with_expected = inputs[3]
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, by_value: Tensor | None, by_expected: Tensor | None) -> tuple[Any, ...]:
        *args, expected = ctx.saved_tensors
        result = None
        if not ctx.with_expected:  # a program that was recorded without a derivative
            _, expected = derivative(MonotonicSum, _sum, (*args, True))
        if by_value is not None:
            # Where no alignment comes, 0 even if the gradient of the value is not finite.
            scale = by_value[..., None, None]
            result = torch.where(expected == 0, 0, expected * -scale)
        if by_expected is not None and ctx.with_expected:
            of_visits = derivative(MonotonicProduct, _product, (*args, by_expected))
            result = of_visits if result is None else result + of_visits
        return result, None, None, None


class MonotonicSum(EagerFunction, _SumTwin):
    @staticmethod
    @forward_rule
    def jvp(ctx: Any, saved: Sequence[Any], *tangents: Any) -> tuple[Tensor, Tensor]:
        tangent = tangents[0]
        _, expected = MonotonicSum.apply(*saved, True)
        along = torch.where(expected == 0, 0, expected * tangent)
        by_value = -along.sum((-2, -1), dtype=torch.float64).to(tangent.dtype)
        if not ctx.with_expected:
            return by_value, tangent.new_empty(*tangent.shape[:-2], 0, 0)
        return by_value, MonotonicProduct.apply(*saved, tangent)


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


def _sum(*args: Any) -> tuple[Tensor, Tensor]:
    return kernels.monotonic_sum(Monotonic(*args[:3]), args[3])


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
