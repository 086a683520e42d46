"""Local smoothing of S2DTW: s[i,j] = d[i,j] + softmin_g of the raw costs of the predecessors inside
the matrix.

No cell waits for another. Some rows of a pair at a time, and the row above them, stand in a frame
one behind the other, before each of them a +inf: so the predecessors of the consecutive cells of a
vector are three vectors too, however short the rows are. The hard minimum (gamma = 0, and gammas
whose inverse fits no float) has a scalar kernel of its own.
"""

from __future__ import annotations

import math

import numpy as np

from .blocks import load_some, store_some
from .cell import beside_the_largest, factor, log2_of_one_plus, quotient
from .floating import fma
from .jit import inline, jit, outlined
from .lattice import entry, length
from .memory import empty, filled
from .scaling import LOG2_E, set_rates
from .simd import (
    lane_sum,
    load,
    smaller,
    splat,
    store,
    where_above,
    where_finite,
)
from .subnormal import flush_subnormals, restore

FRAME = 2048  # cells: the frames stay in the first cache levels


@inline
def softmin(excesses, r_high, r_low, largest):
    """Factors of the costs beyond the smallest of three; their sum, and it but for the largest
    factor, which is 1; NaN if the sum is.
    """
    f0 = factor(excesses[0], r_high, r_low, largest)
    f1 = factor(excesses[1], r_high, r_low, largest)
    f2 = factor(excesses[2], r_high, r_low, largest)
    total = (f0 + f1) + f2
    return (f0, f1, f2), total, beside_the_largest(f0, f1, f2, total)


@inline
def predecessors(frame, c, width):
    """The smallest of the costs diagonal, above and to the left, and these beyond it."""
    diagonal, up, left = load(frame, c - width - 1), load(frame, c - width), load(frame, c - 1)
    best = smaller(diagonal, smaller(up, left))
    return best, (diagonal - best, up - best, left - best)


@outlined
def fill_rows(memory, at, strides, count, size, frame, row, width, mark):
    """Some rows of a matrix into the frame, a mark before and a mark behind each."""
    lanes = 64 // frame.itemsize
    whole = size // lanes * lanes
    for k in range(count):
        before, place = row + k * width, at + k * strides[2]
        frame[before] = mark
        if strides[3] == 1:
            for j in range(0, whole, lanes):
                store(frame, before + 1 + j, load(memory, place + j))
            store(frame, before + 1 + whole, load_some(memory, place + whole, size - whole))
        else:
            for j in range(size):
                frame[before + 1 + j] = memory[place + j * strides[3]]
            frame[before + 1 + size] = mark


@outlined
def write_rows(result, row, width, count, size, memory, at, strides):
    """What fill_rows did, backward."""
    lanes = 64 // result.itemsize
    whole = size // lanes * lanes
    for k in range(count):
        before, place = row + k * width, at + k * strides[2]
        if strides[3] == 1:
            for j in range(0, whole, lanes):
                store(memory, place + j, load(result, before + 1 + j))
            store_some(memory, place + whole, load(result, before + 1 + whole), size - whole)
        else:
            for j in range(size):
                memory[place + j * strides[3]] = result[before + 1 + j]


