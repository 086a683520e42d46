"""Squared distances and their gradient on CPU tensors."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from . import distance_kernels
from .arrays import as_array, matrices, three_dimensional
from .threads import run_chunks


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    rows, columns = x.shape[-2], y.shape[-2]
    out = x.new_empty(*x.shape[:-1], columns)
    ax, ay, aout = matrices(x), matrices(y), matrices(out)

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
    items = g.shape[:-2]
    xs, ys, gs = (as_array(three_dimensional(t)) for t in (x, y, g))
    grad_x = x.new_empty(*x.shape[:-1], x.shape[-1] if with_x else 0)
    grad_y = y.new_empty(*y.shape[:-1], y.shape[-1] if with_y else 0)
    flat_x = as_array(grad_x).reshape(xs.shape) if with_x else xs[:0]
    flat_y = as_array(grad_y).reshape(ys.shape) if with_y else ys[:0]

    def run(order: np.ndarray, starts: np.ndarray, for_x: bool, for_y: bool) -> None:
        def work(first: int, last: int) -> None:
            distance_kernels.squared_distances_vjp(
                *(order, starts, x_of, y_of, xs, ys, gs),
                *(for_x, for_y, first, last, flat_x, flat_y),
            )

        run_chunks(starts.size - 1, gs.size * x.shape[-1], work)

    if len(xs) == len(ys) == len(gs):  # nothing broadcasts
        starts = np.arange(len(gs) + 1)
        x_of = y_of = order = starts[:-1]
        run(order, starts, with_x, with_y)
        return grad_x, grad_y
    x_of, y_of = _sequence_of_item(x, items), _sequence_of_item(y, items)
    if with_x:
        run(*_items_of_sequence(x_of, len(xs)), True, False)
    if with_y:
        run(*_items_of_sequence(y_of, len(ys)), False, True)
    return grad_x, grad_y


def _items_of_sequence(sequence_of_item: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The items in the order of their sequences, and where those of each begin."""
    order = np.argsort(sequence_of_item, kind="stable")
    return order, np.searchsorted(sequence_of_item[order], np.arange(count + 1))


def _sequence_of_item(x: Tensor, items: torch.Size) -> np.ndarray:
    """For every item of the broadcast batch, the index of its sequence among the flattened ones."""
    own = np.arange(x.shape[:-2].numel()).reshape(x.shape[:-2])
    # A copy also where nothing broadcasts: what is read-only would need kernels of its own.
    return np.array(np.broadcast_to(own, items)).reshape(-1)
