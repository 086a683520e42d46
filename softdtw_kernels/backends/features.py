"""Squared distances and their gradient in plain torch, blocked, on any device.

Requirements: torch only. Differences, never |x|^2 + |y|^2 - 2 x.y, which cancels where y is near x
or both are far from the origin; their gradient is a bilinear form taken in float64, where the same
cancellation does no harm.
"""

from __future__ import annotations

import torch
from torch import Tensor

CPU_BLOCK = 1 << 18  # cells converted to float64 at a time: 2 MiB, which stays in the cache
DEVICE_BLOCK = 1 << 24


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """(*, N, M) from x (*, N, D) and y (*, M, D): one coordinate at a time, so no (*, N, M, D)
    exists.
    """
    out = x.new_zeros(*x.shape[:-1], y.shape[-2])
    for a, b in zip(x.unbind(-1), y.unbind(-1), strict=True):
        difference = a[..., :, None] - b[..., None, :]
        out.addcmul_(difference, difference)
    return out


def squared_distances_vjp(
    x: Tensor, y: Tensor, g: Tensor, with_x: bool, with_y: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of <g, |x_i - y_j|^2>: 2 sum_j g_ij (x_i - y_j) and 2 sum_i g_ij (y_j - x_i).

    x (*x, N, D) and y (*y, M, D) broadcast to the leading dimensions of g (*, N, M); the gradients
    have the shapes of x and y. A gradient that is not wanted has no features.
    """
    if g.device.type == "cpu":
        grad_x, grad_y = _by_items(x, y, g, with_x, with_y)
    else:
        grad_x, grad_y = _by_rows(x, y, g, with_x, with_y)
    return (
        x.new_empty(*x.shape[:-1], 0) if grad_x is None else grad_x.to(x.dtype).contiguous(),
        y.new_empty(*y.shape[:-1], 0) if grad_y is None else grad_y.to(y.dtype).contiguous(),
    )


def _products(x: Tensor, y: Tensor, g: Tensor, with_x: bool, with_y: bool) -> list[Tensor | None]:
    grad_x = 2 * (x * g.sum(-1, keepdim=True) - g @ y) if with_x else None
    grad_y = 2 * (y * g.sum(-2)[..., None] - g.mT @ x) if with_y else None
    return [grad_x, grad_y]


def _by_rows(
    x: Tensor, y: Tensor, g: Tensor, with_x: bool, with_y: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Blocks of rows of the whole batch; sums in a fixed order, since atomic additions would not
    repeat to the bit.
    """
    x, y = x.double(), y.double()
    grad_x = torch.zeros_like(x) if with_x else None
    grad_y = torch.zeros_like(y) if with_y else None
    step = max(1, DEVICE_BLOCK // max(1, g.shape[:-2].numel() * g.shape[-1]))
    for first in range(0, g.shape[-2], step):
        rows = slice(first, first + step)
        part_x, part_y = _products(x[..., rows, :], y, g[..., rows, :].double(), with_x, with_y)
        if grad_x is not None and part_x is not None:
            grad_x[..., rows, :] = part_x.sum_to_size(grad_x[..., rows, :].shape)
        if grad_y is not None and part_y is not None:
            grad_y += part_y.sum_to_size(grad_y.shape)
    return grad_x, grad_y


def _by_items(
    x: Tensor, y: Tensor, g: Tensor, with_x: bool, with_y: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Blocks of items of the flattened batch, or of rows of one long item, added to the item of x
    and y they belong to.

    index_add_ adds in the order of the items on the CPU, so the sums repeat to the bit.
    """
    batch, rows, columns = g.shape[:-2], g.shape[-2], g.shape[-1]
    xs, ys = (t.double().reshape(-1, *t.shape[-2:]) for t in (x, y))
    gs = g.reshape(-1, rows, columns)
    x_of, y_of = _items(x, batch), _items(y, batch)
    grad_x = torch.zeros_like(xs) if with_x else None
    grad_y = torch.zeros_like(ys) if with_y else None
    item_step = max(1, CPU_BLOCK // (rows * columns))
    row_step = min(rows, max(1, CPU_BLOCK // columns))
    for start in range(0, gs.shape[0], item_step):
        items = slice(start, start + item_step)
        x_items, y_items = x_of[items], y_of[items]
        x_block, y_block = xs[x_items], ys[y_items]
        for first in range(0, rows, row_step):
            block = slice(first, first + row_step)
            g_block = gs[items, block].double()
            part_x, part_y = _products(x_block[:, block], y_block, g_block, with_x, with_y)
            if grad_x is not None and part_x is not None:
                grad_x[:, block].index_add_(0, x_items, part_x)
            if grad_y is not None and part_y is not None:
                grad_y.index_add_(0, y_items, part_y)
    return (
        None if grad_x is None else grad_x.view(x.shape),
        None if grad_y is None else grad_y.view(y.shape),
    )


def _items(x: Tensor, batch: torch.Size) -> Tensor:
    """For every item of the broadcast batch, the index of its sequence among the flattened ones of
    x.
    """
    own = torch.arange(x.shape[:-2].numel()).view(x.shape[:-2])
    return own.expand(batch).reshape(-1)
