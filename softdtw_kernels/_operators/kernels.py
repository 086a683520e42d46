"""The operators without their derivatives, for the Functions that give these.

Autograd finds the derivatives of an operator in `derivatives`, by a Python function that every
call would pay for. The Functions go below it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from . import ops


def without_derivative(operator: Callable[..., Any]) -> Callable[..., Any]:
    """The operator as autograd sees it inside of a Function: a constant."""

    def call(*args: Any) -> Any:
        # torch.compile cannot trace the guard, and what is recorded has derivatives.
        if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
            return operator(*args)
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*args)

    return call


value = without_derivative(ops.value)
gradient = without_derivative(ops.gradient)
value_and_state = without_derivative(ops.value_and_state)
gradient_from_state = without_derivative(ops.gradient_from_state)
hessian_product = without_derivative(ops.hessian_product)
smooth = without_derivative(ops.smooth)
smooth_vjp = without_derivative(ops.smooth_vjp)
smoothed_value = without_derivative(ops.smoothed_value)
smoothed_gradient = without_derivative(ops.smoothed_gradient)
squared_distances = without_derivative(ops.squared_distances)
squared_distances_vjp = without_derivative(ops.squared_distances_vjp)
fused_value = without_derivative(ops.fused_value)
fused_gradient = without_derivative(ops.fused_gradient)
fused_value_and_state = without_derivative(ops.fused_value_and_state)
fused_gradient_from_state = without_derivative(ops.fused_gradient_from_state)
