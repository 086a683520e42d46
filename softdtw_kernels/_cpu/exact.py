"""The recursion for every input, however extreme: cumulated values held as sums of three floats.

R[i,j] = D[i,j] + softmin_g(R[i-1,j-1], R[i-1,j], R[i,j-1]) needs, for the transition weights,
differences of cumulated values to a small fraction of gamma. One float64 loses them when a path has
to cross costs of 1e30 with gamma 1e-3; an unevaluated sum of three float64 (about 159 bits) does
not. This is the slow tier (about 100 ns a cell): `solve` and `second_order` come here only for
pairs whose fast result is not certified.

Every function works on one pair of the batch. A cell is (i, j) of the lattice: the cost matrix
itself, or for a weak lattice the (2N+1) x (2M+1) cells of which the odd-odd ones are the costs and
all others the dummy cost. Weights are stored as p[i, j, k] with k = 0, 1, 2 for (diagonal, up,
left), the order in which ties are broken.
"""

from __future__ import annotations

import math

import numpy as np

from .jit import allocating, inline, jit
from .lattice import band_of, cost_at, entry, give, length, size_of

WEIGHTS = 4 * 2**20  # bytes of weights of a pair that are kept without counting


@inline
def two_sum(a, b):
    """a + b as rounded sum and exact error."""
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


@inline
def add(r, d):
    """The triple r plus the float d, renormalized."""
    s, e = two_sum(r[0], d)
    if not math.isfinite(s):
        return (s, 0.0, 0.0)
    t, f = two_sum(r[1], e)
    u = r[2] + f
    t, u = two_sum(t, u)
    s, t = two_sum(s, t)
    t, u = two_sum(t, u)
    return (s, t, u)


@inline
def difference(a, b):
    """a - b of two finite triples, rounded once."""
    s, e = two_sum(a[0], -b[0])
    t, f = two_sum(a[1], -b[1])
    s, g = two_sum(s, t)
    return s + (g + (e + (f + (a[2] - b[2]))))


@inline
def softmin(diagonal, up, left, gamma):
    """softmin of three triples, and the weights (diagonal, up, left); (+inf, 0, 0, 0) if all are
    +inf.
    """
    best = diagonal
    if best[0] == np.inf or (up[0] != np.inf and difference(up, best) < 0.0):
        best = up
    if best[0] == np.inf or (left[0] != np.inf and difference(left, best) < 0.0):
        best = left
    if best[0] == np.inf:
        return best, 0.0, 0.0, 0.0
    d = np.inf if diagonal[0] == np.inf else difference(diagonal, best)
    u = np.inf if up[0] == np.inf else difference(up, best)
    v = np.inf if left[0] == np.inf else difference(left, best)
    if gamma == 0.0:
        if d == 0.0:
            return best, 1.0, 0.0, 0.0
        if u == 0.0:
            return best, 0.0, 1.0, 0.0
        return best, 0.0, 0.0, 1.0
    wd, wu, wl = math.exp(-d / gamma), math.exp(-u / gamma), math.exp(-v / gamma)
    # One of the weights is 1, the others may be far below its rounding.
    others = wu + wl if d == 0.0 else (wd + wl if u == 0.0 else wd + wu)
    total = 1.0 + others
    return add(best, -gamma * math.log1p(others)), wd / total, wu / total, wl / total


@allocating
def begin(columns):
    """The row above the first: entry j + 1 belongs to column j, entry 0 to the virtual cell before
    the origin.
    """
    above = np.zeros((columns + 1, 3))
    above[1:, 0] = np.inf
    return above


@inline
def copy_row(source, row):
    """As row[:] = source, for which Numba compiles, two seconds long, the text of its error."""
    for j in range(source.shape[0]):
        for k in range(3):
            row[j, k] = source[j, k]


@inline
def advance(cost, theta, weak, i, n, m, bandwidth, gamma, above, p):
    """Row i of the recursion, in place of the row above it; whether a cost is NaN.

    The weights go to p (columns, 3), zero where no path passes, unless p is empty.
    """
    rows, columns = size_of(n, m, weak)
    low, high = band_of(rows, columns, bandwidth)
    infinite = (np.inf, 0.0, 0.0)
    store = p.shape[0] > 0
    nan_inside = False
    if store:
        p[:] = 0.0
    first, last = max(0, i + low), min(columns - 1, i + high)
    diagonal = (above[first, 0], above[first, 1], above[first, 2])
    left = infinite
    for j in range(first, last + 1):
        up = (above[j + 1, 0], above[j + 1, 1], above[j + 1, 2])
        d = cost_at(cost, theta, weak, i, j)
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
        diagonal = up
        left = here
    above[first, 0] = np.inf  # left of the band in the next row
    if last + 2 <= columns:
        above[last + 2, 0] = np.inf
    return nan_inside


@inline
def value_at_end(above, nan_inside):
    columns = above.shape[0] - 1
    if nan_inside:
        return np.nan
    return above[columns, 0] + (above[columns, 1] + above[columns, 2])


