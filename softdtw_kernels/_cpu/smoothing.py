"""Local smoothing of S2DTW: s[i,j] = d[i,j] + softmin_g of the raw costs of the predecessors inside
the matrix.

Lanes are pairs of the batch, as in `lanes`, whose groups and packing these kernels share. The
hard minimum (gamma = 0, and gammas whose inverse fits no float) has a scalar kernel of its own.
"""

from __future__ import annotations

import math

import numpy as np

from .cell import beside_the_largest, factor, log2_of_one_plus, quotient, surprise
from .jit import inline, jit
from .lanes import begin_group, find_places, pack, row_bounds, unpack
from .lattice import length
from .scaling import LOG2_E
from .simd import like, load, smaller, store, where_finite, without_infinity
from .subnormal import flush_subnormals, restore


@inline
def softmin(diagonal, up, left, r_high, r_low, largest):
    """Smallest of the three, their factors on its scale, and the sum of these."""
    best = smaller(diagonal, smaller(up, left))
    f0 = factor(diagonal - best, r_high, r_low, largest)
    f1 = factor(up - best, r_high, r_low, largest)
    f2 = factor(left - best, r_high, r_low, largest)
    return best, f0, f1, f2, (f0 + f1) + f2


@jit
def smooth(first, last, items, cost4, gamma, n, m, floats, bounds, origin, out4):
    """origin: log(origin_count). Cells beyond the lengths are not written."""
    columns = cost4.shape[3]
    lanes = 64 // floats.itemsize
    above = np.empty((columns + lanes) * lanes, floats.dtype)
    here = np.empty((columns + lanes) * lanes, floats.dtype)
    result = np.empty((columns + lanes) * lanes, floats.dtype)
    rate = np.empty(3 * lanes, floats.dtype)
    starts, stops = np.empty(lanes, np.int64), np.empty(lanes, np.int64)
    geometry, pairs = np.empty((6, lanes), np.int64), np.empty(lanes, np.int64)
    places, out_places = np.empty(lanes, np.int64), np.empty(lanes, np.int64)
    before = flush_subnormals()
    for index in range(first, last):
        count, rows, _ = begin_group(
            index, items, cost4.shape, gamma, n, m, False, -1, bounds, geometry, rate, pairs
        )
        find_places(cost4, pairs, places)
        find_places(out4, pairs, out_places)
        r_high, r_low = load(rate, 0), load(rate, lanes)
        largest = load(rate, 2 * lanes)
        infinite = like(r_high, np.inf)
        for i in range(rows):
            whole = row_bounds(i, geometry, count, False, columns, starts, stops)
            pack(cost4, pairs, places, i, starts, stops, whole, columns, here)
            diagonal, left = infinite, infinite
            for j in range(columns):
                d = load(here, j * lanes)
                up = load(above, j * lanes) if i > 0 else infinite
                best, f0, f1, f2, total = softmin(diagonal, up, left, r_high, r_low, largest)
                # softmin = best - g ln(total) = best + log2(total) / rate. With costs small against
                # gamma it is the sum of small numbers: log2(1) must be 0, not a rounding of it.
                others = beside_the_largest(f0, f1, f2, total)
                s = d + (best + log2_of_one_plus(others) / r_high)
                s = where_finite(best, s, d + best)
                if i == 0 and j == 0:
                    s = d + like(d, origin * LOG2_E) / r_high
                store(result, j * lanes, s)
                diagonal, left = up, d
            unpack(result, out4, pairs, out_places, i, starts, stops, whole, columns)
            above, here = here, above
    restore(before)


