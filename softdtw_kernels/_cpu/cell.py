"""One cell of the recursion on vectors: Z = exp(-R/g) as mantissa and integer exponent.

Z[i,j] = exp(-D[i,j]/g) (Z[i-1,j-1] + Z[i-1,j] + Z[i,j-1]), held as m 2^k with 1 <= m < 2. The
exponent is the cumulated value in units of g ln 2, exact however long the sequences; the mantissa
carries a relative error that is all but common to neighbors, so the transition weights p = Z_k /
sum keep the accuracy of single cells. The chain from cell to cell has no exponential, logarithm or
division: 2^f depends on D alone.

A forbidden cell has the exponent `floor` (and any mantissa): next to a real value it scales to
exactly 0. A cell whose exponent falls below joins the forbidden ones; `scaling.conclude` says
afterwards whether that was right.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import overload

from .floating import (
    fma,
    fms,
    fnma,
    nearest,
    power_of_two,
    scaled,
    split_exponent,
    to_float,
    to_integer,
)
from .jit import HELPER, inline
from .simd import larger, like, smaller

# 2^f on [-1/2, 1/2], Chebyshev fits: relative errors 2e-9 and 3e-18 before rounding. The first
# coefficient is left out.
POWER_32 = (
    1.0,
    0.69314720670283259577,
    0.24022650922288758071,
    0.055503272266703020589,
    0.0096180566785246380754,
    0.001340042817761583794,
    0.00015461444698569129083,
)
LOG_2_IN_32 = 0.693147182464599609375  # the float32 next to log(2)
POWER_64 = (
    1.0,
    0.69314718055994530925,
    0.24022650695910159567,
    0.055504108664821627039,
    0.0096181291075872566681,
    0.0013333558146406470697,
    0.00015403530463724354209,
    0.000015252733841556772589,
    1.3215432535912376166e-6,
    1.0178057087733941105e-7,
    7.0741942972885210056e-9,
    4.455817908336064493e-10,
)


def power_of_fraction(f: Any) -> Any:
    """2^f - 1 for -1/2 <= f <= 1/2.

    Rounded beside the 1, a factor would be off by up to 7e-8, alike in all cells of equal costs: an
    error that grows with the length of the path. Without it, and with log(2) as the sum of two
    floats, what is left is below 3e-8.
    """
    raise NotImplementedError


@overload(power_of_fraction, jit_options=HELPER | {"forceinline": True})
def _power_of_fraction(f):
    if f.dtype == types.float32:

        def evaluate(f):
            y = like(f, POWER_32[6])
            y = fma(y, f, like(f, POWER_32[5]))
            y = fma(y, f, like(f, POWER_32[4]))
            y = fma(y, f, like(f, POWER_32[3]))
            y = fma(y, f, like(f, POWER_32[2]))
            y = fma(y, f, like(f, POWER_32[1] - LOG_2_IN_32))
            return fma(f, like(f, LOG_2_IN_32), f * y)

        return evaluate

    def evaluate(f):
        y = like(f, POWER_64[11])
        y = fma(y, f, like(f, POWER_64[10]))
        y = fma(y, f, like(f, POWER_64[9]))
        y = fma(y, f, like(f, POWER_64[8]))
        y = fma(y, f, like(f, POWER_64[7]))
        y = fma(y, f, like(f, POWER_64[6]))
        y = fma(y, f, like(f, POWER_64[5]))
        y = fma(y, f, like(f, POWER_64[4]))
        y = fma(y, f, like(f, POWER_64[3]))
        y = fma(y, f, like(f, POWER_64[2]))
        y = fma(y, f, like(f, POWER_64[1]))
        return y * f

    return evaluate


def artanh(z: Any) -> Any:
    """artanh(z) for |z| <= 0.2, to a few roundings of itself however small z is."""
    raise NotImplementedError


@overload(artanh, jit_options=HELPER | {"forceinline": True})
def _artanh(z):
    terms = 5 if z.dtype == types.float32 else 11  # of the series z + z^3 / 3 + z^5 / 5 ...

    def evaluate(z):
        square = z * z
        series = like(z, 1.0 / (2 * terms - 1))
        for k in range(terms - 2, -1, -1):
            series = fma(series, square, like(z, 1.0 / (2 * k + 1)))
        return series * z

    return evaluate


@inline
def log2_of_one_plus(x):
    """log2(1 + x) for 0 <= x <= 2: a small x is not rounded away beside the 1."""
    return log2_of_product(x, like(x, 0.0))


@inline
def log2_of_product(x, exponent):
    """log2((1 + x) 2^exponent) for 0 <= x <= 2 and a whole exponent: exactly 0 where it is 0."""
    one = like(x, 1.0)
    # Beyond 0.42 the logarithm of (1 + x) / 2, so that the series converges.
    halved = smaller(nearest(x * like(x, 1.2)), one)
    z = (x - halved) / ((x + like(x, 2.0)) + halved)
    return fma(artanh(z), like(x, 2.8853900817779268), halved + exponent)


@inline
def surprise(p):
    """-p log2(p), 0 at p = 0 and at p = 1."""
    m, e = split_exponent(p)
    return (like(p, 0.0) - p) * log2_of_product(m - like(m, 1.0), to_float(e))


@inline
def entropy_of(p0, p1, p2):
    """The entropy of three probabilities in bits, to some roundings of itself however small it is:
    of the largest, -p log2(p) = (1 - q) log2(1 + q / (1 - q)) with the sum q of the others.
    """
    lower, upper = smaller(p0, p1), larger(p0, p1)
    second = smaller(upper, larger(lower, p2))
    least = smaller(lower, p2)
    others = least + second
    rest = like(p0, 1.0) - others
    return (surprise(least) + surprise(second)) + rest * log2_of_one_plus(others / rest)


@inline
def fraction(d, high, low, largest):
    """(f, k) with d (high + low) = f + k, k integral and f in -1/2 .. 1/2; d is clamped to the
    largest, NaN stays in f.

    The product is exact to twice the precision: rounded once, a cost of 1e5 gamma would lose the
    fraction. Below minus the largest the result is meaningless; it is not certified.
    """
    d = smaller(largest, d)
    k = nearest(d * high)
    return fma(d, low, fms(d, high, k)), k


@inline
def exponential(d, high, low, largest):
    """(w, k) with (1 + w) 2^k = 2^(d (high + low)) and w near 0; see fraction."""
    f, k = fraction(d, high, low, largest)
    return power_of_fraction(f), to_integer(k)


@inline
def warped_exponential(d, high, low, largest, part, whole):
    """As exponential, of a cost times the rate plus part + whole, the latter integral: the cost of
    warping, see `scaling.set_warped_rates`. With both 0 the bits are the same.
    """
    d = smaller(largest, d)
    k = nearest(fma(d, high, part))
    f = fma(d, low, fms(d, high, k) + part)
    return power_of_fraction(f), to_integer(k) + whole


@inline
def factor(d, high, low, largest):
    """exp(-d / gamma) as one number; 0 for d = +inf."""
    w, k = exponential(d, high, low, largest)
    scale = power_of_two(k)
    return fma(w, scale, scale)


@inline
def beside_the_largest(f0, f1, f2, total):
    """The sum of three factors but for the largest, which is 1; NaN if the total is."""
    smaller_ones = smaller(f0, f1) + smaller(larger(f0, f1), f2)
    return smaller_ones + (total - total)


@inline
def step(w, k, floor, m_diagonal, k_diagonal, m_up, k_up, m_left, k_left):
    """Z of the cell as (mantissa, exponent), then the three predecessors on a common scale and
    their sum.
    """
    top = larger(larger(k_diagonal, k_up), k_left)
    diagonal = scaled(m_diagonal, k_diagonal - top)
    up, left = scaled(m_up, k_up - top), scaled(m_left, k_left - top)
    total = (diagonal + up) + left
    mantissa, e = split_exponent(fma(total, w, total))
    return mantissa, larger(floor, (top + k) + e), diagonal, up, left, total


@inline
def quotient(a, b, inverse):
    """a / b rounded once, given 1 / b rounded.

    a * (1 / b) alone would be a little below 1 too often where a = b: mass lost at every cell of a
    long path.
    """
    q = a * inverse
    return fma(fnma(q, b, a), inverse, q)
