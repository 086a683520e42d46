"""The data of a call, checked and with names, on its way from the public functions to the kernels.

The public functions make these tuples, once every argument is checked, and the engines take them.
Only at the seams of torch, whose operators and autograd Functions know nothing but tensors and
numbers, do the fields travel one by one: `*problem`, and back by the constructor.

`*` is any number of leading dimensions, to which every tensor is already expanded (stride 0
allowed). gamma, dummy, warp and skip are float64, the lengths int64.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Problem(NamedTuple):
    """The recursion on a batch of lattices: plain ones, or weak ones if there is a dummy cost."""

    cost: Tensor  # (*, N, M)
    gamma: Tensor  # (*)
    dummy: Tensor | None  # (*)
    x_lengths: Tensor | None  # (*)
    y_lengths: Tensor | None
    bandwidth: int | None


class PatternProblem(NamedTuple):
    """The recursion with other steps, begins and ends than the plain one has: see `_pattern`."""

    cost: Tensor  # (*, N, M)
    gamma: Tensor  # (*)
    warp: Tensor  # (*), the cost of a step that repeats a frame
    skip: Tensor  # (*), the price of a frame left out at an open end
    x_lengths: Tensor | None  # (*)
    y_lengths: Tensor | None
    bandwidth: int | None
    repeat: str  # "xy", "x", "y" or "": whose frames may be matched more than once
    open_begin: str  # whose first frames may be left out
    open_end: str  # whose last ones

    @property
    def warps_alone(self) -> bool:
        """Whether it is a plain problem but for the cost of warping."""
        return self.repeat == "xy" and not self.open_begin and not self.open_end

    @property
    def frames(self) -> Tensor | int:
        """N + M, of the items' own lengths."""
        n, m = self.cost.shape[-2:]
        of_x = n if self.x_lengths is None else self.x_lengths
        return of_x + (m if self.y_lengths is None else self.y_lengths)

    def of(self, cost: Tensor) -> Problem:
        """The plain problem of other costs."""
        lengths = self.x_lengths, self.y_lengths
        return Problem(cost, self.gamma, None, *lengths, self.bandwidth)


class Smoothing(NamedTuple):
    """The local smoothing of costs."""

    cost: Tensor  # (*, N, M)
    gamma: Tensor  # (*)
    x_lengths: Tensor | None  # (*)
    y_lengths: Tensor | None
    origin_count: float


class SmoothedProblem(NamedTuple):
    """The recursion on smoothed costs: S2DTW."""

    cost: Tensor  # (*, N, M)
    gamma: Tensor  # (*)
    dummy: Tensor | None  # (*)
    x_lengths: Tensor | None  # (*)
    y_lengths: Tensor | None
    origin_count: float

    @property
    def smoothing(self) -> Smoothing:
        return Smoothing(self.cost, self.gamma, self.x_lengths, self.y_lengths, self.origin_count)

    def of(self, smoothed: Tensor) -> Problem:
        """What remains to be done with the smoothed costs."""
        return Problem(smoothed, self.gamma, self.dummy, self.x_lengths, self.y_lengths, None)


class FeatureProblem(NamedTuple):
    """The recursion on costs that are a function of features, which need not be stored."""

    x: Tensor  # (*, N, D)
    y: Tensor  # (*, M, D)
    gamma: Tensor  # (*)
    x_lengths: Tensor | None  # (*)
    y_lengths: Tensor | None
    bandwidth: int | None
    kind: str  # "sqeuclidean" or "negative_dot"

    def of(self, cost: Tensor) -> Problem:
        """The same with the cost in memory."""
        return Problem(cost, self.gamma, None, self.x_lengths, self.y_lengths, self.bandwidth)


class Features(NamedTuple):
    """Two batches of sequences."""

    x: Tensor  # (*, N, D)
    y: Tensor  # (*, M, D)


class Monotonic(NamedTuple):
    """Alignments in which each frame emits one token, in order, none skipped."""

    log_probs: Tensor  # (*, N frames, M tokens)
    x_lengths: Tensor | None  # (*)
    y_lengths: Tensor | None
