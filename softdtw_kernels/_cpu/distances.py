"""Squared distances and their gradient on CPU tensors."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from . import distance_kernels
from .arrays import as_array, four_dimensional
from .threads import run_chunks


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    rows, columns = x.shape[-2], y.shape[-2]
    out = x.new_empty(*x.shape[:-1], columns)
    ax, ay, aout = (as_array(four_dimensional(t)) for t in (x, y, out))

    def work(first: int, last: int) -> None:
        distance_kernels.squared_distances(ax, ay, first, last, aout)

    total = aout.shape[0] * aout.shape[1] * rows
    run_chunks(total, total * columns, work)
    return out


def squared_distances_vjp(
    x: Tensor, y: Tensor, g: Tensor, with_x: bool, with_y: bool
) -> tuple[Tensor, Tensor]:
    """As `compositions.squared_distances_vjp`, without a float64 copy of g.

    Sequences that broadcast belong to many items of g; each is given to one thread, so that their
    sums have a fixed order. One pass over g serves x and y where neither broadcasts.
    """
    batch = g.shape[:-2]
    x_of, y_of = _sequence_of_item(x, batch), _sequence_of_item(y, batch)
    xs, ys, gs = (
        t.detach().reshape(t.shape[:-2].numel(), *t.shape[-2:]).contiguous().numpy()
        for t in (x, y, g)
    )
    grad_x = x.new_empty(*x.shape[:-1], x.shape[-1] if with_x else 0)
    grad_y = y.new_empty(*y.shape[:-1], y.shape[-1] if with_y else 0)
    flat_x = grad_x.view(xs.shape).numpy() if with_x else xs[:0]
    flat_y = grad_y.view(ys.shape).numpy() if with_y else ys[:0]

    def run(units: np.ndarray, count: int, for_x: bool, for_y: bool) -> None:
        order = np.argsort(units, kind="stable")
        starts = np.searchsorted(units[order], np.arange(count + 1))

        def work(first: int, last: int) -> None:
            distance_kernels.squared_distances_vjp(
                *(order, starts, x_of, y_of, xs, ys, gs),
                *(for_x, for_y, first, last, flat_x, flat_y),
            )

        run_chunks(count, gs.size * x.shape[-1], work)

    if len(xs) == len(ys) == len(gs):
        run(x_of, len(xs), with_x, with_y)
    else:
        if with_x:
            run(x_of, len(xs), True, False)
        if with_y:
            run(y_of, len(ys), False, True)
    return grad_x, grad_y


def _sequence_of_item(x: Tensor, batch: torch.Size) -> np.ndarray:
    """For every item of the broadcast batch, the index of its sequence among the flattened ones."""
    own = np.arange(x.shape[:-2].numel()).reshape(x.shape[:-2])
    # A copy also where nothing broadcasts: what is read-only would need kernels of its own.
    return np.array(np.broadcast_to(own, batch)).reshape(-1)
