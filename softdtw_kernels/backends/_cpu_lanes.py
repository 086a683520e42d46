"""Small pairs on the CPU: the lanes of a vector are as many pairs of the batch.

A group is up to `lanes` pairs, neighbors in memory, so that a square of the costs is loaded and
transposed at once. All lanes walk the lattice row by row together; beyond its own lengths a lane
computes what is never used. In a weak lattice only the odd-odd cells have costs of their own: the
factor of a dummy cell is computed once a pair. Nothing depends on the other lanes, so neither does
a result on its place in the batch.
"""

from __future__ import annotations

import math

import numpy as np

from ._cpu_cell import (
    certified,
    exponential,
    fill_rates,
    fill_with_nan,
    quotient,
    step,
    surprise,
    usable,
    value_of,
)
from ._cpu_exact import band_limits, lattice_shape
from ._jit import inline, jit, outlined
from ._simd import keep_above, like, load, load_block, smaller, store, store_block


@inline
def group_ends(n, m, q, count, weak, end_rows, end_columns):
    """Last row and column of each pair's lattice; the rows and columns that hold all, and the first
    last row.
    """
    last_row = last_column = 0
    first_end = np.int64(2**62)
    for lane in range(count):
        rows, columns = lattice_shape(n[q + lane], m[q + lane], weak)
        end_rows[lane], end_columns[lane] = rows - 1, columns - 1
        last_row, last_column = max(last_row, rows - 1), max(last_column, columns - 1)
        first_end = min(first_end, rows - 1)
    return last_row + 1, last_column + 1, first_end


@inline
def row_bounds(i, n, m, bandwidth, q, count, full, starts, stops):
    """The columns starts[lane] <= j < stops[lane] of row i of the costs that belong to the pair of
    each lane.

    full: the bounds of all rows are alike, and were filled in before.
    """
    if full:
        return
    for lane in range(starts.size):
        starts[lane] = stops[lane] = 0
        if lane < count and i < n[q + lane]:
            low, high = band_limits(n[q + lane], m[q + lane], bandwidth)
            starts[lane] = max(0, i + low)
            stops[lane] = max(starts[lane], min(m[q + lane], i + high + 1))


