"""Pairs whose costs leave the range of every exponent: the recursion on vectors of exact sums.

What `exact` computes, in a fifth of the time: cumulated values are expansions of three float64,
lanes are rows as in `hard`, and weights come from differences of expansions. 1 / gamma must be a
float64, and only first derivatives are taken; `exact` does what is left.

The forward pass keeps the weights of small pairs. Of others it keeps the border above each strip,
from which the backward pass computes the strip again, with the weights. `tiles.backward` sweeps
them in two halves of as many rows as it has lanes.
"""

from __future__ import annotations

import math

import numpy as np

from .cell import beside_the_largest, factor, log2_of_one_plus, quotient
from .expansion import (
    WIDE,
    apart,
    enter,
    half,
    least,
    leave,
    load_wide,
    plus,
    store_parts,
    unreached,
)
from .hard import total_of
from .jit import inline, jit, outlined, plain
from .lattice import entry, lattice_of, length
from .scaling import set_rates
from .simd import like, store, where_finite, without_infinity
from .strips import lane_steps, strip_columns
from .subnormal import flush_subnormals, restore
from .tiles import CHUNK, backward, pack

WEIGHTS = 4 * 2**20  # bytes of the weights of a pair that are kept
THREE = (0, 0, 0)
LANES = WIDE // 2  # of `tiles.backward`


@outlined
def walk_strip(
    cost, theta, weak, row, first, steps, starts, stops, rates, packed, border, width, nan_sums,
    final, keep, weights, offset, size,
):  # fmt: skip
    """One strip: reads the border above it, leaves that of its last row, and the last step in
    final. Weights go to two areas of `size` floats, one for each half of the rows.
    """
    here = unreached(THREE)
    up = enter(here, border, width, first)
    nan_sum = load_wide(nan_sums, 0)
    zero, one = like(nan_sum, 0.0), like(nan_sum, 1.0)
    high, low, largest = like(one, rates[0]), like(one, rates[1]), like(one, rates[2])
    told = load_wide(stops, 0)  # three parts hold all there is to tell: not used
    for t0 in range(0, steps, CHUNK):
        t1 = min(steps, t0 + CHUNK)
        pack(cost, theta, weak, row, first, t0, t1, starts, stops, packed)
        for t in range(t0, t1):
            d = load_wide(packed, (t - t0) * WIDE)
            nan_sum = nan_sum + without_infinity(d)
            diagonal, left = up, here
            up = enter(here, border, width, first + t + 1)
            best, _ = least(up, diagonal)
            best, _ = least(left, best)
            f0 = factor(apart(diagonal, best), high, low, largest)
            f1 = factor(apart(up, best), high, low, largest)
            f2 = factor(apart(left, best), high, low, largest)
            total = (f0 + f1) + f2
            if keep:
                inverse = one / total
                p0 = where_finite(best[0], quotient(f0, total, inverse), zero)
                p1 = where_finite(best[0], quotient(f1, total, inverse), zero)
                p2 = where_finite(best[0], quotient(f2, total, inverse), zero)
                at = offset + 3 * LANES * t
                store(weights, at, half(p0, 0))
                store(weights, at + LANES, half(p1, 0))
                store(weights, at + 2 * LANES, half(p2, 0))
                if t >= LANES:  # the second half is as many columns behind
                    at += size - 3 * LANES * LANES
                    store(weights, at, half(p0, 1))
                    store(weights, at + LANES, half(p1, 1))
                    store(weights, at + 2 * LANES, half(p2, 1))
            others = beside_the_largest(f0, f1, f2, total)
            here, told = plus(best, log2_of_one_plus(others) / high, told)
            here, told = plus(here, d, told)
            if t >= WIDE - 1:
                leave(here, border, width, first + t - WIDE + 2)
    store(nan_sums, 0, nan_sum)
    store_parts(here, final, WIDE, 0)


@inline
def copy_parts(source, source_width, at, target, target_width, to, size):
    for part in range(3):
        for c in range(size):
            target[part * target_width + to + c] = source[part * source_width + at + c]


