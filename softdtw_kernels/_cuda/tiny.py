"""The kernels of source/tiny.cu: many small pairs, one thread each; S2DTW with its smoothing too.

Requirements: torch only. Nothing here waits for the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from .._backends import in_shape
from .._problem import Problem
from . import fields
from .fields import RAW, Batch, Layout, Raw, RawLayout, few_dimensions, leaves_cells, new_like
from .recipe import Argument, Launcher, Recipe
from .variants import c_type, ceil_divide

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
    """The forms of tiny.cu. Of the ways to read and to restrict, each form has the one that takes
    the most registers.
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
    """Whether the kernels of `lattice` would do worse."""
    *batch, rows, columns = cost.shape
    widest = COLUMNS[cost.dtype][-1]
    if rows > widest or columns > widest:
        return False
    return PAIRS_OF_MULTIPROCESSOR * multiprocessors <= prod(batch) < 2**31


def variant_of(task: Batch, order: int, smoothing: bool, aligned: bool) -> TinyVariant:
    """`aligned` is whether all matrices are `in_vectors`."""
    width = width_of(task)
    restricted, vectors = is_restricted(task, width), task.columns == width and aligned
    return TinyVariant(task.dtype, width, task.weak, smoothing, order, restricted, vectors)


def width_of(task: Batch) -> int:
    """The columns of the form that does a call."""
    return next(c for c in COLUMNS[task.dtype] if c >= max(task.rows, task.columns))


def is_restricted(task: Batch, width: int) -> bool:
    """Whether some cells of the form are not the call's."""
    return task.ragged or task.layout.bandwidth is not None or task.columns < width


def in_vectors(matrices: Tensor) -> bool:
    """Whether rows can be read 16 bytes at a time."""
    size = matrices.element_size()
    return (
        matrices.stride(-1) == 1
        and matrices.data_ptr() % 16 == 0
        and all(s * size % 16 == 0 for s in matrices.stride()[:-1])
    )


def value(
    launcher: Launcher,
    problem: Problem,
    origin_count: float | None = None,
    raw: Raw | None = None,
) -> Tensor:
    """Of costs that are smoothed first, unless `origin_count` is None. `raw` as in `lattice`."""
    out = problem.cost.new_empty(problem.cost.shape[:-2])
    run(launcher, 0, problem, fields.items_of(problem), origin_count, out, raw)
    return out


def gradient(
    launcher: Launcher,
    problem: Problem,
    grad_value: Tensor,
    origin_count: float | None = None,
    raw: Raw | None = None,
) -> Tensor:
    """In the cost alone."""
    out = new_like(few_dimensions(problem.cost), leaves_cells(problem))
    run(launcher, 1, problem, fields.items_of(problem, grad_value), origin_count, out, raw)
    return in_shape(out, problem.cost.shape)


def run(
    launcher: Launcher,
    order: int,
    problem: Problem,
    items: tuple[Tensor | None, ...],
    origin_count: float | None,
    out: Tensor,
    raw: Raw | None,
) -> None:
    """Both launches: all items, and those that the first one leaves.

    `items` are those of `fields.ITEMS`; `out` is the value or the gradient in the cost.
    """
    cost = few_dimensions(problem.cost)
    forms, buffers = fields.item_buffers(items, cost.device)
    recipe = recipe_of(
        order,
        launcher.multiprocessors,
        Layout.of(cost, forms, problem.bandwidth, out.stride() if order else None),
        in_vectors(cost) and (not order or in_vectors(out)),
        origin_count,
        raw and raw.layout,
    )
    recipe.follow(launcher, cost.device, (cost, *buffers, out, *(raw.buffers if raw else ())))


@lru_cache(maxsize=1024)
def recipe_of(
    order: int,
    multiprocessors: int,
    layout: Layout,
    aligned: bool,
    origin_count: float | None,
    raw: RawLayout | None,
) -> Recipe:
    """What `run` does."""
    output = "grad_cost" if order else "value"
    recipe = layout.recipe(output, *RAW * (raw is not None))
    buffers = recipe.inputs
    task = layout.batch(buffers)
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
        **(raw.of_all(buffers) if raw else {}),
    }
    recipe.launch(
        "tiny",
        variant.options,
        blocks,
        variant.threads,
        variant.threads * variant.kept_bytes if variant.shared else 0,
        fields.struct("tiny.cu", "SOFTDTW_TINY_FIELDS", shared | {"kept": kept}),
    )
    doubles = exact_doubles(task)
    exact_blocks = min(
        ceil_divide(task.pairs, EXACT_THREADS),
        8 * multiprocessors,
        max(1, EXACT_SCRATCH_BYTES // (8 * doubles * EXACT_THREADS)),
    )
    size = exact_blocks * EXACT_THREADS * doubles
    exact = {"scratch": recipe.scratch(size, torch.float64)} | (raw.of_wide(buffers) if raw else {})
    recipe.launch(
        "tiny_exact",
        variant.exact_options,
        exact_blocks,
        EXACT_THREADS,
        0,
        fields.struct("tiny_exact.cu", "SOFTDTW_TINY_EXACT_FIELDS", shared | exact),
    )
    return recipe


def exact_doubles(task: Batch) -> int:
    """Of a thread of tiny_exact.cu: a row of numbers, two rows of flows, the result, and three
    probabilities for each cell of the lattice.
    """
    rows, columns = task.shape.n, task.shape.m
    return (3 + 2) * columns + task.rows * task.columns + 3 * rows * columns
