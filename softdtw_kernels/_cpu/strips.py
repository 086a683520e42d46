"""Long pairs on the CPU: the lanes of a vector are consecutive rows of one pair, one column behind
each other.

A strip is as many rows as a vector has lanes. At step t of a strip, lane k computes the cell (row +
lane, first + t - lane): its left neighbor is its own last result, its upper and diagonal neighbors
are the last two results of the lane before, so everything travels in registers. Between strips one
border goes through memory, indexed by column + 1. Cells outside the lattice, the lengths or the
band are packed as costs of +inf: forbidden like any other.

The forward pass keeps the border above every strip, and the registers at every TILE steps. The
backward pass goes from the last strip to the first, tile by tile from right to left. It computes a
tile again, with the weights stored, if mass flows into it, and else leaves the gradient at 0: in
long pairs most tiles have none. Of short pairs the weights are kept, and nothing is done twice. Of
pairs so long that the borders of all strips were more than a tenth of the costs, these are kept for
one part of the strips at a time, and made once more from the border above the part.
"""

from __future__ import annotations

import math

import numpy as np

from .ends import (
    ABOVE,
    ABOVE_PLACES,
    BESIDE,
    BESIDE_PLACES,
    LEFT_OUT,
    SUMS,
    Opened,
    entries_at,
    is_given,
    mean_of_ends,
    set_border,
    set_corner,
    set_weights,
    weigh_ends,
)
from .jit import inline, jit, plain
from .lattice import entry, entry_or_zero, lattice_of, length
from .memory import empty, filled, parts_of_block
from .order import max, min
from .scaling import (
    AGAIN,
    SURE,
    TINY,
    WARPED_ROWS,
    added,
    conclude,
    out_of_range,
    set_warped_rates,
)
from .simd import first_lane, store
from .sources import begin_of, cost_of, end_of, is_returned, room_for, shape_of, size_of_costs
from .subnormal import flush_subnormals, restore
from .tiles import CHUNK, TILE, any_mass, backward, forward, lanes_of

WEIGHTS = 2 * 2**20  # bytes of the weights of a pair that are kept: about the second cache level
BORDERS = 4 * 2**20  # bytes of the borders of a pair that are kept without counting


@inline
def strip_columns(row, lanes, rows, columns, low, high):
    """First column of the strip that starts at the row, its number of steps, and the lane of the
    final cell, -1 if this is another strip's.
    """
    first = max(0, row + low)
    end = rows - 1 - row
    if end < lanes:
        return first, columns - first + end, end
    last = min(columns - 1, row + lanes - 1 + high)
    return first, last - first + lanes, -1


@inline
def whole_tiles(steps):
    """No strip ends inside a tile: `unpack` writes to the end of a square."""
    return (steps + TILE - 1) // TILE * TILE


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


@inline
def copy_border(from_m, to_m, from_k, to_k, at_from, at_to, size):
    for c in range(size):
        to_m[at_to + c], to_k[at_to + c] = from_m[at_from + c], from_k[at_from + c]


@inline
def reset_border(border_m, border_k, floor):
    for c in range(border_m.size):
        border_m[c], border_k[c] = 1.0, floor
    border_k[0] = 0  # the virtual cell before the origin, Z = 1


@inline
def lattice_of_pair(q, shape, n, m, weak, bandwidth):
    return lattice_of(length(n, q, shape[2]), length(m, q, shape[3]), weak, bandwidth)


@inline
def beyond_range(costs, weak, rows, columns, gamma, warp, floor, bounds):
    """Whether the corners of a pair are enough to see that it cannot be certified."""
    if weak:
        return False
    last = cost_of(costs, rows - 1, columns - 1) + added(warp) if rows + columns > 2 else 0.0
    first = cost_of(costs, 0, 0) + added(warp)
    return out_of_range(first, last, gamma, floor, bounds)


@inline
def begin_pair(gamma, warp, bounds, rate, checks):
    lanes = rate.size // WARPED_ROWS
    for lane in range(lanes):
        set_warped_rates(gamma, warp, bounds, rate, lane)
        checks[lane], checks[lanes + lane] = np.inf, 0.0


