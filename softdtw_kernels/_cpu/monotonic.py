"""Monotonic alignments of frames and tokens on CPU tensors: each frame emits one token, in order.

A cell depends on the row of the frame before alone, never on its own row: the tokens of a frame
are the lanes of vectors. The sums of probabilities are kept as m 2^k, as in `cell`, in float64
whatever the dtype: no path is ever lost to underflow. What the backward sweep needs of the forward
sweep is one number a cell, the share of the diagonal step.

Cells that no alignment visits, those with fewer frames before them than tokens or after them, are
not read.
"""

from __future__ import annotations

import math

import numpy as np

from .cell import exponential
from .floating import fma, fnma, scaled, split_exponent
from .jit import allocating, inline, jit, outlined
from .lattice import length
from .simd import keep_above, larger, like, load, store
from .subnormal import flush_subnormals, restore

LANES = 8  # of float64
LOG2_E = 1.4426950408889634  # as the sum of two floats
LOG2_E_LOW = 2.0355273740931033e-17
# Exponents. A forbidden cell costs FORBIDDEN; its exponent, and that of all that comes from it, is
# far below DEAD, that of every other cell far above, if log-probabilities are at most LARGEST over
# the number of frames. Other items go to the scalar sweep.
FORBIDDEN = 2.0**49
LARGEST = 2.0**47
TINY = 2.0**-126
DEAD = -(2**48)
FLOOR = -(2**60)


@inline
def tokens_of(t, n, m):
    """The first and the last token that the frame t may emit."""
    return max(0, m - n + t), min(t, m - 1)


@outlined
def fill_row(base, start, step, low, high, limit, costs):
    """Minus the log-probabilities of the tokens at hand, in whole vectors, +inf around them; how
    many are neither -inf nor at most the limit in size.
    """
    first, last = low - low % LANES, high + LANES - high % LANES
    costs[first:low] = np.inf
    costs[high + 1 : last] = np.inf
    odd = 0
    row, inside = base[start + low * step :], costs[low : high + 1]
    if step == 1:
        for j in range(high + 1 - low):
            v = np.float64(row[j])
            odd += int((not abs(v) <= limit) and v != -np.inf)
            inside[j] = -v
    else:
        for j in range(high + 1 - low):
            v = np.float64(row[j * step])
            odd += int((not abs(v) <= limit) and v != -np.inf)
            inside[j] = -v
    return odd


@outlined
def forward_row(costs, m0, k0, m1, k1, shares, at, first, last):
    """The sums of a frame from those of the frame before, eight tokens at a time; sums have a
    border of LANES in front.
    """
    for j in range(first, last, LANES):
        cost = load(costs, j)
        largest = like(cost, FORBIDDEN)
        w, k = exponential(cost, like(cost, -LOG2_E), like(cost, -LOG2_E_LOW), largest)
        k_diagonal, k_stay = load(k0, j + LANES - 1), load(k0, j + LANES)
        top = larger(k_diagonal, k_stay)
        diagonal = scaled(load(m0, j + LANES - 1), k_diagonal - top)
        total = diagonal + scaled(load(m0, j + LANES), k_stay - top)
        mantissa, e = split_exponent(fma(total, w, total))
        store(m1, j + LANES, mantissa)
        store(k1, j + LANES, larger(like(k, FLOOR), (top + k) + e))
        store(shares, at + j, diagonal / total)


@outlined
def logarithmic_row(costs, v0, v1, shares, at, low, high):
    """As forward_row, of log-probabilities of any size, one token after the other.

    The logarithms of sums are relative to the largest of their frame, which loses no digit of the
    shares where all are large; returns it, relative to that of the frame before.
    """
    least, best = np.inf, -np.inf
    for j in range(low, high + 1):
        least = min(least, costs[j])
    if not math.isfinite(least):
        least = 0.0
    for j in range(low, high + 1):
        stay, diagonal = v0[j + LANES], v0[j + LANES - 1]
        top, bottom = max(stay, diagonal), min(stay, diagonal)
        if math.isnan(stay) or math.isnan(diagonal):
            top, share = np.nan, np.nan
        elif bottom == -np.inf or top == np.inf:
            share = 1.0 if diagonal == top else 0.0
        else:
            rest = math.exp(bottom - top)
            top += math.log1p(rest)
            share = 1.0 / (1.0 + rest) if diagonal > stay else rest / (1.0 + rest)
        # A probability of +inf is none.
        v1[j + LANES] = np.nan if costs[j] == -np.inf else top - (costs[j] - least)
        shares[at + j] = share
        best = max(best, v1[j + LANES])
    if not math.isfinite(best):
        best = 0.0
    for j in range(low, high + 1):
        v1[j + LANES] -= best
    return best - least


