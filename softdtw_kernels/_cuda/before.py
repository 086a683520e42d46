"""The host's part of what precedes the recursion on CUDA: smoothed costs and squared distances.

Requirements: torch only. As in `_cuda_host`, nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .._backends import in_shape
from . import lattice as host
from .plan import LANES, Argument, c_type, ceil_divide
from .recipe import Launcher, Recipe

SMOOTHING_THREADS = 128
SMOOTHING_CELLS_OF_THREAD = 8


def run_smoothing(
    launcher: Launcher,
    order: int,
    cost: Tensor,
    items: Sequence[Tensor | None],
    origin_count: float,
    matrices: dict[str, Tensor],
) -> Tensor | None:
    """The launch of one call. Returns the derivative in gamma, (pairs, parts).

    `items` are gamma and lengths; `matrices` are the kernel's, all of the same strides.
    """
    gamma, x_lengths, y_lengths = items
    forms, buffers = host.item_buffers((gamma, None, x_lengths, y_lengths), cost.device)
    dense = matrices["out"].stride()
    recipe = smoothing_recipe(
        order, cost.dtype, cost.shape, cost.stride(), dense, forms, origin_count, tuple(matrices)
    )
    inputs = cost, *buffers, *matrices.values()
    in_gamma: Tensor | None
    (in_gamma,) = recipe.follow(launcher, cost.device, inputs)
    return in_gamma


@lru_cache(maxsize=1024)
def smoothing_recipe(
    order: int,
    dtype: torch.dtype,
    shape: torch.Size,
    stride: tuple[int, ...],
    dense: tuple[int, ...],
    forms: tuple[str, ...],
    origin_count: float,
    matrices: tuple[str, ...],
) -> Recipe:
    """What `run_smoothing` does."""
    recipe = Recipe("cost", *host.ITEMS[: len(forms)], *matrices)
    buffers = recipe.inputs
    task = host.batch(host.without_memory(dtype, shape, stride), dense, forms, None, buffers)
    cells = shape[-2] * shape[-1]
    parts = ceil_divide(cells, SMOOTHING_THREADS * SMOOTHING_CELLS_OF_THREAD)
    # A grid holds fewer than 2^31 blocks.
    parts = max(1, min(parts, (2**31 - 1) // task.pairs))
    threads = 64 if cells <= 64 else SMOOTHING_THREADS
    grad_gamma = None
    if order:
        grad_gamma = recipe.output(task.pairs, parts, dtype=torch.float64)
    recipe.returns(grad_gamma, task.pairs, parts, dtype=torch.float64)
    fields: dict[str, Argument] = {
        **task.fields,
        **{name: buffers[name] for name in matrices},
        "origin_count": origin_count,
        "grad_gamma": grad_gamma,
        "parts": parts,
    }
    recipe.launch(
        "smoothing",
        (f"-DWITH_COST={c_type(dtype)}", f"-DWITH_ORDER={order}"),
        task.pairs * parts,
        threads,
        8 * threads // LANES if order else 0,
        host.struct("smoothing.cu", "SOFTDTW_SMOOTHING_FIELDS", fields),
    )
    return recipe


def smooth(
    launcher: Launcher,
    cost: Tensor,
    gamma: Tensor,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    origin_count: float,
) -> Tensor:
    shape, cost = cost.shape, host.few_dimensions(cost)
    out = host.new_like(cost)
    if out.numel():
        items = gamma, x_lengths, y_lengths
        run_smoothing(launcher, 0, cost, items, origin_count, {"out": out})
    return in_shape(out, shape)


def smooth_vjp(
    launcher: Launcher,
    cost: Tensor,
    gamma: Tensor,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    origin_count: float,
    grad_s: Tensor,
) -> tuple[Tensor, Tensor]:
    shape, cost = cost.shape, host.few_dimensions(cost)
    out = host.new_like(cost)
    in_gamma = None
    if out.numel():
        items = gamma, x_lengths, y_lengths
        matrices = {"out": out, "grad_s": host.with_strides_of(out, grad_s)}
        in_gamma = run_smoothing(launcher, 1, cost, items, origin_count, matrices)
    return in_shape(out, shape), host.sum_of_parts(in_gamma, shape[:-2], cost, True)


DISTANCE_TILE, DISTANCE_DEPTH, DISTANCE_THREADS = 64, 16, 256  # as in source/distances.cu


def squared_distances(launcher: Launcher, x: Tensor, y: Tensor) -> Tensor:
    out = x.new_empty(*x.shape[:-1], y.shape[-2])
    if not out.numel():
        return out
    if x.dim() > 5:
        x, y = x.reshape(-1, *x.shape[-2:]), y.reshape(-1, *y.shape[-2:])
    recipe = distance_recipe(x.dtype, x.shape, x.stride(), y.shape[-2], y.stride())
    recipe.follow(launcher, x.device, (x, y, out))
    return out


@lru_cache(maxsize=1024)
def distance_recipe(
    dtype: torch.dtype,
    x_shape: torch.Size,
    x_stride: tuple[int, ...],
    columns: int,
    y_stride: tuple[int, ...],
) -> Recipe:
    """What `squared_distances` does."""
    recipe = Recipe("x", "y", "out")
    leading = (1, 1, 1, *x_shape[:-2])[-3:]
    rows, pairs = x_shape[-2], x_shape[:-2].numel()
    fields: dict[str, Any] = {
        **recipe.inputs,
        "pairs": pairs,
        "batch1": leading[1],
        "batch2": leading[2],
        "rows": rows,
        "columns": columns,
        "features": x_shape[-1],
        **host.strides("x", x_stride),
        **host.strides("y", y_stride),
    }
    tiles = ceil_divide(rows, DISTANCE_TILE) * ceil_divide(columns, DISTANCE_TILE)
    recipe.launch(
        "distances",
        (f"-DWITH_COST={c_type(dtype)}",),
        pairs * tiles,
        DISTANCE_THREADS,
        2 * DISTANCE_DEPTH * (DISTANCE_TILE + 1) * dtype.itemsize,
        host.in_order(host.own_field_names("distances.cu", "SOFTDTW_DISTANCE_FIELDS"), fields),
    )
    return recipe
