"""Backends by name. None of their requirements (numba, CuPy) is imported before the first call that
needs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ._checks import check_backend
from ._interrupts import interrupts_wait
from ._problem import PatternProblem, Problem, SmoothedProblem, Smoothing


class Engine(Protocol):
    """The operators of `_operators.ops`, on the tensors of one kind of device, without derivatives.

    Two leading dimensions at most; every tensor is checked and expanded. An engine may also have
    the operators on features, and `value_and_state` with `gradient_from_state`, where that gains
    something. That of the CPU also has both for smoothed costs, for plain calls, which come to it
    without an operator, and calls that are `prepared`.
    """

    def value(self, problem: Problem) -> Tensor: ...

    def gradient(
        self, problem: Problem, grad_value: Tensor, with_parameters: bool
    ) -> tuple[Tensor, Tensor, Tensor]: ...

    def hessian_product(
        self,
        problem: Problem,
        grad_value: Tensor,
        tangent_cost: Tensor,
        tangent_gamma: Tensor,
        tangent_dummy: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]: ...

    def smooth(self, smoothing: Smoothing) -> Tensor: ...

    def smooth_vjp(self, smoothing: Smoothing, grad_s: Tensor) -> tuple[Tensor, Tensor]: ...

    def smoothed_value(self, problem: SmoothedProblem) -> Tensor: ...

    def smoothed_gradient(
        self, problem: SmoothedProblem, grad_value: Tensor, with_parameters: bool
    ) -> tuple[Tensor, Tensor, Tensor]: ...

    def squared_distances(self, x: Tensor, y: Tensor) -> Tensor: ...

    def path(self, problem: Problem) -> list[Tensor]: ...


class Differentiable(Protocol):
    """What the public functions call: operators with derivatives, by kernels or by `_reference`."""

    def value(self, problem: Problem) -> Tensor: ...

    def gradient(
        self, problem: Problem, grad_value: Tensor, with_parameters: bool
    ) -> tuple[Tensor, Tensor, Tensor]: ...

    def smooth(self, smoothing: Smoothing) -> Tensor: ...

    def smoothed_value(self, problem: SmoothedProblem) -> Tensor: ...

    def path(self, problem: Problem) -> list[Tensor]: ...


class OfPatterns(Protocol):
    """The same for patterns of steps, begins and ends, by `_operators.pattern` or by
    `_reference_pattern`. Gradients are by cost, gamma, warp and skip.
    """

    def value(self, problem: PatternProblem) -> Tensor: ...

    def gradient(
        self, problem: PatternProblem, grad_value: Tensor, with_parameters: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]: ...

    def path(self, problem: PatternProblem) -> list[Tensor]: ...


BY_DEVICE = {"cpu": "numba", "cuda": "cuda"}
_DEVICES = {"numba": "cpu", "cuda": "cuda"}
_WITHOUT_FLOAT64 = ("mps",)  # in which the reference computes
_loaded: dict[str, Engine] = {}


def load(name: str) -> Engine:
    """An engine, imported at its first use."""
    return _loaded.get(name) or _import(name)


def _import(name: str) -> Engine:
    engine: Engine
    with interrupts_wait():
        if name == "cuda":
            from ._cuda.operators import OF_GPUS as engine
        else:
            from ._cpu import operators as engine
    _loaded[name] = engine
    return engine


def in_shape(x: Tensor, shape: Sequence[int]) -> Tensor:
    """A result in another shape, for its maker: not a view of what nobody else holds, since
    autograd lets nobody change in place a view that a Function returns.
    """
    return x if x.shape == shape else torch.ops.aten._unsafe_view.default(x, shape)


def select(backend: str | None, x: Tensor) -> str:
    """The name of the backend for a tensor: the one asked for if it runs on that device, by device
    if None.
    """
    device = x.device.type
    if device in _WITHOUT_FLOAT64 and backend in (None, "reference"):
        raise ValueError(
            f"no backend runs on {x.device}, which has no float64; move the tensors with .cpu(), "
            "and the result back: gradients follow"
        )
    if backend is None:
        if device in BY_DEVICE:
            return BY_DEVICE[device]
        if device == "meta":  # shapes only: any kernel backend tells them
            return "numba"
        raise ValueError(
            f"no kernels for tensors on {x.device}; pass backend='reference' (plain torch) "
            "or move them to the CPU or to a CUDA device"
        )
    check_backend(backend)
    if backend == "reference":
        return backend
    if device != _DEVICES[backend]:
        raise ValueError(
            f"backend {backend!r} takes tensors on {_DEVICES[backend]}, got one on {x.device}; "
            "move it, or pass backend=None to choose by device"
        )
    return backend
