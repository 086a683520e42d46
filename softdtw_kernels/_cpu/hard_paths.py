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
    # Which way it goes, no processor can foretell: the steps are sums, not branches. A division
    # takes as long as all the rest of a step.
    count, k, above = 0, i % height, i + low - i % height
    begin = i // height * stride
    while True:
        steps[count, 0], steps[count, 1] = i, j
        count += 1
        at = begin + words * (j - max(0, above) + k)
        if words == 3 and bits[at + 2] >> (lane + k) & 1:
            return 0
        up = np.int64(bits[at] >> (lane + k) & 1)
        left = np.int64(bits[at + 1] >> (lane + k) & 1)
        if (i == 0 or j == 0) and up + left == 0:
            return count
        i, j, k = i - (1 - left), j - (left | (1 - up)), k - (1 - left)
        next_group = np.int64(k < 0)
        k += next_group * height
        begin -= next_group * stride
        above -= next_group * height


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
