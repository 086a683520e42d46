"""How the work of one call on CUDA tensors is cut up: kernel variants, warps, scratch memory.

Requirements: torch only; nothing here needs a GPU or looks at one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

LANES = 32
FORWARD, BACKWARD = 1, 2  # as in cuda/problem.cuh

Argument: TypeAlias = Tensor | int | float | None  # null where None


def c_type(dtype: torch.dtype) -> str:
    return "double" if dtype == torch.float64 else "float"


def ceil_divide(a: int, b: int) -> int:
    return -(-a // b)


@dataclass(frozen=True)
class Variant:
    """One compiled form of lattice.cu; see the list of macros there."""

    dtype: torch.dtype
    wide: bool
    columns: int
    weak: bool
    order: int

    @property
    def real_bytes(self) -> int:
        """Of probabilities and visits: float64 in the wide arithmetic."""
        return 8 if self.wide or self.dtype == torch.float64 else 4

    @property
    def node_bytes(self) -> int:
        number = 32 if self.wide else 2 * self.real_bytes
        if self.order < 2:
            return number
        return 48 if self.wide else number + 8

    @property
    def flow_bytes(self) -> int:
        return self.real_bytes * (4 if self.order == 2 else 2)

    @property
    def border_bytes(self) -> int:
        """Of one row: a node in the forward sweep, a flow in the backward sweep."""
        return max(self.node_bytes, self.flow_bytes)

    @property
    def width(self) -> int:
        """Columns of a strip."""
        return LANES * self.columns

    @property
    def step_bytes(self) -> int:
        """Of the transition probabilities, and their derivatives, of one step of a warp."""
        return LANES * self.columns * (6 if self.order == 2 else 3) * self.real_bytes

    @property
    def options(self) -> tuple[str, ...]:
        return (
            f"-DWITH_COST={c_type(self.dtype)}",
            f"-DWITH_WIDE={int(self.wide)}",
            f"-DWITH_COLUMNS={self.columns}",
            f"-DWITH_WEAK={int(self.weak)}",
            f"-DWITH_ORDER={self.order}",
            f"-DWITH_NODE_BYTES={self.node_bytes}",
            f"-DWITH_FLOW_BYTES={self.flow_bytes}",
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
    """Columns a lane, as many as fit in the registers without spills.

    Eight would fit for a float32 gradient too, but halve the steps of a tile and so double what the
    checkpoints move.
    """
    single = dtype == torch.float32
    if order == 2:
        return (1, 2) if single else (1,)
    if order == 1:
        return (1, 2, 4) if single else (1, 2)
    return (1, 2, 4, 8) if single else (1, 2)


class Shape(NamedTuple):
    """What plans are made for, and cached by."""

    dtype: torch.dtype
    pairs: int
    n: int  # rows and columns of the lattice
    m: int
    weak: bool
    bandwidth: int  # -1: none, or not known to hold for every item

    def span(self, width: int) -> int:
        """An upper bound of the rows in which `width` neighboring columns meet the band."""
        if self.bandwidth < 0:
            return self.n
        return min(self.n, min(width, self.m) + abs(self.m - self.n) + 2 * self.bandwidth)

    @property
    def cost_bytes(self) -> int:
        cells = self.pairs * ((self.n // 2) * (self.m // 2) if self.weak else self.n * self.m)
        return cells * self.dtype.itemsize


@dataclass
class Batch:
    """The arguments that all launches of one call share."""

    cost: Tensor  # (*, N, M)
    fields: dict[str, Argument]
    weak: bool
    bandwidth: int | None
    ragged: bool  # lengths are given

    @property
    def pairs(self) -> int:
        return self.cost.shape[:-2].numel()

    @property
    def shape(self) -> Shape:
        n, m = self.cost.shape[-2:]
        if self.weak:
            n, m = 2 * n + 1, 2 * m + 1
        band = -1 if self.bandwidth is None or self.ragged else self.bandwidth
        return Shape(self.cost.dtype, self.pairs, n, m, self.weak, band)


FAMILIES = ("warp", "block", "long")

# Dynamic shared memory of a block that every GPU gives without asking.
SHARED_BYTES = 48 << 10
# Of one warp, for transition probabilities: two warps within the above. A multiprocessor of an
# H100 or H200 holds nine.
TILE_BYTES = 24 << 10
WARPS_IN_BLOCK = 2
# At most, in the block family. More would need a smaller limit of registers for all families.
LARGEST_TEAM = 8
# Warps a multiprocessor that hide each other's latency: three for each of its four schedulers.
BUSY_WARPS = 12
# Above, strips of one item go to several multiprocessors.
STRIPS_OF_BLOCK = 512
# Rows between reports of progress: a strip starts 31 rows and a chunk behind the one before it, so
# short chunks shorten the critical path. In shared memory a look costs some 60 cycles, a fraction
# of a step; between multiprocessors 600 or more, for which the row-wise order of a longer chunk
# pays [E, from latencies published for Hopper, not measured here].
BLOCK_CHUNK, LONG_CHUNK = 8, 16
WIDE_COLUMNS = 4
WIDE_SCRATCH_BYTES = 32 << 20
WIDE_SHARE_OF_COST = 0.05
ALIGNMENT = 256


@dataclass(frozen=True)
class Plan:
    """How the launches of one arithmetic share out the work; see cuda/lattice.cu."""

    variant: Variant
    family: str  # one of FAMILIES
    warps: int
    warps_in_block: int
    tile_steps: int
    strips: int
    span: int
    slots: int  # of scratch memory: one for each item that is in work at a time

    @property
    def by_ticket(self) -> bool:
        return self.family == "long"

    @property
    def team(self) -> int:
        return self.warps_in_block if self.family == "block" else 1

    @property
    def chunk(self) -> int:
        return {"warp": LANES, "block": BLOCK_CHUNK, "long": LONG_CHUNK}[self.family]

    @property
    def kept_borders(self) -> int:
        """Borders of an item in memory at once: the last two where one warp goes forward only."""
        every = self.variant.order > 0 or self.family != "warp"
        return self.strips if every else min(2, self.strips)

    @property
    def tile_bytes(self) -> int:
        return self.tile_steps * self.variant.step_bytes

    @cached_property
    def scratch_bytes(self) -> dict[str, int]:
        """Of each kind of scratch memory; see the fields of these names in cuda/problem.cuh."""
        variant, several = self.variant, self.strips > 1
        tiles = self.slots * self.strips * ceil_divide(self.span + LANES - 1, self.tile_steps)
        nodes_of_tile = (variant.columns + 1) * LANES
        border = (self.span + 1) * variant.border_bytes
        backward = variant.order > 0
        return {
            "borders": several * self.slots * self.kept_borders * border,
            "checkpoints": backward * tiles * nodes_of_tile * variant.node_bytes,
            "tiles": backward * variant.wide * self.warps * self.tile_bytes,
        }

    @cached_property
    def total_bytes(self) -> int:
        return sum(round_up(size) for size in self.scratch_bytes.values())

    @cached_property
    def shared_bytes(self) -> int:
        """Of a block in a launch that goes backward; flags are needed in both directions."""
        tiles = self.warps_in_block * self.tile_bytes
        in_shared = self.variant.order > 0 and not self.variant.wide
        return (tiles if in_shared else 0) + (flag_bytes(self.strips) if self.team > 1 else 0)

    def divide(self, scratch: Tensor) -> dict[str, Argument]:
        """Scratch memory of at least `total_bytes` as the fields that point into it."""
        fields: dict[str, Argument] = {}
        offset = 0
        for name, size in self.scratch_bytes.items():
            fields[name] = scratch[offset : offset + size] if size else None
            offset += round_up(size)
        return fields


def round_up(size: int) -> int:
    return ceil_divide(size, ALIGNMENT) * ALIGNMENT


def flag_bytes(strips: int) -> int:
    return 2 * 4 * strips


def resident_warps(order: int, columns: int) -> int:
    """Of the warp family on a multiprocessor: what registers and, backward, tiles leave room for.

    More would come in a second wave, mostly empty, as items are shared out beforehand.
    """
    if order:
        return 8
    return 32 if columns <= 2 else 20


def strips_of(m: int, columns: int) -> int:
    return ceil_divide(m, LANES * columns)


def fast_plan(
    task: Batch,
    order: int,
    multiprocessors: int,
    shared_limit: int = SHARED_BYTES,
    family: str | None = None,
) -> Plan:
    """Of the fast arithmetic, which does everything but what it marks.

    `shared_limit` is the most shared memory that a block of the device can have. The family is
    chosen by shape if it is not given.
    """
    return plan_of_shape(task.shape, order, multiprocessors, shared_limit, family)


def choose_family(shape: Shape, multiprocessors: int) -> str:
    wanted = warps_wanted(shape, multiprocessors)
    if wanted == 1 or shape.m <= LANES:
        return "warp"
    # One block runs on one multiprocessor: with fewer items than half of those most would be idle.
    narrowest = strips_of(shape.m, 1)
    spread = shape.pairs <= multiprocessors // 2 and narrowest > 2 * LARGEST_TEAM
    return "long" if spread or narrowest > STRIPS_OF_BLOCK else "block"


def warps_wanted(shape: Shape, multiprocessors: int) -> int:
    """Of an item, to keep the device busy."""
    return ceil_divide(BUSY_WARPS * multiprocessors, max(1, shape.pairs))


@lru_cache(maxsize=1024)
def plan_of_shape(
    shape: Shape, order: int, multiprocessors: int, shared_limit: int, family: str | None
) -> Plan:
    # A cell costs some 70 instructions and a step of a warp another 40 [E, from the size of the
    # machine code]: wide lanes do the least work, and narrow ones split an item among more warps.
    # So: as narrow as it takes to give every scheduler warps whose latencies hide each other.
    family = family or choose_family(shape, multiprocessors)
    if family == "long":
        return long_plan(shape, order, multiprocessors, shared_limit)
    if family == "block":
        return block_plan(shape, order, multiprocessors, shared_limit)
    return warp_plan(shape, order, multiprocessors)


def warp_plan(shape: Shape, order: int, multiprocessors: int) -> Plan:
    """For many items: a warp an item, in one strip if that is wide enough."""
    offered = columns_offered(shape.dtype, order)
    columns = next((c for c in offered if LANES * c >= shape.m), offered[-1])
    variant = Variant(shape.dtype, False, columns, shape.weak, order)
    tile_steps = max(1, TILE_BYTES // variant.step_bytes)
    warps = min(shape.pairs, multiprocessors * resident_warps(order, columns))
    warps = ceil_divide(warps, WARPS_IN_BLOCK) * WARPS_IN_BLOCK
    strips, span = strips_of(shape.m, columns), shape.span(variant.width)
    return Plan(variant, "warp", warps, WARPS_IN_BLOCK, tile_steps, strips, span, warps)


def block_plan(shape: Shape, order: int, multiprocessors: int, shared_limit: int) -> Plan:
    """For a medium number of items: the warps of a block an item."""
    wanted = min(LARGEST_TEAM, max(2, warps_wanted(shape, multiprocessors)))
    offered = columns_offered(shape.dtype, order)
    enough = (c for c in reversed(offered) if strips_of(shape.m, c) >= wanted)
    variant = Variant(shape.dtype, False, next(enough, 1), shape.weak, order)
    strips = strips_of(shape.m, variant.columns)
    rounds = ceil_divide(strips, wanted)
    team = ceil_divide(strips, rounds)  # equally many strips for each warp, as far as possible
    tile_bytes = min(TILE_BYTES, (shared_limit - flag_bytes(strips)) // team)
    tile_steps = max(1, tile_bytes // variant.step_bytes)
    at_once = multiprocessors * max(1, resident_warps(order, variant.columns) // team)
    blocks = min(shape.pairs, at_once)
    span = shape.span(variant.width)
    return Plan(variant, "block", blocks * team, team, tile_steps, strips, span, blocks)


def long_plan(shape: Shape, order: int, multiprocessors: int, shared_limit: int) -> Plan:
    """For few items of many strips: a warp a strip, on whatever multiprocessor.

    Two columns a lane, unless that leaves multiprocessors idle: with one, borders and checkpoints
    of a gradient take more memory and the critical path is about as long.
    """
    columns = 1
    if 2 in columns_offered(shape.dtype, order):
        columns = 2 if shape.pairs * strips_of(shape.m, 2) >= multiprocessors else 1
    variant = Variant(shape.dtype, False, columns, shape.weak, order)
    # One warp in a block, so that there is room for a tile of twice the length, which halves what
    # the checkpoints take.
    tile_bytes = min(shared_limit, TILE_BYTES * WARPS_IN_BLOCK * shape.dtype.itemsize // 4)
    tile_steps = max(1, tile_bytes // variant.step_bytes)
    strips, span = strips_of(shape.m, columns), shape.span(variant.width)
    warps = shape.pairs * strips
    return Plan(variant, "long", warps, 1, tile_steps, strips, span, shape.pairs)


def wide_plan(task: Batch, order: int, multiprocessors: int) -> Plan:
    """Of the arithmetic for what the fast one marks.

    Tiles are long and lie in global memory, which leaves little to keep between the sweeps.
    """
    return _wide_plan(task.shape, order, multiprocessors)


@lru_cache(maxsize=1024)
def _wide_plan(shape: Shape, order: int, multiprocessors: int) -> Plan:
    variant = Variant(shape.dtype, True, WIDE_COLUMNS, shape.weak, order)
    strips, span = strips_of(shape.m, WIDE_COLUMNS), shape.span(variant.width)
    tile_steps = min(512, max(32, span // 8))
    one = Plan(variant, "warp", 1, 1, tile_steps, strips, span, 1)
    budget = max(WIDE_SCRATCH_BYTES, int(WIDE_SHARE_OF_COST * shape.cost_bytes))
    warps = max(1, min(shape.pairs, 4 * multiprocessors, budget // max(1, one.total_bytes)))
    return Plan(variant, "warp", warps, 1, tile_steps, strips, span, warps)