@inline
def cost_checks(checks):
    """The lowest cost of the strips so far, and a sum that is NaN if a cost is."""
    lanes = checks.size // 3
    lowest, nan_sum = np.inf, 0.0
    for lane in range(lanes):
        lowest = min(lowest, checks[lane])
        nan_sum += checks[lanes + lane]
    return lowest, nan_sum


@inline
def end_pair(checks, exponent, rows, columns, gamma, warp, floor, bounds, to_return):
    """The value of a pair and its status, from what the strips left in the lanes."""
    lanes = checks.size // 3
    lowest, nan_sum = cost_checks(checks)
    mantissa = checks[2 * lanes + (rows - 1) % lanes]
    return conclude(
        mantissa, exponent, lowest, nan_sum, gamma, warp, rows, columns, floor, bounds, to_return
    )


@inline
def end_of_open_pair(opened, q, checks, gamma, warp, floor, bounds, to_return, with_gamma):
    """As end_pair, of a pair with open ends; the mass that flows from these is given."""
    ends, rows, columns, own = opened.ends, opened.rows, opened.columns, opened.sums
    lowest, nan_sum = cost_checks(checks)
    set_weights(
        ends, q, rows, columns, opened.weights_m, opened.weights_k, opened.found_m, opened.found_k,
        floor, 0, 1,
    )  # fmt: skip
    m, k = weigh_ends(
        opened.found_m, opened.found_k, opened.weights_m, opened.weights_k, opened.given, floor,
        ends.most_columns, plain(True),
    )  # fmt: skip
    for row in range(SUMS):
        own[row] = 0.0
    if with_gamma:
        own[LEFT_OUT], own[1] = mean_of_ends(ends, rows, columns, opened.given, 0, 1)
    lowest = min(lowest, entry(ends.price, q) - added(warp))
    return conclude(
        first_lane(m), np.int64(first_lane(k)), lowest, nan_sum, gamma, warp, rows, columns, floor,
        bounds, to_return, entry(ends.more, q),
    )  # fmt: skip


