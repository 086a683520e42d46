"""The operators on CPU tensors, by Numba kernels.

Requirements: numba. Imported by the first call on a CPU tensor, never by `import softdtw_kernels`.
Shapes are those of `ops`: cost (*, N, M) of any strides; gamma, dummy and the lengths of shape (*).
Values of gamma and of the lengths are checked here, where reading them costs nothing.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from .._checks import LARGEST_GAMMA, gamma_error
from . import distances as _cpu_costs
from . import exact as _cpu_exact
from . import smoothing as _cpu_smoothing
from .scaling import precision_of
from .solve import ALL, NOTHING, Gradients, Problem, solve
from .threads import run_chunks


def four_dimensional(x: Tensor) -> Tensor:
    """(*, N, M) as (A, B, N, M): a view unless strides of three or more dimensions forbid it."""
    if x.dim() == 4:
        return x
    if x.dim() < 4:
        return x[(None,) * (4 - x.dim())]
    # Not -1, which an empty batch leaves undetermined. reshape copies only where it must.
    return x.reshape(x.shape[0], x.shape[1:-2].numel(), *x.shape[-2:])


def as_array(x: Tensor) -> np.ndarray:
    return x.detach().numpy()


def from_array(x: np.ndarray, shape: torch.Size) -> Tensor:
    """A result. NumPy shapes it: autograd lets nobody change a view of torch in place."""
    return torch.from_numpy(x.reshape(shape))


def flat(x: Tensor | None) -> np.ndarray:
    return NOTHING if x is None else np.ascontiguousarray(as_array(x)).reshape(-1)


def one_or_all(x: Tensor | None) -> np.ndarray:
    """One entry if a single number was expanded to all pairs, else as many as there are pairs."""
    if x is not None and x.numel() > 1 and not any(x.stride()):
        return as_array(x.as_strided((1,), (1,)))
    return flat(x)


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


def problem(
    cost: Tensor,
    gamma: Tensor,
    dummy: Tensor | None,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    bandwidth: int | None,
) -> Problem:
    return Problem(
        as_array(four_dimensional(cost)),
        checked_gamma(gamma),
        one_or_all(dummy),
        checked_lengths(x_lengths, cost.shape[-2], "x_lengths"),
        checked_lengths(y_lengths, cost.shape[-1], "y_lengths"),
        # A band wider than the matrix is none, and sums with it must not overflow.
        -1 if bandwidth is None else min(bandwidth, sum(cost.shape[-2:])),
    )


def empty_like(cost: Tensor, zeros: bool) -> Tensor:
    """A matrix for every pair, laid out as the costs if that allows a four-dimensional view."""
    make = torch.zeros_like if zeros else torch.empty_like
    if cost.dim() > 4:
        return make(cost, memory_format=torch.contiguous_format)
    return make(cost)


def value(
    cost: Tensor,
    gamma: Tensor,
    dummy: Tensor | None,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    bandwidth: int | None,
) -> Tensor:
    task = problem(cost, gamma, dummy, x_lengths, y_lengths, bandwidth)
    return from_array(solve(task, None), cost.shape[:-2])


def gradient(
    cost: Tensor,
    gamma: Tensor,
    dummy: Tensor | None,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    bandwidth: int | None,
    grad_value: Tensor,
    with_parameters: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    task = problem(cost, gamma, dummy, x_lengths, y_lengths, bandwidth)
    partial = x_lengths is not None or y_lengths is not None or bandwidth is not None
    grad = empty_like(cost, zeros=partial)
    scale = flat(grad_value.to(cost.dtype))
    gradients = Gradients(scale, with_parameters, as_array(four_dimensional(grad)))
    solve(task, gradients)
    by_gamma = gradients.gamma if with_parameters else np.zeros(task.pairs)
    shape = cost.shape[:-2]
    return grad, from_array(by_gamma, shape), from_array(gradients.dummy, shape)


def hessian_product(
    cost: Tensor,
    gamma: Tensor,
    dummy: Tensor | None,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    bandwidth: int | None,
    grad_value: Tensor,
    tangent_cost: Tensor,
    tangent_gamma: Tensor,
    tangent_dummy: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    task = problem(cost, gamma, dummy, x_lengths, y_lengths, bandwidth)
    out = empty_like(cost, zeros=True)
    scale, tg, td = flat(grad_value.double()), flat(tangent_gamma), flat(tangent_dummy)
    tangent_value, out_gamma, out_dummy = np.empty((3, task.pairs))

    def work(first: int, last: int) -> None:
        _cpu_exact.hessian_product(
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


def path(
    cost: Tensor,
    dummy: Tensor | None,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    bandwidth: int | None,
) -> list[Tensor]:
    """The cheapest path of every pair as (L, 2) indices; of a weak lattice the real pairs on it;
    (0, 2) if none.
    """
    gamma = torch.zeros(cost.shape[:-2], dtype=torch.float64)
    task = problem(cost, gamma, dummy, x_lengths, y_lengths, bandwidth)
    paths = []
    for q in range(task.pairs):
        steps = np.empty((2 * (cost.shape[-2] + cost.shape[-1]) + 2, 2), dtype=np.int64)
        length = _cpu_exact.path(task.cost, task.dummy, task.n, task.m, task.bandwidth, q, steps)
        found = steps[:length][::-1]
        if dummy is not None:
            found = found[(found & 1).all(axis=1)] >> 1
        paths.append(torch.from_numpy(found.copy()))
    return paths


def smooth(
    cost: Tensor,
    gamma: Tensor,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    origin_count: float,
) -> Tensor:
    task = problem(cost, gamma, None, x_lengths, y_lengths, None)
    result = empty_like(cost, zeros=x_lengths is not None or y_lengths is not None)
    out = as_array(four_dimensional(result))
    precision, origin = precision_of(out), math.log(origin_count)
    scaling = (task.cost, task.gamma, task.n, task.m, precision.floats, precision.bounds, origin)

    def work(first: int, last: int) -> None:
        _cpu_smoothing.smooth(first, last, *scaling, out)

    run_chunks(task.groups, task.cells, work)
    hard = task.hard
    if hard.size:
        _cpu_smoothing.hard(task.cost, task.n, task.m, hard, out)
    return result


def smooth_vjp(
    cost: Tensor,
    gamma: Tensor,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    origin_count: float,
    grad_s: Tensor,
) -> tuple[Tensor, Tensor]:
    task = problem(cost, gamma, None, x_lengths, y_lengths, None)
    result = empty_like(cost, zeros=x_lengths is not None or y_lengths is not None)
    grad, adjoint = (as_array(four_dimensional(t)) for t in (result, grad_s))
    grad_gamma = np.zeros(task.pairs)
    precision, origin = precision_of(grad), math.log(origin_count)
    scaling = (task.cost, task.gamma, task.n, task.m, precision.floats, precision.bounds, origin)

    def work(first: int, last: int) -> None:
        _cpu_smoothing.smooth_vjp(first, last, *scaling, adjoint, grad, grad_gamma)

    run_chunks(task.groups, task.cells, work)
    hard = task.hard
    if hard.size:
        _cpu_smoothing.hard_vjp(task.cost, task.n, task.m, hard, adjoint, grad)
        grad_gamma[hard] = 0.0
    return result, from_array(grad_gamma, cost.shape[:-2])


def smoothed_value(
    cost: Tensor,
    gamma: Tensor,
    dummy: Tensor | None,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    origin_count: float,
) -> Tensor:
    s = smooth(cost, gamma, x_lengths, y_lengths, origin_count)
    return value(s, gamma, dummy, x_lengths, y_lengths, None)


def smoothed_gradient(
    cost: Tensor,
    gamma: Tensor,
    dummy: Tensor | None,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    origin_count: float,
    grad_value: Tensor,
    with_parameters: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    smoothing = cost, gamma, x_lengths, y_lengths, origin_count
    problem = smooth(*smoothing), gamma, dummy, x_lengths, y_lengths, None
    by_s, by_gamma, by_dummy = gradient(*problem, grad_value, with_parameters)
    by_cost, by_smoothing = smooth_vjp(*smoothing, by_s)
    return by_cost, by_gamma + by_smoothing if with_parameters else by_gamma, by_dummy


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    rows, columns = x.shape[-2], y.shape[-2]
    out = x.new_empty(*x.shape[:-1], columns)
    ax, ay, aout = (as_array(four_dimensional(t)) for t in (x, y, out))

    def work(first: int, last: int) -> None:
        _cpu_costs.squared_distances(ax, ay, first, last, aout)

    total = aout.shape[0] * aout.shape[1] * rows
    run_chunks(total, total * columns, work)
    return out