@jit
def solve(
    items, cost4, gamma, dummy, n, m, bandwidth, bounds, value, with_grad, scale, with_gamma,
    grad4, sums,
):  # fmt: skip
    """Values of the pairs q in items, and if asked for their gradients, times scale[q]; see
    `exact.gradient`.
    """
    weak = dummy.size > 0
    per_row = cost4.shape[1]
    packed, nan_sums, final = np.empty(CHUNK * WIDE), np.empty(WIDE), np.empty(3 * WIDE)
    starts, stops = np.empty(WIDE, np.int64), np.empty(WIDE, np.int64)
    half_starts, half_stops = np.empty(LANES, np.int64), np.empty(LANES, np.int64)
    rates, flows = np.empty(3), np.empty(4 * LANES + 1)
    floats = rates[:0]  # for strips of so many rows
    widest, longest, most = plain(0), plain(0), plain(0)
    for q in items:
        n_q, m_q = length(n, q, cost4.shape[2]), length(m, q, cost4.shape[3])
        rows, columns, low, high = lattice_of(n_q, m_q, weak, bandwidth)
        widest, most = max(widest, columns), max(most, (rows + WIDE - 1) // WIDE)
        longest = max(longest, min(columns, high - low + WIDE) + WIDE)
    width, window, size = widest + 3 * WIDE, longest + 1, 3 * LANES * longest
    border, below = np.empty(3 * width), np.empty(width)
    stored = with_grad and 2 * size * most * 8 <= WEIGHTS
    again = with_grad and not stored
    kept = np.empty((most if again else 0, 3 * window))
    weights = np.empty(2 * size * (most if stored else 1) if with_grad else 0)
    values = np.empty(items.size)
    before = flush_subnormals()
    for place, q in enumerate(items):
        cost, theta = cost4[q // per_row, q % per_row], entry(dummy, q) if weak else 0.0
        grad = grad4[q // per_row, q % per_row]
        n_q, m_q = length(n, q, cost4.shape[2]), length(m, q, cost4.shape[3])
        rows, columns, low, high = lattice_of(n_q, m_q, weak, bandwidth)
        set_rates(entry(gamma, q), bounds, rates, 0)
        border[:] = 0.0
        border[1:width] = np.inf  # before column 0 is the virtual cell before the origin
        nan_sums[:] = 0.0
        last = (rows - 1) // WIDE
        for strip in range(last + 1):
            row = strip * WIDE
            first, steps, _ = strip_columns(row, WIDE, rows, columns, low, high)
            lane_steps(row, WIDE, first, rows, columns, low, high, starts, stops)
            if again:
                copy_parts(border, width, first, kept[strip], window, 0, steps + 1)
            walk_strip(
                cost, theta, weak, row, first, steps, starts, stops, rates, packed, border, width,
                nan_sums, final, stored, weights, 2 * size * strip, size,
            )  # fmt: skip
            border[0] = np.inf
        nan_sum = 0.0
        for lane in range(WIDE):
            nan_sum += nan_sums[lane]
        v = total_of(final, (rows - 1) % WIDE, THREE)
        if math.isnan(nan_sum) or nan_sum == -np.inf:  # -inf has no part but the first
            v = np.nan
        values[place] = v
        if not with_grad:
            continue
        finite = math.isfinite(v)
        broken = 0.0 if finite or v == np.inf else np.nan
        grad[:n_q, :m_q] = broken
        sums[0, q] = sums[1, q] = broken
        if not finite:
            continue
        below[:] = 0.0
        dummies = entropy = 0.0
        for strip in range(last, -1, -1):
            row = strip * WIDE
            first, steps, end = strip_columns(row, WIDE, rows, columns, low, high)
            offset = 2 * size * strip
            if again:
                offset = 0
                lane_steps(row, WIDE, first, rows, columns, low, high, starts, stops)
                copy_parts(kept[strip], window, 0, border, width, first, steps + 1)
                walk_strip(
                    cost, theta, weak, row, first, steps, starts, stops, rates, packed, border,
                    width, nan_sums, final, again, weights, offset, size,
                )  # fmt: skip
            for part in range(1, -1, -1):
                begin = part * LANES
                if row + begin >= rows:
                    continue
                lane_steps(
                    row + begin, LANES, first, rows, columns, low, high, half_starts, half_stops
                )
                for c in range(flows.size):
                    flows[c] = 1.0 if c < LANES and c + begin == end else 0.0
                d, h = backward(
                    weak, row + begin, floats, plain(0), steps - begin, first, half_starts,
                    half_stops, scale[q], 0.0, packed, below, weights, offset + part * size, flows,
                    with_gamma, grad,
                )  # fmt: skip
                dummies += d
                entropy += h
                below[first] = flows[4 * LANES]
        sums[0, q], sums[1, q] = dummies, entropy * scale[q]
    restore(before)
    for place, q in enumerate(items):
        value[q] = values[place]  # as float32 it may be subnormal
