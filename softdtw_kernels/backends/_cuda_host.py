"""What the host does for the CUDA kernels: shapes to launches, scratch memory, arguments.

Requirements: torch only. `cupy_cuda` runs these functions with a launcher for GPUs, the tests with
that of their emulator. Nothing here reads a value of a tensor on the device, so nothing waits for
it. All memory is torch's; what must start at zero is zeroed on the stream.

The kernels and their two ways of sharing out the work are described in cuda/lattice.cu and
cuda/strip.cuh.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

SOURCES = Path(__file__).parent / "cuda"
LANES = 32
FORWARD, BACKWARD = 1, 2

Argument: TypeAlias = Tensor | int | float | None  # null where None


class Launcher(Protocol):
    """Runs one kernel. `multiprocessors` says how much work keeps the device busy."""

    multiprocessors: int

    def launch(
        self,
        source: str,
        options: Sequence[str],
        grid: int,
        block: int,
        shared_bytes: int,
        arguments: Sequence[Argument],
    ) -> None:
        """Launch the kernel that has the name of its source, compiled with the options."""
        ...


@cache
def own_field_names(file: str, macro: str) -> tuple[str, ...]:
    """A kernel's own parameters in order, read from the one list of them in its source."""
    text = (SOURCES / file).read_text()
    body = text[text.index(f"#define {macro}(X)") :].split("\n\n", 1)[0]
    return tuple(re.findall(r"X\([^,]+, (\w+)\)", body))


def field_names(file: str, macro: str) -> tuple[str, ...]:
    """The parameters of a kernel on a batch: those of the batch come first."""
    return own_field_names("problem.cuh", "SOFTDTW_BATCH_FIELDS") + own_field_names(file, macro)


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
                found.append(Variant(dtype, True, 1, weak, order))
    return found


def columns_offered(dtype: torch.dtype, order: int) -> tuple[int, ...]:
    """Columns a lane, as many as fit in the registers without spills."""
    return (1, 2, 4) if dtype == torch.float32 and order < 2 else (1, 2)


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


def per_item(tensor: Tensor | None, name: str, device: torch.device) -> dict[str, Argument]:
    """Pointer and stride of a tensor with one entry an item; an expanded scalar is not copied.

    A scalar in host memory becomes a plain number: reading it waits for nothing.
    """
    if tensor is None:
        return {name: None, f"{name}_stride": 0}
    if tensor.numel() and all(
        s == 0 or n == 1 for s, n in zip(tensor.stride(), tensor.shape, strict=True)
    ):
        scalar = tensor.as_strided((1,), (1,))
        if tensor.device != device:
            return {name: None, f"{name}_stride": 0, f"{name}_number": scalar.item()}
        return {name: scalar, f"{name}_stride": 0}
    return {name: tensor.to(device, non_blocking=True).reshape(-1), f"{name}_stride": 1}


STRIDES = ("b0", "b1", "b2", "row", "column")


def strides(prefix: str, tensor: Tensor) -> dict[str, Argument]:
    """Of (*, N, M) with at most three leading dimensions, the missing ones 0."""
    given = (0,) * (5 - tensor.dim()) + tensor.stride()
    return {f"{prefix}_{name}": s for name, s in zip(STRIDES, given, strict=True)}


def few_dimensions(x: Tensor) -> Tensor:
    """With at most three leading dimensions, as the kernels take; the operators give two."""
    return x if x.dim() <= 5 else x.reshape(-1, *x.shape[-2:])


def new_like(cost: Tensor, zeroed: bool = False) -> Tensor:
    """An output in the shape and, where they are dense, the strides of the cost."""
    return torch.zeros_like(cost) if zeroed else torch.empty_like(cost)


def with_strides_of(out: Tensor, x: Tensor) -> Tensor:
    """x in the dtype, shape and strides of an output; a copy only where it must be."""
    x = x.reshape(out.shape)
    if x.dtype == out.dtype and x.stride() == out.stride():
        return x
    return torch.empty_like(out).copy_(x)


