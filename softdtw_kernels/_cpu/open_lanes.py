"""Open ends where the lanes of a vector are pairs: what `lanes` asks about them. See `ends`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .ends import (
    ABOVE,
    ABOVE_PLACES,
    BESIDE,
    BESIDE_PLACES,
    LEFT_OUT,
    SUMS,
    Ends,
    entries_at,
    mean_of_ends,
    set_weights,
    weigh_ends,
)
from .groups import COLUMNS, ROWS
from .jit import allocating, inline, plain
from .lattice import entry, entry_or_zero
from .memory import empty, filled
from .scaling import added
from .simd import like, load, store


class OpenLanes(NamedTuple):
    """Of a group: the numbers of `ends.Ends` and `ends.Opened`, lane by lane."""

    ends: Ends
    above_m: np.ndarray
    above_k: np.ndarray
    beside_m: np.ndarray
    beside_k: np.ndarray
    found_m: np.ndarray
    found_k: np.ndarray
    given: np.ndarray
    weights_m: np.ndarray
    weights_k: np.ndarray
    alike: np.ndarray  # rows and columns of all lanes, or -1 if they differ


@allocating
def open_lanes(ends, rows, columns, lanes, floats, integers, floor):
    found_m = filled((rows + columns) * lanes, 1, floats.dtype)
    found_k = filled((rows + columns) * lanes, floor, integers.dtype)
    return OpenLanes(
        ends,
        empty((columns + 1) * lanes, floats.dtype),
        empty((columns + 1) * lanes, integers.dtype),
        empty((rows + 1) * lanes, floats.dtype),
        empty((rows + 1) * lanes, integers.dtype),
        found_m,
        found_k,
        empty(found_m.size, floats.dtype),
        empty(found_m.size, floats.dtype),
        empty(found_m.size, integers.dtype),
        filled(2, -1),
    )


@inline
def copy_lane(from_m, from_k, at, to_m, to_k, lane, lanes):
    for c in range(to_m.size // lanes):
        to_m[c * lanes + lane], to_k[c * lanes + lane] = from_m[at + c], from_k[at + c]


@inline
def open_group(opened, pairs, geometry, floor, is_first):
    """Borders and weights of the pairs of a group; they stay as they are if nothing differs."""
    ends, lanes, alike = opened.ends, pairs.size, opened.alike
    rows, columns = geometry[ROWS, 0], geometry[COLUMNS, 0]
    for lane in range(lanes):
        if geometry[ROWS, lane] != rows or geometry[COLUMNS, lane] != columns:
            rows = columns = -1
            break
    known = not is_first and ends.price.size == 1
    if not known:
        for lane in range(lanes):
            at = entries_at(ends.above_m, ends, pairs[lane])
            copy_lane(ends.above_m, ends.above_k, at, opened.above_m, opened.above_k, lane, lanes)
            at = entries_at(ends.beside_m, ends, pairs[lane])
            copy_lane(
                ends.beside_m, ends.beside_k, at, opened.beside_m, opened.beside_k, lane, lanes
            )
    if not (known and rows > 0 and alike[0] == rows and alike[1] == columns):
        for lane in range(lanes):
            set_weights(
                ends, pairs[lane], geometry[ROWS, lane], geometry[COLUMNS, lane], opened.weights_m,
                opened.weights_k, opened.found_m, opened.found_k, floor, lane, lanes,
            )  # fmt: skip
    alike[0], alike[1] = rows, columns


@inline
def set_row_above(opened, row_m, row_k, columns, lanes):
    """The border above the first row, but for the corner."""
    for c in range(columns * lanes):
        row_m[c], row_k[c] = opened.above_m[lanes + c], opened.above_k[lanes + c]


@inline
def ends_of_row(opened, rows, columns, i):
    """The columns of a row at which a path may end, first and behind the last, and the place of the
    first of them: see `ends.Opened`.
    """
    first = columns - 1
    if i == rows - 1:
        first = 0 if opened.ends.of_end[1] else first
        return first, columns, first
    stop = columns if opened.ends.of_end[0] and i < rows else first
    return first, stop, opened.ends.most_columns + i


@inline
def find_ends_of_row(opened, geometry, count, i, first_end, row_m, row_k):
    """Keep the cells of a row at which a path may end."""
    if i < first_end and not opened.ends.of_end[0]:
        return
    lanes = geometry.shape[1]
    if opened.alike[0] > 0:
        first, stop, to = ends_of_row(opened, opened.alike[0], opened.alike[1], i)
        for j in range(first, stop):
            store(opened.found_m, (to + j - first) * lanes, load(row_m, j * lanes))
            store(opened.found_k, (to + j - first) * lanes, load(row_k, j * lanes))
        return
    for lane in range(count):
        first, stop, to = ends_of_row(opened, geometry[ROWS, lane], geometry[COLUMNS, lane], i)
        for j in range(first, stop):
            at = (to + j - first) * lanes + lane
            opened.found_m[at], opened.found_k[at] = (
                row_m[j * lanes + lane],
                row_k[j * lanes + lane],
            )


@inline
def give_ends_of_row(opened, geometry, count, i, first_end, below):
    """Add the mass that flows from the ends in a row to what comes from the row below."""
    if i < first_end and not opened.ends.of_end[0]:
        return
    lanes = geometry.shape[1]
    if opened.alike[0] > 0:
        first, stop, of = ends_of_row(opened, opened.alike[0], opened.alike[1], i)
        for j in range(first, stop):
            given = load(opened.given, (of + j - first) * lanes)
            store(below, j * lanes, load(below, j * lanes) + given)
        return
    for lane in range(count):
        first, stop, of = ends_of_row(opened, geometry[ROWS, lane], geometry[COLUMNS, lane], i)
        for j in range(first, stop):
            below[j * lanes + lane] += opened.given[(of + j - first) * lanes + lane]


@inline
def weigh_group(opened, pairs, geometry, count, warp, floor, checks, exponents, with_gamma, sums):
    """What `lanes.forward` leaves of plain pairs in checks and exponents; mass is given to the
    ends.
    """
    ends, lanes = opened.ends, pairs.size
    m, k = weigh_ends(
        opened.found_m, opened.found_k, opened.weights_m, opened.weights_k, opened.given, floor,
        ends.most_columns, plain(False),
    )  # fmt: skip
    store(checks, 2 * lanes, m)
    kept = opened.found_k
    store(kept, 0, k)
    for lane in range(count):
        exponents[lane] = kept[lane]
        price = entry(ends.price, pairs[lane]) - added(entry_or_zero(warp, pairs[lane]))
        checks[lane] = min(checks[lane], price)
        if with_gamma:
            rows, columns = geometry[ROWS, lane], geometry[COLUMNS, lane]
            skipped, bits = mean_of_ends(ends, rows, columns, opened.given, lane, lanes)
            sums[LEFT_OUT * lanes + lane], sums[lanes + lane] = skipped, bits
    # The next group, of the same sizes, may have no end there.
    store(kept, 0, like(k, floor))


@inline
def add_begun_beside(i, mass, from_right, diagonal, sums):
    """What has begun beside a row, and beside the one above it. mass: room."""
    lanes = sums.size // SUMS
    store(mass, 0, from_right)
    for lane in range(lanes):
        sums[BESIDE * lanes + lane] += mass[lane]
        sums[BESIDE_PLACES * lanes + lane] += (i + 1) * float(mass[lane])
    store(mass, 0, diagonal)
    for lane in range(lanes if i > 0 else 0):
        sums[BESIDE * lanes + lane] += mass[lane]
        sums[BESIDE_PLACES * lanes + lane] += i * float(mass[lane])


@inline
def add_begun_above(below, columns, lane, lanes, sums):
    """What has begun above the first row, which has handed it on."""
    for j in range(columns):
        e = float(below[j * lanes + lane])
        sums[ABOVE * lanes + lane] += e
        sums[ABOVE_PLACES * lanes + lane] += (j + 1) * e
