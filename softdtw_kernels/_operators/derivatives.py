"""The derivatives of the torch.library operators themselves, for programs that do not go through
the Functions: those of torch.export and torch.jit.trace, and direct calls of `torch.ops`.

An operator is then what its Function is, second derivatives included. The Functions do not come
here again: they call `kernels`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .._modes import in_transform, is_transformed
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
    "squared_distances_vjp": distances.SquaredDistancesVjp,
    "fused_value": from_features.FusedValue,
    "monotonic_sum": monotonic.MonotonicSum,
    "monotonic_product": monotonic.MonotonicProduct,
    "monotonic_path": monotonic.MonotonicPath,
    "pattern_value": pattern.PatternValue,
    "pattern_gradient": pattern.PatternGradient,
    "pattern_hessian_product": pattern.PatternHessianProduct,
}
_COMPOSITIONS: dict[str, Callable[..., Any]] = {
    "smoothed_gradient": smoothing.smoothed_gradient,
    "fused_gradient": from_features.composed_gradient,
}


def _differentiated(name: str, args: tuple[Any, ...]) -> Any:
    composition = _COMPOSITIONS.get(name)
    if in_transform() and (composition or not _is_reverse_mode()):
        raise NotImplementedError(
            f"this transform of torch.func takes no torch.ops.softdtw_kernels.{name} called "
            "directly: call the public functions of softdtw_kernels, which compose with all"
        )
    ops.check(name, args)  # what is plain does not come to the operator again
    if composition:
        return composition(*ops.OPERATORS[name].grouped(args))
    function = _FUNCTIONS.get(name)
    if function is None:
        raise NotImplementedError(
            f"torch.ops.softdtw_kernels.{name} has no derivative, and an argument requires a "
            "gradient: call the operator without a state, or detach the arguments"
        )
    if not in_transform():
        return function.apply_at_this_level(*args)
    from torch._functorch.autograd_function import (
        enable_single_level_autograd_function,
    )

    with enable_single_level_autograd_function():
        return function.apply_at_this_level(*args)


def _is_reverse_mode() -> bool:
    """Of the transform at hand."""
    from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter

    interpreter = retrieve_current_functorch_interpreter()
    return bool(interpreter.key() == torch._C._functorch.TransformType.Grad)


def _register(name: str) -> None:
    operator = getattr(torch.ops.softdtw_kernels, name).default

    def call(*args: Any) -> Any:
        if is_transformed() or gradient_is_due(args):
            return _differentiated(name, args)
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*args)

    ops.library.impl(name, call, "Autograd")


for _name in ops.OPERATORS:
    _register(_name)
