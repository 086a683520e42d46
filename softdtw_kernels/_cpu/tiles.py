"""Steps of a strip of rows (see `strips`): the recursion, and its adjoint.

At step t of a strip, lane k is at the cell (row + lane, first + t - lane).
"""

from __future__ import annotations

from numba import types
from numba.extending import intrinsic

from .cell import entropy_of, quotient, step, warped_exponential
from .ends import add_begun, find_ends, give_ends, has_ends
from .floating import to_integer
from .jit import inline, outlined
from .simd import (
    Vector,
    first_lane,
    in_lane,
    keep_above,
    lane_sum,
    last_lane,
    like,
    load_as,
    shift_down,
    shift_up,
    smaller,
    store,
    up_to_lane,
    where_above,
)
from .sources import pack, unpack

WIDTH = 128  # bytes of the lanes of a strip: two vectors, so that borders take half the memory
CHUNK = 64  # steps packed at a time: they stay in the first cache level
TILE = 2 * CHUNK  # steps that are computed again together


@inline
def lanes_of(floats):
    """Of a strip: two vectors of the type of the empty array, one if that has two dimensions."""
    return WIDTH // (floats.itemsize * floats.ndim)


@intrinsic
def load(typingctx, array, index, floats):
    """The elements array[index : index + lanes_of(floats)] of a contiguous 1-D array."""
    kind = Vector(array.dtype, WIDTH * 8 // (array.dtype.bitwidth * floats.ndim))
    return kind(array, types.intp, floats), load_as(kind)


@outlined
def forward(
    source, theta, weak, row, floats, begin, steps, first, starts, stops, rates, floor,
    packed, above_m, above_k, shift, border_m, border_k, checks, save, states_m, states_k, state,
    keep, weights, offset, opened=None,
):  # fmt: skip
    """The steps begin <= t < steps of one strip: reads the border above it, leaves the border of
    its last row, and the last step in checks.

    The border above column first + t is entry shift + t + 1 of above. The registers before step t
    of a tile are those of state + t // TILE: saved there if asked for, and loaded if the strip has
    begun.
    checks: rows of the minimum of the costs, of a sum that is NaN if a cost is, and of the last
    mantissas. Returns the vector of exponents of the last step. opened: see `ends`.
    """
    lanes = lanes_of(floats)
    r_high, r_low = load(rates, 0, floats), load(rates, lanes, floats)
    largest, part = load(rates, 2 * lanes, floats), load(rates, 3 * lanes, floats)
    whole = to_integer(load(rates, 4 * lanes, floats))
    lowest, nan_sum = load(checks, 0, floats), load(checks, lanes, floats)
    one = like(r_high, 1.0)
    bottom = like(load(border_k, 0, floats), floor)
    m, k = one, bottom
    m_up, k_up = shift_up(one, above_m[shift]), shift_up(bottom, above_k[shift])
    if begin > 0:
        at = 2 * lanes * (state + begin // TILE)
        m, m_up = load(states_m, at, floats), load(states_m, at + lanes, floats)
        k, k_up = load(states_k, at, floats), load(states_k, at + lanes, floats)
    for t0 in range(begin, steps, CHUNK):
        t1 = min(steps, t0 + CHUNK)
        if save and t0 % TILE == 0:
            at = 2 * lanes * (state + t0 // TILE)
            store(states_m, at, m)
            store(states_m, at + lanes, m_up)
            store(states_k, at, k)
            store(states_k, at + lanes, k_up)
        pack(source, theta, weak, row, first, t0, t1, starts, stops, packed)
        if opened is not None:
            shown = has_ends(opened, row, lanes, t0, t1)
        for t in range(t0, t1):
            d = load(packed, (t - t0) * lanes, floats)
            w, dk = warped_exponential(d, r_high, r_low, largest, part, whole)
            lowest = smaller(d, lowest)
            nan_sum = nan_sum + w
            if opened is not None:
                if t < lanes:  # a lane comes to the first column
                    m = in_lane(load(opened.ends.beside_m, opened.beside + row + 1, floats), m, t)
                    k = in_lane(load(opened.ends.beside_k, opened.beside + row + 1, floats), k, t)
            m_diagonal, k_diagonal = m_up, k_up
            m_up, k_up = (
                shift_up(m, above_m[shift + t + 1]),
                shift_up(k, above_k[shift + t + 1]),
            )
            k_above, k_left = k_up, k
            if opened is not None:
                k_above = smaller(k_above, like(k, opened.ends.most_up))
                k_left = smaller(k_left, like(k, opened.ends.most_left))
            m, k, p_diagonal, p_up, p_left, total = step(
                w, dk, bottom, m_diagonal, k_diagonal, m_up, k_above, m, k_left
            )
            if t >= lanes - 1:
                border_m[first + t - lanes + 2] = last_lane(m)
                border_k[first + t - lanes + 2] = last_lane(k)
            if keep:
                share = one / total
                at = offset + 3 * lanes * (t - begin)
                store(weights, at, quotient(p_diagonal, total, share))
                store(weights, at + lanes, quotient(p_up, total, share))
                store(weights, at + 2 * lanes, quotient(p_left, total, share))
            if opened is not None:
                if shown:  # in place of the costs
                    store(packed, (t - t0) * lanes, m)
                    store(opened.shown_k, (t - t0) * lanes, k)
        if opened is not None:
            if shown:
                find_ends(opened, packed, row, lanes, t0, t1)
    if save and steps % TILE == 0:  # for who goes on from here
        at = 2 * lanes * (state + steps // TILE)
        store(states_m, at, m)
        store(states_m, at + lanes, m_up)
        store(states_k, at, k)
        store(states_k, at + lanes, k_up)
    store(checks, 0, lowest)
    store(checks, lanes, nan_sum)
    store(checks, 2 * lanes, m)
    return k


@outlined
def backward(
    weak, row, floats, begin, steps, first, starts, stops, scale, tiny,
    mass, below, weights, offset, flows, with_gamma, sink, opened=None,
):  # fmt: skip
    """The steps begin <= t < steps of the adjoint recursion of one strip; `below` holds what the
    strip below gives to each column + 1, and `flows` the registers between tiles.

    Returns the sums of the expected visits over the dummy cells, and of the expected visits times
    the entropy of the weights in bits.
    """
    lanes = lanes_of(floats)
    from_right, up_next = load(flows, 0, floats), load(flows, lanes, floats)
    # Of steps t + 1 and t + 2.
    diagonal_next, diagonal_after = load(flows, 2 * lanes, floats), load(flows, 3 * lanes, floats)
    corner = flows[4 * lanes]
    zero, threshold = like(from_right, 0.0), like(from_right, tiny)
    factor = like(from_right, scale)
    dummies = entropy = 0.0
    for t0 in range(begin + (steps - 1 - begin) // CHUNK * CHUNK, begin - 1, -CHUNK):
        t1 = min(steps, t0 + CHUNK)
        bits = zero
        if opened is not None:
            given = has_ends(opened, row, lanes, t0, t1)
            if given:
                give_ends(opened, mass, row, lanes, t0, t1)
        for t in range(t1 - 1, t0 - 1, -1):
            at = offset + 3 * lanes * (t - begin)
            p_diagonal, p_up = load(weights, at, floats), load(weights, at + lanes, floats)
            p_left = load(weights, at + 2 * lanes, floats)
            handed = below[max(0, first + t - lanes + 2)]
            from_below = shift_down(up_next, handed) + shift_down(diagonal_after, first_lane(zero))
            if opened is not None:
                if given:
                    from_right = from_right + load(mass, (t - t0) * lanes, floats)
            flow = from_right + from_below
            e = keep_above(flow, threshold)
            store(mass, (t - t0) * lanes, where_above(flow, threshold, flow * factor))
            if opened is not None:
                if t < lanes:  # what has come to the column before the first has begun there
                    e = up_to_lane(e, zero, t)
            if with_gamma:
                bits = bits + e * entropy_of(p_diagonal, p_up, p_left)
            from_right, up_next = e * p_left, e * p_up
            diagonal_next, diagonal_after = e * p_diagonal, diagonal_next
            below[first + t + 1] = first_lane(up_next) + corner
            corner = first_lane(diagonal_next)
        if opened is not None:
            add_begun(opened, mass, row, lanes, t0, t1)
        entropy += lane_sum(bits)
        dummies += unpack(mass, weak, row, first, t0, t1, starts, stops, sink)
    store(flows, 0, from_right)
    store(flows, lanes, up_next)
    store(flows, 2 * lanes, diagonal_next)
    store(flows, 3 * lanes, diagonal_after)
    flows[4 * lanes] = corner
    return dummies, entropy


@inline
def any_mass(floats, begin, steps, first, below, flows):
    """Whether mass flows into the steps begin <= t < steps of a strip."""
    lanes = lanes_of(floats)
    inside = (load(flows, 0, floats) + load(flows, lanes, floats)) + (
        load(flows, 2 * lanes, floats) + load(flows, 3 * lanes, floats)
    )
    total = lane_sum(inside) + flows[4 * lanes]
    for c in range(max(0, first + begin - lanes + 2), max(0, first + steps - lanes + 1) + 1):
        total = max(total, below[c])
    return total > 0.0
