"""Long pairs on the CPU: the lanes of a vector are consecutive rows of one pair, one column behind
each other.

A strip is as many rows as a vector has lanes. At step t of a strip, lane k computes the cell (row +
lane, first + t - lane): its left neighbor is its own last result, its upper and diagonal neighbors
are the last two results of the lane before, so everything travels in registers. Between strips one
border goes through memory, indexed by column + 1. Cells outside the lattice, the lengths or the
band are packed as costs of +inf: forbidden like any other.

The forward pass keeps one border. The backward pass keeps one for every block of strips, and works
the blocks from the last to the first: forward again with the weights stored, then back. Nothing of
size N x M is stored.
"""

from __future__ import annotations

import numpy as np

from .blocks import load_block, store_block
from .cell import exponential, quotient, step, surprise
from .jit import inline, jit, outlined, plain
from .lattice import cost_at, entry, give, lattice_of, length
from .scaling import SURE, TINY, conclude, set_rates
from .simd import (
    first_lane,
    keep_above,
    lane_sum,
    last_lane,
    like,
    load,
    shift_down,
    shift_up,
    smaller,
    store,
)
from .subnormal import flush_subnormals, restore

CHUNK = 64  # steps packed at a time: they stay in the first cache level
BLOCK = 32  # smallest number of rows between two kept borders
WEIGHTS = (
    768 * 1024
)  # bytes of weights that a block may take beyond that: they stay in the second cache level


@inline
def strip_columns(row, lanes, rows, columns, low, high):
    """First column of the strip that starts at the row, and its number of steps."""
    first = max(0, row + low)
    last = min(columns - 1, min(row + lanes, rows) - 1 + high)
    return first, last - first + lanes


@inline
def lane_steps(row, lanes, first, rows, columns, low, high, starts, stops):
    """The steps starts[lane] <= t < stops[lane] of the strip at which lane k is inside the lattice
    and the band.
    """
    for lane in range(lanes):
        i = row + lane
        starts[lane] = stops[lane] = 0
        if i < rows:
            starts[lane] = max(first, i + low) - first + lane
            stops[lane] = max(starts[lane], min(columns - 1, i + high) - first + lane + 1)


@outlined
def pack(cost, theta, weak, row, first, t0, t1, starts, stops, packed):
    """packed[(t - t0) lanes + lane] = cost of the cell of lane k at step t, for t0 <= t < t1 (and
    up to a square more).
    """
    lanes = starts.size
    skew = cost.strides[0] - cost.strides[1]
    if not weak and cost.strides[1] == cost.itemsize:
        base = cost.ctypes.data + row * cost.strides[0] + first * cost.strides[1]
        for t in range(t0, t1, lanes):
            load_block(
                cost,
                base + t * cost.strides[1],
                skew,
                starts,
                stops,
                t,
                packed,
                (t - t0) * lanes,
            )
        return
    for k in range(packed.size):
        packed[k] = np.inf
    for lane in range(lanes):
        i, j = row + lane, first - lane
        for t in range(max(starts[lane], t0), min(stops[lane], t1)):
            packed[(t - t0) * lanes + lane] = cost_at(cost, theta, weak, i, j + t)


@outlined
def unpack(mass, weak, row, first, t0, t1, starts, stops, grad):
    """What pack did, backward: mass to the gradient; returns the sum over the dummy cells."""
    lanes = starts.size
    dummies = 0.0
    skew = grad.strides[0] - grad.strides[1]
    if not weak and grad.strides[1] == grad.itemsize:
        base = grad.ctypes.data + row * grad.strides[0] + first * grad.strides[1]
        for t in range(t0, t1, lanes):
            store_block(
                mass,
                (t - t0) * lanes,
                grad,
                base + t * grad.strides[1],
                skew,
                starts,
                stops,
                t,
            )
        return dummies
    for lane in range(lanes):
        i, j = row + lane, first - lane
        for t in range(max(starts[lane], t0), min(stops[lane], t1)):
            e = mass[(t - t0) * lanes + lane]
            dummies += give(grad, weak, i, j + t, e)
    return dummies


