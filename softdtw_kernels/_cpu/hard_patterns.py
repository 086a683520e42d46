"""Patterns at gamma = 0: what the kernels of `hard` ask about them.

The begin of a path has the place of the diagonal predecessor, as in `pattern_kernels`, and prices
are added to expansions as they are: choices are those of exact sums. The kernels are compiled once
more for patterns; to others None is passed, and what is asked here is left out.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .exact import add, difference
from .expansion import WIDE, from_floats, least, load_wide, plus, store_parts, with_lane
from .jit import allocating, inline
from .lattice import entry
from .simd import like

ROUNDED = 1e-14  # more than what sums of two float64, and of the parts behind one, are off by


class Prices(NamedTuple):
    """Of a call."""

    warp: np.ndarray  # (P,) or (1,), like skip
    skip: np.ndarray
    begin: tuple[bool, bool]  # whether first frames of x may be left out, and of y
    end: tuple[bool, bool]
    repeat: tuple[bool, bool]
    warped: bool

    @classmethod
    def of(cls, begin: str, end: str, repeat: str, warp: np.ndarray, skip: np.ndarray) -> Prices:
        begins, ends, repeats = (("x" in sides, "y" in sides) for sides in (begin, end, repeat))
        return cls(warp, skip, begins, ends, repeats, bool(warp.any()))


class Pattern(NamedTuple):
    """Of a pair, or of the pairs in the lanes."""

    prices: Prices
    rows: int
    columns: int
    warp: float  # of the pair
    skip: float
    warps: np.ndarray  # of the lanes; or room for an expansion
    skips: np.ndarray
    parts: int  # of the expansions
    lanes: int
    # Parts of the cells of the last row, and behind them of the last column, lane by lane.
    found: np.ndarray


@allocating
def pattern_of(prices, q, rows, columns, parts, lanes, found, warps, skips):
    warp, skip = entry(prices.warp, q), entry(prices.skip, q)
    return Pattern(prices, rows, columns, warp, skip, warps, skips, parts, lanes, found)


@inline
def cheapest(pattern, diagonal, up, here, warp, told):
    """The cheapest predecessor, and as bits the lanes where it is that above and that beside."""
    best, by_up = diagonal, np.uint32(0)
    if pattern.prices.warped:
        if pattern.prices.repeat[0] and pattern.prices.repeat[1]:
            # Both cost the same more, and are compared before.
            beside, by_left = least(here, up)
            beside, told = plus(beside, warp, told)
            best, by_up = least(beside, diagonal)
            return best, by_up, by_up & by_left, told
        up, told = plus(up, warp, told)
        here, told = plus(here, warp, told)
    if pattern.prices.repeat[1]:
        best, by_up = least(up, best)
    by_left = np.uint32(0)
    if pattern.prices.repeat[0]:
        best, by_left = least(here, best)
    return best, by_up, by_left, told


@inline
def begin_in_strip(pattern, diagonal, row, t):
    """The diagonal predecessors at a step of a strip of rows: see `strips`."""
    if pattern.prices.begin[0] and t < WIDE:
        diagonal = with_lane(diagonal, t, pattern.skip * (row + t))
    if pattern.prices.begin[1] and row == 0 and t < pattern.columns:
        diagonal = with_lane(diagonal, 0, pattern.skip * t)
    return diagonal


@inline
def find_in_strip(pattern, here, row, t):
    """Keep the cells of a step at which a path may end. t: the column of the first lane."""
    rows, columns, found = pattern.rows, pattern.columns, pattern.found
    end, lane, size = rows - 1 - row, t - (columns - 1), found.size // 3
    of_row = end < WIDE and 0 <= t - end < columns
    of_row = of_row and (pattern.prices.end[1] or t - end == columns - 1)
    of_column = pattern.prices.end[0] and 0 <= lane < min(WIDE, end)
    if not (of_row or of_column):
        return
    store_parts(here, pattern.warps, WIDE, 0)
    for k in range(pattern.parts):
        if of_row:
            found[k * size + t - end] = pattern.warps[k * WIDE + end]
        if of_column:
            found[k * size + columns + row + lane] = pattern.warps[k * WIDE + lane]


@inline
def begin_in_lanes(pattern, diagonal, i, j):
    """The diagonal predecessors of a cell of the pairs in the lanes."""
    if j == 0 and pattern.prices.begin[0]:
        skips = load_wide(pattern.skips, 0)
        return from_floats(diagonal, skips * like(skips, float(i)))
    if i == 0 and pattern.prices.begin[1]:
        skips = load_wide(pattern.skips, 0)
        return from_floats(diagonal, skips * like(skips, float(j)))
    return diagonal


@inline
def find_in_lanes(pattern, line, count, ends, i):
    """Keep the cells of a row at which a path may end, of each lane."""
    found, width = pattern.found, line.size // 3
    size = found.size // 3
    for lane in range(count):
        last_row, last_column = ends[0, lane], ends[1, lane]
        for k in range(pattern.parts):
            if i == last_row:
                for j in range(0 if pattern.prices.end[1] else last_column, last_column + 1):
                    at = k * size + j * WIDE + lane
                    found[at] = line[k * width + j * WIDE + lane]
            elif i < last_row and pattern.prices.end[0]:
                at = k * size + (last_column + 1 + i) * WIDE + lane
                found[at] = line[k * width + last_column * WIDE + lane]


@inline
def cheapest_end(pattern, rows, columns, prices, q, lane):
    """The cell at which the cheapest path ends, how many frames are left out behind it, and the
    cost of all. Of equal ones the first row by row.
    """
    skip, found, lanes = entry(prices.skip, q), pattern.found, pattern.lanes
    size = found.size // 3
    best, end, out = (np.inf, 0.0, 0.0), (rows - 1, columns - 1), 0
    least_so_far, off = np.inf, 0.0
    for c in range(rows - 1 + columns):
        i, j, at = c, columns - 1, columns + c
        if c >= rows - 1:
            i, j, at = rows - 1, c - (rows - 1), c - (rows - 1)
        if not (prices.end[1] if i == rows - 1 else prices.end[0]) and c < rows + columns - 2:
            continue
        at = at * lanes + lane
        if found[at] == -np.inf:  # nothing is cheaper, whatever is left out
            best, end = (-np.inf, 0.0, 0.0), (i, j)
            break
        # Of nearly all a rounded sum tells that they are dearer.
        left_out = (rows - 1 - i) + (columns - 1 - j)
        price = skip * left_out
        rounded, error = found[at] + price, ROUNDED * (abs(found[at]) + abs(price))
        if rounded - least_so_far > off + error:
            continue
        third = found[2 * size + at] if pattern.parts == 3 else 0.0
        here = (found[at], found[size + at], third)
        if left_out > 0 and here[0] != np.inf:
            here = add(here, price)
        if here[0] != np.inf and (best[0] == np.inf or difference(here, best) < 0.0):
            best, end, out = here, (i, j), left_out
            least_so_far, off = rounded, error
    return end, out, best[0] + (best[1] + best[2])
