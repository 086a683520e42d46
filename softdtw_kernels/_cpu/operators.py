"""The operators on CPU tensors, by Numba kernels.

Requirements: numba. Shapes are those of `_problem`, and the cost may have any strides.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from .._checks import is_distance
from .._operators import compositions
from .._problem import FeatureProblem, Problem, SmoothedProblem, Smoothing
from . import second_order, small
from . import smoothing as smoothing_kernels
from .arrays import as_array, flat, four_dimensional, from_array, matrices, matrix_like
from .distances import squared_distances as squared_distances
from .distances import squared_distances_vjp as squared_distances_vjp
from .scaling import precision_of
from .solve import Gradients, cheapest_paths, solve
from .task import batch_of, batch_to_smooth
from .threads import run_chunks


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


def nothing_kept() -> Tensor:
    return torch.empty(0, dtype=torch.uint8)


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
    scale, tg, td = flat(grad_value.double()), flat(tangent_gamma), flat(tangent_dummy)
    tangent_value, out_gamma, out_dummy = np.empty((3, task.pairs))

    def work(first: int, last: int) -> None:
        second_order.hessian_product(
            *task.kernel_arguments,
            np.arange(first, last),
            scale,
            as_array(four_dimensional(tangent_cost)),
            tg,
            td,
            tangent_value,
            as_array(four_dimensional(out)),
            out_gamma,
            out_dummy,
        )

    run_chunks(task.pairs, task.cells, work)
    shape = cost.shape[:-2]
    return (
        from_array(tangent_value, shape).to(cost.dtype),
        out,
        from_array(out_gamma, shape),
        from_array(out_dummy, shape),
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


def smooth(smoothing: Smoothing) -> Tensor:
    cost, task = smoothing.cost, batch_to_smooth(smoothing)
    result = matrix_like(cost, zeros=task.partial)
    out = matrices(result)
    precision, origin = precision_of(out), math.log(smoothing.origin_count)
    scaling = (task.cost, task.gamma, task.n, task.m, precision.floats, precision.bounds, origin)

    def work(first: int, last: int) -> None:
        smoothing_kernels.smooth(first, last, task.in_order, *scaling, out)

    run_chunks(task.groups, task.cells, work)
    hard = task.hard
    if hard.size:
        smoothing_kernels.hard(task.cost, task.n, task.m, hard, out)
    return result


def smooth_vjp(
    smoothing: Smoothing,
    grad_s: Tensor,
) -> tuple[Tensor, Tensor]:
    cost, task = smoothing.cost, batch_to_smooth(smoothing)
    result = matrix_like(cost, zeros=task.partial)
    grad, adjoint = matrices(result), matrices(grad_s)
    grad_gamma = np.zeros(task.pairs)
    precision, origin = precision_of(grad), math.log(smoothing.origin_count)
    scaling = (task.cost, task.gamma, task.n, task.m, precision.floats, precision.bounds, origin)

    def work(first: int, last: int) -> None:
        smoothing_kernels.smooth_vjp(
            first, last, task.in_order, *scaling, adjoint, grad, grad_gamma
        )

    run_chunks(task.groups, task.cells, work)
    hard = task.hard
    if hard.size:
        smoothing_kernels.hard_vjp(task.cost, task.n, task.m, hard, adjoint, grad)
        grad_gamma[hard] = 0.0
    return result, from_array(grad_gamma, cost.shape[:-2])


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


def fused_value(problem: FeatureProblem) -> Tensor:
    found = small.fused_value(problem)
    return compositions.fused_value(problem) if found is None else found


def fused_gradient(
    problem: FeatureProblem, grad_value: Tensor, with_x: bool, with_y: bool, with_gamma: bool
) -> tuple[Tensor, Tensor, Tensor]:
    wanted = with_x, with_y, with_gamma
    if not is_distance(problem.kind):
        return compositions.fused_gradient(problem, grad_value, *wanted)
    x, y = problem.x, problem.y
    of_costs = problem.of(squared_distances(x, y))
    by_cost, by_gamma, _ = gradient(of_costs, grad_value, with_gamma)
    return *squared_distances_vjp(x, y, by_cost, with_x, with_y), by_gamma


def fused_value_and_state(problem: FeatureProblem) -> tuple[Tensor, Tensor]:
    return small.fused_value_and_state(problem) or (fused_value(problem), nothing_kept())


def fused_gradient_from_state(
    problem: FeatureProblem,
    state: Tensor,
    grad_value: Tensor,
    with_x: bool,
    with_y: bool,
    with_gamma: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    x, y = problem.x, problem.y
    by_cost = None
    if not with_gamma:
        by_cost = small.gradient_of(problem, state, scale_of(grad_value, x))
    if by_cost is None:
        return fused_gradient(problem, grad_value, with_x, with_y, with_gamma)
    return *small.features_of(by_cost, x, y, with_x, with_y), grad_value  # the last: not wanted
