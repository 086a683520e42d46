"""Small pairs on the CPU: the lanes of a vector are as many pairs of the batch.

A group is up to `lanes` pairs, neighbors in memory, so that a square of the costs is loaded and transposed at once.
All lanes walk the lattice row by row together; beyond its own lengths a lane computes what is never used. In a weak
lattice only the odd-odd cells have costs of their own: the factor of a dummy cell is computed once a pair.
Nothing depends on the other lanes, so neither does a result on its place in the batch.
"""

from __future__ import annotations

import math

import numpy as np

from ._cpu_cell import certified, exponential, fill_rates, fill_with_nan, quotient, step, surprise, usable, value_of
from ._cpu_exact import band_limits, lattice_shape
from ._jit import block, inline, jit
from ._simd import keep_above, like, load, load_block, smaller, store, store_block


@inline
def group_ends(n, m, q, count, weak, end_rows, end_columns):
    """Last row and column of each pair's lattice; the rows and columns that hold all, and the first last row."""
    last_row = last_column = 0
    first_end = np.int64(2**62)
    for l in range(count):
        rows, columns = lattice_shape(n[q + l], m[q + l], weak)
        end_rows[l], end_columns[l] = rows - 1, columns - 1
        last_row, last_column = max(last_row, rows - 1), max(last_column, columns - 1)
        first_end = min(first_end, rows - 1)
    return last_row + 1, last_column + 1, first_end


@inline
def row_bounds(i, n, m, bandwidth, q, count, full, starts, stops):
    """The columns starts[l] <= j < stops[l] of row i of the costs that belong to the pair of lane l.

    full: the bounds of all rows are alike, and were filled in before.
    """
    if full:
        return
    for l in range(starts.size):
        starts[l] = stops[l] = 0
        if l < count and i < n[q + l]:
            low, high = band_limits(n[q + l], m[q + l], bandwidth)
            starts[l] = max(0, i + low)
            stops[l] = max(starts[l], min(m[q + l], i + high + 1))


@block
def pack(cost4, q, i, starts, stops, columns, packed):
    """Row i of the costs of all lanes: packed[j lanes + l]; +inf outside the bounds."""
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
    for l in range(lanes):
        for j in range(starts[l], stops[l]):
            packed[j * lanes + l] = cost4[q // per_row, q % per_row + l, i, j]


@block
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
    for l in range(lanes):
        for j in range(starts[l], stops[l]):
            grad4[q // per_row, q % per_row + l, i, j] = mass[j * lanes + l]


@block
def forward(
    cost4, n, m, bandwidth, q, count, rows, columns, first_end, end_rows, end_columns, full, weak, rates, theta, floor,
    packed, row_m, row_k, starts, stops, checks, exponents, keep, weights,
):  # fmt: skip
    """Z of all cells of a group, row by row in row_m and row_k.

    rates: rows of fill_rates; theta: dummy costs of the lanes. checks: rows of the lowest cost, of a sum that is NaN if
    a cost is, and of the mantissas at the end of each pair; exponents: those that go with them.
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
        for l in range(count):
            if i == end_rows[l]:
                checks[2 * lanes + l] = row_m[end_columns[l] * lanes + l]
                exponents[l] = row_k[end_columns[l] * lanes + l]
    store(checks, 0, lowest)
    store(checks, lanes, nan_sum)


@block
def backward(
    grad4, n, m, bandwidth, q, count, rows, columns, first_end, end_rows, end_columns, full, weak, scale, tiny,
    mass, below, starts, stops, weights, with_gamma, sums,
):  # fmt: skip
    """Expected visits of all cells of a group, times scale; the weights are those of forward.

    below: what the row below hands to each cell. sums: rows of the visits of dummies and of the entropies in bits.
    """
    lanes = starts.size
    factor = load(scale, 0)
    zero, threshold = like(factor, 0.0), like(factor, tiny)
    for j in range(columns):
        store(below, j * lanes, zero)
    for l in range(2 * lanes):
        sums[l] = 0.0
    at = 3 * lanes * rows * columns
    for i in range(rows - 1, -1, -1):
        for l in range(count if i >= first_end else 0):
            if i == end_rows[l]:
                below[end_columns[l] * lanes + l] += 1.0
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
            for l in range(lanes):
                sums[l] += mass[l]
        if with_gamma:
            store(mass, 0, bits)
            for l in range(lanes):
                sums[lanes + l] += mass[l]


@jit
def solve(
    cost4, gamma, dummy, n, m, bandwidth, first, last, limits, kind, with_grad, scale, with_gamma,
    out, sure, grad4, grad_gamma, grad_dummy,
):  # fmt: skip
    """Values, and if asked for the gradients, of the groups first <= index < last; sure: which are certified.

    limits: (FLOOR, LIMIT, RISE, TINY); kind: an empty array of the type to compute in, and one of its integers. Cells
    beyond the lengths or the band are not written, and nothing that is not certified is meant to be read.
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
        for l in range(count):
            full = full and n[q + l] == cost4.shape[2] and m[q + l] == cost4.shape[3]
        for l in range(lanes):
            starts[l], stops[l] = 0, cost4.shape[3] if l < count else 0
            p = q + min(l, count - 1)
            g = gamma[p] if usable(gamma[p]) else 1.0
            if g != of_lane[l]:
                of_lane[l] = g
                fill_rates(g, limit, rates, lanes, l)
            if weak:
                theta[l] = dummy[p]
            if with_grad:
                factor[l] = scale[p]
        forward(
            cost4, n, m, bandwidth, q, count, rows, columns, first_end, end_rows, end_columns, full, weak, rates.reshape(-1), theta, floor,
            packed, row_m, row_k, starts, stops, checks, exponents, with_grad, weights,
        )  # fmt: skip
        for l in range(count):
            g = gamma[q + l]
            exponent = exponents[l]
            longest = end_rows[l] + end_columns[l] + 2
            if math.isnan(checks[lanes + l]):
                out[q + l], sure[q + l] = np.nan, usable(g)
            else:
                out[q + l] = value_of(checks[2 * lanes + l], exponent, g)
                sure[q + l] = usable(g) and certified(
                    exponent, checks[l], longest, g, floor, rise
                )
        if with_grad:
            backward(
                grad4, n, m, bandwidth, q, count, rows, columns, first_end, end_rows, end_columns, full, weak, factor, tiny,
                packed, below, starts, stops, weights, with_gamma, sums,
            )  # fmt: skip
            for l in range(count):
                grad_dummy[q + l] = sums[l] * scale[q + l]
                grad_gamma[q + l] = -math.log(2.0) * sums[lanes + l] * scale[q + l]
                if math.isnan(out[q + l]):
                    fill_with_nan(grad4, q + l, n[q + l], m[q + l])
                    grad_gamma[q + l] = grad_dummy[q + l] = np.nan
