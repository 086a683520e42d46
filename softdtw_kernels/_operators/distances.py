"""What costs are made of, each as an autograd Function that may be differentiated twice: squared
distances, the product of features, unit vectors, and a root without a pole.

Autocast is ignored: a cost rounded to bfloat16 is no longer the cost that the recursion is exact
for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .._checks import same_shape
from .._modes import is_autocast
from . import kernels
from .function import (
    BatchedFunction,
    EagerFunction,
    choose,
    derivative,
    forward_rule,
    zeros_if_none,
)


class _UnitTwin(BatchedFunction):
    """x / |x| and 1 / |x| of x (*, N, D), the norm in float64, whose squares do not overflow.

    A zero vector stays 0; it counts as infinitely long, so that all its derivatives are 0.
    """

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float64)
        is_zero = norm.detach().reciprocal() == math.inf
        # Masked before, so that the derivatives of what is masked afterwards are finite.
        nonzero = torch.where(is_zero, 1.0, x)
        norm = torch.linalg.vector_norm(nonzero, dim=-1, keepdim=True, dtype=torch.float64)
        inverse = torch.where(is_zero, 0.0, norm.reciprocal())
        return _in_dtype(x * inverse, x.dtype), inverse

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*output)
        ctx.save_for_forward(*output)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, g_inverse: Tensor | None) -> Tensor | None:
        unit, inverse = ctx.saved_tensors
        by_x = None
        if g is not None:
            by_x = inverse * (g - unit * (unit * g).sum(-1, keepdim=True))
        if g_inverse is not None:
            by_norm = g_inverse * inverse.square() * unit
            by_x = -by_norm if by_x is None else by_x - by_norm
        return None if by_x is None else by_x.to(unit.dtype)


class _Unit(EagerFunction, _UnitTwin):
    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        inverse = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float64)
        inverse.reciprocal_()
        inverse.masked_fill_(inverse == math.inf, 0)
        return _in_dtype(x * inverse, x.dtype), inverse

    @staticmethod
    @forward_rule
    def jvp(ctx: Any, saved: Sequence[Tensor], tangent: Tensor) -> tuple[Tensor, Tensor]:
        unit, inverse = saved
        along = (unit * tangent).sum(-1, keepdim=True)
        by_unit = (inverse * (tangent - unit * along)).to(unit.dtype)
        return by_unit, -inverse.square() * along


def _in_dtype(x: Tensor, dtype: torch.dtype) -> Tensor:
    """As x.to(dtype): torch 2.11 compiles a gradient of 0 where the last thing in a forward is a
    `to` that changes nothing.
    """
    return x if x.dtype == dtype else x.to(dtype)


def unit(x: Tensor) -> Tensor:
    return choose(_Unit, _UnitTwin, (x,))[0]


class _ProductTwin(BatchedFunction):
    """x y^T without autocast, forward and backward."""

    @staticmethod
    def forward(x: Tensor, y: Tensor) -> Tensor:
        return _product(x, y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        x, y = ctx.saved_tensors
        needs = ctx.needs_input_grad
        return (
            derivative(_Product, _product, (g, y.mT)) if needs[0] else None,
            derivative(_Product, _product, (g.mT, x.mT)) if needs[1] else None,
        )


class _Product(EagerFunction, _ProductTwin):
    @staticmethod
    @forward_rule
    def jvp(ctx: Any, saved: Sequence[Tensor], *tangents: Any) -> Tensor:
        x, y = saved
        a, b = zeros_if_none(tangents[0], x), zeros_if_none(tangents[1], y)
        return _Product.apply(a, y) + _Product.apply(x, b)


def product(x: Tensor, y: Tensor) -> Tensor:
    """x y^T of equal leading dimensions, differentiable."""
    return choose(_Product, _ProductTwin, (x, y))


def _product(x: Tensor, y: Tensor) -> Tensor:
    return without_autocast(torch.matmul, x, y.mT)


def without_autocast(function: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor) -> Tensor:
    if not is_autocast(a.device):
        return function(a, b)
    with torch.autocast(a.device.type, enabled=False):
        return function(a, b)


class SquaredDistancesVjp(EagerFunction):
    """2 sum_j g_ij (x_i - y_j) and 2 sum_i g_ij (y_j - x_i): bilinear in g and the features."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor]:
        return kernels.squared_distances_vjp(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[:3])
        ctx.save_for_forward(*inputs[:3])
        ctx.wanted = inputs[3:]

    @staticmethod
    def backward(ctx: Any, a: Tensor, b: Tensor) -> tuple[Any, ...]:
        x, y, g = ctx.saved_tensors
        with_x, with_y = ctx.wanted
        a, b = a if with_x else torch.zeros_like(x), b if with_y else torch.zeros_like(y)
        by_x, by_y = SquaredDistancesVjp.apply(a, b, g, True, True)
        return by_x, by_y, _bilinear(x, y, a, b), None, None

    @staticmethod
    @forward_rule
    def jvp(ctx: Any, saved: Sequence[Tensor], *tangents: Any) -> tuple[Tensor, Tensor]:
        x, y, g = saved
        a, b = zeros_if_none(tangents[0], x), zeros_if_none(tangents[1], y)
        result = SquaredDistancesVjp.apply(a, b, g, *ctx.wanted)
        if tangents[2] is None:
            return result
        by_g = SquaredDistancesVjp.apply(x, y, tangents[2], *ctx.wanted)
        return result[0] + by_g[0], result[1] + by_g[1]