def batch(
    cost: Tensor,
    dense: Tensor | None,
    gamma: Tensor,
    dummy: Tensor | None,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    bandwidth: int | None,
) -> Batch:
    """`dense` is an output shaped like the cost."""
    leading = (1, 1, 1, *cost.shape[:-2])[-3:]
    fields: dict[str, Argument] = {
        "cost": cost,
        "pairs": cost.shape[:-2].numel(),
        "batch1": leading[1],
        "batch2": leading[2],
        "rows": cost.shape[-2],
        "columns": cost.shape[-1],
        "bandwidth": -1 if bandwidth is None else bandwidth,
        **strides("stride", cost),
        **({} if dense is None else strides("dense", dense)),
        **per_item(gamma, "gamma", cost.device),
        **per_item(dummy, "dummy", cost.device),
        **per_item(x_lengths, "x_lengths", cost.device),
        **per_item(y_lengths, "y_lengths", cost.device),
    }
    ragged = x_lengths is not None or y_lengths is not None
    return Batch(cost, fields, dummy is not None, bandwidth, ragged)


# Shared memory of one warp for transition probabilities. Two such warps make a block within the
# 48 KiB that every GPU gives without asking; a multiprocessor of an H100 or H200 holds nine.
TILE_BYTES = 24 << 10
WARPS_IN_BLOCK = 2
WARPS_ON_MULTIPROCESSOR = {0: 32, 1: 8, 2: 8}  # by order: how many fit beside each other
WIDE_SCRATCH_BYTES = 32 << 20
WIDE_SHARE_OF_COST = 0.02


@dataclass
class Plan:
    """How one launch, or a forward and a backward launch, share out the work."""

    variant: Variant
    by_strip: bool
    warps: int
    warps_in_block: int
    tile_steps: int
    strips: int
    span: int
    slots: int  # of scratch memory

    @property
    def tiles(self) -> int:
        return ceil_divide(self.span + LANES - 1, self.tile_steps)

    @property
    def border_bytes(self) -> int:
        return self.slots * self.strips * self.span * self.variant.node_bytes

    @property
    def flow_bytes(self) -> int:
        return (
            self.slots * self.strips * self.span * self.variant.flow_bytes if self.strips > 1 else 0
        )

    @property
    def checkpoint_bytes(self) -> int:
        nodes = self.slots * self.strips * self.tiles * (self.variant.columns + 1) * LANES
        return nodes * self.variant.node_bytes


