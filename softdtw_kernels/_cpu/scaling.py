"""What the vectorized kernels need to know of a pair besides its costs, and what their results are
worth.

Costs enter the kernels times a rate, -log2(e) / gamma, as exponents of 2; the final cell comes out
as mantissa and exponent, with the lowest cost that was seen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from .jit import inline
from .order import max

LOG2_E = 1.4426950408889634
LOG2_E_LOW = 2.0355273740931033e-17  # log2(e) to twice the precision is LOG2_E plus this
SMALLEST_GAMMA = 1e-28  # below, 1 / gamma fits no float32, and softmin is the minimum

WARPED_ROWS = 5  # of set_warped_rates
# A cost of warping from here on stands for one beside which no other counts: of the alignments the
# kernels sum those of the fewest pairs. See `fewest`.
FEWEST = 2.0**900

ROUNDED_MORE = 2.0**-51  # of what is added to a value in float64, that this is off by

# AGAIN: not certified, another tier does it once more. NEAR_0: certified but for a value that is to
# be returned, which a wider format has to tell.
SURE, NOT_A_NUMBER, AGAIN, NEAR_0 = 0, 1, 2, 3


@dataclass(frozen=True)
class Precision:
    """Constants of the type to compute in.

    floor: the exponent of forbidden cells. limit: an exponent of a cost is clamped here, so that
    floor - limit fits the integers. rise: bound on what negative costs may add along a path.
    tiny: a smaller mass is taken for 0, so that none is subnormal and tiles with next to no mass
    are passed over; all of it together is far below any rounding. wanted: relative error of values.
    near_0: whether values near 0 are held to that, or are good to some roundings of gamma.
    """

    floats: np.ndarray  # empty: kernels read the type off it, and how high strips are (`tiles`)
    integers: np.ndarray
    floor: int
    limit: float
    rise: float
    tiny: float
    wanted: float
    near_0: bool = True

    @property
    def lanes(self) -> int:
        return 64 // self.floats.itemsize

    @property
    def bounds(self) -> tuple[float, ...]:
        unit = 2.0**-24 if self.floats.itemsize == 4 else 2.0**-53
        return self.limit, self.rise, self.tiny, self.wanted, unit * self.near_0

    @property
    def kernel_arguments(self) -> tuple:
        return self.floats, self.integers, self.floor, self.bounds

    @property
    def in_low_strips(self) -> tuple:
        """The kernel arguments for strips of one vector."""
        return self.floats.reshape(0, 0), self.integers, self.floor, self.bounds


# Places in the bounds that a kernel is given.
LIMIT, RISE, TINY, WANTED, UNIT = range(5)

SINGLE = Precision(
    np.empty(0, np.float32), np.empty(0, np.int32), -(2**30), 2.0**30 - 2**10, 2.0**27, 1e-30, 1e-6
)
DOUBLE = Precision(
    np.empty(0, np.float64),
    np.empty(0, np.int64),
    -(2**50),
    2.0**50 - 2**10,
    2.0**47,
    1e-60,
    1e-12,
)


WITHIN_GAMMA = replace(DOUBLE, near_0=False)
AS_SINGLE = replace(DOUBLE, wanted=SINGLE.wanted)  # of values that are returned as float32


def precision_of(costs: np.ndarray) -> Precision:
    return SINGLE if costs.dtype == np.float32 else DOUBLE


@inline
def usable(gamma):
    """Where 1 / gamma fits either precision; gamma = 0, the hard minimum, does not."""
    return gamma > SMALLEST_GAMMA


@inline
def product(a, b):
    """a * b as the rounded product and its error (Dekker)."""
    high = a * b
    a1, b1 = 134217729.0 * a, 134217729.0 * b
    a1, b1 = a1 - (a1 - a), b1 - (b1 - b)
    a2, b2 = a - a1, b - b1
    return high, ((a1 * b1 - high) + a1 * b2 + a2 * b1) + a2 * b2


@inline
def rate_of(gamma):
    """-log2(e) / gamma as the sum of two floats."""
    high = -LOG2_E / gamma
    # The residual of the quotient needs the product high * gamma exactly.
    back, error = product(high, gamma)
    return high, ((-LOG2_E - back) - error - LOG2_E_LOW) / gamma


@inline
def set_rates(gamma, bounds, rate, lane):
    """rate: rows of -log2(e) / gamma as the sum of two floats, and of the largest cost that is not
    clamped; here one lane of them.

    A gamma that is not usable gets the rates of 1; its results are not certified.
    """
    lanes = rate.size // 3
    high, low = rate_of(gamma if usable(gamma) else 1.0)
    rate[lane] = high
    rate[lanes + lane] = (high - rate[lane]) + low
    rate[2 * lanes + lane] = bounds[LIMIT] / abs(high)


@inline
def exponent_of_warp(gamma, warp, bounds):
    """What 2 warp, which is added to every cost, adds to its exponent: a fraction, of the precision
    of the kernel, and an integer; both 0 if they do not fit beside the exponents of costs.

    Of a path of K cells the steps that repeat a frame are 2 K less the lengths: see `conclude`.
    """
    if warp >= FEWEST:
        return 0.0, -bounds[RISE] * (warp / FEWEST - 1.0)
    if warp == 0.0 or not (usable(gamma) and warps(gamma, warp, bounds)):
        return 0.0, 0.0
    high, low = rate_of(gamma)
    exponent, error = product(2.0 * warp, high)
    whole = np.rint(exponent)
    part = (exponent - whole) + (error + 2.0 * warp * low)
    return (float(np.float32(part)) if bounds[UNIT] > 1e-12 else part), whole


def fewest(longest):
    """What stands for a cost of warping if only the alignments of the fewest pairs count. Each pair
    more costs as many binary digits as exponents can hold of a path.
    """
    return FEWEST * (1.0 + 2.0 ** -max(4, math.ceil(math.log2(longest)) - 1))


@inline
def added(warp):
    """To every cost."""
    return 0.0 if warp >= FEWEST else 2.0 * warp


@inline
def warps(gamma, warp, bounds):
    """Whether a cost of warping fits: far from the limits of exponents."""
    return abs(warp) * 2.0 * (LOG2_E / gamma) < bounds[RISE] / 16.0


@inline
def set_warped_rates(gamma, warp, bounds, rate, lane):
    """As set_rates, and two more rows: what a cost of warping adds to the exponents."""
    lanes = rate.size // WARPED_ROWS
    set_rates(gamma, bounds, rate[: 3 * lanes], lane)
    part, whole = exponent_of_warp(gamma, warp, bounds)
    rate[3 * lanes + lane], rate[4 * lanes + lane] = part, whole
    if whole != 0.0:
        rate[2 * lanes + lane] = (bounds[LIMIT] - abs(whole)) * (gamma / LOG2_E)


@inline
def out_of_range(first, last, gamma, floor, bounds):
    """Whether the costs of two cells of all paths tell that no result can be certified: as low as
    they take a path, negative costs do not lift it back.
    """
    return usable(gamma) and (first + last) * (LOG2_E / gamma) > bounds[RISE] - floor // 2


@inline
def roundings(rows, columns):
    """Of gamma, that the error of a value is not above."""
    return math.sqrt(rows + columns) + 2 * max(rows, columns)


def near_0(values: np.ndarray, gamma: np.ndarray, count: float) -> np.ndarray:
    """Which values so many roundings of gamma may change by more than their relative error."""
    bounds = precision_of(values).bounds
    found: np.ndarray = np.abs(values) * bounds[WANTED] <= bounds[UNIT] * count * gamma
    return found


@inline
def conclude(
    mantissa, exponent, lowest, nan_sum, gamma, warp, rows, columns, floor, bounds, to_return,
    more=0.0,
):  # fmt: skip
    """The value of a pair, and whether clamping and flushing at the floor changed nothing.

    With warp, 2 warp was added to every cost, and the value is less by (rows + columns) warp; it is
    more by what open ends have taken off. With FEWEST it is that of the alignments of as many pairs
    as the longer sequence has frames, and sure where all others together, however low their costs,
    are far below. What is more is rounded too, beside values that it cancels.

    nan_sum is NaN if a cost is, or if one is so low that another tier has to tell. Negative costs
    raise a flushed or clamped path by less than `rise`, so it ends below floor / 2 - rise; the true
    value lies above floor / 2, further away than any precision reaches. The error of a value is a
    rounding of gamma at each cell of a path, so values that are to be returned are not certified
    near 0; gradients are.

    Two roundings a step are counted in full, for they may all have one sign: where other paths
    weigh a little less than half a unit of the last place, each sum drops two predecessors.
    """
    if not usable(gamma):
        return 0.0, AGAIN
    rate = -LOG2_E / gamma
    if warp != 0.0 and warp < FEWEST and not warps(gamma, warp, bounds):
        return 0.0, AGAIN
    if (lowest + added(warp)) * rate * (rows + columns) >= bounds[RISE]:
        return 0.0, AGAIN
    if math.isnan(nan_sum):
        return np.nan, NOT_A_NUMBER
    part, whole = exponent_of_warp(gamma, warp, bounds)
    steps = float(max(rows, columns)) if warp >= FEWEST else 0.5 * (rows + columns)
    value = ((exponent - steps * whole) + (math.log2(mantissa) - steps * part)) / rate
    value += more
    sure = exponent > floor // 2
    if warp >= FEWEST:
        others = whole + (rows + columns) * (2.0 + max(0.0, lowest * rate))
        sure = sure and exponent - steps * whole > others + 64.0
    if not sure:
        return value, AGAIN
    # Equal only where no rounding counts.
    least = bounds[UNIT] * roundings(rows, columns) * gamma + ROUNDED_MORE * abs(more)
    good = not to_return or abs(value) * bounds[WANTED] >= least
    return value, SURE if good else NEAR_0
