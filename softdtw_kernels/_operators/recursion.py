"""The derivatives of the operators: torch autograd Functions that vmap, jvp, grad and hessian
compose with.

SoftDTWFunction (value) -> its gradient -> the Hessian-vector product, each the derivative of the
one before it and each one call of an operator; S2DTWFunction composes them with the local
smoothing. A third derivative raises. The lower-case functions at the end are what the package
itself calls: they choose the class that torch.compile can trace when it is tracing, and that which
keeps a state for its gradient where that pays. Names and signatures agree with
`backends.reference`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _backends as backends
from .. import _reference as reference
from .._checks import (
    Lengths,
    Number,
    batch_parameter,
    check_bandwidth,
    check_lattice,
    check_lengths,
    check_origin_count,
    check_tensor,
    to_device,
)
from . import kernels
from .function import (
    BatchedFunction,
    EagerFunction,
    choose,
    derivative,
    forward_rule,
    keeps_state,
    may_be_differentiated,
    raise_no_third_derivative,
    zeros_if_none,
)


class _HessianProduct(EagerFunction):
    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return kernels.hessian_product(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise_no_third_derivative()

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise_no_third_derivative()


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
        problem = cost, gamma, dummy, x_lengths, y_lengths, bandwidth
        return kernels.gradient(*problem, grad_value, with_parameters)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        cost, gamma, dummy, x_lengths, y_lengths, bandwidth, grad_value, _ = inputs
        tensors = cost, gamma, dummy, x_lengths, y_lengths, grad_value
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        ctx.bandwidth = bandwidth

    @staticmethod
    def backward(ctx: Any, *tangents: Any) -> tuple[Any, ...]:
        *problem, grad_value = ctx.saved_tensors
        by_cost, by_gamma, by_dummy = tangents
        by_dummy = None if problem[2] is None else by_dummy
        args = *problem, ctx.bandwidth, grad_value, by_cost, by_gamma, by_dummy
        along, *products = derivative(_HessianProduct, kernels.hessian_product, args)
        needs = ctx.needs_input_grad
        wanted = [p if need else None for p, need in zip(products, needs[:3], strict=True)]
        return *wanted, None, None, None, along if needs[6] else None, None


class _Gradient(EagerFunction, _GradientTwin):
    @staticmethod
    @forward_rule
    def jvp(ctx: Any, saved: Sequence[Any], *tangents: Any) -> tuple[Tensor, Tensor, Tensor]:
        *problem, grad_value = saved
        cost, gamma, dummy = problem[:3]
        by_cost, by_gamma, by_dummy, _, _, _, by_grad_value, _ = tangents
        result = _HessianProduct.apply(
            *problem,
            ctx.bandwidth,
            grad_value,
            zeros_if_none(by_cost, cost),
            zeros_if_none(by_gamma, gamma, cost.device),
            None if dummy is None else zeros_if_none(by_dummy, dummy, cost.device),
        )[1:]
        if by_grad_value is not None:
            scaled = _Gradient.apply(*problem, ctx.bandwidth, by_grad_value, True)
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
        return kernels.value(cost, gamma, dummy, x_lengths, y_lengths, bandwidth)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[:5])
        ctx.save_for_forward(*inputs[:5])
        ctx.bandwidth = inputs[5]

    @staticmethod
    def backward(ctx: Any, grad_value: Tensor) -> tuple[Any, ...]:
        needs = ctx.needs_input_grad
        args = *ctx.saved_tensors, ctx.bandwidth, grad_value, needs[1] or needs[2]
        grads = derivative(_Gradient, kernels.gradient, args)
        wanted = [g if need else None for g, need in zip(grads, needs[:3], strict=True)]
        return *wanted, None, None, None


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
        args = _checked(cost, gamma, dummy, x_lengths, y_lengths)
        bandwidth = check_bandwidth(bandwidth)
        check_lattice(dummy, bandwidth)
        return super().apply(*args, bandwidth)

    @staticmethod
    @forward_rule
    def jvp(ctx: Any, problem: Sequence[Any], *tangents: Any) -> Tensor:
        ones = torch.ones(problem[0].shape[:-2], dtype=problem[0].dtype, device=problem[0].device)
        with_parameters = tangents[1] is not None or tangents[2] is not None
        grads = _Gradient.apply(*problem, ctx.bandwidth, ones, with_parameters)
        return _along(grads, tangents[:3]).to(problem[0].dtype)


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
    def forward(ctx: Any, *args: Any) -> Tensor:
        value, state = kernels.value_and_state(*args)
        *tensors, ctx.bandwidth = args
        ctx.save_for_backward(*tensors, state)
        return value

    @staticmethod
    def backward(ctx: Any, grad_value: Tensor) -> tuple[Any, ...]:
        needs = ctx.needs_input_grad
        *tensors, state = ctx.saved_tensors
        problem, with_parameters = (*tensors, ctx.bandwidth), needs[1] or needs[2]
        if may_be_differentiated():
            grads = _Gradient.apply(*problem, grad_value, with_parameters)
        else:
            grads = kernels.gradient_from_state(*problem, state, grad_value, with_parameters)
        wanted = [g if need else None for g, need in zip(grads, needs[:3], strict=True)]
        return *wanted, None, None, None


class _SmoothVjp(EagerFunction):
    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor]:
        return kernels.smooth_vjp(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        cost, gamma, x_lengths, y_lengths, origin_count, grad_s = inputs
        tensors = cost, gamma, x_lengths, y_lengths, grad_s
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        ctx.origin_count = origin_count

    @staticmethod
    def backward(ctx: Any, by_cost: Tensor, by_gamma: Tensor) -> tuple[Any, ...]:
        *problem, grad_s = ctx.saved_tensors
        args = *problem, ctx.origin_count
        a, b, c = _smooth_second_order(args, grad_s, by_cost, by_gamma)
        return a, b, None, None, None, c

    @staticmethod
    @forward_rule
    def jvp(ctx: Any, saved: Sequence[Any], *tangents: Any) -> tuple[Tensor, Tensor]:
        *problem, grad_s = saved
        by_cost = zeros_if_none(tangents[0], problem[0])
        by_gamma = zeros_if_none(tangents[1], problem[1], problem[0].device)
        args = *problem, ctx.origin_count
        a, b, _ = _smooth_second_order(args, grad_s, by_cost, by_gamma)
        if tangents[5] is not None:
            by_s = _SmoothVjp.apply(*args, tangents[5])
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
        return kernels.smooth(cost, gamma, x_lengths, y_lengths, origin_count)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[:4])
        ctx.save_for_forward(*inputs[:4])
        ctx.origin_count = inputs[4]

    @staticmethod
    def backward(ctx: Any, grad_s: Tensor) -> tuple[Any, ...]:
        args = *ctx.saved_tensors, ctx.origin_count, grad_s
        by_cost, by_gamma = derivative(_SmoothVjp, kernels.smooth_vjp, args)
        return by_cost, by_gamma, None, None, None


class _Smooth(EagerFunction, _SmoothTwin):
    @staticmethod
    @forward_rule
    def jvp(ctx: Any, problem: Sequence[Any], *tangents: Any) -> Tensor:
        return _smooth_jvp((*problem, ctx.origin_count), tangents[0], tangents[1])


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
        return kernels.smoothed_value(cost, gamma, dummy, x_lengths, y_lengths, origin_count)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[:5])
        ctx.save_for_forward(*inputs[:5])
        ctx.origin_count = inputs[5]

    @staticmethod
    def backward(ctx: Any, grad_value: Tensor) -> tuple[Any, ...]:
        needs = ctx.needs_input_grad
        args = *ctx.saved_tensors, ctx.origin_count, grad_value, needs[1] or needs[2]
        if may_be_differentiated():
            grads = _smoothed_gradient(*args)
        else:
            grads = kernels.smoothed_gradient(*args)
        wanted = [g if need else None for g, need in zip(grads, needs[:3], strict=True)]
        return *wanted, None, None, None


def _smoothed_gradient(
    cost: Tensor,
    gamma: Tensor,
    dummy: Tensor | None,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    origin_count: float,
    grad_value: Tensor,
    with_parameters: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """`ops.smoothed_gradient`, differentiable: its parts, each a Function."""
    smoothing = cost, gamma, x_lengths, y_lengths, origin_count
    problem = _Smooth.apply(*smoothing), gamma, dummy, x_lengths, y_lengths, None
    by_s, by_gamma, by_dummy = _Gradient.apply(*problem, grad_value, with_parameters)
    by_cost, by_smoothing_gamma = _SmoothVjp.apply(*smoothing, by_s)
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
        args = _checked(cost, gamma, dummy, x_lengths, y_lengths)
        return super().apply(*args, check_origin_count(origin_count))

    @staticmethod
    @forward_rule
    def jvp(ctx: Any, problem: Sequence[Any], *tangents: Any) -> Tensor:
        cost, gamma, dummy, *lengths = problem
        by_cost, by_gamma, by_dummy, *_ = tangents
        s = _Smooth.apply(cost, gamma, *lengths, ctx.origin_count)
        ones = torch.ones(cost.shape[:-2], dtype=cost.dtype, device=cost.device)
        with_parameters = by_gamma is not None or by_dummy is not None
        grads = _Gradient.apply(s, gamma, dummy, *lengths, None, ones, with_parameters)
        by_s = _smooth_jvp((cost, gamma, *lengths, ctx.origin_count), by_cost, by_gamma)
        return _along(grads, (by_s, by_gamma, by_dummy)).to(cost.dtype)


def _checked(
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


def _along(grads: tuple[Tensor, ...], tangents: tuple[Any, ...]) -> Tensor:
    """<gradient, tangents> per item, in float64."""
    total = torch.zeros_like(grads[1])
    by_cost, by_gamma, by_dummy = tangents
    if by_cost is not None:
        # Cells that no path visits contribute nothing, whatever their tangent holds (padding may
        # hold NaN).
        by_cost = torch.where(grads[0] == 0, 0, by_cost)
        total = total + (grads[0] * by_cost).sum((-2, -1), dtype=torch.float64)
    if by_gamma is not None:
        total = total + grads[1] * by_gamma
    if by_dummy is not None:
        total = total + grads[2] * by_dummy
    return total


def _smooth_second_order(
    problem: tuple[Any, ...], grad_s: Tensor, by_cost: Tensor, by_gamma: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of <(by_cost, by_gamma), smooth_vjp> in cost, gamma and grad_s, in plain torch.

    Of smooth_vjp, which is linear in grad_s, the last is also the tangent of the smoothing along
    (by_cost, by_gamma). The problem is (cost, gamma, x_lengths, y_lengths, origin_count).
    """
    cost, gamma, x_lengths, y_lengths, origin_count = problem
    gamma = gamma.to(cost.device)

    def pull(cost: Tensor, gamma: Tensor, grad_s: Tensor) -> tuple[Tensor, Tensor]:
        return reference.smooth_vjp(cost, gamma, x_lengths, y_lengths, origin_count, grad_s)

    return torch.func.vjp(pull, cost, gamma, grad_s)[1]((by_cost, by_gamma))


