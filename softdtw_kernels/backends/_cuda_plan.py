"""How the work of one call on CUDA tensors is cut up: kernel variants, warps, scratch memory.

Requirements: torch only; nothing here needs a GPU or looks at one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

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
    """Columns a lane, as many as fit in the registers without spills."""
    single = dtype == torch.float32
    if order == 2:
        return (1, 2) if single else (1,)
    return (1, 2, 4) if single else (1, 2)


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
    def lattice(self) -> tuple[int, int]:
        n, m = self.cost.shape[-2:]
        return (2 * n + 1, 2 * m + 1) if self.weak else (n, m)

    def span(self, width: int) -> int:
        """An upper bound of the rows in which `width` neighboring columns meet the band."""
        n, m = self.lattice
        if self.bandwidth is None or self.ragged:
            return n
        return min(n, min(width, m) + abs(m - n) + 2 * self.bandwidth)


# Shared memory of one warp for transition probabilities. Two such warps make a block within the
# 48 KiB that every GPU gives without asking; a multiprocessor of an H100 or H200 holds nine.
TILE_BYTES = 24 << 10
WARPS_IN_BLOCK = 2
WARPS_ON_MULTIPROCESSOR = {0: 32, 1: 8, 2: 8}  # by order: how many fit beside each other
WIDE_COLUMNS = 4
WIDE_SCRATCH_BYTES = 32 << 20
WIDE_SHARE_OF_COST = 0.05
ALIGNMENT = 256


@dataclass
class Plan:
    """How the launches of one arithmetic share out the work."""

    variant: Variant
    by_strip: bool  # else a warp takes whole items
    warps: int
    warps_in_block: int
    tile_steps: int
    strips: int
    span: int
    slots: int  # of scratch memory: a pair each, or a warp each

    @property
    def kept_borders(self) -> int:
        """Borders of an item in memory at once: the last two where nothing goes backward."""
        return self.strips if self.variant.order or self.by_strip else min(2, self.strips)

    @property
    def tile_bytes(self) -> int:
        return self.tile_steps * self.variant.step_bytes

    @property
    def scratch_bytes(self) -> dict[str, int]:
        """Of each kind of scratch memory; see the fields of these names in cuda/problem.cuh."""
        variant, several = self.variant, self.strips > 1
        rows = self.slots * self.span
        tiles = self.slots * self.strips * ceil_divide(self.span + LANES - 1, self.tile_steps)
        nodes_of_tile = (variant.columns + 1) * LANES
        backward = variant.order > 0
        return {
            "borders": several * rows * self.kept_borders * variant.node_bytes,
            "flows": several * backward * rows * self.strips * variant.flow_bytes,
            "checkpoints": backward * tiles * nodes_of_tile * variant.node_bytes,
            "tiles": backward * variant.wide * self.warps * self.tile_bytes,
        }

    @property
    def total_bytes(self) -> int:
        return sum(round_up(size) for size in self.scratch_bytes.values())

    @property
    def shared_bytes(self) -> int:
        """Of a block in a launch that goes backward."""
        in_shared = self.variant.order > 0 and not self.variant.wide
        return self.warps_in_block * self.tile_bytes if in_shared else 0

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


def fast_plan(task: Batch, order: int, multiprocessors: int) -> Plan:
    """Of the fast arithmetic, which does everything but what it marks."""
    m = task.lattice[1]
    offered = columns_offered(task.cost.dtype, order)
    columns = next((c for c in offered if LANES * c >= m), offered[-1])
    variant = Variant(task.cost.dtype, False, columns, task.weak, order)
    width = LANES * columns
    strips, span, pairs = ceil_divide(m, width), task.span(width), task.pairs
    # Waiting for other strips costs little; idle multiprocessors cost much.
    by_strip = strips > 1 and pairs < 4 * multiprocessors and pairs * strips < 2**31
    if by_strip:
        # One warp in a block, so that there is room for a tile of twice the length, which halves
        # what the checkpoints take.
        tile_steps = max(1, 2 * TILE_BYTES // variant.step_bytes)
        return Plan(variant, True, pairs * strips, 1, tile_steps, strips, span, pairs)
    tile_steps = max(1, TILE_BYTES // variant.step_bytes)
    warps = min(pairs, multiprocessors * WARPS_ON_MULTIPROCESSOR[order])
    warps = ceil_divide(warps, WARPS_IN_BLOCK) * WARPS_IN_BLOCK
    return Plan(variant, False, warps, WARPS_IN_BLOCK, tile_steps, strips, span, warps)


def wide_plan(task: Batch, order: int, multiprocessors: int) -> Plan:
    """Of the arithmetic for what the fast one marks.

    Tiles are long and lie in global memory, which leaves little to keep between the sweeps.
    """
    variant = Variant(task.cost.dtype, True, WIDE_COLUMNS, task.weak, order)
    width = LANES * WIDE_COLUMNS
    strips, span = ceil_divide(task.lattice[1], width), task.span(width)
    tile_steps = min(512, max(32, span // 8))
    one = Plan(variant, False, 1, 1, tile_steps, strips, span, 1)
    cost_bytes = task.cost.numel() * task.cost.element_size()
    budget = max(WIDE_SCRATCH_BYTES, int(WIDE_SHARE_OF_COST * cost_bytes))
    warps = max(1, min(task.pairs, 4 * multiprocessors, budget // max(1, one.total_bytes)))
    return Plan(variant, False, warps, 1, tile_steps, strips, span, warps)
