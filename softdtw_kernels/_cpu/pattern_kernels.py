"""The recursion of every pattern of steps, begins and ends, for every input: a scalar tier.

As in `exact`, whose sums of three floats it takes, and with its three weights a cell: at a cell
where a path may begin no diagonal step arrives, so the begin has the diagonal's place. About 100 ns
a cell.
"""

from __future__ import annotations

import math

import numpy as np

from .exact import (
    add,
    begin,
    copy_row,
    difference,
    entropy,
    log_of_share,
    mean_log,
    softmin,
)
from .exact_second_order import tangent_weight
from .jit import allocating, inline, jit
from .lattice import band_of, entry, length
from .scaling import product

LARGEST_PRICE = 1e290
WEIGHTS = 4 * 2**20  # bytes of weights of a pair that are kept without counting
# A pattern as one integer: the sum of
REPEAT_X, REPEAT_Y, BEGIN_X, BEGIN_Y, END_X, END_Y = 1, 2, 4, 8, 16, 32


@inline
def is_begin(i, j, pattern):
    if i > 0 and j > 0:
        return False
    return i + j == 0 or (pattern & (BEGIN_X if j == 0 else BEGIN_Y)) != 0


@inline
def is_end(i, j, n, m, pattern):
    last_row, last_column = i == n - 1, j == m - 1
    if last_row and last_column:
        return True
    return (last_row and (pattern & END_Y) != 0) or (last_column and (pattern & END_X) != 0)


@inline
def beyond(i, j, n, m):
    """How many frames are left out by a path that ends at a pair."""
    return float(n - 1 - i + m - 1 - j)


@inline
def price_of(skip, count):
    """Of so many frames left out, as a sum of three floats: their product, and what it lacks."""
    price = skip * count
    # Above, splitting a float overflows.
    error = product(skip, count)[1] if abs(skip) < LARGEST_PRICE else 0.0
    return (price, error, 0.0)


@inline
def advance(cost, i, n, m, low, high, pattern, gamma, warp, skip, above, p, ends, at):
    """Row i of the recursion, in place of the row above it, as `exact.advance`.

    What ends there goes to ends, from the place `at` on; returns whether a cost is NaN, and the
    next place.
    """
    infinite = (np.inf, 0.0, 0.0)
    store = p.shape[0] > 0
    nan_inside = False
    if store:
        p[:] = 0.0
    first, last = max(0, i + low), min(m - 1, i + high)
    diagonal = (above[first, 0], above[first, 1], above[first, 2])
    left = infinite
    for j in range(first, last + 1):
        above_here = (above[j + 1, 0], above[j + 1, 1], above[j + 1, 2])
        up = above_here
        if i == 0 or j == 0:
            diagonal = price_of(skip, float(i + j))
            if not is_begin(i, j, pattern):
                diagonal = infinite
        if (pattern & REPEAT_Y) == 0:
            up = infinite
        elif warp != 0.0:
            up = add(up, warp)
        if (pattern & REPEAT_X) == 0:
            left = infinite
        elif warp != 0.0:
            left = add(left, warp)
        d = float(cost[i, j])
        if math.isnan(d):
            nan_inside = True  # whether or not a path reaches it
        if d == np.inf:
            here = infinite
        else:
            here, p0, p1, p2 = softmin(diagonal, up, left, gamma)
            if here[0] != np.inf:
                here = add(here, d)
            if store:
                p[j, 0], p[j, 1], p[j, 2] = p0, p1, p2
        above[j + 1, 0], above[j + 1, 1], above[j + 1, 2] = here
        if is_end(i, j, n, m, pattern):
            skipped = beyond(i, j, n, m)
            end = here
            if skipped > 0.0 and here[0] != np.inf:
                price, error, _ = price_of(skip, skipped)
                end = add(add(here, error), price)
            ends[at, 0], ends[at, 1], ends[at, 2] = end
            at += 1
        diagonal = above_here
        left = here
    above[first, 0] = np.inf  # left of the band in the next row
    if last + 2 <= m:
        above[last + 2, 0] = np.inf
    return nan_inside, at


@inline
def conclude(ends, count, gamma):
    """The softmin of the ends as a float, the weights in their place (in the first column), and the
    entropy of these.
    """
    best = (np.inf, 0.0, 0.0)
    chosen = 0
    for k in range(count):
        end = (ends[k, 0], ends[k, 1], ends[k, 2])
        if end[0] != np.inf and (best[0] == np.inf or difference(end, best) < 0.0):
            best, chosen = end, k
    if not math.isfinite(best[0]):
        return best[0], 0.0
    others = 0.0
    for k in range(count):
        weight = 0.0
        if k == chosen:
            weight = 1.0
        elif ends[k, 0] != np.inf and gamma > 0.0:
            end = (ends[k, 0], ends[k, 1], ends[k, 2])
            weight = math.exp(-difference(end, best) / gamma)
            others += weight
        ends[k, 0] = weight
    h = 0.0
    for k in range(count):
        ends[k, 0] /= 1.0 + others
        if ends[k, 0] > 0.0:
            h -= ends[k, 0] * math.log(ends[k, 0])
    if gamma > 0.0:
        best = add(best, -gamma * math.log1p(others))
    return best[0] + (best[1] + best[2]), h