@inline
def forward_strip(
    cost, theta, weak, row, lanes, steps, first, starts, stops,
    rates, floor, packed, border_m, border_k, checks, keep, weights, offset,
):  # fmt: skip
    """One strip: reads the border above it, leaves the border of its last row, and the last step in
    checks.

    checks: rows of the minimum of the costs, of a sum that is NaN if a cost is, and of the last
    mantissas. Returns the vector of exponents of the last step.
    """
    r_high, r_low = load(rates, 0), load(rates, lanes)
    smallest, largest = load(rates, 2 * lanes), load(rates, 3 * lanes)
    lowest, nan_sum = load(checks, 0), load(checks, lanes)
    one = like(r_high, 1.0)
    bottom = like(load(border_k, 0), floor)
    m, k = one, bottom
    m_up, k_up = shift_up(one, border_m[first]), shift_up(bottom, border_k[first])
    for t0 in range(0, steps, CHUNK):
        t1 = min(steps, t0 + CHUNK)
        pack(cost, theta, weak, row, first, t0, t1, starts, stops, packed)
        for t in range(t0, t1):
            d = load(packed, (t - t0) * lanes)
            w, dk = exponential(d, r_high, r_low, smallest, largest)
            lowest = smaller(d, lowest)
            nan_sum = nan_sum + w
            m_diagonal, k_diagonal = m_up, k_up
            m_up, k_up = (
                shift_up(m, border_m[first + t + 1]),
                shift_up(k, border_k[first + t + 1]),
            )
            m, k, p_diagonal, p_up, p_left, total = step(
                w, dk, bottom, m_diagonal, k_diagonal, m_up, k_up, m, k
            )
            if t >= lanes - 1:
                border_m[first + t - lanes + 2] = last_lane(m)
                border_k[first + t - lanes + 2] = last_lane(k)
            if keep:
                share = one / total
                at = offset + 3 * lanes * t
                store(weights, at, quotient(p_diagonal, total, share))
                store(weights, at + lanes, quotient(p_up, total, share))
                store(weights, at + 2 * lanes, quotient(p_left, total, share))
    store(checks, 0, lowest)
    store(checks, lanes, nan_sum)
    store(checks, 2 * lanes, m)
    return k