class _SquaredDistancesTwin(BatchedFunction):
    """|x_i - y_j|^2 of x (*x, N, D) and y (*y, M, D), whose leading dimensions broadcast."""

    @staticmethod
    def forward(x: Tensor, y: Tensor) -> Tensor:
        batch = x.shape[:-2]
        if not same_shape(batch, y.shape[:-2]):
            batch = torch.broadcast_shapes(batch, y.shape[:-2])
            x, y = x.expand(*batch, *x.shape[-2:]), y.expand(*batch, *y.shape[-2:])
        return kernels.squared_distances(x, y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        needs = ctx.needs_input_grad
        args = *ctx.saved_tensors, g, *needs
        grads = derivative(SquaredDistancesVjp, kernels.squared_distances_vjp, args)
        return tuple(grad if need else None for grad, need in zip(grads, needs, strict=True))

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, int]:
        x, y = (
            arg[None] if dim is None else arg.movedim(dim, 0)
            for arg, dim in zip(args, in_dims, strict=True)
        )
        return cls.apply(x, y), 0


class SquaredDistances(EagerFunction, _SquaredDistancesTwin):
    @staticmethod
    @forward_rule
    def jvp(ctx: Any, saved: Sequence[Tensor], *tangents: Any) -> Tensor:
        x, y = saved
        return _bilinear(x, y, zeros_if_none(tangents[0], x), zeros_if_none(tangents[1], y))


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """`ops.squared_distances` of broadcastable x and y with equally many dimensions,
    differentiable.
    """
    return choose(SquaredDistances, _SquaredDistancesTwin, (x, y))


def squared_distances_vjp(
    x: Tensor, y: Tensor, g: Tensor, with_x: bool, with_y: bool
) -> tuple[Tensor, Tensor]:
    """`ops.squared_distances_vjp`, differentiable; not for torch.compile."""
    return SquaredDistancesVjp.apply(x, y, g, with_x, with_y)


def _bilinear(x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """2 <x_i - y_j, a_i - b_j>, the tangent of |x_i - y_j|^2 along (a, b), as one product in
    float64.
    """
    dtype = x.dtype
    x, y, a, b = x.double(), y.double(), a.double(), b.double()
    own_x, own_y = (x * a).sum(-1, keepdim=True), (y * b).sum(-1, keepdim=True)
    left = torch.cat((x, a, own_x, torch.ones_like(own_x)), dim=-1)
    right = torch.cat((-b, -y, torch.ones_like(own_y), own_y), dim=-1)
    return (2 * (left @ right.mT)).to(dtype)


class _RootTwin(BatchedFunction):
    """The square root with derivative 0 at 0, in second order too."""

    @staticmethod
    def forward(squared: Tensor) -> Tensor:
        is_zero = squared == 0
        # Masked before too, so that the derivative of what is masked afterwards is finite.
        return torch.where(is_zero, 0.0, torch.where(is_zero, 1.0, squared).sqrt())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * _half_inverse(ctx.saved_tensors[0])


class _RootFunction(EagerFunction, _RootTwin):
    @staticmethod
    def forward(squared: Tensor) -> Tensor:
        return squared.sqrt()

    @staticmethod
    @forward_rule
    def jvp(ctx: Any, saved: Sequence[Tensor], tangent: Tensor) -> Tensor:
        return tangent * _half_inverse(saved[0])


def _half_inverse(root: Tensor) -> Tensor:
    is_zero = root == 0
    # The inner mask keeps the derivative of the quotient finite where the outer one hides it.
    return torch.where(is_zero, 0, 0.5 / torch.where(is_zero, 1, root))


def root(squared: Tensor) -> Tensor:
    return choose(_RootFunction, _RootTwin, (squared,))
