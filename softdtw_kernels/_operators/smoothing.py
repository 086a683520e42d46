"""The derivatives of the local smoothing and of S2DTW: autograd Functions.

The smoothing is one operator and its gradient another; second derivatives of it are those of the
reference, in plain torch. S2DTWFunction composes it with the recursion.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _reference as reference
from .._checks import Lengths, Number, check_origin_count
from .._problem import SmoothedProblem, Smoothing
from . import kernels
from .function import (
    BatchedFunction,
    EagerFunction,
    choose,
    forward_rule,
    goes_on,
    keeping_state,
    may_be_differentiated,
    zeros_if_none,
)
from .recursion import Gradient, along, checked_for_function, only


class SmoothVjp(EagerFunction):
    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor]:
        return kernels.smooth_vjp(Smoothing(*args[:5]), *args[5:])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, ctx.origin_count, grad_s = inputs
        ctx.save_for_backward(*tensors, grad_s)
        ctx.save_for_forward(*tensors, grad_s)

    @staticmethod
    def backward(ctx: Any, by_cost: Tensor, by_gamma: Tensor) -> tuple[Any, ...]:
        *tensors, grad_s = ctx.saved_tensors
        smoothing = Smoothing(*[*tensors, ctx.origin_count])
        a, b, c = _second_order(smoothing, grad_s, by_cost, by_gamma)
        return a, b, None, None, None, c

    @staticmethod
    @forward_rule
    def jvp(ctx: Any, saved: Sequence[Any], *tangents: Any) -> tuple[Tensor, Tensor]:
        *tensors, grad_s = saved
        smoothing = Smoothing(*[*tensors, ctx.origin_count])
        by_cost, by_gamma, _, _, _, by_grad_s = tangents
        a, b, _ = _second_order(smoothing, grad_s, *_tangents(smoothing, by_cost, by_gamma))
        if by_grad_s is not None:
            by_s = SmoothVjp.apply(*smoothing, by_grad_s)
            a, b = a + by_s[0], b + by_s[1]
        return a, b


class _SmoothTwin(BatchedFunction):
    @staticmethod
    def forward(
        cost: Tensor,
        gamma: Tensor,
        x_lengths: Tensor | None,
        y_lengths: Tensor | None,
        origin_count: float,
    ) -> Tensor:
        return kernels.smooth(Smoothing(cost, gamma, x_lengths, y_lengths, origin_count))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, ctx.origin_count = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad_s: Tensor) -> tuple[Any, ...]:
        smoothing = Smoothing(*[*ctx.saved_tensors, ctx.origin_count])
        if may_be_differentiated():
            by_cost, by_gamma = SmoothVjp.apply(*smoothing, grad_s)
        else:
            by_cost, by_gamma = kernels.smooth_vjp(smoothing, grad_s)
        return by_cost, by_gamma, None, None, None


class Smooth(EagerFunction, _SmoothTwin):
    @staticmethod
    @forward_rule
    def jvp(ctx: Any, saved: Sequence[Any], *tangents: Any) -> Tensor:
        by_cost, by_gamma, *_ = tangents
        return _tangent_of_smoothed(Smoothing(*[*saved, ctx.origin_count]), by_cost, by_gamma)


class _S2DTWTwin(BatchedFunction):
    @staticmethod
    def forward(
        cost: Tensor,
        gamma: Tensor,
        dummy: Tensor | None,
        x_lengths: Tensor | None,
        y_lengths: Tensor | None,
        origin_count: float,
    ) -> Tensor:
        problem = SmoothedProblem(cost, gamma, dummy, x_lengths, y_lengths, origin_count)
        return kernels.smoothed_value(problem)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, ctx.origin_count = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad_value: Tensor) -> tuple[Any, ...]:
        problem = SmoothedProblem(*[*ctx.saved_tensors, ctx.origin_count])
        return _gradient_by_inputs(problem, None, grad_value, ctx.needs_input_grad)


def _gradient_by_inputs(
    problem: SmoothedProblem,
    state: Tensor | None,
    grad_value: Tensor,
    needs: Sequence[bool],
    calls: Any = None,
) -> tuple[Any, ...]:
    """As `recursion._gradient_by_inputs`."""
    by_cost, by_gamma, by_dummy, *_ = needs
    with_parameters = by_gamma or by_dummy
    if may_be_differentiated():
        grads = smoothed_gradient(problem, grad_value, with_parameters)
    elif state is None:
        grads = kernels.smoothed_gradient(problem, grad_value, with_parameters)
    else:
        grads = calls.smoothed_gradient_from_state(problem, state, grad_value, with_parameters)
    return *only(grads, (by_cost, by_gamma, by_dummy)), None, None, None


def smoothed_gradient(
    problem: SmoothedProblem, grad_value: Tensor, with_parameters: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """`ops.smoothed_gradient`, differentiable: its parts, each a Function."""
    smoothing = problem.smoothing
    of_lattice = problem.of(Smooth.apply(*smoothing))
    by_s, by_gamma, by_dummy = Gradient.apply(*of_lattice, grad_value, with_parameters)
    by_cost, by_smoothing_gamma = SmoothVjp.apply(*smoothing, by_s)
    return by_cost, by_gamma + by_smoothing_gamma, by_dummy


class S2DTWFunction(EagerFunction, _S2DTWTwin):
    """The S2DTW value of cost matrices (local smoothing, then the weak lattice) as a torch autograd
    Function.

    ``S2DTWFunction.apply(cost, gamma, dummy=None, x_lengths=None, y_lengths=None,
    origin_count=1.0)`` returns the value (*) alone; arguments as those of :class:`SoftDTWFunction`,
    of which it is the value at the smoothed costs.

    >>> import torch
    >>> from softdtw_kernels import s2dtw_from_cost
    >>> cost = torch.tensor([[-1.0, 0.5], [0.5, -1.0]], requires_grad=True)
    >>> value = S2DTWFunction.apply(cost, 0.1, 0.5)
    >>> torch.allclose(value, s2dtw_from_cost(cost, gamma=0.1, dummy_cost=0.5))
    True
    """

    @classmethod
    def apply(
        cls,
        cost: Tensor,
        gamma: Number,
        dummy: Number | None = None,
        x_lengths: Lengths = None,
        y_lengths: Lengths = None,
        origin_count: float = 1.0,
    ) -> Tensor:
        args = checked_for_function(cost, gamma, dummy, x_lengths, y_lengths)
        return super().apply(*args, check_origin_count(origin_count))

    @staticmethod
    @forward_rule
    def jvp(ctx: Any, saved: Sequence[Any], *tangents: Any) -> Tensor:
        problem = SmoothedProblem(*[*saved, ctx.origin_count])
        cost, smoothing = problem.cost, problem.smoothing
        by_cost, by_gamma, by_dummy, *_ = tangents
        ones = torch.ones(cost.shape[:-2], dtype=cost.dtype, device=cost.device)
        with_parameters = by_gamma is not None or by_dummy is not None
        of_lattice = problem.of(Smooth.apply(*smoothing))
        grads = Gradient.apply(*of_lattice, ones, with_parameters)
        by_s = _tangent_of_smoothed(smoothing, by_cost, by_gamma)
        return along(grads, (by_s, by_gamma, by_dummy)).to(cost.dtype)


def _second_order(
    smoothing: Smoothing, grad_s: Tensor, by_cost: Tensor, by_gamma: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of <(by_cost, by_gamma), smooth_vjp> in cost, gamma and grad_s, in plain torch.

    Of smooth_vjp, which is linear in grad_s, the last is also the tangent of the smoothing along
    (by_cost, by_gamma).
    """
    gamma = smoothing.gamma.to(smoothing.cost.device)

    def pull(cost: Tensor, gamma: Tensor, grad_s: Tensor) -> tuple[Tensor, Tensor]:
        return reference.smooth_vjp(smoothing._replace(cost=cost, gamma=gamma), grad_s)

    grads: tuple[Tensor, Tensor, Tensor] = torch.func.vjp(pull, smoothing.cost, gamma, grad_s)[1](
        (by_cost, by_gamma)
    )
    return grads


