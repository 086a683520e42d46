"""The facts of `softdtw_kernels._lattice` for kernels: sizes, bands, and which cells are pairs.

`weak` says whether the lattice is the weak one, whose odd-odd cells are the pairs of frames, with
the costs, and whose other cells are dummies. All that the kernels ask of a lattice they ask here.
"""

from __future__ import annotations

from .jit import inline
from .order import max, min


@inline
def entry(values, q):
    """What belongs to the pair q, of an array with one entry for each pair or one for all."""
    return values[min(q, values.size - 1)]


@inline
def entry_or_zero(values, q):
    """As entry, 0 if there are no values."""
    return values[min(q, values.size - 1)] if values.size > 0 else 0.0


@inline
def length(lengths, q, size):
    """The length of a sequence of the pair q: the whole size, if no lengths are given."""
    return lengths[q] if lengths.size > 0 else size


@inline
def size_of(n, m, weak):
    """Rows and columns of the lattice of n x m pairs."""
    return (2 * n + 1, 2 * m + 1) if weak else (n, m)


@inline
def band_of(rows, columns, bandwidth):
    """The smallest and largest column minus row in the band; all of the lattice if the bandwidth is
    negative.
    """
    if bandwidth < 0:
        return -rows, columns
    return min(0, columns - rows) - bandwidth, max(0, columns - rows) + bandwidth


@inline
def lattice_of(n, m, weak, bandwidth):
    """Rows and columns of the lattice, and its band."""
    rows, columns = size_of(n, m, weak)
    low, high = band_of(rows, columns, bandwidth)
    return rows, columns, low, high


@inline
def has_pairs(weak, i):
    """Whether the row, or column, i of the lattice holds pairs."""
    return not weak or i & 1 == 1


@inline
def of_cost(weak, i):
    """The row, or column, of the cost that the one of the lattice is; of all of them, how many."""
    return i >> 1 if weak else i


@inline
def cost_at(cost, theta, weak, i, j):
    """The cost of a cell; theta is the dummy cost."""
    if has_pairs(weak, i) and has_pairs(weak, j):
        return float(cost[of_cost(weak, i), of_cost(weak, j)])
    return theta


@inline
def give(grad, weak, i, j, mass):
    """The mass of a cell to the gradient of its cost; returns what goes to the dummy cost."""
    if has_pairs(weak, i) and has_pairs(weak, j):
        grad[of_cost(weak, i), of_cost(weak, j)] = mass
        return 0.0
    return mass
