"""How the work of one call on CUDA tensors is cut up: warps, strips, scratch memory.

Requirements: torch only; nothing here needs a GPU or looks at one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from operator import itemgetter
from typing import Any, NamedTuple

from .recipe import Argument, round_up
from .variants import (
    BACKWARD,
    CHUNK,
    FORWARD,
    LANES,
    Shape,
    Variant,
    ceil_divide,
    columns_offered,
    flag_bytes,
    group_bytes,
    ring_chunks,
    warp_bytes,
)

FAMILIES = ("warp", "block", "long")
# Dynamic shared memory of a block that every GPU gives without asking.
SHARED_BYTES = 48 << 10
RESERVED_BYTES = 1 << 10  # beside them, of each block: a multiprocessor has the most and this
WARPS_IN_BLOCK = 2  # of the warp family, at most
# At most, in the block family. More would need a smaller limit of registers for all families.
LARGEST_TEAM = 8
# Strips of a block in the long family, one for each scheduler: these hand on what flows between
# them inside of the block, at a tenth of the latency.
STRIPS_IN_GROUP = 4
# Warps a multiprocessor that keep its four schedulers busy: a warp alone issues an instruction in
# every other cycle [measured on an H200].
BUSY_WARPS = 8
MOST_WARPS = 12  # of a multiprocessor: what 168 registers a thread have room for
STRIPS_OF_BLOCK = 512  # above, strips of one item go to several multiprocessors
# Chunks of steps between two checkpoints, at most: with twice as many, checkpoints take half the
# memory and tiles twice as much.
MOST_TILE_CHUNKS = 4
SHARE_OF_COST = 0.1  # for what a gradient keeps, of one very long item
# For what a value keeps for the gradient to come. Where lanes are idle, as with few rows or
# columns, and in weak lattices, whose cells are four times those of the cost, that can be more:
# then nothing is kept, unless it is little.
KEPT_SHARE_OF_COST = 0.4
KEPT_BYTES = 32 << 20
BATCH_BYTES = 25 << 10  # of shared memory, at most, for a warp that is one of many: nine run


@dataclass(frozen=True)
class Plan:
    """How the launches of one arithmetic share out the work; see source/lattice.cu."""

    variant: Variant
    family: str  # one of FAMILIES
    warps: int
    warps_in_block: int
    tile_steps: int
    strips: int
    span: int
    slots: int  # of scratch memory: one for each item that is in work at a time
    # Items whose borders and checkpoints stay in memory from a launch that goes forward to one that
    # goes backward: all, or none, of a launch that does both.
    kept_items: int = 0
    # Strips that have borders and checkpoints in memory at once, in the wide arithmetic; 0: all.
    group: int = 0
    end_nodes: int = 0  # of an item with a pattern, which stay in memory too

    @property
    def by_ticket(self) -> bool:
        return self.family == "long"

    @property
    def team(self) -> int:
        """Of an item, the strips that a block does at a time."""
        return 1 if self.family == "warp" else self.warps_in_block

    @property
    def handed(self) -> bool:
        """Whether strips of different blocks hand on words that carry their flag."""
        return self.by_ticket and self.variant.handed_bytes > 0 and self.strips > self.team

    @property
    def kept_borders(self) -> int:
        """Borders of an item in memory at once: the last two where one warp goes forward only."""
        if self.group:
            return self.group
        every = self.variant.order > 0 or self.kept_items or self.family != "warp"
        borders = max(1, self.strips - 1)
        return borders if every else min(2, borders)

    @property
    def sizes(self) -> dict[str, Argument]:
        """The fields of these names in source/problem.cuh."""
        return {
            "tile_steps": self.tile_steps,
            "strips": self.strips,
            "span": self.span,
            "kept_borders": self.kept_borders,
            "kept": int(self.kept_items > 0),
            "group": self.group,
            "team": self.team,
            "handed": int(self.handed),
        }

    # Of each kind of memory; see the fields of these names in source/problem.cuh.

    @cached_property
    def swept_bytes(self) -> dict[str, int]:
        """What a forward sweep leaves."""
        variant, items = self.variant, self.kept_items or self.slots
        border = self.span * variant.node_bytes
        borders = self.kept_borders + (self.strips // self.group if self.group else 0)
        tiles = (self.group or self.strips) * ceil_divide(self.span + LANES - 1, self.tile_steps)
        checkpoints = tiles * (variant.columns + 1) * LANES * variant.node_bytes
        return {
            "checkpoints": (variant.order > 0 or self.kept_items > 0) * items * checkpoints,
            "borders": (self.strips > 1) * items * borders * border,
        }

    @cached_property
    def state_bytes(self) -> dict[str, int]:
        """What is kept from launch to launch; what must or may be 0 at first comes last."""
        if not self.kept_items:
            return {}
        ends = self.kept_items * self.end_nodes * self.variant.node_bytes
        status = {"status": 4 * self.kept_items}
        return ({"end_nodes": ends} if ends else {}) | self.swept_bytes | status

    @cached_property
    def scratch_bytes(self) -> dict[str, int]:
        variant = self.variant
        backward = variant.order > 0
        flows = (self.strips > 1) * (self.span + 1) * variant.flow_bytes
        if self.handed:  # into each group, and in it
            flows *= 2 * ceil_divide(self.strips, self.team)
        return {
            **({} if self.kept_items else self.swept_bytes),
            "flows": backward * self.slots * flows,
            "tiles": backward * variant.wide * self.warps * self.tile_steps * variant.step_bytes,
        }

    @cached_property
    def total_bytes(self) -> int:
        return total(self.scratch_bytes)

    @cached_property
    def zeroed_bytes(self) -> dict[str, int]:
        """Of these, what must be 0 at first."""
        if not self.handed:
            return {}
        sizes = self.scratch_bytes
        return {name: sizes[name] for name in ("borders", "flows") if name in sizes}

    @cached_property
    def unset_bytes(self) -> dict[str, int]:
        """The others."""
        names = self.scratch_bytes.keys() - self.zeroed_bytes.keys()
        return {name: size for name, size in self.scratch_bytes.items() if name in names}

    def ring_chunks(self, phases: int) -> int:
        """0 if there is no ring."""
        return self.variant.staged * ring_chunks(self.tile_chunks(phases))

    def tile_chunks(self, phases: int) -> int:
        """0 in a launch that does not go backward."""
        backward = self.variant.order > 0 and phases & BACKWARD
        return self.tile_steps // CHUNK if backward else 0

    def shared_bytes(self, phases: int = FORWARD | BACKWARD) -> int:
        """Of a block."""
        of_warp = warp_bytes(self.variant, self.tile_chunks(phases))
        flags = flag_bytes(self.strips) if self.family == "block" and self.team > 1 else 0
        return self.warps_in_block * of_warp + flags + self.by_ticket * group_bytes(self.team)


def total(sizes: dict[str, int]) -> int:
    """Of memory that `divide` takes."""
    return sum(round_up(size) for size in sizes.values())


def divide(memory: Any, sizes: dict[str, int]) -> dict[str, Any]:
    """Memory of at least `total(sizes)` bytes, or its place, as the fields that point into it."""
    fields: dict[str, Any] = {}
    offset = 0
    for name, size in sizes.items():
        fields[name] = memory[offset : offset + size] if size else None
        offset += round_up(size)
    return fields


def tile_chunks_within(variant: Variant, limit: int) -> int:
    """As many as make the shared memory of a warp no larger than the limit; 0 if none do."""
    chunks = MOST_TILE_CHUNKS if variant.order else 1
    while chunks and warp_bytes(variant, chunks) > limit:
        chunks //= 2
    return chunks


def resident_blocks(warps: int, block_bytes: int, shared_limit: int) -> int:
    """Of a multiprocessor: more would be a second wave, as items are shared out beforehand."""
    by_memory = (shared_limit + RESERVED_BYTES) // (block_bytes + RESERVED_BYTES)
    return min(MOST_WARPS // warps, by_memory)


def columns_for_batches(shape: Shape, order: int) -> list[int]:
    """Those that leave room for many warps."""
    return [
        columns
        for columns in columns_offered(shape.dtype, order)
        if warp_bytes(Variant(shape.dtype, False, columns, shape.weak, order), 1) <= BATCH_BYTES
    ]


def strips_of(m: int, columns: int) -> int:
    return ceil_divide(m, LANES * columns)


def choose_family(shape: Shape, multiprocessors: int) -> str:
    if warps_wanted(shape, multiprocessors) == 1 or strips_of(shape.m, 2) == 1:
        return "warp"
    # One block runs on one multiprocessor: with fewer items than half of those most would be idle.
    narrowest = strips_of(shape.m, 1)
    spread = shape.pairs <= multiprocessors // 2 and narrowest > 2 * LARGEST_TEAM
    return "long" if spread or narrowest > STRIPS_OF_BLOCK else "block"


def warps_wanted(shape: Shape, multiprocessors: int) -> int:
    """Of an item, to keep the device busy."""
    return ceil_divide(BUSY_WARPS * multiprocessors, max(1, shape.pairs))


@lru_cache(maxsize=1024)
def fast_plan(
    shape: Shape, order: int, multiprocessors: int, shared_limit: int, family: str | None
) -> Plan:
    """Of the fast arithmetic, which does everything but what it marks.

    `shared_limit` is the most shared memory that a block of the device can have. The family is
    chosen by shape if it is not given.
    """
    # With two columns a lane a step takes two thirds of the instructions a cell that it takes with
    # one [measured on an H200]; narrow strips split an item among more warps. So: as narrow as it
    # takes to keep the schedulers busy.
    family = family or choose_family(shape, multiprocessors)
    variant, tile_chunks = {"long": long_form, "block": block_form, "warp": warp_form}[family](
        shape, order, multiprocessors, shared_limit
    )
    return shared_out(family, shape, variant, tile_chunks, multiprocessors, shared_limit)


class StatePlans(NamedTuple):
    """Of the value and of the gradient."""

    forward: Plan
    backward: Plan

    @property
    def state_bytes(self) -> dict[str, int]:
        return self.backward.state_bytes

    def within(self, limit: float) -> StatePlans | None:
        """None if the state would be larger, and not small."""
        return self if total(self.state_bytes) <= max(KEPT_BYTES, limit) else None


@lru_cache(maxsize=1024)
def state_plans(
    shape: Shape, multiprocessors: int, shared_limit: int, family: str | None
) -> StatePlans | None:
    """Of a value that keeps its state and of the gradient from it; None if the state would be too
    large.

    Both launches have the strips and tiles of the gradient without state, and so its results to the
    bit, but longer tiles where shared memory has room: checkpoints are those of all items here, and
    go to memory and back, while those of the items in work may stay in the cache. Each launch takes
    as many warps as it has room for.
    """
    plan = fast_plan(shape, 1, multiprocessors, shared_limit, family)
    tile_chunks = max(
        plan.tile_steps // CHUNK, tile_chunks_within(plan.variant, shared_limit // BUSY_WARPS)
    )
    forward, backward = (
        replace(
            shared_out(plan.family, shape, variant, chunks, multiprocessors, shared_limit),
            tile_steps=CHUNK * tile_chunks,
            kept_items=shape.pairs,
        )
        for variant, chunks in ((replace(plan.variant, order=0), 0), (plan.variant, tile_chunks))
    )
    assert forward.state_bytes == backward.state_bytes
    return StatePlans(forward, backward).within(KEPT_SHARE_OF_COST * shape.cost_bytes)


# A form of a family: the variant, and the chunks of a tile.


def warp_form(
    shape: Shape, order: int, multiprocessors: int, shared_limit: int
) -> tuple[Variant, int]:
    """For many items: a warp an item, in one strip if that is wide enough."""
    offered = columns_for_batches(shape, order)
    columns = next((c for c in offered if LANES * c >= shape.m), offered[-1])
    return Variant(shape.dtype, False, columns, shape.weak, order), 1


def block_form(
    shape: Shape, order: int, multiprocessors: int, shared_limit: int
) -> tuple[Variant, int]:
    """For a medium number of items: the warps of a block an item."""
    wanted = team_wanted(shape, multiprocessors)

    def enough(columns: int) -> bool:
        variant = Variant(shape.dtype, False, columns, shape.weak, order)
        strips = strips_of(shape.m, columns)
        return min(strips, warps_that_fit(variant, 1, strips, shared_limit)) >= wanted

    columns = next(filter(enough, reversed(columns_for_batches(shape, order))), 1)
    return Variant(shape.dtype, False, columns, shape.weak, order), 1


def long_form(
    shape: Shape, order: int, multiprocessors: int, shared_limit: int
) -> tuple[Variant, int]:
    """For few items of many strips: a warp a strip, on whatever multiprocessor.

    Two columns a lane, unless that leaves multiprocessors idle: with one, borders and checkpoints
    of a gradient take more memory and the critical path is about as long. Tiles are short enough
    for all strips to run, as far as may be; longer for one very long item, whose checkpoints would
    take too much memory.
    """
    columns = 1
    if 2 in columns_offered(shape.dtype, order):
        columns = 2 if shape.pairs * strips_of(shape.m, 2) >= multiprocessors else 1
    variant = Variant(shape.dtype, False, columns, shape.weak, order)
    warps = shape.pairs * strips_of(shape.m, columns)
    share = shared_limit // max(1, ceil_divide(warps, multiprocessors))
    share = min(share, shared_limit // STRIPS_IN_GROUP - group_bytes(STRIPS_IN_GROUP))
    chunks, most = (max(1, tile_chunks_within(variant, limit)) for limit in (share, shared_limit))

    def scratch_bytes(chunks: int) -> int:
        plan = shared_out("long", shape, variant, chunks, multiprocessors, shared_limit)
        return plan.total_bytes

    if warps <= 2 * multiprocessors:
        while chunks < most and scratch_bytes(chunks) > SHARE_OF_COST * shape.cost_bytes:
            chunks *= 2
    return variant, chunks


def team_wanted(shape: Shape, multiprocessors: int) -> int:
    return min(LARGEST_TEAM, max(2, warps_wanted(shape, multiprocessors)))


def warps_that_fit(variant: Variant, tile_chunks: int, strips: int, shared_limit: int) -> int:
    """Within the shared memory of a block that does one item."""
    return max(1, (shared_limit - flag_bytes(strips)) // warp_bytes(variant, tile_chunks))


def strips_in_group(strips: int, warp_bytes: int, shared_limit: int) -> int:
    """As many as one block has room for."""
    most = min(STRIPS_IN_GROUP, strips)
    fits = (n for n in range(most, 1, -1) if n * warp_bytes + group_bytes(n) <= shared_limit)
    return next(fits, 1)


def shared_out(
    family: str,
    shape: Shape,
    variant: Variant,
    tile_chunks: int,
    multiprocessors: int,
    shared_limit: int,
) -> Plan:
    """The work among warps; tiles of no chunks in a launch that only goes forward."""
    strips, span = strips_of(shape.m, variant.columns), shape.span(variant.width)
    in_block, of_warp = 1, warp_bytes(variant, tile_chunks)
    if family == "long":
        in_block = strips_in_group(strips, of_warp, shared_limit)
        warps, slots = shape.pairs * ceil_divide(strips, in_block) * in_block, shape.pairs
    elif family == "block":
        wanted = team_wanted(shape, multiprocessors)
        rounds = ceil_divide(
            strips, min(wanted, warps_that_fit(variant, tile_chunks, strips, shared_limit))
        )
        # Equally many strips for each warp, as far as possible.
        in_block = ceil_divide(strips, rounds)
        resident = resident_blocks(in_block, in_block * of_warp + flag_bytes(strips), shared_limit)
        slots = min(shape.pairs, multiprocessors * max(1, resident))
        warps = slots * in_block
    else:
        in_block, resident = max(
            ((w, w * resident_blocks(w, w * of_warp, shared_limit)) for w in (WARPS_IN_BLOCK, 1)),
            key=itemgetter(1),
        )
        warps = min(shape.pairs, multiprocessors * max(1, resident))
        slots = warps = ceil_divide(warps, in_block) * in_block
    steps = CHUNK * max(1, tile_chunks)
    return Plan(variant, family, warps, in_block, steps, strips, span, slots)
