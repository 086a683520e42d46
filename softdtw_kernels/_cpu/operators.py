"""The operators on CPU tensors, by Numba kernels.

Requirements: numba. Shapes are those of `_problem`, and the cost may have any strides.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .._checks import is_distance
from .._operators import compositions, from_features
from .._problem import FeatureProblem, Monotonic, Problem, SmoothedProblem, Smoothing
from . import directional as directional
from . import features, second_order, small
from . import monotonic as monotonic_kernels
from . import prepared as prepared
from . import smoothing as smoothing_kernels
from .arrays import (
    NUMPY_TYPE,
    as_array,
    flat,
    flat_memory,
    four_dimensional,
    from_array,
    matrices,
    matrix_like,
    nothing_kept,
    without_warnings,
)
from .batch import Batch, Gradients
from .distances import squared_distances as squared_distances
from .distances import squared_distances_vjp as squared_distances_vjp
from .hard_tier import cheapest_paths
from .pattern import monotonic_value
from .pattern import (
    pattern_gradient as pattern_gradient,
)
from .pattern import (
    pattern_gradient_from_state as pattern_gradient_from_state,
)
from .pattern import (
    pattern_hessian_product as pattern_hessian_product,
)
from .pattern import (
    pattern_path as pattern_path,
)
from .pattern import (
    pattern_value as pattern_value,
)
from .pattern import (
    pattern_value_and_state as pattern_value_and_state,
)
from .scaling import precision_of
from .solve import solve
from .task import batch_of, batch_to_smooth, checked_lengths
from .threads import run_chunks
from .within_gamma import value_within_gamma as value_within_gamma


def value(problem: Problem) -> Tensor:
    cost, task = problem.cost, batch_of(problem)
    return from_array(solve(task, None), cost.shape[:-2])


def scale_of(grad_value: Tensor, cost: Tensor) -> np.ndarray:
    return flat(grad_value if grad_value.dtype == cost.dtype else grad_value.to(cost.dtype))


def gradient(
    problem: Problem,
    grad_value: Tensor,
    with_parameters: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    cost, task = problem.cost, batch_of(problem)
    zeros = task.partial or not (task.in_lanes(with_parameters) and task.gamma.all())
    grad = matrix_like(cost, zeros)
    gradients = Gradients(scale_of(grad_value, cost), with_parameters, matrices(grad))
    solve(task, gradients)
    by_gamma = gradients.gamma if with_parameters else np.zeros(task.pairs)
    shape = cost.shape[:-2]
    return grad, from_array(by_gamma, shape), from_array(gradients.dummy, shape)


def value_and_state(problem: Problem) -> tuple[Tensor, Tensor]:
    return small.value_and_state(problem) or (value(problem), nothing_kept())


def gradient_from_state(
    problem: Problem, state: Tensor, grad_value: Tensor, with_parameters: bool
) -> tuple[Tensor, Tensor, Tensor]:
    cost = problem.cost
    by_cost = None
    if not with_parameters:
        by_cost = small.gradient_of(problem, state, scale_of(grad_value, cost))
    if by_cost is None:
        return gradient(problem, grad_value, with_parameters)
    (a, b), batch = np.empty((2, grad_value.numel())), cost.shape[:-2]  # which nobody reads
    return from_array(by_cost, cost.shape), from_array(a, batch), from_array(b, batch)


def hessian_product(
    problem: Problem,
    grad_value: Tensor,
    tangent_cost: Tensor,
    tangent_gamma: Tensor,
    tangent_dummy: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    cost, task = problem.cost, batch_of(problem)
    out = matrix_like(cost, zeros=True)
    by_cost = as_array(four_dimensional(tangent_cost))
    tangents = by_cost, flat(tangent_gamma), flat(tangent_dummy)
    scale, matrix = flat(grad_value.double()), as_array(four_dimensional(out))
    value, (by_dummy, by_gamma) = second_order.solve(task, scale, tangents, matrix)
    shape = cost.shape[:-2]
    return (
        from_array(value, shape).to(cost.dtype),
        out,
        from_array(by_gamma, shape),
        from_array(by_dummy, shape),
    )


def path(problem: Problem) -> list[Tensor]:
    """The cheapest path of every pair as (L, 2) indices; of a weak lattice the real pairs on it;
    (0, 2) if none.
    """
    paths = []
    for found in cheapest_paths(batch_of(problem)):
        if problem.dummy is not None:
            found = found[(found & 1).all(axis=1)] >> 1
        paths.append(torch.from_numpy(found.copy()))
    return paths


def smoothing_arguments(task: Batch, smoothing: Smoothing) -> tuple[Any, ...]:
    """What the kernels take of the costs and of the numbers beside them."""
    memory, strides = flat_memory(four_dimensional(smoothing.cost))
    bounds, origin = precision_of(task.cost).bounds, math.log(smoothing.origin_count)
    return memory, task.cost.shape, strides, task.gamma, task.n, task.m, bounds, origin


def smooth(smoothing: Smoothing) -> Tensor:
    task = batch_to_smooth(smoothing)
    result = matrix_like(smoothing.cost, zeros=task.partial)
    out = four_dimensional(result)
    common = *smoothing_arguments(task, smoothing), *flat_memory(out)

    def work(first: int, last: int) -> None:
        smoothing_kernels.smooth(first, last, *common)

    run_chunks(task.pairs, task.cells, work)
    hard = task.hard
    if hard.size:
        smoothing_kernels.hard(task.cost, task.n, task.m, hard, as_array(out))
    return result


@without_warnings
def smooth_vjp(smoothing: Smoothing, grad_s: Tensor) -> tuple[Tensor, Tensor]:
    cost, task = smoothing.cost, batch_to_smooth(smoothing)
    result = matrix_like(cost, zeros=task.partial)
    adjoint, grad, grad_gamma = (
        four_dimensional(grad_s),
        four_dimensional(result),
        np.zeros(task.pairs),
    )
    common = *smoothing_arguments(task, smoothing), *flat_memory(adjoint), *flat_memory(grad)

    def work(first: int, last: int) -> None:
        smoothing_kernels.smooth_vjp(first, last, *common, grad_gamma)

    run_chunks(task.pairs, task.cells, work)
    hard = task.hard
    if hard.size:
        matrices = as_array(adjoint), as_array(grad)
        smoothing_kernels.hard_vjp(task.cost, task.n, task.m, hard, *matrices)
        # A hard minimum has no entropy. The softmin of the origin's zeros is -g ln(origin_count).
        at_origin = as_array(adjoint)[:, :, 0, 0].reshape(-1)[hard]
        grad_gamma[hard] = -at_origin * math.log(smoothing.origin_count)
    return result, from_array(grad_gamma, cost.shape[:-2])


def smooth_second_order(
    smoothing: Smoothing, grad_s: Tensor, by_cost: Tensor, by_gamma: Tensor
) -> tuple[Tensor, Tensor, Tensor] | None:
    """The gradient of <(by_cost, by_gamma), smooth_vjp> in cost, gamma and grad_s; None if a
    minimum is hard, which has no kernel. In float64, to which costs of float32 are copied.
    """
    shape, dtype = smoothing.cost.shape, smoothing.cost.dtype
    cost, adjoint, tangent = (
        x.double().contiguous().view(shape) for x in (smoothing.cost, grad_s, by_cost)
    )
    smoothing = smoothing._replace(cost=cost)
    task = batch_to_smooth(smoothing)
    if task.hard.size:
        return None
    grad, along = matrix_like(cost, zeros=task.partial), matrix_like(cost, zeros=task.partial)
    grad_gamma = np.zeros(task.pairs)
    common = smoothing_arguments(task, smoothing)
    matrices = [flat_memory(four_dimensional(x))[0] for x in (tangent, adjoint, grad, along)]

    def work(first: int, last: int) -> None:
        smoothing_kernels.smooth_second_order(
            first, last, *common, matrices[0], flat(by_gamma), *matrices[1:], grad_gamma
        )

    run_chunks(task.pairs, task.cells, work)
    return grad.to(dtype), from_array(grad_gamma, shape[:-2]), along.to(grad_s.dtype)


def smoothed_value(problem: SmoothedProblem) -> Tensor:
    return value(problem.of(smooth(problem.smoothing)))


def smoothed_gradient(
    problem: SmoothedProblem, grad_value: Tensor, with_parameters: bool
) -> tuple[Tensor, Tensor, Tensor]:
    smoothed = problem.of(smooth(problem.smoothing))
    by_s, by_gamma, by_dummy = gradient(smoothed, grad_value, with_parameters)
    by_cost, by_smoothing = smooth_vjp(problem.smoothing, by_s)
    return by_cost, by_gamma + by_smoothing if with_parameters else by_gamma, by_dummy


def smoothed_value_and_state(problem: SmoothedProblem) -> tuple[Tensor, Tensor]:
    return value_and_state(problem.of(smooth(problem.smoothing)))


def smoothed_gradient_from_state(
    problem: SmoothedProblem, state: Tensor, grad_value: Tensor, with_parameters: bool
) -> tuple[Tensor, Tensor, Tensor]:
    if with_parameters or not state.numel():
        return smoothed_gradient(problem, grad_value, with_parameters)
    of_lattice = problem.of(problem.cost)  # of which nothing but the shape is looked at
    by_s, a, b = gradient_from_state(of_lattice, state, grad_value, False)
    return smooth_vjp(problem.smoothing, by_s)[0], a, b


def without_matrix(problem: FeatureProblem) -> bool:
    x, y, *_, bandwidth, kind = problem
    return from_features.without_matrix(x, y, bandwidth, kind)


def fused_value(problem: FeatureProblem) -> Tensor:
    if without_matrix(problem):
        return features.value(problem)
    found = small.fused_value(problem)
    return compositions.fused_value(problem) if found is None else found


def fused_gradient(
    problem: FeatureProblem, grad_value: Tensor, with_x: bool, with_y: bool, with_gamma: bool
) -> tuple[Tensor, Tensor, Tensor]:
    wanted = with_x, with_y, with_gamma
    if without_matrix(problem):
        return features.gradient(problem, grad_value, wanted)
    if not is_distance(problem.kind):
        return compositions.fused_gradient(problem, grad_value, *wanted)
    x, y = problem.x, problem.y
    of_costs = problem.of(squared_distances(x, y))
    by_cost, by_gamma, _ = gradient(of_costs, grad_value, with_gamma)
    return *squared_distances_vjp(x, y, by_cost, with_x, with_y), by_gamma


def fused_value_and_state(problem: FeatureProblem) -> tuple[Tensor, Tensor]:
    if without_matrix(problem):
        return features.value_and_state(problem)
    return small.fused_value_and_state(problem) or (fused_value(problem), nothing_kept())


def fused_gradient_from_state(
    problem: FeatureProblem,
    state: Tensor,
    grad_value: Tensor,
    with_x: bool,
    with_y: bool,
    with_gamma: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    wanted = with_x, with_y, with_gamma
    if without_matrix(problem):
        grads = features.gradient_from_state(problem, state, grad_value, wanted)
        return grads or features.gradient(problem, grad_value, wanted)
    x, y = problem.x, problem.y
    by_cost = None
    if not with_gamma:
        by_cost = small.gradient_of(problem, state, scale_of(grad_value, x))
    if by_cost is None:
        return fused_gradient(problem, grad_value, *wanted)
    not_wanted = torch.zeros(grad_value.shape, dtype=torch.float64)
    return *small.features_of(by_cost, x, y, with_x, with_y), not_wanted


@without_warnings
def monotonic_sum(monotonic: Monotonic, with_expected: bool) -> tuple[Tensor, Tensor]:
    x = monotonic.log_probs
    memory, batch = _memory(monotonic), x.shape[:-2]
    shape = x.shape if with_expected else torch.Size((*batch, 0, 0))
    values, expected = np.empty(memory.items), _zeros(memory, x.dtype, with_expected)

    def work(first: int, last: int) -> None:
        span = first, last, with_expected
        monotonic_kernels.monotonic_sum(*memory.arguments, *span, values, expected)

    run_chunks(memory.items, x.numel(), work)
    n, m = (
        np.broadcast_to(own if own.size else size, memory.items)
        for own, size in ((memory.n, x.shape[-2]), (memory.m, x.shape[-1]))
    )
    found = values.astype(NUMPY_TYPE[x.dtype])
    # A rounding of the weight, of the sum and of their product a frame.
    again = np.flatnonzero(np.abs(values) * precision_of(found).wanted <= 2.0**-51 * n)
    if again.size:
        found[again] = monotonic_value(x.detach(), again, n[again], m[again])
    return from_array(found, batch), from_array(expected, shape)


@without_warnings
def monotonic_product(monotonic: Monotonic, tangent: Tensor) -> Tensor:
    """In float64: one kernel less to compile, for what is asked for seldom."""
    x = monotonic.log_probs
    memory = _memory(monotonic._replace(log_probs=x.double()))
    out = _zeros(memory, torch.float64)
    # Forbidden pairs may hold anything.
    allowed = torch.where(x == -math.inf, 0, tangent.detach().double())
    along = allowed.reshape(out.shape).contiguous().numpy()

    def work(first: int, last: int) -> None:
        monotonic_kernels.monotonic_product(*memory.arguments, first, last, along, out)

    run_chunks(memory.items, x.numel(), work)
    return from_array(out.astype(NUMPY_TYPE[x.dtype], copy=False), x.shape)


def monotonic_path(monotonic: Monotonic) -> Tensor:
    x, memory = monotonic.log_probs, _memory(monotonic)
    out = _zeros(memory, x.dtype)

    def work(first: int, last: int) -> None:
        monotonic_kernels.monotonic_path(*memory.arguments, first, last, out)

    run_chunks(memory.items, x.numel(), work)
    return from_array(out, x.shape)


class _Memory(NamedTuple):
    """Tensors (*, frames, tokens) of any strides as one array and the steps in it."""

    base: np.ndarray
    strides: tuple[int, int, int]
    n: np.ndarray
    m: np.ndarray
    shape: tuple[int, int, int]

    @property
    def items(self) -> int:
        return self.shape[0]

    @property
    def arguments(self) -> tuple[Any, ...]:
        return *self[:4], *self.shape[1:]


def _memory(monotonic: Monotonic) -> _Memory:
    """Without a copy, unless the leading dimensions are no view of one."""
    x, x_lengths, y_lengths = monotonic
    n = checked_lengths(x_lengths, x.shape[-2], "x_lengths")
    m = checked_lengths(y_lengths, x.shape[-1], "y_lengths")
    x = x.detach().reshape(x.shape[:-2].numel(), *x.shape[-2:])
    span = 1 + sum((size - 1) * step for size, step in zip(x.shape, x.stride(), strict=True))
    base = x.as_strided((span if x.numel() else 0,), (1,)).numpy()
    a, b, c = x.stride()
    return _Memory(base, (a, b, c), n, m, (x.shape[0], x.shape[1], x.shape[2]))


def _zeros(memory: _Memory, dtype: torch.dtype, wanted: bool = True) -> np.ndarray:
    return np.zeros(memory.shape if wanted else (memory.items, 0, 0), NUMPY_TYPE[dtype])
