"""The shapes that calls have, the compiled forms of source/lattice.cu for them, and what a warp of
each form takes of shared memory.

Requirements: torch only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

LANES = 32
# As in source/cells.cuh.
CHUNK = 16
REACH = 2
FORWARD, BACKWARD = 1, 2  # as in source/problem.cuh

WIDE_COLUMNS = 4
WORD_BYTES = 8  # of what is handed on in one access


def c_type(dtype: torch.dtype) -> str:
    return "double" if dtype == torch.float64 else "float"


def ceil_divide(a: int, b: int) -> int:
    return -(-a // b)


class Shape(NamedTuple):
    """What plans are made for, and cached by."""

    dtype: torch.dtype
    pairs: int
    n: int  # rows and columns of the lattice
    m: int
    weak: bool
    bandwidth: int  # -1: none, or with lengths, where it lies elsewhere in every item
    banded: bool = False  # whether there is one

    def span(self, width: int) -> int:
        """An upper bound of the rows in which `width` neighboring columns meet the band."""
        if self.bandwidth < 0:
            return self.n
        return min(self.n, min(width, self.m) + abs(self.m - self.n) + 2 * self.bandwidth)

    @property
    def cost_bytes(self) -> int:
        cells = self.pairs * ((self.n // 2) * (self.m // 2) if self.weak else self.n * self.m)
        return cells * self.dtype.itemsize


@dataclass(frozen=True)
class Variant:
    """One compiled form of lattice.cu; see the list of macros there."""

    dtype: torch.dtype
    wide: bool
    columns: int
    weak: bool
    order: int
    pattern: bool = False

    @property
    def source(self) -> str:
        return "lattice"

    @property
    def real_bytes(self) -> int:
        """Of probabilities and visits: float64 in the wide arithmetic, and for second order."""
        return 8 if self.wide or self.order == 2 or self.dtype == torch.float64 else 4

    @property
    def node_bytes(self) -> int:
        number = 32 if self.wide else 2 * self.real_bytes
        if self.order < 2:
            return number
        return 48 if self.wide else 2 * number

    @property
    def flow_bytes(self) -> int:
        return self.real_bytes * (4 if self.order == 2 else 2)

    @property
    def width(self) -> int:
        """Columns of a strip."""
        return LANES * self.columns

    @property
    def step_bytes(self) -> int:
        """Of the transition probabilities, and their derivatives, of one step of a warp."""
        return LANES * self.columns * (4 if self.order == 2 else 2) * self.real_bytes

    @property
    def staged(self) -> bool:
        """Whether costs and results pass through a ring of rows in shared memory."""
        return not self.wide and self.order < 2

    @property
    def handed_bytes(self) -> int:
        """In shared memory, of what a strip hands on in a chunk of steps: words that can carry a
        flag, where a node and a flow are one.
        """
        return CHUNK * WORD_BYTES if self.staged and self.dtype == torch.float32 else 0

    @property
    def chunk_bytes(self) -> int:
        """Of a chunk of rows in the ring; a weak lattice has a row and column of it for two."""
        return CHUNK * LANES * self.columns * self.dtype.itemsize // (4 if self.weak else 1)

    @property
    def options(self) -> tuple[str, ...]:
        return (
            f"-DWITH_COST={c_type(self.dtype)}",
            f"-DWITH_WIDE={int(self.wide)}",
            f"-DWITH_COLUMNS={self.columns}",
            f"-DWITH_WEAK={int(self.weak)}",
            f"-DWITH_ORDER={self.order}",
            f"-DWITH_STAGED={int(self.staged)}",
            f"-DWITH_NODE_BYTES={self.node_bytes}",
            f"-DWITH_FLOW_BYTES={self.flow_bytes}",
            *(("-DWITH_PATTERN=1",) if self.pattern else ()),
        )


def variants() -> list[Variant]:
    """Every form of lattice.cu that a call can ask for."""
    found = []
    for dtype in (torch.float32, torch.float64):
        for weak in (False, True):
            for order in (0, 1, 2):
                found += [
                    Variant(dtype, False, columns, weak, order)
                    for columns in columns_offered(dtype, order)
                ]
                found.append(Variant(dtype, True, WIDE_COLUMNS, weak, order))
    return found


def columns_offered(dtype: torch.dtype, order: int) -> tuple[int, ...]:
    """Columns a lane: with more, the rings of rows leave shared memory for too few warps."""
    return (1,) if order == 2 else (1, 2)


def flag_bytes(strips: int) -> int:
    """Of a block that does whole items: a flag for each strip and sweep."""
    return 2 * 4 * strips


def group_bytes(team: int) -> int:
    """Of a block that does groups of strips: a flag for each, and a ticket."""
    return 4 * (team + 1) if team > 1 else 0


def ring_chunks(tile_chunks: int) -> int:
    """Those of the tile, or the one that is swept where there is none; those that lanes reach back
    to; and one that comes: up to a power of two.
    """
    return 1 << (max(1, tile_chunks) + REACH).bit_length()


def warp_bytes(variant: Variant, tile_chunks: int) -> int:
    """Shared memory of a warp: what it hands on, its ring and its tile."""
    ring = variant.staged * ring_chunks(tile_chunks) * variant.chunk_bytes
    in_shared = variant.order > 0 and not variant.wide
    return variant.handed_bytes + ring + in_shared * tile_chunks * CHUNK * variant.step_bytes
