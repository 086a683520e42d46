"""Soft-DTW from features on the CPU: no matrix of costs, and none of their gradient.

The strips compute costs where they need them. What they do not certify in float32 they do again in
float64. What is left goes to the other tiers one block of pairs after another, with costs in
memory: gamma = 0, next to which there is nothing to fuse, and pairs that need the exact tier.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .._backends import in_shape
from .._checks import is_distance
from .._problem import FeatureProblem
from . import hard_features, strips, together
from . import solve as tiers
from .arrays import NOTHING, NUMPY_TYPE, as_array, flat, from_array, without_warnings
from .batch import Batch, Gradients
from .distances import squared_distances, squared_distances_vjp
from .feature_batch import FeatureBatch, FeatureGradients, Wanted, spread_nan
from .scaling import AGAIN, NEAR_0, NOT_A_NUMBER, near_0, precision_of, roundings
from .task import band_of, checked_gamma, checked_lengths
from .threads import run_chunks, threads_for

BLOCK = 2**22  # cells whose costs are in memory at a time
UNUSED = np.empty((0, 0, 0))


def batch_of(problem: FeatureProblem) -> FeatureBatch:
    """The problem as the kernels take it, its values checked."""
    x, y, gamma, x_lengths, y_lengths, bandwidth, kind = problem
    rows, columns = x.shape[-2], y.shape[-2]
    return FeatureBatch(
        *sequences_of(x),
        *sequences_of(y),
        is_distance(kind),
        checked_gamma(gamma),
        checked_lengths(x_lengths, rows, "x_lengths"),
        checked_lengths(y_lengths, columns, "y_lengths"),
        band_of(bandwidth, rows, columns),
    )


def sequences_of(x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Of features (*, N, D) the sequences that differ by their place in memory, and which of them
    each item has.
    """
    batch = x.shape[:-2]
    if x.is_contiguous():
        return as_array(x).reshape(batch.numel(), *x.shape[-2:]), np.arange(batch.numel())
    for k, stride in enumerate(x.stride()[:-2]):
        if stride == 0:
            x = x.narrow(k, 0, min(1, x.shape[k]))
    own = x.shape[:-2]
    of_item = np.arange(own.numel()).reshape(own)
    # A copy also where nothing broadcasts: what is read-only would need kernels of its own.
    of_item = np.array(np.broadcast_to(of_item, batch), order="C").reshape(-1)
    features = np.ascontiguousarray(as_array(x)).reshape(own.numel(), *x.shape[-2:])
    return features, of_item


@without_warnings
def solve(
    task: FeatureBatch, gradients: FeatureGradients | None, returned: bool = True
) -> np.ndarray:
    """Values of all pairs, certified if they are to be returned, and gradients if asked for.

    These are the same whether values are returned or not: those near 0, which are not certified
    beside gradients, are computed again without.
    """
    out = np.empty(task.pairs, task.x.dtype)
    if task.pairs == 0:
        return out
    in_tiers(task, gradients, out, returned and gradients is None)
    if gradients is not None and returned:
        # All that `scaling.conclude` would not have certified, and perhaps a few more.
        count = 1.000001 * roundings.py_func(task.x.shape[1], task.y.shape[1])
        again = np.flatnonzero(near_0(out, task.gamma, count) & (task.gamma > 0.0))
        if again.size:
            out[again] = solve(task.part(again), None)
    return out


def in_tiers(
    task: FeatureBatch, gradients: FeatureGradients | None, out: np.ndarray, returned: bool
) -> None:
    if not task.gamma.any():
        with_matrix(task, gradients, np.arange(task.pairs), out)
        return
    status = without_matrix(task, gradients, out, returned)
    if not status.any():
        return
    if gradients is not None:
        spread_nan(task, gradients, np.flatnonzero(status == NOT_A_NUMBER))
    again = np.flatnonzero(status == AGAIN)
    zero = np.broadcast_to(task.gamma == 0.0, task.pairs)[again]
    if task.x.dtype == np.float32:
        status[again[~zero]] = in_float64(task, gradients, again[~zero], out, returned)
        again = np.flatnonzero(status == AGAIN)
    with_matrix(task, gradients, again, out)


