"""Open ends as a frame around the costs: what the kernels of plain lattices do with them.

At an open end of y a row of prices is put beside the first or last row, with +inf beside the first
or last column and 0 in the corner. A path that would leave out frames goes along the prices. Every
path has two ways from there to the corner, one of which pays one price q more, so the value of the
frame is too low by gamma log(1 + exp(-q / gamma)) an end. The same in columns for x.

Neither both sequences at one end, nor one at the begin and the other at the end, where prices would
touch each other, nor gamma = 0, where ways of the same cost are told apart by their order.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .arrays import NOTHING
from .scaling import usable
from .solve import Batch


def frames(open_begin: str, open_end: str) -> bool:
    """Whether a frame does such ends."""
    sides = {side for side in (open_begin, open_end) if side}
    return sides in ({"x"}, {"y"})


class Frame(NamedTuple):
    """Costs with a frame, and what leads back from them."""

    task: Batch  # its costs, and no cost of warping
    begins: int  # 1 where there is a frame at the begin, else 0
    ends: int
    of_y: bool  # whose ends are open
    price: np.ndarray  # (P,)

    @property
    def inside(self) -> tuple[slice, slice]:
        rows, columns = self.task.cost.shape[2:]
        return slice(self.begins, rows - self.ends), slice(self.begins, columns - self.ends)

    @property
    def too_low(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """By how much the value of the frame is, and the derivatives by gamma and by the price."""
        gamma = np.where(usable.py_func(self.task.gamma), self.task.gamma, 1.0)
        count, power = self.begins + self.ends, -self.price / gamma
        more = np.logaddexp(0.0, power)
        share = np.exp(power - more)
        return count * gamma * more, count * (more - power * share), -count * share

    def skipped(self, grad: np.ndarray) -> np.ndarray:
        """The visits of prices, (P,), of visits (A, B, rows, columns)."""
        rows, columns = grad.shape[2:]
        n, m = self.task.lengths
        flat = grad.reshape(-1, rows, columns)
        total = np.zeros(len(flat))
        if not self.of_y:
            flat, n = flat.transpose(0, 2, 1), m
        if self.begins:
            total += flat[:, 0, 1:].sum(1, dtype=np.float64)
        if self.ends:
            last = flat[np.arange(len(flat)), n - 1].astype(np.float64)
            last[np.arange(len(flat)), (m if self.of_y else self.task.lengths[0]) - 1] = 0.0
            total += last.sum(1)
        return total


def frame_of(task: Batch, skip: np.ndarray, of_y: bool, begins: int, ends: int) -> Frame:
    """task: the problem without its open ends. Costs of warping are added to its costs here."""
    warp = np.broadcast_to(task.warp if task.warp.size else np.zeros(1), task.pairs)
    price = np.broadcast_to(skip, task.pairs) + warp
    lead, (rows, columns) = task.cost.shape[:2], task.cost.shape[2:]
    exact = not warp.any() and not (price.astype(np.float32) != price).any()
    dtype = task.cost.dtype if exact else np.float64
    size = rows + begins + ends, columns + begins + ends
    frame = np.full((*lead, *size), np.inf, dtype)
    inside = frame[:, :, begins : begins + rows, begins : begins + columns]
    np.add(task.cost, 2.0 * warp.reshape(*lead, 1, 1), out=inside, casting="same_kind")
    n, m = (own + begins + ends for own in task.lengths)
    along = frame if of_y else frame.swapaxes(2, 3)
    of_row = price.reshape(*lead, 1).astype(dtype)
    if begins:
        along[:, :, 0], along[:, :, 1:, 0], along[:, :, 0, 0] = of_row, np.inf, 0.0
    if ends:
        every = np.divmod(np.arange(task.pairs), lead[1])
        last, end = (n - 1, m - 1) if of_y else (m - 1, n - 1)
        along[*every, :, end] = np.inf
        along[*every, last] = of_row.reshape(-1, 1)
        along[*every, last, end] = 0.0
    x_lengths = n.astype(np.int64) if task.n.size else task.n
    y_lengths = m.astype(np.int64) if task.m.size else task.m
    framed = Batch(frame, task.gamma, NOTHING, x_lengths, y_lengths, -1)
    return Frame(framed, begins, ends, of_y, price)
