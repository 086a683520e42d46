"""The public functions: validate, compute the cost, call the operator, reduce."""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from . import autograd, backends
from .backends import reference
from .checks import (
    Lengths,
    Number,
    batch_parameter,
    broadcast_batch,
    check_bandwidth,
    check_cost_name,
    check_features,
    check_lengths,
    check_origin_count,
    check_reduction,
    check_tensor,
)
from .costs import Cost, computing_dtype, from_features, repeat_first_beyond


class Problem(NamedTuple):
    """A checked problem: costs, lengths expanded to the batch, and the backend that solves it."""

    backend: str
    cost: Tensor  # (*, N, M)
    x_lengths: Tensor | None  # (*)
    y_lengths: Tensor | None

    @property
    def engine(self) -> ModuleType:
        """`autograd` (the kernels) or `backends.reference`: the same functions, differentiable."""
        return reference if self.backend == "reference" else autograd

    def parameter(self, value: Number, name: str) -> Tensor:
        return batch_parameter(value, name, self.cost.shape[:-2], self.cost.device)


def problem_from_cost(
    cost: Tensor, x_lengths: Lengths, y_lengths: Lengths, backend: str | None
) -> Problem:
    check_tensor(cost, "cost", "(*, N, M)")
    name = backends.select(backend, cost)
    batch = cost.shape[:-2]
    return Problem(
        name,
        cost.float() if cost.dtype in (torch.float16, torch.bfloat16) else cost,
        _expand(check_lengths(x_lengths, "x_lengths", batch, cost.device), batch),
        _expand(check_lengths(y_lengths, "y_lengths", batch, cost.device), batch),
    )


def problem_from_features(
    x: Tensor,
    y: Tensor,
    cost: Cost,
    x_lengths: Lengths,
    y_lengths: Lengths,
    pairwise: bool,
    backend: str | None,
) -> Problem:
    check_features(x, y, pairwise)
    check_cost_name(cost)
    name = backends.select(backend, x)
    batch = (x.shape[0], y.shape[0]) if pairwise else broadcast_batch(x, y)
    of_x, of_y = (batch[:1], batch[1:]) if pairwise else (batch, batch)
    own_x = check_lengths(x_lengths, "x_lengths", of_x, x.device)
    own_y = check_lengths(y_lengths, "y_lengths", of_y, y.device)
    x, y = computing_dtype(x, y)
    x, y = repeat_first_beyond(x, own_x), repeat_first_beyond(y, own_y)
    costs = from_features(x, y, cost, pairwise, name)
    if pairwise and own_x is not None:
        own_x = own_x[..., None]
    return Problem(name, costs, _expand(own_x, batch), _expand(own_y, batch))


def _expand(lengths: Tensor | None, batch: tuple[int, ...]) -> Tensor | None:
    return lengths if lengths is None or lengths.shape == batch else lengths.expand(batch)


