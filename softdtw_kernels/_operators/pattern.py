"""Other steps, begins and ends than the plain recursion has: the derivatives of the operators
`pattern_*`, as `recursion` has those of the plain ones.

Where an engine has no kernels for second derivatives of a pattern, `declined` says so and why. Then
the recursion in plain torch has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .. import _backends as backends
from .. import _reference_pattern as reference
from .._problem import PatternProblem
from . import kernels
from .function import (
    BatchedFunction,
    EagerFunction,
    choose,
    derivative,
    evaluate,
    forward_rule,
    goes_on,
    may_be_differentiated,
    only,
    slope_along,
    zeros_if_none,
)
from .hessian import LastDerivative, hessian_jvp, hessian_vjp

FIELDS = len(PatternProblem._fields)
Four = tuple[Tensor, Tensor, Tensor, Tensor]


def declined(problem: PatternProblem) -> str | None:
    """Why the kernels for the device of the cost have no second derivatives; None if they do."""
    if problem.cost.is_cuda and not problem.warps_alone:
        return "tangents ride along in the CUDA kernels by all steps, from the first pair on"
    return None


def value(problem: PatternProblem) -> Tensor:
    """`ops.pattern_value`, differentiable."""
    functions = _PatternValueWithState, PatternValue, _PatternValueTwin
    result: Tensor = evaluate("pattern_value", problem, *functions, count=4)
    return result


def slope(problem: PatternProblem) -> Tensor:
    """Zeros that have the derivatives of `value`; in plain eager mode, not for torch.compile."""
    result: Tensor = _PatternSlope.apply_checked(*problem)
    return result


def gradient(problem: PatternProblem, grad_value: Tensor, with_parameters: bool) -> Four:
    """`ops.pattern_gradient`, differentiable."""
    args = *problem, grad_value, with_parameters
    result: Four = choose(PatternGradient, _PatternGradientTwin, args)
    return result


def path(problem: PatternProblem) -> list[Tensor]:
    """The cheapest paths."""
    engine: Any = backends.load(backends.select(None, problem.cost))
    found: list[Tensor] = engine.pattern_path(problem)
    return found


class PatternHessianProduct(LastDerivative):
    """As `recursion.HessianProduct`."""

    fields = FIELDS

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        problem, rest = PatternProblem(*args[:FIELDS]), args[FIELDS:]
        by_torch = reference.hessian_product if declined(problem) else None
        return (by_torch or kernels.pattern_hessian_product)(problem, *rest)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _save(ctx, PatternProblem(*inputs[:FIELDS]), *inputs[FIELDS:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        tensors, (s, *directions) = ctx.saved_tensors[:6], ctx.saved_tensors[6:]
        problem, functions = (*tensors, *ctx.rest), (PatternHessianProduct, PatternGradient)
        return hessian_vjp(functions, problem, s, directions, grads, ctx.needs_input_grad)

    @staticmethod
    @forward_rule
    def jvp(ctx: Any, saved: Sequence[Any], *tangents: Any) -> tuple[Tensor, ...]:
        tensors, (s, *directions) = saved[:6], saved[6:]
        problem = *tensors, *ctx.rest
        return hessian_jvp(PatternHessianProduct, problem, s, directions, tangents)


def _save(ctx: Any, problem: PatternProblem, *more: Tensor) -> None:
    ctx.rest = problem[6:]
    tensors = *problem[:6], *more
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)


class _PatternGradientTwin(BatchedFunction):
    """grad_value * dV/d(cost, gamma, warp, skip)."""

    @staticmethod
    def forward(
        cost: Tensor,
        gamma: Tensor,
        warp: Tensor,
        skip: Tensor,
        x_lengths: Tensor | None,
        y_lengths: Tensor | None,
        bandwidth: int | None,
        repeat: str,
        open_begin: str,
        open_end: str,
        grad_value: Tensor,
        with_parameters: bool,
    ) -> Four:
        lengths = x_lengths, y_lengths, bandwidth
        problem = PatternProblem(cost, gamma, warp, skip, *lengths, repeat, open_begin, open_end)
        return kernels.pattern_gradient(problem, grad_value, with_parameters)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _save(ctx, PatternProblem(*inputs[:FIELDS]), inputs[FIELDS])

    @staticmethod
    def backward(ctx: Any, *tangents: Any) -> tuple[Any, ...]:
        *tensors, grad_value = ctx.saved_tensors
        args = *tensors, *ctx.rest, grad_value, *tangents
        product = PatternHessianProduct
        slope, *products = derivative(product, product.forward, args)
        needs = ctx.needs_input_grad
        if needs[FIELDS] and may_be_differentiated():
            slope = slope_along(PatternGradient, (*tensors, *ctx.rest), tangents)
        slope = slope if needs[FIELDS] else None
        return *only(products, needs[:4]), *[None] * (FIELDS - 4), slope, None


class PatternGradient(EagerFunction, _PatternGradientTwin):
    @staticmethod
    @forward_rule
    def jvp(ctx: Any, saved: Sequence[Any], *tangents: Any) -> Four:
        *tensors, grad_value = saved
        problem = PatternProblem(*[*tensors, *ctx.rest])
        directions = [
            zeros_if_none(tangent, like, problem.cost.device)
            for tangent, like in zip(tangents[:4], problem[:4], strict=True)
        ]
        result = PatternHessianProduct.apply(*problem, grad_value, *directions)[1:]
        by_grad_value = tangents[FIELDS]
        if by_grad_value is not None:
            scaled = PatternGradient.apply(*problem, by_grad_value, True)
            result = tuple(a + b for a, b in zip(result, scaled, strict=True))
        return result


class _PatternValueTwin(BatchedFunction):
    @staticmethod
    def forward(
        cost: Tensor,
        gamma: Tensor,
        warp: Tensor,
        skip: Tensor,
        x_lengths: Tensor | None,
        y_lengths: Tensor | None,
        bandwidth: int | None,
        repeat: str,
        open_begin: str,
        open_end: str,
    ) -> Tensor:
        lengths = x_lengths, y_lengths, bandwidth
        problem = PatternProblem(cost, gamma, warp, skip, *lengths, repeat, open_begin, open_end)
        return kernels.pattern_value(problem)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _save(ctx, PatternProblem(*inputs))

    @staticmethod
    def backward(ctx: Any, grad_value: Tensor) -> tuple[Any, ...]:
        problem = PatternProblem(*[*ctx.saved_tensors, *ctx.rest])
        return gradient_by_inputs(problem, grad_value, ctx.needs_input_grad)


class _PatternValueWithState(EagerFunction):
    """As `recursion._ValueWithState`."""

    @staticmethod
    def forward(ctx: Any, calls: Any, *args: Any) -> Tensor:
        value, state = calls.pattern_value_and_state(PatternProblem(*args))
        ctx.calls, ctx.rest = calls, args[6:]
        ctx.save_for_backward(*args[:6], state)
        return value

    @staticmethod
    def backward(ctx: Any, grad_value: Tensor) -> tuple[Any, ...]:
        *tensors, state = ctx.saved_tensors
        problem = PatternProblem(*[*tensors, *ctx.rest])
        _, *needs = ctx.needs_input_grad
        state = goes_on(ctx.calls, state, grad_value)
        return None, *gradient_by_inputs(problem, grad_value, needs, state, ctx.calls)


def gradient_by_inputs(
    problem: PatternProblem,
    grad_value: Tensor,
    needs: Sequence[bool],
    state: Tensor | None = None,
    calls: Any = None,
) -> tuple[Any, ...]:
    """As `recursion.gradient_by_inputs`."""
    needs = needs[:4]
    rest = grad_value, any(needs[1:])
    if may_be_differentiated():
        grads = PatternGradient.apply(*problem, *rest)
    elif state is None:
        grads = kernels.pattern_gradient(problem, *rest)
    else:
        grads = calls.pattern_gradient_from_state(problem, state, *rest)
    return *only(grads, needs), *[None] * (FIELDS - 4)


class PatternValue(EagerFunction, _PatternValueTwin):
    @staticmethod
    @forward_rule
    def jvp(ctx: Any, saved: Sequence[Any], *tangents: Any) -> Tensor:
        return slope_along(PatternGradient, (*saved, *ctx.rest), tangents[:4])


class _PatternSlope(PatternValue):
    @staticmethod
    def forward(*args: Any) -> Tensor:
        cost: Tensor = args[0]
        return cost.new_zeros(cost.shape[:-2])
