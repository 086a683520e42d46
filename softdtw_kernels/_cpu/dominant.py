"""Pairs whose costs are many gammas apart, of sizes that the other tiers do not hold or that take
float32 to float64: one path outweighs all others, and the kernels of the hard minimum find it and
tell by what margin. See `margins`.
"""

from __future__ import annotations

import numpy as np

from . import hard
from .arrays import NOTHING, bits_of
from .batch import ALL, Batch, Gradients, part_of
from .jit import jit
from .lattice import entry
from .margins import FAR, LOG_3, margins_of
from .order import max, min
from .scaling import SURE
from .threads import run_chunks

COPIED = 2**17  # cells of small pairs that are copied at a time, so that lanes can be pairs
CHOICES = 7.0  # costs are this many times the rows and columns further apart than a margin
BLOCK = 2**17  # cells whose lowest cost is asked for at a time


def solve(
    task: Batch, gradients: Gradients | None, items: np.ndarray, out: np.ndarray, status: np.ndarray
) -> None:
    """Finish those of the pairs of which one path has nearly all of the weight."""
    items = with_margins(task, items)
    if items.size == 0:
        return
    if items.size == task.pairs or not task.small:
        solve_some(task, gradients, items, out, status)
        return
    block = max(1, COPIED // (task.cost.shape[2] * task.cost.shape[3]))
    for first in range(0, items.size, block):
        some = items[first : first + block]
        part = task.part(some)
        values, sure = out[some], status[some]
        theirs = part_of(gradients, some, part)
        solve_some(part, theirs, np.arange(some.size), values, sure)
        kept = np.flatnonzero(sure != status[some])
        if gradients is not None and theirs is not None:
            gradients.put(some[kept], theirs, task.cost.shape[1], kept)
        out[some], status[some] = values, sure


def with_margins(task: Batch, items: np.ndarray) -> np.ndarray:
    """Those of the pairs of which the first rows say that it is worth while."""
    if items.size == 0 or task.dummy.size or task.warp.size or task.open is not None:
        return items[:0]
    cells = sum(task.lattice)
    found = np.empty(items.size, np.bool_)
    find_far(task.cost, items, CHOICES * cells * (LOG_3 * cells + FAR) * task.gamma, found)
    return items if found.all() else items[found]


@jit
def find_far(cost4, items, needed, found):
    """Of some pairs, whether half of the neighbors in the first row, or in the only column, are
    further apart than what is needed.
    """
    rows, columns = cost4.shape[2:]
    for place, q in enumerate(items):
        cost, most = cost4[q // cost4.shape[1], q % cost4.shape[1]], entry(needed, q)
        far, pairs = 0, (columns if columns > 1 else rows) - 1
        for k in range(pairs):
            here, there = (
                (cost[0, k], cost[0, k + 1]) if columns > 1 else (cost[k, 0], cost[k + 1, 0])
            )
            far += abs(there - here) > most
        found[place] = 2 * far >= max(1, pairs)


@jit
def survey(bits, sign, lowest, largest):
    """Of each pair the lowest cost, and what tells of NaN: the largest of all bits but the sign.

    Bits of floats are integers in the order of the floats, but that negative ones count down: of
    integers LLVM makes vectors, of floats that may be none it does not.
    """
    nothing = sign ^ sign
    for p in range(bits.shape[0]):
        low, most = ~sign, nothing
        for k in range(bits.shape[1]):
            here = bits[p, k]
            low = min(low, here if here >= nothing else here ^ ~sign)
            most = max(most, here & ~sign)
        lowest[p] = low if low >= nothing else low ^ ~sign
        largest[p] = most


def lowest_of(task: Batch, items: np.ndarray) -> np.ndarray:
    """The lowest cost of each pair, NaN if one is none."""
    kind = task.cost.dtype
    lowest, largest = np.empty(items.size, kind), np.empty(items.size, kind)
    sign = bits_of(np.array([-0.0], kind))[0]
    block = max(1, BLOCK // (task.cost.shape[2] * task.cost.shape[3]))
    for k in range(0, items.size, block):
        costs = task.matrices(items[k : k + block])
        costs = np.ascontiguousarray(costs.reshape(len(costs), -1))
        results = lowest[k : k + block], largest[k : k + block]
        survey(bits_of(costs), sign, *map(bits_of, results))
    return np.where(np.isnan(largest), np.nan, lowest.astype(np.float64))


def solve_some(
    task: Batch, gradients: Gradients | None, items: np.ndarray, out: np.ndarray, status: np.ndarray
) -> None:
    gamma = task.gamma[items] if task.gamma.size > 1 else task.gamma
    margins = margins_of(gamma, sum(task.lattice), lowest_of(task, items))
    if items.size < task.pairs:
        theirs, margins = margins, np.full((3, task.pairs), np.nan)
        margins[:, items] = theirs
    common = (task.cost, task.dummy, task.n, task.m, task.bandwidth, hard.ONE)
    unused, values = np.empty(0, task.cost.dtype), np.empty(task.pairs)
    results: tuple = (values, status, True, False, unused, False, task.cost, NOTHING[None])
    if gradients is not None:
        to_gradients = (True, gradients.flushed_scale, False, gradients.cost, gradients.sums)
        results = (values, status, True, *to_gradients)

    def room() -> np.ndarray:
        return np.empty((sum(task.lattice), 2), np.int64)

    def many(first: int, last: int) -> None:
        hard.solve_many(first, last, *common, room(), *results, None, margins)

    def some(first: int, last: int) -> None:
        hard.solve(items[first:last], *common, room(), ALL, *results, None, margins)

    if items.size == task.pairs and task.hard_in_lanes:
        run_chunks(-(-task.pairs // hard.WIDE), task.cells, many)
    else:
        run_chunks(items.size, task.cells * items.size // task.pairs, some)
    out[items] = values[items]
    if gradients is not None and gradients.with_gamma:  # lanes may have written there
        gradients.sums[:, items[status[items] == SURE]] = 0.0
