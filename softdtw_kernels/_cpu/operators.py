"""The operators on CPU tensors, by Numba kernels.

Requirements: numba. Shapes are those of `_problem`, and the cost may have any strides. Values of
gamma and of the lengths are checked here, where reading them costs nothing.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .._checks import LARGEST_GAMMA, gamma_error
from .._problem import Monotonic, Problem, SmoothedProblem, Smoothing
from . import monotonic as monotonic_kernels
from . import second_order
from . import smoothing as smoothing_kernels
from .arrays import (
    NUMPY_TYPE,
    as_array,
    flat,
    flat_memory,
    four_dimensional,
    from_array,
    matrix_like,
    one_or_all,
)
from .distances import squared_distances as squared_distances
from .distances import squared_distances_vjp as squared_distances_vjp
from .scaling import precision_of
from .solve import ALL, Batch, Gradients, cheapest_paths, solve
from .threads import run_chunks


def checked_gamma(gamma: Tensor) -> np.ndarray:
    values = one_or_all(gamma)
    right = (values >= 0) & (values <= LARGEST_GAMMA)
    if not right.all():
        raise gamma_error(values[~right][0])
    return values


def checked_lengths(lengths: Tensor | None, size: int, name: str) -> np.ndarray:
    if lengths is None:
        return ALL
    values = flat(lengths)
    if values.size and not 1 <= values.min() <= values.max() <= size:
        bad = values[(values < 1) | (values > size)][0]
        raise ValueError(f"{name} must lie in 1..{size}, the size of that dimension, got {bad}")
    return values


def batch_of(problem: Problem) -> Batch:
    """The problem as the kernels take it, its values checked."""
    cost, gamma, dummy, x_lengths, y_lengths, bandwidth = problem
    return Batch(
        as_array(four_dimensional(cost)),
        checked_gamma(gamma),
        one_or_all(dummy),
        checked_lengths(x_lengths, cost.shape[-2], "x_lengths"),
        checked_lengths(y_lengths, cost.shape[-1], "y_lengths"),
        # A band wider than the matrix is none, and sums with it must not overflow.
        -1 if bandwidth is None else min(bandwidth, sum(cost.shape[-2:])),
    )


def batch_to_smooth(smoothing: Smoothing) -> Batch:
    cost, gamma, x_lengths, y_lengths, _ = smoothing
    return batch_of(Problem(cost, gamma, None, x_lengths, y_lengths, None))


def value(problem: Problem) -> Tensor:
    cost, task = problem.cost, batch_of(problem)
    return from_array(solve(task, None), cost.shape[:-2])


def gradient(
    problem: Problem,
    grad_value: Tensor,
    with_parameters: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    cost, task = problem.cost, batch_of(problem)
    zeros = task.partial or not (task.in_lanes(with_parameters) and task.gamma.all())
    grad = matrix_like(cost, zeros)
    scale = flat(grad_value.to(cost.dtype))
    gradients = Gradients(scale, with_parameters, as_array(four_dimensional(grad)))
    solve(task, gradients)
    by_gamma = gradients.gamma if with_parameters else np.zeros(task.pairs)
    shape = cost.shape[:-2]
    return grad, from_array(by_gamma, shape), from_array(gradients.dummy, shape)


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
        grad_gamma[hard] = 0.0
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


def monotonic_sum(monotonic: Monotonic, with_expected: bool) -> tuple[Tensor, Tensor]:
    x = monotonic.log_probs
    memory, batch = _memory(monotonic), x.shape[:-2]
    shape = x.shape if with_expected else torch.Size((*batch, 0, 0))
    values, expected = np.empty(memory.items), _zeros(memory, x.dtype, with_expected)

    def work(first: int, last: int) -> None:
        span = first, last, with_expected
        monotonic_kernels.monotonic_sum(*memory.arguments, *span, values, expected)

    run_chunks(memory.items, x.numel(), work)
    values = values.astype(NUMPY_TYPE[x.dtype])
    return from_array(values, batch), from_array(expected, shape)


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
