"""Pairs of which one path outweighs all others, for costs are many gammas apart: what `hard` asks
about them.

Let T be the rows and columns of the lattice, more than a path has cells. There are fewer than 3^T
paths, so a cumulated value lies between that of the hard minimum and T gamma log 3 below. Where of
the three predecessors of a cell all but the cheapest are dearer by (T log 3 + 60) gamma, they weigh
less than exp(-60). If that holds all along the cheapest path, it has all of the gradient but for
T exp(-59), and the value is its cost, but for that much of gamma.

Sums are rounded, so the margin is wider. A sum of up to T costs, none below -c, is off by less than
T 2^-53 (|sum| + T c): what it is made of is at most |sum| + T c in size, and rounding is monotone,
so that the cheapest rounded sum is as near. The path is the cheapest one where the choices along it
are certain, and its cost is summed up without rounding.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from .exact import two_sum
from .expansion import WIDE, load_wide, not_above
from .hard_paths import trace
from .jit import inline, outlined, plain
from .memory import filled
from .scaling import AGAIN, SURE
from .simd import larger, like, smaller
from .sources import chosen_by_type

LOG_3, FAR = 1.1, 60.0
ROUNDED = 4.5e-16  # of 2^-53: both sums that are compared, times themselves and T c, and some more
LEAST, MOST = 1e-6, 1e300  # sizes of values, the former times gamma
WORDS = 3  # of bits that a step leaves


def margins_of(gamma: np.ndarray, cells: int, lowest: np.ndarray) -> np.ndarray:
    """Rows of the margins of the pairs, but for what goes with the sums; of this, and of the
    smallest size of their values. cells: the rows and columns; lowest: their lowest costs.
    """
    gamma = np.broadcast_to(gamma, lowest.shape)
    relative = np.full(lowest.shape, ROUNDED * cells)
    apart = (LOG_3 * cells + FAR) * gamma - relative * cells * np.minimum(lowest, 0.0)
    return np.stack((apart, relative, LEAST * gamma))


@inline
def words_of(margins):
    """Of bits that a step leaves."""
    return 2 if margins is None else WORDS


def margin_of(margins: Any, q: Any, step: Any, lanes: Any) -> Any:
    """What `least_of` takes: of one pair in all lanes, or of neighbors; None without margins."""
    raise NotImplementedError


@chosen_by_type(margin_of, returns_arrays=True)
def _margin_of(margins, q, step, lanes):
    if not isinstance(margins, types.Array):
        return lambda margins, q, step, lanes: None

    def of_pairs(margins, q, step, lanes):
        margin = filled(2 * WIDE, 0.0)
        for lane in range(lanes):
            for row in range(2):
                margin[row * WIDE + lane] = margins[row, q + lane * step]
        return margin

    return of_pairs


@inline
def least_of(diagonal, up, left, margin):
    """The cheapest predecessor, and as bits the lanes where it is that above, and that beside, and
    where another is nearer than the margin. One part each.
    """
    lower, upper = smaller(up[0], diagonal[0]), larger(up[0], diagonal[0])
    best = smaller(left[0], lower)
    second = smaller(upper, larger(left[0], lower))
    size = larger(best, like(best, 0.0) - best)
    needed = load_wide(margin, 0) + load_wide(margin, WIDE) * size
    # Where no path comes to, or NaN, all are near.
    by_up, by_left = not_above(diagonal[0], up[0]), not_above(lower, left[0])
    return (best,), ~by_up, ~by_left, ~not_above(needed, second - best)


@outlined
def finish(
    end, bits, height, stride, lane, low, cost, n, m, least, steps, with_grad, factor, clean, grad
):  # fmt: skip
    """The value of a pair, and whether its path outweighs all others; then its gradient too.

    end: the rounded value. clean: the gradient is 0 before.
    """
    if not abs(end) < MOST:
        return 0.0, AGAIN
    count = trace(bits, plain(WORDS), height, stride, lane, low, n - 1, m - 1, steps)
    total = error = rest = 0.0  # three parts, in order at the end alone: no step waits for that
    for k in range(count):
        total, e = two_sum(total, float(cost[steps[k, 0], steps[k, 1]]))
        error, e = two_sum(error, e)
        rest += e
    total, error = two_sum(total, error)
    value = total + (error + rest)
    if count == 0 or not (value == 0.0 or abs(value) > least):
        return 0.0, AGAIN
    if with_grad:
        if not clean:
            grad[:n, :m] = 0.0
        for k in range(count):
            grad[steps[k, 0], steps[k, 1]] = factor
    return value, SURE