@allocating
def fill_weights(cost, n, m, bandwidth, gamma, theta, weak, p):
    """Value of one pair; the weights go to p (rows, columns, 3), unless it is empty."""
    rows, columns = size_of(n, m, weak)
    above = begin(columns)
    nowhere = np.empty((0, 3))
    nan_inside = False
    for i in range(rows):
        row = p[i] if p.shape[0] > 0 else nowhere
        nan_inside |= advance(cost, theta, weak, i, n, m, bandwidth, gamma, above, row)
    return value_at_end(above, nan_inside)


@inline
def log_of_share(p, others):
    """log(p), 0 where p is 0; others: what it lacks to 1, of which p may have too few digits."""
    if p > 0.5:
        return math.log1p(-others)
    return math.log(p) if p > 0.0 else 0.0


@inline
def mean_log(d0, d1, d2, p0, p1, p2):
    """The sum of d_k log p_k."""
    h = d0 * log_of_share(p0, p1 + p2) + d1 * log_of_share(p1, p0 + p2)
    return h + d2 * log_of_share(p2, p0 + p1)


@inline
def entropy(p0, p1, p2):
    return -mean_log(p0, p1, p2, p0, p1, p2)


@inline
def push(adjoint, p, i, j, e):
    """Give the mass e of the cell (i, j) back to its predecessors."""
    if i > 0 and j > 0:
        adjoint[i - 1, j - 1] += e * p[i, j, 0]
    if i > 0:
        adjoint[i - 1, j] += e * p[i, j, 1]
    if j > 0:
        adjoint[i, j - 1] += e * p[i, j, 2]


@jit
def value(cost4, gamma, dummy, n, m, bandwidth, items, out):
    """out[q] = value of the pair q, for q in items."""
    weak = dummy.size > 0
    per_row = cost4.shape[1]
    nothing = np.empty((0, 0, 3))
    for q in items:
        theta = entry(dummy, q) if weak else 0.0
        cost = cost4[q // per_row, q % per_row]
        n_q, m_q = length(n, q, cost4.shape[2]), length(m, q, cost4.shape[3])
        out[q] = fill_weights(cost, n_q, m_q, bandwidth, entry(gamma, q), theta, weak, nothing)


@allocating
def gradient_of_pair(cost, n, m, bandwidth, gamma, theta, weak, scale, grad):
    """Value of one pair, and its gradients by the dummy cost and in bits; see gradient.

    Weights that are many are kept for a block of rows at a time: one row of the recursion is kept
    before each block, from which it is done again, from the last block to the first.
    """
    rows, columns = size_of(n, m, weak)
    height = rows
    if rows * columns * 24 > WEIGHTS:
        height = int(math.ceil(math.sqrt(rows)))
    above, nowhere = begin(columns), np.empty((0, 3))
    final = (rows - 1) // height
    kept = np.empty((final + 1, columns + 1, 3))
    p = np.empty((height, columns, 3))
    nan_inside = False
    for i in range(rows):
        part = i // height
        if i == part * height:
            copy_row(above, kept[part])
        row = p[i - part * height] if part == final else nowhere
        nan_inside |= advance(cost, theta, weak, i, n, m, bandwidth, gamma, above, row)
    v = value_at_end(above, nan_inside)
    dummies = bits = 0.0
    if not math.isfinite(v):
        return v, dummies, bits
    here, upper = np.zeros(columns), np.zeros(columns)
    here[columns - 1] = scale
    for part in range(final, -1, -1):
        start, stop = part * height, min(rows, (part + 1) * height)
        if part < final:
            copy_row(kept[part], above)
            for i in range(start, stop):
                advance(cost, theta, weak, i, n, m, bandwidth, gamma, above, p[i - start])
        for i in range(stop - 1, start - 1, -1):
            for j in range(columns - 1, -1, -1):
                mass = here[j]
                if mass == 0.0:
                    continue
                p0, p1, p2 = p[i - start, j, 0], p[i - start, j, 1], p[i - start, j, 2]
                if j > 0:
                    upper[j - 1] += mass * p0
                    here[j - 1] += mass * p2
                upper[j] += mass * p1
                bits += mass * entropy(p0, p1, p2) / math.log(2.0)
                dummies += give(grad, weak, i, j, mass)
            here, upper = upper, here
            upper[:] = 0.0
    return v, dummies, bits


@jit
def gradient(cost4, gamma, dummy, n, m, bandwidth, items, scale, value, grad4, sums):
    """Values, and gradients of scale[q] * value of the pairs q in items, whose gamma is not 0.

    sums: rows of the gradients by the dummy cost, and of minus those by gamma in bits.
    """
    weak = dummy.size > 0
    per_row = cost4.shape[1]
    for q in items:
        theta, g, factor = entry(dummy, q) if weak else 0.0, entry(gamma, q), float(scale[q])
        cost, grad = cost4[q // per_row, q % per_row], grad4[q // per_row, q % per_row]
        n_q, m_q = length(n, q, cost4.shape[2]), length(m, q, cost4.shape[3])
        grad[:n_q, :m_q] = 0.0
        v, by_dummy, bits = gradient_of_pair(
            cost, n_q, m_q, bandwidth, g, theta, weak, factor, grad
        )
        if not v < np.inf or v == -np.inf:
            broken = 0.0 if v == np.inf else np.nan
            grad[:n_q, :m_q] = broken
            by_dummy = bits = broken
        value[q], sums[0, q], sums[1, q] = v, by_dummy, bits
