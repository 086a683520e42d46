"""Groups of pairs in the lanes of vectors: their sizes, and rows of their costs."""

from __future__ import annotations

import numpy as np

from .blocks import common, load_block, store_block
from .expansion import WIDE
from .jit import inline, outlined, plain
from .lattice import band_of, entry, entry_or_zero, lattice_of, length
from .order import max, min
from .scaling import WARPED_ROWS, set_warped_rates

# Rows of the geometry of a group, one column for each lane: lengths of the sequences, rows and
# columns of the lattice, smallest and largest column minus row inside the band.
N, M, ROWS, COLUMNS, LOW, HIGH = range(6)


@inline
def begin_group(
    index, items, shape, gamma, warp, n, m, weak, bandwidth, bounds, geometry, rate, pairs
):  # fmt: skip
    """Geometry and rates of the lanes of a group of the pairs in items, and the pair of each lane.

    Returns the number of its pairs, and the rows and columns of the largest lattice. Lanes beyond
    the pairs repeat the last one.
    """
    lanes = rate.size // WARPED_ROWS
    count = min(lanes, items.size - index * lanes)
    most_rows, most_columns = plain(0), plain(0)
    for lane in range(lanes):
        p = items[index * lanes + min(lane, count - 1)]
        pairs[lane] = p
        geometry[N, lane], geometry[M, lane] = length(n, p, shape[2]), length(m, p, shape[3])
        rows, columns, low, high = lattice_of(geometry[N, lane], geometry[M, lane], weak, bandwidth)
        geometry[ROWS, lane], geometry[COLUMNS, lane] = rows, columns
        geometry[LOW, lane], geometry[HIGH, lane] = low, high
        most_rows, most_columns = max(most_rows, rows), max(most_columns, columns)
        if gamma.size > 1 or warp.size > 1 or lane == 0:
            set_warped_rates(entry(gamma, p), entry_or_zero(warp, p), bounds, rate, lane)
        else:
            for k in range(WARPED_ROWS):
                rate[k * lanes + lane] = rate[k * lanes]
    return count, most_rows, most_columns


@inline
def find_places(array4, pairs, places):
    """How many bytes behind the first element the matrix of each lane begins."""
    for lane in range(pairs.size):
        row, column = pairs[lane] // array4.shape[1], pairs[lane] % array4.shape[1]
        places[lane] = row * array4.strides[0] + column * array4.strides[1]


@inline
def has_whole_rows(array4):
    """Whether the elements of a row follow each other in memory. One alone has any stride."""
    return array4.shape[3] == 1 or array4.strides[3] == array4.itemsize


@inline
def rows_at_once(array4, full, weak, lanes):
    """How many rows of the matrices one square of lanes holds, if they follow each other in memory
    and no bounds cut them: then they are packed as one.
    """
    columns = array4.shape[3]
    follow = has_whole_rows(array4) and array4.strides[2] == columns * array4.itemsize
    if not full or weak or not follow:
        return 1
    return max(1, lanes // columns)


@inline
def row_bounds(i, geometry, count, full, columns, starts, stops):
    """The columns starts[k] <= j < stops[k] of row i of the costs that are those of lane k.

    full: all of them, of the pairs that there are; then of several rows, if columns are so many.
    Returns how many columns, from the first on, are inside in all lanes.
    """
    lanes = starts.size
    if full and count == lanes and columns % lanes == 0:
        return columns
    for lane in range(lanes):
        starts[lane] = stops[lane] = 0
        if full and lane < count:
            stops[lane] = columns
        elif lane < count and i < geometry[N, lane]:
            starts[lane] = max(0, i + geometry[LOW, lane])
            stops[lane] = max(starts[lane], min(geometry[M, lane], i + geometry[HIGH, lane] + 1))
    last_start, first_stop = common(starts, stops)
    return first_stop if last_start == 0 else plain(0)


@outlined
def pack(cost4, pairs, places, i, starts, stops, whole, columns, packed):
    """Row i of the costs of all lanes: packed[j lanes + lane]; +inf outside the bounds. The first
    of the columns, as many as whole, are inside in all lanes.
    """
    lanes, per_row = starts.size, cost4.shape[1]
    if has_whole_rows(cost4):
        base = cost4.ctypes.data + i * cost4.strides[2]
        for j in range(0, columns, lanes):
            at, to = base + j * cost4.itemsize, j * lanes
            if j + lanes <= whole:
                load_block(cost4, at, places, None, None, j, packed, to, lanes)
            else:
                load_block(cost4, at, places, starts, stops, j, packed, to, lanes)
        return
    for lane in range(lanes):
        costs = cost4[pairs[lane] // per_row, pairs[lane] % per_row]
        for j in range(columns):
            known = j < whole or starts[lane] <= j < stops[lane]
            packed[j * lanes + lane] = costs[i, j] if known else np.inf


@outlined
def unpack(mass, grad4, pairs, places, i, starts, stops, whole, columns):
    """What pack did, backward."""
    lanes, per_row = starts.size, grad4.shape[1]
    if has_whole_rows(grad4):
        base = grad4.ctypes.data + i * grad4.strides[2]
        for j in range(0, columns, lanes):
            at, of = base + j * grad4.itemsize, j * lanes
            if j + lanes <= whole:
                store_block(mass, of, lanes, grad4, at, places, None, None, j)
            else:
                store_block(mass, of, lanes, grad4, at, places, starts, stops, j)
        return
    for lane in range(lanes):
        grads = grad4[pairs[lane] // per_row, pairs[lane] % per_row]
        for j in range(columns):
            if j < whole or starts[lane] <= j < stops[lane]:
                grads[i, j] = mass[j * lanes + lane]


@inline
def bounds_of_row(i, n, m, bandwidth):
    """The columns of row i of the costs inside lengths and band."""
    low, high = band_of(n, m, bandwidth)
    if i >= n:
        return 0, 0
    start = max(0, i + low)
    return start, max(start, min(m, i + high + 1))


@outlined
def pack_row(cost4, q, count, i, starts, stops, columns, packed):
    """Row i of the costs of `count` pairs from q on: packed[j WIDE + lane]; +inf outside the
    bounds.
    """
    per_row, side = cost4.shape[1], 8
    for k in range(0, WIDE, side):
        p, some = q + k, min(side, count - k)
        # Eight pairs as far apart from each other in memory are loaded and transposed at once.
        alike = per_row == 1 or p % per_row + some <= per_row
        if some > 0 and alike and cost4.strides[3] == cost4.itemsize:
            apart = cost4.strides[0] if per_row == 1 else cost4.strides[1]
            base = cost4[p // per_row, p % per_row].ctypes.data + i * cost4.strides[2]
            begin, end = starts[k : k + side], stops[k : k + side]
            for j in range(0, columns, side):
                at = base + j * cost4.itemsize
                load_block(cost4, at, apart, begin, end, j, packed, j * WIDE + k, WIDE)
            continue
        for j in range(columns):
            packed[j * WIDE + k : j * WIDE + k + side] = np.inf
        for lane in range(k, k + some):
            costs = cost4[(q + lane) // per_row, (q + lane) % per_row]
            for j in range(starts[lane], stops[lane]):
                packed[j * WIDE + lane] = costs[i, j]
