"""The host's part of the tiny kernels: many small pairs, one thread each.

Requirements: torch only. `value` and `gradient` choose between source/tiny.cu and the kernels of
`_cuda_host`, and so do `smoothed_value` and `smoothed_gradient`, which are S2DTW in one kernel
where that applies and the composition of smoothing and lattice where not. As in `_cuda_host`,
nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import torch
from torch import Tensor

from .._backends import in_shape
from . import before as _cuda_costs
from . import lattice as host
from .plan import Argument, Batch, c_type, ceil_divide
from .recipe import Launcher, Recipe

# Rows go up to the columns offered: what a pair takes of shared memory grows with both.
COLUMNS = {torch.float32: (4, 8, 16), torch.float64: (4, 8)}
# Below, most of the device would idle: a thread takes as long for its pair as it takes for a
# thousand warps' pairs, while lattice.cu gives every pair a whole warp.
PAIRS_OF_MULTIPROCESSOR = 16
KEPT_BYTES = {torch.float32: 8, torch.float64: 16}  # of a real cell: mantissa and exponent
SHARED_BYTES = 48 << 10  # that every GPU gives without asking
THREADS = 64
BLOCKS_OF_MULTIPROCESSOR = 4  # of a grid whose threads each hold memory: what runs at once
EXACT_THREADS = 32
EXACT_SCRATCH_BYTES = 64 << 20


@dataclass(frozen=True)
class TinyVariant:
    """One compiled form of tiny.cu; see the list of macros there."""

    dtype: torch.dtype
    columns: int
    weak: bool
    smoothing: bool
    order: int
    restricted: bool = False
    vectors: bool = False

    @property
    def kept_bytes(self) -> int:
        """Of a thread, for Z of its real cells."""
        return self.columns**2 * KEPT_BYTES[self.dtype] if self.order else 0

    @property
    def threads(self) -> int:
        return 32 if THREADS * self.kept_bytes > SHARED_BYTES >= 32 * self.kept_bytes else THREADS

    @property
    def shared(self) -> bool:
        return self.threads * self.kept_bytes <= SHARED_BYTES

    @property
    def options(self) -> tuple[str, ...]:
        return (
            f"-DWITH_COST={c_type(self.dtype)}",
            f"-DWITH_COLUMNS={self.columns}",
            f"-DWITH_WEAK={int(self.weak)}",
            f"-DWITH_SMOOTHING={int(self.smoothing)}",
            f"-DWITH_ORDER={self.order}",
            f"-DWITH_RESTRICTED={int(self.restricted)}",
            f"-DWITH_VECTORS={int(self.vectors)}",
            f"-DWITH_THREADS={self.threads}",
            f"-DWITH_SHARED={int(self.shared)}",
        )

    @property
    def exact_options(self) -> tuple[str, ...]:
        """Of tiny_exact.cu, for what this one leaves."""
        return tuple(
            option
            for option in self.options
            if option[2:].split("=")[0]
            in ("WITH_COST", "WITH_WEAK", "WITH_SMOOTHING", "WITH_ORDER")
        )


def variants() -> list[TinyVariant]:
    """The forms of tiny.cu, but for the ways to read and to restrict, of which each has the
    dearest.
    """
    return [
        TinyVariant(dtype, columns, weak, smoothing, order, restricted, vectors)
        for dtype, offered in COLUMNS.items()
        for columns in offered
        for weak in (False, True)
        for smoothing in (False, True)
        for order in (0, 1)
        for restricted, vectors in ((False, True), (True, False))
    ]


def applies(cost: Tensor, multiprocessors: int) -> bool:
    """Whether the kernels of `_cuda_host` would do worse."""
    if max(cost.shape[-2:]) > COLUMNS[cost.dtype][-1]:
        return False
    return PAIRS_OF_MULTIPROCESSOR * multiprocessors <= cost.shape[:-2].numel() < 2**31


def variant_of(task: Batch, order: int, smoothing: bool, aligned: bool) -> TinyVariant:
    """`aligned` is whether all matrices are `in_vectors`."""
    dtype, (rows, columns) = task.cost.dtype, task.cost.shape[-2:]
    width = next(c for c in COLUMNS[dtype] if c >= max(rows, columns))
    restricted = task.ragged or task.bandwidth is not None or columns < width
    vectors = columns == width and aligned
    return TinyVariant(dtype, width, task.weak, smoothing, order, restricted, vectors)


def in_vectors(matrices: Tensor) -> bool:
    """Whether rows can be read 16 bytes at a time."""
    size = matrices.element_size()
    return (
        matrices.stride(-1) == 1
        and matrices.data_ptr() % 16 == 0
        and all(s * size % 16 == 0 for s in matrices.stride()[:-1])
    )


def run(
    launcher: Launcher,
    order: int,
    cost: Tensor,
    items: Sequence[Tensor | None],
    bandwidth: int | None,
    origin_count: float | None,
    out: Tensor,
) -> None:
    """Both launches: all items, and those that the first one leaves.

    `items` as in `_cuda_host.run_lattice`; `out` is the value or the gradient in the cost.
    """
    forms, buffers = host.item_buffers(items, cost.device)
    recipe = tiny_recipe(
        order,
        launcher.multiprocessors,
        cost.dtype,
        cost.shape,
        cost.stride(),
        out.stride() if order else None,
        in_vectors(cost) and (not order or in_vectors(out)),
        forms,
        bandwidth,
        origin_count,
    )
    recipe.follow(launcher, cost.device, (cost, *buffers, out))


@lru_cache(maxsize=1024)
def tiny_recipe(
    order: int,
    multiprocessors: int,
    dtype: torch.dtype,
    shape: torch.Size,
    stride: tuple[int, ...],
    dense: tuple[int, ...] | None,
    aligned: bool,
    forms: tuple[str, ...],
    bandwidth: int | None,
    origin_count: float | None,
) -> Recipe:
    """What `run` does."""
    output = "grad_cost" if order else "value"
    recipe = Recipe("cost", *host.ITEMS[: len(forms)], output)
    buffers = recipe.inputs
    task = host.batch(host.without_memory(dtype, shape, stride), dense, forms, bandwidth, buffers)
    variant = variant_of(task, order, origin_count is not None, aligned)
    blocks = ceil_divide(task.pairs, variant.threads)
    kept = None
    if not variant.shared:
        blocks = min(blocks, BLOCKS_OF_MULTIPROCESSOR * multiprocessors)
        kept_bytes = blocks * variant.threads * variant.kept_bytes
        kept = recipe.scratch(kept_bytes)
    shared: dict[str, Argument] = {
        **task.fields,
        output: buffers[output],
        "origin_count": 1.0 if origin_count is None else origin_count,
        "marked": recipe.scratch(task.pairs, torch.int64),
        "marked_count": recipe.scratch(1, torch.int32, zeroed=True),
    }
    recipe.launch(
        "tiny",
        variant.options,
        blocks,
        variant.threads,
        variant.threads * variant.kept_bytes if variant.shared else 0,
        host.struct("tiny.cu", "SOFTDTW_TINY_FIELDS", shared | {"kept": kept}),
    )
    doubles = exact_doubles(task)
    exact_blocks = min(
        ceil_divide(task.pairs, EXACT_THREADS),
        8 * multiprocessors,
        max(1, EXACT_SCRATCH_BYTES // (8 * doubles * EXACT_THREADS)),
    )
    size = exact_blocks * EXACT_THREADS * doubles
    scratch = recipe.scratch(size, torch.float64)
    recipe.launch(
        "tiny_exact",
        variant.exact_options,
        exact_blocks,
        EXACT_THREADS,
        0,
        host.struct("tiny_exact.cu", "SOFTDTW_TINY_EXACT_FIELDS", shared | {"scratch": scratch}),
    )
    return recipe


def exact_doubles(task: Batch) -> int:
    """Of a thread of tiny_exact.cu: a row of numbers, two rows of flows, the result, and three
    probabilities for each cell of the lattice.
    """
    rows, columns = task.shape.n, task.shape.m
    return (3 + 2) * columns + task.cost.shape[-2] * task.cost.shape[-1] + 3 * rows * columns


def value(
    launcher: Launcher,
    cost: Tensor,
    gamma: Tensor,
    dummy: Tensor | None,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    bandwidth: int | None,
) -> Tensor:
    problem = gamma, dummy, x_lengths, y_lengths, bandwidth
    out = tiny_value(launcher, cost, problem, None)
    return host.value(launcher, cost, *problem) if out is None else out


def value_and_state(
    launcher: Launcher,
    cost: Tensor,
    gamma: Tensor,
    dummy: Tensor | None,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    bandwidth: int | None,
) -> tuple[Tensor, Tensor]:
    """The tiny kernels keep nothing: their gradients go forward in registers."""
    problem = gamma, dummy, x_lengths, y_lengths, bandwidth
    out = tiny_value(launcher, cost, problem, None)
    if out is None:
        return host.value_and_state(launcher, cost, *problem)
    return out, host.no_state(cost)


def smoothed_value(
    launcher: Launcher,
    cost: Tensor,
    gamma: Tensor,
    dummy: Tensor | None,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    origin_count: float,
) -> Tensor:
    lengths = x_lengths, y_lengths
    out = tiny_value(launcher, cost, (gamma, dummy, *lengths, None), origin_count)
    if out is not None:
        return out
    s = _cuda_costs.smooth(launcher, cost, gamma, *lengths, origin_count)
    return host.value(launcher, s, gamma, dummy, *lengths, None)


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
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    problem = gamma, dummy, x_lengths, y_lengths, bandwidth
    if not with_parameters:
        grad_cost = tiny_gradient(launcher, cost, problem, None, grad_value)
        if grad_cost is not None:
            return grad_cost, no_parameter(cost), no_parameter(cost)
    return host.gradient(launcher, cost, *problem, grad_value, with_parameters, state)


def gradient_from_state(
    launcher: Launcher,
    cost: Tensor,
    gamma: Tensor,
    dummy: Tensor | None,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    bandwidth: int | None,
    state: Tensor,
    grad_value: Tensor,
    with_parameters: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    problem = gamma, dummy, x_lengths, y_lengths, bandwidth
    return gradient(launcher, cost, *problem, grad_value, with_parameters, state)


def smoothed_gradient(
    launcher: Launcher,
    cost: Tensor,
    gamma: Tensor,
    dummy: Tensor | None,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    origin_count: float,
    grad_value: Tensor,
    with_parameters: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    lengths = x_lengths, y_lengths
    problem = gamma, dummy, *lengths, None
    if not with_parameters:
        grad_cost = tiny_gradient(launcher, cost, problem, origin_count, grad_value)
        if grad_cost is not None:
            return grad_cost, no_parameter(cost), no_parameter(cost)
    s = _cuda_costs.smooth(launcher, cost, gamma, *lengths, origin_count)
    by_s, by_gamma, by_dummy = host.gradient(launcher, s, *problem, grad_value, with_parameters)
    by_cost, by_smoothing = _cuda_costs.smooth_vjp(
        launcher, cost, gamma, *lengths, origin_count, by_s
    )
    return by_cost, by_gamma + by_smoothing if with_parameters else by_gamma, by_dummy


# gamma, dummy, x_lengths, y_lengths, bandwidth
Rest: TypeAlias = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, int | None]


def tiny_value(
    launcher: Launcher, cost: Tensor, rest: Rest, origin_count: float | None
) -> Tensor | None:
    """None where the tiny kernels do not apply. An origin_count of None is no smoothing."""
    if not applies(cost, launcher.multiprocessors):
        return None
    out = cost.new_empty(cost.shape[:-2])
    *items, bandwidth = rest
    run(launcher, 0, host.few_dimensions(cost), items, bandwidth, origin_count, out)
    return out


def tiny_gradient(
    launcher: Launcher, cost: Tensor, rest: Rest, origin_count: float | None, grad_value: Tensor
) -> Tensor | None:
    """The gradient in the cost, as `tiny_value`."""
    if not applies(cost, launcher.multiprocessors):
        return None
    shape, cost = cost.shape, host.few_dimensions(cost)
    out = host.new_like(cost, host.leaves_cells(*rest[2:]))
    *items, bandwidth = rest
    run(launcher, 1, cost, [*items, grad_value], bandwidth, origin_count, out)
    return in_shape(out, shape)


def no_parameter(cost: Tensor) -> Tensor:
    """The gradient in gamma or the dummy cost where it is not wanted."""
    return host.sum_of_parts(None, cost.shape[:-2], cost, False)
