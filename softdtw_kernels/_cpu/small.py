"""Calls of few cells: their gradient is made beside the value.

The forward sweep of a value and the backward sweep of its gradient are one call of a kernel, where
the other way sweeps forward once more. What is kept until the gradient is asked for, the state, is
the gradient of the sum of the values by the costs; then it takes the factors of the values. Bits
are those of the value and of the gradient computed one by one, whichever tier does a pair. Nothing
is kept where the gradient is wanted by gamma or the dummy cost.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .._checks import is_distance
from .._problem import FeatureProblem, PatternProblem, Problem
from . import distance_kernels, lanes, strips
from .arrays import NOTHING, dense, from_array, without_warnings
from .batch import ALL, Batch, Gradients, places_of
from .ends import SUMS, Ends
from .factors import scaled
from .hard_tier import hard_minimum
from .jit import jit
from .lattice import entry
from .order import min
from .scaling import NEAR_0, ROUNDED_MORE, SURE, UNIT, WANTED, precision_of, roundings
from .solve import finish, solve
from .task import batch_of, with_settings
from .threads import SMALLEST_SHARE, run_chunks

ONE, NO_MORE = np.ones(1), np.zeros(1)
NOT_ALL, MASS, RETURNED = 0, 1, 2  # what `worth` finds


@jit
def worth(status, value, gamma, more, rows, columns, bounds):
    """What is certified: the gradients of all pairs, and their values to be returned, or without
    all values, or not all gradients. Of pairs whose values are not to be returned, the status
    becomes NEAR_0. more: what open ends have added to the values.

    As `scaling.conclude`, which knows the sizes of each pair and the value before it was rounded:
    what is sure here is sure there.
    """
    rounding = bounds[UNIT] * roundings(rows, columns)
    result = RETURNED
    for q in range(value.size):
        if status[q] != SURE:
            result = NOT_ALL
            continue
        least = rounding * entry(gamma, q) + ROUNDED_MORE * abs(entry(more, q))
        if not abs(value[q]) * bounds[WANTED] > 1.000001 * least:
            status[q] = NEAR_0
            result = min(result, MASS)
    return result


LARGEST = 2 * SMALLEST_SHARE  # cells: what one thread does
KEPT = 2**18  # cells of all lattices up to which a gradient is kept: some MiB at most


def is_small(cells: int) -> bool:
    return 0 < cells < LARGEST


class Plan(NamedTuple):
    """What does not depend on values."""

    kernel: Callable[..., None]
    chunks: int  # groups of pairs, or pairs
    room: Callable[..., np.ndarray]  # for gradients; zeros if not all of them is written
    order: tuple[Any, ...]  # of the pairs in the groups
    cells: int  # of all lattices
    settings: tuple[Any, ...]  # what a kernel needs to know of the precision
    ones: np.ndarray  # the factors of the values
    limits: tuple[Any, ...]  # of what is certified: rows and columns of the lattice, bounds

    def run(self, arguments: tuple[Any, ...], *results: Any) -> None:
        if is_small(self.cells):
            self.kernel(0, self.chunks, *self.order, *arguments, *self.settings, *results)
            return

        def work(first: int, last: int) -> None:
            self.kernel(first, last, *self.order, *arguments, *self.settings, *results)

        run_chunks(self.chunks, self.cells, work)


def _plan(task: Batch) -> Plan:
    precision, in_lanes = precision_of(task.cost), task.in_lanes(False)
    return Plan(
        lanes.solve if in_lanes else strips.solve,
        task.groups if in_lanes else task.pairs,
        room_for(task.cost.size, zeros=task.partial or not in_lanes),
        (task.in_order,) if in_lanes else (),
        task.cells,
        task.settings(precision, in_lanes),
        np.ones(task.pairs, task.cost.dtype),
        (*task.lattice, precision.bounds),
    )


@functools.lru_cache(maxsize=64)
def plan_of(shape: tuple[int, ...], itemsize: int, weak: bool, bandwidth: int) -> Plan:
    """Of whole pairs. With lengths bits are the same, in any order, in lanes and in strips."""
    cost = np.empty(shape, np.float32 if itemsize == 4 else np.float64)
    return _plan(Batch(cost, ONE, ONE if weak else NOTHING, ALL, ALL, bandwidth))


class Both(NamedTuple):
    """The values, and the gradient of their sum by the costs, of those pairs of which they are
    certified.
    """

    value: np.ndarray
    mass: np.ndarray
    status: np.ndarray
    found: int  # by `worth`


def value_and_mass(plan: Plan, arguments: tuple[Any, ...], ends: Ends | None = None) -> Both:
    """By the first tier."""
    cost, gamma, _, _, n, m, _ = arguments
    pairs, dtype = plan.ones.size, cost.dtype
    value, status = np.empty(pairs, dtype), np.empty(pairs, np.uint8)
    mass, sums = plan.room(cost.shape, dtype), np.empty((SUMS, pairs))
    if n.size or m.size:
        mass.fill(0)
    plan.run(arguments, value, status, True, plan.ones, False, mass, sums, ends)
    more = NO_MORE if ends is None else ends.more
    return Both(value, mass, status, worth(status, value, gamma, more, *plan.limits))


@without_warnings
def both_completed(plan: Plan, task: Batch, both: Both) -> tuple[np.ndarray, np.ndarray]:
    """The values and the gradient of their sum, where the first tier alone does not do."""
    value, mass, status, found = both
    if found == NOT_ALL:
        status[status == NEAR_0] = SURE
        mass[places_of(np.flatnonzero(status), mass.shape[1])] = 0.0
        finish(task, Gradients(plan.ones, False, mass, of_sum=True), value, status)
        worth(status, value, task.gamma, NO_MORE, *plan.limits)
    return solved_again(task, value, np.flatnonzero(status == NEAR_0)), mass


def solved_again(task: Batch, value: np.ndarray, again: np.ndarray) -> np.ndarray:
    """The values, some of them by all tiers: `worth` finds more of them near 0 than these do."""
    if again.size == task.pairs or (again.size and is_small(task.cells)):
        return solve(task, None)
    if again.size:
        costs = np.ascontiguousarray(task.matrices(again))
        value[again] = solve(task.part(again, costs), None)
    return value


@without_warnings
def completed(task: Batch, value: np.ndarray, status: np.ndarray) -> np.ndarray:
    """The values, those that the first tier does not certify by the others."""
    finish(task, None, value, status)
    return value


@without_warnings
def hard_value(task: Batch, gradients: Gradients | None = None) -> np.ndarray:
    value = np.empty(task.pairs, task.cost.dtype)
    hard_minimum(task, gradients, np.arange(task.pairs), value, np.empty(task.pairs, np.uint8))
    return value


def hard_value_and_mass(task: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Where gamma is 0 in all pairs."""
    mass = room_for(task.cost.size, zeros=True)(task.cost.shape, task.cost.dtype)
    ones = np.ones(task.pairs, task.cost.dtype)
    return hard_value(task, Gradients(ones, False, mass, of_sum=True)), mass