@jit
def smooth_vjp(
    first, last, items, cost4, gamma, n, m, floats, bounds, origin, adjoint4, grad4, grad_gamma
):  # fmt: skip
    """Adjoint of smooth. The derivative of a softmin by gamma is minus its entropy."""
    columns = cost4.shape[3]
    lanes = 64 // floats.itemsize
    above = np.empty((columns + lanes) * lanes, floats.dtype)
    here = np.empty((columns + lanes) * lanes, floats.dtype)
    mass = np.empty((columns + lanes) * lanes, floats.dtype)
    grad_above = np.empty((columns + lanes) * lanes, floats.dtype)
    grad_here = np.empty((columns + lanes) * lanes, floats.dtype)
    rate, bits_of_row = np.empty(3 * lanes, floats.dtype), np.empty(lanes, floats.dtype)
    starts, stops = np.empty(lanes, np.int64), np.empty(lanes, np.int64)
    geometry, pairs = np.empty((6, lanes), np.int64), np.empty(lanes, np.int64)
    places, adjoint_places = np.empty(lanes, np.int64), np.empty(lanes, np.int64)
    grad_places = np.empty(lanes, np.int64)
    before = flush_subnormals()
    for index in range(first, last):
        count, rows, _ = begin_group(
            index, items, cost4.shape, gamma, n, m, False, -1, bounds, geometry, rate, pairs
        )
        find_places(cost4, pairs, places)
        find_places(adjoint4, pairs, adjoint_places)
        find_places(grad4, pairs, grad_places)
        r_high, r_low = load(rate, 0), load(rate, lanes)
        largest = load(rate, 2 * lanes)
        infinite, zero, one = like(r_high, np.inf), like(r_high, 0.0), like(r_high, 1.0)
        for lane in range(count):
            grad_gamma[pairs[lane]] = 0.0
        for i in range(rows):
            whole = row_bounds(i, geometry, count, False, columns, starts, stops)
            pack(cost4, pairs, places, i, starts, stops, whole, columns, here)
            pack(adjoint4, pairs, adjoint_places, i, starts, stops, whole, columns, mass)
            diagonal, left, bits = infinite, infinite, zero
            for j in range(columns):
                # Beyond the lengths the packed mass is +inf; a NaN is one of the pair's own.
                d, p = load(here, j * lanes), without_infinity(load(mass, j * lanes))
                up = load(above, j * lanes) if i > 0 else infinite
                best, f0, f1, f2, total = softmin(diagonal, up, left, r_high, r_low, largest)
                inverse = one / total
                if i == 0 and j == 0:
                    w0, w1, w2 = zero, zero, zero
                else:
                    w0 = where_finite(best, quotient(f0, total, inverse), zero)
                    w1 = where_finite(best, quotient(f1, total, inverse), zero)
                    w2 = where_finite(best, quotient(f2, total, inverse), zero)
                bits = bits + p * (surprise(w0) + (surprise(w1) + surprise(w2)))
                if j > 0:
                    store(
                        grad_here,
                        (j - 1) * lanes,
                        load(grad_here, (j - 1) * lanes) + p * w2,
                    )
                store(grad_here, j * lanes, p)
                if i > 0:
                    store(grad_above, j * lanes, load(grad_above, j * lanes) + p * w1)
                    if j > 0:
                        received = load(grad_above, (j - 1) * lanes) + p * w0
                        store(grad_above, (j - 1) * lanes, received)
                diagonal, left = up, d
            store(bits_of_row, 0, bits)
            for lane in range(count):
                grad_gamma[pairs[lane]] -= bits_of_row[lane] * math.log(2.0)
                if i == 0:
                    grad_gamma[pairs[lane]] -= mass[lane] * origin
            if i > 0:
                whole = row_bounds(i - 1, geometry, count, False, columns, starts, stops)
                unpack(grad_above, grad4, pairs, grad_places, i - 1, starts, stops, whole, columns)
            above, here = here, above
            grad_above, grad_here = grad_here, grad_above
        whole = row_bounds(rows - 1, geometry, count, False, columns, starts, stops)
        unpack(grad_above, grad4, pairs, grad_places, rows - 1, starts, stops, whole, columns)
    restore(before)


@inline
def hard_choice(cost, i, j):
    """The smallest predecessor of (i, j), and its indices; (+inf, 0, 0) if there is none, NaN if
    one is NaN.
    """
    best, a, b = np.inf, 0, 0
    for k in range(3):
        r, c = i - (k < 2), j - (k != 1)
        if r >= 0 and c >= 0:
            if math.isnan(cost[r, c]):
                return np.nan, r, c
            if cost[r, c] < best:
                best, a, b = cost[r, c], r, c
    return best, a, b


@jit
def hard(cost4, n, m, items, out4):
    """The limit gamma = 0."""
    for q in items:
        a, b = q // cost4.shape[1], q % cost4.shape[1]
        cost, out = cost4[a, b], out4[a, b]
        for i in range(length(n, q, cost4.shape[2])):
            for j in range(length(m, q, cost4.shape[3])):
                out[i, j] = cost[i, j]
                if i + j > 0:
                    out[i, j] = cost[i, j] + hard_choice(cost, i, j)[0]


@jit
def hard_vjp(cost4, n, m, items, adjoint4, grad4):
    for q in items:
        a, b = q // cost4.shape[1], q % cost4.shape[1]
        cost, adjoint, grad = cost4[a, b], adjoint4[a, b], grad4[a, b]
        for i in range(length(n, q, cost4.shape[2])):
            for j in range(length(m, q, cost4.shape[3])):
                grad[i, j] = 0.0
        for i in range(length(n, q, cost4.shape[2])):
            for j in range(length(m, q, cost4.shape[3])):
                grad[i, j] += adjoint[i, j]
                best, r, c = hard_choice(cost, i, j)
                if best < np.inf:
                    grad[r, c] += adjoint[i, j]
