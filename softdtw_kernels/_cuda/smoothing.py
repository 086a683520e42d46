"""The kernel of source/smoothing.cu: the local smoothing of costs, and its derivative.

Requirements: torch only. Nothing here waits for the device.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from .._backends import in_shape
from .._problem import Smoothing
from . import fields
from .fields import Layout, few_dimensions, new_like, sum_of_parts
from .recipe import Argument, Launcher, Recipe
from .variants import LANES, c_type, ceil_divide

THREADS = 128
CELLS_OF_THREAD = 8


def smooth(launcher: Launcher, smoothing: Smoothing) -> Tensor:
    shape, cost = smoothing.cost.shape, few_dimensions(smoothing.cost)
    out = new_like(cost)
    if out.numel():
        run(launcher, 0, cost, smoothing, {"out": out})
    return in_shape(out, shape)


def smooth_vjp(launcher: Launcher, smoothing: Smoothing, grad_s: Tensor) -> tuple[Tensor, Tensor]:
    shape, cost = smoothing.cost.shape, few_dimensions(smoothing.cost)
    out = new_like(cost)
    in_gamma = None
    if out.numel():
        matrices = {"out": out, "grad_s": fields.with_strides_of(out, grad_s)}
        in_gamma = run(launcher, 1, cost, smoothing, matrices)
    return in_shape(out, shape), sum_of_parts(in_gamma, shape[:-2], cost)


def run(
    launcher: Launcher,
    order: int,
    cost: Tensor,
    smoothing: Smoothing,
    matrices: dict[str, Tensor],
) -> Tensor | None:
    """The launch of one call. Returns the derivative in gamma, (pairs, parts).

    `cost` is that of the smoothing in few dimensions; `matrices` are the kernel's, all of the same
    strides.
    """
    items = smoothing.gamma, None, smoothing.x_lengths, smoothing.y_lengths
    forms, buffers = fields.item_buffers(items, cost.device)
    layout = Layout.of(cost, forms, None, matrices["out"].stride())
    recipe = recipe_of(order, layout, smoothing.origin_count, tuple(matrices))
    inputs = cost, *buffers, *matrices.values()
    in_gamma: Tensor | None
    (in_gamma,) = recipe.follow(launcher, cost.device, inputs)
    return in_gamma


@lru_cache(maxsize=1024)
def recipe_of(order: int, layout: Layout, origin_count: float, matrices: tuple[str, ...]) -> Recipe:
    """What `run` does."""
    recipe = layout.recipe(*matrices)
    buffers = recipe.inputs
    task = layout.batch(buffers)
    cells = task.rows * task.columns
    parts = ceil_divide(cells, THREADS * CELLS_OF_THREAD)
    # A grid holds fewer than 2^31 blocks.
    parts = max(1, min(parts, (2**31 - 1) // task.pairs))
    threads = 64 if cells <= 64 else THREADS
    grad_gamma = None
    if order:
        grad_gamma = recipe.output(task.pairs, parts, dtype=torch.float64)
    recipe.returns(grad_gamma, task.pairs, parts, dtype=torch.float64)
    given: dict[str, Argument] = {
        **task.fields,
        **{name: buffers[name] for name in matrices},
        "origin_count": origin_count,
        "grad_gamma": grad_gamma,
        "parts": parts,
    }
    recipe.launch(
        "smoothing",
        (f"-DWITH_COST={c_type(task.dtype)}", f"-DWITH_ORDER={order}"),
        task.pairs * parts,
        threads,
        8 * threads // LANES if order else 0,
        fields.struct("smoothing.cu", "SOFTDTW_SMOOTHING_FIELDS", given),
    )
    return recipe
