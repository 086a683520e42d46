"""The hard minimum, gamma = 0: the cheapest path, and its cost as the value.

Two comparisons choose the predecessor of a cell: of equal ones the diagonal one, then the one
above. Both are kept as bits, a quarter of a byte a cell, and one walk back along them is the
gradient. Costs are cumulated as `expansion`s, so a choice is that of exact sums, and ties are ties.
A pair whose sums two parts cannot hold is not certified, and done again with three: there is no
other tier. With margins sums are rounded, and only pairs are certified in which no rounding counts:
see `margins`.

`solve` has the rows of one pair in the lanes, as `strips` has; `solve_many` has pairs of a batch in
them, as `lanes` has. Subnormal costs count: they are not flushed here, factors of gradients are.
"""

from __future__ import annotations

import math

import numpy as np

from .ends import LEFT_OUT
from .expansion import (
    WIDE,
    enter,
    least,
    leave,
    load_parts,
    load_wide,
    plus,
    store_parts,
    unreached,
)
from .groups import bounds_of_row, pack_row
from .hard_paths import adjoint, trace
from .hard_patterns import (
    begin_in_lanes,
    begin_in_strip,
    cheapest,
    cheapest_end,
    find_in_lanes,
    find_in_strip,
    pattern_of,
)
from .jit import inline, jit, outlined, plain
from .lattice import entry, has_pairs, lattice_of, length, of_cost, size_of
from .margins import WORDS, finish, least_of, margin_of, words_of
from .memory import empty, filled
from .scaling import AGAIN, SURE
from .simd import like, store
from .strips import lane_steps, strip_columns
from .tiles import CHUNK, pack

# Parts of the expansions that a kernel cumulates in; one with margins.
ONE, TWO, THREE = (0,), (0, 0), (0, 0, 0)


@inline
def holds_nan(cost, n, m, bandwidth):
    for i in range(n):
        start, stop = bounds_of_row(i, n, m, bandwidth)
        for j in range(start, stop):
            if math.isnan(cost[i, j]):
                return True
    return False


@inline
def total_of(final, lane, parts):
    """The sum of the parts, rounded once."""
    total = 0.0
    for k in range(len(parts) - 1, -1, -1):
        total = final[k * WIDE + lane] + total
    if len(parts) == 3:
        high, middle, low = final[lane], final[WIDE + lane], final[2 * WIDE + lane]
        # Halfway between two floats the third part decides, which is lost beside the second.
        if low != 0.0 and (middle > 0.0) == (low > 0.0):
            step = 2.0 * middle
            if (high + step) - high == step:
                total = high + step
    return total


@outlined
def conclude(total, nan_sum, lost, parts, cost, theta, n, m, bandwidth):
    """The value of a pair, and whether it and the choices are certain.

    nan_sum: NaN if a cost is, or if infinities of both signs are among them.
    """
    if math.isnan(nan_sum) and (math.isnan(theta) or holds_nan(cost, n, m, bandwidth)):
        return np.nan, SURE
    sure = len(parts) == 3 or (lost << 1 == 0 and nan_sum > -np.inf)
    return total, SURE if sure else AGAIN


# One pair: lanes are rows -------------------------------------------------------------------------


@outlined
def walk_strip(
    cost, theta, weak, row, first, steps, starts, stops, parts, packed, border, width,
    nan_sums, lost, final, keep, bits, at, pattern, margin,
):  # fmt: skip
    """One strip: reads the border above it, leaves that of its last row, and the last step in
    final. pattern: None, or see `hard_patterns`. margin: None, or those of the lanes.
    """
    here = unreached(parts)
    up = enter(here, border, width, first)
    nan_sum, told = load_wide(nan_sums, 0), load_wide(lost, 0)
    for t0 in range(0, steps, CHUNK):
        t1 = min(steps, t0 + CHUNK)
        pack(cost, theta, weak, row, first, t0, t1, starts, stops, packed)
        for t in range(t0, t1):
            d = load_wide(packed, (t - t0) * WIDE)
            nan_sum = nan_sum + d
            diagonal = up
            up = enter(here, border, width, first + t + 1)
            if margin is not None:
                best, by_up, by_left, near = least_of(diagonal, up, here, margin)
                bits[at + WORDS * t], bits[at + WORDS * t + 1] = by_up, by_left
                bits[at + WORDS * t + 2] = near
            elif pattern is None:
                best, by_up = least(up, diagonal)
                best, by_left = least(here, best)
            else:
                diagonal = begin_in_strip(pattern, diagonal, row, t)
                best, by_up, by_left, told = cheapest(
                    pattern, diagonal, up, here, like(d, pattern.warp), told
                )
            here, told = plus(best, d, told)
            if margin is None:
                if keep:
                    bits[at + 2 * t], bits[at + 2 * t + 1] = by_up, by_left
            if pattern is not None:
                find_in_strip(pattern, here, row, first + t)
            if t >= WIDE - 1:
                leave(here, border, width, first + t - WIDE + 2)
    store(nan_sums, 0, nan_sum)
    store(lost, 0, told)
    store_parts(here, final, WIDE, 0)


