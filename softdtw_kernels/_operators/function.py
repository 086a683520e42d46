"""What all autograd Functions of this package have in common: one vmap rule and a fast eager
`apply`.

Every Function is written twice over: a class without `jvp`, which torch.compile can trace (a custom
jvp breaks fullgraph), and a subclass with `jvp` for eager and torch.func use.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from .. import _backends as backends
from .._modes import (
    in_transform,
    is_batched_gradient,
    is_plain,
    is_recorded,
    is_transformed,
)
from . import kernels

try:  # what Function.apply itself calls; without it, it is used as it is
    from torch._functorch.utils import unwrap_dead_wrappers
except ImportError:  # pragma: no cover

    def unwrap_dead_wrappers(args: tuple[Any, ...]) -> tuple[Any, ...]:
        return args


class BatchedFunction(Function):
    """All tensors have leading batch dimensions, so vmap only adds one more in front."""

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, int]:
        batched = [
            batch_first(arg, dim, info.batch_size) for arg, dim in zip(args, in_dims, strict=True)
        ]
        return cls.apply(*batched), 0


def choose(
    function: type[EagerFunction], twin: type[BatchedFunction], args: tuple[Any, ...]
) -> Any:
    """Apply `function` to checked arguments; its forward alone if nobody asks for a derivative.

    Under torch.compile the twin without jvp is applied. torch.compile also refuses one tensor as
    two arguments (a sequence compared with itself, the same lengths on both sides), hence the
    views. A program that is recorded gets the forward of the twin, whose parts have derivatives.
    """
    if is_recorded():
        return twin.forward(*args)
    if not torch.compiler.is_compiling():
        tracked = derivative_is_due(args)
        return function.apply_checked(*args) if tracked else function.forward(*args)
    return twin.apply(*(arg.view_as(arg) if isinstance(arg, Tensor) else arg for arg in args))


def gradient_is_due(args: tuple[Any, ...]) -> bool:
    """Whether autograd would record a call of these arguments."""
    if torch.is_grad_enabled():
        for arg in args:
            if isinstance(arg, Tensor) and arg.requires_grad:
                return True
    return False


def derivative_is_due(args: tuple[Any, ...]) -> bool:
    """Whether a derivative by these arguments may be asked for; compiled code drops what is not."""
    return torch.compiler.is_compiling() or is_transformed() or gradient_is_due(args)


def batch_first(arg: Any, dim: int | None, batch_size: int) -> Any:
    if not isinstance(arg, Tensor):
        return arg
    if dim is None:
        return arg.expand(batch_size, *arg.shape)
    return arg.movedim(dim, 0)


class EagerFunction(BatchedFunction):
    """Function.apply inspects the signature of forward at every call, which costs more than a small
    kernel.

    Defaults are therefore filled by the public `apply` of the subclasses, never by forward.
    """

    @classmethod
    def apply(cls, *args: Any) -> Any:
        return cls.apply_checked(*args)

    @classmethod
    def apply_checked(cls, *args: Any) -> Any:
        """`apply` for the package itself, which has checked the arguments."""
        if in_transform():
            return super().apply(*args)
        if torch.is_grad_enabled():
            _refuse_batched(args)
        # Here and below: past Function.apply, to a class of torch's C++ that mypy does not see.
        return super(Function, cls).apply(*unwrap_dead_wrappers(args))  # type: ignore[misc]

    @classmethod
    def apply_keeping(cls, calls: Any, problem: tuple[Any, ...]) -> Any:
        """`apply` to what `_keeping_state` returns: nothing is transformed, or even a wrapper."""
        args = unwrap_dead_wrappers(problem) if calls is kernels else problem
        return super(Function, cls).apply(calls, *args)  # type: ignore[misc]

    @classmethod
    def apply_at_this_level(cls, *args: Any) -> Any:
        """`apply` inside an operator, where torch has already chosen a level of the transforms."""
        return super(Function, cls).apply(*unwrap_dead_wrappers(args))  # type: ignore[misc]


def evaluate(
    operator: str,
    problem: tuple[Any, ...],
    keeping: type[EagerFunction],
    function: type[EagerFunction],
    twin: type[BatchedFunction],
    count: int = 3,
) -> Any:
    """The operator of a problem, differentiable by its first fields, so many: by the engine where
    torch would do nothing else, by the Function `keeping` a state where that pays, or as `choose`.
    """
    if not torch.compiler.is_compiling():
        engine, due = kernels.plain_engine(problem), gradient_is_due(problem[:count])
        if due:
            calls = _keeping_state(f"{operator}_and_state", problem, engine)
            if calls is not None:
                return keeping.apply_keeping(calls, problem)
        elif engine is not None and (kernel := getattr(engine, operator, None)):
            return kernel(problem)
    return choose(function, twin, problem)


def _keeping_state(operator: str, problem: tuple[Any, ...], engine: Any) -> Any:
    """Who has `operator` for a problem of which a gradient is due, and what continues its gradient
    with the state: in plain eager mode the engine, else `kernels`. None where nothing is to be
    kept: the backend has no such operator.
    """
    first = problem[0]
    if engine is not None:
        return engine if hasattr(engine, operator) else None
    # On the CPU a mode, or whatever else is not plain, meets the operators that have no state.
    if not is_plain(problem) and (not first.is_cuda or is_recorded() or is_transformed()):
        return None
    kept = hasattr(backends.load(backends.select(None, first)), operator)
    return kernels if kept and hasattr(kernels, operator) else None


def goes_on(calls: Any, state: Tensor, grad_value: Tensor) -> Tensor | None:
    """The state, for a backward to go on with; None if `calls` was the engine of plain calls and
    this is no longer one, by what comes in or by what hooks have made of what was saved.
    """
    if calls is kernels or is_plain((grad_value, state), state.device.type):
        return state
    return None


def may_be_differentiated() -> bool:
    """Whether what a backward computes now may have a derivative taken of it: by double backward, a
    functorch transform, or forward mode. Not by torch.compile itself, which has no double backward.
    """
    if torch.compiler.is_compiling():
        return in_transform()
    return torch.is_grad_enabled() or is_transformed()


def derivative(
    function: type[EagerFunction], operator: Callable[..., Any], args: tuple[Any, ...]
) -> Any:
    """The operator inside backward: as its Function, which has derivatives, where they may be asked
    for.
    """
    return function.apply(*args) if may_be_differentiated() else operator(*args)


def forward_rule(rule: Callable[..., Any]) -> Callable[..., Any]:
    """Make rule(ctx, primals, *tangents) a jvp that forward mode can be applied to again.

    Torch calls jvp with forward mode off at every level, so that jvp(jvp(..)) is silently 0 for
    any custom Function. It is turned on here, after the saved tensors have lost their tangents of
    the level at hand.
    """

    @functools.wraps(rule)
    def jvp(ctx: Any, *tangents: Any) -> Any:
        with forward_ad._set_fwd_grad_enabled(True):
            saved = ctx.saved_tensors
            primals = [
                None if x is None else forward_ad.unpack_dual(x, level=0).primal for x in saved
            ]
            # A parameter elsewhere is a number in host memory, for which torch makes zeros there.
            device = saved[0].device
            present = [
                None if isinstance(tangent, Tensor) and tangent.device != device else tangent
                for tangent in tangents
            ]
            return rule(ctx, primals, *present)

    return jvp


def _refuse_batched(args: tuple[Any, ...]) -> None:
    if any(isinstance(arg, Tensor) and is_batched_gradient(arg) for arg in args):
        raise RuntimeError(
            "torch records no Function in the backward of gradients that it batches, so that a "
            "derivative of these would be lost: use torch.func.jacrev in place of vectorize=True "
            "or is_grads_batched=True, or leave out create_graph=True"
        )


def zeros_if_none(
    tangent: Tensor | None, like: Tensor, device: torch.device | None = None
) -> Tensor:
    """On the device of `like` or, for parameters that may be in host memory, the one given."""
    return torch.zeros_like(like, device=device) if tangent is None else tangent


def along(grads: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Tensor:
    """<gradient, tangents> per item, in float64: by the cost, and by settings."""
    total = torch.zeros_like(grads[1])
    by_cost, *by_settings = tangents
    if by_cost is not None:
        # Cells that no path visits contribute nothing, whatever their tangent holds (padding may
        # hold NaN).
        by_cost = torch.where(grads[0] == 0, 0, by_cost)
        total = total + (grads[0] * by_cost).sum((-2, -1), dtype=torch.float64)
    for grad, tangent in zip(grads[1:], by_settings, strict=True):
        if tangent is not None:
            total = total + grad * tangent
    return total


def slope_along(
    gradient: type[EagerFunction], problem: Sequence[Any], directions: Sequence[Tensor | None]
) -> Tensor:
    """<dV, t> where derivatives may be asked for: it has one by the problem, which is H t.

    gradient: the Function of s dV, of the problem, s, and whether it is wanted by settings.
    """
    cost = problem[0]
    ones = torch.ones(cost.shape[:-2], dtype=cost.dtype, device=cost.device)
    by_settings = any(direction is not None for direction in directions[1:])
    return along(gradient.apply(*problem, ones, by_settings), directions).to(cost.dtype)


def only(grads: Sequence[Tensor | None], needs: Sequence[bool]) -> list[Tensor | None]:
    """The gradients that autograd asks for."""
    return [grad if need else None for grad, need in zip(grads, needs, strict=True)]
