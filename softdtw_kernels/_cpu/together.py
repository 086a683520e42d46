"""One long pair on several threads: what `strips` does, strip after strip, to the same bits.

Each thread takes the next strip that nobody has, and walks it tile by tile, always behind the
thread on the strip before: a counter a strip tells how far its border is. So a thread waits only
for strips that were begun before, and one thread alone can finish. The backward pass is the same
from the last strip to the first. All strips share one border in place, as in `strips`: what a strip
overwrites, it has read before, and the next one has not come to.

Where the borders of all strips were too much, they are kept for one part of the strips at a time,
as in `strips`. All threads finish with a part before the next is made once more.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .atomic import look, take, tell, wait
from .jit import inline, jit, outlined, plain
from .lattice import entry, entry_or_zero
from .memory import parts_of_block, shared_block
from .scaling import AGAIN, SURE, TINY, WARPED_ROWS, conclude
from .simd import like, store
from .sources import begin_of, end_of, is_returned, room_for, shape_of, size_of_costs
from .strips import (
    begin_pair,
    beyond_range,
    copy_border,
    lane_steps,
    lattice_of_pair,
    most_of_pairs,
    reset_border,
    strip_columns,
    strips_of_part,
    whole_tiles,
)
from .subnormal import flush_subnormals, restore
from .threads import run_together
from .tiles import CHUNK, TILE, any_mass, backward, forward, lanes_of, load

# Counters: of strips that were taken forward; then, for each part, of strips that were taken again
# and backward, and 1 + the last column that mass reaches, once its border is there; then, for each
# strip, how far it is: forward, again, backward.
OF_PART = 3
DONE = 2**62  # of a strip
FROM_RIGHT = 2**40  # the backward pass counts columns down from here


@inline
def value_of_pair(ends, final, rows, columns, gamma, warp, lanes, floor, bounds, to_return):
    """As `strips.end_pair`; ends: of each strip the lowest cost, a sum that is NaN if a cost is,
    and the last of them the mantissa and the exponent of the final cell.
    """
    lowest, nan_sum = np.inf, 0.0
    for strip in range(final + 1):
        lowest = min(lowest, ends[strip, 0])
        nan_sum += ends[strip, 1]
    mantissa, exponent = ends[final, 2], np.int64(ends[final, 3])
    return conclude(
        mantissa, exponent, lowest, nan_sum, gamma, warp, rows, columns, floor, bounds, to_return
    )


@outlined
def walk_strip(
    costs, theta, weak, row, floats, steps, left, starts, stops, rate, floor, packed, border_m,
    border_k, checks, behind, counters, above, mine, kept_m, kept_k, at, states_m, states_k, state,
    weights,
):  # fmt: skip
    """Forward along a strip, tile by tile; the vector of exponents of the last step.

    behind: whether there is a strip above that is on its way, whose counter is `above`. The border
    above goes to kept from `at` on, if there is any. The counter of the strip is `mine`; who calls
    tells it that the strip is done.
    """
    lanes = lanes_of(floats)
    k = like(load(border_k, 0, floats), floor)
    for begin in range(0, steps, TILE):
        stop = min(steps, begin + TILE)
        if behind:
            wait(counters, above, left + stop + 1)
        if kept_m.size > 0:
            size = stop - begin + 1
            copy_border(border_m, kept_m, border_k, kept_k, left + begin, at + begin, size)
        k = forward(
            costs, theta, weak, row, floats, begin, stop, left, starts, stops, rate, floor, packed,
            border_m, border_k, left, border_m, border_k, checks, plain(True), states_m, states_k,
            state, plain(False), weights, plain(0),
        )  # fmt: skip
        if row == 0:
            border_k[0] = floor
        if stop < steps:
            tell(counters, mine, left + stop - lanes + 2)
    return k


@jit
def work(
    q, height, counters, ends, border_m, border_k, top_m, top_k, above_m, above_k, states_m,
    states_k, below, of_tiles, source, gamma, warp, dummy, n, m, bandwidth, floats, integers, floor,
    bounds, value, status, with_grad, scale, with_gamma, sink, sums,
):  # fmt: skip
    """The share of one thread. height: strips of a part. of_tiles: rows of what `tiles.backward`
    returns for each tile.
    """
    weak = dummy.size > 0
    shape, to_return = shape_of(source), is_returned(source, with_grad)
    lanes = lanes_of(floats)
    room = room_for(source, sink, lanes, floats, with_grad, CHUNK)
    costs, grad = begin_of(source, sink, q, n, m, room, lanes)
    theta = entry(dummy, q) if weak else 0.0
    rows, columns, low, high = lattice_of_pair(q, shape, n, m, weak, bandwidth)
    strips, longest = most_of_pairs(q, q + 1, shape, n, m, weak, bandwidth, lanes)
    window, tiles, final = longest + 1, longest // TILE + 1, strips - 1
    (
        packed, rate, checks, starts, stops, weights, last_k, flows, own_m, own_k, nowhere_m,
        nowhere_k,
    ) = parts_of_block((
        (CHUNK * lanes, floats.dtype),
        (WARPED_ROWS * lanes, floats.dtype),
        (3 * lanes, floats.dtype),
        (lanes, np.int64),
        (lanes, np.int64),
        (3 * lanes * TILE if with_grad else 0, floats.dtype),
        (lanes, integers.dtype),
        (4 * lanes + 1, floats.dtype),
        (tiles * 2 * lanes, floats.dtype),
        (tiles * 2 * lanes, integers.dtype),
        (columns + 3 * lanes, floats.dtype),
        (columns + 3 * lanes, integers.dtype),
    ))  # fmt: skip
    last_part = final // height
    onward = 1 + OF_PART * (last_part + 1)  # where the counters of strips begin
    again, back = onward + strips, onward + 2 * strips
    g, w = entry(gamma, q), entry_or_zero(warp, q)
    if beyond_range(costs, weak, rows, columns, g, w, floor, bounds):
        value[q], status[q] = 0.0, AGAIN
        return
    before = flush_subnormals()
    while True:
        strip = take(counters, 0)
        if strip > final:
            break
        row, part, place = strip * lanes, strip // height, strip % height
        begin_pair(g, w, bounds, rate, checks)
        left, steps, end = strip_columns(row, lanes, rows, columns, low, high)
        lane_steps(row, lanes, left, rows, columns, low, high, starts, stops)
        kept_m, kept_k, at = above_m[:0], above_k[:0], plain(0)
        its_m, its_k, state = own_m, own_k, plain(0)
        if with_grad and part == last_part:
            kept_m, kept_k, at = above_m, above_k, place * window
            its_m, its_k, state = states_m, states_k, place * tiles
        elif with_grad and place == 0:
            kept_m, kept_k, at = top_m, top_k, part * window
        k = walk_strip(
            costs, theta, weak, row, floats, steps, left, starts, stops, rate, floor, packed,
            border_m, border_k, checks, strip > 0, counters, onward + strip - 1, onward + strip,
            kept_m, kept_k, at, its_m, its_k, state, weights,
        )  # fmt: skip
        lowest, nan_sum = np.inf, 0.0
        for lane in range(lanes):
            lowest = min(lowest, checks[lane])
            nan_sum += checks[lanes + lane]
        ends[strip, 0], ends[strip, 1] = lowest, nan_sum
        if end >= 0:
            store(last_k, 0, k)
            ends[strip, 2], ends[strip, 3] = checks[2 * lanes + end], last_k[end]
        tell(counters, onward + strip, DONE)
        if strip == final:
            value[q], status[q] = value_of_pair(
                ends, final, rows, columns, g, w, lanes, floor, bounds, to_return
            )
    if with_grad:
        wait(counters, onward + final, DONE)
        _, sure = value_of_pair(ends, final, rows, columns, g, w, lanes, floor, bounds, to_return)
        begin_pair(g, w, bounds, rate, checks)
        for part in range(last_part if sure == SURE else -1, -1, -1):
            lowest_strip, above_next = part * height, min(final, part * height + height - 1)
            ticket, ticket_back, ready = 1 + 3 * part, 2 + 3 * part, 3 + 3 * part
            rightmost = columns
            if part < last_part:
                wait(counters, back + above_next + 1, DONE)
                while True:
                    strip = lowest_strip + take(counters, ticket)
                    if strip > above_next:
                        break
                    row, place = strip * lanes, strip % height
                    left, steps, _ = strip_columns(row, lanes, rows, columns, low, high)
                    if place == 0:  # as far as mass can flow in this part
                        while rightmost > 0 and not below[rightmost + 1] > 0.0:
                            rightmost -= 1
                        steps = min(steps, whole_tiles(rightmost - left + lanes))
                        reset_border(border_m, border_k, floor)
                        at = part * window
                        copy_border(top_m, border_m, top_k, border_k, at, left, steps + 1)
                        tell(counters, ready, rightmost + 1)
                    else:
                        wait(counters, ready, 1)
                        rightmost = look(counters, ready) - 1
                        steps = min(steps, whole_tiles(rightmost - left + lanes))
                    lane_steps(row, lanes, left, rows, columns, low, high, starts, stops)
                    walk_strip(
                        costs, theta, weak, row, floats, steps, left, starts, stops, rate, floor,
                        packed, border_m, border_k, checks, place > 0, counters, again + strip - 1,
                        again + strip, above_m, above_k, place * window, states_m, states_k,
                        place * tiles, weights,
                    )  # fmt: skip
                    tell(counters, again + strip, DONE)
                wait(counters, again + above_next, DONE)
                rightmost = look(counters, ready) - 1
            while True:
                strip = above_next - take(counters, ticket_back)
                if strip < lowest_strip:
                    break
                row, place = strip * lanes, strip % height
                left, steps, end = strip_columns(row, lanes, rows, columns, low, high)
                steps = min(steps, whole_tiles(rightmost - left + lanes))
                lane_steps(row, lanes, left, rows, columns, low, high, starts, stops)
                for c in range(flows.size):
                    flows[c] = 1.0 if c == end else 0.0
                for begin in range((steps - 1) // TILE * TILE, -1, -TILE):
                    stop = min(steps, begin + TILE)
                    if strip < final:
                        lowest_read = max(0, left + begin - lanes + 2)
                        wait(counters, back + strip + 1, FROM_RIGHT - lowest_read)
                    if any_mass(floats, begin, stop, left, below, flows):
                        forward(
                            costs, theta, weak, row, floats, begin, stop, left, starts, stops, rate,
                            floor, packed, above_m, above_k, place * window, nowhere_m, nowhere_k,
                            checks, plain(False), states_m, states_k, place * tiles, plain(True),
                            weights, plain(0),
                        )  # fmt: skip
                        d, h = backward(
                            weak, row, floats, begin, stop, left, starts, stops, scale[q],
                            bounds[TINY], packed, below, weights, plain(0), flows, with_gamma,
                            grad,
                        )  # fmt: skip
                        at = (final - strip) * tiles + tiles - 1 - begin // TILE
                        of_tiles[0, at], of_tiles[1, at] = d, h
                    else:
                        for c in range(left + begin + 1, left + stop + 1):
                            below[c] = 0.0
                    if begin == 0:
                        below[left] = flows[4 * lanes]
                    told = DONE if begin == 0 else FROM_RIGHT - (left + begin + 1)
                    tell(counters, back + strip, told)
                if strip == 0:  # after all others
                    end_of(sink, q, n, m, grad)
    restore(before)


def solve(q: int, lattice: tuple[int, int, int], threads: int, *arguments: Any) -> None:
    """As `strips.solve` for the pair q, on so many threads. lattice: its rows, its columns, and how
    many columns of a row are in the band.
    """
    (source, *_, floats, integers, floor, _, _, status, with_grad, scale, _, _, sums) = arguments
    lanes = lanes_of.py_func(floats)
    rows, columns, wide = lattice
    strips, longest = -(-rows // lanes), min(columns, wide + lanes) + lanes
    window, tiles = longest + 1, longest // TILE + 1
    size = size_of_costs(source)
    height = strips_of_part.py_func(strips, window, tiles, lanes, floats.itemsize, size)
    parts, kept = -(-strips // height), height if with_grad else 0
    width = columns + 3 * lanes
    given, at_top = (width, parts * window) if with_grad else (0, 0)
    whole, double = np.dtype(np.int64), np.dtype(np.float64)
    counters, ends, border_m, border_k, *kept_ones, below, of_tiles = shared_block(
        (1 + OF_PART * parts + 3 * strips, whole),
        (4 * strips, double),
        (width, floats.dtype),
        (width, integers.dtype),
        (at_top, floats.dtype),
        (at_top, integers.dtype),
        (kept * window, floats.dtype),
        (kept * window, integers.dtype),
        (kept * tiles * 2 * lanes, floats.dtype),
        (kept * tiles * 2 * lanes, integers.dtype),
        (given, floats.dtype),
        (2 * strips * tiles if with_grad else 0, double),
    )
    counters[:], border_m[:], border_k[:], below[:], of_tiles[:] = 0, 1, floor, 0, 0
    border_k[0] = 0  # the virtual cell before the origin, Z = 1
    ends, of_tiles = ends.reshape(strips, 4), of_tiles.reshape(2, -1)
    shared = counters, ends, border_m, border_k, *kept_ones, below, of_tiles
    run_together(threads, lambda: work(q, height, *shared, *arguments))
    if with_grad and status[q] == SURE:
        # One after the other, from the last tile to the first, as `strips` adds them.
        dummies, entropy = (np.add.accumulate(row)[-1] for row in of_tiles)
        sums[0, q], sums[1, q] = dummies, entropy * scale[q]
