"""Steps of a strip of rows with tangents (see `second_order`): the recursion beside its derivative
along a direction, and the adjoint of both.

At step t of a strip, lane k is at the cell (row + lane, first + t - lane), as in `tiles`. With the
direction (D', g'), a_k = R'_k + g' log p_k and mean = sum of p_k a_k, the derivatives are (Mensch &
Blondel 2018)

    R' = D' + mean,    p'_k = -(p_k / g) (a_k - mean),    F = sum over the successors of p' E + p F,

and that of dV/dg = sum of E p log p is the sum of (p F + p' E) log p over all steps of the paths.

No logarithm is taken. log2 p_k = log2 m_k + (k_k - top) - log2 total, and the mantissa that leaves
a cell is m = total 2^f / 2^e, f and e being known. So S = R' + g' ln 2 log2 m takes the place of R'
in the recursion, and what is left of the logarithms are exponents and fractions:

    b_k = S_k + g' ln 2 (k_k - top),  a_k - mean = b_k - sum of p b,
    S = D' + sum of p b + g' ln 2 (f - e).

What flows into a cell leaves it, so the logarithms of the mantissas in dV/dg cancel likewise.
"""

from __future__ import annotations

from .cell import fraction, power_of_fraction, quotient, step
from .floating import fma, to_float, to_integer
from .jit import inline, outlined
from .simd import (
    first_lane,
    keep_above,
    lane_sum,
    larger,
    last_lane,
    like,
    load,
    shift_down,
    shift_up,
    smaller,
    store,
    where_finite,
)
from .tiles import CHUNK as TILE

LANES = 8  # of float64: all is computed in it, and wider vectors would not fit the registers
KEPT = 8 * LANES  # numbers that are kept of a step: p, p', and what dV/dg takes of E and of F
SQUARE = TILE * LANES  # cells of a tile


@outlined
def advance(
    packed, tangent, steps, begin, rates, rise, slope, floor, above_m, above_k, above_s, above,
    border_m, border_k, border_s, border, unbegun, checks, states, states_k, state,
    keep, weights, offset,
):  # fmt: skip
    """Some steps of a strip; the registers come from states at `state`, unless the strip begins
    here, and go to the next.

    The border above step t is entry above + t + 1, and that of the last row goes to entry border +
    t, from step `unbegun` on. rise: g' ln 2; slope: -1 / g. checks: as in `tiles`.
    """
    r_high, r_low = load(rates, 0), load(rates, LANES)
    largest = load(rates, 2 * LANES)
    lowest, nan_sum = load(checks, 0), load(checks, LANES)
    one, zero = like(r_high, 1.0), like(r_high, 0.0)
    by_gamma, minus_inverse = like(r_high, rise), like(r_high, slope)
    bottom = like(load(states_k, 0), floor)
    m, k, s = one, bottom, zero
    m_up, k_up = shift_up(one, above_m[above]), shift_up(bottom, above_k[above])
    s_up = shift_up(zero, above_s[above])
    at = state * LANES
    if not begin:
        m, m_up = load(states, 4 * at), load(states, 4 * at + LANES)
        s, s_up = load(states, 4 * at + 2 * LANES), load(states, 4 * at + 3 * LANES)
        k, k_up = load(states_k, 2 * at), load(states_k, 2 * at + LANES)
    for t in range(steps):
        d = load(packed, t * LANES)
        f, r = fraction(d, r_high, r_low, largest)
        w, dk = power_of_fraction(f), to_integer(r)
        lowest = smaller(d, lowest)
        nan_sum = nan_sum + w
        m_diagonal, k_diagonal, s_diagonal = m_up, k_up, s_up
        m_up = shift_up(m, above_m[above + t + 1])
        k_up = shift_up(k, above_k[above + t + 1])
        s_up = shift_up(s, above_s[above + t + 1])
        top = larger(larger(k_diagonal, k_up), k)
        k0, k1, k2 = to_float(k_diagonal - top), to_float(k_up - top), to_float(k - top)
        m, k, p0, p1, p2, total = step(w, dk, bottom, m_diagonal, k_diagonal, m_up, k_up, m, k)
        share = one / total
        p0, p1 = quotient(p0, total, share), quotient(p1, total, share)
        p2 = quotient(p2, total, share)
        b0, b1, b2 = fma(by_gamma, k0, s_diagonal), fma(by_gamma, k1, s_up), fma(by_gamma, k2, s)
        mean = fma(p0, b0, fma(p1, b1, p2 * b2))
        fall = f + to_float((top + dk) - k)
        # A forbidden cell has no tangent, whatever stands there.
        own = where_finite(d, load(tangent, t * LANES), zero)
        s = fma(by_gamma, fall, own + mean)
        if t >= unbegun:
            border_m[border + t] = last_lane(m)
            border_k[border + t] = last_lane(k)
            border_s[border + t] = last_lane(s)
        if keep:
            at = offset + KEPT * t
            t0, t1, t2 = p0 * minus_inverse, p1 * minus_inverse, p2 * minus_inverse
            t0, t1, t2 = t0 * (b0 - mean), t1 * (b1 - mean), t2 * (b2 - mean)
            store(weights, at, p0)
            store(weights, at + LANES, p1)
            store(weights, at + 2 * LANES, p2)
            store(weights, at + 3 * LANES, t0)
            store(weights, at + 4 * LANES, t1)
            store(weights, at + 5 * LANES, t2)
            store(weights, at + 6 * LANES, fma(p0, k0, fma(p1, k1, fma(p2, k2, fall))))
            store(weights, at + 7 * LANES, fma(t0, k0, fma(t1, k1, t2 * k2)))
    store(checks, 0, lowest)
    store(checks, LANES, nan_sum)
    store(checks, 2 * LANES, m)
    at = (state + 1) * LANES
    store(states, 4 * at, m)
    store(states, 4 * at + LANES, m_up)
    store(states, 4 * at + 2 * LANES, s)
    store(states, 4 * at + 3 * LANES, s_up)
    store(states_k, 2 * at, k)
    store(states_k, 2 * at + LANES, k_up)