@allocating
def gradient_of_pair(cost, n, m, bandwidth, pattern, gamma, warp, skip, with_grad, scale, grad):
    """Value of one pair, and its gradients by gamma, warp and skip; by the costs in grad.

    Weights that are many are kept for a block of rows at a time, as in `exact`.
    """
    low, high = band_of(n, m, bandwidth)
    height = n
    if n * m * 24 > WEIGHTS:
        height = int(math.ceil(math.sqrt(n)))
    above, nowhere = begin(m), np.empty((0, 3))
    ends = np.empty((n + m, 3))
    final = (n - 1) // height
    kept = np.empty((final + 1 if with_grad else 0, m + 1, 3))
    p = np.empty((height if with_grad else 0, m, 3))
    nan_inside, count = False, 0
    for i in range(n):
        part = i // height
        if with_grad and i == part * height:
            copy_row(above, kept[part])
        row = p[i - part * height] if with_grad and part == final else nowhere
        nan_here, count = advance(
            cost, i, n, m, low, high, pattern, gamma, warp, skip, above, row, ends, count
        )
        nan_inside |= nan_here
    v, h = conclude(ends, count, gamma)
    if nan_inside:
        v = np.nan
    by_gamma, by_warp, by_skip = -h * scale, 0.0, 0.0
    if not with_grad or not math.isfinite(v):
        return v, 0.0, 0.0, 0.0
    here, upper, unused = np.zeros(m), np.zeros(m), np.empty((n + m, 3))
    at = count
    for part in range(final, -1, -1):
        start, stop = part * height, min(n, (part + 1) * height)
        if part < final:
            copy_row(kept[part], above)
            for i in range(start, stop):
                advance(
                    cost, i, n, m, low, high, pattern, gamma, warp, skip, above, p[i - start],
                    unused, 0,
                )  # fmt: skip
        for i in range(stop - 1, start - 1, -1):
            for j in range(min(m - 1, i + high), max(0, i + low) - 1, -1):
                mass = here[j]
                if is_end(i, j, n, m, pattern):
                    at -= 1
                    ending = scale * ends[at, 0]
                    by_skip += ending * beyond(i, j, n, m)
                    mass += ending
                if mass == 0.0:
                    continue
                p0, p1, p2 = p[i - start, j, 0], p[i - start, j, 1], p[i - start, j, 2]
                if i == 0 or j == 0:
                    by_skip += mass * p0 * (i + j)
                else:
                    upper[j - 1] += mass * p0
                if j > 0:
                    here[j - 1] += mass * p2
                upper[j] += mass * p1
                by_warp += mass * (p1 + p2)
                by_gamma -= mass * entropy(p0, p1, p2)
                grad[i, j] = mass
            here, upper = upper, here
            upper[:] = 0.0
    return v, by_gamma, by_warp, by_skip


@jit
def solve(
    items, cost4, gamma, warp, skip, n, m, bandwidth, pattern, value, with_grad, scale, grad4, sums,
):  # fmt: skip
    """Values of the pairs q in items and, if asked for, the gradients of scale[q] times them: by
    the costs to grad4, which is 0 before, by gamma, warp and skip to the rows of sums.
    """
    per_row = cost4.shape[1]
    for q in items:
        a, b = q // per_row, q % per_row
        n_q, m_q = length(n, q, cost4.shape[2]), length(m, q, cost4.shape[3])
        v, s0, s1, s2 = gradient_of_pair(
            cost4[a, b], n_q, m_q, bandwidth, pattern, entry(gamma, q), entry(warp, q),
            entry(skip, q), with_grad, float(scale[q]) if with_grad else 0.0, grad4[a, b],
        )  # fmt: skip
        value[q] = v
        if not with_grad:
            continue
        if not v < np.inf or v == -np.inf:
            broken = 0.0 if v == np.inf else np.nan
            grad4[a, b, :n_q, :m_q] = broken
            s0 = s1 = s2 = broken
        sums[0, q], sums[1, q], sums[2, q] = s0, s1, s2


