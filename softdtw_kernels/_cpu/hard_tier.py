"""The hard minimum, gamma = 0, of the pairs of a batch: values, gradients and cheapest paths."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from . import hard
from .arrays import NOTHING
from .batch import ALL, Batch, Gradients
from .hard_patterns import Prices
from .scaling import AGAIN, SURE
from .threads import run_chunks

STEPS = 2**16  # of paths that are found at a time
NO_PRICE = np.zeros(1)


def prices_of(task: Batch, free: bool = False) -> Prices | None:
    """What the hard minimum needs to know of a pattern; free: only which paths there are."""
    if task.open is None:
        return None
    warp, skip = (NO_PRICE, NO_PRICE) if free else (task.warp, task.open.skip)
    return Prices.of(task.open.begin, task.open.end, task.open.repeat, warp, skip)


def hard_minimum(
    task: Batch,
    gradients: Gradients | None,
    items: np.ndarray,
    out: np.ndarray,
    status: np.ndarray,
) -> None:
    """The pairs of gamma = 0. With two parts most sums are exact; the pairs of the others are done
    again with three.
    """
    all_of_them = items.size == task.pairs
    common = (task.cost, task.dummy, task.n, task.m, task.bandwidth)
    prices = prices_of(task)
    values = out if out.dtype == np.float64 else np.empty(task.pairs)
    unused = np.empty(0, task.cost.dtype)  # of the types that gradients have: one form does both
    none = (prices, None)
    results: tuple = (values, status, False, False, unused, False, task.cost, NOTHING[None], *none)
    if gradients is not None:  # which lanes may have written to, if other pairs are soft
        scale = gradients.scale if gradients.of_sum else gradients.flushed_scale
        to_gradients = (True, scale, all_of_them, gradients.cost, gradients.sums, *none)
        results = (values, status, True, *to_gradients)

    def room() -> np.ndarray:
        return np.empty((sum(task.lattice) if gradients else 0, 2), np.int64)

    def many(first: int, last: int) -> None:
        hard.solve_many(first, last, *common, hard.TWO, room(), *results)

    def some(pairs: np.ndarray, parts: tuple[int, ...]) -> None:
        def work(first: int, last: int) -> None:
            hard.solve(pairs[first:last], *common, parts, room(), ALL, *results)

        run_chunks(pairs.size, task.cells * pairs.size // task.pairs, work)

    if all_of_them and task.hard_in_lanes:
        run_chunks(-(-task.pairs // hard.WIDE), task.cells, many)
    else:
        some(items, hard.TWO)
    again = items[status[items] == AGAIN]
    if again.size:
        some(again, hard.THREE)
    status[items] = SURE
    if values is not out:
        out[items] = values[items]
    if gradients is not None:
        task.clear_beyond_band(gradients.cost, out)


def cheapest_paths(task: Batch) -> Iterator[np.ndarray]:
    """The cells of the lattice on the cheapest path of each pair, (0, 2) if there is none."""
    common = (task.cost, task.dummy, task.n, task.m, task.bandwidth)
    values, status = np.empty(task.pairs), np.empty(task.pairs, np.uint8)
    none = NOTHING[None], prices_of(task), None
    unused = np.empty(0, task.cost.dtype)
    results = (values, status, True, False, unused, False, task.cost, *none)
    room = sum(task.lattice)
    block = max(1, STEPS // room)
    for first in range(0, task.pairs, block):
        items = np.arange(first, min(task.pairs, first + block))
        steps, counts = np.empty((items.size, room, 2), np.int64), np.empty(items.size, np.int64)

        # B023: the function is done with before the loop goes on.
        def work(begin: int, end: int, parts: tuple[int, ...] = hard.TWO) -> None:
            where = steps[begin:end].reshape(-1, 2), counts[begin:end]  # noqa: B023
            hard.solve(items[begin:end], *common, parts, *where, *results)  # noqa: B023

        run_chunks(items.size, task.cells * items.size // task.pairs, work)
        for k in np.flatnonzero(counts < 0).tolist():
            work(k, k + 1, hard.THREE)
        for its, count in zip(steps, counts, strict=True):
            yield its[:count][::-1]