@outlined
def sweep(
    steps, weights, offset, flows, below_e, below_f, below, handed, of_e, of_f, tiny, mass,
):  # fmt: skip
    """The adjoint of some steps of a strip, from the last to the first: the sum of E and F times
    their factors goes to mass; returns the sum of F p log2 p + E p' log2 p, where logarithms do not
    cancel.

    What the strip below gives to the last lane at step t is entry max(0, handed + t) of below_e and
    below_f, and what this strip gives to the one above replaces the entry below + t. flows: the
    registers between tiles, first those of E.
    """
    e_right, e_up = load(flows, 0), load(flows, LANES)
    e_diagonal, e_after = load(flows, 2 * LANES), load(flows, 3 * LANES)
    f_right, f_up = load(flows, 4 * LANES), load(flows, 5 * LANES)
    f_diagonal, f_after = load(flows, 6 * LANES), load(flows, 7 * LANES)
    e_corner, f_corner = flows[8 * LANES], flows[8 * LANES + 1]
    zero, threshold = like(e_right, 0.0), like(e_right, tiny)
    e_factor, f_factor = like(e_right, of_e), like(e_right, of_f)
    by_gamma = zero
    for t in range(steps - 1, -1, -1):
        at = offset + KEPT * t
        c = max(0, handed + t)
        nothing = first_lane(zero)
        from_below = shift_down(e_up, below_e[c]) + shift_down(e_after, nothing)
        e = keep_above(e_right + from_below, threshold)
        f = f_right + (shift_down(f_up, below_f[c]) + shift_down(f_after, nothing))
        store(mass, t * LANES, fma(e, e_factor, f * f_factor))
        by_gamma = fma(f, load(weights, at + 6 * LANES), by_gamma)
        by_gamma = fma(e, load(weights, at + 7 * LANES), by_gamma)
        p0, p1, p2 = (
            load(weights, at),
            load(weights, at + LANES),
            load(weights, at + 2 * LANES),
        )
        e_after, f_after = e_diagonal, f_diagonal
        e_diagonal, e_up, e_right = e * p0, e * p1, e * p2
        f_diagonal = fma(f, p0, e * load(weights, at + 3 * LANES))
        f_up = fma(f, p1, e * load(weights, at + 4 * LANES))
        f_right = fma(f, p2, e * load(weights, at + 5 * LANES))
        below_e[below + t] = first_lane(e_up) + e_corner
        below_f[below + t] = first_lane(f_up) + f_corner
        e_corner, f_corner = first_lane(e_diagonal), first_lane(f_diagonal)
    store(flows, 0, e_right)
    store(flows, LANES, e_up)
    store(flows, 2 * LANES, e_diagonal)
    store(flows, 3 * LANES, e_after)
    store(flows, 4 * LANES, f_right)
    store(flows, 5 * LANES, f_up)
    store(flows, 6 * LANES, f_diagonal)
    store(flows, 7 * LANES, f_after)
    flows[8 * LANES], flows[8 * LANES + 1] = e_corner, f_corner
    return lane_sum(by_gamma)


@inline
def any_mass(steps, flows, below_e, handed):
    """Whether mass flows into some steps of a strip."""
    total = flows[8 * LANES]
    for lane in range(4 * LANES):
        total += flows[lane]
    for t in range(steps + 1):
        total += below_e[max(0, handed + t)]
    return total > 0.0
