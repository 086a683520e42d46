"""What a lattice is: facts that every engine agrees on, in the form that Python needs.

A plain lattice has the cells of the cost. A weak one, with a dummy cost, has a dummy row before,
between and after the rows of the cost, and columns likewise: its odd-odd cells are the costs, and
paths begin and end on dummies. A band is one of the cost, so a weak lattice has none.

The kernels hold the same facts in `_cpu/lattice.py` and `_cuda/source/lattices.cuh`; `_reference`
has them in plain torch. A new lattice begins here: see docs/internals.md.
"""

from __future__ import annotations


def lattice_size(rows: int, columns: int, weak: bool) -> tuple[int, int]:
    """Rows and columns of the lattice, of those of the cost."""
    return (2 * rows + 1, 2 * columns + 1) if weak else (rows, columns)


def band_limits(rows: int, columns: int, bandwidth: int) -> tuple[int, int]:
    """The smallest and the largest column minus row of the band.

    It reaches as far on both sides of the diagonals that begin at the first cell and end at the
    last, so that a path always exists.
    """
    return min(0, columns - rows) - bandwidth, max(0, columns - rows) + bandwidth
