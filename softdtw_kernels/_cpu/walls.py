"""Pairs that hold one number of huge size, a mask of 1e30 say, beside costs that fit.

The tiers on vectors cannot hold its exponent. Where paths have to cross it, another number does: a
bar that is far above all that the other costs of a path come to, and fits.

Let H be the number, b the bar of the same sign and smaller size, S a bound on the size of the other
costs (with what a cost of warping or the price of a frame left out may add to a cell), and T the
rows and columns of the lattice, more than a path has cells. A path with l cells of H costs l H + s,
|s| <= T S. Let L be the least l of all paths, or the largest if H < 0. Since there are fewer than
3^T paths, those with other l weigh together, over those with L, less than

    3^T exp(-(|H| - 2 T S) / gamma),

which is below exp(-800), nothing in float64, if 2 T (S + gamma log 3) + 800 gamma <= |H|. The same
holds with b for H, if it holds for b. Of what is left both problems have the same paths, whose
costs differ by L (H - b), the same for all: so they have the same gradients, and values that differ
by as much. And |V_b - L b| <= T (S + gamma log 3) < |b| / 2 tells L from the value of the problem
with the bar.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from .arrays import bits_of
from .batch import Batch
from .jit import jit
from .scaling import DOUBLE, FEWEST, LOG2_E, Precision, precision_of

BLOCK = 2**20  # bytes of costs that are looked at, and copied, at a time
LONG = 2**18  # cells of a pair whose copy takes too much memory: bars are read in place of numbers
LOG_3, NOTHING_LEFT = 1.1, 800.0
LARGEST = 1e300  # of H: with T of them a value fits float64 (T is less than 1e8)


@jit
def survey(bits, sign, infinity, least, top, rest):
    """Sizes as the integers that their bits are: the largest of each pair, with its sign,
    and the second largest; the largest once more if it is not above the least, or has
    both signs. What is infinite, or no number, is passed over.
    """
    nothing = infinity ^ infinity
    for p in range(bits.shape[0]):
        most = nothing
        for i in range(bits.shape[1]):
            for j in range(bits.shape[2]):
                size = bits[p, i, j] & ~sign
                most = max(most, size if size < infinity else nothing)
        top[p] = rest[p] = most
        if most <= least[p]:
            continue
        second, positive, negative = nothing, nothing, nothing
        for i in range(bits.shape[1]):
            for j in range(bits.shape[2]):
                here = bits[p, i, j]
                size = here & ~sign
                second = max(second, size if size < most else nothing)
                positive |= here == most
                negative |= here == (most | sign)
        if positive == nothing:
            top[p] = most | sign
        if positive == nothing or negative == nothing:
            rest[p] = second


@jit
def exchange(bits, old, new, out):
    """Copy the bits of some pairs, in each of them one number for another."""
    for p in range(bits.shape[0]):
        before, after = old[p], new[p]
        for i in range(bits.shape[1]):
            for j in range(bits.shape[2]):
                here = bits[p, i, j]
                out[p, i, j] = after if here == before else here


def is_long(task: Batch) -> bool:
    """Whether bars are read, whatever the batch is: bits of a pair must not depend on it."""
    return task.cost.shape[2] * task.cost.shape[3] > LONG


def with_bars(
    task: Batch, items: np.ndarray
) -> Iterator[tuple[np.ndarray, Batch, np.ndarray, np.ndarray]]:
    """Of those of the pairs that have such a number, a block at a time: the pairs, their problem
    with bars, these, and H - b. Those of long pairs are not among them.
    """
    if is_long(task):
        return
    items = may_have_bars(task, items)
    if items.size == 0:
        return
    rows, columns = task.cost.shape[2:]
    block, room = max(1, BLOCK // (rows * columns * task.cost.itemsize)), None
    choices = _choices(task, items)
    for first in range(0, items.size, block):
        some = items[first : first + block]
        costs = np.ascontiguousarray(task.matrices(some))
        least = choices[:, first : first + block] if task.gamma.size > 1 else choices
        heights, bars = _bars(task, some, *_sizes(costs, least[0]), least)
        have = np.flatnonzero(bars)
        if have.size == 0:
            continue
        if have.size < some.size:
            some, costs, heights, bars = some[have], costs[have], heights[have], bars[have]
        if room is None:  # of one block after another
            room = np.empty((min(block, items.size), rows, columns), costs.dtype)
        part = task.part(some, room[: some.size])
        old, new = (bits_of(a.astype(costs.dtype)) for a in (heights, bars))
        exchange(bits_of(costs), old, new, bits_of(part.cost[0]))
        if part.dummy.size:
            dummy = np.broadcast_to(part.dummy, some.size)
            part.dummy = np.where(dummy == heights, bars, dummy)
        yield some, part, bars, heights - bars


def with_bars_read(
    task: Batch, items: np.ndarray
) -> tuple[np.ndarray, Batch, np.ndarray, np.ndarray]:
    """As with_bars, of long pairs: which have bars, the problem of all pairs with bars read in
    place of their numbers, these, and H - b.
    """
    rows, columns = task.cost.shape[2:]
    items = may_have_bars(task, items) if is_long(task) else items[:0]
    top, rest = np.zeros((2, items.size), task.cost.dtype)
    block, choices = max(1, BLOCK // (columns * task.cost.itemsize)), _choices(task, items)
    for k in range(items.size):
        costs = task.matrices(items[k : k + 1])
        parts = [costs[:, r : r + block] for r in range(0, rows, block)]
        sizes = [_sizes(np.ascontiguousarray(part)) for part in parts]
        tops, rests = (np.concatenate(part) for part in zip(*sizes, strict=True))
        largest = np.abs(tops).max()
        same = np.abs(tops) == largest
        top[k] = tops[same][0]
        rest[k] = np.where(same, rests, np.abs(tops)).max()
        if (tops[same] != top[k]).any():  # both signs
            rest[k] = largest
    heights, bars = _bars(task, items, top, rest, choices)
    have = np.flatnonzero(bars)
    items, heights, bars = items[have], heights[have], bars[have]
    old = np.full(task.pairs, np.nan, task.cost.dtype)
    new, dummy = old.copy(), task.dummy
    old[items], new[items] = heights, bars
    if dummy.size:
        dummy = np.broadcast_to(dummy, task.pairs).copy()
        dummy[items] = np.where(dummy[items] == heights, bars, dummy[items])
    return items, replace(task, dummy=dummy, bars=(old, new)), bars, heights - bars


def may_have_bars(task: Batch, items: np.ndarray) -> np.ndarray:
    """Of most pairs without such a number the first row tells that other costs are too large."""
    if items.size == 0 or task.warp.max(initial=0.0) >= FEWEST:
        return items[:0]
    first_rows = np.ascontiguousarray(task.matrices(items, 1))
    sizes = _sizes(first_rows)
    return items[_bars(task, items, *sizes, _choices(task, items), True)[1] != 0.0]


def _sizes(costs: np.ndarray, above: np.ndarray | float = -1.0) -> tuple[np.ndarray, np.ndarray]:
    """The largest number of each pair, of some of its costs, and the size of the next; see survey,
    which is asked about numbers above the least.
    """
    kind, pairs = costs.dtype, len(costs)
    least = np.full(pairs, above).astype(kind)
    ends = np.array([-0.0, np.inf], kind)
    top, rest = np.empty(pairs, kind), np.empty(pairs, kind)
    survey(bits_of(costs), *bits_of(ends), bits_of(least), bits_of(top), bits_of(rest))
    return top, rest


def _choices(task: Batch, items: np.ndarray) -> np.ndarray:
    """Bars that fit the precision of the costs, and float64, for each of the pairs or all."""
    gamma = task.gamma[items] if task.gamma.size > 1 else task.gamma
    span, own = sum(task.lattice), precision_of(task.cost)
    return np.stack([_bar(gamma, span, precision) for precision in (own, DOUBLE)])


def _bars(
    task: Batch,
    items: np.ndarray,
    top: np.ndarray,
    rest: np.ndarray,
    choices: np.ndarray,
    at_all: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """H of each pair, given what `_sizes` finds, and the bar that stands for it, 0 if there is
    none; or, at all, if there is none whatever H is in its other costs.
    """
    gamma, dummy, warp, price = (
        a[items] if a.size > 1 else a if a.size else np.zeros(1)
        for a in (task.gamma, task.dummy, task.warp, task.price)
    )
    span = sum(task.lattice)
    heights, others = top.astype(np.float64), rest.astype(np.float64)
    dummy = np.where(np.isfinite(dummy), dummy, 0.0)
    larger = np.abs(dummy) > np.abs(heights)
    others = np.where(larger, np.abs(heights), np.maximum(others, (dummy != heights) * abs(dummy)))
    heights = np.where(larger, dummy, heights)
    # Of a cost of warping 2 a cell are added, and 1 a frame is taken off.
    others = others + 3.0 * np.abs(warp) + np.abs(price)
    needed = 2.0 * span * (others + LOG_3 * gamma) + NOTHING_LEFT * gamma
    bars = np.zeros(items.size)
    for bar in choices:
        fits = (needed <= bar) & ((bar < np.abs(heights)) | at_all)
        bars = np.where((bars == 0.0) & fits & (np.abs(heights) < LARGEST), bar, bars)
    return heights, np.copysign(bars, heights)


def _bar(gamma: np.ndarray, span: int, precision: Precision) -> np.ndarray:
    """A path of bars stays far from the limits of exponents. A power of 2, which float32 knows."""
    largest = -precision.floor / 16.0 / span * (gamma / LOG2_E)
    bar = np.exp2(np.floor(np.log2(largest)))
    return np.where((bar > 2.0**-126) & (bar < 2.0**127), bar, 2.0 * LARGEST)


def values_without_bars(values: np.ndarray, bars: np.ndarray, more: np.ndarray) -> np.ndarray:
    """Values of the problems with H, from those with bars."""
    values = values.astype(np.float64)
    finite = np.isfinite(values)
    crossed = np.rint(np.where(finite, values, 0.0) / bars)
    return np.where(finite, (values - crossed * bars) + crossed * (more + bars), values)


def with_infinity(task: Batch, items: np.ndarray) -> np.ndarray:
    """Those of the pairs that have a cost of +inf, be it beyond their lengths."""
    block = max(1, BLOCK // (task.cost.shape[2] * task.cost.shape[3] * task.cost.itemsize))
    found = [items[:0]]
    for first in range(0, items.size, block):
        some = items[first : first + block]
        costs = task.matrices(some)
        if costs.max() < np.inf:  # of small pairs the largest of each takes ten times as long
            continue
        largest = costs.max((1, 2))
        for k in np.flatnonzero(np.isnan(largest)):
            largest[k] = np.fmax.reduce(costs[k], axis=None)
        found.append(some[largest == np.inf])
    return np.concatenate(found)
