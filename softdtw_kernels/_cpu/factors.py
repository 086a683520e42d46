"""Gradients of the sum of the values times the factors of the values: +0 where there is none, as
beyond lengths and band, whatever the factor is.

The kernels of the first tier multiply by themselves, to the same bits.
"""

from __future__ import annotations

from .jit import jit
from .subnormal import flush_subnormals, restore


@jit
def scaled(mass, scale, out):
    """Of all pairs: mass (P, K)."""
    zero = mass.dtype.type(0)  # a 0.0 would make float64 of all
    before = flush_subnormals()
    for q in range(mass.shape[0]):
        factor = scale[q]
        for k in range(mass.shape[1]):
            e = mass[q, k]
            out[q, k] = e * factor if e != zero else zero
    restore(before)


@jit
def scale_some(items, scale, grad4, sums):
    """Of some pairs, in place: their gradients (A, B, N, M), and the columns of their sums."""
    zero = grad4.dtype.type(0)
    before = flush_subnormals()
    for q in items:
        grad, factor = grad4[q // grad4.shape[1], q % grad4.shape[1]], scale[q]
        for i in range(grad.shape[0]):
            for j in range(grad.shape[1]):
                e = grad[i, j]
                grad[i, j] = e * factor if e != zero else zero
        for k in range(sums.shape[0]):
            if sums[k, q] != 0.0:
                sums[k, q] *= factor
    restore(before)