def _smooth_jvp(
    problem: tuple[Any, ...], by_cost: Tensor | None, by_gamma: Tensor | None
) -> Tensor:
    cost, gamma, *_ = problem
    tangents = zeros_if_none(by_cost, cost), zeros_if_none(by_gamma, gamma, cost.device)
    return _smooth_second_order(problem, torch.zeros_like(cost), *tangents)[2]


def value(*args: Any) -> Tensor:
    """`ops.value`, differentiable."""
    if keeps_state("value_and_state", *args[:3]):
        return _ValueWithState.apply_checked(*args)
    return choose(SoftDTWFunction, _ValueTwin, args)


def slope(*args: Any) -> Tensor:
    """Zeros that have the derivatives of `value`."""
    return choose(_Slope, _SlopeTwin, args)


def gradient(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """`ops.gradient`, differentiable."""
    return choose(_Gradient, _GradientTwin, args)


def smooth(*args: Any) -> Tensor:
    """`ops.smooth`, differentiable."""
    return choose(_Smooth, _SmoothTwin, args)


def smoothed_value(*args: Any) -> Tensor:
    """The value of the smoothed costs, differentiable."""
    return choose(S2DTWFunction, _S2DTWTwin, args)


def path(cost: Tensor, *args: Any) -> list[Tensor]:
    """The cheapest paths, by the kernels of the device of the cost."""
    return backends.load(backends.select(None, cost)).path(cost, *args)
