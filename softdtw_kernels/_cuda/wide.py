"""How the wide arithmetic does what the fast one marks: a warp for each item, in little memory.

Requirements: torch only. See `plan`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from math import ceil, sqrt
from typing import TypeVar

from .plan import Plan, strips_of, total
from .variants import WIDE_COLUMNS, Shape, Variant, ceil_divide

WIDE_SCRATCH_BYTES = 32 << 20
WIDE_SHARE_OF_COST = 0.05
WIDE_ITEM_BYTES = 16 << 20  # above, the strips of one item go backward in groups

PlanLike = TypeVar("PlanLike", bound=Plan)


def in_groups(plan: PlanLike) -> PlanLike:
    """A plan for one item in the wide arithmetic, so that it takes little memory."""
    if not plan.variant.order or plan.total_bytes <= WIDE_ITEM_BYTES:
        return plan
    # As many borders between groups as in one.
    return replace(plan, group=max(2, ceil(sqrt(plan.strips))))


@lru_cache(maxsize=1024)
def wide_plan(shape: Shape, order: int, multiprocessors: int) -> Plan:
    """Of the arithmetic for what the fast one marks.

    Tiles are long and lie in global memory, which leaves little to keep between the sweeps.
    """
    variant = Variant(shape.dtype, True, WIDE_COLUMNS, shape.weak, order)
    strips, span = strips_of(shape.m, WIDE_COLUMNS), shape.span(variant.width)
    # The power of two at or below an eighth of the rows.
    tile_steps = max(32, 1 << (min(512, span // 8) | 1).bit_length() - 1)
    one = in_groups(Plan(variant, "warp", 1, 1, tile_steps, strips, span, 1))
    budget = max(WIDE_SCRATCH_BYTES, int(WIDE_SHARE_OF_COST * shape.cost_bytes))
    warps = max(1, min(shape.pairs, 4 * multiprocessors, budget // max(1, one.total_bytes)))
    return replace(one, warps=warps, slots=warps)


def beside(wide: PlanLike, fast: Plan) -> PlanLike:
    """The wide plan with so few warps that their memory, and the zeros that the fast plan needs
    besides, are together what it was allowed; at least one.
    """
    zeroed, of_warp = total(fast.zeroed_bytes), ceil_divide(wide.total_bytes, wide.warps)
    if 0 < zeroed < wide.total_bytes:  # else they take the zeros themselves
        warps = max(1, wide.warps - ceil_divide(zeroed, of_warp))
        return replace(wide, warps=warps, slots=warps)
    return wide