def reduce(value: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return value
    return value.mean() if reduction == "mean" else value.sum()


def soft_dtw(
    x: Tensor,
    y: Tensor,
    *,
    gamma: Number = 1.0,
    cost: Cost = "sqeuclidean",
    x_lengths: Lengths = None,
    y_lengths: Lengths = None,
    bandwidth: int | None = None,
    pairwise: bool = False,
    reduction: str = "none",
    backend: str | None = None,
) -> Tensor:
    """TODO"""
    check_reduction(reduction)
    bandwidth = check_bandwidth(bandwidth)
    problem = problem_from_features(x, y, cost, x_lengths, y_lengths, pairwise, backend)
    return reduce(_plain_value(problem, gamma, bandwidth), reduction)


def soft_dtw_from_cost(
    cost: Tensor,
    *,
    gamma: Number = 1.0,
    x_lengths: Lengths = None,
    y_lengths: Lengths = None,
    bandwidth: int | None = None,
    reduction: str = "none",
    backend: str | None = None,
) -> Tensor:
    """TODO"""
    check_reduction(reduction)
    bandwidth = check_bandwidth(bandwidth)
    problem = problem_from_cost(cost, x_lengths, y_lengths, backend)
    return reduce(_plain_value(problem, gamma, bandwidth), reduction)


def _plain_value(problem: Problem, gamma: Number, bandwidth: int | None) -> Tensor:
    _, cost, x_lengths, y_lengths = problem
    gamma = problem.parameter(gamma, "gamma")
    return problem.engine.value(cost, gamma, None, x_lengths, y_lengths, bandwidth)


def s2dtw(
    x: Tensor,
    y: Tensor,
    *,
    gamma: Number = 0.1,
    cost: Cost = "shifted_cosine",
    smoothing: bool = True,
    dummy_cost: Number | None = 0.5,
    origin_count: float = 1,
    x_lengths: Lengths = None,
    y_lengths: Lengths = None,
    pairwise: bool = False,
    reduction: str = "none",
    backend: str | None = None,
) -> Tensor:
    """TODO"""
    check_reduction(reduction)
    origin_count = check_origin_count(origin_count)
    problem = problem_from_features(x, y, cost, x_lengths, y_lengths, pairwise, backend)
    return reduce(_weak_value(problem, gamma, smoothing, dummy_cost, origin_count), reduction)


def s2dtw_from_cost(
    cost: Tensor,
    *,
    gamma: Number = 0.1,
    smoothing: bool = True,
    dummy_cost: Number | None = 0.5,
    origin_count: float = 1,
    x_lengths: Lengths = None,
    y_lengths: Lengths = None,
    reduction: str = "none",
    backend: str | None = None,
) -> Tensor:
    """TODO"""
    check_reduction(reduction)
    origin_count = check_origin_count(origin_count)
    problem = problem_from_cost(cost, x_lengths, y_lengths, backend)
    return reduce(_weak_value(problem, gamma, smoothing, dummy_cost, origin_count), reduction)


def _weak_value(
    problem: Problem,
    gamma: Number,
    smoothing: bool,
    dummy_cost: Number | None,
    origin_count: float,
) -> Tensor:
    _, cost, x_lengths, y_lengths = problem
    gamma = problem.parameter(gamma, "gamma")
    dummy = None if dummy_cost is None else problem.parameter(dummy_cost, "dummy_cost")
    if not smoothing:
        return problem.engine.value(cost, gamma, dummy, x_lengths, y_lengths, None)
    return problem.engine.smoothed_value(cost, gamma, dummy, x_lengths, y_lengths, origin_count)


def soft_dtw_divergence(
    x: Tensor,
    y: Tensor,
    *,
    gamma: Number = 1.0,
    cost: Cost = "sqeuclidean",
    x_lengths: Lengths = None,
    y_lengths: Lengths = None,
    bandwidth: int | None = None,
    pairwise: bool = False,
    reduction: str = "none",
    backend: str | None = None,
) -> Tensor:
    """TODO"""
    check_reduction(reduction)
    bandwidth = check_bandwidth(bandwidth)
    problem = problem_from_features(x, y, cost, x_lengths, y_lengths, pairwise, backend)
    between = _plain_value(problem, gamma, bandwidth)
    x, y = computing_dtype(x, y)

    def to_itself(z: Tensor, lengths: Lengths) -> Tensor:
        if lengths is not None:
            lengths = torch.as_tensor(lengths, device=z.device)
            batch = torch.broadcast_shapes(z.shape[:-2], lengths.shape)
            z = z.expand(*batch, *z.shape[-2:])
        problem = problem_from_features(z, z, cost, lengths, lengths, False, backend)
        return _plain_value(problem, gamma, bandwidth)

    of_x, of_y = to_itself(x, x_lengths), to_itself(y, y_lengths)
    if pairwise:
        of_x = of_x[:, None]
    # Half of the sum, not two halves: exactly 0 at x = y.
    return reduce(between - 0.5 * (of_x + of_y), reduction)
