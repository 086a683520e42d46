"""The operators beside soft-DTW, the other modes of its own, and what may be a cliff.

One thread of the CPU, float32 where nothing else is said. Each call runs once in `setup`, which asv
repeats before every sample: problems are kept, so that it does not make them anew.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from softdtw_kernels import (
    dilate_loss,
    forward_sum,
    monotonic_alignment,
    soft_dtw,
    soft_dtw_barycenter,
    soft_dtw_from_cost,
    soft_dtw_kmeans,
)

from .hard_cases import CASES, gradient, uniform

Call = Callable[[], object]


def random(*shape: int) -> Tensor:
    return uniform(*shape).float()


def second_order(cost: Tensor, direction: Tensor) -> Call:
    """A product of the Hessian with a direction, by two backward passes."""
    leaf = cost.requires_grad_()

    def call() -> Tensor:
        value = soft_dtw_from_cost(leaf).sum()
        (first,) = torch.autograd.grad(value, leaf, create_graph=True)
        (second,) = torch.autograd.grad((first * direction).sum(), leaf)
        return second

    return call


def from_cost(*shape: int, gamma: float = 1.0, bandwidth: int | None = None) -> Call:
    function = partial(soft_dtw_from_cost, gamma=gamma, bandwidth=bandwidth)
    return gradient(function, random(*shape))


def forecasts() -> tuple[Tensor, Tensor]:
    """(32, 100, 1): waves, and others that are shifted."""
    t = torch.linspace(0, 6, 100)
    shifts = random(2, 32, 1)
    x, y = torch.sin(t - shifts)[..., None]
    return x, y


def token_scores() -> Tensor:
    """(8, 400, 60): log-probabilities of tokens, a row a frame."""
    return random(8, 400, 60).log_softmax(-1)


def families() -> Tensor:
    """(30, 40, 1): waves of three frequencies."""
    t = torch.linspace(0, 6, 40)
    frequency = torch.arange(1, 4).repeat_interleave(10)[:, None]
    return (torch.sin(frequency * t) + 0.1 * random(30, 40))[..., None]


def trained_dilate() -> Call:
    x, y = forecasts()
    return gradient(lambda z: dilate_loss(z, y, alpha=0.5, gamma=0.01), x)


def trained_pairs(**settings: Any) -> Call:
    """From features, 32 pairs of 128 x 128."""
    y = random(32, 128, 8)
    function: Callable[..., Tensor] = partial(soft_dtw, **settings)
    return gradient(lambda x: function(x, y), random(32, 128, 8).flip(0))


MODES: dict[str, Callable[[], Call]] = {
    "gamma = 0": lambda: from_cost(64, 128, 128, gamma=0.0),
    "second order": lambda: second_order(random(64, 128, 128), random(64, 128, 128).flip(0)),
    "band of 8": lambda: from_cost(64, 128, 128, bandwidth=8),
    "from features": lambda: trained_pairs(),
    "from features, band of 8": lambda: trained_pairs(bandwidth=8),
    "open ends": lambda: trained_pairs(open_begin="y", open_end="y"),
    "warp_cost": lambda: trained_pairs(warp_cost=0.5),
    "repeat y": lambda: trained_pairs(repeat="y"),
}
OPERATORS: dict[str, Callable[[], Call]] = {
    "dilate_loss": trained_dilate,
    "forward_sum": lambda: gradient(forward_sum, token_scores()),
    "monotonic_alignment": lambda: partial(monotonic_alignment, token_scores()),
    "soft_dtw_barycenter": lambda: partial(soft_dtw_barycenter, families(), gamma=0.1),
    "soft_dtw_kmeans": lambda: partial(
        soft_dtw_kmeans, families(), 3, gamma=0.1, init=families()[[0, 10, 20]]
    ),
}


@cache
def warm(name: str) -> Call:
    call = (MODES | OPERATORS)[name]()
    call()
    return call


class Modes:
    """Soft-DTW with its settings; forward and backward, and once more where the name says so."""

    param_names = ("mode",)
    params = (list(MODES),)
    timeout = 300.0

    def setup(self, mode: str) -> None:
        torch.set_num_threads(1)
        self.call = warm(mode)

    def time_forward_backward(self, mode: str) -> None:
        self.call()


class Operators:
    """The other operators; forward and backward of those that are losses."""

    param_names = ("operator",)
    params = (list(OPERATORS),)
    timeout = 300.0

    def setup(self, operator: str) -> None:
        torch.set_num_threads(1)
        self.call = warm(operator)

    def time_call(self, operator: str) -> None:
        self.call()


HARD = {case.name: case for case in CASES}


@cache
def warm_case(name: str) -> Call:
    call, _ = HARD[name].make(torch.float32)
    call()
    return call


class Cliffs:
    """The cases of benchmarks/cliffs.py, which shows them beside the plain one of the same size."""

    param_names = ("case",)
    params = (list(HARD),)
    timeout = 300.0
    warmup_time = 0.0
    rounds = 1  # there are many of them
    sample_time = 0.005

    def setup(self, case: str) -> None:
        torch.set_num_threads(1)
        self.call = warm_case(case)

    def time_forward_backward(self, case: str) -> None:
        self.call()