def room_beside_another(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Memory that will be freed about when an array of the same size is.

    What is free at the end of its memory, the C library gives back to the system if it is more than
    twice the largest block that was freed before: two such arrays together are, and the next call
    would pay a page fault for every 4 KiB. This is the begin of a block of three times the size, of
    which nobody touches the rest.
    """
    size = math.prod(shape)
    return np.empty(3 * size, dtype)[:size].reshape(shape)


def zeros_beside_another(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    room = room_beside_another(shape, dtype)
    room.fill(0)
    return room


def room_for(size: int, zeros: bool) -> Callable[..., np.ndarray]:
    """How room is made for so many numbers."""
    if is_small(size):
        return np.zeros if zeros else np.empty
    return zeros_beside_another if zeros else room_beside_another


def value_and_kept(task: Batch) -> tuple[np.ndarray, np.ndarray] | None:
    """The values, and the gradient of their sum by the costs; None where gamma is 0 in some pairs
    only.
    """
    if not task.gamma.all():
        return None if task.gamma.any() else hard_value_and_mass(task)
    plan = plan_for(task)
    both = value_and_mass(plan, task.kernel_arguments)
    if both.found == RETURNED:
        return both.value, both.mass
    return both_completed(plan, task, both)


def plan_for(task: Batch) -> Plan:
    cost, with_lengths = task.cost, task.n.size > 0 or task.m.size > 0
    if with_lengths and task.cells >= LARGEST:  # pairs of like lengths are to share vectors
        return _plan(task)
    return plan_of(cost.shape, cost.itemsize, task.dummy.size > 0, task.bandwidth)


def gradient_of(
    problem: Problem | FeatureProblem | PatternProblem, state: Tensor, scale: np.ndarray
) -> Any:
    """Gradients (P, N, M) by the costs of the values times `scale`; None if nothing was kept."""
    kept = state.numpy().view(scale.dtype)
    if kept.size == 0:
        return None
    if isinstance(problem, FeatureProblem):
        rows, columns = problem.x.shape[-2], problem.y.shape[-2]
    else:
        rows, columns = problem.cost.shape[-2:]
    if kept.size != scale.size * rows * columns:
        raise ValueError(f"a state of {kept.size} costs was given to {scale.size} pairs of others")
    mass = kept.reshape(scale.size, rows * columns)
    grad = np.empty(mass.shape, mass.dtype)
    scaled(mass, scale, grad)
    return grad.reshape(scale.size, rows, columns)


def as_state(
    found: tuple[np.ndarray, np.ndarray] | None, batch: torch.Size
) -> tuple[Tensor, Tensor] | None:
    if found is None:
        return None
    value, mass = found
    return from_array(value, batch), torch.from_numpy(mass.reshape(-1).view(np.uint8))


def keeps(cost: Tensor, cells: int, *settings: Tensor | None) -> bool:
    """Whether a call of so many cells keeps the gradient by its costs, which alone is wanted."""
    if not (0 < cells <= KEPT and cost.is_contiguous()):
        return False
    return not any(setting is not None and setting.requires_grad for setting in settings)


def value_and_state(problem: Problem) -> tuple[Tensor, Tensor] | None:
    cost, gamma, dummy, *_ = problem
    if not keeps(cost, cost.numel() * (1 if dummy is None else 4), gamma, dummy):
        return None
    return as_state(value_and_kept(batch_of(problem)), cost.shape[:-2])


def small_task(problem: FeatureProblem) -> Batch | None:
    """The problem with its costs, if it is small and its costs are distances."""
    x, y, gamma, x_lengths, y_lengths, bandwidth, kind = problem
    if not (is_distance(kind) and is_small(x.shape[:-1].numel() * y.shape[-2])):
        return None
    return with_settings(
        distances(sequences_of(x), sequences_of(y)), gamma, None, x_lengths, y_lengths, bandwidth
    )


def sequences_of(x: Tensor) -> np.ndarray:
    """(*, N, D) as (P, N, D), of one pair or more."""
    return dense(x, (-1, *x.shape[-2:]))


def distances(xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
    """Squared, (1, P, N, M)."""
    (pairs, rows, _), columns = xs.shape, ys.shape[1]
    cost = np.empty((1, pairs, rows, columns), xs.dtype)
    distance_kernels.squared_distances(xs[None], ys[None], 0, pairs * rows, cost)
    return cost


def fused_value(problem: FeatureProblem) -> Tensor | None:
    task = small_task(problem)
    return None if task is None else from_array(solve(task, None), problem.x.shape[:-2])


def fused_value_and_state(problem: FeatureProblem) -> tuple[Tensor, Tensor] | None:
    task = small_task(problem)
    return None if task is None else as_state(value_and_kept(task), problem.x.shape[:-2])


def features_of(
    by_cost: np.ndarray, x: Tensor, y: Tensor, with_x: bool, with_y: bool
) -> tuple[Tensor, Tensor]:
    """Gradients by the features, of those (P, N, M) by their distances; without any feature where
    they are not wanted.
    """
    xs, ys = sequences_of(x), sequences_of(y)
    by_x, by_y = distances_vjp(each_alone(len(xs)), xs, ys, by_cost, with_x, with_y)
    return (
        from_array(by_x, x.shape) if with_x else x.new_empty(*x.shape[:-1], 0),
        from_array(by_y, y.shape) if with_y else y.new_empty(*y.shape[:-1], 0),
    )


Units = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def each_alone(pairs: int) -> Units:
    """Of `squared_distances_vjp`: every pair has sequences of its own."""
    starts = np.arange(pairs + 1)
    return starts[:-1], starts, starts[:-1], starts[:-1]


def distances_vjp(
    units: Units, xs: np.ndarray, ys: np.ndarray, by_cost: np.ndarray, with_x: bool, with_y: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Nothing where it is not wanted."""
    by_x = np.empty(xs.shape if with_x else (0, 0, 0), xs.dtype)
    by_y = np.empty(ys.shape if with_y else (0, 0, 0), xs.dtype)
    wanted = with_x, with_y, 0, len(xs), by_x, by_y
    distance_kernels.squared_distances_vjp(*units, xs, ys, by_cost, *wanted)
    return by_x, by_y
