"""Open ends in the kernels of plain lattices: what these ask about them.

A path may begin at any pair of the first row if first frames of y may be left out, at the price q
each: with a weight r^j, r = exp(-q / gamma). To a kernel that is a border above the first row whose
cells have the weights r^(j + 1), in place of none. A pair (0, j) then has two predecessors there,
with the sum (1 + r) r^j, or one if x has no repeats. So all weights are too large by one factor,
which is taken off the value: no cell is computed otherwise. The same in columns for x. With both,
the corner has what is missing: 1 - r, or 1.

At the end the cells of the last row, of the last column or of both are added up with their weights.
From there mass flows backward. The kernels that take `ends` are compiled once more for them; to
others None is passed, and what is asked here is left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from .arrays import without_warnings
from .exact import two_sum
from .floating import scaled, split_exponent
from .jit import inline
from .scaling import DOUBLE, LOG2_E, LOG2_E_LOW, SINGLE, Precision, product, usable
from .simd import larger, like, load, store

# Rows of the sums that the kernels return with open ends, after those of dummies and entropies: of
# the frames left out at the end; of the mass that has begun above the first row, and of the same
# times the places of the border, from 1 on; the same beside the first column.
LEFT_OUT, ABOVE, ABOVE_PLACES, BESIDE, BESIDE_PLACES = range(2, 7)
SUMS = 7

BLOCK = 16  # ends that are added up together


@dataclass(frozen=True)
class Open:
    """What a call says of its ends."""

    begin: str  # whose first frames may be left out
    end: str  # whose last ones
    repeat: str  # whose frames may be matched more than once
    skip: np.ndarray  # (P,) or (1,), the price of a frame left out


Logs = tuple[np.ndarray, np.ndarray]  # of base 2: what is meant is the sum of both


class Ends(NamedTuple):
    """The same for the kernels: weights m 2^k in their types, of every pair or once for all."""

    above_m: np.ndarray  # of the corner, and above each column
    above_k: np.ndarray
    beside_m: np.ndarray  # of the corner, beside each row, and zeros for the lanes beyond
    beside_k: np.ndarray
    beyond_m: np.ndarray  # of 0, 1, 2 ... frames that are left out at the end
    beyond_k: np.ndarray
    price: np.ndarray  # of a frame; -inf where these kernels do not know the weights
    more: np.ndarray  # what the factor has taken off the value
    of_begin: tuple[bool, bool]  # whether of x, of y
    of_end: tuple[bool, bool]
    most_up: int  # exponents of the steps that repeat y: those of forbidden cells, or any
    most_left: int  # x
    most_columns: int  # of a pair


class Opened(NamedTuple):
    """Of a pair in strips."""

    ends: Ends
    rows: int
    columns: int
    beside: int  # where its entries begin in beside_m
    found_m: np.ndarray  # of the cells of the last row, and from most_columns on of the last column
    found_k: np.ndarray
    given: np.ndarray  # the mass that flows from them
    weights_m: np.ndarray  # of what is left out behind them
    weights_k: np.ndarray
    shown_k: np.ndarray  # exponents of the cells of a chunk of steps
    sums: np.ndarray


@inline
def entries_at(values, ends, q):
    """Where the entries of a pair begin."""
    return min(q, ends.price.size - 1) * (values.size // ends.price.size)


@inline
def set_border(border_m, border_k, ends, q):
    """The border above the first row."""
    at, size = entries_at(ends.above_m, ends, q), ends.above_m.size // ends.price.size
    for c in range(min(size, border_m.size)):
        border_m[c], border_k[c] = ends.above_m[at + c], ends.above_k[at + c]


@inline
def set_corner(border_m, border_k, opened, row):
    """What is left of the border above a row that is not the first."""
    border_m[0] = opened.ends.beside_m[opened.beside + row]
    border_k[0] = opened.ends.beside_k[opened.beside + row]


@inline
def ends_between(opened, row, lanes, t0, t1):
    """The steps of a strip at which a path may end, of those from t0 to t1: in the last row, at
    (step - end), and in the last column, where the lane is step - columns + 1.
    """
    ends, rows, columns = opened.ends, opened.rows, opened.columns
    end = rows - 1 - row
    y0 = y1 = x0 = x1 = 0
    if end < lanes:
        y0 = max(t0, end if ends.of_end[1] else end + columns - 1)
        y1 = max(y0, min(t1, end + columns))
    if ends.of_end[0]:
        x0 = max(t0, columns - 1)
        x1 = max(x0, min(t1, columns - 1 + min(lanes, end)))
    return end, y0, y1, x0, x1


@inline
def has_ends(opened, row, lanes, t0, t1):
    _, y0, y1, x0, x1 = ends_between(opened, row, lanes, t0, t1)
    return y0 < y1 or x0 < x1


@inline
def find_ends(opened, shown_m, row, lanes, t0, t1):
    """Keep the cells at which a path may end, of those of a chunk of steps."""
    end, y0, y1, x0, x1 = ends_between(opened, row, lanes, t0, t1)
    columns, m, k = opened.columns, opened.found_m, opened.found_k
    for t in range(y0, y1):
        at = (t - t0) * lanes + end
        m[t - end], k[t - end] = shown_m[at], opened.shown_k[at]
    for t in range(x0, x1):
        lane = t - (columns - 1)
        at, to = (t - t0) * lanes + lane, opened.ends.most_columns + row + lane
        m[to], k[to] = shown_m[at], opened.shown_k[at]


@inline
def give_ends(opened, mass, row, lanes, t0, t1):
    """The mass that flows from the ends among the cells of a chunk of steps."""
    end, y0, y1, x0, x1 = ends_between(opened, row, lanes, t0, t1)
    for k in range((t1 - t0) * lanes):
        mass[k] = 0.0
    for t in range(y0, y1):
        mass[(t - t0) * lanes + end] = opened.given[t - end]
    for t in range(x0, x1):
        lane = t - (opened.columns - 1)
        mass[(t - t0) * lanes + lane] = opened.given[opened.ends.most_columns + row + lane]


@inline
def is_given(opened, row, lanes, t0, t1):
    """Whether mass flows from ends in these steps."""
    end, y0, y1, x0, x1 = ends_between(opened, row, lanes, t0, t1)
    for t in range(y0, y1):
        if opened.given[t - end] > 0.0:
            return True
    for t in range(x0, x1):
        lane = t - (opened.columns - 1)
        if opened.given[opened.ends.most_columns + row + lane] > 0.0:
            return True
    return False


@inline
def add_begun(opened, mass, row, lanes, t0, t1):
    """What has begun beside the rows of a strip, but for its first: it has flown to the column
    before the first, to which the chunk of steps from t0 to t1 has come.
    """
    if opened.ends.of_begin[0]:
        for t in range(t0, min(t1, lanes - 1)):
            e = float(mass[(t - t0) * lanes + t + 1])
            opened.sums[BESIDE] += e
            opened.sums[BESIDE_PLACES] += (row + t + 2) * e


@inline
def set_weights(
    ends, q, rows, columns, weights_m, weights_k, found_m, found_k, floor, lane, lanes
):  # fmt: skip
    """The weights of the frames that are left out behind each cell of the last row and, from
    most_columns on, of the last column. Those of forbidden cells where no path may end; what an
    earlier pair has left there, of exponents far above all, is forgotten.
    """
    at, most_columns = entries_at(ends.beyond_m, ends, q), ends.most_columns
    for c in range(lane, weights_m.size, lanes):
        weights_m[c], weights_k[c] = 1.0, floor
    for j in range(0 if ends.of_end[1] else columns - 1, columns):
        to, out = j * lanes + lane, at + columns - 1 - j
        weights_m[to], weights_k[to] = ends.beyond_m[out], ends.beyond_k[out]
    for i in range(rows - 1 if ends.of_end[0] else 0):
        to, out = (most_columns + i) * lanes + lane, at + rows - 1 - i
        weights_m[to], weights_k[to] = ends.beyond_m[out], ends.beyond_k[out]
    for c in range(lane, weights_m.size, lanes):
        if weights_k[c] <= floor:
            found_m[c], found_k[c] = 1.0, floor


@inline
def sum_of_blocks(values, first, last, total):
    """The total and the values of some ends of each lane. By blocks, the roundings of which are
    fewer than those of one long sum.
    """
    lanes = 64 // values.itemsize
    for c in range(first, last, BLOCK * lanes):
        part = like(total, 0.0)
        for k in range(c, min(last, c + BLOCK * lanes), lanes):
            part = part + load(values, k)
        total = total + part
    return total


@inline
def sum_across(values, first, last, total):
    """As sum_of_blocks, to the same bits, where the ends of one pair follow each other."""
    for c in range(first, last, BLOCK):
        part = values[first] - values[first]
        for k in range(c, min(last, c + BLOCK)):
            part += values[k]
        total += part
    return total


@inline
def weigh_ends(
    found_m, found_k, weights_m, weights_k, given, floor, most_columns, across
):  # fmt: skip
    """The sums of the ends of each lane, or across the lanes, as mantissas and exponents; the share
    of each end in given.
    """
    lanes = 64 // found_m.itemsize
    bottom = like(load(found_k, 0), floor)
    top = bottom
    for c in range(0, found_m.size, lanes):
        m, e = split_exponent(load(found_m, c) * load(weights_m, c))
        k = larger(bottom, load(found_k, c) + load(weights_k, c)) + e
        store(found_m, c, m)
        store(found_k, c, k)
        top = larger(top, k)
    if across:
        store(weights_k, 0, top)
        most = weights_k[0]
        for lane in range(lanes):
            most = max(most, weights_k[lane])
        top = like(top, most)
    total = like(load(given, 0), 0.0)
    for c in range(0, found_m.size, lanes):
        weight = scaled(load(found_m, c), load(found_k, c) - top)
        store(given, c, weight)
    if across:
        of_row = sum_across(given, 0, most_columns, given[0] - given[0])
        total = like(total, sum_across(given, most_columns, given.size, of_row))
    else:
        of_row = sum_of_blocks(given, 0, most_columns * lanes, total)
        total = sum_of_blocks(given, most_columns * lanes, given.size, of_row)
    for c in range(0, found_m.size, lanes):
        store(given, c, load(given, c) / total)
    mantissa, e = split_exponent(total)
    return mantissa, top + e


@inline
def mean_of_ends(ends, rows, columns, given, lane, lanes):
    """How many frames are left out behind the ends, and the entropy of their shares in bits."""
    skipped = bits = 0.0
    for c in range(columns + rows - 1):
        at, left_out = c, columns - 1 - c
        if c >= columns:
            at, left_out = ends.most_columns + c - columns, rows - 1 - (c - columns)
        share = float(given[at * lanes + lane])
        if share > 0.0:
            skipped += share * left_out
            bits -= share * math.log2(share)
    return skipped, bits


def ends_of(
    given: Open, gamma: np.ndarray, warp: np.ndarray, sizes: tuple[int, int], precision: Precision
) -> Ends:
    """gamma and warp: (P,) or (1,), the latter may be empty; sizes: of the matrices."""
    skip, warp = given.skip, warp if warp.size else np.zeros(1)
    if gamma.size == skip.size == warp.size == 1:
        settings = float(gamma[0]), float(skip[0]), float(warp[0])
        return _for_all(given.begin, given.end, given.repeat, *settings, sizes, precision.lanes)
    return _for_each(given, gamma, warp, sizes, precision)


@lru_cache(maxsize=64)  # small arrays, which take longer to make than small calls
def _for_all(
    begin: str,
    end: str,
    repeat: str,
    gamma: float,
    skip: float,
    warp: float,
    sizes: tuple[int, int],
    lanes: int,
) -> Ends:
    precision = SINGLE if lanes == SINGLE.lanes else DOUBLE
    given = Open(begin, end, repeat, np.array([skip]))
    return _for_each(given, np.array([gamma]), np.array([warp]), sizes, precision)


@without_warnings
def _for_each(
    given: Open, gamma: np.ndarray, warp: np.ndarray, sizes: tuple[int, int], precision: Precision
) -> Ends:
    rows, columns = sizes
    soft = np.where(usable.py_func(gamma), gamma, 1.0)
    price, lost = two_sum.py_func(given.skip, warp)
    log_r = _log_of_price(soft, price, lost)
    rising = log_r[0] > 0.0
    up, left = "y" in given.repeat, "x" in given.repeat
    of_x, of_y = "x" in given.begin, "y" in given.begin
    # log(1 + r) is log r, where that is above 0, and this.
    beside_the_larger = np.log2(1.0 + np.exp2(-np.abs(log_r[0])))
    summed = (of_y and up) or (of_x and left)
    log_corner = np.zeros_like(log_r[0])
    if of_y and up and of_x and left:
        # NaN where r > 1, which may be beyond float64.
        log_corner = np.log2(-np.expm1(log_r[0] * np.log(2.0)))
    nothing = np.zeros_like(log_r[0])
    nowhere = np.full((log_r[0].shape[0], precision.lanes * 2), -np.inf)

    def border(size: int, is_open: bool, repeats: bool) -> Logs:
        """r^k, times 1 + r if others have that sum and these do not."""
        if not is_open:
            none = np.full((log_r[0].shape[0], size), -np.inf)
            return none, np.zeros_like(none)
        alone = summed and not repeats
        high, low = _times(log_r, np.arange(1, size + 1) + (rising & alone))
        return high, low + alone * beside_the_larger

    def joined(*parts: Logs) -> Logs:
        high, low = (np.hstack(part) for part in zip(*parts, strict=True))
        return high, low

    corner, outside = (log_corner, nothing), (nowhere, np.zeros_like(nowhere))
    above = joined(corner, border(columns, of_y, up))
    beside = joined(corner, border(rows, of_x, left), outside)
    beyond = _times(log_r, np.arange(max(rows, columns)))
    more = np.maximum(-price, 0.0) + soft * np.log(2.0) * beside_the_larger[:, 0]
    return Ends(
        *_numbers(above, precision),
        *_numbers(beside, precision),
        *_numbers(beyond, precision),
        np.where(np.isnan(log_corner), -np.inf, np.reshape(price, (-1, 1)))[:, 0],
        more if summed else np.zeros_like(more),
        (of_x, of_y),
        ("x" in given.end, "y" in given.end),
        -precision.floor if up else precision.floor,
        -precision.floor if left else precision.floor,
        columns,
    )


def _log_of_price(gamma: np.ndarray, price: np.ndarray, lost: np.ndarray) -> Logs:
    """log2(r) of r = exp(-(price + lost) / gamma), of prices far above gamma too."""
    rate = -LOG2_E / gamma  # and the rest as in rate_of, which is compiled for numbers
    back, error = product.py_func(rate, gamma)
    rest = ((-LOG2_E - back) - error - LOG2_E_LOW) / gamma
    high, low = product.py_func(price, rate)
    inside = np.abs(high) <= 2.0**60
    low = np.where(inside, low + (price * rest + lost * rate), 0.0)
    return np.clip(high, -(2.0**60), 2.0**60)[:, None], low[:, None]


def _times(logs: Logs, count: np.ndarray) -> Logs:
    high, low = product.py_func(logs[0], count)
    return high, low + logs[1] * count


def _numbers(logs: Logs, precision: Precision) -> tuple[np.ndarray, np.ndarray]:
    """2^logs as mantissas and exponents, in one row; -inf and NaN as forbidden cells."""
    high, low = logs
    inside = high > precision.floor
    whole = np.floor(np.where(inside, np.minimum(high, -precision.floor), 0.0))
    power = np.exp2(np.where(inside, (high - whole) + low, 0.0))
    mantissa, more = np.frexp(power)
    exponent = np.where(inside, whole + more - 1, precision.floor)
    return (
        (2.0 * mantissa).astype(precision.floats.dtype).reshape(-1),
        exponent.astype(precision.integers.dtype).reshape(-1),
    )
