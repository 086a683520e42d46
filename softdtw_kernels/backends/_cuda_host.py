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
from functools import cache
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ._cuda_plan import (
    BACKWARD,
    FORWARD,
    LANES,
    Argument,
    Batch,
    c_type,
    ceil_divide,
    fast_plan,
    wide_plan,
)

SOURCES = Path(__file__).parent / "cuda"


class Launcher(Protocol):
    """Runs one kernel.

    `multiprocessors` says how much work keeps the device busy, `shared_limit` how many bytes of
    shared memory a block can have, `family` which of the three to take (None: by shape).
    """

    multiprocessors: int
    shared_limit: int
    family: str | None

    def launch(
        self,
        source: str,
        options: tuple[str, ...],
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


def run_lattice(
    launcher: Launcher, task: Batch, order: int, outputs: dict[str, Argument], with_gamma: bool
) -> tuple[Tensor | None, Tensor | None]:
    """All launches of one call. Returns the derivatives in gamma and dummy, (pairs, parts)."""
    fast = fast_plan(task, order, launcher.multiprocessors, launcher.shared_limit, launcher.family)
    wide = wide_plan(task, order, launcher.multiprocessors)
    pairs, new_zeros = task.pairs, task.cost.new_zeros
    parts = max(fast.strips, wide.strips)
    grad_gamma = new_zeros(pairs, parts, dtype=torch.float64) if with_gamma else None
    grad_dummy = new_zeros(pairs, parts, dtype=torch.float64) if order and task.weak else None
    # Two tickets, a status for each item and, for each sweep and strip, its progress.
    counters = new_zeros(2 + pairs * (1 + 2 * fast.strips * fast.by_ticket), dtype=torch.int32)
    status, progress = counters[2 : 2 + pairs], counters[2 + pairs :].view(2, -1)
    # The wide launch comes when the fast ones are done with the scratch memory.
    scratch_bytes = max(fast.total_bytes, wide.total_bytes)
    scratch = task.cost.new_empty(scratch_bytes, dtype=torch.uint8)
    fields = {
        **task.fields,
        **outputs,
        "grad_gamma": grad_gamma,
        "grad_dummy": grad_dummy,
        "parts": parts,
        "status": status,
    }
    whole: dict[str, Argument] = {"ticket": None, "progress": None, "phases": FORWARD | BACKWARD}
    for plan in (fast, wide):
        launches = [whole]
        if plan.by_ticket:
            launches = [
                {"ticket": counters[k : k + 1], "progress": progress[k], "phases": phase}
                for k, phase in enumerate((FORWARD, BACKWARD)[: 2 if order else 1])
            ]
        sizes: dict[str, Argument] = {
            "tile_steps": plan.tile_steps,
            "strips": plan.strips,
            "span": plan.span,
            "kept_borders": plan.kept_borders,
            "team": plan.team,
        }
        for launch in launches:
            phases = launch["phases"]
            assert isinstance(phases, int)
            sizes["ring_chunks"] = plan.ring_chunks(phases)
            launcher.launch(
                "lattice",
                plan.variant.options,
                ceil_divide(plan.warps, plan.warps_in_block),
                plan.warps_in_block * LANES,
                plan.shared_bytes(phases),
                arguments(
                    "problem.cuh",
                    "SOFTDTW_LATTICE_FIELDS",
                    fields | plan.divide(scratch) | sizes | launch,
                ),
            )
    return grad_gamma, grad_dummy


DOUBLES = {"gamma_number", "dummy_number", "origin_count"}


def arguments(header: str, macro: str, fields: dict[str, Argument]) -> list[Argument]:
    """The fields in the kernel's order; null and 0 where nothing is given."""
    return in_order(field_names(header, macro), fields)


def in_order(names: Sequence[str], fields: dict[str, Argument]) -> list[Argument]:
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
    with_parameters: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    shape, cost = cost.shape, few_dimensions(cost)
    out = new_like(cost, leaves_cells(x_lengths, y_lengths, bandwidth))
    task = batch(cost, out, gamma, dummy, x_lengths, y_lengths, bandwidth)
    if not task.pairs:
        return out.view(shape), sum_of_parts(None, shape, cost), sum_of_parts(None, shape, cost)
    outputs = {"grad_cost": out, **per_item(grad_value, "grad_value", cost.device)}
    in_gamma, in_dummy = run_lattice(launcher, task, 1, outputs, with_parameters)
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
