"""Products with Hessians, the last derivatives that there are.

They are linear in the directions that they are taken along, and have derivatives by these: the
double backward of `torch.autograd.functional.hvp` and `jvp` needs no others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from .._modes import in_transform
from .function import EagerFunction, along, derivative, only, zeros_if_none


def raise_no_third_derivative() -> NoReturn:
    raise RuntimeError(
        "softdtw_kernels gives first and second derivatives, a third one was asked for; "
        "backend='reference' (plain torch, slow) gives derivatives of any order"
    )


class _Undifferentiated(EagerFunction):
    """A tensor itself, by which no derivative is taken any more.

    Torch tells a backward what requires a gradient, not what is asked for. Here the refusal comes
    only if a derivative is on its way to the tensor.
    """

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        raise_no_third_derivative()

    @staticmethod
    def jvp(ctx: Any, tangent: Any) -> Any:
        raise_no_third_derivative()


def _is_guarded(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point() and (x.requires_grad or in_transform())


class LastDerivative(EagerFunction):
    """A second derivative along directions. It is linear in what comes after its problem, and has
    derivatives by that, for those who go this way to a product with a Hessian; by the problem it
    has none.
    """

    fields: int  # of the problem, which comes first

    @classmethod
    def apply_checked(cls, *args: Any) -> Any:
        return super().apply_checked(*cls._guarded(args, _Undifferentiated.apply_checked))

    @classmethod
    def apply_at_this_level(cls, *args: Any) -> Any:
        guard = _Undifferentiated.apply_at_this_level
        return super().apply_at_this_level(*cls._guarded(args, guard))

    @classmethod
    def _guarded(cls, args: tuple[Any, ...], guard: Callable[[Tensor], Tensor]) -> list[Any]:
        problem, rest = args[: cls.fields], args[cls.fields :]
        # A tensor that a transform has wrapped does not tell of the levels around it.
        return [*(guard(x) if _is_guarded(x) else x for x in problem), *rest]

    @classmethod
    def refuse(cls, tangents: Sequence[Any]) -> None:
        """In forward mode: of tangents, those by the problem."""
        if any(tangent is not None for tangent in tangents[: cls.fields]):
            raise_no_third_derivative()


def _zeros_where_none(
    given: Sequence[Tensor | None], directions: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """As many as the directions; None where a problem has no such one."""
    return [
        None if direction is None else zeros_if_none(one, direction)
        for one, direction in zip(given, directions, strict=True)
    ]


def hessian_vjp(
    functions: tuple[type[LastDerivative], type[EagerFunction]],
    problem: tuple[Any, ...],
    s: Tensor,
    directions: Sequence[Tensor | None],
    grads: Sequence[Tensor | None],
    needs: Sequence[bool],
) -> tuple[Any, ...]:
    """What the backward of (<dV, t>, s H t) returns: by the directions t as by the factor s, for H
    is symmetric. functions: of these products, and of s dV.
    """
    products, gradient = functions
    by_slope, *others = grads
    needs_s, *needs = needs[len(problem) :]
    by_s: Tensor | None = None
    by_directions: Sequence[Tensor | None] = [None] * len(directions)
    if any(grad is not None for grad in others):
        along_grads = _zeros_where_none(others, directions)
        if any(needs):
            _, *by_directions = derivative(products, products.forward, (*problem, s, *along_grads))
        if needs_s:
            args = *problem, torch.ones_like(s), *along_grads
            _, *whole = derivative(products, products.forward, args)
            by_s = along(whole, directions).to(s.dtype)
    if by_slope is not None and any(needs):
        slopes = derivative(gradient, gradient.forward, (*problem, by_slope, True))
        by_directions = [
            slope if rest is None else rest + slope
            for rest, slope in zip(by_directions, slopes, strict=True)
        ]
    return *[None] * len(problem), by_s, *only(by_directions, needs)


def hessian_jvp(
    products: type[LastDerivative],
    problem: tuple[Any, ...],
    s: Tensor,
    directions: Sequence[Tensor | None],
    tangents: Sequence[Tensor | None],
) -> tuple[Tensor, ...]:
    """The tangents of (<dV, t>, s H t) along those of s and of the directions t."""
    products.refuse(tangents)
    by_s, *by_directions = tangents[len(problem) :]
    slope, *rest = products.apply(*problem, s, *_zeros_where_none(by_directions, directions))
    if by_s is not None:
        _, *more = products.apply(*problem, by_s, *directions)
        rest = [a + b for a, b in zip(rest, more, strict=True)]
    return slope, *rest