@allocating
def allocate(columns):
    width = columns + LANES - columns % LANES
    sums = np.empty((2, width + 2 * LANES))
    return width, np.empty(width), sums, np.empty(sums.shape, dtype=np.int64)


@outlined
def forward(base, start, step_t, step_j, n, m, costs, sums, exponents, shares, width):
    """-log of the sum of all alignments of an item; with a width, that of a row of `shares`, these
    are kept.
    """
    if n < m:
        return np.inf
    odd = 0
    sums[:] = 1.0
    exponents[:] = FLOOR
    exponents[0, LANES - 1] = 0
    for t in range(n):
        low, high = tokens_of(t, n, m)
        odd += fill_row(base, start + t * step_t, step_j, low, high, LARGEST / n, costs)
        if odd > 0:
            break
        m0, k0 = sums[t % 2], exponents[t % 2]
        m1, k1 = sums[1 - t % 2], exponents[1 - t % 2]
        forward_row(costs, m0, k0, m1, k1, shares, t * width, low - low % LANES, high + 1)
        k0[LANES - 1] = FLOOR
    if odd == 0:
        k, mantissa = exponents[n % 2, LANES + m - 1], sums[n % 2, LANES + m - 1]
        if k < DEAD:
            return np.inf
        if abs(k) < 1000:
            return -math.log(math.ldexp(mantissa, np.int32(k)))
        return -(k * math.log(2.0) + math.log(mantissa))
    sums[:] = -np.inf
    sums[0, LANES - 1] = 0.0
    scale = 0.0
    for t in range(n):
        low, high = tokens_of(t, n, m)
        fill_row(base, start + t * step_t, step_j, low, high, np.inf, costs)
        v0, v1 = sums[t % 2], sums[1 - t % 2]
        scale += logarithmic_row(costs, v0, v1, shares, t * width, low, high)
        sums[t % 2, LANES - 1] = -np.inf
    return -(scale + sums[n % 2, LANES + m - 1])


@outlined
def back(visits, shares, at, first, last, least):
    """The expected visits of the frame before from those of a frame, in place. A frame that no
    alignment visits at some token has the visits 0 there, and the share of a step that is the only
    one is exactly 1: nothing leaves the tokens that can be reached.

    What is at most `least` becomes 0: subnormal numbers, of a result in float32 too, take a
    processor a hundred cycles each.
    """
    for j in range(first, last, LANES):
        share, here = load(shares, at + j), load(visits, j)
        onward = load(visits, j + 1) * load(shares, at + j + 1)
        store(visits, j, keep_above(fnma(here, share, here) + onward, like(share, least)))


@outlined
def write_row(source, out):
    for j in range(out.size):
        out[j] = source[j]


@jit
def monotonic_sum(base, strides, n, m, rows, columns, first, last, with_expected, value, expected):
    """The value of the items first <= q < last, and the expected visits of their cells."""
    width, costs, sums, exponents = allocate(columns)
    shares = np.zeros((rows if with_expected else 1) * width + LANES)
    visits = np.empty(width + LANES)
    for q in range(first, last):
        n_q, m_q = length(n, q, rows), length(m, q, columns)
        start, kept = q * strides[0], width if with_expected else 0
        steps = strides[1], strides[2]
        v = forward(base, start, *steps, n_q, m_q, costs, sums, exponents, shares, kept)
        value[q] = v
        if not with_expected or v == np.inf:
            continue
        if not math.isfinite(v):
            for t in range(n_q):
                low, high = tokens_of(t, n_q, m_q)
                expected[q, t, low : high + 1] = np.nan
            shares[:] = 0.0  # NaN would not be undone by visits of 0
            continue
        before = flush_subnormals()
        visits[:] = 0.0
        visits[m_q - 1] = 1.0
        for t in range(n_q - 1, -1, -1):
            low, high = tokens_of(t, n_q, m_q)
            write_row(visits[low : high + 1], expected[q, t, low : high + 1])
            low = max(0, low - 1)
            back(visits, shares, t * width, low - low % LANES, high + 1, TINY)
        restore(before)


@outlined
def tangent_row(a0, a1, shares, changes, tangent):
    """The derivatives of the sums of a frame from those of the frame before, each behind its
    token, and of the shares of the diagonal steps.
    """
    for j in range(tangent.size):
        p, stay, diagonal = shares[j], a0[j + 1], a0[j]
        # What has no share counts for nothing, whatever the tangent held there.
        of_diagonal = p * diagonal if p > 0.0 else 0.0
        of_stay = (1.0 - p) * stay if p < 1.0 else 0.0
        a1[j] = np.float64(tangent[j]) + (of_diagonal + of_stay)
        change = p * (1.0 - p) * (diagonal - stay)
        changes[j] = change if 0.0 < p < 1.0 else 0.0


