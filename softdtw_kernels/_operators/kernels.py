"""The operators without their derivatives, for the Functions that give these.

Autograd finds the derivatives of an operator in `derivatives`, by a Python function that every
call would pay for. The Functions go below it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._problem import FeatureProblem, Monotonic, Problem, SmoothedProblem, Smoothing
from . import ops

Two = tuple[Tensor, Tensor]
Three = tuple[Tensor, Tensor, Tensor]
Four = tuple[Tensor, Tensor, Tensor, Tensor]


def _call(operator: Callable[..., Any], *args: Any) -> Any:
    """The operator as autograd sees it inside of a Function: a constant."""
    # torch.compile cannot trace the guard, and what is recorded has derivatives.
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return operator(*args)
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*args)


def value(problem: Problem) -> Tensor:
    result: Tensor = _call(ops.value, *problem)
    return result


def gradient(problem: Problem, grad_value: Tensor, with_parameters: bool) -> Three:
    result: Three = _call(ops.gradient, *problem, grad_value, with_parameters)
    return result


def value_and_state(problem: Problem) -> Two:
    result: Two = _call(ops.value_and_state, *problem)
    return result


def gradient_from_state(
    problem: Problem, state: Tensor, grad_value: Tensor, with_parameters: bool
) -> Three:
    args = *problem, state, grad_value, with_parameters
    result: Three = _call(ops.gradient_from_state, *args)
    return result


def hessian_product(
    problem: Problem,
    grad_value: Tensor,
    tangent_cost: Tensor,
    tangent_gamma: Tensor,
    tangent_dummy: Tensor | None,
) -> Four:
    args = *problem, grad_value, tangent_cost, tangent_gamma, tangent_dummy
    result: Four = _call(ops.hessian_product, *args)
    return result


def smooth(smoothing: Smoothing) -> Tensor:
    result: Tensor = _call(ops.smooth, *smoothing)
    return result


def smooth_vjp(smoothing: Smoothing, grad_s: Tensor) -> Two:
    result: Two = _call(ops.smooth_vjp, *smoothing, grad_s)
    return result


def smoothed_value(problem: SmoothedProblem) -> Tensor:
    result: Tensor = _call(ops.smoothed_value, *problem)
    return result


def smoothed_gradient(problem: SmoothedProblem, grad_value: Tensor, with_parameters: bool) -> Three:
    result: Three = _call(ops.smoothed_gradient, *problem, grad_value, with_parameters)
    return result


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    result: Tensor = _call(ops.squared_distances, x, y)
    return result


def squared_distances_vjp(x: Tensor, y: Tensor, g: Tensor, with_x: bool, with_y: bool) -> Two:
    result: Two = _call(ops.squared_distances_vjp, x, y, g, with_x, with_y)
    return result


def fused_value(problem: FeatureProblem) -> Tensor:
    result: Tensor = _call(ops.fused_value, *problem)
    return result


def fused_gradient(
    problem: FeatureProblem, grad_value: Tensor, with_x: bool, with_y: bool, with_gamma: bool
) -> Three:
    result: Three = _call(ops.fused_gradient, *problem, grad_value, with_x, with_y, with_gamma)
    return result


def fused_value_and_state(problem: FeatureProblem) -> Two:
    result: Two = _call(ops.fused_value_and_state, *problem)
    return result


def fused_gradient_from_state(
    problem: FeatureProblem,
    state: Tensor,
    grad_value: Tensor,
    with_x: bool,
    with_y: bool,
    with_gamma: bool,
) -> Three:
    args = *problem, state, grad_value, with_x, with_y, with_gamma
    result: Three = _call(ops.fused_gradient_from_state, *args)
    return result


def monotonic_sum(monotonic: Monotonic, with_expected: bool) -> Two:
    result: Two = _call(ops.monotonic_sum, *monotonic, with_expected)
    return result


def monotonic_product(monotonic: Monotonic, tangent: Tensor) -> Tensor:
    result: Tensor = _call(ops.monotonic_product, *monotonic, tangent)
    return result


def monotonic_path(monotonic: Monotonic) -> Tensor:
    result: Tensor = _call(ops.monotonic_path, *monotonic)
    return result
