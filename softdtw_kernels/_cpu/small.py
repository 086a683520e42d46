"""Small calls: what one thread does in microseconds, of which Python has the larger share.

The forward sweep of a value and the backward sweep of its gradient are one call of a kernel. What
is kept until the gradient is asked for, the state, is the gradient of the sum of the values by the
costs; then it takes the factors of the values. Bits are those of the value and of the gradient
computed one by one: where the first tier does not certify both, or the gradient is wanted by gamma
or the dummy cost, nothing is kept, and they are computed so.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .._checks import is_distance
from .._problem import FeatureProblem, Problem
from . import distance_kernels, lanes, strips
from .arrays import NOTHING, dense, from_array
from .batch import ALL, Batch
from .ends import SUMS, Ends
from .jit import jit
from .order import min
from .scaling import SURE, UNIT, WANTED, precision_of, roundings
from .solve import solve
from .subnormal import flush_subnormals, restore
from .task import batch_of, with_settings
from .threads import SMALLEST_SHARE

ONE = np.ones(1)
NOTHING_SURE, MASS, RETURNED = 0, 1, 2  # what `worth` finds


@jit
def worth(status, value, gamma, rows, columns, bounds):
    """What is certified: the gradients of all pairs, and their values to be returned, or without
    the values, or nothing.

    As `scaling.conclude`, which knows the sizes of each pair and the value before it was rounded:
    what is sure here is sure there.
    """
    rounding = bounds[UNIT] * roundings(rows, columns)
    result = RETURNED
    for q in range(value.size):
        if status[q] != SURE:
            return NOTHING_SURE
        least = 1.000001 * rounding * gamma[min(q, gamma.size - 1)]
        if not abs(value[q]) * bounds[WANTED] > least:
            result = MASS
    return result


@jit
def scaled(mass, scale, out):
    """Mass (P, N, M) times the factors of the pairs, as the kernels multiply that make the mass: +0
    where there is none, as beyond lengths and band, whatever the factor is.
    """
    pairs, rows, columns = mass.shape
    before = flush_subnormals()
    for q in range(pairs):
        for i in range(rows):
            for j in range(columns):
                e = mass[q, i, j]
                out[q, i, j] = e * scale[q] if e != 0.0 else 0.0
    restore(before)


LARGEST = 2 * SMALLEST_SHARE  # cells: what one thread does


def is_small(cells: int) -> bool:
    return 0 < cells < LARGEST


class Plan(NamedTuple):
    """What does not depend on values. Lengths change none of it: bits are the same in any order, in
    lanes and in strips.
    """

    kernel: Callable[..., None]
    units: tuple[Any, ...]  # all groups of pairs, or all pairs
    settings: tuple[Any, ...]  # what a kernel needs to know of the precision
    ones: np.ndarray  # the factors of the values
    limits: tuple[Any, ...]  # of what is certified: rows and columns of the lattice, bounds


@functools.lru_cache(maxsize=64)
def plan_of(shape: tuple[int, ...], itemsize: int, weak: bool, bandwidth: int) -> Plan:
    cost = np.empty(shape, np.float32 if itemsize == 4 else np.float64)
    task = Batch(cost, ONE, ONE if weak else NOTHING, ALL, ALL, bandwidth)
    precision = precision_of(cost)
    ones = np.ones(task.pairs, cost.dtype)
    limits = *task.lattice, precision.bounds
    in_lanes = task.in_lanes(False)
    kernel = lanes.solve if in_lanes else strips.solve
    units = (0, task.groups, task.in_order) if in_lanes else (0, task.pairs)
    return Plan(kernel, units, precision.kernel_arguments, ones, limits)


def value_and_mass(
    plan: Plan, arguments: tuple[Any, ...], ends: Ends | None = None
) -> tuple[int, np.ndarray, np.ndarray]:
    """How far they are certified; values, and the gradient of their sum by the costs."""
    cost, gamma, *_ = arguments
    pairs, dtype = plan.ones.size, cost.dtype
    value, status = np.empty(pairs, dtype), np.empty(pairs, np.uint8)
    mass, sums = np.zeros(cost.shape, dtype), np.empty((SUMS, pairs))
    to_gradients = True, plan.ones, False, mass, sums
    plan.kernel(*plan.units, *arguments, *plan.settings, value, status, *to_gradients, ends)
    return worth(status, value, gamma, *plan.limits), value, mass


def certified(task: Batch) -> tuple[np.ndarray, np.ndarray] | None:
    """The same, values to be returned; None if the gradient is not certified."""
    cost, dummy = task.cost, task.dummy
    plan = plan_of(cost.shape, cost.itemsize, dummy.size > 0, task.bandwidth)
    sure, value, mass = value_and_mass(plan, task.kernel_arguments)
    if sure == NOTHING_SURE:
        return None
    return value if sure == RETURNED else solve(task, None), mass


def gradient_of(problem: Problem | FeatureProblem, state: Tensor, scale: np.ndarray) -> Any:
    """Gradients (P, N, M) by the costs of the values times `scale`; None if nothing was kept."""
    kept = state.numpy().view(scale.dtype)
    if kept.size == 0:
        return None
    if isinstance(problem, Problem):
        rows, columns = problem.cost.shape[-2:]
    else:
        rows, columns = problem.x.shape[-2], problem.y.shape[-2]
    if kept.size != scale.size * rows * columns:
        raise ValueError(f"a state of {kept.size} costs was given to {scale.size} pairs of others")
    mass = kept.reshape(scale.size, rows, columns)
    grad = np.empty(mass.shape, mass.dtype)
    scaled(mass, scale, grad)
    return grad


def _results(
    found: tuple[np.ndarray, np.ndarray] | None, batch: torch.Size
) -> tuple[Tensor, Tensor] | None:
    if found is None:
        return None
    value, mass = found
    return from_array(value, batch), torch.from_numpy(mass.reshape(-1).view(np.uint8))


def value_and_state(problem: Problem) -> tuple[Tensor, Tensor] | None:
    cost = problem.cost
    if not (is_small(cost.numel()) and cost.is_contiguous()):
        return None
    return _results(certified(batch_of(problem)), cost.shape[:-2])


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
    return None if task is None else _results(certified(task), problem.x.shape[:-2])


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
