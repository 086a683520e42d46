"""The derivatives of the recursion: torch autograd Functions that vmap, jvp, grad and hessian
compose with.

SoftDTWFunction (value) -> its gradient -> the Hessian-vector product (see `hessian`), each the
derivative of the one before it and each one call of an operator. The lower-case functions at the
end are what the package itself calls: they choose the class that torch.compile can trace when it is
tracing, and that which keeps a state for its gradient where that pays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _backends as backends
from .._checks import (
    Lengths,
    Number,
    batch_parameter,
    check_bandwidth,
    check_lattice,
    check_lengths,
    check_tensor,
    to_device,
)
from .._problem import Problem
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


class HessianProduct(LastDerivative):
    """<dV, t>, and s H t, of a value V, a factor s and directions t."""

    fields = len(Problem._fields)

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return kernels.hessian_product(Problem(*args[:6]), *args[6:])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.bandwidth = inputs[5]
        tensors = *inputs[:5], *inputs[6:]
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        *tensors, s, t_cost, t_gamma, t_dummy = ctx.saved_tensors
        problem, directions = (*tensors, ctx.bandwidth), (t_cost, t_gamma, t_dummy)
        functions = HessianProduct, Gradient
        return hessian_vjp(functions, problem, s, directions, grads, ctx.needs_input_grad)

    @staticmethod
    @forward_rule
    def jvp(ctx: Any, saved: Sequence[Any], *tangents: Any) -> tuple[Tensor, ...]:
        *tensors, s, t_cost, t_gamma, t_dummy = saved
        problem, directions = (*tensors, ctx.bandwidth), (t_cost, t_gamma, t_dummy)
        return hessian_jvp(HessianProduct, problem, s, directions, tangents)


# The twins name the arguments of forward: where nothing requires a gradient, torch.compile takes a
# forward(*args) for one with a ctx.


class _GradientTwin(BatchedFunction):
    """grad_value * dV/d(cost, gamma, dummy)."""

    @staticmethod
    def forward(
        cost: Tensor,
        gamma: Tensor,
        dummy: Tensor | None,
        x_lengths: Tensor | None,
        y_lengths: Tensor | None,
        bandwidth: int | None,
        grad_value: Tensor,
        with_parameters: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        problem = Problem(cost, gamma, dummy, x_lengths, y_lengths, bandwidth)
        return kernels.gradient(problem, grad_value, with_parameters)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, ctx.bandwidth, grad_value, _ = inputs
        ctx.save_for_backward(*tensors, grad_value)
        ctx.save_for_forward(*tensors, grad_value)

    @staticmethod
    def backward(ctx: Any, *tangents: Any) -> tuple[Any, ...]:
        *tensors, grad_value = ctx.saved_tensors
        problem = Problem(*[*tensors, ctx.bandwidth])
        by_cost, by_gamma, by_dummy = tangents
        by_dummy = None if problem.dummy is None else by_dummy
        directions = by_cost, by_gamma, by_dummy
        args = *problem, grad_value, *directions
        slope, *products = derivative(HessianProduct, HessianProduct.forward, args)
        *needs, _, _, _, slope_is_wanted, _ = ctx.needs_input_grad
        if slope_is_wanted and may_be_differentiated():
            slope = slope_along(Gradient, problem, directions)
        return *only(products, needs), None, None, None, slope if slope_is_wanted else None, None


class Gradient(EagerFunction, _GradientTwin):
    @staticmethod
    @forward_rule
    def jvp(ctx: Any, saved: Sequence[Any], *tangents: Any) -> tuple[Tensor, Tensor, Tensor]:
        *tensors, grad_value = saved
        problem = Problem(*[*tensors, ctx.bandwidth])
        cost, gamma, dummy, *_ = problem
        by_cost, by_gamma, by_dummy, _, _, _, by_grad_value, _ = tangents
        result = HessianProduct.apply(
            *problem,
            grad_value,
            zeros_if_none(by_cost, cost),
            zeros_if_none(by_gamma, gamma, cost.device),
            None if dummy is None else zeros_if_none(by_dummy, dummy, cost.device),
        )[1:]
        if by_grad_value is not None:
            scaled = Gradient.apply(*problem, by_grad_value, True)
            result = tuple(a + b for a, b in zip(result, scaled, strict=True))
        return result


class _ValueTwin(BatchedFunction):
    @staticmethod
    def forward(
        cost: Tensor,
        gamma: Tensor,
        dummy: Tensor | None,
        x_lengths: Tensor | None,
        y_lengths: Tensor | None,
        bandwidth: int | None,
    ) -> Tensor:
        return kernels.value(Problem(cost, gamma, dummy, x_lengths, y_lengths, bandwidth))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, ctx.bandwidth = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad_value: Tensor) -> tuple[Any, ...]:
        problem = Problem(*[*ctx.saved_tensors, ctx.bandwidth])
        return gradient_by_inputs(problem, None, grad_value, ctx.needs_input_grad)


class SoftDTWFunction(EagerFunction, _ValueTwin):
    """The soft-DTW value of cost matrices as a torch autograd Function, for those who build their
    own.

    ``SoftDTWFunction.apply(cost, gamma, dummy=None, x_lengths=None, y_lengths=None,
    bandwidth=None)`` returns the value (*) alone. It composes with torch.func and forward-mode AD;
    under torch.compile(fullgraph=True) call :func:`soft_dtw_from_cost`, since torch traces no
    Function that has a jvp.

    Args:
        cost: (*, N, M), float32 or float64, any strides.
        gamma: a number, a 0-d tensor, or a float64 tensor (*), one gamma an item.
        dummy: None for the plain lattice; a number or tensor as gamma for the (2N + 1) x (2M + 1)
            lattice of weak alignment, whose cells are the costs at odd-odd places and this dummy
            cost everywhere else.
        x_lengths, y_lengths: None or integers of shape (*).
        bandwidth: an integer or None; None with a dummy cost.

    >>> import torch
    >>> cost = torch.tensor([[0.0, 1.0], [1.0, 0.0]], requires_grad=True)
    >>> value = SoftDTWFunction.apply(cost, 0.0)
    >>> value.backward()
    >>> value.item(), cost.grad
    (0.0, tensor([[1., 0.],
            [0., 1.]]))
    """

    @classmethod
    def apply(
        cls,
        cost: Tensor,
        gamma: Number,
        dummy: Number | None = None,
        x_lengths: Lengths = None,
        y_lengths: Lengths = None,
        bandwidth: int | None = None,
    ) -> Tensor:
        args = checked_for_function(cost, gamma, dummy, x_lengths, y_lengths)
        bandwidth = check_bandwidth(bandwidth)
        check_lattice(dummy, bandwidth)
        return super().apply(*args, bandwidth)

    @staticmethod
    @forward_rule
    def jvp(ctx: Any, saved: Sequence[Any], *tangents: Any) -> Tensor:
        return slope_along(Gradient, (*saved, ctx.bandwidth), tangents[:3])


class _SlopeTwin(_ValueTwin):
    """Zeros with the derivatives of the value, for those who have the value from elsewhere."""

    @staticmethod
    def forward(
        cost: Tensor,
        gamma: Tensor,
        dummy: Tensor | None,
        x_lengths: Tensor | None,
        y_lengths: Tensor | None,
        bandwidth: int | None,
    ) -> Tensor:
        return cost.new_zeros(cost.shape[:-2])


class _Slope(SoftDTWFunction):
    forward = staticmethod(_SlopeTwin.forward)


class _ValueWithState(EagerFunction):
    """The value where a gradient in plain eager mode is all that is likely to follow: what the
    forward sweep has left stays in memory until then, as a saved tensor. Its derivatives otherwise,
    by double backward or under vmap, are those without state.

    Forward and its context are one function, which costs less than two.
    """

    @staticmethod
    def forward(ctx: Any, calls: Any, *args: Any) -> Tensor:
        value, state = calls.value_and_state(Problem(*args))
        *tensors, ctx.bandwidth = args
        ctx.calls = calls
        ctx.save_for_backward(*tensors, state)
        return value

    @staticmethod
    def backward(ctx: Any, grad_value: Tensor) -> tuple[Any, ...]:
        cost, gamma, dummy, x_lengths, y_lengths, state = ctx.saved_tensors
        problem = Problem(cost, gamma, dummy, x_lengths, y_lengths, ctx.bandwidth)
        _, *needs = ctx.needs_input_grad
        state = goes_on(ctx.calls, state, grad_value)
        return None, *gradient_by_inputs(problem, state, grad_value, needs, ctx.calls)


def gradient_by_inputs(
    problem: Problem,
    state: Tensor | None,
    grad_value: Tensor,
    needs: Sequence[bool],
    calls: Any = None,
) -> tuple[Any, ...]:
    """What a backward returns: the gradient by every argument of forward. calls: who goes on with
    the state.
    """
    by_cost, by_gamma, by_dummy, *_ = needs
    with_parameters = by_gamma or by_dummy
    if may_be_differentiated():
        grads = Gradient.apply(*problem, grad_value, with_parameters)
    elif state is None:
        grads = kernels.gradient(problem, grad_value, with_parameters)
    else:
        grads = calls.gradient_from_state(problem, state, grad_value, with_parameters)
    return *only(grads, (by_cost, by_gamma, by_dummy)), None, None, None


def checked_for_function(
    cost: Tensor, gamma: Number, dummy: Number | None, x_lengths: Lengths, y_lengths: Lengths
) -> tuple[Any, ...]:
    """What is given to a public Function, in the forms that the operators take: they read raw
    memory.
    """
    check_tensor(cost, "cost", "(*, N, M)")
    return (
        cost,
        _parameter(gamma, "gamma", cost),
        _parameter(dummy, "dummy", cost),
        _lengths(x_lengths, "x_lengths", cost),
        _lengths(y_lengths, "y_lengths", cost),
    )


def _lengths(value: Lengths, name: str, cost: Tensor) -> Tensor | None:
    batch = cost.shape[:-2]
    if isinstance(value, Tensor) and value.dtype == torch.int64 and value.shape == batch:
        return value
    lengths = check_lengths(value, name, batch, cost.device)
    return None if lengths is None else lengths.expand(batch)


def _parameter(value: Any, name: str, cost: Tensor) -> Any:
    if value is None:
        return None
    if isinstance(value, Tensor) and value.shape == cost.shape[:-2]:
        return to_device(value, cost.device, torch.float64)
    return batch_parameter(value, name, cost.shape[:-2], cost.device)


def value(problem: Problem) -> Tensor:
    """`ops.value`, differentiable."""
    result: Tensor = evaluate("value", problem, _ValueWithState, SoftDTWFunction, _ValueTwin)
    return result


def slope(problem: Problem) -> Tensor:
    """Zeros that have the derivatives of `value`."""
    result: Tensor = choose(_Slope, _SlopeTwin, problem)
    return result


def gradient(
    problem: Problem, grad_value: Tensor, with_parameters: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """`ops.gradient`, differentiable."""
    args = *problem, grad_value, with_parameters
    result: tuple[Tensor, Tensor, Tensor] = choose(Gradient, _GradientTwin, args)
    return result


def path(problem: Problem) -> list[Tensor]:
    """The cheapest paths, by the kernels of the device of the cost."""
    return backends.load(backends.select(None, problem.cost)).path(problem)