@outlined
def flow_row(visits, changes, flows):
    for j in range(flows.size):
        flow = visits[j] * changes[j]
        flows[j] = flow if visits[j] > 0.0 else 0.0


@outlined
def move_row(flows, change):
    """What flows along the diagonal, no longer stays. The first token has no diagonal step."""
    for j in range(flows.size):
        change[j] -= flows[j]
    before, moved = change[: flows.size - 1], flows[1:]
    for j in range(before.size):
        before[j] += moved[j]


@jit
def monotonic_product(base, strides, n, m, rows, columns, first, last, tangent, out):
    """The derivative of the expected visits along a tangent of the log-probabilities, which is 0
    where these are -inf.

    Of the share p of the diagonal step and the derivatives a of the two sums it is a share of:
    p' = p (1 - p) (a_diagonal - a_stay), and the backward sweep is differentiated term by term.
    """
    width, costs, sums, exponents = allocate(columns)
    shares, changes = np.zeros(rows * width + LANES), np.empty(rows * width)
    visits, change, flows = np.empty(width + LANES), np.empty(width + LANES), np.empty(width)
    for q in range(first, last):
        n_q, m_q = length(n, q, rows), length(m, q, columns)
        start, steps = q * strides[0], (strides[1], strides[2])
        v = forward(base, start, *steps, n_q, m_q, costs, sums, exponents, shares, width)
        if v == np.inf:
            continue
        if not math.isfinite(v):
            for t in range(n_q):
                low, high = tokens_of(t, n_q, m_q)
                out[q, t, low : high + 1] = np.nan
            shares[:] = 0.0
            continue
        before = flush_subnormals()
        sums[:] = 0.0
        for t in range(n_q):
            low, high = tokens_of(t, n_q, m_q)
            at, end = t * width + low, t * width + high + 1
            a0, a1 = sums[t % 2, low:], sums[1 - t % 2, low + 1 :]
            tangent_row(a0, a1, shares[at:end], changes[at:end], tangent[q, t, low : high + 1])
        visits[:] = 0.0
        change[:] = 0.0
        visits[m_q - 1] = 1.0
        for t in range(n_q - 1, -1, -1):
            low, high = tokens_of(t, n_q, m_q)
            write_row(change[low : high + 1], out[q, t, low : high + 1])
            flow = flows[: high + 1 - max(0, low - 1)]
            begin, at = high + 1 - flow.size, t * width
            flow_row(visits[begin:], changes[at + begin :], flow)
            back(visits, shares, at, begin - begin % LANES, high + 1, TINY)
            back(change, shares, at, begin - begin % LANES, high + 1, -np.inf)
            move_row(flow, change[begin:])
        restore(before)


@outlined
def best_row(source, v0, v1, diagonal):
    """The best sums of a frame, `diagonal` telling which step they came by; whether any is NaN."""
    odd = 0
    for j in range(source.size):
        x, a, b = np.float64(source[j]), v0[j + 1], v0[j]
        is_diagonal = b >= a
        v1[j] = x + (b if is_diagonal else a)
        diagonal[j] = is_diagonal
        odd += int(x != x)
    return odd


@jit
def monotonic_path(base, strides, n, m, rows, columns, first, last, out):
    """1 at the cells of the best alignment; nothing where there is none or a score is NaN."""
    sums = np.empty((2, columns + 1))  # of the token j at j + 1
    choices = np.empty((rows, columns), dtype=np.uint8)
    copied = np.empty(columns, dtype=base.dtype)
    for q in range(first, last):
        n_q, m_q = length(n, q, rows), length(m, q, columns)
        if n_q < m_q:
            continue
        sums[:] = -np.inf
        sums[0, 0] = 0.0
        odd = 0
        for t in range(n_q):
            low, high = tokens_of(t, n_q, m_q)
            at, step = q * strides[0] + t * strides[1], strides[2]
            if step == 1:
                source = base[at + low : at + high + 1]
            else:
                source = copied[: high + 1 - low]
                for j in range(source.size):
                    source[j] = base[at + (low + j) * step]
            v0, v1 = sums[t % 2, low:], sums[1 - t % 2, low + 1 :]
            odd += best_row(source, v0, v1, choices[t, low:])
            sums[t % 2, 0] = -np.inf
        if odd > 0 or not sums[n_q % 2, m_q] > -np.inf:
            continue
        j = m_q - 1
        for t in range(n_q - 1, -1, -1):
            out[q, t, j] = 1.0
            if j > 0 and choices[t, j] == 1:
                j -= 1