def without_matrix(
    task: FeatureBatch, gradients: FeatureGradients | None, out: np.ndarray, returned: bool
) -> np.ndarray:
    """Values and gradients, and which of them are certified."""
    status = np.empty(task.pairs, np.uint8)
    source = (task.x, task.x_of, task.y, task.y_of, task.distance, returned)
    common = (
        *(source, task.gamma, NOTHING, NOTHING, task.n, task.m, task.bandwidth),
        *(*precision_of(task.x).kernel_arguments, out, status),
    )
    sums = np.zeros((2, task.pairs))
    if gradients is None:
        unused = UNUSED.astype(out.dtype)
        results: tuple = (False, out, False)
        by_x, by_y = unused, unused
    else:
        results = (True, gradients.scale, gradients.with_gamma)
        by_x, by_y = gradients.x, gradients.y

    def work(first: int, last: int) -> None:
        strips.solve(first, last, *common, *results, (by_x, by_y, NOTHING, NOTHING), sums, None)

    threads, cells = threads_for(task.cells), task.cells // task.pairs
    if task.pairs < threads and cells >= tiers.SHARED:
        nx, ny, size = task.packed_sizes
        for q in range(task.pairs):
            sink = by_x, by_y, np.zeros(size * nx), np.zeros(size * ny)
            together.solve(q, task.lattice(q), threads, *common, *results, sink, sums)
    else:
        run_chunks(task.pairs, task.cells, work)
    if gradients is not None and gradients.with_gamma:
        gradients.gamma[:] = -np.log(2.0) * sums[1]
    status[status == NEAR_0] = AGAIN
    return status


def in_float64(
    task: FeatureBatch,
    gradients: FeatureGradients | None,
    items: np.ndarray,
    out: np.ndarray,
    returned: bool,
) -> np.ndarray:
    """Some pairs of a float32 problem again; returns their status."""
    if items.size == 0:
        return np.empty(0, np.uint8)
    part = task.part(items)
    part.x, part.y = part.x.astype(np.float64), part.y.astype(np.float64)
    theirs = None if gradients is None else gradients.like(items, np.dtype(np.float64))
    values = np.empty(items.size)
    status = without_matrix(part, theirs, values, returned)
    out[items] = values
    if gradients is not None and theirs is not None:
        gradients.put(items, theirs)
        spread_nan(task, gradients, items[status == NOT_A_NUMBER])
    return status


