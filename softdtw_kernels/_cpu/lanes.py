"""Small pairs on the CPU: the lanes of a vector are as many pairs of the batch.

A group is up to `lanes` pairs, any of them, so that pairs of like lengths can share one. Squares of
the costs are loaded and transposed at once, and of pairs of a few columns several rows with them.
All lanes walk the lattice row by row together; beyond its own lengths a lane computes what is never
used. In a weak lattice only the odd-odd cells have costs of their own: the
factor of a dummy cell is computed once a pair. Nothing depends on the other lanes, so neither does
a result on its place in the batch. A cell is computed by the same operations as in `strips`, so
both give the same bits.

Weights are kept for a block of rows that stays in the second cache level. The rows above the blocks
are kept, from which all but the last are computed again, from the last to the first.
"""

from __future__ import annotations

import numpy as np

from .blocks import common, load_block, store_block
from .cell import exponential, quotient, step, surprise, warped_exponential
from .floating import to_integer
from .jit import inline, jit, outlined, plain
from .lattice import entry, entry_or_zero, has_pairs, lattice_of, length, of_cost, size_of
from .scaling import AGAIN, SURE, TINY, WARPED_ROWS, conclude, set_warped_rates
from .simd import keep_above, like, load, smaller, store
from .strips import beyond_range
from .subnormal import flush_subnormals, restore

# Rows of the geometry of a group, one column for each lane: lengths of the sequences, rows and
# columns of the lattice, smallest and largest column minus row inside the band.
N, M, ROWS, COLUMNS, LOW, HIGH = range(6)

WEIGHTS = 768 * 1024  # bytes of the weights of a block: they stay in the second cache level
SHORTEST = 8  # rows of a block, so that the rows kept above them are few


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


@outlined
def forward(
    cost4, geometry, pairs, places, count, start, stop, columns, first_end, full, weak, rates,
    theta, floor, packed, row_m, row_k, starts, stops, checks, exponents, keep,
    weights,
):  # fmt: skip
    """Z of the cells of a group in the rows start <= i < stop, row by row in row_m and row_k, which
    hold the row above.

    rates: as `scaling.set_warped_rates` makes them; theta: dummy costs of the lanes. checks:
    rows of the lowest cost, of a sum that is NaN if a cost is, and of the mantissas at the end of
    each pair; exponents: those that go with them.
    """
    lanes = starts.size
    r_high, r_low = load(rates, 0), load(rates, lanes)
    largest, warp_part = load(rates, 2 * lanes), load(rates, 3 * lanes)
    one = like(r_high, 1.0)
    bottom, warp_whole = like(load(row_k, 0), floor), to_integer(load(rates, 4 * lanes))
    if start == 0:
        for j in range(columns):
            store(row_m, j * lanes, one)
            store(row_k, j * lanes, bottom)
    lowest, nan_sum = load(checks, 0), load(checks, lanes)
    w_dummy, k_dummy = exponential(load(theta, 0), r_high, r_low, largest)
    if weak:
        lowest, nan_sum = smaller(load(theta, 0), lowest), nan_sum + w_dummy
    at = 0
    together = rows_at_once(cost4, full, weak, lanes)
    for i in range(start, stop):
        real = has_pairs(weak, i)
        inside = (i - start) % together * columns
        if real and inside == 0:
            cost_row, some = of_cost(weak, i), min(together, stop - i) * of_cost(weak, columns)
            whole = row_bounds(cost_row, geometry, count, full, some, starts, stops)
            pack(cost4, pairs, places, cost_row, starts, stops, whole, some, packed)
        left_m, left_k = one, bottom
        up_m, up_k = one, bottom
        if i == 0:
            up_k = like(bottom, 0)  # the virtual cell before the origin, Z = 1
        for j in range(columns):
            w, k = w_dummy, k_dummy
            if real and has_pairs(weak, j):
                d = load(packed, (inside + of_cost(weak, j)) * lanes)
                w, k = warped_exponential(d, r_high, r_low, largest, warp_part, warp_whole)
                lowest = smaller(d, lowest)
                nan_sum = nan_sum + w
            diagonal_m, diagonal_k = up_m, up_k
            up_m, up_k = load(row_m, j * lanes), load(row_k, j * lanes)
            left_m, left_k, p_diagonal, p_up, p_left, total = step(
                w, k, bottom, diagonal_m, diagonal_k, up_m, up_k, left_m, left_k
            )
            store(row_m, j * lanes, left_m)
            store(row_k, j * lanes, left_k)
            if keep:
                share = one / total
                store(weights, at, quotient(p_diagonal, total, share))
                store(weights, at + lanes, quotient(p_up, total, share))
                store(weights, at + 2 * lanes, quotient(p_left, total, share))
                at += 3 * lanes
        if i < first_end:
            continue
        for lane in range(count):
            if i == geometry[ROWS, lane] - 1:
                end = (geometry[COLUMNS, lane] - 1) * lanes + lane
                checks[2 * lanes + lane], exponents[lane] = row_m[end], row_k[end]
    store(checks, 0, lowest)
    store(checks, lanes, nan_sum)


