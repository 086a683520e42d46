"""A cost of warping, and alignments of the fewest pairs, by the kernels of plain lattices.

A path of K pairs from the first to the last has 2 K - n - m steps that repeat a frame: with w for
each of them the value is that of costs C + 2 w, less (n + m) w. The tiers on vectors add 2 w to the
exponents, the others have it added to the costs, where these keep their digits.

Without the repeats of one sequence, or of both, alignments are those of the fewest pairs, as many
as the longer sequence has frames: those of a cost of warping beside which no other counts. There
are none where the longer one is that which may not be repeated.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .arrays import NOTHING
from .batch import Batch, Gradients
from .jit import jit
from .lattice import entry, length
from .results import Results, spread
from .scaling import (
    AGAIN,
    AS_SINGLE,
    DOUBLE,
    FEWEST,
    NOT_A_NUMBER,
    SURE,
    UNIT,
    WANTED,
    fewest,
    precision_of,
    roundings,
)
from .solve import COPIED, solve

ROUNDING = 2.0**-53
# Of C + 2 w over gamma, times the root of the steps: what the bars of gradients allow.
ROUNDED, ROUNDED_SINGLE = 5e-10, 5e-7
NO_ERROR = np.zeros(1)
MOST = FEWEST / 2.0  # of w in the tiers on vectors, none of whose results it certifies


def clipped(warp: np.ndarray) -> np.ndarray:
    """So that no cost of warping stands for the fewest pairs."""
    return np.clip(warp, -MOST, MOST)


def rounding_of(cost: np.ndarray, warp: np.ndarray, n: np.ndarray, m: np.ndarray) -> np.ndarray:
    """Of each pair, what C + 2 w is off by at most. cost: (P, N, M); n and m: empty, or (P,)."""
    largest = np.maximum(cost.max((1, 2)), -cost.min((1, 2)))
    if n.size or m.size or not np.isfinite(largest).all():
        size = np.where(np.isfinite(cost), np.abs(cost), 0.0)
        for axis, lengths in ((1, n), (2, m)):
            if lengths.size:  # what lies beyond may be anything
                places = np.arange(cost.shape[axis]).reshape(-1, *[1] * (2 - axis))
                size *= places < lengths[:, None, None]
        largest = size.max((1, 2))
    sizes = largest.astype(np.float64) + 2.0 * np.abs(warp)
    rounding: np.ndarray = ROUNDING * sizes * (warp != 0.0)
    return rounding


def keeps_digits(rounding: np.ndarray, gamma: np.ndarray, steps: Any, single: bool) -> np.ndarray:
    """Whether the weights of paths are those of C where all costs are off by so much. Of paths of
    so many steps these errors are not all of one sign, or change the weights of all alike. At gamma
    = 0 the least rounding may decide between two paths.
    """
    bar = (ROUNDED_SINGLE if single else ROUNDED) * gamma
    kept: np.ndarray = np.sqrt(steps) * rounding <= bar
    return kept


@jit
def add_price(value, status, price, gamma, n, m, rows, columns, bounds, errors):
    """Add prices to certified values. Returns whether they are good to their last digits still; of
    those whose digits have cancelled the status becomes AGAIN.

    errors: what the values are off by besides the roundings that `scaling.conclude` counts.
    """
    result = True
    for q in range(value.size):
        before, more = float(value[q]), entry(price, q)
        if status[q] != SURE or more == 0.0 or not before < np.inf:
            continue
        total = before + more
        count = roundings(length(n, q, rows), length(m, q, columns))
        error = bounds[UNIT] * (count * entry(gamma, q) + abs(before))
        error += ROUNDING * abs(more) + entry(errors, q)
        value[q] = total
        if not abs(total) * bounds[WANTED] >= error:
            status[q] = AGAIN
            result = False
    return result


def solve_warped(task: Batch, results: Results) -> None:
    """task: with its costs of warping."""
    results.by_tiers(task)
    again = np.flatnonzero((results.status == AGAIN) & (task.gamma > 0.0))
    if again.size:
        _with_added_cost(task, results, again)
    if results.scale is not None and results.with_settings:
        visits = results.grad.sum((2, 3), dtype=np.float64).reshape(-1)
        n, m = task.lengths
        results.sums[1] = np.where(visits == 0.0, 0.0, 2.0 * visits - (n + m) * results.scale)


def _with_added_cost(task: Batch, results: Results, items: np.ndarray) -> None:
    """Some pairs, in float64, a block at a time. Not where C + 2 w has lost digits of C or of w, or
    the value would of itself.
    """
    n, m = task.lengths
    warp, gamma = (np.broadcast_to(a, task.pairs) for a in (task.warp, task.gamma))
    single = task.cost.dtype == np.float32
    bounds = (AS_SINGLE if single else DOUBLE).bounds
    block = max(1, COPIED // (task.cost.shape[2] * task.cost.shape[3]))
    for first in range(0, items.size, block):
        some = items[first : first + block]
        lengths = (a[some] if a.size else a for a in (task.n, task.m))
        rounding = rounding_of(task.matrices(some), warp[some], *lengths)
        kept = keeps_digits(rounding, gamma[some], n[some] + m[some], single)
        some, rounding = some[kept], rounding[kept]
        if some.size == 0:
            continue
        part, w = task.part(some), warp[some]
        part.cost += 2.0 * w[:, None, None]
        part.warp, theirs = NOTHING, None
        if results.scale is not None:
            scale = results.scale[some].astype(np.float64)
            theirs = Gradients(scale, results.with_settings, np.zeros_like(part.cost))
        steps, status = n[some] + m[some], np.full(some.size, SURE, np.uint8)
        values = solve(part, theirs)
        if theirs is None:  # beside gradients nobody reads values
            limits = part.gamma, part.n, part.m, *part.lattice, bounds
            add_price(values, status, -(steps * w), *limits, steps * rounding)
        results.values[some], results.status[some] = values, status
        if theirs is not None:
            results.grad[np.divmod(some, task.cost.shape[1])] = theirs.cost[0]
            results.sums[0, some] = theirs.gamma


def repeats_of(n: Any, m: Any, repeat: str) -> tuple[Any, Any]:
    """How many frames are repeated where one sequence at most may be, and whether no alignment has
    so few repeats.
    """
    more = n - m if repeat == "y" else m - n
    return abs(more), (more < 0) | ((repeat == "") & (more != 0))


def fewest_of(task: Batch) -> np.ndarray:
    """The cost of warping that stands for the fewest pairs."""
    return np.array([fewest(max(task.cost.shape[2:]))])


def solve_fewest(task: Batch, repeat: str, warp: np.ndarray, results: Results) -> None:
    """task: the plain problem; warp: of its pairs, or of all."""
    task.warp = fewest_of(task)
    results.by_tiers(task)
    more, none = repeats_of(*task.lengths, repeat)
    sure = results.status == SURE
    if results.scale is None:  # beside gradients nobody reads values
        bounds, price = precision_of(task.cost).bounds, more * ~none * warp
        limits = task.gamma, task.n, task.m, *task.lattice, bounds
        add_price(results.values, results.status, price, *limits, NO_ERROR)
    else:
        finite = sure & (results.values < np.inf)
        # A factor of inf times no step is NaN, as in torch.
        results.sums[1, finite] = (more * results.scale)[finite]
    without = np.flatnonzero(none & sure)
    results.values[without] = np.inf
    spread(results, task, without, 0.0)
    spread(results, task, np.flatnonzero(results.status == NOT_A_NUMBER), np.nan)
