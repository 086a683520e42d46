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
from .batch import Batch
from .results import Results, spread
from .scaling import AGAIN, NOT_A_NUMBER, SURE, usable
from .warping import TAKEN, keeps_digits

ROUNDING = 1e-5  # of gamma: what numbers of a frame rounded to float32 may add to a path
DIGITS = 4.0  # of what is taken from a value in float32 over the value


def frames(open_begin: str, open_end: str) -> bool:
    """Whether a frame does such ends."""
    sides = {side for side in (open_begin, open_end) if side}
    return sides in ({"x"}, {"y"})


def solve_framed(
    task: Batch, skip: np.ndarray, open_begin: str, open_end: str, results: Results
) -> None:
    """task: the problem without its open ends, but with its costs of warping."""
    ends = int(open_begin != ""), int(open_end != "")
    frame = frame_of(task, skip, "y" in open_begin + open_end, *ends)
    scale, inner = results.scale, frame.task
    whole = results.grad if scale is None else np.zeros_like(inner.cost)
    results._replace(grad=whole).by_tiers(inner)
    (n, m), (more, by_gamma, by_price) = task.lengths, frame.too_low
    warp = np.broadcast_to(task.warp, task.pairs)
    # What is taken from a value must not have most of its digits.
    if inner.warp.size:
        taken, most = 2.0 * sum(ends) * warp, DIGITS
    else:
        taken, most = -(n + m) * warp, TAKEN
        results.status[~np.broadcast_to(keeps_digits(warp, task.gamma), task.pairs)] = AGAIN
    lost = np.abs(taken) > most * np.abs(results.values + taken)
    results.status[lost & (results.status == SURE)] = AGAIN
    results.status[task.hard] = AGAIN  # ties are those of the frame
    finite = (results.status == SURE) & (results.values < np.inf)
    results.values[finite] += (more + taken)[finite]
    if scale is None:
        return
    of_costs, skipped = frame.taken_off(whole)
    results.grad[:] = of_costs
    if results.with_settings:
        visits = results.grad.sum((2, 3), dtype=np.float64).reshape(-1)
        wide = scale.astype(np.float64)
        skipped = skipped + by_price * wide
        by_warp = 2.0 * visits - (n + m) * wide + skipped
        results.sums[0, finite] += (by_gamma * wide)[finite]
        results.sums[1, finite], results.sums[2, finite] = by_warp[finite], skipped[finite]
    spread(results, task, np.flatnonzero(results.status == NOT_A_NUMBER), np.nan)


class Frame(NamedTuple):
    """Costs with a frame, and what leads back from them."""

    task: Batch  # its costs of warping are empty where they have been added
    begins: int  # 1 where there is a frame at the begin, else 0
    ends: int
    of_y: bool  # whose ends are open
    price: np.ndarray  # (P,)

    @property
    def too_low(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """By how much the value of the frame is, and the derivatives by gamma and by the price."""
        gamma = np.where(usable.py_func(self.task.gamma), self.task.gamma, 1.0)
        count, power = self.begins + self.ends, -self.price / gamma
        more = np.logaddexp(0.0, power)
        share = np.exp(power - more)
        return count * gamma * more, count * (more - power * share), -count * share

    def taken_off(self, grad: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of visits (A, B, rows, columns), which change, those of costs and the sum of those of
        prices.
        """
        pairs, (rows, columns) = np.arange(self.task.pairs), grad.shape[2:]
        along = grad.reshape(-1, rows, columns)
        last, end = (length - 1 for length in self.task.lengths)
        if not self.of_y:
            along, last, end = along.transpose(0, 2, 1), end, last
        total = np.zeros(len(pairs))
        if self.begins:
            total += along[:, 0, 1:].sum(1, dtype=np.float64)
        if self.ends:
            along[pairs, last, end] = 0.0
            total += along[pairs, last].sum(1, dtype=np.float64)
            along[pairs, last] = 0.0  # of shorter sequences it stands among the costs
        a, b = self.begins, self.ends
        return grad[:, :, a : rows - b, a : columns - b], total


def frame_of(task: Batch, skip: np.ndarray, of_y: bool, begins: int, ends: int) -> Frame:
    """In the dtype of the costs, if prices and costs of warping keep their digits in it: the latter
    are then added by the kernels, to the frame too. Else in float64, where they are added here.
    """
    pairs, lead, (rows, columns) = task.pairs, task.cost.shape[:2], task.cost.shape[2:]
    warp = np.broadcast_to(task.warp, pairs)
    price = np.broadcast_to(skip, pairs) + warp
    single = task.cost.dtype == np.float32 and _fits(task, price - 2.0 * warp, 2.0 * warp)
    inside, corner = np.zeros(pairs), -2.0 * warp
    along_price = price - 2.0 * warp
    if not single:
        inside, corner, along_price = 2.0 * warp, np.zeros(pairs), price
    size = rows + begins + ends, columns + begins + ends
    dtype = np.float32 if single else np.float64
    frame = np.full((*lead, *size), np.inf, dtype)
    of_costs = frame[:, :, begins : begins + rows, begins : begins + columns]
    if inside.any():
        np.add(task.cost, inside.reshape(*lead, 1, 1), out=of_costs)
    else:
        of_costs[:] = task.cost
    n, m = (own + begins + ends for own in task.lengths)
    along = frame if of_y else frame.swapaxes(2, 3)
    prices = spread_rounding(along_price, along.shape[3], dtype)
    if begins:
        along[:, :, 0, 1:] = prices[:, :-1].reshape(*lead, -1)
        along[:, :, 1:, 0], along[:, :, 0, 0] = np.inf, corner.reshape(lead)
    if ends:
        every = np.divmod(np.arange(pairs), lead[1])
        last, end = (n - 1, m - 1) if of_y else (m - 1, n - 1)
        along[*every, :, end] = np.inf
        behind = np.broadcast_to(end, pairs)[:, None] - 1 - np.arange(along.shape[3])
        along[*every, last] = np.take_along_axis(prices, np.maximum(behind, 0), 1)
        along[*every, last, end] = corner
    x_lengths = n.astype(np.int64) if task.n.size else task.n
    y_lengths = m.astype(np.int64) if task.m.size else task.m
    own = task.warp if single and warp.any() else NOTHING
    framed = Batch(frame, task.gamma, NOTHING, x_lengths, y_lengths, -1, own)
    return Frame(framed, begins, ends, of_y, price)


def spread_rounding(price: np.ndarray, count: int, dtype: type) -> np.ndarray:
    """(P, count) numbers of a dtype, the sums of which are multiples of each price to half of its
    last place: equal ones would be off by as much each.
    """
    if dtype == np.float64:
        return np.broadcast_to(price[:, None], (price.size, count))
    near: np.ndarray = price.astype(dtype)
    low = np.where(near > price, np.nextafter(near, dtype(-np.inf)), near).astype(np.float64)
    high = np.nextafter(low.astype(dtype), dtype(np.inf)).astype(np.float64)
    share = ((price - low) / (high - low))[:, None]
    rounds_up = np.diff(np.rint(share * np.arange(count + 1)), axis=1)
    return (low[:, None] + (high - low)[:, None] * rounds_up).astype(dtype)


def _fits(task: Batch, price: np.ndarray, corner: np.ndarray) -> bool:
    """Whether float32 holds the numbers of a frame well enough."""
    with np.errstate(over="ignore"):
        rounding = sum(np.abs(a.astype(np.float32) - a) for a in (price, corner, corner))
    return bool((rounding <= ROUNDING * np.maximum(task.gamma, 1e-30)).all())