@outlined
def backward_strip(
    weak, row, lanes, steps, first, starts, stops, scale, tiny,
    mass, below, weights, offset, end, with_gamma, grad,
):  # fmt: skip
    """One strip of the adjoint recursion; `below` holds what the strip below gives to each column +
    1.

    end: lane of the final cell if this is the strip that holds it, else -1. Returns the sums of the
    expected visits over the dummy cells, and of the expected visits times the entropy of the
    weights in bits.
    """
    for lane in range(lanes):
        mass[lane] = 1.0 if lane == end else 0.0
    from_right = load(mass, 0)
    zero, threshold = like(from_right, 0.0), like(from_right, tiny)
    factor = like(from_right, scale)
    up_next, diagonal_next, diagonal_after = (
        zero,
        zero,
        zero,
    )  # of steps t + 1, t + 1 and t + 2
    corner = first_lane(zero)
    dummies = entropy = 0.0
    for t0 in range((steps - 1) // CHUNK * CHUNK, -1, -CHUNK):
        t1 = min(steps, t0 + CHUNK)
        bits = zero
        for t in range(t1 - 1, t0 - 1, -1):
            at = offset + 3 * lanes * t
            p_diagonal, p_up = load(weights, at), load(weights, at + lanes)
            p_left = load(weights, at + 2 * lanes)
            handed = below[max(0, first + t - lanes + 2)]
            from_below = shift_down(up_next, handed) + shift_down(diagonal_after, first_lane(zero))
            e = keep_above(from_right + from_below, threshold)
            store(mass, (t - t0) * lanes, e * factor)
            if with_gamma:
                bits = bits + e * (surprise(p_diagonal) + (surprise(p_up) + surprise(p_left)))
            from_right, up_next = e * p_left, e * p_up
            diagonal_next, diagonal_after = e * p_diagonal, diagonal_next
            below[first + t + 1] = first_lane(up_next) + corner
            corner = first_lane(diagonal_next)
        entropy += lane_sum(bits)
        dummies += unpack(mass, weak, row, first, t0, t1, starts, stops, grad)
    below[first] = corner
    return dummies, entropy


@inline
def reset_border(border_m, border_k, floor, origin):
    for c in range(border_m.size):
        border_m[c], border_k[c] = 1.0, floor
    if origin:
        border_k[0] = 0  # the virtual cell before the origin, Z = 1


@outlined
def forward_block(
    cost, theta, weak, start, stop, lanes, rows, columns, low, high, starts, stops,
    rates, floor, packed, border_m, border_k, checks, keep, weights, stride,
):  # fmt: skip
    """The strips of the rows start <= row < stop; returns the exponent of the final cell if it is
    among them.
    """
    final = floor
    for row in range(start, stop, lanes):
        first, steps = strip_columns(row, lanes, rows, columns, low, high)
        end = rows - 1 - row
        if end < lanes:
            steps = columns - first + end
        lane_steps(row, lanes, first, rows, columns, low, high, starts, stops)
        k = forward_strip(
            cost, theta, weak, row, lanes, steps, first, starts, stops, rates, floor,
            packed, border_m, border_k, checks, keep, weights, (row - start) // lanes * stride,
        )  # fmt: skip
        if row == 0:
            border_k[0] = floor
        if end < lanes:
            store(border_k, columns + 2, k)
            final = border_k[columns + 2 + end]
    return final


@inline
def lattice_of_pair(q, shape, n, m, weak, bandwidth):
    return lattice_of(length(n, q, shape[2]), length(m, q, shape[3]), weak, bandwidth)


@inline
def begin_pair(gamma, bounds, rate, checks):
    lanes = rate.size // 4
    for lane in range(lanes):
        set_rates(gamma, bounds, rate, lane)
        checks[lane], checks[lanes + lane] = np.inf, 0.0


@inline
def end_pair(checks, exponent, rows, columns, gamma, floor, bounds, to_return):
    """The value of a pair and its status, from what the strips left in the lanes."""
    lanes = checks.size // 3
    lowest, nan_sum = np.inf, 0.0
    for lane in range(lanes):
        lowest = min(lowest, checks[lane])
        nan_sum += checks[lanes + lane]
    mantissa = checks[2 * lanes + (rows - 1) % lanes]
    return conclude(
        mantissa, exponent, lowest, nan_sum, gamma, rows, columns, floor, bounds, to_return
    )


@inline
def keep_border(border, kept, at, begin, size, restore):
    for c in range(size):
        if restore:
            border[begin + c] = kept[at + c]
        else:
            kept[at + c] = border[begin + c]


@jit
def solve(
    first, last, cost4, gamma, dummy, n, m, bandwidth, floats, integers, floor, bounds,
    value, status, with_grad, scale, with_gamma, grad4, sums,
):  # fmt: skip
    """Recursion and, if asked for, its adjoint for the pairs first <= q < last; see
    `lanes.solve`.

    The gradients of a pair that cannot be certified are not written.
    """
    weak = dummy.size > 0
    per_row = cost4.shape[1]
    lanes = 64 // floats.itemsize
    packed = np.empty(CHUNK * lanes, floats.dtype)
    rate, checks = np.empty(4 * lanes, floats.dtype), np.empty(3 * lanes, floats.dtype)
    starts, stops = np.empty(lanes, np.int64), np.empty(lanes, np.int64)
    longest, kept = plain(0), plain(0)
    tallest, widest, _, _ = lattice_of(cost4.shape[2], cost4.shape[3], weak, bandwidth)
    for q in range(first, last):
        rows, columns, low, high = lattice_of_pair(q, cost4.shape, n, m, weak, bandwidth)
        longest = max(longest, min(columns, high - low + lanes) + lanes)
    stride = 3 * lanes * longest
    strips = max(BLOCK // lanes, WEIGHTS // (stride * floats.itemsize))
    height = lanes * ((tallest + lanes - 1) // lanes)
    if with_grad:
        height = min(height, lanes * strips)
    for q in range(first, last):
        rows, columns, low, high = lattice_of_pair(q, cost4.shape, n, m, weak, bandwidth)
        window = min(columns, high - low + 1) + 3
        kept = max(kept, (rows - 1) // height * window)
    weights = np.empty(height // lanes * stride if with_grad else 0, floats.dtype)
    border_m = np.empty(widest + 3 * lanes, floats.dtype)
    border_k = np.empty(widest + 3 * lanes, integers.dtype)
    kept_m, kept_k = np.empty(kept, floats.dtype), np.empty(kept, integers.dtype)
    below = np.empty(widest + 3 * lanes, floats.dtype)
    before = flush_subnormals()
    for q in range(first, last):
        cost, grad = cost4[q // per_row, q % per_row], grad4[q // per_row, q % per_row]
        theta = entry(dummy, q) if weak else 0.0
        rows, columns, low, high = lattice_of_pair(q, cost4.shape, n, m, weak, bandwidth)
        window = min(columns, high - low + 1) + 3
        begin_pair(entry(gamma, q), bounds, rate, checks)
        reset_border(border_m, border_k, floor, plain(True))
        final_part = (rows - 1) // height
        k = np.int64(floor)
        for part in range(final_part + 1):
            start, stop = part * height, min(rows, (part + 1) * height)
            last_part = part == final_part
            k = forward_block(
                cost, theta, weak, start, stop, lanes, rows, columns, low, high, starts, stops,
                rate, floor, packed, border_m, border_k, checks, with_grad and last_part,
                weights, stride,
            )  # fmt: skip
            if not last_part:
                begin = max(0, stop + low)
                size = min(window, columns + 2 - begin)
                keep_border(border_m, kept_m, part * window, begin, size, plain(False))
                keep_border(border_k, kept_k, part * window, begin, size, plain(False))
        value[q], status[q] = end_pair(
            checks, k, rows, columns, entry(gamma, q), floor, bounds, not with_grad
        )
        if status[q] != SURE or not with_grad:
            continue
        for c in range(below.size):
            below[c] = 0.0
        dummies = entropy = 0.0
        for part in range(final_part, -1, -1):
            start, stop = part * height, min(rows, (part + 1) * height)
            if part < final_part:
                reset_border(border_m, border_k, floor, part == 0)
                if part > 0:
                    begin = max(0, start + low)
                    size = min(window, columns + 2 - begin)
                    keep_border(border_m, kept_m, (part - 1) * window, begin, size, plain(True))
                    keep_border(border_k, kept_k, (part - 1) * window, begin, size, plain(True))
                forward_block(
                    cost, theta, weak, start, stop, lanes, rows, columns, low, high, starts, stops,
                    rate, floor, packed, border_m, border_k, checks, plain(True), weights, stride,
                )  # fmt: skip
            for row in range(start + (stop - 1 - start) // lanes * lanes, start - 1, -lanes):
                left, steps = strip_columns(row, lanes, rows, columns, low, high)
                here = rows - 1 - row
                if here < lanes:
                    steps = columns - left + here
                lane_steps(row, lanes, left, rows, columns, low, high, starts, stops)
                d, h = backward_strip(
                    weak, row, lanes, steps, left, starts, stops, scale[q], bounds[TINY],
                    packed, below, weights, (row - start) // lanes * stride,
                    here if here < lanes else -1, with_gamma, grad,
                )  # fmt: skip
                dummies += d
                entropy += h
        sums[0, q], sums[1, q] = dummies, entropy * scale[q]
    restore(before)