def _tangents(
    smoothing: Smoothing, by_cost: Tensor | None, by_gamma: Tensor | None
) -> tuple[Tensor, Tensor]:
    cost, gamma, *_ = smoothing
    return zeros_if_none(by_cost, cost), zeros_if_none(by_gamma, gamma, cost.device)


def _tangent_of_smoothed(
    smoothing: Smoothing, by_cost: Tensor | None, by_gamma: Tensor | None
) -> Tensor:
    tangents = _tangents(smoothing, by_cost, by_gamma)
    return _second_order(smoothing, torch.zeros_like(smoothing.cost), *tangents)[2]


def smooth(smoothing: Smoothing) -> Tensor:
    """`ops.smooth`, differentiable."""
    result: Tensor = choose(Smooth, _SmoothTwin, smoothing)
    return result


class _S2DTWWithState(EagerFunction):
    """As `recursion._ValueWithState`; only in plain eager mode, for there is no such operator."""

    @staticmethod
    def forward(ctx: Any, calls: Any, *args: Any) -> Tensor:
        value, state = calls.smoothed_value_and_state(SmoothedProblem(*args))
        *tensors, ctx.origin_count = args
        ctx.calls = calls
        ctx.save_for_backward(*tensors, state)
        return value

    @staticmethod
    def backward(ctx: Any, grad_value: Tensor) -> tuple[Any, ...]:
        *tensors, state = ctx.saved_tensors
        problem = SmoothedProblem(*[*tensors, ctx.origin_count])
        _, *needs = ctx.needs_input_grad
        state = goes_on(ctx.calls, state, grad_value)
        return None, *_gradient_by_inputs(problem, state, grad_value, needs, ctx.calls)


def smoothed_value(problem: SmoothedProblem) -> Tensor:
    """The value of the smoothed costs, differentiable."""
    calls = keeping_state("smoothed_value_and_state", problem)
    if calls is not None:
        result: Tensor = _S2DTWWithState.apply_keeping(calls, problem)
    else:
        result = choose(S2DTWFunction, _S2DTWTwin, problem)
    return result
