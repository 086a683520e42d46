"""The operators on CPU tensors, by Numba kernels.

Requirements: numba. Shapes are those of `_problem`, and the cost may have any strides. Values of
gamma and of the lengths are checked here, where reading them costs nothing.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from .._backends import in_shape
from .._checks import LARGEST_GAMMA, gamma_error, is_distance
from .._problem import FeatureProblem, Problem, SmoothedProblem, Smoothing
from . import features, second_order
from . import smoothing as smoothing_kernels
from .arrays import (
    as_array,
    flat,
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
    out = as_array(four_dimensional(result))
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
    grad, adjoint = (as_array(four_dimensional(t)) for t in (result, grad_s))
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


def features_of(problem: FeatureProblem) -> features.FeatureBatch:
    """The problem as the kernels take it, its values checked."""
    x, y, gamma, x_lengths, y_lengths, bandwidth, kind = problem
    return features.FeatureBatch(
        *features.sequences_of(x),
        *features.sequences_of(y),
        is_distance(kind),
        checked_gamma(gamma),
        checked_lengths(x_lengths, x.shape[-2], "x_lengths"),
        checked_lengths(y_lengths, y.shape[-2], "y_lengths"),
        -1 if bandwidth is None else min(bandwidth, x.shape[-2] + y.shape[-2]),
    )


def fused_value(problem: FeatureProblem) -> Tensor:
    return from_array(features.solve(features_of(problem), None), problem.x.shape[:-2])


def fused_gradient(
    problem: FeatureProblem, grad_value: Tensor, with_x: bool, with_y: bool, with_gamma: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """In x and y, without any feature where it is not wanted, and gamma."""
    task, scale = features_of(problem), flat(grad_value.to(problem.x.dtype))
    wanted = with_x, with_y, with_gamma
    gradients = features.FeatureGradients.room(task, scale, wanted)
    features.solve(task, gradients, returned=False)
    arrays = gradients.x, gradients.y, gradients.gamma
    return _as_tensors(problem, [torch.from_numpy(a) for a in arrays], wanted)


def _as_tensors(
    problem: FeatureProblem, grads: list[Tensor], wanted: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients in the shapes of x, y and the batch."""
    by_x, by_y = (
        in_shape(grad, t.shape) if is_wanted else t.new_empty(*t.shape[:-1], 0)
        for grad, t, is_wanted in zip(grads, problem[:2], wanted, strict=False)
    )
    return by_x, by_y, in_shape(grads[2], problem.x.shape[:-2])


def fused_value_and_state(problem: FeatureProblem) -> tuple[Tensor, Tensor]:
    """The value, and its gradients by what requires one: both from one pass."""
    x, y, gamma = problem[:3]
    due = x.requires_grad, y.requires_grad, gamma.requires_grad
    value, state = features.with_state(features_of(problem), due)
    return from_array(value, x.shape[:-2]), torch.from_numpy(state)


def fused_gradient_from_state(
    problem: FeatureProblem,
    state: Tensor,
    grad_value: Tensor,
    with_x: bool,
    with_y: bool,
    with_gamma: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    wanted = with_x, with_y, with_gamma
    held = features.from_state(features_of(problem), as_array(state), wanted)
    if held is None:
        return fused_gradient(problem, grad_value, *wanted)
    scale = grad_value.reshape(-1).to(problem.x.dtype)
    grads = [
        torch.from_numpy(a) * scale[:, None, None] if is_wanted else torch.empty(0)
        for a, is_wanted in zip((held.x, held.y), wanted, strict=False)
    ]
    by_gamma = torch.from_numpy(held.gamma) * scale.double()
    return _as_tensors(problem, [*grads, by_gamma], wanted)
