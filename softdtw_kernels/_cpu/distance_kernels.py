"""Squared Euclidean distances from differences, exact when x is near y or far from the origin; and
their gradient, in sums of differences in float64.
"""

from __future__ import annotations

from .jit import jit_contiguous, jit_reassociated, outlined
from .memory import empty

BLOCK = 256  # columns whose running sums stay in the first cache level
ROWS = 4  # of the gradient that share the loads of a column of y and of its gradient


# With few features these loops are most of the time. Functions that know nothing but the rows make
# vectors of them.


@outlined
def squares(v, column, row):
    for j in range(row.size):
        difference = v - column[j]
        row[j] = difference * difference


@outlined
def copy(source, target):
    for j in range(target.size):
        target[j] = source[j]


@jit_contiguous
def squared_distances(x, y, first, last, out):
    """out[a, b, i, j] = sum over d of (x[a, b, i, d] - y[a, b, j, d])^2 for the rows first <= a N B
    + b N + i < last.
    """
    _, pairs, n, size = x.shape
    m = y.shape[2]
    columns = empty((size, BLOCK), y.dtype)
    row = empty(BLOCK, y.dtype)
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
            row[:width] = 0
            if size > 0:
                squares(x[a, b, i, 0], columns[0], row[:width])
            for d in range(1, size):
                v = x[a, b, i, d]
                for j in range(width):
                    difference = v - columns[d, j]
                    row[j] += difference * difference
            copy(row, out[a, b, i, start : start + width])


@jit_reassociated
def squared_distances_vjp(
    order, starts, x_of, y_of, x, y, g, with_x, with_y, first, last, grad_x, grad_y
):
    """The items order[starts[u] : starts[u + 1]] of every unit first <= u < last.

    Added up over the items of a unit: 2 sum_j g[i, j] (x_i - y_j) into grad_x[u], and
    2 sum_i g[i, j] (y_j - x_i) into grad_y[u]. Columns where g is 0 in all rows at hand are
    skipped, which is most of them for a band or a small gamma.
    """
    n, m, size = x.shape[1], y.shape[1], x.shape[2]
    rows, columns = empty((ROWS, size)), empty((size, m))
    mass = empty((ROWS, m))
    sum_x, sum_y = empty((n, size)), empty((size, m))
    for u in range(first, last):
        sum_x[:] = 0.0
        sum_y[:] = 0.0
        for q in order[starts[u] : starts[u + 1]]:
            a, b = x_of[q], y_of[q]
            for j in range(m):
                for d in range(size):
                    columns[d, j] = y[b, j, d]
            for i in range(0, n, ROWS):
                count = min(ROWS, n - i)
                begin, end = m, 0
                for r in range(ROWS):
                    if r >= count:
                        mass[r] = 0.0
                        rows[r] = 0.0
                        continue
                    for d in range(size):
                        rows[r, d] = x[a, i + r, d]
                    left, right = 0, m
                    while left < m and g[q, i + r, left] == 0.0:
                        left += 1
                    while right > left and g[q, i + r, right - 1] == 0.0:
                        right -= 1
                    if left < right:
                        begin, end = min(begin, left), max(end, right)
                for r in range(count if begin < end else 0):
                    copy(g[q, i + r, begin:end], mass[r, begin:end])
                m0, m1 = mass[0, begin:end], mass[1, begin:end]
                m2, m3 = mass[2, begin:end], mass[3, begin:end]
                for d in range(size):
                    x0, x1, x2, x3 = rows[0, d], rows[1, d], rows[2, d], rows[3, d]
                    s0, s1, s2, s3 = 0.0, 0.0, 0.0, 0.0
                    column, sum_column = columns[d, begin:end], sum_y[d, begin:end]
                    for j in range(end - begin):
                        c = column[j]
                        p0, p1 = m0[j] * (x0 - c), m1[j] * (x1 - c)
                        p2, p3 = m2[j] * (x2 - c), m3[j] * (x3 - c)
                        s0 += p0
                        s1 += p1
                        s2 += p2
                        s3 += p3
                        sum_column[j] -= (p0 + p1) + (p2 + p3)
                    if with_x:
                        sums = (s0, s1, s2, s3)
                        for r in range(count):
                            sum_x[i + r, d] += sums[r]
        if with_x:
            for i in range(n):
                for d in range(size):
                    grad_x[u, i, d] = 2.0 * sum_x[i, d]
        if with_y:
            for j in range(m):
                for d in range(size):
                    grad_y[u, j, d] = 2.0 * sum_y[d, j]