@outlined
def backward(
    grad4, geometry, pairs, places, count, start, stop, columns, first_end, full, weak, scale,
    tiny, mass, below, starts, stops, weights, with_gamma, sums,
):  # fmt: skip
    """Expected visits of the cells of a group in the rows start <= i < stop, times scale; the
    weights are those of forward.

    below: what the row below hands to each cell. sums: rows of the visits of dummies and of the
    entropies in bits, to which those of these rows are added.
    """
    lanes = starts.size
    factor = load(scale, 0)
    zero, threshold = like(factor, 0.0), like(factor, tiny)
    at = 3 * lanes * (stop - start) * columns
    together = rows_at_once(grad4, full, weak, lanes)
    for i in range(stop - 1, start - 1, -1):
        for lane in range(count if i >= first_end else 0):
            if i == geometry[ROWS, lane] - 1:
                below[(geometry[COLUMNS, lane] - 1) * lanes + lane] += 1.0
        real = has_pairs(weak, i)
        inside = (i - start) % together * columns
        from_right, diagonal = zero, zero
        dummies, bits = zero, zero
        for j in range(columns - 1, -1, -1):
            at -= 3 * lanes
            e = keep_above(from_right + load(below, j * lanes), threshold)
            if real and has_pairs(weak, j):
                store(mass, (inside + of_cost(weak, j)) * lanes, e * factor)
            else:
                dummies = dummies + e
            p_diagonal, p_up = load(weights, at), load(weights, at + lanes)
            p_left = load(weights, at + 2 * lanes)
            if with_gamma:
                bits = bits + e * (surprise(p_diagonal) + (surprise(p_up) + surprise(p_left)))
            store(below, j * lanes, e * p_up + diagonal)
            from_right, diagonal = e * p_left, e * p_diagonal
        if real and inside == 0:
            cost_row, some = of_cost(weak, i), min(together, stop - i) * of_cost(weak, columns)
            whole = row_bounds(cost_row, geometry, count, full, some, starts, stops)
            unpack(mass, grad4, pairs, places, cost_row, starts, stops, whole, some)
        if weak:
            store(mass, 0, dummies)
            for lane in range(lanes):
                sums[lane] += mass[lane]
        if with_gamma:
            store(mass, 0, bits)
            for lane in range(lanes):
                sums[lanes + lane] += mass[lane]


