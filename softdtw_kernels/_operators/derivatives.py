"""The derivatives of the torch.library operators themselves, for programs that do not go through
the Functions: those of torch.export, torch.jit.trace and make_fx, transforms of torch.func that
torch.compile compiles, and direct calls of `torch.ops`.

An operator is then what its Function is, second derivatives and vmap included. The Functions do not
come here again: they call `kernels`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._modes import in_transform, is_forward_mode
from . import (
    compositions,  # noqa: F401  # the kernels that no engine has
    distances,
    from_features,
    monotonic,
    ops,
    pattern,
    recursion,
    smoothing,
)
from .function import EagerFunction, gradient_is_due

_FUNCTIONS: dict[str, type[EagerFunction]] = {
    "value": recursion.SoftDTWFunction,
    "gradient": recursion.Gradient,
    "hessian_product": recursion.HessianProduct,
    "smooth": smoothing.Smooth,
    "smooth_vjp": smoothing.SmoothVjp,
    "smoothed_value": smoothing.S2DTWFunction,
    "squared_distances": distances.SquaredDistances,
    "fused_value": from_features.FusedValue,
    "monotonic_sum": monotonic.MonotonicSum,
    "monotonic_product": monotonic.MonotonicProduct,
    "monotonic_path": monotonic.MonotonicPath,
    "pattern_value": pattern.PatternValue,
    "pattern_gradient": pattern.PatternGradient,
    "pattern_hessian_product": pattern.PatternHessianProduct,
}


def _squared_distances_vjp(
    x: Tensor, y: Tensor, g: Tensor, with_x: bool, with_y: bool
) -> tuple[Tensor, ...]:
    """Of features with as many dimensions as g, in front of which vmap adds its own."""
    missing = g.dim() - x.dim(), g.dim() - y.dim()
    x, y = (z[(None,) * count] for z, count in zip((x, y), missing, strict=True))
    grads = distances.squared_distances_vjp(x, y, g, with_x, with_y)
    return tuple(grad[(0,) * count] for grad, count in zip(grads, missing, strict=True))


_COMPOSITIONS: dict[str, Callable[..., Any]] = {
    "smoothed_gradient": smoothing.smoothed_gradient,
    "fused_gradient": from_features.composed_gradient,
    "squared_distances_vjp": _squared_distances_vjp,
}


def _register(name: str) -> None:
    operator = getattr(torch.ops.softdtw_kernels, name).default
    function, composition = _FUNCTIONS.get(name), _COMPOSITIONS.get(name)

    def call(*args: Any) -> Any:
        if is_forward_mode() or gradient_is_due(args):
            return differentiable(args, "an argument requires a gradient")
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*args)

    def transformed(*args: Any) -> Any:
        return differentiable(args, "torch.func transforms this call")

    def differentiable(args: tuple[Any, ...], why: str) -> Any:
        ops.check(name, args)  # what is plain does not come to the operator again
        if composition is not None:
            return composition(*ops.OPERATORS[name].grouped(args))
        if function is None:
            raise NotImplementedError(
                f"torch.ops.softdtw_kernels.{name} has no derivative and no vmap, and {why}: call "
                "the operator without a state, or detach the arguments"
            )
        return (
            function.apply_checked(*args) if in_transform() else function.apply_at_this_level(*args)
        )

    ops.library.impl(name, call, "Autograd")
    # Where torch.func comes to an operator first, before it has chosen one of its transforms.
    ops.library.impl(name, transformed, "FuncTorchDynamicLayerFrontMode")


for _name in ops.OPERATORS:
    _register(_name)
