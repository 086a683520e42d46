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

from .cell import entropy_of, exponential, quotient, step, warped_exponential
from .ends import LEFT_OUT, SUMS
from .floating import to_integer
from .groups import (
    COLUMNS,
    HIGH,
    LOW,
    ROWS,
    M,
    N,
    begin_group,
    find_places,
    pack,
    row_bounds,
    rows_at_once,
    unpack,
)
from .jit import inline, jit, outlined, plain
from .lattice import entry, entry_or_zero, has_pairs, of_cost, size_of
from .memory import empty, parts_of_block
from .open_lanes import (
    add_begun_above,
    add_begun_beside,
    find_ends_of_row,
    give_ends_of_row,
    open_group,
    open_lanes,
    set_row_above,
    weigh_group,
)
from .order import max, min
from .scaling import AGAIN, SURE, TINY, WARPED_ROWS, conclude
from .simd import keep_above, like, load, smaller, store, where_above
from .strips import beyond_range
from .subnormal import flush_subnormals, restore

WEIGHTS = 768 * 1024  # bytes of the weights of a block: they stay in the second cache level
SHORTEST = 8  # rows of a block, so that the rows kept above them are few


@outlined
def forward(
    cost4, geometry, pairs, places, count, start, stop, columns, first_end, full, weak, rates,
    theta, floor, packed, row_m, row_k, starts, stops, checks, exponents, keep, weights, opened,
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
    if start == 0 and opened is None:
        for j in range(columns):
            store(row_m, j * lanes, one)
            store(row_k, j * lanes, bottom)
    if opened is not None:
        if start == 0:
            set_row_above(opened, row_m, row_k, columns, lanes)
        most_up, most_left = like(bottom, opened.ends.most_up), like(bottom, opened.ends.most_left)
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
        if opened is not None:
            up_m, up_k = load(opened.beside_m, i * lanes), load(opened.beside_k, i * lanes)
            left_m = load(opened.beside_m, (i + 1) * lanes)
            left_k = load(opened.beside_k, (i + 1) * lanes)
        for j in range(columns):
            w, k = w_dummy, k_dummy
            if real and has_pairs(weak, j):
                d = load(packed, (inside + of_cost(weak, j)) * lanes)
                w, k = warped_exponential(d, r_high, r_low, largest, warp_part, warp_whole)
                lowest = smaller(d, lowest)
                nan_sum = nan_sum + w
            diagonal_m, diagonal_k = up_m, up_k
            up_m, up_k = load(row_m, j * lanes), load(row_k, j * lanes)
            above_k = up_k
            if opened is not None:
                above_k, left_k = smaller(up_k, most_up), smaller(left_k, most_left)
            left_m, left_k, p_diagonal, p_up, p_left, total = step(
                w, k, bottom, diagonal_m, diagonal_k, up_m, above_k, left_m, left_k
            )
            store(row_m, j * lanes, left_m)
            store(row_k, j * lanes, left_k)
            if keep:
                share = one / total
                store(weights, at, quotient(p_diagonal, total, share))
                store(weights, at + lanes, quotient(p_up, total, share))
                store(weights, at + 2 * lanes, quotient(p_left, total, share))
                at += 3 * lanes
        if opened is not None:
            find_ends_of_row(opened, geometry, count, i, first_end, row_m, row_k)
        if i < first_end or opened is not None:
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
    tiny, mass, below, starts, stops, weights, with_gamma, sums, opened,
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
        if opened is not None:
            give_ends_of_row(opened, geometry, count, i, first_end, below)
        for lane in range(count if i >= first_end and opened is None else 0):
            if i == geometry[ROWS, lane] - 1:
                below[(geometry[COLUMNS, lane] - 1) * lanes + lane] += 1.0
        real = has_pairs(weak, i)
        inside = (i - start) % together * columns
        from_right, diagonal = zero, zero
        dummies, bits = zero, zero
        for j in range(columns - 1, -1, -1):
            at -= 3 * lanes
            flow = from_right + load(below, j * lanes)
            e = keep_above(flow, threshold)
            if real and has_pairs(weak, j):
                to = (inside + of_cost(weak, j)) * lanes
                store(mass, to, where_above(flow, threshold, flow * factor))
            else:
                dummies = dummies + e
            p_diagonal, p_up = load(weights, at), load(weights, at + lanes)
            p_left = load(weights, at + 2 * lanes)
            if with_gamma:
                bits = bits + e * entropy_of(p_diagonal, p_up, p_left)
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
        if opened is not None:
            if opened.ends.of_begin[0] and with_gamma:
                add_begun_beside(i, mass, from_right, diagonal, sums)


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
    value, status, with_grad, scale, with_gamma, grad4, sums, ends,
):  # fmt: skip
    """Recursion and, if asked for, its adjoint for the groups first <= index < last of the pairs
    in items.

    status: see `scaling`. sums: rows of scale times the visits of dummies, and times the
    visits of all cells with the entropies of their weights in bits. Gradients of cells beyond the
    lengths or the band are not written, nor are those of all pairs of a group without a certified
    one. ends: None, or see `ends`.
    """
    weak = dummy.size > 0
    lanes = 64 // floats.itemsize
    most_rows, most_columns = size_of(cost4.shape[2], cost4.shape[3], weak)
    padded = (most_columns + lanes) * lanes  # whole squares
    height = most_rows
    if with_grad:
        height = min(height, max(SHORTEST, WEIGHTS // (3 * 64 * most_columns)))
    kept = padded * ((most_rows - 1) // height)
    (
        packed, below, row_m, row_k, weights, kept_m, kept_k, rate, checks, theta, factor,
        exponents, group_sums, starts, stops, pairs, places, grad_places,
    ) = parts_of_block((
        (padded, floats.dtype),
        (padded, floats.dtype),
        (padded, floats.dtype),
        (padded, integers.dtype),
        (3 * lanes * most_columns * height if with_grad else 0, floats.dtype),
        (kept, floats.dtype),
        (kept, integers.dtype),
        (WARPED_ROWS * lanes, floats.dtype),
        (3 * lanes, floats.dtype),
        (lanes, floats.dtype),
        (lanes, floats.dtype),
        (lanes, np.int64),
        ((2 if ends is None else SUMS) * lanes, np.float64),
        (lanes, np.int64),
        (lanes, np.int64),
        (lanes, np.int64),
        (lanes, np.int64),
        (lanes, np.int64),
    ))  # fmt: skip
    for lane in range(lanes):
        theta[lane] = factor[lane] = 0.0
        exponents[lane] = 0
    geometry = empty((6, lanes), np.int64)
    if ends is None:
        opened = None
    else:
        opened = open_lanes(ends, cost4.shape[2], cost4.shape[3], lanes, floats, integers, floor)
    before = flush_subnormals()
    for index in range(first, last):
        count, rows, columns = begin_group(
            index, items, cost4.shape, gamma, warp, n, m, weak, bandwidth, bounds, geometry, rate,
            pairs,
        )  # fmt: skip
        if ends is not None:
            open_group(opened, pairs, geometry, floor, index == first)
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
        if ends is None:
            if not weak and all_beyond_range(
                cost4, pairs, count, geometry, gamma, warp, floor, bounds
            ):
                for lane in range(count):
                    value[pairs[lane]], status[pairs[lane]] = 0.0, AGAIN
                continue
        for lane in range(lanes):
            checks[lane], checks[lanes + lane] = np.inf, 0.0
        final = (rows - 1) // height
        for part in range(final + 1):
            if part > 0:
                size, to = columns * lanes, (part - 1) * padded
                copy_row(row_m, kept_m, row_k, kept_k, plain(0), to, size)
            forward(
                cost4, geometry, pairs, places, count, part * height,
                min(rows, (part + 1) * height), columns, first_end, full, weak, rate, theta, floor,
                packed, row_m, row_k, starts, stops, checks, exponents,
                with_grad and part == final, weights, opened,
            )  # fmt: skip
        for k in range(group_sums.size):
            group_sums[k] = 0.0
        more = 0.0
        if ends is not None:
            weigh_group(
                opened, pairs, geometry, count, warp, floor, checks, exponents, with_gamma,
                group_sums,
            )  # fmt: skip
        for lane in range(count):
            if ends is not None:
                more = entry(ends.more, pairs[lane])
            value[pairs[lane]], status[pairs[lane]] = conclude(
                checks[2 * lanes + lane], exponents[lane], checks[lane], checks[lanes + lane],
                entry(gamma, pairs[lane]), entry_or_zero(warp, pairs[lane]),
                geometry[ROWS, lane], geometry[COLUMNS, lane], floor, bounds, not with_grad,
                more,
            )  # fmt: skip
        some_sure = False
        for lane in range(count):
            some_sure = some_sure or status[pairs[lane]] == SURE
        if not (with_grad and some_sure):
            continue
        for k in range(columns * lanes):
            below[k] = 0.0
        for part in range(final, -1, -1):
            start, stop = part * height, min(rows, (part + 1) * height)
            if part < final:
                if part > 0:
                    size, of = columns * lanes, (part - 1) * padded
                    copy_row(kept_m, row_m, kept_k, row_k, of, plain(0), size)
                forward(
                    cost4, geometry, pairs, places, count, start, stop, columns, first_end, full,
                    weak, rate, theta, floor, packed, row_m, row_k, starts, stops, checks,
                    exponents, plain(True), weights, opened,
                )  # fmt: skip
            backward(
                grad4, geometry, pairs, grad_places, count, start, stop, columns, first_end, full,
                weak, factor, bounds[TINY], packed, below, starts, stops, weights, with_gamma,
                group_sums, opened,
            )  # fmt: skip
        for lane in range(count):
            q = pairs[lane]
            sums[0, q] = group_sums[lane] * scale[q]
            sums[1, q] = group_sums[lanes + lane] * scale[q]
            if ends is not None:
                if with_gamma and ends.of_begin[1]:
                    add_begun_above(below, geometry[COLUMNS, lane], lane, lanes, group_sums)
                for k in range(LEFT_OUT, SUMS):
                    sums[k, q] = group_sums[k * lanes + lane] * scale[q]
    restore(before)
