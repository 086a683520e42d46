"""What the vectorized kernels need to know of a pair besides its costs, and what their results are
worth.

Costs enter the kernels times a rate, -log2(e) / gamma, as exponents of 2; the final cell comes out
as mantissa and exponent, with the lowest cost that was seen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .jit import inline

LOG2_E = 1.4426950408889634
LOG2_E_LOW = 2.0355273740931033e-17  # log2(e) to twice the precision is LOG2_E plus this
SMALLEST_GAMMA = 1e-28  # below, 1 / gamma fits no float32, and softmin is the minimum

SURE, NOT_A_NUMBER, AGAIN = 0, 1, 2  # AGAIN: not certified, another tier does it once more


@dataclass(frozen=True)
class Precision:
    """Constants of the type to compute in.

    floor: the exponent of forbidden cells. limit: an exponent of a cost is clamped here, so that
    floor - limit fits the integers. rise: bound on what negative costs may add along a path.
    tiny: a smaller mass is taken for 0, so that none is subnormal and tiles with next to no mass
    are passed over; all of it together is far below any rounding. wanted: relative error of values.
    """

    floats: np.ndarray  # empty: kernels read the type off it
    integers: np.ndarray
    floor: int
    limit: float
    rise: float
    tiny: float
    wanted: float

    @property
    def lanes(self) -> int:
        return 64 // self.floats.itemsize

    @cached_property
    def bounds(self) -> tuple[float, ...]:
        unit = float(np.finfo(self.floats.dtype).eps / 2)
        return self.limit, self.rise, self.tiny, self.wanted, unit

    @property
    def kernel_arguments(self) -> tuple:
        return self.floats, self.integers, self.floor, self.bounds


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


def precision_of(costs: np.ndarray) -> Precision:
    return SINGLE if costs.dtype == np.float32 else DOUBLE


@inline
def usable(gamma):
    """Where 1 / gamma fits either precision; gamma = 0, the hard minimum, does not."""
    return gamma > SMALLEST_GAMMA


@inline
def set_rates(gamma, bounds, rate, lane):
    """rate: rows of -log2(e) / gamma as the sum of two floats, and of the largest cost that is not
    clamped; here one lane of them.

    A gamma that is not usable gets the rates of 1; its results are not certified.
    """
    lanes = rate.size // 3
    g = gamma if usable(gamma) else 1.0
    high = -LOG2_E / g
    # The residual of the quotient needs the product high * g exactly (Dekker).
    a, b = 134217729.0 * high, 134217729.0 * g
    h1, g1 = a - (a - high), b - (b - g)
    h2, g2 = high - h1, g - g1
    product = high * g
    error = ((h1 * g1 - product) + h1 * g2 + h2 * g1) + h2 * g2
    low = ((-LOG2_E - product) - error - LOG2_E_LOW) / g
    rate[lane] = high
    rate[lanes + lane] = (high - rate[lane]) + low
    rate[2 * lanes + lane] = bounds[LIMIT] / abs(high)


@inline
def out_of_range(first, last, gamma, floor, bounds):
    """Whether the costs of two cells of all paths tell that no result can be certified: as low as
    they take a path, negative costs do not lift it back.
    """
    return usable(gamma) and (first + last) * (LOG2_E / gamma) > bounds[RISE] - floor // 2


@inline
def conclude(mantissa, exponent, lowest, nan_sum, gamma, rows, columns, floor, bounds, to_return):
    """The value of a pair, and whether clamping and flushing at the floor changed nothing.

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
    if lowest * rate * (rows + columns) >= bounds[RISE]:
        return 0.0, AGAIN
    if math.isnan(nan_sum):
        return np.nan, NOT_A_NUMBER
    value = (exponent + math.log2(mantissa)) / rate
    sure = exponent > floor // 2
    if to_return:
        rounding = bounds[UNIT] * (math.sqrt(rows + columns) + 2 * max(rows, columns))
        sure = sure and abs(value) * bounds[WANTED] > rounding * gamma
    return value, SURE if sure else AGAIN
