"""Local smoothing of S2DTW: s[i,j] = d[i,j] + softmin_g of the raw costs of the predecessors inside the matrix."""

from __future__ import annotations

import math

import numpy as np

from ._jit import inline, jit


@inline
def neighbor_weights(cost, i, j, gamma):
    """softmin of the predecessors of (i, j), not the origin, and the weights (diagonal, up, left) in it."""
    d = float(cost[i - 1, j - 1]) if i > 0 and j > 0 else np.inf
    u = float(cost[i - 1, j]) if i > 0 else np.inf
    v = float(cost[i, j - 1]) if j > 0 else np.inf
    best = min(d, min(u, v))
    if math.isnan(d + u + v):
        return np.nan, np.nan, np.nan, np.nan
    if best == np.inf:
        return np.inf, 0.0, 0.0, 0.0
    if gamma == 0.0:
        if d == best:
            return best, 1.0, 0.0, 0.0
        if u == best:
            return best, 0.0, 1.0, 0.0
        return best, 0.0, 0.0, 1.0
    wd, wu, wv = (
        math.exp((best - d) / gamma),
        math.exp((best - u) / gamma),
        math.exp((best - v) / gamma),
    )
    total = wd + wu + wv
    return best - gamma * math.log(total), wd / total, wu / total, wv / total


@jit
def smooth(cost4, gamma, n, m, origin_count, items, out4):
    per_row = cost4.shape[1]
    for q in items:
        cost, out, g = cost4[q // per_row, q % per_row], out4[q // per_row, q % per_row], gamma[q]
        for i in range(n[q]):
            for j in range(m[q]):
                if i == 0 and j == 0:
                    out[0, 0] = cost[0, 0] - g * math.log(origin_count)
                elif cost[i, j] == np.inf:
                    out[i, j] = np.inf
                else:
                    out[i, j] = cost[i, j] + neighbor_weights(cost, i, j, g)[0]


@jit
def smooth_vjp(cost4, gamma, n, m, origin_count, items, adjoint4, grad4, grad_gamma):
    """grad4 must be zero on entry. The derivative of a softmin by gamma is minus the entropy of its weights."""
    per_row = cost4.shape[1]
    for q in items:
        a, b = q // per_row, q % per_row
        cost, adjoint, grad, g = cost4[a, b], adjoint4[a, b], grad4[a, b], gamma[q]
        by_gamma = 0.0
        for i in range(n[q]):
            for j in range(m[q]):
                mass = float(adjoint[i, j])
                if mass == 0.0:  # among them all pairs that are forbidden
                    continue
                grad[i, j] += mass
                if i == 0 and j == 0:
                    by_gamma -= mass * math.log(origin_count)
                    continue
                _, wd, wu, wv = neighbor_weights(cost, i, j, g)
                if i > 0 and j > 0:
                    grad[i - 1, j - 1] += mass * wd
                if i > 0:
                    grad[i - 1, j] += mass * wu
                if j > 0:
                    grad[i, j - 1] += mass * wv
                if g > 0.0:
                    for w in (wd, wu, wv):
                        if w > 0.0:
                            by_gamma += mass * w * math.log(w)
        grad_gamma[q] = by_gamma
