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
    needed = CHOICES * cells * (LOG_3 * cells + FAR) * task.gamma
    needed = needed[items] if needed.size > 1 else needed
    rows, columns = task.cost.shape[2:]
    costs = task.matrices(items, 1)[:, 0] if columns > 1 else task.matrices(items)[:, :, 0]
    # NumPy is slow where the loop over what is next to each other in memory is short.
    costs = np.asarray(costs, order="F" if costs.shape[0] > costs.shape[1] else "C")
    apart = np.abs(costs[:, 1:] - costs[:, :-1])
    far = np.count_nonzero(apart > needed[:, None], 1)
    return items[2 * far >= max(1, apart.shape[1])]


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
    margins = np.full((3, task.pairs), np.nan)
    gamma = task.gamma[items] if task.gamma.size > 1 else task.gamma
    margins[:, items] = margins_of(gamma, sum(task.lattice), lowest_of(task, items))
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
    if gradients is not None:  # lanes may have written there
        gradients.sums[:, items[status[items] == SURE]] = 0.0
