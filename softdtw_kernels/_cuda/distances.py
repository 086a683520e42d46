"""The kernel of source/distances.cu: squared distances between the frames of sequences.

Requirements: torch only. Nothing here waits for the device.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from . import fields
from .recipe import Launcher, Recipe
from .variants import c_type, ceil_divide

TILE, DEPTH, THREADS = 64, 16, 256  # as in source/distances.cu


def squared_distances(launcher: Launcher, x: Tensor, y: Tensor) -> Tensor:
    out = x.new_empty(*x.shape[:-1], y.shape[-2])
    if not out.numel():
        return out
    if x.dim() > 5:
        x, y = x.reshape(-1, *x.shape[-2:]), y.reshape(-1, *y.shape[-2:])
    recipe = recipe_of(x.dtype, x.shape, x.stride(), y.shape[-2], y.stride())
    recipe.follow(launcher, x.device, (x, y, out))
    return out


@lru_cache(maxsize=1024)
def recipe_of(
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
    given: dict[str, Any] = {
        **recipe.inputs,
        "pairs": pairs,
        "batch1": leading[1],
        "batch2": leading[2],
        "rows": rows,
        "columns": columns,
        "features": x_shape[-1],
        **fields.strides("x", x_stride),
        **fields.strides("y", y_stride),
    }
    tiles = ceil_divide(rows, TILE) * ceil_divide(columns, TILE)
    recipe.launch(
        "distances",
        (f"-DWITH_COST={c_type(dtype)}",),
        pairs * tiles,
        THREADS,
        2 * DEPTH * (TILE + 1) * dtype.itemsize,
        fields.in_order(fields.own_field_names("distances.cu", "SOFTDTW_DISTANCE_FIELDS"), given),
    )
    return recipe
