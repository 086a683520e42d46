"""The walk back along the cheapest path, and the gradient of the hard minimum: what `hard` does
with the bits that it has kept.
"""

from __future__ import annotations

import math

import numpy as np

from .jit import outlined, plain
from .lattice import give


@outlined
def trace(bits, words, height, stride, lane, low, i, j, steps):
    """The cells of the cheapest path that ends at (i, j), last first; their number, 0 if there is a
    third word and its bit is set on the path.

    bits: those of `height` rows stand together, each row a step behind the row above it, and its
    bit one further than that row's; the first is `lane`. words: of them that a step has.
    """
    count = 0
    while True:
        steps[count, 0], steps[count, 1] = i, j
        count += 1
        group, k = i // height, i % height
        at = group * stride + words * (j - max(0, group * height + low) + k)
        if words == 3 and bits[at + 2] >> (lane + k) & 1:
            return 0
        up, left = bits[at] >> (lane + k) & 1, bits[at + 1] >> (lane + k) & 1
        if up == 0 and left == 0 and (i == 0 or j == 0):
            return count
        if left == 0:
            i -= 1
        if left == 1 or up == 0:
            j -= 1


@outlined
def adjoint(
    value, bits, height, stride, lane, low, weak, n, m, end, factor, clean, steps, grad
):  # fmt: skip
    """The gradient of factor times the value, of a path that ends at a cell; returns what goes to
    the dummy cost, and factor times the frames that are left out before the path.

    clean: the gradient is 0 before.
    """
    if not math.isfinite(value):
        broken = 0.0 if value == np.inf else np.nan
        if not clean or value != np.inf:
            grad[:n, :m] = broken
        return broken, broken
    if not clean:
        grad[:n, :m] = 0.0
    dummies = 0.0
    count = trace(bits, plain(2), height, stride, lane, low, end[0], end[1], steps)
    for k in range(count):
        dummies += give(grad, weak, steps[k, 0], steps[k, 1], factor)
    return dummies, factor * (steps[count - 1, 0] + steps[count - 1, 1])
