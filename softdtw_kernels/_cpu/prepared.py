"""Calls of few cells whose settings are numbers, prepared once for all calls of the same shapes.

What the engine derives from shapes, types and bandwidth is kept here; what remains of a call is to
hand its arrays to the kernels. Bits are those of the same call through `operators`. Of a pattern
that the first tier does not certify nothing is kept.

All calls have one interface, which `_operators.prepared` makes a Function of. settings: gamma, and
the dummy cost of a weak lattice; given: the tensors of the call, dense ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from .._problem import PatternProblem
from . import features, small
from . import smoothing as smoothing_kernels
from .arrays import NOTHING, NUMPY_TYPE, dense
from .batch import ALL, Batch
from .ends import Ends, Open, ends_of
from .factors import scaled
from .pattern import pattern_value
from .scaling import fewest, precision_of
from .task import band_of
from .warping import NO_ERROR, add_price, clipped, repeats_of

Settings = tuple[float, ...]
Shape = tuple[int, ...]
Sides = tuple[str, str, str]  # of a pattern: repeat, open_begin, open_end
Given = tuple[Tensor, ...]
Wanted = Sequence[bool]
Both = tuple[Tensor, tuple[Tensor, ...]]
Gradients = tuple[Tensor | None, ...]


class PreparedCall(Protocol):
    def value(self, settings: Settings, given: Given) -> Tensor: ...

    def value_and_kept(self, settings: Settings, given: Given, wanted: Wanted) -> Both:
        """The value, and what `gradients` needs; nothing if that is not certified."""
        ...

    def gradients(
        self, kept: Given, settings: Settings, given: Given, grad_value: Tensor, wanted: Wanted
    ) -> Gradients: ...


class OfCosts:
    """Costs (*, N, M)."""

    def __init__(
        self,
        shape: Shape,
        dtype: torch.dtype,
        weak: bool,
        bandwidth: int | None,
        symmetric: bool = True,
    ) -> None:
        """symmetric: whether the transposed costs would do."""
        *batch, rows, columns = shape
        self.batch, self.dtype = tuple(batch), NUMPY_TYPE[dtype]
        self.pairs = math.prod(batch)
        self.band = band_of(bandwidth, rows, columns)
        # A column is done as a row, in fewer strips. Bits are the same: each cell has one
        # predecessor.
        as_row = columns == 1 and symmetric and not weak
        in_memory = (*batch, 1, rows) if as_row else shape
        self.shape, self.four = shape, tuple((1,) * (4 - len(shape)) + in_memory)
        self.plan = small.plan_of(self.four, dtype.itemsize, weak, self.band)

    def arguments(self, settings: Settings, cost: np.ndarray) -> tuple[Any, ...]:
        dummy = np.array(settings[1:])  # empty without
        return cost, np.array(settings[:1]), NOTHING, dummy, ALL, ALL, self.band

    def value(self, settings: Settings, given: Given) -> Tensor:
        (cost,) = given
        return self.from_costs(settings, dense(cost, self.four))

    def value_and_kept(self, settings: Settings, given: Given, wanted: Wanted) -> Both:
        (cost,) = given
        return self.both_from_costs(settings, dense(cost, self.four))

    def gradients(
        self, kept: Given, settings: Settings, given: Given, grad_value: Tensor, wanted: Wanted
    ) -> Gradients:
        return (torch.from_numpy(self.by_costs(kept, grad_value).reshape(self.shape)),)

    def from_costs(self, settings: Settings, cost: np.ndarray) -> Tensor:
        plan, arguments = self.plan, self.arguments(settings, cost)
        value, status = np.empty(self.pairs, self.dtype), np.empty(self.pairs, np.uint8)
        no_gradient = False, value, False, cost, NOTHING[None], self.ends(settings)
        plan.run(arguments, value, status, *no_gradient)
        if status.any():
            value = self.in_tiers(settings, cost, value, status)
        else:
            value = self.returned(settings, cost, value)
        return torch.from_numpy(value.reshape(self.batch))

    def both_from_costs(self, settings: Settings, cost: np.ndarray) -> Both:
        arguments, ends = self.arguments(settings, cost), self.ends(settings)
        both = small.value_and_mass(self.plan, arguments, ends)
        value, mass = (
            (self.returned(settings, cost, both.value), both.mass)
            if both.found == small.RETURNED
            else self.both_in_tiers(settings, cost, both)
        )
        kept = () if mass is None else (torch.from_numpy(mass),)
        return torch.from_numpy(value.reshape(self.batch)), kept

    def ends(self, settings: Settings) -> Ends | None:
        """Of the alignments, where they are open."""
        return None

    def returned(self, settings: Settings, cost: np.ndarray, value: np.ndarray) -> np.ndarray:
        """The value, given that which the kernels certify."""
        return value

    def in_tiers(
        self, settings: Settings, cost: np.ndarray, value: np.ndarray, status: np.ndarray
    ) -> np.ndarray:
        """Values of which the first tier alone does not certify some."""
        return small.completed(self.task(settings, cost), value, status)

    def both_in_tiers(
        self, settings: Settings, cost: np.ndarray, both: small.Both
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """As in_tiers, and the gradient of their sum; None where it is not to be kept."""
        return small.both_completed(self.plan, self.task(settings, cost), both)

    def task(self, settings: Settings, cost: np.ndarray) -> Batch:
        _, gamma, _, dummy, *rest = self.arguments(settings, cost)
        return Batch(cost, gamma, dummy, *rest)

    def by_costs(self, kept: Given, grad_value: Tensor) -> np.ndarray:
        """Gradients (P, N, M)."""
        (mass,) = kept
        of_sum = mass.numpy().reshape(self.pairs, -1)
        grad = np.empty(of_sum.shape, self.dtype)
        scaled(of_sum, dense(grad_value, (self.pairs,)), grad)
        return grad.reshape(self.pairs, *self.shape[-2:])


class OfPattern(OfCosts):
    """Costs (*, N, M) of alignments with a cost of warping, with fewer repeats or with open ends.
    settings: gamma, the cost of warping, and the price of a frame left out.
    """

    def __init__(
        self, shape: Shape, dtype: torch.dtype, bandwidth: int | None, sides: Sides
    ) -> None:
        super().__init__(shape, dtype, False, bandwidth, symmetric=False)
        self.bandwidth, self.sides = bandwidth, sides
        repeat, begin, end = sides
        self.warp: np.ndarray | None = None  # that of the fewest repeats
        if repeat != "xy" and not (begin or end):
            *_, rows, columns = shape
            self.warp = np.array([fewest(max(rows, columns))])
            self.repeats, _ = repeats_of(rows, columns, repeat)

    @staticmethod
    def has_none(shape: Shape, sides: Sides) -> bool:
        """Whether no alignment has so few repeats."""
        repeat, begin, end = sides
        if repeat == "xy" or begin or end:
            return False
        *_, rows, columns = shape
        return bool(repeats_of(rows, columns, repeat)[1])

    def arguments(self, settings: Settings, cost: np.ndarray) -> tuple[Any, ...]:
        gamma, warp, _ = (np.array([number]) for number in settings)
        warp = clipped(warp) if self.warp is None else self.warp
        return cost, gamma, warp, NOTHING, ALL, ALL, self.band

    def returned(self, settings: Settings, cost: np.ndarray, value: np.ndarray) -> np.ndarray:
        gamma, warp, _ = settings
        if self.warp is None or warp == 0.0 or self.repeats == 0:
            return value
        status, price = np.zeros(self.pairs, np.uint8), np.array([self.repeats * warp])
        limits = np.array([gamma]), ALL, ALL, *self.plan.limits
        if add_price(value, status, price, *limits, NO_ERROR):
            return value
        return self.in_tiers(settings, cost, value, status)

    def ends(self, settings: Settings) -> Ends | None:
        repeat, begin, end = self.sides
        if not (begin or end):
            return None
        gamma, warp, skip = (np.array([number]) for number in settings)
        opened, (_, _, rows, columns) = Open(begin, end, repeat, skip), self.four
        return ends_of(opened, gamma, clipped(warp), (rows, columns), precision_of(self.plan.ones))

    def in_tiers(
        self, settings: Settings, cost: np.ndarray, value: np.ndarray, status: np.ndarray
    ) -> np.ndarray:
        gamma, warp, skip = (torch.full(self.four[:2], n, dtype=torch.float64) for n in settings)
        rest = None, None, self.bandwidth, *self.sides
        problem = PatternProblem(torch.from_numpy(cost), gamma, warp, skip, *rest)
        return pattern_value(problem).numpy()

    def both_in_tiers(
        self, settings: Settings, cost: np.ndarray, both: small.Both
    ) -> tuple[np.ndarray, np.ndarray | None]:
        value = self.in_tiers(settings, cost, both.value, both.status)
        return value, None if both.found == small.NOT_ALL else both.mass


class OfHardCosts(OfCosts):
    """Costs (*, N, M) at gamma = 0."""

    def from_costs(self, settings: Settings, cost: np.ndarray) -> Tensor:
        return torch.from_numpy(small.hard_value(self.task(settings, cost)).reshape(self.batch))

    def both_from_costs(self, settings: Settings, cost: np.ndarray) -> Both:
        value, mass = small.hard_value_and_mass(self.task(settings, cost))
        return torch.from_numpy(value.reshape(self.batch)), (torch.from_numpy(mass),)


class OfHardPattern(OfHardCosts):
    """As `OfPattern`, at gamma = 0."""

    def __init__(
        self, shape: Shape, dtype: torch.dtype, bandwidth: int | None, sides: Sides
    ) -> None:
        super().__init__(shape, dtype, False, bandwidth, symmetric=False)
        self.sides = sides

    def task(self, settings: Settings, cost: np.ndarray) -> Batch:
        gamma, warp, skip = (np.array([number]) for number in settings)
        repeat, begin, end = self.sides
        opened = Open(begin, end, repeat, skip)
        return Batch(cost, gamma, NOTHING, ALL, ALL, self.band, warp, opened)


class OfFeatures:
    """Squared distances of features (*, N, D) and (*, M, D), in memory."""

    def __init__(
        self, x: Shape, y: Shape, dtype: torch.dtype, bandwidth: int | None, hard: bool
    ) -> None:
        of_costs = OfHardCosts if hard else OfCosts
        self.costs = of_costs((*x[:-1], y[-2]), dtype, False, bandwidth)
        pairs = self.costs.pairs
        self.shapes, self.units = (x, y), small.each_alone(pairs)
        self.three = (pairs, *x[-2:]), (pairs, *y[-2:])

    def sequences(self, given: Given) -> tuple[np.ndarray, np.ndarray]:
        (x, y), (x_shape, y_shape) = given, self.three
        return dense(x, x_shape), dense(y, y_shape)

    def value(self, settings: Settings, given: Given) -> Tensor:
        return self.costs.from_costs(settings, self.distances(given))

    def value_and_kept(self, settings: Settings, given: Given, wanted: Wanted) -> Both:
        return self.costs.both_from_costs(settings, self.distances(given))

    def distances(self, given: Given) -> np.ndarray:
        return small.distances(*self.sequences(given)).reshape(self.costs.four)

    def gradients(
        self, kept: Given, settings: Settings, given: Given, grad_value: Tensor, wanted: Wanted
    ) -> Gradients:
        (xs, ys), (with_x, with_y) = self.sequences(given), wanted
        by_costs = self.costs.by_costs(kept, grad_value)
        by_x, by_y = small.distances_vjp(self.units, xs, ys, by_costs, with_x, with_y)
        return (
            torch.from_numpy(by_x.reshape(self.shapes[0])) if with_x else None,
            torch.from_numpy(by_y.reshape(self.shapes[1])) if with_y else None,
        )


class WithoutMatrix:
    """Features whose distances are not stored: their gradients come with the value."""

    def __init__(self, x: Shape, y: Shape, dtype: torch.dtype, bandwidth: int | None) -> None:
        self.batch, self.dtype, pairs = x[:-2], NUMPY_TYPE[dtype], math.prod(x[:-2])
        self.shapes = x, y
        self.three = tuple((pairs, *of_one[-2:]) for of_one in self.shapes)
        self.own, self.band = np.arange(pairs), band_of(bandwidth, x[-2], y[-2])
        self.ones = np.ones(pairs, self.dtype)

    def task(self, settings: Settings, given: Given) -> features.FeatureBatch:
        x, y = (dense(t, shape) for t, shape in zip(given, self.three, strict=True))
        gamma = np.array(settings)
        return features.FeatureBatch(x, self.own, y, self.own, True, gamma, ALL, ALL, self.band)

    def value(self, settings: Settings, given: Given) -> Tensor:
        return torch.from_numpy(
            features.solve(self.task(settings, given), None).reshape(self.batch)
        )

    def value_and_kept(self, settings: Settings, given: Given, wanted: Wanted) -> Both:
        """Kept are the gradients of the sum of the values; of what is not wanted, nothing."""
        task, (with_x, with_y) = self.task(settings, given), wanted
        gradients = features.FeatureGradients.room(task, self.ones, (with_x, with_y, False))
        value = features.solve(task, gradients)
        kept = torch.from_numpy(gradients.x), torch.from_numpy(gradients.y)
        return torch.from_numpy(value.reshape(self.batch)), kept

    def gradients(
        self, kept: Given, settings: Settings, given: Given, grad_value: Tensor, wanted: Wanted
    ) -> Gradients:
        scale = dense(grad_value, (-1,))
        return tuple(
            torch.from_numpy(features.times(of_sum.numpy(), scale).reshape(shape))
            if is_wanted
            else None
            for of_sum, shape, is_wanted in zip(kept, self.shapes, wanted, strict=True)
        )


class OfSmoothedCosts:
    """Costs (*, N, M) to be smoothed."""

    def __init__(self, shape: Shape, dtype: torch.dtype, weak: bool, origin_count: float) -> None:
        self.costs = OfCosts(shape, dtype, weak, None, symmetric=False)
        four = self.costs.four
        *_, rows, columns = four
        self.strides, self.sizes = (
            (math.prod(four[1:]), rows * columns, columns, 1),
            (math.prod(four),),
        )
        precision = precision_of(np.empty(0, self.costs.dtype))
        self.end = ALL, ALL, precision.bounds, math.log(origin_count)

    def arguments(self, settings: Settings, cost: Tensor) -> tuple[Any, ...]:
        """Of the kernels that smooth."""
        memory, gamma = dense(cost, self.sizes), np.array(settings[:1])
        return 0, self.costs.pairs, memory, self.costs.four, self.strides, gamma, *self.end

    def smoothed(self, settings: Settings, cost: Tensor) -> np.ndarray:
        out = np.empty(self.costs.four, self.costs.dtype)
        smoothing_kernels.smooth(*self.arguments(settings, cost), out.reshape(-1), self.strides)
        return out

    def value(self, settings: Settings, given: Given) -> Tensor:
        return self.costs.from_costs(settings, self.smoothed(settings, *given))

    def value_and_kept(self, settings: Settings, given: Given, wanted: Wanted) -> Both:
        return self.costs.both_from_costs(settings, self.smoothed(settings, *given))

    def gradients(
        self, kept: Given, settings: Settings, given: Given, grad_value: Tensor, wanted: Wanted
    ) -> Gradients:
        by_smoothed = self.costs.by_costs(kept, grad_value).reshape(-1)
        grad, by_gamma = np.empty_like(by_smoothed), np.zeros(self.costs.pairs)
        smoothing_kernels.smooth_vjp(
            *self.arguments(settings, *given),
            *(by_smoothed, self.strides, grad, self.strides, by_gamma),
        )
        return (torch.from_numpy(grad.reshape(self.costs.shape)),)
