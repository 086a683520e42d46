"""Timings and peak memory on the CPU, with one thread unless a name says otherwise."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from softdtw_kernels import (
    s2dtw,
    s2dtw_from_cost,
    soft_dtw,
    soft_dtw_alignment,
    soft_dtw_divergence,
    soft_dtw_from_cost,
)

from . import problems
from .memory import peak_bytes

DTYPES = {"float32": torch.float32, "float64": torch.float64}


def name(shape: problems.Shape) -> str:
    return "x".join(map(str, shape))


SHAPES = {name(shape): shape for shape in problems.SHAPES}


def train(cost: Tensor) -> Tensor:
    """Forward and backward; the gradient of the cost."""
    leaf = cost.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(soft_dtw_from_cost(leaf).sum(), leaf)
    return gradient


@cache  # asv calls `setup` again before every sample
def warm_cost(shape: str, dtype: str) -> Tensor:
    """The problem, after the kernels for it have been compiled and run once."""
    cost = problems.cost(SHAPES[shape], DTYPES[dtype])
    train(cost)
    return cost


class SoftDTW:
    """From a cost matrix."""

    param_names = ("shape", "dtype")
    params = (list(SHAPES), list(DTYPES))
    timeout = 300.0

    def setup(self, shape: str, dtype: str) -> None:
        torch.set_num_threads(1)
        self.cost = warm_cost(shape, dtype)

    def time_forward(self, shape: str, dtype: str) -> None:
        soft_dtw_from_cost(self.cost)

    def time_forward_backward(self, shape: str, dtype: str) -> None:
        train(self.cost)


class SoftDTWThreads:
    """The same in float32, over the number of threads."""

    param_names = ("shape", "threads")
    params = (list(SHAPES), [1, 2])
    timeout = 300.0

    def setup(self, shape: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self.cost = warm_cost(shape, "float32")

    def time_forward_backward(self, shape: str, threads: int) -> None:
        train(self.cost)


class SoftDTWMemory:
    """Peak memory of forward and backward beyond cost and gradient, over that of the cost."""

    param_names = ("dtype",)
    params = (list(DTYPES),)
    timeout = 300.0

    def setup(self, dtype: str) -> None:
        torch.set_num_threads(1)
        warm_cost("64x256x256", dtype)
        self.cost = problems.cost((1, 4096, 4096), DTYPES[dtype])

    def track_extra_memory(self, dtype: str) -> float:
        return peak_bytes(lambda: train(self.cost)) / self.cost.nbytes - 1.0

    # asv reads attributes of functions, which mypy does not know.
    track_extra_memory.unit = "share of the cost matrix"  # type: ignore[attr-defined]


class SoftDTWFeatures:
    """From features, the squared distances included; gradients of x and y."""

    param_names = ("shape",)
    params = (["512x64x64", "64x256x256"],)

    def setup(self, shape: str) -> None:
        torch.set_num_threads(1)
        batch, n, m = SHAPES[shape]
        self.x = problems.features(batch, n, torch.float32, "normal", 1).requires_grad_()
        self.y = problems.features(batch, m, torch.float32, "normal", 2).requires_grad_()
        self.time_forward_backward(shape)

    def time_forward_backward(self, shape: str) -> None:
        torch.autograd.grad(soft_dtw(self.x, self.y).sum(), (self.x, self.y))


SMALL_CALLS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "soft_dtw": soft_dtw,
    "soft_dtw cosine": lambda x, y: soft_dtw(x, y, cost="cosine"),
    "soft_dtw_divergence": soft_dtw_divergence,
    "soft_dtw_from_cost": lambda x, y: soft_dtw_from_cost(x @ y.mT),
    "s2dtw_from_cost": lambda x, y: s2dtw_from_cost(x @ y.mT),
    "s2dtw": s2dtw,
    "soft_dtw_alignment": lambda x, y: soft_dtw_alignment(x, y).value,
}


class SmallCalls:
    """One call with next to nothing to compute, of which Python has the larger share."""

    param_names = ("call", "shape")
    params = (list(SMALL_CALLS), [name(shape) for shape in problems.SMALL_CALLS])

    def setup(self, call: str, shape: str) -> None:
        torch.set_num_threads(1)
        self.x, self.y = (
            problems.small_features(problems.SMALL_CALLS[self.params[1].index(shape)], seed)
            for seed in (1, 2)
        )
        self.leaf = self.x.clone().requires_grad_()
        self.call = SMALL_CALLS[call]
        self.time_forward(call, shape)
        self.time_forward_backward(call, shape)

    def time_forward(self, call: str, shape: str) -> None:
        self.call(self.x, self.y)

    def time_forward_backward(self, call: str, shape: str) -> None:
        torch.autograd.grad(self.call(self.leaf, self.y).sum(), self.leaf)


class S2DTWAllPairs:
    """All pairs of 128 sequences of 8: 16,384 lattices of 17 x 17."""

    param_names = ("dtype",)
    params = (list(DTYPES),)

    def setup(self, dtype: str) -> None:
        torch.set_num_threads(1)
        self.cost = problems.s2dtw_cost(DTYPES[dtype]).requires_grad_()
        self.x, self.y = (
            problems.unit_sequences(seed).to(DTYPES[dtype]).requires_grad_() for seed in (1, 2)
        )
        self.time_from_cost_forward_backward(dtype)

    def time_from_cost_forward(self, dtype: str) -> None:
        with torch.no_grad():
            s2dtw_from_cost(self.cost)

    def time_from_cost_forward_backward(self, dtype: str) -> None:
        torch.autograd.grad(s2dtw_from_cost(self.cost).sum(), self.cost)

    def time_from_features_forward_backward(self, dtype: str) -> None:
        value = s2dtw(self.x, self.y, pairwise=True)
        torch.autograd.grad(value.sum(), (self.x, self.y))
