"""The operators on CPU tensors, by Numba kernels.

Requirements: numba. Imported by the first call on a CPU tensor, never by `import softdtw_kernels`.
Shapes are those of `ops`: cost (*, N, M) of any strides; gamma, dummy and the lengths of shape (*).
Values of gamma and of the lengths are checked here, where reading them costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from . import _cpu_costs, _cpu_exact, _cpu_smoothing
from ._threads import run_chunks

NO_DUMMY = np.empty(0)
NO_BANDWIDTH = -1


@dataclass
class Problem:
    """One call in the form that the kernels take: four-dimensional costs and one entry a pair for all else."""

    cost: np.ndarray  # (A, B, N, M), any strides; pair q is cost[q // B, q % B]
    gamma: np.ndarray  # (P,)
    dummy: np.ndarray  # (P,), or empty for a plain lattice
    n: np.ndarray  # (P,) int64
    m: np.ndarray
    bandwidth: int

    @property
    def arguments(self) -> tuple:
        return self.cost, self.gamma, self.dummy, self.n, self.m, self.bandwidth

    @property
    def pairs(self) -> int:
        return self.gamma.size

    @property
    def cells(self) -> int:
        return int(self.n @ self.m) * (4 if self.dummy.size else 1)

    def items(self, first: int, last: int) -> np.ndarray:
        return np.arange(first, last)


def four_dimensional(x: Tensor) -> Tensor:
    """(*, N, M) as (A, B, N, M), as a view unless the strides of three or more leading dimensions forbid it."""
    if x.dim() == 4:
        return x
    if x.dim() < 4:
        return x[(None,) * (4 - x.dim())]
    try:
        return x.view(x.shape[0], -1, *x.shape[-2:])
    except RuntimeError:
        return x.reshape(x.shape[0], -1, *x.shape[-2:])


def as_array(x: Tensor) -> np.ndarray:
    return x.detach().numpy()


def flat(x: Tensor | None) -> np.ndarray:
    return NO_DUMMY if x is None else np.ascontiguousarray(as_array(x)).reshape(-1)


def checked_gamma(gamma: Tensor) -> np.ndarray:
    values = flat(gamma)
    if not np.all((values >= 0) & (values < np.inf)):
        bad = values[~((values >= 0) & (values < np.inf))][0]
        raise ValueError(
            f"gamma must be finite and at least 0 (0 is the hard DTW), got {bad}"
        )
    return values


def checked_lengths(lengths: Tensor | None, pairs: int, size: int, name: str) -> np.ndarray:
    if lengths is None:
        return np.full(pairs, size)
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
    pairs = cost.shape[:-2].numel()
    return Problem(
        as_array(four_dimensional(cost)),
        checked_gamma(gamma),
        flat(dummy),
        checked_lengths(x_lengths, pairs, cost.shape[-2], "x_lengths"),
        checked_lengths(y_lengths, pairs, cost.shape[-1], "y_lengths"),
        NO_BANDWIDTH if bandwidth is None else bandwidth,
    )


def value(
    cost: Tensor,
    gamma: Tensor,
    dummy: Tensor | None,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    bandwidth: int | None,
) -> Tensor:
    task = problem(cost, gamma, dummy, x_lengths, y_lengths, bandwidth)
    out = np.empty(task.pairs)

    def work(first: int, last: int) -> None:
        _cpu_exact.value(*task.arguments, task.items(first, last), out)

    run_chunks(task.pairs, task.cells, work)
    return torch.from_numpy(out).to(cost.dtype).view(cost.shape[:-2])


def gradient(
    cost: Tensor,
    gamma: Tensor,
    dummy: Tensor | None,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    bandwidth: int | None,
    grad_value: Tensor,
    with_gamma: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    task = problem(cost, gamma, dummy, x_lengths, y_lengths, bandwidth)
    grad = torch.zeros_like(cost)
    scale = flat(grad_value.double())
    out, grad_gamma, grad_dummy = np.empty((3, task.pairs))

    def work(first: int, last: int) -> None:
        _cpu_exact.gradient(
            *task.arguments,
            task.items(first, last),
            scale,
            out,
            as_array(four_dimensional(grad)),
            grad_gamma,
            grad_dummy,
        )

    run_chunks(task.pairs, task.cells, work)
    shape = cost.shape[:-2]
    return (
        grad,
        torch.from_numpy(grad_gamma).view(shape),
        torch.from_numpy(grad_dummy).view(shape),
    )


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
    out = torch.zeros_like(cost)
    scale, tg, td = flat(grad_value.double()), flat(tangent_gamma), flat(tangent_dummy)
    tangent_value, out_gamma, out_dummy = np.empty((3, task.pairs))

    def work(first: int, last: int) -> None:
        _cpu_exact.hessian_product(
            *task.arguments,
            task.items(first, last),
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
        torch.from_numpy(tangent_value).to(cost.dtype).view(shape),
        out,
        torch.from_numpy(out_gamma).view(shape),
        torch.from_numpy(out_dummy).view(shape),
    )


def path(
    cost: Tensor,
    dummy: Tensor | None,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    bandwidth: int | None,
) -> list[Tensor]:
    """The cheapest path of every pair as (L, 2) indices; of a weak lattice the real pairs on it; (0, 2) if none."""
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
    out = torch.zeros_like(cost)

    def work(first: int, last: int) -> None:
        _cpu_smoothing.smooth(
            task.cost,
            task.gamma,
            task.n,
            task.m,
            origin_count,
            task.items(first, last),
            as_array(four_dimensional(out)),
        )

    run_chunks(task.pairs, task.cells, work)
    return out


def smooth_vjp(
    cost: Tensor,
    gamma: Tensor,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    origin_count: float,
    grad_s: Tensor,
) -> tuple[Tensor, Tensor]:
    task = problem(cost, gamma, None, x_lengths, y_lengths, None)
    grad = torch.zeros_like(cost)
    grad_gamma = np.empty(task.pairs)

    def work(first: int, last: int) -> None:
        _cpu_smoothing.smooth_vjp(
            task.cost,
            task.gamma,
            task.n,
            task.m,
            origin_count,
            task.items(first, last),
            as_array(four_dimensional(grad_s)),
            as_array(four_dimensional(grad)),
            grad_gamma,
        )

    run_chunks(task.pairs, task.cells, work)
    return grad, torch.from_numpy(grad_gamma).view(cost.shape[:-2])


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    rows, columns = x.shape[-2], y.shape[-2]
    out = x.new_empty(*x.shape[:-1], columns)
    ax, ay, aout = (as_array(four_dimensional(t)) for t in (x, y, out))

    def work(first: int, last: int) -> None:
        _cpu_costs.squared_distances(ax, ay, first, last, aout)

    total = aout.shape[0] * aout.shape[1] * rows
    run_chunks(total, total * columns, work)
    return out
