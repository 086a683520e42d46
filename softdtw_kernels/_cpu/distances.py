"""Squared Euclidean distances from differences: exact when x is near y, or far from the origin."""

from __future__ import annotations

import numpy as np

from .jit import jit

BLOCK = 256  # columns whose running sums stay in the first cache level


@jit
def squared_distances(x, y, first, last, out):
    """out[a, b, i, j] = sum over d of (x[a, b, i, d] - y[a, b, j, d])^2 for the rows first <= a N B
    + b N + i < last.
    """
    _, pairs, n, size = x.shape
    m = y.shape[2]
    columns = np.empty((size, BLOCK), dtype=y.dtype)
    row = np.empty(BLOCK, dtype=y.dtype)
    block_of = -1
    for start in range(0, m, BLOCK):
        width = min(BLOCK, m - start)
        block_of = -1
        for r in range(first, last):
            q = r // n
            a, b, i = q // pairs, q % pairs, r % n
            if q != block_of:
                block_of = q
                for j in range(width):
                    for d in range(size):
                        columns[d, j] = y[a, b, start + j, d]
            row[:] = 0
            for d in range(size):
                v = x[a, b, i, d]
                for j in range(width):
                    difference = v - columns[d, j]
                    row[j] += difference * difference
            for j in range(width):
                out[a, b, i, start + j] = row[j]
