"""Sums of absolute differences, as a cost, in plain torch: one feature after the other, so that no
temporary tensor is larger than the cost matrix.

The derivative is 0 where two features are equal. It is constant elsewhere, so two Functions that
are each other's derivative are all there is, to any order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .._checks import same_shape
from .function import (
    BatchedFunction,
    EagerFunction,
    choose,
    derivative,
    forward_rule,
    zeros_if_none,
)


def _differences(x: Tensor, y: Tensor) -> Iterator[Tensor]:
    """(*, N, M) of every feature. Not by index, which torch.jit.trace would take for a constant."""
    for a, b in zip(x.unbind(-1), y.unbind(-1), strict=True):
        yield a[..., :, None] - b[..., None, :]


def _forms(x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """sum over d of sign(x_id - y_jd) (a_id - b_jd): the tangent along (a, b), and at a = x, b = y
    the cost itself.
    """
    result = None
    for here, along in zip(_differences(x, y), _differences(a, b), strict=True):
        part = torch.sign(here) * along
        result = part if result is None else result + part
    assert result is not None
    return result


def _gradients(x: Tensor, y: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """sum_j g_ij sign(x_id - y_jd), and minus the sum over i."""
    by_x, by_y = [], []
    for here in _differences(x, y):
        signed = g * torch.sign(here)
        by_x.append(signed.sum(-1))
        by_y.append(-signed.sum(-2))
    return torch.stack(by_x, dim=-1), torch.stack(by_y, dim=-1)


class _GradientsFunction(EagerFunction):
    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor]:
        return _gradients(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.save_for_forward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, a: Tensor, b: Tensor) -> tuple[Any, ...]:
        return None, None, _Forms.apply(*ctx.saved_tensors, a, b)

    @staticmethod
    @forward_rule
    def jvp(ctx: Any, saved: Sequence[Tensor], *tangents: Any) -> tuple[Tensor, Tensor]:
        x, y = saved
        if tangents[2] is None:
            return torch.zeros_like(x), torch.zeros_like(y)
        return _GradientsFunction.apply(x, y, tangents[2])


class _Forms(EagerFunction):
    @staticmethod
    def forward(*args: Any) -> Tensor:
        return _forms(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.save_for_forward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        return None, None, *_GradientsFunction.apply(*ctx.saved_tensors, g)

    @staticmethod
    @forward_rule
    def jvp(ctx: Any, saved: Sequence[Tensor], *tangents: Any) -> Tensor:
        x, y = saved
        _, _, a, b = tangents
        return _Forms.apply(x, y, zeros_if_none(a, x), zeros_if_none(b, y))


class _DistancesTwin(BatchedFunction):
    """Of x (*, N, D) and y (*, M, D) with equal leading dimensions."""

    @staticmethod
    def forward(x: Tensor, y: Tensor) -> Tensor:
        result = None
        for here in _differences(x, y):
            result = here.abs() if result is None else result + here.abs()
        assert result is not None
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        args = *ctx.saved_tensors, g
        grads: tuple[Tensor, Tensor] = derivative(_GradientsFunction, _gradients, args)
        return grads


class _Distances(EagerFunction, _DistancesTwin):
    @staticmethod
    @forward_rule
    def jvp(ctx: Any, saved: Sequence[Tensor], *tangents: Any) -> Tensor:
        x, y = saved
        a, b = tangents
        return _Forms.apply(x, y, zeros_if_none(a, x), zeros_if_none(b, y))


def manhattan(x: Tensor, y: Tensor) -> Tensor:
    """sum over d of |x_id - y_jd| of x (*, N, D) and y (*, M, D), whose leading dimensions
    broadcast.
    """
    batch = x.shape[:-2]
    if not same_shape(batch, y.shape[:-2]):
        batch = torch.broadcast_shapes(batch, y.shape[:-2])
        x, y = x.expand(*batch, *x.shape[-2:]), y.expand(*batch, *y.shape[-2:])
    result: Tensor = choose(_Distances, _DistancesTwin, (x, y))
    return result