def plan(task: Batch, order: int, multiprocessors: int) -> Plan:
    """Of the fast arithmetic."""
    m = task.lattice[1]
    offered = columns_offered(task.cost.dtype, order)
    columns = next((c for c in offered if LANES * c >= m), offered[-1])
    variant = Variant(task.cost.dtype, False, columns, task.weak, order)
    width = LANES * columns
    strips, span, pairs = ceil_divide(m, width), task.span(width), task.pairs
    # Waiting for other strips costs little; idle multiprocessors cost much.
    by_strip = strips > 1 and pairs < 4 * multiprocessors and pairs * strips < 2**31
    warps_in_block = 1 if by_strip else WARPS_IN_BLOCK
    # A long item runs one warp in a block: twice the tile halves what the checkpoints take.
    tile_bytes = TILE_BYTES * (2 if by_strip else 1)
    tile_steps = max(1, tile_bytes // variant.step_bytes)
    if by_strip:
        warps = slots = pairs
        warps = pairs * strips
    else:
        warps = slots = min(pairs, multiprocessors * WARPS_ON_MULTIPROCESSOR[order])
        warps = slots = ceil_divide(slots, warps_in_block) * warps_in_block
    return Plan(variant, by_strip, warps, warps_in_block, tile_steps, strips, span, slots)


def wide_plan(task: Batch, order: int, multiprocessors: int) -> Plan:
    """Of the arithmetic for what the fast one marks.

    Tiles are long and lie in global memory, which leaves little to keep between the sweeps.
    """
    variant = Variant(task.cost.dtype, True, 1, task.weak, order)
    strips, span = ceil_divide(task.lattice[1], LANES), task.span(LANES)
    tile_steps = min(512, max(32, span // 8))
    one = Plan(variant, False, 1, 1, tile_steps, strips, span, 1)
    bytes_of_slot = max(1, one.border_bytes)
    if order:
        bytes_of_slot += one.flow_bytes + one.checkpoint_bytes + tile_steps * variant.step_bytes
    budget = max(
        WIDE_SCRATCH_BYTES, int(WIDE_SHARE_OF_COST * task.cost.numel() * task.cost.element_size())
    )
    warps = max(1, min(task.pairs, 4 * multiprocessors, budget // bytes_of_slot))
    return Plan(variant, False, warps, 1, tile_steps, strips, span, warps)


def scratch(size: int, like: Tensor) -> Tensor | None:
    return like.new_empty(size, dtype=torch.uint8) if size else None


def run_lattice(
    launcher: Launcher, task: Batch, order: int, outputs: dict[str, Argument], with_gamma: bool
) -> tuple[Tensor | None, Tensor | None]:
    """All launches of one call. Returns the derivatives in gamma and dummy, (pairs, parts)."""
    fast = plan(task, order, launcher.multiprocessors)
    wide = wide_plan(task, order, launcher.multiprocessors)
    pairs = task.pairs
    parts = max(fast.strips, wide.strips)
    grad_gamma = task.cost.new_zeros(pairs, parts, dtype=torch.float64) if with_gamma else None
    grad_dummy = (
        task.cost.new_zeros(pairs, parts, dtype=torch.float64) if order and task.weak else None
    )
    if fast.by_strip:
        counters = task.cost.new_zeros(2 + pairs * (1 + 2 * fast.strips), dtype=torch.int32)
        tickets, status, progress = (
            counters[:2],
            counters[2 : 2 + pairs],
            counters[2 + pairs :].view(2, -1),
        )
    else:
        status = task.cost.new_empty(pairs, dtype=torch.int32)
    fields = {
        **task.fields,
        **outputs,
        "grad_gamma": grad_gamma,
        "grad_dummy": grad_dummy,
        "parts": parts,
        "status": status,
    }
    for p in (fast, wide):
        borders = scratch(p.border_bytes, task.cost) if p.strips > 1 else None
        flows = scratch(p.flow_bytes, task.cost) if order else None
        checkpoints = scratch(p.checkpoint_bytes, task.cost) if order else None
        in_global = p.variant.wide and order > 0
        tiles = (
            scratch(p.warps * p.tile_steps * p.variant.step_bytes, task.cost) if in_global else None
        )
        fields |= {
            "borders": borders,
            "flows": flows,
            "checkpoints": checkpoints,
            "tiles": tiles,
            "tile_steps": p.tile_steps,
            "strips": p.strips,
            "span": p.span,
        }
        shared_bytes = (
            0 if in_global or not order else p.warps_in_block * p.tile_steps * p.variant.step_bytes
        )
        launches: list[dict[str, Argument]] = [
            {"ticket": None, "progress": None, "phases": FORWARD | BACKWARD}
        ]
        if p.by_strip:
            launches = [
                {"ticket": tickets[k], "progress": progress[k], "phases": phase}
                for k, phase in enumerate((FORWARD, BACKWARD)[: 2 if order else 1])
            ]
        for launch in launches:
            launcher.launch(
                "lattice",
                p.variant.options,
                ceil_divide(p.warps, p.warps_in_block),
                p.warps_in_block * LANES,
                0 if launch["phases"] == FORWARD else shared_bytes,
                arguments("problem.cuh", "SOFTDTW_LATTICE_FIELDS", fields | launch),
            )
    return grad_gamma, grad_dummy


DOUBLES = {"gamma_number", "dummy_number", "origin_count"}


def arguments(header: str, macro: str, fields: dict[str, Argument]) -> list[Argument]:
    """The fields in the kernel's order; null and 0 where nothing is given."""
    names = field_names(header, macro)
    unknown = fields.keys() - set(names)
    assert not unknown, f"the kernel has no parameters {unknown}"
    values: list[Argument] = []
    for name in names:
        value = fields.get(name)
        if name in DOUBLES:
            value = 0.0 if value is None else float(value)
        values.append(value)
    return [*values, 0]


def value(
    launcher: Launcher,
    cost: Tensor,
    gamma: Tensor,
    dummy: Tensor | None,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    bandwidth: int | None,
) -> Tensor:
    task = batch(few_dimensions(cost), None, gamma, dummy, x_lengths, y_lengths, bandwidth)
    out = cost.new_empty(cost.shape[:-2])
    if task.pairs:
        run_lattice(launcher, task, 0, {"value": out}, False)
    return out


def leaves_cells(x_lengths: Tensor | None, y_lengths: Tensor | None, bandwidth: int | None) -> bool:
    """Whether some cells may be beyond lengths or band, where no kernel writes."""
    return x_lengths is not None or y_lengths is not None or bandwidth is not None


def sum_of_parts(parts: Tensor | None, shape: torch.Size, like: Tensor) -> Tensor:
    """(pairs, parts) to (*), where `shape` is that of the cost, (*, N, M); zeros if None."""
    if parts is None:
        return like.new_zeros(shape[:-2], dtype=torch.float64)
    return parts.sum(-1).view(shape[:-2])


def gradient(
    launcher: Launcher,
    cost: Tensor,
    gamma: Tensor,
    dummy: Tensor | None,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    bandwidth: int | None,
    grad_value: Tensor,
    with_gamma: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    shape, cost = cost.shape, few_dimensions(cost)
    out = new_like(cost, leaves_cells(x_lengths, y_lengths, bandwidth))
    task = batch(cost, out, gamma, dummy, x_lengths, y_lengths, bandwidth)
    if not task.pairs:
        return out.view(shape), sum_of_parts(None, shape, cost), sum_of_parts(None, shape, cost)
    outputs = {"grad_cost": out, **per_item(grad_value, "grad_value", cost.device)}
    in_gamma, in_dummy = run_lattice(launcher, task, 1, outputs, with_gamma)
    return (
        out.view(shape) if out.shape != shape else out,
        sum_of_parts(in_gamma, shape, cost),
        sum_of_parts(in_dummy, shape, cost),
    )


def hessian_product(
    launcher: Launcher,
    cost: Tensor,
    gamma: Tensor,
    dummy: Tensor | None,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    bandwidth: int | None,
    grad_value: Tensor,
    tangent_cost: Tensor,
    tangent_gamma: Tensor,
    tangent_dummy: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    shape, cost = cost.shape, few_dimensions(cost)
    out = new_like(cost, leaves_cells(x_lengths, y_lengths, bandwidth))
    tangent_value = cost.new_empty(shape[:-2])
    task = batch(cost, out, gamma, dummy, x_lengths, y_lengths, bandwidth)
    in_gamma = in_dummy = None
    if task.pairs:
        if task.weak and tangent_dummy is None:
            tangent_dummy = cost.new_zeros(task.pairs, dtype=torch.float64)
        outputs: dict[str, Argument] = {
            "grad_cost": out,
            "tangent_value": tangent_value,
            "tangent_cost": with_strides_of(out, tangent_cost),
            "tangent_gamma": tangent_gamma.contiguous(),
            "tangent_dummy": None if tangent_dummy is None else tangent_dummy.contiguous(),
            **per_item(grad_value, "grad_value", cost.device),
        }
        in_gamma, in_dummy = run_lattice(launcher, task, 2, outputs, True)
    return (
        tangent_value,
        out.view(shape) if out.shape != shape else out,
        sum_of_parts(in_gamma, shape, cost),
        sum_of_parts(in_dummy, shape, cost),
    )


SMOOTHING_THREADS = 128
SMOOTHING_CELLS_OF_THREAD = 8


def run_smoothing(
    launcher: Launcher, task: Batch, order: int, fields: dict[str, Argument]
) -> Tensor | None:
    cells = task.cost.shape[-2] * task.cost.shape[-1]
    parts = ceil_divide(cells, SMOOTHING_THREADS * SMOOTHING_CELLS_OF_THREAD)
    # A grid holds fewer than 2^31 blocks.
    parts = max(1, min(parts, (2**31 - 1) // task.pairs))
    threads = 64 if cells <= 64 else SMOOTHING_THREADS
    grad_gamma = task.cost.new_empty(task.pairs, parts, dtype=torch.float64) if order else None
    launcher.launch(
        "smoothing",
        (f"-DWITH_COST={c_type(task.cost.dtype)}", f"-DWITH_ORDER={order}"),
        task.pairs * parts,
        threads,
        8 * threads // LANES if order else 0,
        arguments(
            "smoothing.cu",
            "SOFTDTW_SMOOTHING_FIELDS",
            task.fields | fields | {"grad_gamma": grad_gamma, "parts": parts},
        ),
    )
    return grad_gamma


def smooth(
    launcher: Launcher,
    cost: Tensor,
    gamma: Tensor,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    origin_count: float,
) -> Tensor:
    shape, cost = cost.shape, few_dimensions(cost)
    out = new_like(cost)
    if out.numel():
        task = batch(cost, out, gamma, None, x_lengths, y_lengths, None)
        run_smoothing(launcher, task, 0, {"origin_count": origin_count, "out": out})
    return out.view(shape) if out.shape != shape else out


def smooth_vjp(
    launcher: Launcher,
    cost: Tensor,
    gamma: Tensor,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    origin_count: float,
    grad_s: Tensor,
) -> tuple[Tensor, Tensor]:
    shape, cost = cost.shape, few_dimensions(cost)
    out = new_like(cost)
    in_gamma = None
    if out.numel():
        task = batch(cost, out, gamma, None, x_lengths, y_lengths, None)
        grad_s = with_strides_of(out, grad_s)
        fields: dict[str, Argument] = {"origin_count": origin_count, "out": out, "grad_s": grad_s}
        in_gamma = run_smoothing(launcher, task, 1, fields)
    return out.view(shape) if out.shape != shape else out, sum_of_parts(in_gamma, shape, cost)


DISTANCE_TILE, DISTANCE_DEPTH, DISTANCE_THREADS = 64, 16, 256  # as in cuda/distances.cu


def squared_distances(launcher: Launcher, x: Tensor, y: Tensor) -> Tensor:
    out = x.new_empty(*x.shape[:-1], y.shape[-2])
    if not out.numel():
        return out
    if x.dim() > 5:
        x, y = x.reshape(-1, *x.shape[-2:]), y.reshape(-1, *y.shape[-2:])
    leading = (1, 1, 1, *x.shape[:-2])[-3:]
    rows, columns, pairs = x.shape[-2], y.shape[-2], x.shape[:-2].numel()
    fields: dict[str, Argument] = {
        "x": x,
        "y": y,
        "out": out,
        "pairs": pairs,
        "batch1": leading[1],
        "batch2": leading[2],
        "rows": rows,
        "columns": columns,
        "features": x.shape[-1],
        **strides("x", x),
        **strides("y", y),
    }
    names = own_field_names("distances.cu", "SOFTDTW_DISTANCE_FIELDS")
    tiles = ceil_divide(rows, DISTANCE_TILE) * ceil_divide(columns, DISTANCE_TILE)
    launcher.launch(
        "distances",
        (f"-DWITH_COST={c_type(x.dtype)}",),
        pairs * tiles,
        DISTANCE_THREADS,
        2 * DISTANCE_DEPTH * (DISTANCE_TILE + 1) * x.element_size(),
        [*(fields[name] for name in names), 0],
    )
    return out


def path(
    launcher: Launcher,
    cost: Tensor,
    dummy: Tensor | None,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    bandwidth: int | None,
) -> list[Tensor]:
    """Where the gradient at gamma = 0 is 1.

    Rows and columns of a path only grow, so row-major order is its order.
    """
    ones = cost.new_ones(cost.shape[:-2])
    zeros = cost.new_zeros(cost.shape[:-2], dtype=torch.float64)
    visits, _, _ = gradient(
        launcher, cost, zeros, dummy, x_lengths, y_lengths, bandwidth, ones, False
    )
    return [item.nonzero() for item in (visits > 0).reshape(-1, *cost.shape[-2:])]
