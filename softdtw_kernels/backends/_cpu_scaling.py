"""What the vectorized kernels need besides the costs, and what their results are worth.

Everything here is NumPy on one number per pair: compiled, it would cost more time than it saves.
Costs enter the kernels times a rate, -log2(e) / gamma, as exponents of 2; the final cell comes out
as mantissa and exponent, with the lowest cost that was seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Rows of an array of geometry: lengths of the sequences, rows and columns of the lattice, smallest
# and largest column minus row inside the band (of the lattice).
N, M, ROWS, COLUMNS, LOW, HIGH = range(6)

LOG2_E = 1.4426950408889634
LOG2_E_LOW = 2.0355273740931033e-17  # log2(e) to twice the precision is LOG2_E plus this
SMALLEST_GAMMA, LARGEST_GAMMA = (
    1e-28,
    1e28,
)  # below, softmin is the minimum to any precision


def geometry(n: np.ndarray, m: np.ndarray, weak: bool, bandwidth: int) -> np.ndarray:
    """One column for each pair; no band if the bandwidth is negative."""
    rows, columns = (2 * n + 1, 2 * m + 1) if weak else (n, m)
    if bandwidth < 0:
        return np.stack([n, m, rows, columns, -rows, columns])
    low, high = np.minimum(0, m - n) - bandwidth, np.maximum(0, m - n) + bandwidth
    return np.stack([n, m, rows, columns, low, high])


@dataclass(frozen=True)
class Precision:
    """Constants of the type to compute in.

    floor: the exponent of forbidden cells. limit: an exponent of a cost is clamped here, so that
    floor - limit fits the integers. rise: bound on what negative costs may add along a path.
    tiny: a smaller mass is taken for 0, so that none is subnormal. wanted: relative error of
    values.
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

    @property
    def kernel_arguments(self) -> tuple:
        return self.floats, self.integers, self.floor, self.tiny


SINGLE = Precision(
    np.empty(0, np.float32), np.empty(0, np.int32), -(2**30), 2.0**30 - 2**10, 2.0**27, 1e-30, 1e-6
)
DOUBLE = Precision(
    np.empty(0, np.float64),
    np.empty(0, np.int64),
    -(2**50),
    2.0**50 - 2**10,
    2.0**47,
    1e-250,
    1e-12,
)


def precision_of(costs: np.ndarray) -> Precision:
    return SINGLE if costs.dtype == np.float32 else DOUBLE


def usable(gamma: np.ndarray) -> np.ndarray:
    """Where 1 / gamma fits either precision; gamma = 0, the hard minimum, does not."""
    return gamma > SMALLEST_GAMMA


def split_rates(gamma: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """-log2(e) / gamma as the sum of two floats."""
    high = -LOG2_E / gamma
    # The residual of the quotient needs the product high * gamma exactly (Dekker).
    a, b = 134217729.0 * high, 134217729.0 * gamma
    h1, g1 = a - (a - high), b - (b - gamma)
    h2, g2 = high - h1, gamma - g1
    product = high * gamma
    error = ((h1 * g1 - product) + h1 * g2 + h2 * g1) + h2 * g2
    return high, ((-LOG2_E - product) - error - LOG2_E_LOW) / gamma


def rates(gamma: np.ndarray, precision: Precision) -> np.ndarray:
    """Four rows: the two parts of the rate in the precision, smallest and largest cost unclamped.

    Pairs whose gamma is not usable get those of gamma = 1; their results are not certified.
    """
    pairs = gamma.size
    if pairs and gamma[0] == gamma.max() == gamma.min():
        gamma = gamma[:1]  # one for all: as it nearly always is
    high, low = split_rates(np.where(usable(gamma), gamma, 1.0))
    single = high.astype(precision.floats.dtype)
    bound = precision.limit / np.abs(high)
    out = np.empty((4, pairs), single.dtype)
    out[0], out[1], out[2], out[3] = single, (high - single) + low, -bound, bound
    return out


def conclude(
    found: np.ndarray,
    gamma: np.ndarray,
    longest_path: np.ndarray,
    precision: Precision,
    to_return: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Values, and which of them are certified: clamping and flushing at the floor changed nothing.

    found: rows of mantissas, exponents, lowest costs, and a sum that is NaN if a cost is. Negative
    costs raise a flushed or clamped path by less than `rise`, so it ends below floor / 2 - rise;
    the true value lies above floor / 2, further away than any precision reaches. The error of a
    value is a rounding of gamma at each cell of a path, so values that are to be returned are not
    certified near 0; gradients are.
    """
    mantissa, exponent, lowest, nan = found
    sure = usable(gamma)
    rate = -LOG2_E / np.where(sure, gamma, 1.0)
    value = (exponent + np.log2(mantissa)) / rate
    kept = (lowest * rate * longest_path < precision.rise) & (exponent > precision.floor // 2)
    if to_return:
        unit = np.finfo(precision.floats.dtype).eps / 2
        rounding = unit * (np.sqrt(longest_path) + 0.1 * longest_path)
        kept &= np.abs(value) * precision.wanted > rounding * gamma
    bad = np.isnan(nan)
    value[bad] = np.nan
    return value, sure & (kept | bad)
