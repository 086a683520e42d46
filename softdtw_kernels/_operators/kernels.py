"""The operators without their derivatives, for the Functions that give these.

Autograd finds the derivatives of an operator in `derivatives`, by a Python function that every
call would pay for. The Functions go below it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _backends as backends
from .._modes import in_transform, is_plain, is_recorded
from .._problem import (
    FeatureProblem,
    Monotonic,
    PatternProblem,
    Problem,
    SmoothedProblem,
    Smoothing,
)
from . import ops

TYPES = (torch.float32, torch.float64)

Two = tuple[Tensor, Tensor]
Three = tuple[Tensor, Tensor, Tensor]
Four = tuple[Tensor, Tensor, Tensor, Tensor]


def engine_of_plain_call(args: tuple[Any, ...]) -> Any:
    """As `plain_engine`, if it is the CPU's: for what that one alone has."""
    return plain_engine(args) if args[0].device.type == "cpu" else None


def plain_engine(args: tuple[Any, ...]) -> Any:
    """What torch would end up in with an operator of these arguments, having checked them: the
    engine of the device, if all is plain. None where torch has to tell.
    """
    first = args[0]
    if first.dtype not in TYPES or first.dim() > 4:
        return None  # what operators refuse, or fold
    device = first.device.type
    name = backends.BY_DEVICE.get(device)
    return backends.load(name) if name and is_plain(args, device) else None


def _plain_kernel(name: str, args: tuple[Any, ...]) -> Any:
    return getattr(plain_engine(args), name, None)


def _call(name: str, problem: tuple[Any, ...], *rest: Any) -> Any:
    """The operator of the fields of a tuple of `_problem`, and what comes behind them."""
    args = *problem, *rest
    kernel = _plain_kernel(name, args)
    return kernel(problem, *rest) if kernel else _by_dispatcher(name, args)


def _by_dispatcher(name: str, args: tuple[Any, ...]) -> Any:
    """The operator as autograd sees it inside of a Function: a constant."""
    operator = getattr(ops, name)
    # Dynamo cannot trace the guard, and what is recorded has derivatives. Without it an operator
    # that runs while something is compiled would come to its Function, and back here.
    if torch.compiler.is_dynamo_compiling() or is_recorded() or in_transform():
        return operator(*args)
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*args)


def _of_features(name: str, *args: Any) -> Any:
    kernel = _plain_kernel(name, args)
    return kernel(*args) if kernel else _by_dispatcher(name, args)


def value(problem: Problem) -> Tensor:
    result: Tensor = _call("value", problem)
    return result


def gradient(problem: Problem, grad_value: Tensor, with_parameters: bool) -> Three:
    result: Three = _call("gradient", problem, grad_value, with_parameters)
    return result


def value_and_state(problem: Problem) -> Two:
    result: Two = _call("value_and_state", problem)
    return result


def gradient_from_state(
    problem: Problem, state: Tensor, grad_value: Tensor, with_parameters: bool
) -> Three:
    result: Three = _call("gradient_from_state", problem, state, grad_value, with_parameters)
    return result


def hessian_product(
    problem: Problem,
    grad_value: Tensor,
    tangent_cost: Tensor,
    tangent_gamma: Tensor,
    tangent_dummy: Tensor | None,
) -> Four:
    result: Four = _call(
        "hessian_product", problem, grad_value, tangent_cost, tangent_gamma, tangent_dummy
    )
    return result


def smooth(smoothing: Smoothing) -> Tensor:
    result: Tensor = _call("smooth", smoothing)
    return result


def smooth_vjp(smoothing: Smoothing, grad_s: Tensor) -> Two:
    result: Two = _call("smooth_vjp", smoothing, grad_s)
    return result


def smoothed_value(problem: SmoothedProblem) -> Tensor:
    result: Tensor = _call("smoothed_value", problem)
    return result


def smoothed_gradient(problem: SmoothedProblem, grad_value: Tensor, with_parameters: bool) -> Three:
    result: Three = _call("smoothed_gradient", problem, grad_value, with_parameters)
    return result


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    result: Tensor = _of_features("squared_distances", x, y)
    return result


def squared_distances_vjp(x: Tensor, y: Tensor, g: Tensor, with_x: bool, with_y: bool) -> Two:
    result: Two = _of_features("squared_distances_vjp", x, y, g, with_x, with_y)
    return result


def fused_value(problem: FeatureProblem) -> Tensor:
    result: Tensor = _call("fused_value", problem)
    return result


def fused_gradient(
    problem: FeatureProblem, grad_value: Tensor, with_x: bool, with_y: bool, with_gamma: bool
) -> Three:
    result: Three = _call("fused_gradient", problem, grad_value, with_x, with_y, with_gamma)
    return result


def fused_value_and_state(problem: FeatureProblem) -> Two:
    result: Two = _call("fused_value_and_state", problem)
    return result


def fused_gradient_from_state(
    problem: FeatureProblem,
    state: Tensor,
    grad_value: Tensor,
    with_x: bool,
    with_y: bool,
    with_gamma: bool,
) -> Three:
    result: Three = _call(
        "fused_gradient_from_state", problem, state, grad_value, with_x, with_y, with_gamma
    )
    return result


def monotonic_sum(monotonic: Monotonic, with_expected: bool) -> Two:
    result: Two = _call("monotonic_sum", monotonic, with_expected)
    return result


def monotonic_product(monotonic: Monotonic, tangent: Tensor) -> Tensor:
    result: Tensor = _call("monotonic_product", monotonic, tangent)
    return result


def monotonic_path(monotonic: Monotonic) -> Tensor:
    result: Tensor = _call("monotonic_path", monotonic)
    return result


def pattern_value(problem: PatternProblem) -> Tensor:
    result: Tensor = _call("pattern_value", problem)
    return result


def pattern_gradient(problem: PatternProblem, grad_value: Tensor, with_parameters: bool) -> Four:
    result: Four = _call("pattern_gradient", problem, grad_value, with_parameters)
    return result


def pattern_hessian_product(
    problem: PatternProblem,
    grad_value: Tensor,
    tangent_cost: Tensor,
    tangent_gamma: Tensor,
    tangent_warp: Tensor,
    tangent_skip: Tensor,
) -> tuple[Tensor, ...]:
    tangents = tangent_cost, tangent_gamma, tangent_warp, tangent_skip
    result: tuple[Tensor, ...] = _call("pattern_hessian_product", problem, grad_value, *tangents)
    return result
