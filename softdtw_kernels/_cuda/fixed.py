"""The kernels of source/fixed.cu, for batches: which calls they take, how these are shared out.

Requirements: torch only. What they leave, item by item, the launch of source/lattice.cu does that
follows; see there, and `lattice`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import torch

from .plan import (
    KEPT_SHARE_OF_COST,
    Plan,
    StatePlans,
    resident_blocks,
    total,
    warps_wanted,
)
from .recipe import Argument
from .variants import BACKWARD, LANES, Shape, Variant, ceil_divide

FIXED = "fixed"  # a launcher's family that asks for these kernels wherever they do
# As in source/tiles.cuh.
SEGMENT = 4
ROWS = 2  # of a tile
WORD_BYTES, KEPT_BYTES_OF_WORD = 8, 6
COLUMNS = 8  # of a tile, and of a lane
# Machine instructions a cell of a gradient, forward, recomputing and backward, in the steady loops
# for sm_90 (tests/cuda_instructions.py); of lattice.cu where Narrow holds, else half as many again.
OF_FIXED, OF_LATTICE = 62, 95
RESIDENT = (12, 8)  # blocks of a multiprocessor for which the kernels of each order have registers


@dataclass(frozen=True)
class FixedVariant(Variant):
    """One compiled form of fixed.cu."""

    @property
    def source(self) -> str:
        return "fixed"

    @property
    def options(self) -> tuple[str, ...]:
        return (f"-DWITH_ORDER={self.order}",)


def variants() -> list[FixedVariant]:
    return [FixedVariant(torch.float32, False, COLUMNS, False, order) for order in (0, 1)]


@dataclass(frozen=True)
class FixedPlan(Plan):
    """A warp a block, and items one after the other; `span` counts blocks of rows."""

    @property
    def sizes(self) -> dict[str, Argument]:
        return {
            "strips": self.strips,
            "span": self.span,
            "kept_borders": self.kept_borders,
            "kept": int(self.kept_items > 0),
        }

    @cached_property
    def swept_bytes(self) -> dict[str, int]:
        items = self.kept_items or self.slots
        swept = self.variant.order > 0 or self.kept_items > 0
        slots = (self.span + SEGMENT - 2) // SEGMENT + 1
        words = self.strips * slots * LANES * (ROWS + self.variant.columns)
        return {
            "borders": (self.strips > 1)
            * items
            * self.kept_borders
            * self.span
            * ROWS
            * WORD_BYTES,
            "checkpoints": swept * items * words * KEPT_BYTES_OF_WORD,
            "progress": swept * items * self.strips * 4,
        }

    @cached_property
    def scratch_bytes(self) -> dict[str, int]:
        flows = (self.strips > 1) * 2 * self.span * ROWS * 2 * 4
        return {
            **({} if self.kept_items else self.swept_bytes),
            "flows": (self.variant.order > 0) * self.slots * flows,
        }

    def ring_chunks(self, phases: int) -> int:
        return 0

    def shared_bytes(self, phases: int = BACKWARD) -> int:
        """Two segments of costs, and one more of probabilities."""
        segments = 3 if self.variant.order and phases & BACKWARD else 2
        return segments * SEGMENT * ROWS * self.variant.width * 4


def reason_against(
    shape: Shape, order: int, multiprocessors: int, family: str | None
) -> str | None:
    """Why source/fixed.cu does not do a call, or None if it does: decided here and nowhere else.

    Lengths and strides are no reason. Items that hold what it does not know, it leaves one by one.
    """
    if shape.dtype != torch.float32:
        return "float64 has a mantissa of its own"
    if shape.weak:
        return "it knows no dummy cells"
    if shape.banded:
        return "it sweeps whole strips, of which a band is a small part"
    if order == 2:
        return "tangents need float64"
    if family == FIXED:
        return None
    if family is not None or warps_wanted(shape, multiprocessors) > 1:
        return "a warp for each item would leave multiprocessors idle"
    if work_of(shape, ROWS, COLUMNS) * OF_FIXED > work_of_lattice(shape):
        return "the lanes of wide strips would be idle"
    if state_of(shape) > KEPT_SHARE_OF_COST * shape.cost_bytes:
        return "what a value keeps for the gradient would take too much memory"
    return None


def work_of(shape: Shape, rows: int, columns: int) -> int:
    """Cells, with those that the lanes of a wavefront spend idle."""
    return (shape.n + rows * (LANES - 1)) * ceil_divide(shape.m, LANES * columns) * LANES * columns


def work_of_lattice(shape: Shape) -> int:
    return min(work_of(shape, 1, columns) for columns in (1, 2)) * OF_LATTICE


def plan_of(shape: Shape, order: int, warps: int, kept_items: int) -> FixedPlan:
    variant = variants()[order]
    strips, span = ceil_divide(shape.m, variant.width), ceil_divide(shape.n, ROWS)
    return FixedPlan(variant, "warp", warps, 1, SEGMENT, strips, span, warps, kept_items)


def state_of(shape: Shape) -> int:
    return total(plan_of(shape, 1, 1, shape.pairs).state_bytes)


@lru_cache(maxsize=1024)
def fixed_plan(
    shape: Shape, order: int, multiprocessors: int, shared_limit: int, family: str | None
) -> FixedPlan | None:
    """Of a value, or of a gradient without state; None if the call is not for these kernels."""
    if reason_against(shape, order, multiprocessors, family):
        return None
    resident = resident_blocks(1, plan_of(shape, order, 1, 0).shared_bytes(), shared_limit)
    resident = max(1, min(resident, RESIDENT[order]))
    return plan_of(shape, order, min(shape.pairs, multiprocessors * resident), 0)


@lru_cache(maxsize=1024)
def fixed_state_plans(
    shape: Shape, multiprocessors: int, shared_limit: int, family: str | None
) -> StatePlans | None:
    """Of a value that keeps its state and of the gradient from it."""
    forward, backward = (
        fixed_plan(shape, order, multiprocessors, shared_limit, family) for order in (0, 1)
    )
    if forward is None or backward is None:
        return None
    return StatePlans(
        replace(forward, kept_items=shape.pairs), replace(backward, kept_items=shape.pairs)
    )