@inline
def stride_of(columns, low, high, words):
    """Bits of a strip, two or three vectors of them a step."""
    return words * (min(columns, high - low + WIDE) + WIDE)


@jit
def solve(
    items, cost4, dummy, n, m, bandwidth, parts, steps, counts, value, status, keep,
    with_grad, scale, clean, grad4, sums, prices, margins,
):  # fmt: skip
    """Values of the pairs q in items, and if asked for their gradients; status: see `scaling`.
    Values are float64, whatever the costs are: fewer forms to compile.

    parts: TWO or THREE. Gradients of a pair that is not certified are not written; clean: they are
    all 0 before. sums: as in `exact.gradient`. counts, unless it is empty: 0 for each item that has
    no path (with keep NaN has none), -1 for others. steps: room for a path; with keep and no
    gradient, for that of each item, the last cell first, and counts tells how many they are.
    prices: None, or see `hard_patterns`. margins: None, or see `margins`; then parts is ONE, keep
    is set, and the value is that of soft-DTW.
    """
    weak = dummy.size > 0
    per_row = cost4.shape[1]
    words = plain(words_of(margins))
    packed, nan_sums = empty(CHUNK * WIDE), empty(WIDE)
    lost, final = empty(WIDE, np.int64), empty(3 * WIDE)
    starts, stops = empty(WIDE, np.int64), empty(WIDE, np.int64)
    widest, most = plain(0), plain(0)
    for q in items:
        n_q, m_q = length(n, q, cost4.shape[2]), length(m, q, cost4.shape[3])
        rows, columns, low, high = lattice_of(n_q, m_q, weak, bandwidth)
        strips = (rows + WIDE - 1) // WIDE
        widest, most = (
            max(widest, columns),
            max(most, strips * stride_of(columns, low, high, words)),
        )
    bits = empty(most if keep else 0, np.uint32)
    width = widest + 3 * WIDE
    border = empty(3 * width)
    if prices is not None:
        found, own = filled(3 * (cost4.shape[2] + cost4.shape[3]), 0.0), filled(3 * WIDE, 0.0)
    for place, q in enumerate(items):
        cost, theta = cost4[q // per_row, q % per_row], entry(dummy, q) if weak else 0.0
        n_q, m_q = length(n, q, cost4.shape[2]), length(m, q, cost4.shape[3])
        rows, columns, low, high = lattice_of(n_q, m_q, weak, bandwidth)
        stride = stride_of(columns, low, high, words)
        border[:] = 0.0
        border[1:width] = np.inf  # before column 0 is the virtual cell before the origin
        nan_sums[:] = 0.0
        lost[:] = 0
        if prices is None:
            pattern = None
        else:
            pattern = pattern_of(prices, q, rows, columns, len(parts), 1, found, own, own)
        margin = margin_of(margins, q, 0, WIDE)
        for row in range(0, rows, WIDE):
            first, steps_here, _ = strip_columns(row, WIDE, rows, columns, low, high)
            lane_steps(row, WIDE, first, rows, columns, low, high, starts, stops)
            walk_strip(
                cost, theta, weak, row, first, steps_here, starts, stops, parts, packed,
                border, width, nan_sums, lost, final, keep, bits, row // WIDE * stride,
                pattern, margin,
            )  # fmt: skip
            border[0] = np.inf
        if margins is not None:
            value[q], status[q] = finish(
                total_of(final, (rows - 1) % WIDE, parts), bits, WIDE, stride, plain(0), low, cost,
                n_q, m_q, margins[2, q], steps, with_grad, scale[q] if with_grad else 0.0, clean,
                grad4[q // per_row, q % per_row],
            )  # fmt: skip
            continue
        nan_sum, told = 0.0, 0
        for lane in range(WIDE):
            nan_sum += nan_sums[lane]
            told |= lost[lane]
        end, left_out = (rows - 1, columns - 1), 0
        if prices is None:
            total = total_of(final, (rows - 1) % WIDE, parts)
        else:
            end, left_out, total = cheapest_end(pattern, rows, columns, prices, q, plain(0))
        v, sure = conclude(total, nan_sum, told, parts, cost, theta, n_q, m_q, bandwidth)
        value[q], status[q] = v, sure
        if counts.size > 0:
            none = v == np.inf or (keep and math.isnan(v))
            counts[place] = 0 if sure == SURE and none else -1
        if with_grad and sure == SURE:
            sums[0, q], begun = adjoint(
                v, bits, WIDE, stride, plain(0), low, weak, n_q, m_q, end, scale[q], clean, steps,
                grad4[q // per_row, q % per_row],
            )  # fmt: skip
            if prices is not None:
                sums[LEFT_OUT, q] = begun + left_out * scale[q] if v < np.inf else begun
            sums[1, q] = 0.0 if v > -np.inf else np.nan
        elif keep and not with_grad:
            if sure == SURE and v < np.inf:
                room = steps.shape[0] // items.size
                its = steps[place * room : (place + 1) * room]
                counts[place] = trace(bits, words, WIDE, stride, plain(0), low, end[0], end[1], its)


# Many pairs: lanes are pairs ----------------------------------------------------------------------


@outlined
def walk_rows(
    cost4, q, count, n, m, bandwidth, theta, weak, rows, columns, ends, starts, stops, parts,
    packed, line, final, nan_sums, lost, keep, bits, pattern, margin,
):  # fmt: skip
    """All rows of the lattices of a group of pairs; the last cell of each in final, 0 before.

    line: the row above. ends: rows of the last row and of the last column of each lane.
    """
    width = line.size // 3
    nothing = unreached(parts)
    origin = load_parts(nothing, final, WIDE, 0)  # the virtual cell before it
    dummy, told = load_wide(theta, 0), load_wide(lost, 0)
    nan_sum = dummy  # 0 if the lattice is not weak
    for j in range(columns):
        store_parts(nothing, line, width, j * WIDE)
    for i in range(rows):
        real = has_pairs(weak, i)
        if real:
            r = of_cost(weak, i)
            for lane in range(count):
                n_q, m_q = length(n, q + lane, cost4.shape[2]), length(m, q + lane, cost4.shape[3])
                starts[lane], stops[lane] = bounds_of_row(r, n_q, m_q, bandwidth)
            pack_row(cost4, q, count, r, starts, stops, of_cost(weak, columns), packed)
        here, up = nothing, nothing
        if i == 0:
            up = origin
        for j in range(columns):
            d = dummy
            if real and has_pairs(weak, j):
                d = load_wide(packed, of_cost(weak, j) * WIDE)
                nan_sum = nan_sum + d
            diagonal = up
            up = load_parts(nothing, line, width, j * WIDE)
            if margin is not None:
                best, by_up, by_left, near = least_of(diagonal, up, here, margin)
                at = WORDS * (i * columns + j)
                bits[at], bits[at + 1], bits[at + 2] = by_up, by_left, near
            elif pattern is None:
                best, by_up = least(up, diagonal)
                best, by_left = least(here, best)
            else:
                diagonal = begin_in_lanes(pattern, diagonal, i, j)
                warps = load_wide(pattern.warps, 0)
                best, by_up, by_left, told = cheapest(pattern, diagonal, up, here, warps, told)
            here, told = plus(best, d, told)
            store_parts(here, line, width, j * WIDE)
            if margin is None:
                if keep:
                    at = 2 * (i * columns + j)
                    bits[at], bits[at + 1] = by_up, by_left
        if pattern is not None:
            find_in_lanes(pattern, line, count, ends, i)
        for lane in range(count):
            if i == ends[0, lane]:
                for k in range(len(parts)):
                    final[k * WIDE + lane] = line[k * width + ends[1, lane] * WIDE + lane]
    store(nan_sums, 0, nan_sum)
    store(lost, 0, told)


@jit
def solve_many(
    first, last, cost4, dummy, n, m, bandwidth, parts, steps, value, status, keep,
    with_grad, scale, clean, grad4, sums, prices, margins,
):  # fmt: skip
    """As solve, for the pairs of the groups first <= index < last: WIDE neighbors each."""
    weak = dummy.size > 0
    per_row = cost4.shape[1]
    pairs = cost4.shape[0] * per_row
    most_rows, most_columns = size_of(cost4.shape[2], cost4.shape[3], weak)
    packed, theta = empty(WIDE * (cost4.shape[3] + 8)), filled(WIDE, 0.0)
    line, final = empty(3 * WIDE * most_columns), empty(3 * WIDE)
    nan_sums, lost = empty(WIDE), empty(WIDE, np.int64)
    starts, stops = empty(WIDE, np.int64), empty(WIDE, np.int64)
    ends = empty((2, WIDE), np.int64)
    if prices is not None:
        warps, skips = filled(WIDE, 0.0), filled(WIDE, 0.0)
        found = filled(3 * WIDE * (most_rows + most_columns), 0.0)
    words = plain(words_of(margins))
    bits = empty(words * most_rows * most_columns if keep else 0, np.uint32)
    for index in range(first, last):
        q = index * WIDE
        count = min(WIDE, pairs - q)
        rows, columns = plain(0), plain(0)
        starts[:] = stops[:] = 0
        final[:] = 0.0
        nan_sums[:] = 0.0
        lost[:] = 0
        for lane in range(count):
            p = q + lane
            n_q, m_q = length(n, p, cost4.shape[2]), length(m, p, cost4.shape[3])
            rows_here, columns_here = size_of(n_q, m_q, weak)
            ends[0, lane], ends[1, lane] = rows_here - 1, columns_here - 1
            rows, columns = max(rows, rows_here), max(columns, columns_here)
            if weak:
                theta[lane] = entry(dummy, p)
        if prices is None:
            pattern = None
        else:
            for lane in range(count):
                warps[lane] = entry(prices.warp, q + lane)
                skips[lane] = entry(prices.skip, q + lane)
            pattern = pattern_of(prices, q, rows, columns, len(parts), WIDE, found, warps, skips)
        margin = margin_of(margins, q, 1, count)
        walk_rows(
            cost4, q, count, n, m, bandwidth, theta, weak, rows, columns, ends, starts, stops,
            parts, packed, line, final, nan_sums, lost, keep, bits, pattern, margin,
        )  # fmt: skip
        for lane in range(count):
            p = q + lane
            cost = cost4[p // per_row, p % per_row]
            n_q, m_q = length(n, p, cost4.shape[2]), length(m, p, cost4.shape[3])
            if margins is not None:
                value[p], status[p] = finish(
                    total_of(final, lane, parts), bits, plain(1), WORDS * columns, lane, -most_rows,
                    cost, n_q, m_q, margins[2, p], steps, with_grad,
                    scale[p] if with_grad else 0.0, clean, grad4[p // per_row, p % per_row],
                )  # fmt: skip
                continue
            end, left_out = (ends[0, lane], ends[1, lane]), 0
            if prices is None:
                total = total_of(final, lane, parts)
            else:
                end, left_out, total = cheapest_end(pattern, n_q, m_q, prices, p, lane)
            v, sure = conclude(
                total, nan_sums[lane], lost[lane], parts, cost, theta[lane], n_q, m_q, bandwidth
            )  # fmt: skip
            value[p], status[p] = v, sure
            if sure == AGAIN or not with_grad:
                continue
            sums[0, p], begun = adjoint(
                v, bits, plain(1), 2 * columns, lane, -most_rows, weak, n_q, m_q, end, scale[p],
                clean, steps, grad4[p // per_row, p % per_row],
            )  # fmt: skip
            if prices is not None:
                sums[LEFT_OUT, p] = begun + left_out * scale[p] if v < np.inf else begun
            sums[1, p] = 0.0 if v > -np.inf else np.nan
