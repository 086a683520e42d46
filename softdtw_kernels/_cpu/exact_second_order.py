"""Second derivatives of every input, however extreme: a scalar tier, as `exact`, whose weights it
takes. `second_order` comes here for pairs that it cannot certify.
"""

from __future__ import annotations

import math

import numpy as np

from .exact import entropy, fill_weights, log_of_share, mean_log, push
from .jit import inline, jit
from .lattice import band_of, cost_at, entry, give, length, size_of


@inline
def tangent_weight(p, a, mean, gamma):
    return -p / gamma * (a - mean) if p > 0.0 else 0.0


@jit
def solve(
    cost4, gamma, dummy, n, m, bandwidth, items, with_grad, factors,
    tangent4, tangent_gamma, tangent_dummy, values, out4, sums,
):  # fmt: skip
    """As `second_order.solve_soft`, whatever out4 holds before.

    With a_k = R'_k + g' log p_k and mean = sum of p_k a_k: R' = D' + mean and p'_k = -(p_k / g)
    (a_k - mean); then F = sum over the successors of p' E + p F, and dV/dg = -sum of E H(p) is
    differentiated term by term (Mensch & Blondel 2018).
    """
    weak = dummy.size > 0
    shape = cost4.shape
    for q in items:
        theta = entry(dummy, q) if weak else 0.0
        a, b = q // shape[1], q % shape[1]
        cost, tangent, out = cost4[a, b], tangent4[a, b], out4[a, b]
        n_q, m_q = length(n, q, shape[2]), length(m, q, shape[3])
        rows, columns = size_of(n_q, m_q, weak)
        low, high = band_of(rows, columns, bandwidth)
        g, dg = entry(gamma, q), tangent_gamma[q]
        dtheta = tangent_dummy[q] if weak else 0.0
        p = np.empty((rows, columns, 3))
        v = fill_weights(cost, n_q, m_q, bandwidth, g, theta, weak, p)
        values[0, q], values[1, q], sums[0, q], sums[1, q] = v, 0.0, 0.0, 0.0
        if with_grad:
            out[:n_q, :m_q] = 0.0
        if v == np.inf:
            continue
        if not math.isfinite(v):
            values[1, q] = sums[0, q] = sums[1, q] = np.nan
            if with_grad:
                out[:n_q, :m_q] = np.nan
            continue
        dr = np.zeros((rows + 1, columns + 1))  # R' with a border of zeros
        dp = np.zeros((rows, columns, 3))
        for i in range(rows):
            for j in range(max(0, i + low), min(columns - 1, i + high) + 1):
                d = cost_at(tangent, dtheta, weak, i, j)
                p0, p1, p2 = p[i, j, 0], p[i, j, 1], p[i, j, 2]
                if p0 + p1 + p2 == 0.0:  # no path passes: nothing depends on this cell
                    continue
                a0 = dr[i, j] + dg * log_of_share(p0, p1 + p2)
                a1 = dr[i, j + 1] + dg * log_of_share(p1, p0 + p2)
                a2 = dr[i + 1, j] + dg * log_of_share(p2, p0 + p1)
                mean = 0.0
                if p0 > 0.0:
                    mean += p0 * a0
                if p1 > 0.0:
                    mean += p1 * a1
                if p2 > 0.0:
                    mean += p2 * a2
                dr[i + 1, j + 1] = d + mean
                if g > 0.0:
                    dp[i, j, 0] = tangent_weight(p0, a0, mean, g)
                    dp[i, j, 1] = tangent_weight(p1, a1, mean, g)
                    dp[i, j, 2] = tangent_weight(p2, a2, mean, g)
        values[1, q] = dr[rows, columns]
        if not with_grad:
            continue
        e, f = np.zeros((rows, columns)), np.zeros((rows, columns))
        e[rows - 1, columns - 1] = 1.0
        for i in range(rows - 1, -1, -1):
            for j in range(columns - 1, -1, -1):
                mass, change = e[i, j], f[i, j]
                if mass == 0.0 and change == 0.0:
                    continue
                push(e, p, i, j, mass)
                push(f, dp, i, j, mass)
                push(f, p, i, j, change)
                p0, p1, p2 = p[i, j, 0], p[i, j, 1], p[i, j, 2]
                h = entropy(p0, p1, p2)
                dh = -mean_log(dp[i, j, 0], dp[i, j, 1], dp[i, j, 2], p0, p1, p2)
                sums[1, q] -= (change * h + mass * dh) * factors[1, q]
                both = mass * factors[0, q] + change * factors[1, q]
                sums[0, q] += give(out, weak, i, j, both)
