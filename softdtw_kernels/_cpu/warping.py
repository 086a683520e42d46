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
from .results import Results, spread
from .scaling import AGAIN, FEWEST, NOT_A_NUMBER, SURE, fewest
from .solve import COPIED, solve

LARGEST, LARGEST_HARD = 1e4, 1e6  # of w in C + 2 w, which loses digits of C: over gamma, or at 0
TAKEN = 1e3  # of what is taken from a value over the value
MOST = FEWEST / 2.0  # of w in the tiers on vectors, none of whose results it certifies


def clipped(warp: np.ndarray) -> np.ndarray:
    """So that no cost of warping stands for the fewest pairs."""
    return np.clip(warp, -MOST, MOST)


def keeps_digits(warp: np.ndarray, gamma: np.ndarray) -> np.ndarray:
    """Whether C + 2 w does, of C."""
    return np.abs(warp) <= np.where(gamma > 0.0, LARGEST * gamma, LARGEST_HARD)


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
    """Some pairs, in float64, a block at a time. Not where w is so large that C + 2 w has lost
    digits of C, or the value would of itself.
    """
    n, m = task.lengths
    warp, gamma = (np.broadcast_to(a, task.pairs) for a in (task.warp, task.gamma))
    items = items[keeps_digits(warp[items], gamma[items])]
    block = max(1, COPIED // (task.cost.shape[2] * task.cost.shape[3]))
    for first in range(0, items.size, block):
        some = items[first : first + block]
        part, w = task.part(some), warp[some]
        part.cost += 2.0 * w[:, None, None]
        part.warp, theirs = NOTHING, None
        if results.scale is not None:
            scale = results.scale[some].astype(np.float64)
            theirs = Gradients(scale, results.with_settings, np.zeros_like(part.cost))
        warped = (n[some] + m[some]) * w
        values = solve(part, theirs) - warped
        kept = np.abs(warped) <= TAKEN * np.abs(values)
        kept |= np.isnan(values) | np.isposinf(values) | (w == 0.0)
        results.values[some[kept]], results.status[some[kept]] = values[kept], SURE
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
    finite = sure & (results.values < np.inf)
    results.values[finite] += (more * warp)[finite]
    if results.scale is not None:
        # A factor of inf times no step is NaN, as in torch.
        results.sums[1, finite] = (more * results.scale)[finite]
    without = np.flatnonzero(none & sure)
    results.values[without] = np.inf
    spread(results, task, without, 0.0)
    spread(results, task, np.flatnonzero(results.status == NOT_A_NUMBER), np.nan)