@outlined
def pack(cost4, q, i, starts, stops, columns, packed):
    """Row i of the costs of all lanes: packed[j lanes + lane]; +inf outside the bounds."""
    lanes, per_row = starts.size, cost4.shape[1]
    costs = cost4[q // per_row, q % per_row]
    if cost4.strides[3] == cost4.itemsize:
        base = costs.ctypes.data + i * cost4.strides[2]
        for j in range(0, columns, lanes):
            at = base + j * cost4.itemsize
            load_block(at, cost4.strides[1], starts, stops, j, packed, j * lanes)
        return
    for k in range(packed.size):
        packed[k] = np.inf
    for lane in range(lanes):
        for j in range(starts[lane], stops[lane]):
            packed[j * lanes + lane] = cost4[q // per_row, q % per_row + lane, i, j]


@outlined
def unpack(mass, grad4, q, i, starts, stops, columns):
    """What pack did, backward."""
    lanes, per_row = starts.size, grad4.shape[1]
    grads = grad4[q // per_row, q % per_row]
    if grad4.strides[3] == grad4.itemsize:
        base = grads.ctypes.data + i * grad4.strides[2]
        for j in range(0, columns, lanes):
            at = base + j * grad4.itemsize
            store_block(mass, j * lanes, at, grad4.strides[1], starts, stops, j)
        return
    for lane in range(lanes):
        for j in range(starts[lane], stops[lane]):
            grad4[q // per_row, q % per_row + lane, i, j] = mass[j * lanes + lane]


@outlined
def forward(
    cost4, n, m, bandwidth, q, count, rows, columns, first_end, end_rows, end_columns, full,
    weak, rates, theta, floor, packed, row_m, row_k, starts, stops, checks, exponents, keep,
    weights,
):  # fmt: skip
    """Z of all cells of a group, row by row in row_m and row_k.

    rates: rows of fill_rates; theta: dummy costs of the lanes. checks: rows of the lowest cost, of
    a sum that is NaN if a cost is, and of the mantissas at the end of each pair; exponents: those
    that go with them.
    """
    lanes = starts.size
    r_high, r_low = load(rates, 0), load(rates, lanes)
    smallest, largest = load(rates, 2 * lanes), load(rates, 3 * lanes)
    one = like(r_high, 1.0)
    bottom = like(load(row_k, 0), floor)
    for j in range(columns):
        store(row_m, j * lanes, one)
        store(row_k, j * lanes, bottom)
    lowest, nan_sum = like(r_high, np.inf), like(r_high, 0.0)
    w_dummy, k_dummy = exponential(load(theta, 0), r_high, r_low, smallest, largest)
    if weak:
        lowest, nan_sum = load(theta, 0), w_dummy
    at = 0
    for i in range(rows):
        real = not weak or i & 1 == 1
        if real:
            cost_row = i >> 1 if weak else i
            row_bounds(cost_row, n, m, bandwidth, q, count, full, starts, stops)
            pack(cost4, q, cost_row, starts, stops, columns >> 1 if weak else columns, packed)
        left_m, left_k = one, bottom
        up_m, up_k = one, bottom
        if i == 0:
            up_k = like(bottom, 0)  # the virtual cell before the origin, Z = 1
        for j in range(columns):
            w, k = w_dummy, k_dummy
            if real and (not weak or j & 1 == 1):
                d = load(packed, (j >> 1 if weak else j) * lanes)
                w, k = exponential(d, r_high, r_low, smallest, largest)
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
            if i == end_rows[lane]:
                checks[2 * lanes + lane] = row_m[end_columns[lane] * lanes + lane]
                exponents[lane] = row_k[end_columns[lane] * lanes + lane]
    store(checks, 0, lowest)
    store(checks, lanes, nan_sum)


@outlined
def backward(
    grad4, n, m, bandwidth, q, count, rows, columns, first_end, end_rows, end_columns, full,
    weak, scale, tiny, mass, below, starts, stops, weights, with_gamma, sums,
):  # fmt: skip
    """Expected visits of all cells of a group, times scale; the weights are those of forward.

    below: what the row below hands to each cell. sums: rows of the visits of dummies and of the
    entropies in bits.
    """
    lanes = starts.size
    factor = load(scale, 0)
    zero, threshold = like(factor, 0.0), like(factor, tiny)
    for j in range(columns):
        store(below, j * lanes, zero)
    for lane in range(2 * lanes):
        sums[lane] = 0.0
    at = 3 * lanes * rows * columns
    for i in range(rows - 1, -1, -1):
        for lane in range(count if i >= first_end else 0):
            if i == end_rows[lane]:
                below[end_columns[lane] * lanes + lane] += 1.0
        real = not weak or i & 1 == 1
        from_right, diagonal = zero, zero
        dummies, bits = zero, zero
        for j in range(columns - 1, -1, -1):
            at -= 3 * lanes
            e = keep_above(from_right + load(below, j * lanes), threshold)
            if real and (not weak or j & 1 == 1):
                store(mass, (j >> 1 if weak else j) * lanes, e * factor)
            else:
                dummies = dummies + e
            p_diagonal, p_up = load(weights, at), load(weights, at + lanes)
            p_left = load(weights, at + 2 * lanes)
            if with_gamma:
                bits = bits + e * (surprise(p_diagonal) + (surprise(p_up) + surprise(p_left)))
            store(below, j * lanes, e * p_up + diagonal)
            from_right, diagonal = e * p_left, e * p_diagonal
        if real:
            cost_row = i >> 1 if weak else i
            row_bounds(cost_row, n, m, bandwidth, q, count, full, starts, stops)
            unpack(mass, grad4, q, cost_row, starts, stops, columns >> 1 if weak else columns)
        if weak:
            store(mass, 0, dummies)
            for lane in range(lanes):
                sums[lane] += mass[lane]
        if with_gamma:
            store(mass, 0, bits)
            for lane in range(lanes):
                sums[lanes + lane] += mass[lane]


@jit
def solve(
    cost4, gamma, dummy, n, m, bandwidth, first, last, limits, kind, with_grad, scale, with_gamma,
    out, sure, grad4, grad_gamma, grad_dummy,
):  # fmt: skip
    """Values, and if asked for the gradients, of the groups first <= index < last; sure: which are
    certified.

    limits: (FLOOR, LIMIT, RISE, TINY); kind: an empty array of the type to compute in, and one of
    its integers. Cells beyond the lengths or the band are not written, and nothing that is not
    certified is meant to be read.
    """
    weak = dummy.size > 0
    pairs = cost4.shape[1]
    floor, limit, rise, tiny = limits
    lanes = 64 // kind[0].itemsize
    rows, columns = lattice_shape(cost4.shape[2], cost4.shape[3], weak)
    padded = (columns + lanes) * lanes  # whole squares
    packed, below = np.empty(padded, kind[0].dtype), np.empty(padded, kind[0].dtype)
    row_m, row_k = np.empty(padded, kind[0].dtype), np.empty(padded, kind[1].dtype)
    weights = np.empty(3 * lanes * rows * columns if with_grad else 0, kind[0].dtype)
    rates = np.empty(4 * lanes, kind[0].dtype)
    theta, factor = np.zeros(lanes, kind[0].dtype), np.zeros(lanes, kind[0].dtype)
    checks, sums = np.empty(3 * lanes, kind[0].dtype), np.empty(2 * lanes)
    exponents = np.zeros(lanes, np.int64)
    starts, stops = np.empty(lanes, np.int64), np.empty(lanes, np.int64)
    end_rows, end_columns = np.empty(lanes, np.int64), np.empty(lanes, np.int64)
    of_lane = np.zeros(lanes)  # the gamma that rates holds for each lane
    in_a_row = (pairs + lanes - 1) // lanes  # groups: none crosses a row of pairs
    for index in range(first, last):
        row, k = index // in_a_row, index % in_a_row
        q, count = row * pairs + k * lanes, min(lanes, pairs - k * lanes)
        rows, columns, first_end = group_ends(n, m, q, count, weak, end_rows, end_columns)
        full = bandwidth < 0
        for lane in range(count):
            full = full and n[q + lane] == cost4.shape[2] and m[q + lane] == cost4.shape[3]
        for lane in range(lanes):
            starts[lane], stops[lane] = 0, cost4.shape[3] if lane < count else 0
            p = q + min(lane, count - 1)
            g = gamma[p] if usable(gamma[p]) else 1.0
            if g != of_lane[lane]:
                of_lane[lane] = g
                fill_rates(g, limit, rates, lanes, lane)
            if weak:
                theta[lane] = dummy[p]
            if with_grad:
                factor[lane] = scale[p]
        forward(
            cost4, n, m, bandwidth, q, count, rows, columns, first_end, end_rows, end_columns, full,
            weak, rates, theta, floor, packed, row_m, row_k, starts, stops, checks,
            exponents, with_grad, weights,
        )  # fmt: skip
        for lane in range(count):
            g = gamma[q + lane]
            exponent = exponents[lane]
            longest = end_rows[lane] + end_columns[lane] + 2
            if math.isnan(checks[lanes + lane]):
                out[q + lane], sure[q + lane] = np.nan, usable(g)
            else:
                out[q + lane] = value_of(checks[2 * lanes + lane], exponent, g)
                sure[q + lane] = usable(g) and certified(
                    exponent, checks[lane], longest, g, floor, rise
                )
        if with_grad:
            backward(
                grad4, n, m, bandwidth, q, count, rows, columns, first_end, end_rows, end_columns,
                full, weak, factor, tiny, packed, below, starts, stops, weights, with_gamma, sums,
            )  # fmt: skip
            for lane in range(count):
                grad_dummy[q + lane] = sums[lane] * scale[q + lane]
                grad_gamma[q + lane] = -math.log(2.0) * sums[lanes + lane] * scale[q + lane]
                if math.isnan(out[q + lane]):
                    fill_with_nan(grad4, q + lane, n[q + lane], m[q + lane])
                    grad_gamma[q + lane] = grad_dummy[q + lane] = np.nan