@inline
def copy_row(frame, row, size):
    """A row to the begin of the frame, and some more, which is filled again."""
    for j in range(0, size, 64 // frame.itemsize):
        store(frame, j, load(frame, row + j))


@outlined
def smooth_rows(frame, width, stop, rates, result):
    """The cells width < c < stop of a frame."""
    lanes = 64 // frame.itemsize
    r_high, r_low, largest = splat(rates[0]), splat(rates[1]), splat(rates[2])
    for c in range(width + 1, stop, lanes):
        d = load(frame, c)
        best, excesses = predecessors(frame, c, width)
        _, _, others = softmin(excesses, r_high, r_low, largest)
        # softmin = best - g ln(total) = best + log2(total) / rate. With costs small against gamma
        # it is the sum of small numbers: log2(1) must be 0, not a rounding of it.
        s = d + (best + log2_of_one_plus(others) / r_high)
        store(result, c, where_finite(best, s, d + best))


@jit
def smooth(first, last, costs, shape, strides, gamma, n, m, bounds, origin, out, out_strides):
    """The pairs first <= q < last; costs and out are flat, with strides in elements.

    origin: log(origin_count). Cells beyond the lengths are not written.
    """
    size, slack = FRAME + 2 * (shape[3] + 1), 2 * (64 // costs.itemsize)
    frame, result = empty(size + slack, costs.dtype), empty(size + slack, costs.dtype)
    rates, of_origin = empty(3, costs.dtype), empty(1, costs.dtype)
    before = flush_subnormals()
    for q in range(first, last):
        a, b = q // shape[1], q % shape[1]
        at, to = a * strides[0] + b * strides[1], a * out_strides[0] + b * out_strides[1]
        rows, columns = length(n, q, shape[2]), length(m, q, shape[3])
        width = columns + 1
        height = max(1, FRAME // width)
        if q == first or gamma.size > 1:
            set_rates(entry(gamma, q), bounds, rates, 0)
        of_origin[0] = origin * LOG2_E
        for j in range(width):
            frame[j] = np.inf
        for start in range(0, rows, height):
            count = min(height, rows - start)
            place = at + start * strides[2]
            fill_rows(costs, place, strides, count, columns, frame, width, width, np.inf)
            smooth_rows(frame, width, (count + 1) * width, rates, result)
            if start == 0:
                result[width + 1] = frame[width + 1] + of_origin[0] / rates[0]
            place = to + start * out_strides[2]
            write_rows(result, width, width, count, columns, out, place, out_strides)
            copy_row(frame, count * width, width)
    restore(before)


@outlined
def give_rows(frame, width, stop, rates, mass, by_diagonal, by_up, by_left):
    """What the cells width < c < stop of a frame give to their predecessors; returns the sum of
    their masses times the entropies of their weights, in bits.

    mass: 0 between rows. Where a weight is 0 nothing is given, whatever the mass is.
    """
    lanes = 64 // frame.itemsize
    r_high, r_low, largest = splat(rates[0]), splat(rates[1]), splat(rates[2])
    zero, one = splat(rates[3]), splat(rates[4])
    bits = zero
    for c in range(width + 1, stop, lanes):
        p = load(mass, c)
        best, excesses = predecessors(frame, c, width)
        factors, total, others = softmin(excesses, r_high, r_low, largest)
        inverse = one / total
        w0 = where_finite(best, quotient(factors[0], total, inverse), zero)
        w1 = where_finite(best, quotient(factors[1], total, inverse), zero)
        w2 = where_finite(best, quotient(factors[2], total, inverse), zero)
        # log2 of a weight is its cost beyond the smallest, times the rate, minus log2 of the sum.
        lost = w0 * smaller(excesses[0], largest) + (
            w1 * smaller(excesses[1], largest) + w2 * smaller(excesses[2], largest)
        )
        entropy = where_finite(best, log2_of_one_plus(others) - lost * r_high, zero)
        bits = bits + where_above(entropy, zero, p * entropy)
        store(by_diagonal, c, where_above(w0, zero, p * w0))
        store(by_up, c, where_above(w1, zero, p * w1))
        store(by_left, c, where_above(w2, zero, p * w2))
    return lane_sum(bits)


@outlined
def gather(mass, by_left, by_up, by_diagonal, row, width, count, final, result):
    """The gradients of some rows: to their masses comes what is given from the right and, if a row
    is not the final one, from below.
    """
    lanes = 64 // mass.itemsize
    edge = row + (count - 1 if final else count) * width
    for c in range(row, edge, lanes):
        given = load(mass, c) + load(by_left, c + 1)
        given = (given + load(by_up, c + width)) + load(by_diagonal, c + width + 1)
        store(result, c, given)
    if final:
        for c in range(edge, edge + width, lanes):
            store(result, c, load(mass, c) + load(by_left, c + 1))


@jit
def smooth_vjp(
    first, last, costs, shape, strides, gamma, n, m, bounds, origin,
    adjoint, adjoint_strides, grad, grad_strides, grad_gamma,
):  # fmt: skip
    """Adjoint of smooth. The derivative of a softmin by gamma is minus its entropy."""
    size, slack = FRAME + 2 * (shape[3] + 1), 2 * (64 // costs.itemsize)
    frame, mass = empty(size + slack, costs.dtype), empty(size + slack, costs.dtype)
    by_diagonal, by_up = empty(size + slack, costs.dtype), empty(size + slack, costs.dtype)
    by_left, result = empty(size + slack, costs.dtype), empty(size + slack, costs.dtype)
    rates = empty(5, costs.dtype)
    rates[3], rates[4] = 0.0, 1.0
    before = flush_subnormals()
    for q in range(first, last):
        a, b = q // shape[1], q % shape[1]
        at, to = a * strides[0] + b * strides[1], a * grad_strides[0] + b * grad_strides[1]
        of = a * adjoint_strides[0] + b * adjoint_strides[1]
        rows, columns = length(n, q, shape[2]), length(m, q, shape[3])
        width = columns + 1
        height = max(1, FRAME // width)
        if q == first or gamma.size > 1:
            set_rates(entry(gamma, q), bounds, rates[:3], 0)
        for j in range(width):
            frame[j] = np.inf
        bits = 0.0
        for start in range(0, rows, height):
            count = min(height, rows - start)
            place = at + start * strides[2]
            fill_rows(costs, place, strides, count, columns, frame, width, width, np.inf)
            place = of + start * adjoint_strides[2]
            fill_rows(adjoint, place, adjoint_strides, count, columns, mass, width, width, 0.0)
            end = (count + 1) * width
            for c in range(end, end + slack):
                frame[c], mass[c] = np.inf, 0.0
            if start == 0:
                grad_gamma[q] = -mass[width + 1] * origin
            by_left[width] = 0.0
            bits += give_rows(frame, width, end + 1, rates, mass, by_diagonal, by_up, by_left)
            # The row above the frame's own is known now, and the last of the pair's.
            begin, final = 0 if start > 0 else 1, start + count == rows
            known = count - begin + (1 if final else 0)
            gather(mass, by_left, by_up, by_diagonal, begin * width, width, known, final, result)
            place = to + (start - 1 + begin) * grad_strides[2]
            write_rows(result, begin * width, width, known, columns, grad, place, grad_strides)
            copy_row(frame, count * width, width)
            copy_row(mass, count * width, width)
            copy_row(by_left, count * width, width)
        grad_gamma[q] -= bits * math.log(2.0)
    restore(before)


@outlined
def give_rows_along(
    frame, tangent, mass, width, stop, rates, slope, rise, along, by_diagonal, by_up, by_left
):  # fmt: skip
    """The tangent of the smoothing at the cells width < c < stop of a frame, and the tangent of
    what they give to their predecessors; returns the sum of the latter times log2 of the weights.

    slope: -1 / g; rise: the tangent of g times ln 2. mass and tangent: 0 between rows.
    """
    lanes = 64 // frame.itemsize
    r_high, r_low, largest = splat(rates[0]), splat(rates[1]), splat(rates[2])
    zero, one = splat(rates[3]), splat(rates[4])
    by_gamma, minus_inverse, bits = splat(rise), splat(slope), zero
    for c in range(width + 1, stop, lanes):
        p = load(mass, c) * minus_inverse
        best, (d0, d1, d2) = predecessors(frame, c, width)
        factors, total, others = softmin((d0, d1, d2), r_high, r_low, largest)
        inverse = one / total
        w0 = where_finite(best, quotient(factors[0], total, inverse), zero)
        w1 = where_finite(best, quotient(factors[1], total, inverse), zero)
        w2 = where_finite(best, quotient(factors[2], total, inverse), zero)
        # log2 of a weight, but for that of the sum, which cancels in differences.
        e0, e1 = smaller(d0, largest) * r_high, smaller(d1, largest) * r_high
        e2 = smaller(d2, largest) * r_high
        a0 = fma(by_gamma, e0, where_finite(d0, load(tangent, c - width - 1), zero))
        a1 = fma(by_gamma, e1, where_finite(d1, load(tangent, c - width), zero))
        a2 = fma(by_gamma, e2, where_finite(d2, load(tangent, c - 1), zero))
        mean = where_finite(best, w0 * a0 + (w1 * a1 + w2 * a2), zero)
        level = where_finite(best, log2_of_one_plus(others), zero)
        store(along, c, load(tangent, c) + (mean - by_gamma * level))
        f0 = where_above(w0, zero, p * w0 * (a0 - mean))
        f1 = where_above(w1, zero, p * w1 * (a1 - mean))
        f2 = where_above(w2, zero, p * w2 * (a2 - mean))
        bits = bits + where_finite(best, f0 * e0 + (f1 * e1 + f2 * e2), zero)
        store(by_diagonal, c, f0)
        store(by_up, c, f1)
        store(by_left, c, f2)
    return lane_sum(bits)


@jit
def smooth_second_order(
    first, last, costs, shape, strides, gamma, n, m, bounds, origin,
    tangents, tangent_gamma, adjoint, grad, along, grad_gamma,
):  # fmt: skip
    """The derivative of smooth along the tangents, to along, and that of its adjoint: by the costs
    and by gamma. Of float64, and matrices of the same strides.
    """
    size, slack = FRAME + 2 * (shape[3] + 1), 16
    frame, mass, tangent = empty(size + slack), empty(size + slack), empty(size + slack)
    by_diagonal, by_up = empty(size + slack), empty(size + slack)
    by_left, result = empty(size + slack), empty(size + slack)
    nothing, rates = filled(size + slack, 0.0), empty(5)
    rates[3], rates[4] = 0.0, 1.0
    before = flush_subnormals()
    for q in range(first, last):
        at = q // shape[1] * strides[0] + q % shape[1] * strides[1]
        rows, columns = length(n, q, shape[2]), length(m, q, shape[3])
        width = columns + 1
        height = max(1, FRAME // width)
        g, dg = entry(gamma, q), tangent_gamma[q]
        set_rates(g, bounds, rates[:3], 0)
        for j in range(width):
            frame[j] = np.inf
        bits = 0.0
        for start in range(0, rows, height):
            count = min(height, rows - start)
            place, end = at + start * strides[2], (count + 1) * width
            fill_rows(costs, place, strides, count, columns, frame, width, width, np.inf)
            fill_rows(adjoint, place, strides, count, columns, mass, width, width, 0.0)
            fill_rows(tangents, place, strides, count, columns, tangent, width, width, 0.0)
            for c in range(end, end + slack):
                frame[c], mass[c] = np.inf, 0.0
            by_left[width] = 0.0
            bits += give_rows_along(
                frame, tangent, mass, width, end + 1, rates, -1.0 / g, dg * math.log(2.0),
                result, by_diagonal, by_up, by_left,
            )  # fmt: skip
            if start == 0:
                result[width + 1] -= dg * origin
            write_rows(result, width, width, count, columns, along, place, strides)
            begin, final = 0 if start > 0 else 1, start + count == rows
            known = count - begin + (1 if final else 0)
            row = begin * width
            gather(nothing, by_left, by_up, by_diagonal, row, width, known, final, result)
            place += (begin - 1) * strides[2]
            write_rows(result, row, width, known, columns, grad, place, strides)
            copy_row(frame, count * width, width)
            copy_row(tangent, count * width, width)
            copy_row(by_left, count * width, width)
        grad_gamma[q] = bits * math.log(2.0)
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