@inline
def most_of_pairs(first, last, shape, n, m, weak, bandwidth, lanes):
    """The largest number of strips of a pair, and of steps of a strip."""
    most_strips, most_steps = plain(0), plain(0)
    for q in range(first, last):
        rows, columns, low, high = lattice_of_pair(q, shape, n, m, weak, bandwidth)
        most_strips = max(most_strips, (rows + lanes - 1) // lanes)
        most_steps = max(most_steps, min(columns, high - low + lanes) + lanes)
    return most_strips, most_steps


@inline
def strips_of_part(strips, window, tiles, lanes, itemsize, size):
    """How many strips have their borders and registers kept at once. size: bytes of the costs."""
    kept = strips * (window + 2 * lanes * tiles) * 2 * itemsize
    parts = int(math.ceil(kept / (0.1 * size))) if kept > BORDERS else 1
    return (strips + parts - 1) // parts


@jit
def solve(
    first, last, source, gamma, warp, dummy, n, m, bandwidth, floats, integers, floor, bounds,
    value, status, with_grad, scale, with_gamma, sink, sums, ends,
):  # fmt: skip
    """Recursion and, if asked for, its adjoint for the pairs first <= q < last; see
    `lanes.solve`.

    Gradients are written where mass flows; elsewhere they must be 0 before. Those of a pair that
    cannot be certified are not written. ends: None, or see `ends`.
    """
    weak = dummy.size > 0
    shape = shape_of(source)
    lanes = lanes_of(floats)
    room = room_for(source, sink, lanes, floats, with_grad, CHUNK)
    widest = lattice_of(shape[2], shape[3], weak, bandwidth)[1]
    strips, longest = most_of_pairs(first, last, shape, n, m, weak, bandwidth, lanes)
    stride = 3 * lanes * longest
    stored = with_grad and strips * stride * floats.itemsize <= WEIGHTS
    again = with_grad and not stored
    window, tiles = longest + 1, longest // TILE + 1
    size = size_of_costs(source)
    height = strips_of_part(strips, window, tiles, lanes, floats.itemsize, size)
    parts = (strips + height - 1) // height
    kept = height if again else 0
    at_top = parts * window if again else 0
    size = strips * stride if stored else 3 * lanes * TILE
    (
        packed, rate, checks, starts, stops, border_m, border_k, below, flows, weights, above_m,
        above_k, top_m, top_k, states_m, states_k,
    ) = parts_of_block((
        (CHUNK * lanes, floats.dtype),
        (WARPED_ROWS * lanes, floats.dtype),
        (3 * lanes, floats.dtype),
        (lanes, np.int64),
        (lanes, np.int64),
        (widest + 3 * lanes, floats.dtype),
        (widest + 3 * lanes, integers.dtype),
        (widest + 3 * lanes, floats.dtype),
        (4 * lanes + 1, floats.dtype),
        (size if with_grad else 0, floats.dtype),
        (kept * window, floats.dtype),
        (kept * window, integers.dtype),
        (at_top, floats.dtype),
        (at_top, integers.dtype),
        (kept * tiles * 2 * lanes, floats.dtype),
        (kept * tiles * 2 * lanes, integers.dtype),
    ))  # fmt: skip
    if ends is not None:
        # Whole vectors; where no path ends it is forbidden.
        most = (shape[2] + shape[3] + lanes) // lanes * lanes
        found_m = filled(most, 1, floats.dtype)
        found_k = filled(most, floor, integers.dtype)
        weights_m, weights_k = empty(most, floats.dtype), empty(most, integers.dtype)
        given, own_sums = empty(most, floats.dtype), empty(SUMS)
        shown_k = empty(CHUNK * lanes, integers.dtype)
    before = flush_subnormals()
    for q in range(first, last):
        costs, grad = begin_of(source, sink, q, n, m, room, lanes)
        theta = entry(dummy, q) if weak else 0.0
        rows, columns, low, high = lattice_of_pair(q, shape, n, m, weak, bandwidth)
        g, w = entry(gamma, q), entry_or_zero(warp, q)
        if ends is None:
            opened = None
            if beyond_range(costs, weak, rows, columns, g, w, floor, bounds):
                value[q], status[q] = 0.0, AGAIN
                continue
        else:
            at = entries_at(ends.beside_m, ends, q)
            opened = Opened(
                ends, rows, columns, at, found_m, found_k, given, weights_m, weights_k, shown_k,
                own_sums,
            )  # fmt: skip
        begin_pair(g, w, bounds, rate, checks)
        reset_border(border_m, border_k, floor)
        if ends is not None:
            set_border(border_m, border_k, ends, q)
        exponent = np.int64(floor)
        final = (rows - 1) // lanes
        for strip in range(final + 1):
            row = strip * lanes
            left, steps, end = strip_columns(row, lanes, rows, columns, low, high)
            lane_steps(row, lanes, left, rows, columns, low, high, starts, stops)
            part, place = strip // height, strip % height
            keep = again and part == final // height
            if again and place == 0:
                copy_border(border_m, top_m, border_k, top_k, left, part * window, steps + 1)
            if keep:
                copy_border(border_m, above_m, border_k, above_k, left, place * window, steps + 1)
            k = forward(
                costs, theta, weak, row, floats, plain(0), steps, left, starts, stops, rate, floor,
                packed, border_m, border_k, left, border_m, border_k, checks,
                keep, states_m, states_k, place * tiles, stored, weights, strip * stride, opened,
            )  # fmt: skip
            if ends is not None:
                set_corner(border_m, border_k, opened, row + lanes)
            elif row == 0:
                border_k[0] = floor
            if end >= 0:
                store(border_k, columns + 2, k)
                exponent = np.int64(border_k[columns + 2 + end])
        to_return = is_returned(source, with_grad)
        if ends is None:
            value[q], status[q] = end_pair(
                checks, exponent, rows, columns, g, w, floor, bounds, to_return
            )
        else:
            value[q], status[q] = end_of_open_pair(
                opened, q, checks, g, w, floor, bounds, to_return, with_gamma
            )
        if status[q] != SURE or not with_grad:
            continue
        for c in range(below.size):
            below[c] = 0.0
        dummies = entropy = 0.0
        if ends is not None:
            entropy = own_sums[1]
        rightmost = columns
        for strip in range(final, -1, -1):
            if again and strip % height == height - 1 and strip < final:
                # The borders of the next part, as far as mass can flow in it.
                narrows = plain(True)
                if ends is not None:
                    narrows = not ends.of_end[0]
                while narrows and rightmost > 0 and not below[rightmost + 1] > 0.0:
                    rightmost -= 1
                for place in range(height):
                    row = (strip - height + 1 + place) * lanes
                    left, steps, end = strip_columns(row, lanes, rows, columns, low, high)
                    steps = min(steps, whole_tiles(rightmost - left + lanes))
                    lane_steps(row, lanes, left, rows, columns, low, high, starts, stops)
                    if place == 0:
                        reset_border(border_m, border_k, floor)
                        at = strip // height * window
                        copy_border(top_m, border_m, top_k, border_k, at, left, steps + 1)
                    at = place * window
                    copy_border(border_m, above_m, border_k, above_k, left, at, steps + 1)
                    forward(
                        costs, theta, weak, row, floats, plain(0), steps, left, starts, stops, rate,
                        floor, packed, border_m, border_k, left, border_m, border_k, checks,
                        again, states_m, states_k, place * tiles, stored, weights, plain(0), opened,
                    )  # fmt: skip
                    if ends is not None:
                        set_corner(border_m, border_k, opened, row + lanes)
                    elif row == 0:
                        border_k[0] = floor
            row, place = strip * lanes, strip % height
            left, steps, end = strip_columns(row, lanes, rows, columns, low, high)
            steps = min(steps, whole_tiles(rightmost - left + lanes))
            lane_steps(row, lanes, left, rows, columns, low, high, starts, stops)
            for c in range(flows.size):
                flows[c] = 1.0 if ends is None and c == end else 0.0
            for begin in range((steps - 1) // TILE * TILE, -1, -TILE):
                stop = min(steps, begin + TILE)
                some = any_mass(floats, begin, stop, left, below, flows)
                if ends is not None:
                    some = some or is_given(opened, row, lanes, begin, stop)
                if not some:
                    for c in range(left + begin + 1, left + stop + 1):
                        below[c] = 0.0
                    continue
                offset = strip * stride + 3 * lanes * begin
                if again:
                    offset = plain(0)
                    forward(
                        costs, theta, weak, row, floats, begin, stop, left, starts, stops, rate,
                        floor, packed, above_m, above_k, place * window, border_m, border_k,
                        checks, plain(False), states_m, states_k, place * tiles, again, weights,
                        offset, opened,
                    )  # fmt: skip
                d, h = backward(
                    weak, row, floats, begin, stop, left, starts, stops, scale[q], bounds[TINY],
                    packed, below, weights, offset, flows, with_gamma, grad, opened,
                )  # fmt: skip
                dummies += d
                entropy += h
            below[left] = flows[4 * lanes]
            if ends is not None:
                # Beside its first row the lanes have come to an end.
                e = flows[0] + flows[3 * lanes + 1]
                own_sums[BESIDE] += e * scale[q]
                own_sums[BESIDE_PLACES] += (row + 1) * (e * scale[q])
        end_of(sink, q, n, m, grad)
        sums[0, q], sums[1, q] = dummies, entropy * scale[q]
        if ends is not None:
            for c in range(columns):
                own_sums[ABOVE] += below[c + 1]
                own_sums[ABOVE_PLACES] += (c + 1) * float(below[c + 1])
            sums[LEFT_OUT, q] = own_sums[LEFT_OUT] * scale[q]
            sums[ABOVE, q] = own_sums[ABOVE] * scale[q]
            sums[ABOVE_PLACES, q] = own_sums[ABOVE_PLACES] * scale[q]
            sums[BESIDE, q], sums[BESIDE_PLACES, q] = own_sums[BESIDE], own_sums[BESIDE_PLACES]
    restore(before)