def with_matrix(
    task: FeatureBatch, gradients: FeatureGradients | None, items: np.ndarray, out: np.ndarray
) -> None:
    """Some pairs through their costs, a block of pairs at a time."""
    items = hard_features.solve(task, gradients, items, out)
    size = max(1, BLOCK // max(1, task.x.shape[1] * task.y.shape[1]))
    for first in range(0, items.size, size):
        some = items[first : first + size]
        part = task.part(some)
        x = torch.from_numpy(part.x[part.x_of])
        y = torch.from_numpy(part.y[part.y_of])
        cost = squared_distances(x, y) if part.distance else (x.double() @ -y.double().mT).to(x)
        costs = cost.numpy()[None]
        batch = Batch(costs, part.gamma, NOTHING, part.n, part.m, part.bandwidth)
        if gradients is None:
            out[some] = tiers.solve(batch, None)
            continue
        theirs = gradients.like(some, part.x.dtype)
        of_costs = Gradients(theirs.scale, theirs.with_gamma, np.zeros_like(costs))
        out[some] = tiers.solve(batch, of_costs)
        by_cost = torch.from_numpy(of_costs.cost[0])
        if part.distance:
            by_x, by_y = squared_distances_vjp(x, y, by_cost, True, True)
        else:
            minus = -by_cost.double()
            by_x, by_y = minus @ y.double(), minus.mT @ x.double()
        theirs.x, theirs.y, theirs.gamma = by_x.numpy(), by_y.numpy(), of_costs.gamma
        gradients.put(some, theirs)


def value(problem: FeatureProblem) -> Tensor:
    return from_array(solve(batch_of(problem), None), problem.x.shape[:-2])


def gradient(
    problem: FeatureProblem, grad_value: Tensor, wanted: Wanted
) -> tuple[Tensor, Tensor, Tensor]:
    """In x and y, without any feature where it is not wanted, and gamma."""
    task, scale = batch_of(problem), flat(grad_value.to(problem.x.dtype))
    gradients = FeatureGradients.room(task, scale, wanted)
    solve(task, gradients, returned=False)
    arrays = gradients.x, gradients.y, gradients.gamma
    return _as_tensors(problem, [torch.from_numpy(a) for a in arrays], wanted)


def _as_tensors(
    problem: FeatureProblem, grads: list[Tensor], wanted: Wanted
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients in the shapes of x, y and the batch."""
    by_x, by_y = (
        in_shape(grad, t.shape) if is_wanted else t.new_empty(*t.shape[:-1], 0)
        for grad, t, is_wanted in zip(grads, problem[:2], wanted, strict=False)
    )
    return by_x, by_y, in_shape(grads[2], problem.x.shape[:-2])


@without_warnings  # 0 times an infinite factor is NaN
def times(of_sum: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The gradients (P, ...) of values times their factors, from those of the sum of the values."""
    return of_sum * scale.reshape(-1, *(1,) * (of_sum.ndim - 1))


HEADER = 8  # bytes of a state before the gradients: which of them it holds


def value_and_state(problem: FeatureProblem) -> tuple[Tensor, Tensor]:
    """The value, and its gradients by what requires one, in bytes: both from one pass, and less
    than a forward pass would have to keep.
    """
    task, wanted = batch_of(problem), _requiring(problem)
    sizes = _sizes(problem, wanted)
    state = np.zeros(HEADER + sum(sizes), np.uint8)
    state[:3] = wanted
    by_gamma, by_x, by_y = _held(problem, state, sizes)
    scale = np.ones(task.pairs, task.x.dtype)
    if not wanted[2]:
        by_gamma = np.zeros(task.pairs)
    value = solve(task, FeatureGradients(scale, by_x, by_y, wanted[2], by_gamma))
    return from_array(value, problem.x.shape[:-2]), torch.from_numpy(state)


def gradient_from_state(
    problem: FeatureProblem, state: Tensor, grad_value: Tensor, wanted: Wanted
) -> tuple[Tensor, Tensor, Tensor] | None:
    """None where the state does not hold what is wanted."""
    kept = state.numpy()
    if kept.size == 0:
        return None
    held: Wanted = tuple(kept[:3].astype(bool).tolist())
    sizes = _sizes(problem, held)
    if kept.size != HEADER + sum(sizes):
        expected = HEADER + sum(sizes)
        raise ValueError(f"the state of such a call has {expected} bytes, got {kept.size}")
    if any(w and not h for w, h in zip(wanted, held, strict=True)):
        return None
    by_gamma, by_x, by_y = _held(problem, kept, sizes)
    dtype = NUMPY_TYPE[problem.x.dtype]
    scale = flat(grad_value).astype(dtype, copy=False)
    grads = (
        times(of_sum, scale) if is_wanted else of_sum
        for of_sum, is_wanted in zip((by_x, by_y), wanted, strict=False)
    )
    by_gamma = times(by_gamma, scale) if wanted[2] else np.zeros(scale.size)
    return _as_tensors(problem, [torch.from_numpy(g) for g in (*grads, by_gamma)], wanted)


def _requiring(problem: FeatureProblem) -> Wanted:
    x, y, gamma = problem[:3]
    return x.requires_grad, y.requires_grad, gamma.requires_grad


def _sizes(problem: FeatureProblem, held: Wanted) -> tuple[int, int, int]:
    """Bytes of the gradients of a state: by gamma, x and y."""
    x, y, gamma = problem[:3]
    item = x.element_size()
    return 8 * gamma.numel() * held[2], item * x.numel() * held[0], item * y.numel() * held[1]


def _held(problem: FeatureProblem, state: np.ndarray, sizes: tuple[int, int, int]) -> list:
    """The gradients of a state, by gamma, x and y, in its memory."""
    arrays, first = [], HEADER
    shapes = (-1,), (-1, *problem.x.shape[-2:]), (-1, *problem.y.shape[-2:])
    types = np.float64, *2 * (NUMPY_TYPE[problem.x.dtype],)
    for size, shape, dtype in zip(sizes, shapes, types, strict=True):
        arrays.append(state[first : first + size].view(dtype).reshape(shape))
        first += size
    return arrays
