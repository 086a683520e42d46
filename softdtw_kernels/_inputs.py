"""From the arguments of the public functions to problems: checked once, here, and then given names.

`sequences` and `costs_of_matrix` are the doors. Behind them is what all public functions have in
common: costs from features, settings expanded to the batch, the choice of a backend, the reduction.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import _backends as backends
from . import _reference, _reference_pattern
from ._backends import Differentiable, OfPatterns
from ._checks import (
    Backend,
    Lengths,
    Number,
    Reduction,
    batch_parameter,
    broadcast_batch,
    check_features,
    check_flag,
    check_lengths,
    check_tensor,
    same_shape,
)
from ._operators import differentiable, from_features, prepared, recursion
from ._operators import pattern as patterns
from ._pattern import Pattern
from ._problem import FeatureProblem, PatternProblem, Problem, SmoothedProblem, Smoothing
from ._values import check_finite
from .costs import Cost, check_cost, computing_dtype, fused_rule, matrix, repeat_first_beyond


class Costs(NamedTuple):
    """Checked costs and lengths, expanded to the batch, and the backend for them."""

    backend: str
    cost: Tensor  # (*, N, M)
    x_lengths: Tensor | None  # (*)
    y_lengths: Tensor | None

    def setting(self, value: Number, name: str) -> Tensor:
        cost = self.cost
        return batch_parameter(value, name, cost.shape[:-2], cost.device, self.backend)

    def problem(
        self, gamma: Number, dummy_cost: Number | None = None, bandwidth: int | None = None
    ) -> Problem:
        dummy = None if dummy_cost is None else self.setting(dummy_cost, "dummy_cost")
        if isinstance(dummy_cost, Tensor) and dummy is not None:
            check_finite(dummy, "dummy_cost")
        lengths = self.x_lengths, self.y_lengths
        return Problem(self.cost, self.setting(gamma, "gamma"), dummy, *lengths, bandwidth)

    def of_pattern(
        self, gamma: Number, pattern: Pattern | None, bandwidth: int | None
    ) -> Problem | PatternProblem:
        """The problem of a pattern, the plain one without."""
        if pattern is None:
            return self.problem(gamma, bandwidth=bandwidth)
        cost = self.cost
        warp, skip = (
            self.setting(value, name)
            for value, name in ((pattern.warp_cost, "warp_cost"), (pattern.skip_cost, "skip_cost"))
        )
        rest = self.x_lengths, self.y_lengths, bandwidth, *pattern[1:4]
        return PatternProblem(cost, self.setting(gamma, "gamma"), warp, skip, *rest)

    def value(self, gamma: Number, bandwidth: int | None, pattern: Pattern | None = None) -> Tensor:
        """Of a pattern, or of the plain lattice, differentiable."""
        found = self.prepared(gamma, bandwidth, pattern)
        if found is not None:
            return found
        problem = self.of_pattern(gamma, pattern, bandwidth)
        if isinstance(problem, PatternProblem):
            return operators_of_patterns(self.backend).value(problem)
        return operators_of(self.backend).value(problem)

    def slope(self, gamma: Number, bandwidth: int | None, pattern: Pattern | None = None) -> Tensor:
        """Zeros that have the derivatives of `value`, on the backends that have kernels."""
        problem = self.of_pattern(gamma, pattern, bandwidth)
        if isinstance(problem, PatternProblem):
            return patterns.slope(problem)
        return recursion.slope(problem)

    def prepared(
        self, gamma: Number, bandwidth: int | None, pattern: Pattern | None
    ) -> Tensor | None:
        """The value, if such a call is prepared."""
        if self.backend != "numba" or not self.x_lengths is self.y_lengths is None:
            return None
        if pattern is None:
            return prepared.of_costs(self.cost, gamma, None, self.backend, bandwidth)
        return prepared.of_pattern(self.cost, gamma, pattern, bandwidth, self.backend)

    def smoothed(
        self, gamma: Number, dummy_cost: Number | None, origin_count: float
    ) -> SmoothedProblem:
        cost, gamma, dummy, x_lengths, y_lengths, _ = self.problem(gamma, dummy_cost)
        return SmoothedProblem(cost, gamma, dummy, x_lengths, y_lengths, origin_count)

    def smoothing(self, gamma: Number, origin_count: float) -> Smoothing:
        return self.smoothed(gamma, None, origin_count).smoothing


def operators_of(backend: str) -> Differentiable:
    return _reference if backend == "reference" else differentiable


def operators_of_patterns(backend: str) -> OfPatterns:
    return _reference_pattern if backend == "reference" else patterns


def costs_of_matrix(
    cost: Tensor, x_lengths: Lengths, y_lengths: Lengths, backend: Backend | None
) -> Costs:
    check_tensor(cost, "cost", "(*, N, M)")
    name = backends.select(backend, cost)
    if x_lengths is not None or y_lengths is not None:
        batch = cost.shape[:-2]
        x_lengths = expand(check_lengths(x_lengths, "x_lengths", batch, cost.device), batch)
        y_lengths = expand(check_lengths(y_lengths, "y_lengths", batch, cost.device), batch)
    half = cost.dtype in (torch.float16, torch.bfloat16)
    return Costs(name, cost.float() if half else cost, x_lengths, y_lengths)


class Sequences(NamedTuple):
    """Checked sequences of the dtype to compute in, their padding overwritten."""

    backend: str
    batch: tuple[int, ...]
    x: Tensor
    y: Tensor
    x_lengths: Tensor | None  # of the sequences' own shapes, which broadcast
    y_lengths: Tensor | None
    pairwise: bool

    def costs(self, cost: Cost) -> Costs:
        costs = matrix(self.x, self.y, cost, self.pairwise, self.backend)
        return Costs(self.backend, costs, *self.lengths())

    def lengths(self) -> tuple[Tensor | None, Tensor | None]:
        """Expanded to the batch."""
        own_x = self.x_lengths
        if self.pairwise and own_x is not None:
            own_x = own_x[..., None]
        return expand(own_x, self.batch), expand(self.y_lengths, self.batch)

    def without_matrix(
        self, cost: Cost, gamma: Number, bandwidth: int | None
    ) -> FeatureProblem | None:
        """The problem for kernels that store no cost; None where these do not apply."""
        backend, batch, x, y, *_, pairwise = self
        rule = fused_rule(cost)
        if rule is None:
            return None
        if not from_features.applies(backend, x, y, pairwise, bandwidth, rule.kind):
            return None
        x, y = rule.prepare(x, y)
        if pairwise:
            x, y = x[:, None], y[None]
        if not x.shape[:-2] == y.shape[:-2] == batch:
            x, y = x.expand(*batch, *x.shape[-2:]), y.expand(*batch, *y.shape[-2:])
        gamma = batch_parameter(gamma, "gamma", batch, x.device, backend)
        return FeatureProblem(x, y, gamma, *self.lengths(), bandwidth, rule.kind)

    def value(
        self, cost: Cost, gamma: Number, bandwidth: int | None, pattern: Pattern | None = None
    ) -> Tensor:
        """Of the plain lattice or of a pattern, differentiable."""
        # Kernels that take features know the plain lattice alone.
        problem = self.without_matrix(cost, gamma, bandwidth) if pattern is None else None
        if problem is not None:
            return from_features.value(problem)
        return self.costs(cost).value(gamma, bandwidth, pattern)

    def slope(
        self, cost: Cost, gamma: Number, bandwidth: int | None, pattern: Pattern | None = None
    ) -> Tensor:
        """Zeros that have the derivatives of `value`, on the backends that have kernels."""
        problem = self.without_matrix(cost, gamma, bandwidth) if pattern is None else None
        if problem is not None:
            return from_features.slope(problem)
        return self.costs(cost).slope(gamma, bandwidth, pattern)


def sequences(
    x: Tensor,
    y: Tensor,
    cost: Cost,
    x_lengths: Lengths,
    y_lengths: Lengths,
    pairwise: bool,
    backend: Backend | None,
) -> Sequences:
    pairwise = check_flag(pairwise, "pairwise")
    check_features(x, y, pairwise)
    check_cost(cost)
    name = backends.select(backend, x)
    batch = (x.shape[0], y.shape[0]) if pairwise else broadcast_batch(x, y)
    of_x, of_y = (batch[:1], batch[1:]) if pairwise else (batch, batch)
    own_x = check_lengths(x_lengths, "x_lengths", of_x, x.device)
    own_y = check_lengths(y_lengths, "y_lengths", of_y, y.device)
    x, y = computing_dtype(x, y)
    x, y = repeat_first_beyond(x, own_x), repeat_first_beyond(y, own_y)
    return Sequences(name, batch, x, y, own_x, own_y, pairwise)


def expand(lengths: Tensor | None, batch: tuple[int, ...]) -> Tensor | None:
    return lengths if lengths is None or same_shape(lengths.shape, batch) else lengths.expand(batch)


def reduce(value: Tensor, reduction: Reduction) -> Tensor:
    if reduction == "none":
        return value
    return value.mean() if reduction == "mean" else value.sum()
