"""One call on the CPU: the tiers that solve it.

float32 costs are computed in float32 with exponents of 32 bits. Where these do not suffice (paths
that cost more than 10^8 gamma, walls of huge costs, no path at all) the pair is done again: by the
kernels of the hard minimum if one path outweighs all others (`dominant`), with another number for
one that is huge (`walls`), in float64 with exponents of 64 bits, and last in the exact tier. None
of them copies all costs: long pairs are converted as they are read, small ones are copied a block
at a time. The hard minimum, gamma = 0, has kernels of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from .._lattice import band_limits, lattice_size
from . import dominant, exact, hard, lanes, strips, together, unbounded, walls
from .arrays import NOTHING, without_warnings
from .batch import Batch, Gradients, part_of
from .ends import ends_of
from .hard_tier import hard_minimum, prices_of
from .scaling import (
    AGAIN,
    AS_SINGLE,
    DOUBLE,
    NEAR_0,
    NOT_A_NUMBER,
    SINGLE,
    SURE,
    Precision,
    precision_of,
)
from .threads import run_chunks, threads_for

SHARED = 512**2  # cells of a pair that threads share: a strip has some tiles
COPIED = 2**17  # cells of small pairs that are copied to float64 at a time: with gradients 2 MiB
EXACT_COST = 20  # time of a cell in the exact tier over that in the others
VECTOR_COST = 3  # the same, on vectors


@without_warnings
def solve(task: Batch, gradients: Gradients | None) -> np.ndarray:
    """Values of all pairs, and their gradients if asked for."""
    out, status = np.empty(task.pairs, task.cost.dtype), np.empty(task.pairs, np.uint8)
    if task.pairs:
        in_tiers(task, gradients, out, status)
    return out


def in_tiers(task: Batch, gradients: Gradients | None, out: np.ndarray, status: np.ndarray) -> None:
    """As solve. With a cost of warping or open ends, which only the tiers on vectors know, what
    these do not certify is left to who calls: AGAIN.
    """
    knows_all = task.warp.size == 0 and task.open is None
    zeros = task.gamma.size - np.count_nonzero(task.gamma)
    if zeros == task.gamma.size:
        status[:] = AGAIN
        if knows_all:
            hard_minimum(task, gradients, np.arange(task.pairs), out, status)
        return
    vectorized(task, gradients, out, status)
    if zeros and knows_all:
        hard_minimum(task, gradients, np.flatnonzero(task.gamma == 0.0), out, status)
    if np.count_nonzero(status):
        finish(task, gradients, out, status)


def finish(task: Batch, gradients: Gradients | None, out: np.ndarray, status: np.ndarray) -> None:
    """What in_tiers does after the first tier."""
    if gradients is not None:
        spread(np.nan, task, gradients, np.flatnonzero(status == NOT_A_NUMBER))
    if task.dummy.size == 0:
        without_path(task, gradients, np.flatnonzero(status == AGAIN), out, status)
    near = np.flatnonzero(status == NEAR_0)
    status[near] = AGAIN
    dominant.solve(task, gradients, soft_of(task, status), out, status)
    near = near[status[near] == AGAIN]
    status[near] = NEAR_0  # their costs are of no size that bars are for
    with_bars(task, gradients, soft_of(task, status), out, status)
    with_bars_read(task, gradients, soft_of(task, status), out, status)
    status[near] = AGAIN
    if task.cost.dtype == np.float32:
        soft = soft_of(task, status)
        (copied_to_float64 if task.small else read_as_float64)(task, gradients, soft, out, status)
    rest = np.flatnonzero(status == AGAIN)
    if rest.size and task.warp.size == 0 and task.open is None:
        in_exact_tier(task, gradients, rest, out)
        status[rest] = SURE
    if gradients is not None:
        task.clear_beyond_band(gradients.cost, out)


def soft_of(task: Batch, status: np.ndarray) -> np.ndarray:
    """The pairs that are to be done again, but for those of gamma = 0."""
    again, hard_ones = np.flatnonzero(status == AGAIN), task.hard
    return np.setdiff1d(again, hard_ones, assume_unique=True) if hard_ones.size else again


def with_bars(
    task: Batch,
    gradients: Gradients | None,
    items: np.ndarray,
    out: np.ndarray,
    status: np.ndarray,
) -> None:
    """Finish those of the pairs that hold one number of huge size; see `walls`."""
    for some, part, bars, more in walls.with_bars(task, items):
        values, sure = np.empty(some.size, part.cost.dtype), np.empty(some.size, np.uint8)
        theirs = part_of(gradients, some, part)
        in_tiers(part, theirs, values, sure)
        kept = np.flatnonzero(sure != AGAIN)
        some = some[kept]
        out[some] = walls.values_without_bars(values, bars, more)[kept]
        status[some] = sure[kept]
        if gradients is not None and theirs is not None:
            gradients.put(some, theirs, task.cost.shape[1], kept)


def with_bars_read(
    task: Batch,
    gradients: Gradients | None,
    items: np.ndarray,
    out: np.ndarray,
    status: np.ndarray,
) -> None:
    """As with_bars, of long pairs, without a copy."""
    if items.size == 0 or not walls.is_long(task):
        return
    items, barred, bars, more = walls.with_bars_read(task, items)
    values = out.copy()
    clear_after_lanes(task, gradients, items)
    for precision in (SINGLE, AS_SINGLE) if task.cost.dtype == np.float32 else (DOUBLE,):
        again = items[status[items] == AGAIN]
        in_strips_once(barred, again, gradients, precision, values, status)
    if gradients is not None:
        spread(np.nan, task, gradients, items[status[items] == NOT_A_NUMBER])
    kept = np.flatnonzero(status[items] != AGAIN)
    out[items[kept]] = walls.values_without_bars(values[items], bars, more)[kept]


def spread(gradient: float, task: Batch, gradients: Gradients, items: np.ndarray) -> None:
    """One number as gradient of all costs of some pairs, and by the settings."""
    for q in items:
        n, m = (a[q] if a.size else None for a in (task.n, task.m))
        gradients.cost[divmod(q, task.cost.shape[1])][:n, :m] = gradient
        gradients.sums[:, q] = gradient


def without_path(
    task: Batch,
    gradients: Gradients | None,
    items: np.ndarray,
    out: np.ndarray,
    status: np.ndarray,
) -> None:
    """Finish those of the pairs that have no path: the hard minimum tells at a glance."""
    prices = prices_of(task, free=True)
    if task.open is None or task.open.repeat == "xy":
        items = walls.with_infinity(task, items)
    if items.size == 0:
        return
    counts, room = np.empty(items.size, np.int64), np.empty((0, 2), np.int64)
    common = (task.cost, task.dummy, task.n, task.m, task.bandwidth, hard.TWO, room)
    not_used: tuple = (np.empty(task.pairs), np.empty_like(status), False, False)
    not_used += (np.empty(0, task.cost.dtype), False, task.cost, NOTHING[None], prices, None)

    def work(first: int, last: int) -> None:
        hard.solve(items[first:last], *common, counts[first:last], *not_used)

    run_chunks(items.size, task.cells * items.size // task.pairs, work)
    none = items[counts == 0]
    out[none], status[none] = np.inf, SURE
    if gradients is not None:
        spread(0.0, task, gradients, none)


def arguments(
    task: Batch,
    gradients: Gradients | None,
    precision: Precision,
    out: np.ndarray,
    status: np.ndarray,
    in_lanes: bool = False,
) -> tuple:
    """What the vectorized kernels take after the first and the last of the pairs to do."""
    common = (*task.kernel_arguments, *task.settings(precision, in_lanes), out, status)
    ends = None
    if task.open is not None:
        ends = ends_of(task.open, task.gamma, task.warp, task.lattice, precision)
    if gradients is None:
        return (*common, False, out, False, task.cost, NOTHING[None], ends)  # sums: not used
    scale, with_gamma = gradients.scale, gradients.with_gamma
    return (*common, True, scale, with_gamma, gradients.cost, gradients.sums, ends)


def vectorized(
    task: Batch, gradients: Gradients | None, out: np.ndarray, status: np.ndarray
) -> None:
    """Values, and which of them (and of the gradients written) are certified."""
    precision = task.precision or precision_of(task.cost)
    in_lanes = task.in_lanes(gradients is not None and gradients.with_gamma)
    common = arguments(task, gradients, precision, out, status, in_lanes)
    if not in_lanes:
        in_strips(task, np.arange(task.pairs), common)
        return

    order = task.in_order  # here: threads would each find it, one of them after the other

    def work(first: int, last: int) -> None:
        lanes.solve(first, last, order, *common)

    run_chunks(task.groups, task.cells, work)


def in_strips(task: Batch, items: np.ndarray, common: tuple) -> None:
    """Some of the pairs; common: as `arguments` returns it.

    Threads share a pair if there are more of them than pairs, and if it is worth their while.
    """
    cells = task.cells // task.pairs
    threads = threads_for(task.cells)
    if items.size < threads and cells >= SHARED and task.open is None:
        for q in items:
            n, m = (int(a[q]) for a in task.lengths)
            rows, columns = lattice_size(n, m, weak=task.dummy.size > 0)
            low, high = band_limits(rows, columns, task.bandwidth)
            wide = columns if task.bandwidth < 0 else high - low
            together.solve(q, (rows, columns, wide), threads, *common[:-1])
        return

    def work(first: int, last: int) -> None:
        for begin, end in runs(items[first:last]):
            strips.solve(begin, end, *common)

    run_chunks(items.size, cells * items.size, work)


def in_strips_once(
    task: Batch,
    items: np.ndarray,
    gradients: Gradients | None,
    precision: Precision,
    out: np.ndarray,
    status: np.ndarray,
) -> None:
    """Some of the pairs that another tier could not certify."""
    if items.size == 0:
        return
    rounded_later = gradients is not None and precision.floats.dtype != task.cost.dtype
    to = gradients.without_scale() if gradients is not None and rounded_later else gradients
    in_strips(task, items, arguments(task, to, precision, out, status))
    status[items[status[items] == NEAR_0]] = AGAIN
    if gradients is not None and rounded_later:
        gradients.multiply(items[status[items] == SURE])


def runs(items: np.ndarray) -> Iterator[tuple[int, int]]:
    """Neighbors of the sorted pairs, as ranges."""
    if items[-1] - items[0] == items.size - 1:
        yield items[0], items[-1] + 1
        return
    for run in np.split(items, np.flatnonzero(np.diff(items) > 1) + 1):
        yield run[0], run[-1] + 1


def clear_after_lanes(task: Batch, gradients: Gradients | None, items: np.ndarray) -> None:
    """Strips write where mass flows, and lanes may have written elsewhere."""
    if gradients is not None and task.in_lanes(gradients.with_gamma):
        for q in items:
            gradients.cost[divmod(q, task.cost.shape[1])] = 0.0


def read_as_float64(
    task: Batch,
    gradients: Gradients | None,
    items: np.ndarray,
    out: np.ndarray,
    status: np.ndarray,
) -> None:
    """Some long pairs of a float32 problem again, as vectorized does them: by the kernels that read
    bars, though there are none, so that one form does both.
    """
    if items.size == 0:
        return
    no_bars = np.full(task.pairs, np.nan, task.cost.dtype)
    read = replace(task, bars=(no_bars, no_bars))
    clear_after_lanes(task, gradients, items)
    in_strips_once(read, items, gradients, AS_SINGLE, out, status)


def copied_to_float64(
    task: Batch,
    gradients: Gradients | None,
    items: np.ndarray,
    out: np.ndarray,
    status: np.ndarray,
) -> None:
    """Some small pairs of a float32 problem again, those that the exact tier has to do included.

    Vectors take neighbors in memory, which these need not be.
    """
    block = COPIED // (task.cost.shape[2] * task.cost.shape[3])
    for first in range(0, items.size, block):
        some = items[first : first + block]
        part = task.part(some)
        part.precision = AS_SINGLE
        values, sure = np.empty(some.size), np.empty(some.size, np.uint8)
        theirs = part_of(gradients, some, part)
        in_tiers(part, theirs, values, sure)
        out[some], status[some] = values, sure  # a float32 value of some 1e38 is infinite
        if gradients is not None and theirs is not None:
            gradients.put(some, theirs, task.cost.shape[1])


def in_exact_tier(
    task: Batch, gradients: Gradients | None, items: np.ndarray, out: np.ndarray
) -> None:
    """On vectors, if 1 / gamma is a float64."""
    slow = np.intersect1d(items, task.hard, assume_unique=True)
    fast = np.setdiff1d(items, slow, assume_unique=True)
    results: tuple = (out, False, out, False, task.cost, NOTHING[None])
    if gradients is not None:
        of_sum = gradients.without_scale()
        scale, with_gamma = of_sum.scale, of_sum.with_gamma
        results = (out, True, scale, with_gamma, of_sum.cost, of_sum.sums)

    def on_vectors(first: int, last: int) -> None:
        unbounded.solve(fast[first:last], *task.exact_arguments, DOUBLE.bounds, *results)

    def one_by_one(first: int, last: int) -> None:
        some = slow[first:last]
        if gradients is None:
            exact.value(*task.exact_arguments, some, out)
        else:
            exact.gradient(*task.exact_arguments, some, scale, out, gradients.cost, gradients.sums)

    cells = task.cells // task.pairs
    if fast.size:
        run_chunks(fast.size, VECTOR_COST * cells * fast.size, on_vectors)
    if slow.size:
        run_chunks(slow.size, EXACT_COST * cells * slow.size, one_by_one)
    if gradients is not None:
        gradients.multiply(items)
