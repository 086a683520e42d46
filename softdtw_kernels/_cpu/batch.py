"""A problem in the form that the kernels take, and where its gradients go."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np

from .._lattice import band_limits, lattice_size
from .arrays import NOTHING
from .ends import SUMS, Open
from .expansion import WIDE
from .factors import scale_some, scaled
from .scaling import SMALLEST_GAMMA, Precision, precision_of

ALL = np.empty(0, np.int64)  # for lengths: every sequence has the whole size
SMALL = 1600  # lattice cells of a small pair
LANES = 256**2  # lattice cells up to which lanes can be pairs
STRIP_STEP = 1.4  # time of a step of a strip of a vector's rows over that of a step of lanes
LANES_ROW = 4  # steps of lanes that the begin of a row takes as long as
FEWEST = 8  # pairs in lanes, at gamma = 0
MANY_STEPS = 1024  # of strips of one vector, for which it pays to have them compiled
STEP_OF_TWO = {4: 1.3, 8: 1.5}  # time of a step on two vectors over that on one, by itemsize
HARD_STRIP = 16  # steps of a strip that its begin takes as long as, at gamma = 0


def places_of(items: np.ndarray, columns: int) -> tuple:
    """Where pairs are in a batch of so many columns: slices if they are neighbors."""
    size = items.size
    if size and (size == 1 or (items[-1] - items[0] == size - 1 and (np.diff(items) > 0).all())):
        a, b = divmod(int(items[0]), columns)
        if columns == 1:
            return slice(a, a + size), 0
        if b + size <= columns:
            return a, slice(b, b + size)
    return np.divmod(items, columns)


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
    open: Open | None = None  # of a plain lattice without a band
    precision: Precision | None = None  # of the first tier, if not that of the costs
    # (P,) each, of the type of the costs: numbers, and those to read in place of them; see `walls`.
    bars: tuple[np.ndarray, np.ndarray] | None = None
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

    def in_low_strips(self, precision: Precision) -> bool:
        """Whether strips are as high as one vector, and not as two: where many steps are done
        sooner, as fewer lanes are outside a lattice or a band of few rows or columns.

        Bits are the same but for those of sums over cells: so it does not depend on the batch.
        """
        (rows, columns), lanes, wide = self.lattice, precision.lanes, math.inf
        if self.bandwidth >= 0:
            low, high = band_limits(rows, columns, self.bandwidth)
            wide = high - low
        one, two = (
            -(-rows // height) * (min(columns, wide + height) + height)
            for height in (lanes, 2 * lanes)
        )
        return one >= MANY_STEPS and one <= STEP_OF_TWO[precision.floats.itemsize] * two

    def settings(self, precision: Precision, in_lanes: bool) -> tuple:
        """What kernels on vectors need to know of the precision."""
        low = not in_lanes and self.in_low_strips(precision)
        return precision.in_low_strips if low else precision.kernel_arguments

    @property
    def hard_in_lanes(self) -> bool:
        """Whether lanes are pairs at gamma = 0: if that takes fewer steps. Bits are the same
        either way.
        """
        rows, columns = self.lattice
        if self.pairs < FEWEST or rows * columns > LANES:
            return False
        groups, weak = -(-self.pairs // WIDE), self.dummy.size > 0
        n, m = self.lengths
        if weak:
            n, m = 2 * n + 1, 2 * m + 1
        steps = m + np.minimum(n, WIDE) - 1
        if self.bandwidth >= 0:
            steps = np.minimum(steps, np.abs(n - m) + 2 * self.bandwidth + WIDE)
        in_strips = np.sum(-(-n // WIDE) * (steps + HARD_STRIP))
        return bool(groups * n.max() * (m.max() + LANES_ROW) <= in_strips)

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
        # By n into about the square root of the groups, each of whole groups, and by m inside each.
        n, m = self.lengths
        group = np.empty(self.pairs, np.int64)
        group[np.argsort(n, kind="stable")] = np.arange(self.pairs) // precision_of(self.cost).lanes
        parts = math.isqrt(self.groups - 1) + 1
        return np.lexsort((m, group * parts // self.groups))

    @property
    def kernel_arguments(self) -> tuple:
        """Of the kernels on vectors."""
        cost = self.cost if self.bars is None else (self.cost, *self.bars)
        return cost, self.gamma, self.warp, self.dummy, self.n, self.m, self.bandwidth

    @property
    def price(self) -> np.ndarray:
        """Of a frame that is left out, which is also one of the steps that repeat a frame less."""
        if self.open is None:
            return NOTHING
        return self.open.skip + self.warp if self.warp.size else self.open.skip

    @property
    def exact_arguments(self) -> tuple:
        """Of the exact tier, which knows no cost of warping."""
        return self.cost, self.gamma, self.dummy, self.n, self.m, self.bandwidth

    def matrices(self, items: np.ndarray, rows: int | None = None) -> np.ndarray:
        """The costs of some pairs, (P, N, M), or their first rows; a view if the pairs are
        neighbors.
        """
        cost = self.cost[:, :, :rows]
        return cost[places_of(items, cost.shape[1])]

    def part(self, items: np.ndarray, costs: np.ndarray | None = None) -> Batch:
        """Some of the pairs, with a copy of their costs in float64 if no others are given."""
        cost = (self.matrices(items).astype(np.float64) if costs is None else costs)[None]
        settings = self.gamma, self.dummy, self.warp
        gamma, dummy, warp = (a[items] if a.size > 1 else a for a in settings)
        n, m = (a[items] if a.size else a for a in (self.n, self.m))
        opened = self.open
        if opened is not None and opened.skip.size > 1:
            opened = replace(opened, skip=opened.skip[items])
        return Batch(cost, gamma, dummy, n, m, self.bandwidth, warp, opened)

    def clear_beyond_band(self, gradient: np.ndarray, values: np.ndarray) -> None:
        """0 beyond the band of the pairs whose value is NaN or -inf: all that is within their
        lengths has been made NaN.
        """
        if self.bandwidth < 0:
            return
        rows, columns = np.ogrid[: gradient.shape[2], : gradient.shape[3]]
        n, m = self.lengths
        for q in np.flatnonzero(~(values > -np.inf)):
            low, high = band_limits(int(n[q]), int(m[q]), self.bandwidth)
            matrix = gradient[divmod(q, gradient.shape[1])]
            matrix[(columns - rows < low) | (columns - rows > high)] = 0.0

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
    of_sum: bool = False  # scale is 1 everywhere
    # Rows: by the dummy cost, and entropies in bits; with open ends more, see `ends`.
    sums: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.sums = np.zeros((SUMS, self.scale.size))

    @property
    def dummy(self) -> np.ndarray:
        return self.sums[0]

    @property
    def gamma(self) -> np.ndarray:
        """dV/dgamma = - sum of the visits times the entropies, in nats."""
        return -np.log(2.0) * self.sums[1]

    @property
    def flushed_scale(self) -> np.ndarray:
        """The factors as kernels on vectors multiply by them: what is subnormal counts as 0."""
        scale = np.empty((self.scale.size, 1), self.cost.dtype)
        scaled(np.ones_like(scale), self.scale, scale)
        return scale.reshape(-1)

    def without_scale(self) -> Gradients:
        """Where the gradients of the sum of the values go: to the same arrays."""
        if self.of_sum:
            return self
        of_sum = replace(self, scale=np.ones_like(self.scale), of_sum=True)
        of_sum.sums = self.sums
        return of_sum

    def put(
        self, items: np.ndarray, part: Gradients, pairs: int, kept: np.ndarray | None = None
    ) -> None:
        """The gradients of some pairs from a part, or of those of it that are kept, times the
        factors if the part is of the sum of the values.
        """
        some = slice(None) if kept is None or kept.size == part.scale.size else kept
        costs, sums = part.cost[0, some], part.sums[:, some]
        if part.of_sum and not self.of_sum:
            scale = self.scale[items]
            # Contiguous: of others reshape makes copies, and what is written there is lost.
            mass = np.ascontiguousarray(costs, self.cost.dtype)
            costs, sums = np.empty(mass.shape, mass.dtype), np.where(sums != 0.0, sums * scale, 0.0)
            flat = len(mass), math.prod(mass.shape[1:])
            scaled(mass.reshape(flat), scale, costs.reshape(flat))
        self.cost[places_of(items, pairs)] = costs
        self.sums[:, items] = sums

    def multiply(self, items: np.ndarray) -> None:
        """What is there of some pairs, if it is the gradient of the sum of the values."""
        if items.size and not self.of_sum:
            scale_some(items, self.scale, self.cost, self.sums)


def part_of(gradients: Gradients | None, items: np.ndarray, part: Batch) -> Gradients | None:
    """Room for the gradients of some pairs, whose problem is the part. In another type they are of
    the sum of the values: as in the first tier, a gradient has the type of the costs before it is
    multiplied.
    """
    if gradients is None:
        return None
    of_sum = gradients.of_sum or part.cost.dtype != gradients.cost.dtype
    scale = np.ones(items.size, part.cost.dtype) if of_sum else gradients.scale[items]
    return Gradients(scale, gradients.with_gamma, np.zeros_like(part.cost), of_sum)