@inline
def all_beyond_range(cost4, pairs, count, geometry, gamma, warp, floor, bounds):
    """Whether no pair of a group of the plain lattice can be certified: see `beyond_range`."""
    for lane in range(count):
        q = pairs[lane]
        costs = cost4[q // cost4.shape[1], q % cost4.shape[1]]
        rows, columns = geometry[ROWS, lane], geometry[COLUMNS, lane]
        g, w = entry(gamma, q), entry_or_zero(warp, q)
        if not beyond_range(costs, plain(False), rows, columns, g, w, floor, bounds):
            return False
    return True


@inline
def copy_row(from_m, to_m, from_k, to_k, at_from, at_to, size):
    for c in range(size):
        to_m[at_to + c], to_k[at_to + c] = from_m[at_from + c], from_k[at_from + c]


@jit
def solve(
    first, last, items, cost4, gamma, warp, dummy, n, m, bandwidth, floats, integers, floor, bounds,
    value, status, with_grad, scale, with_gamma, grad4, sums,
):  # fmt: skip
    """Recursion and, if asked for, its adjoint for the groups first <= index < last of the pairs
    in items.

    status: see `scaling`. sums: rows of scale times the visits of dummies, and times the
    visits of all cells with the entropies of their weights in bits. Gradients of cells beyond the
    lengths or the band are not written, nor are those of all pairs of a group without a certified
    one.
    """
    weak = dummy.size > 0
    lanes = 64 // floats.itemsize
    most_rows, most_columns = size_of(cost4.shape[2], cost4.shape[3], weak)
    padded = (most_columns + lanes) * lanes  # whole squares
    packed, below = np.empty(padded, floats.dtype), np.empty(padded, floats.dtype)
    row_m, row_k = np.empty(padded, floats.dtype), np.empty(padded, integers.dtype)
    height = most_rows
    if with_grad:
        height = min(height, max(SHORTEST, WEIGHTS // (3 * 64 * most_columns)))
    weights = np.empty(3 * lanes * most_columns * height if with_grad else 0, floats.dtype)
    kept = padded * ((most_rows - 1) // height)
    kept_m, kept_k = np.empty(kept, floats.dtype), np.empty(kept, integers.dtype)
    rate = np.empty(WARPED_ROWS * lanes, floats.dtype)
    checks = np.empty(3 * lanes, floats.dtype)
    theta, factor = np.zeros(lanes, floats.dtype), np.zeros(lanes, floats.dtype)
    exponents, group_sums = np.zeros(lanes, np.int64), np.empty(2 * lanes)
    starts, stops = np.empty(lanes, np.int64), np.empty(lanes, np.int64)
    geometry, pairs = np.empty((6, lanes), np.int64), np.empty(lanes, np.int64)
    places, grad_places = np.empty(lanes, np.int64), np.empty(lanes, np.int64)
    before = flush_subnormals()
    for index in range(first, last):
        count, rows, columns = begin_group(
            index, items, cost4.shape, gamma, warp, n, m, weak, bandwidth, bounds, geometry, rate,
            pairs,
        )  # fmt: skip
        find_places(cost4, pairs, places)
        find_places(grad4, pairs, grad_places)
        full, first_end = plain(True), most_rows
        for lane in range(lanes):
            p = pairs[lane]
            first_end = min(first_end, geometry[ROWS, lane] - 1)
            full = (
                full
                and geometry[N, lane] == cost4.shape[2]
                and geometry[M, lane] == cost4.shape[3]
                and geometry[LOW, lane] <= -most_rows
                and geometry[HIGH, lane] >= most_columns
            )
            if weak:
                theta[lane] = entry(dummy, p)
            if with_grad:
                factor[lane] = scale[p]
        if not weak and all_beyond_range(cost4, pairs, count, geometry, gamma, warp, floor, bounds):
            for lane in range(count):
                value[pairs[lane]], status[pairs[lane]] = 0.0, AGAIN
            continue
        for lane in range(lanes):
            checks[lane], checks[lanes + lane] = np.inf, 0.0
        final = (rows - 1) // height
        for part in range(final + 1):
            if part > 0:
                copy_row(row_m, kept_m, row_k, kept_k, 0, (part - 1) * padded, columns * lanes)
            forward(
                cost4, geometry, pairs, places, count, part * height,
                min(rows, (part + 1) * height), columns, first_end, full, weak, rate, theta, floor,
                packed, row_m, row_k, starts, stops, checks, exponents,
                with_grad and part == final, weights,
            )  # fmt: skip
        for lane in range(count):
            value[pairs[lane]], status[pairs[lane]] = conclude(
                checks[2 * lanes + lane], exponents[lane], checks[lane], checks[lanes + lane],
                entry(gamma, pairs[lane]), entry_or_zero(warp, pairs[lane]),
                geometry[ROWS, lane], geometry[COLUMNS, lane], floor, bounds, not with_grad,
            )  # fmt: skip
        some_sure = False
        for lane in range(count):
            some_sure = some_sure or status[pairs[lane]] == SURE
        if not (with_grad and some_sure):
            continue
        for k in range(columns * lanes):
            below[k] = 0.0
        for lane in range(2 * lanes):
            group_sums[lane] = 0.0
        for part in range(final, -1, -1):
            start, stop = part * height, min(rows, (part + 1) * height)
            if part < final:
                if part > 0:
                    copy_row(kept_m, row_m, kept_k, row_k, (part - 1) * padded, 0, columns * lanes)
                forward(
                    cost4, geometry, pairs, places, count, start, stop, columns, first_end, full,
                    weak, rate, theta, floor, packed, row_m, row_k, starts, stops, checks,
                    exponents, plain(True), weights,
                )  # fmt: skip
            backward(
                grad4, geometry, pairs, grad_places, count, start, stop, columns, first_end, full,
                weak, factor, bounds[TINY], packed, below, starts, stops, weights, with_gamma,
                group_sums,
            )  # fmt: skip
        for lane in range(count):
            q = pairs[lane]
            sums[0, q] = group_sums[lane] * scale[q]
            sums[1, q] = group_sums[lanes + lane] * scale[q]
    restore(before)
