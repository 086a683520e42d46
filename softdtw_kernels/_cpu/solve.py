"""One call on the CPU: the problem in the form that the kernels take, and the tiers that solve it.

float32 costs are computed in float32 with exponents of 32 bits. Where these do not suffice (paths
that cost more than 10^8 gamma, walls of huge costs, no path at all) the pair is done again in
float64 with 64 bits, and last in the exact tier. None of them copies all costs: long pairs are
converted as they are read, small ones are copied a block at a time. The hard minimum, gamma = 0,
has kernels of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from .._lattice import band_limits, lattice_size
from . import exact, hard, lanes, strips, together, unbounded
from .scaling import AGAIN, DOUBLE, NOT_A_NUMBER, SMALLEST_GAMMA, SURE, Precision, precision_of
from .threads import run_chunks, threads_for

NOTHING = np.empty(0)
ALL = np.empty(0, np.int64)  # for lengths: every sequence has the whole size
SMALL = 1600  # lattice cells of a small pair
LANES = 256**2  # lattice cells up to which lanes can be pairs
STRIP_STEP = 1.4  # time of a step of a strip of a vector's rows over that of a step of lanes
LANES_ROW = 4  # steps of lanes that the begin of a row takes as long as
SHARED = 512**2  # cells of a pair that threads share: a strip has some tiles
COPIED = 2**17  # cells of small pairs that are copied to float64 at a time: with gradients 2 MiB
FEWEST = 8  # pairs in lanes, at gamma = 0
HARD_STRIP = 16  # steps of a strip that its begin takes as long as, at gamma = 0
STEPS = 2**16  # of paths that are found at a time
EXACT_COST = 20  # time of a cell in the exact tier over that in the others
VECTOR_COST = 3  # the same, on vectors


@dataclass
class Batch:
    """Four-dimensional costs and what goes with them, one entry for each pair or one for all."""

    cost: np.ndarray  # (A, B, N, M), any strides; pair q is cost[q // B, q % B]
    gamma: np.ndarray  # (P,) or (1,) float64, like dummy
    dummy: np.ndarray  # or empty for a plain lattice
    n: np.ndarray  # (P,) int64, or empty for all of N; like m
    m: np.ndarray
    bandwidth: int  # negative: none
    # (P,) or (1,), of a plain lattice; or empty for no cost of warping.
    warp: np.ndarray = field(default_factory=lambda: NOTHING)
    order: np.ndarray | None = field(default=None, init=False)  # what in_order has found

    @property
    def partial(self) -> bool:
        """Whether cells beyond lengths or band stay as they are."""
        return self.n.size > 0 or self.m.size > 0 or self.bandwidth >= 0

    @property
    def pairs(self) -> int:
        return self.cost.shape[0] * self.cost.shape[1]

    @property
    def lattice(self) -> tuple[int, int]:
        """Rows and columns of it."""
        rows, columns = self.cost.shape[2:]
        return lattice_size(rows, columns, weak=self.dummy.size > 0)

    @property
    def small(self) -> bool:
        return self.lattice[0] * self.lattice[1] <= SMALL

    def in_lanes(self, sums: bool) -> bool:
        """Whether the lanes of a vector are pairs, and not rows of one pair.

        What takes fewer steps: lanes do, if most of them hold pairs of like lengths, and the band
        is wide. Values and gradients have the same bits either way. Sums over cells (derivatives by
        the dummy cost and by gamma, if asked for) have not: there the choice must not depend on the
        batch.
        """
        rows, columns = self.lattice
        if sums or self.dummy.size > 0:
            return self.small
        if rows * columns > LANES:
            return False
        width = precision_of(self.cost).lanes
        if self.n.size == 0 and self.m.size == 0:
            of_strip = columns + width - 1
            if self.bandwidth >= 0:
                of_strip = min(of_strip, abs(rows - columns) + 2 * self.bandwidth + 2 * width - 1)
            steps_in_lanes = self.groups * rows * (columns + LANES_ROW)
            return steps_in_lanes <= STRIP_STEP * self.pairs * -(-rows // width) * of_strip
        n, m = self.lengths
        first_of_groups = np.arange(0, self.pairs, width)
        most_n, most_m = (np.maximum.reduceat(a[self.in_order], first_of_groups) for a in (n, m))
        in_lanes = np.sum(most_n * (most_m + LANES_ROW))
        steps = m
        if self.bandwidth >= 0:
            steps = np.minimum(m, np.abs(n - m) + 2 * self.bandwidth + width)
        in_strips = np.sum(-(-n // width) * (steps + width - 1))
        return bool(in_lanes <= STRIP_STEP * in_strips)

    @property
    def cells(self) -> int:
        """About the size of all lattices."""
        rows, columns = self.lattice
        if self.bandwidth >= 0:
            low, high = band_limits(rows, columns, self.bandwidth)
            columns = min(columns, high - low + 1)
        return self.pairs * rows * columns

    @property
    def groups(self) -> int:
        """Number of groups of pairs that share vectors."""
        return -(-self.pairs // precision_of(self.cost).lanes)

    @property
    def lengths(self) -> tuple[np.ndarray, np.ndarray]:
        """Of all pairs."""
        n, m = self.cost.shape[2:]
        return (
            np.broadcast_to(self.n if self.n.size else n, self.pairs),
            np.broadcast_to(self.m if self.m.size else m, self.pairs),
        )

    @property
    def in_order(self) -> np.ndarray:
        """All pairs, those of like lengths next to each other, so that groups waste few lanes."""
        if self.order is None:  # not functools.cached_property, whose lock a fork may leave locked
            self.order = self._in_order()
        return self.order

    def _in_order(self) -> np.ndarray:
        if self.n.size == 0 and self.m.size == 0:
            return np.arange(self.pairs)
        # By n into about the square root of the groups, and by m inside each.
        n, m = self.lengths
        place = np.empty(self.pairs, np.int64)
        place[np.argsort(n, kind="stable")] = np.arange(self.pairs)
        parts = math.isqrt(self.groups - 1) + 1
        return np.lexsort((m, place * parts // self.pairs))

    @property
    def kernel_arguments(self) -> tuple:
        """Of the kernels on vectors."""
        return self.cost, self.gamma, self.warp, self.dummy, self.n, self.m, self.bandwidth

    @property
    def exact_arguments(self) -> tuple:
        """Of the exact tier, which knows no cost of warping."""
        return self.cost, self.gamma, self.dummy, self.n, self.m, self.bandwidth

    def part(self, items: np.ndarray) -> Batch:
        """Some of the pairs, in float64."""
        cost = self.cost[np.divmod(items, self.cost.shape[1])].astype(np.float64)[None]
        settings = self.gamma, self.dummy, self.warp
        gamma, dummy, warp = (a[items] if a.size > 1 else a for a in settings)
        n, m = (a[items] if a.size else a for a in (self.n, self.m))
        return Batch(cost, gamma, dummy, n, m, self.bandwidth, warp)

    @property
    def hard(self) -> np.ndarray:
        """The pairs of a gamma that has no inverse: 0, the hard minimum, and next to it."""
        if self.gamma.size == 1:
            return np.arange(self.pairs if self.gamma[0] <= SMALLEST_GAMMA else 0)
        return np.flatnonzero(self.gamma <= SMALLEST_GAMMA)


@dataclass
class Gradients:
    """Where the gradients of `scale` times the values go."""

    scale: np.ndarray  # (P,)
    with_gamma: bool
    # (A, B, N, M). Cells beyond the lengths or the band stay as they are, and so do those without
    # mass if lanes are not pairs, or gamma is 0: zeros.
    cost: np.ndarray
    sums: np.ndarray = field(init=False)  # rows: by the dummy cost, and entropies in bits

    def __post_init__(self) -> None:
        self.sums = np.zeros((2, self.scale.size))

    @property
    def dummy(self) -> np.ndarray:
        return self.sums[0]

    @property
    def gamma(self) -> np.ndarray:
        """dV/dgamma = - sum of the visits times the entropies, in nats."""
        return -np.log(2.0) * self.sums[1]

    def put(self, items: np.ndarray, part: Gradients, pairs: int) -> None:
        self.cost[np.divmod(items, pairs)] = part.cost[0]
        self.sums[:, items] = part.sums


def solve(task: Batch, gradients: Gradients | None) -> np.ndarray:
    """Values of all pairs, and their gradients if asked for."""
    out, status = np.empty(task.pairs, task.cost.dtype), np.empty(task.pairs, np.uint8)
    if task.pairs:
        in_tiers(task, gradients, out, status)
    return out


def in_tiers(task: Batch, gradients: Gradients | None, out: np.ndarray, status: np.ndarray) -> None:
    """As solve. With a cost of warping, which only the tiers on vectors know, what these do not
    certify is left to who calls: AGAIN.
    """
    knows_all = task.warp.size == 0
    zeros = task.gamma.size - np.count_nonzero(task.gamma)
    if zeros == task.gamma.size:
        status[:] = AGAIN
        if knows_all:
            hard_minimum(task, gradients, np.arange(task.pairs), out, status)
        return
    vectorized(task, gradients, out, status)
    if zeros and knows_all:
        hard_minimum(task, gradients, np.flatnonzero(task.gamma == 0.0), out, status)
    if not np.count_nonzero(status):
        return
    if gradients is not None:
        spread(np.nan, task, gradients, np.flatnonzero(status == NOT_A_NUMBER))
    if task.dummy.size == 0:
        without_path(task, gradients, np.flatnonzero(status == AGAIN), out, status)
    if task.cost.dtype == np.float32:
        soft = np.setdiff1d(np.flatnonzero(status == AGAIN), task.hard, assume_unique=True)
        (copied_to_float64 if task.small else read_as_float64)(task, gradients, soft, out, status)
    rest = np.flatnonzero(status == AGAIN)
    if rest.size and knows_all:
        in_exact_tier(task, gradients, rest, out)
        status[rest] = SURE


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
    items = with_infinity(task, items)
    if items.size == 0:
        return
    counts, room = np.empty(items.size, np.int64), np.empty((0, 2), np.int64)
    common = (task.cost, task.dummy, task.n, task.m, task.bandwidth, hard.TWO, room)
    not_used: tuple = (np.empty_like(out), np.empty_like(status), False, False)
    not_used += (out, False, task.cost, NOTHING[None])

    def work(first: int, last: int) -> None:
        hard.solve(items[first:last], *common, counts[first:last], *not_used)

    run_chunks(items.size, task.cells * items.size // task.pairs, work)
    none = items[counts == 0]
    out[none], status[none] = np.inf, SURE
    if gradients is not None:
        spread(0.0, task, gradients, none)


def with_infinity(task: Batch, items: np.ndarray) -> np.ndarray:
    """Those of the pairs that have a cost of +inf, be it beyond their lengths."""
    block = max(1, COPIED // (task.cost.shape[2] * task.cost.shape[3]))
    found = [items[:0]]
    for first in range(0, items.size, block):
        some = items[first : first + block]
        a, b = np.divmod(some, task.cost.shape[1])
        costs = task.cost[a, b] if some.size > 1 else task.cost[a[0], b[0]][None]  # no copy
        found.append(some[np.fmax.reduce(costs, axis=(1, 2)) == np.inf])
    return np.concatenate(found)


def arguments(
    task: Batch,
    gradients: Gradients | None,
    precision: Precision,
    out: np.ndarray,
    status: np.ndarray,
) -> tuple:
    """What the vectorized kernels take after the first and the last of the pairs to do."""
    common = (*task.kernel_arguments, *precision.kernel_arguments, out, status)
    if gradients is None:
        return (*common, False, out, False, task.cost, NOTHING[None])  # the last four: not used
    scale, with_gamma = gradients.scale, gradients.with_gamma
    return (*common, True, scale, with_gamma, gradients.cost, gradients.sums)


def vectorized(
    task: Batch, gradients: Gradients | None, out: np.ndarray, status: np.ndarray
) -> None:
    """Values, and which of them (and of the gradients written) are certified."""
    common = arguments(task, gradients, precision_of(task.cost), out, status)
    in_lanes = task.in_lanes(gradients is not None and gradients.with_gamma)
    if not in_lanes:
        in_strips(task, np.arange(task.pairs), common)
        return

    def work(first: int, last: int) -> None:
        lanes.solve(first, last, task.in_order, *common)

    run_chunks(task.groups, task.cells, work)


def in_strips(task: Batch, items: np.ndarray, common: tuple) -> None:
    """Some of the pairs; common: as `arguments` returns it.

    Threads share a pair if there are more of them than pairs, and if it is worth their while.
    """
    cells = task.cells // task.pairs
    threads = threads_for(task.cells)
    if items.size < threads and cells >= SHARED:
        for q in items:
            n, m = (int(a[q]) for a in task.lengths)
            rows, columns = lattice_size(n, m, weak=task.dummy.size > 0)
            low, high = band_limits(rows, columns, task.bandwidth)
            wide = columns if task.bandwidth < 0 else high - low
            together.solve(q, (rows, columns, wide), threads, *common)
        return

    def work(first: int, last: int) -> None:
        for begin, end in runs(items[first:last]):
            strips.solve(begin, end, *common)

    run_chunks(items.size, cells * items.size, work)


def runs(items: np.ndarray) -> Iterator[tuple[int, int]]:
    """Neighbors of the sorted pairs, as ranges."""
    if items[-1] - items[0] == items.size - 1:
        yield items[0], items[-1] + 1
        return
    for run in np.split(items, np.flatnonzero(np.diff(items) > 1) + 1):
        yield run[0], run[-1] + 1


def read_as_float64(
    task: Batch,
    gradients: Gradients | None,
    items: np.ndarray,
    out: np.ndarray,
    status: np.ndarray,
) -> None:
    """Some long pairs of a float32 problem again, as vectorized does them."""
    common = arguments(task, gradients, DOUBLE, out, status)
    if gradients is not None and task.in_lanes(gradients.with_gamma):
        for q in items:  # lanes have written there, and strips write where mass flows
            gradients.cost[divmod(q, task.cost.shape[1])] = 0.0
    if items.size:
        in_strips(task, items, common)


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
        part, theirs = task.part(some), None
        values, sure = np.empty(some.size), np.empty(some.size, np.uint8)
        if gradients is not None:
            scale = gradients.scale[some].astype(np.float64)
            theirs = Gradients(scale, gradients.with_gamma, np.zeros_like(part.cost))
        in_tiers(part, theirs, values, sure)
        out[some], status[some] = values, sure
        if gradients is not None and theirs is not None:
            gradients.put(some, theirs, task.cost.shape[1])


def hard_in_lanes(task: Batch) -> bool:
    """Whether lanes are pairs where all gammas are 0: if that takes fewer steps. Bits are the same
    either way.
    """
    rows, columns = task.lattice
    if task.pairs < FEWEST or rows * columns > LANES:
        return False
    groups, weak = -(-task.pairs // hard.WIDE), task.dummy.size > 0
    n, m = task.lengths
    if weak:
        n, m = 2 * n + 1, 2 * m + 1
    steps = m + np.minimum(n, hard.WIDE) - 1
    if task.bandwidth >= 0:
        steps = np.minimum(steps, np.abs(n - m) + 2 * task.bandwidth + hard.WIDE)
    in_strips = np.sum(-(-n // hard.WIDE) * (steps + HARD_STRIP))
    return bool(groups * n.max() * (m.max() + LANES_ROW) <= in_strips)


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
    results: tuple = (out, status, False, False, out, False, task.cost, NOTHING[None])
    if gradients is not None:  # which lanes may have written to, if other pairs are soft
        to_gradients = (True, gradients.scale, all_of_them, gradients.cost, gradients.sums)
        results = (out, status, True, *to_gradients)

    def room() -> np.ndarray:
        return np.empty((sum(task.lattice) if gradients else 0, 2), np.int64)

    def many(first: int, last: int) -> None:
        hard.solve_many(first, last, *common, hard.TWO, room(), *results)

    def some(pairs: np.ndarray, parts: tuple[int, ...]) -> None:
        def work(first: int, last: int) -> None:
            hard.solve(pairs[first:last], *common, parts, room(), ALL, *results)

        run_chunks(pairs.size, task.cells * pairs.size // task.pairs, work)

    if all_of_them and hard_in_lanes(task):
        run_chunks(-(-task.pairs // hard.WIDE), task.cells, many)
    else:
        some(items, hard.TWO)
    again = items[status[items] == AGAIN]
    if again.size:
        some(again, hard.THREE)
    status[items] = SURE


def cheapest_paths(task: Batch) -> Iterator[np.ndarray]:
    """The cells of the lattice on the cheapest path of each pair, (0, 2) if there is none."""
    common = (task.cost, task.dummy, task.n, task.m, task.bandwidth)
    out, status = np.empty(task.pairs, task.cost.dtype), np.empty(task.pairs, np.uint8)
    results = (out, status, True, False, out, False, task.cost, NOTHING[None])
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


def in_exact_tier(
    task: Batch, gradients: Gradients | None, items: np.ndarray, out: np.ndarray
) -> None:
    """On vectors, if 1 / gamma is a float64."""
    slow = np.intersect1d(items, task.hard, assume_unique=True)
    fast = np.setdiff1d(items, slow, assume_unique=True)
    results: tuple = (out, False, out, False, task.cost, NOTHING[None])
    if gradients is not None:
        scale, with_gamma = gradients.scale, gradients.with_gamma
        results = (out, True, scale, with_gamma, gradients.cost, gradients.sums)

    def on_vectors(first: int, last: int) -> None:
        unbounded.solve(fast[first:last], *task.exact_arguments, DOUBLE.bounds, *results)

    def one_by_one(first: int, last: int) -> None:
        some = slow[first:last]
        if gradients is None:
            exact.value(*task.exact_arguments, some, out)
        else:
            scale, grad, sums = gradients.scale, gradients.cost, gradients.sums
            exact.gradient(*task.exact_arguments, some, scale, out, grad, sums)

    cells = task.cells // task.pairs
    if fast.size:
        run_chunks(fast.size, VECTOR_COST * cells * fast.size, on_vectors)
    if slow.size:
        run_chunks(slow.size, EXACT_COST * cells * slow.size, one_by_one)
