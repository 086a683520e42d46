"""The derivatives of the local smoothing and of S2DTW: autograd Functions.

The smoothing is one operator and its gradient another; its second derivatives are plain torch, or a
kernel of the engine. S2DTWFunction composes it with the recursion.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from .. import _backends as backends
from .. import _reference as reference
from .._checks import Lengths, Number, check_origin_count
from .._modes import is_plain
from .._problem import SmoothedProblem, Smoothing
from . import kernels
from .function import (
    BatchedFunction,
    EagerFunction,
    choose,
    evaluate,
    forward_rule,
    goes_on,
    may_be_differentiated,
    only,
    slope_along,
    zeros_if_none,
)
from .recursion import Gradient, checked_for_function


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
        return gradient_by_inputs(problem, None, grad_value, ctx.needs_input_grad)


def gradient_by_inputs(
    problem: SmoothedProblem,
    state: Tensor | None,
    grad_value: Tensor,
    needs: Sequence[bool],
    calls: Any = None,
) -> tuple[Any, ...]:
    """As `recursion.gradient_by_inputs`."""
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
        smoothing = problem.smoothing
        by_cost, by_gamma, by_dummy, *_ = tangents
        of_lattice = problem.of(Smooth.apply(*smoothing))
        by_s = _tangent_of_smoothed(smoothing, by_cost, by_gamma)
        return slope_along(Gradient, of_lattice, (by_s, by_gamma, by_dummy))


def _second_order(
    smoothing: Smoothing, grad_s: Tensor, by_cost: Tensor, by_gamma: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of <(by_cost, by_gamma), smooth_vjp> in cost, gamma and grad_s.

    Of smooth_vjp, which is linear in grad_s, the last is also the tangent of the smoothing along
    (by_cost, by_gamma). An engine may have a kernel for it, which no operator of torch stands for:
    it is called where nobody looks on.
    """
    args = smoothing, grad_s, by_cost, by_gamma
    plain = is_plain((*smoothing, grad_s, by_cost, by_gamma))  # of the CPU, and not a wrapper
    if plain and not may_be_differentiated():
        engine = backends.load(backends.select(None, smoothing.cost))
        kernel = getattr(engine, "smooth_second_order", None)
        grads: tuple[Tensor, Tensor, Tensor] | None = kernel(*args) if kernel else None
        if grads is not None:
            return grads
    return _second_order_in_torch(*args)


def _second_order_in_torch(
    smoothing: Smoothing, grad_s: Tensor, by_cost: Tensor, by_gamma: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """With the weights w_k of the predecessors, a_k = by_cost_k + by_gamma log w_k and mean = sum
    of w_k a_k, the tangent of the smoothing is by_cost + mean. The others are what grad_s gives to
    the predecessors and to gamma by the weights w'_k = -(w_k / g) (a_k - mean).
    """
    cost, gamma, x_lengths, y_lengths, origin_count = smoothing
    g = gamma.to(cost.device).double()[..., None, None]
    raw, mass, tangent = cost.double(), grad_s.double(), by_cost.double()
    n = reference.per_item_lengths(x_lengths, cost.shape[-2], cost)
    m = reference.per_item_lengths(y_lengths, cost.shape[-1], cost)
    inside = reference.allowed_cells(cost, n, m, None)
    partial = x_lengths is not None or y_lengths is not None
    if partial:
        raw, mass, tangent = (torch.where(inside, x, 0) for x in (raw, mass, tangent))
    weights, logs = _weights(_predecessors(raw, math.inf), g)
    tangent_gamma = by_gamma.double()[..., None, None]
    shares = [
        torch.where(w == 0, 0, w * (u + tangent_gamma * log))
        for w, log, u in zip(weights, logs, _predecessors(tangent, 0.0), strict=True)
    ]
    mean = (shares[0] + shares[1]) + shares[2]
    scale = mass * torch.where(g == 0, 0, 1 / g)
    flows = [scale * (w * mean - share) for w, share in zip(weights, shares, strict=True)]
    grad = pad(flows[0], (0, 1, 0, 1)) + pad(flows[1], (1, 0, 0, 1)) + pad(flows[2], (0, 1, 1, 0))
    entropies = flows[0] * logs[0] + flows[1] * logs[1] + flows[2] * logs[2]
    along = tangent + mean
    origin = torch.zeros_like(along[..., :1, :1]) - tangent_gamma * math.log(origin_count)
    rows, columns = cost.shape[-2:]
    along = along + pad(origin, (0, columns - 1, 0, rows - 1))
    return (
        grad[..., 1:, 1:].to(cost.dtype),
        entropies.sum((-2, -1)).to(gamma.dtype),
        (torch.where(inside, along, 0) if partial else along).to(grad_s.dtype),
    )


def _predecessors(x: Tensor, outside: float) -> tuple[Tensor, Tensor, Tensor]:
    """What stands diagonally, above and to the left of each cell."""
    framed = pad(x, (1, 0, 1, 0), value=outside)
    return framed[..., :-1, :-1], framed[..., :-1, 1:], framed[..., 1:, :-1]


def _weights(costs: tuple[Tensor, Tensor, Tensor], g: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """The weights of a softmin, and their logarithms: 0 where the weight is 0."""
    a, b, c = costs
    hard = g == 0
    rate = torch.where(hard, 1, g)
    least = torch.minimum(torch.minimum(a, b), c)
    nowhere = least == math.inf
    shift = least.masked_fill(nowhere, 0)
    # What is outside has no derivatives: those of inf / g would be NaN.
    powers = [
        torch.where(x == math.inf, -math.inf, (shift - x.masked_fill(x == math.inf, 0)) / rate)
        for x in costs
    ]
    factors = [torch.exp(power) for power in powers]
    total = ((factors[0] + factors[1]) + factors[2]).masked_fill(nowhere, 1)
    is_a = a <= torch.minimum(b, c)
    is_b = ~is_a & (b <= c)
    chosen = is_a, is_b, ~is_a & ~is_b
    weights = [
        torch.where(hard, k & ~nowhere, f / total) for k, f in zip(chosen, factors, strict=True)
    ]
    log_total = torch.log(total)
    logs = [
        torch.where(hard | (w == 0), 0, power - log_total)
        for w, power in zip(weights, powers, strict=True)
    ]
    return weights, logs


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
        return None, *gradient_by_inputs(problem, state, grad_value, needs, ctx.calls)


def smoothed_value(problem: SmoothedProblem) -> Tensor:
    """The value of the smoothed costs, differentiable."""
    result: Tensor = evaluate("smoothed_value", problem, _S2DTWWithState, S2DTWFunction, _S2DTWTwin)
    return result