@jit
def second_order(
    items, cost4, gamma, warp, skip, n, m, bandwidth, pattern, scale, tangent4, tangents,
    value, out4, sums,
):  # fmt: skip
    """The derivatives of the values along the tangents, and scale[q] times those of their
    gradients; see `exact_second_order.solve`. tangents and sums: rows for gamma, warp and skip.
    """
    per_row = cost4.shape[1]
    for q in items:
        a, b = q // per_row, q % per_row
        cost, tangent, out = cost4[a, b], tangent4[a, b], out4[a, b]
        n_q, m_q = length(n, q, cost4.shape[2]), length(m, q, cost4.shape[3])
        low, high = band_of(n_q, m_q, bandwidth)
        g, w, s = entry(gamma, q), entry(warp, q), entry(skip, q)
        dg, dw, ds = tangents[0, q], tangents[1, q], tangents[2, q]
        p, dp = np.zeros((n_q, m_q, 3)), np.zeros((n_q, m_q, 3))
        above, ends = begin(m_q), np.empty((n_q + m_q, 3))
        nan_inside, count = False, 0
        for i in range(n_q):
            nan_here, count = advance(
                cost, i, n_q, m_q, low, high, pattern, g, w, s, above, p[i], ends, count
            )
            nan_inside |= nan_here
        v, h = conclude(ends, count, g)
        value[q] = sums[0, q] = sums[1, q] = sums[2, q] = 0.0
        if v == np.inf and not nan_inside:
            continue
        if nan_inside or not math.isfinite(v):
            out[:n_q, :m_q] = np.nan
            value[q] = sums[0, q] = sums[1, q] = sums[2, q] = np.nan
            continue
        dr = np.zeros((n_q + 1, m_q + 1))  # R' with a border of zeros
        count = 0
        mean = 0.0
        slopes = np.zeros(n_q + m_q)  # of the weights of the ends: first the a_k
        for i in range(n_q):
            for j in range(max(0, i + low), min(m_q - 1, i + high) + 1):
                p0, p1, p2 = p[i, j, 0], p[i, j, 1], p[i, j, 2]
                if p0 + p1 + p2 > 0.0:  # else no path passes
                    before = dr[i, j] if i > 0 and j > 0 else ds * (i + j)
                    a0 = before + dg * log_of_share(p0, p1 + p2)
                    a1 = dr[i, j + 1] + dw + dg * log_of_share(p1, p0 + p2)
                    a2 = dr[i + 1, j] + dw + dg * log_of_share(p2, p0 + p1)
                    here = 0.0
                    if p0 > 0.0:
                        here += p0 * a0
                    if p1 > 0.0:
                        here += p1 * a1
                    if p2 > 0.0:
                        here += p2 * a2
                    dr[i + 1, j + 1] = float(tangent[i, j]) + here
                    if g > 0.0:
                        dp[i, j, 0] = tangent_weight(p0, a0, here, g)
                        dp[i, j, 1] = tangent_weight(p1, a1, here, g)
                        dp[i, j, 2] = tangent_weight(p2, a2, here, g)
                if is_end(i, j, n_q, m_q, pattern):
                    weight = ends[count, 0]
                    if weight > 0.0:
                        slopes[count] = dr[i + 1, j + 1] + ds * beyond(i, j, n_q, m_q)
                        slopes[count] += dg * math.log(weight)
                        mean += weight * slopes[count]
                    count += 1
        value[q] = mean
        e, f = np.zeros((n_q, m_q)), np.zeros((n_q, m_q))
        factor = scale[q]
        for i in range(n_q - 1, -1, -1):
            for j in range(min(m_q - 1, i + high), max(0, i + low) - 1, -1):
                if is_end(i, j, n_q, m_q, pattern):
                    count -= 1
                    weight = ends[count, 0]
                    slope = tangent_weight(weight, slopes[count], mean, g) if g > 0.0 else 0.0
                    e[i, j] += factor * weight
                    f[i, j] += factor * slope
                    sums[2, q] += factor * slope * beyond(i, j, n_q, m_q)
                    if weight > 0.0:
                        sums[0, q] += factor * slope * math.log(weight)
                mass, change = e[i, j], f[i, j]
                if mass == 0.0 and change == 0.0:
                    continue
                p0, p1, p2 = p[i, j, 0], p[i, j, 1], p[i, j, 2]
                d0, d1, d2 = dp[i, j, 0], dp[i, j, 1], dp[i, j, 2]
                if i > 0 and j > 0:
                    e[i - 1, j - 1] += mass * p0
                    f[i - 1, j - 1] += mass * d0 + change * p0
                else:
                    sums[2, q] += (mass * d0 + change * p0) * (i + j)
                if i > 0:
                    e[i - 1, j] += mass * p1
                    f[i - 1, j] += mass * d1 + change * p1
                if j > 0:
                    e[i, j - 1] += mass * p2
                    f[i, j - 1] += mass * d2 + change * p2
                sums[1, q] += mass * (d1 + d2) + change * (p1 + p2)
                slope = mean_log(d0, d1, d2, p0, p1, p2)
                sums[0, q] += mass * slope - change * entropy(p0, p1, p2)
                out[i, j] = change
