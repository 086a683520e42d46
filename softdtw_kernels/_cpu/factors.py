"""Gradients of the sum of the values times the factors of the values: +0 where there is none, as
beyond lengths and band, whatever the factor is.

The kernels of the first tier multiply by themselves, to the same bits.
"""

from __future__ import annotations

from .jit import jit
from .subnormal import flush_subnormals, restore


@jit
def scaled(mass, scale, out):
    """Of all pairs: mass (P, N, M)."""
    pairs, rows, columns = mass.shape
    before = flush_subnormals()
    for q in range(pairs):
        for i in range(rows):
            for j in range(columns):
                e = mass[q, i, j]
                out[q, i, j] = e * scale[q] if e != 0.0 else 0.0
    restore(before)


@jit
def scale_some(items, scale, grad4, sums):
    """Of some pairs, in place: their gradients (A, B, N, M), and the columns of their sums."""
    per_row, rows, columns = grad4.shape[1:]
    before = flush_subnormals()
    for q in items:
        for i in range(rows):
            for j in range(columns):
                e = grad4[q // per_row, q % per_row, i, j]
                grad4[q // per_row, q % per_row, i, j] = e * scale[q] if e != 0.0 else 0.0
        for k in range(sums.shape[0]):
            if sums[k, q] != 0.0:
                sums[k, q] *= scale[q]
    restore(before)
