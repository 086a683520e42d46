"""Calls of few cells on the CPU in plain eager mode, with numbers as settings: prepared once.

Checks of such a call, and the way to its kernels, take longer than these. But they look at nothing
besides shapes, types and arguments, and what they find is kept by them for the next call. A call of
another kind, or one that a check refuses, goes the way of all calls.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .. import _backends as backends
from .._checks import batch_parameter, check_features, check_tensor
from .._modes import are_plain_tensors
from .._pattern import Pattern
from .._problem import FeatureProblem, PatternProblem, Problem, SmoothedProblem
from .._values import LARGEST_GAMMA
from . import from_features, recursion, smoothing
from . import pattern as patterns
from .function import EagerFunction, gradient_is_due

if TYPE_CHECKING:
    from .._cpu.prepared import PreparedCall, Settings, Shape, Sides

KINDS = 256  # of calls that are kept
MOST_PAIRS = 4096  # of such a call: a few numbers are kept for each
MOST_CELLS = 2**18  # of the lattices of such a call: what is kept takes some MiB at most
SMALLEST_GAMMA = 1 / LARGEST_GAMMA  # above which a minimum is soft
TYPES = (torch.float32, torch.float64)
NUMBERS = (float, int)

Wanted = Sequence[bool]
Gradients = tuple[Tensor | None, ...]


class Kind(NamedTuple):
    """What is kept of a kind of call: what the engine has prepared, and the gradients that all
    calls have, of settings, tensors given, gradient of the value, and which of them are wanted.
    """

    call: PreparedCall
    gradients: Callable[[Settings, tuple[Tensor, ...], Tensor, Wanted], Gradients]

    def value(self, settings: Settings, given: tuple[Tensor, ...]) -> Tensor:
        if gradient_is_due(given):
            result: Tensor = PreparedValue.apply_keeping(self, (settings, *given))
            return result
        return self.call.value(settings, given)


class PreparedValue(EagerFunction):
    """The value of a prepared call. A derivative that is to be differentiated, or that finds
    nothing kept or what hooks have made of it, is that of all calls.
    """

    @staticmethod
    def forward(ctx: Any, kind: Kind, settings: Settings, *given: Tensor) -> Tensor:
        _, _, *wanted = ctx.needs_input_grad
        value, kept = kind.call.value_and_kept(settings, given, wanted)
        ctx.kind, ctx.settings = kind, settings
        ctx.save_for_backward(*given, *kept)
        return value

    @staticmethod
    def backward(ctx: Any, grad_value: Tensor) -> tuple[Any, ...]:
        saved = ctx.saved_tensors
        _, _, *wanted = ctx.needs_input_grad
        given, kept = saved[: len(wanted)], saved[len(wanted) :]
        args = ctx.settings, given, grad_value, wanted
        plain = kept and not torch.is_grad_enabled() and are_plain_tensors((grad_value, *saved))
        if not plain or any(tensor.dtype != grad_value.dtype for tensor in saved):
            return None, None, *ctx.kind.gradients(*args)
        return None, None, *ctx.kind.call.gradients(kept, *args)


def takes(gamma: Any, backend: str | None, tensors: tuple[Any, ...]) -> bool:
    return (
        type(gamma) in NUMBERS
        and (SMALLEST_GAMMA < gamma <= LARGEST_GAMMA or gamma == 0)
        and (backend is None or (type(backend) is str and backend == "numba"))
        and are_plain_tensors(tensors)
        and hasattr(backends.load("numba"), "prepared")
    )


def of_features(
    x: Tensor, y: Tensor, gamma: Any, bandwidth: int | None, backend: str | None
) -> Tensor | None:
    """Soft-DTW of squared distances between whole sequences; None if that is not prepared."""
    if not takes(gamma, backend, (x, y)):
        return None
    kind = kind_of_features(x.shape, y.shape, x.dtype, y.dtype, bandwidth, gamma == 0)
    return None if kind is None else kind.value(settings_of(gamma, None), (x, y))


def of_costs(
    cost: Tensor,
    gamma: Any,
    dummy: Any,
    backend: str | None,
    bandwidth: int | None = None,
    origin_count: float | None = None,
) -> Tensor | None:
    """The recursion on whole matrices, which are smoothed first where there is an origin_count;
    None if that is not prepared.
    """
    if not (takes(gamma, backend, (cost,)) and is_number(dummy) and cost.is_contiguous()):
        return None
    weak, hard = dummy is not None, gamma == 0
    kind = kind_of_costs(cost.shape, cost.dtype, weak, bandwidth, origin_count, hard)
    return None if kind is None else kind.value(settings_of(gamma, dummy), (cost,))


def of_pattern(
    cost: Tensor, gamma: Any, pattern: Pattern, bandwidth: int | None, backend: str | None
) -> Tensor | None:
    """As `of_costs`, of another pattern than the plain one."""
    warp, repeat, begin, end, skip = pattern
    if not (takes(gamma, backend, (cost,)) and type(warp) in NUMBERS and type(skip) in NUMBERS):
        return None
    if not cost.is_contiguous():
        return None
    sides = repeat, begin, end
    kind = kind_of_pattern(cost.shape, cost.dtype, bandwidth, sides, gamma == 0)
    settings = float(gamma), float(warp), float(skip)
    return None if kind is None else kind.value(settings, (cost,))


def is_number(dummy: Any) -> bool:
    """Or None."""
    return dummy is None or type(dummy) in NUMBERS and abs(dummy) <= sys.float_info.max


def settings_of(gamma: float, dummy: float | None) -> Settings:
    return (float(gamma),) if dummy is None else (float(gamma), float(dummy))


def stand_in(shape: Shape, dtype: torch.dtype) -> Tensor:
    """A tensor for checks of its shape and type."""
    return torch.empty((), dtype=dtype, device="cpu").expand(shape)


def is_small(shape: Shape, dtype: torch.dtype, most_cells: int) -> bool:
    cells, pairs = math.prod(shape), math.prod(shape[:-2])
    few = 0 < cells <= most_cells and pairs <= MOST_PAIRS
    return few and dtype in TYPES and len(shape) <= 4


@lru_cache(maxsize=KINDS)
def kind_of_features(
    x_shape: Shape,
    y_shape: Shape,
    x_type: torch.dtype,
    y_type: torch.dtype,
    bandwidth: int | None,
    hard: bool,
) -> Kind | None:
    x, y = stand_in(x_shape, x_type), stand_in(y_shape, y_type)
    check_features(x, y, False)
    batch = x_shape[:-2]
    if batch != y_shape[:-2] or x_type != y_type:
        return None
    fused = from_features.without_matrix(x, y, bandwidth, "sqeuclidean")
    most_cells = MOST_CELLS if fused else from_features.SMALL_CALL - 1
    if (hard and fused) or not is_small((*x_shape[:-1], y_shape[-2]), x_type, most_cells):
        return None

    def gradients(
        settings: Settings, given: tuple[Tensor, ...], grad_value: Tensor, wanted: Wanted
    ) -> Gradients:
        gamma = batch_parameter(settings[0], "gamma", batch, given[0].device)
        x, y = given
        problem = FeatureProblem(x, y, gamma, None, None, bandwidth, "sqeuclidean")
        return from_features.gradient_by_inputs(problem, None, grad_value, (*wanted, False))[:2]

    from .._cpu import prepared as engine

    if fused:
        return Kind(engine.WithoutMatrix(x_shape, y_shape, x_type, bandwidth), gradients)
    return Kind(engine.OfFeatures(x_shape, y_shape, x_type, bandwidth, hard), gradients)


@lru_cache(maxsize=KINDS)
def kind_of_costs(
    shape: Shape,
    dtype: torch.dtype,
    weak: bool,
    bandwidth: int | None,
    origin_count: float | None,
    hard: bool,
) -> Kind | None:
    check_tensor(stand_in(shape, dtype), "cost", "(*, N, M)")
    most_cells = MOST_CELLS // 4 if weak else MOST_CELLS
    if origin_count is not None:  # smoothed on one thread
        most_cells = from_features.SMALL_CALL - 1
    if (hard and origin_count is not None) or not is_small(shape, dtype, most_cells):
        return None

    def gradients(
        settings: Settings, given: tuple[Tensor, ...], grad_value: Tensor, wanted: Wanted
    ) -> Gradients:
        (cost,) = given
        parameters, needs = parameters_of(settings, cost), (*wanted, False, False)
        if origin_count is None:
            problem = Problem(cost, *parameters, None, None, bandwidth)
            return recursion.gradient_by_inputs(problem, None, grad_value, needs)[:1]
        smoothed = SmoothedProblem(cost, *parameters, None, None, origin_count)
        return smoothing.gradient_by_inputs(smoothed, None, grad_value, needs)[:1]

    from .._cpu import prepared as engine

    if origin_count is None:
        prepare = engine.OfHardCosts if hard else engine.OfCosts
        return Kind(prepare(shape, dtype, weak, bandwidth), gradients)
    return Kind(engine.OfSmoothedCosts(shape, dtype, weak, origin_count), gradients)


@lru_cache(maxsize=KINDS)
def kind_of_pattern(
    shape: Shape, dtype: torch.dtype, bandwidth: int | None, sides: Sides, hard: bool
) -> Kind | None:
    check_tensor(stand_in(shape, dtype), "cost", "(*, N, M)")
    if not is_small(shape, dtype, MOST_CELLS):
        return None

    def gradients(
        settings: Settings, given: tuple[Tensor, ...], grad_value: Tensor, wanted: Wanted
    ) -> Gradients:
        (cost,) = given
        gamma, warp, skip = (
            batch_parameter(value, name, shape[:-2], cost.device)
            for value, name in zip(settings, ("gamma", "warp_cost", "skip_cost"), strict=True)
        )
        limits = None, None, bandwidth
        problem = PatternProblem(cost, gamma, warp, skip, *limits, *sides)
        needs = (*wanted, False, False, False)
        return patterns.gradient_by_inputs(problem, grad_value, needs)[:1]

    from .._cpu import prepared as engine

    if engine.OfPattern.has_none(shape, sides):
        return None
    prepare = engine.OfHardPattern if hard else engine.OfPattern
    return Kind(prepare(shape, dtype, bandwidth, sides), gradients)


def parameters_of(settings: Settings, cost: Tensor) -> tuple[Tensor, Tensor | None]:
    batch, device = cost.shape[:-2], cost.device
    gamma, *dummy = settings
    of_gamma = batch_parameter(gamma, "gamma", batch, device)
    return of_gamma, batch_parameter(dummy[0], "dummy_cost", batch, device) if dummy else None
