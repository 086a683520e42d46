"""Second derivatives: the derivative of values and of their gradients along given directions.

As in `strips`, the lanes of a vector are consecutive rows of one pair, here of float64 for costs of
any type. The forward pass carries R' beside Z, and keeps the borders of the strips and the
registers at every tile; the backward pass computes the tiles that mass flows into again, with the
derivatives of the weights, and sweeps both adjoints together (`tangents`). The weights of short
pairs are kept. Of long pairs borders are kept for one part of the strips at a time, about the root
of their number, and made once more from the border above the part.

Pairs that are not certified, or whose results are not finite, are done again by
`exact_second_order`. Those of gamma = 0 have a path, along which the value changes, and no second
derivative.
"""

from __future__ import annotations

import math

import numpy as np

from . import exact_second_order
from .arrays import without_warnings
from .batch import Batch, Gradients
from .hard_tier import hard_minimum
from .jit import allocating, inline, jit, outlined, plain
from .lattice import entry, lattice_of, length
from .memory import empty
from .scaling import AGAIN, DOUBLE, NOT_A_NUMBER, SURE, TINY, WARPED_ROWS
from .solve import EXACT_COST, without_path
from .strips import begin_pair, end_pair, lane_steps, strip_columns
from .subnormal import flush_subnormals, restore
from .tangents import KEPT, LANES, TILE, advance, any_mass, sweep
from .threads import run_chunks
from .tiles import pack, unpack

WEIGHTS = 2 * 2**20  # bytes of the weights of a pair that are kept: about the second cache level
BORDERS = 4 * 2**20  # bytes of the borders of a pair that are kept without counting
BORDER, REGISTERS = 3 * 8, 6 * 8 * LANES  # bytes of a border a column, of the registers a tile


@inline
def tiles_of(steps):
    return (steps + TILE - 1) // TILE


@outlined
def walk(
    matrices, parameters, weak, row, first, begin, end, steps, limits, packed, rates, floor,
    above, shift, border, checks, states, states_k, state, keep, weights, offset,
    with_gamma,
):  # fmt: skip
    """The tiles begin <= tile < end of a strip of `steps` steps: costs and tangents are packed, and
    taken forward.

    matrices: costs and their tangents. parameters: dummy cost and its tangent, and what advance
    needs of gamma. above, border: mantissas, exponents and tangents. The registers of tile k are
    those of state + k.
    """
    cost, tangent = matrices
    theta, theta_tangent, rise, slope = parameters
    starts, stops = limits
    above_m, above_k, above_s = above
    border_m, border_k, border_s = border
    for tile in range(begin, end):
        t0 = tile * TILE
        t1 = min(steps, t0 + TILE)
        pack(cost, theta, weak, row, first, t0, t1, starts, stops, packed[0])
        pack(tangent, theta_tangent, weak, row, first, t0, t1, starts, stops, packed[1])
        advance(
            packed[0], packed[1], t1 - t0, tile == 0, rates, rise, slope, floor,
            above_m, above_k, above_s, shift + t0, border_m, border_k, border_s,
            first + t0 - LANES + 2, LANES - 1 - t0, checks, states, states_k, state + tile,
            keep, weights, offset + (tile - begin) * TILE * KEPT, with_gamma,
        )  # fmt: skip


@outlined
def fill(array, value):
    for k in range(array.size):
        array[k] = value


@outlined
def copy(source, target, at_source, at_target, size):
    for c in range(size):
        target[0][at_target + c] = source[0][at_source + c]
        target[1][at_target + c] = source[1][at_source + c]
        target[2][at_target + c] = source[2][at_source + c]


@outlined
def reset(border, floor):
    for c in range(border[0].size):
        border[0][c], border[1][c], border[2][c] = 1.0, floor, 0.0
    border[1][0] = 0  # the virtual cell before the origin, Z = 1


@allocating
def new_border(size):
    return empty(size), empty(size, np.int64), empty(size)


@outlined
def enter_strip(strip, lattice, limits):
    """The first row of a strip, its first column and number of steps, the lane of the final cell
    (or -1); the steps of the lanes go to limits.
    """
    rows, columns, low, high = lattice
    row = strip * LANES
    left, steps, end = strip_columns(row, LANES, rows, columns, low, high)
    lane_steps(row, LANES, left, rows, columns, low, high, limits[0], limits[1])
    return row, left, steps, end


@outlined
def begin(gamma, bounds, rates, checks, border, floor):
    begin_pair(gamma, 0.0, bounds, rates, checks)
    reset(border, floor)


@outlined
def result_of(checks, exponent, lattice, gamma, floor, bounds):
    """The value and the status of a pair."""
    rows, columns, _, _ = lattice
    return end_pair(checks, exponent, rows, columns, gamma, 0.0, floor, bounds, plain(False))


@outlined
def dead(steps, flows, below_e, below_f, below, handed):
    """Whether no mass flows into some steps of a strip; then none flows out of them."""
    if any_mass(steps, flows, below_e, handed):
        return False
    for t in range(steps):
        below_e[below + t] = below_f[below + t] = 0.0
    fill(flows, 0.0)
    return True


@jit
def solve_soft(
    items, cost4, gamma, dummy, n, m, bandwidth, floor, bounds,
    with_grad, with_gamma, factors, tangent4, tangent_gamma, tangent_dummy, values, out4, sums,
    status,
):  # fmt: skip
    """Of the pairs q in items the value and its derivative along the tangents, the rows of values;
    if asked for, factors[0, q] times the gradient of the former and factors[1, q] times that of the
    latter, their sum by the costs; and status (see `scaling`).

    sums: rows of the gradients of the derivative by the dummy cost and by gamma, if factors[0, q]
    is 0; the latter with_gamma, without which its tangents are 0. out4 is written where mass flows,
    and must be 0 before. Results of pairs that are not certified hold anything.
    """
    weak = dummy.size > 0
    shape = cost4.shape
    widest, longest, strips = lattice_of(shape[2], shape[3], weak, bandwidth)[1], plain(0), plain(0)
    for q in items:
        rows, columns, low, high = lattice_of(
            length(n, q, shape[2]), length(m, q, shape[3]), weak, bandwidth
        )
        longest = max(longest, min(columns, high - low + LANES) + LANES)
        strips = max(strips, (rows + LANES - 1) // LANES)
    window, tiles = longest + 1, tiles_of(longest)
    stored = with_grad and strips * tiles * TILE * KEPT * 8 <= WEIGHTS
    again = with_grad and not stored
    parts = plain(1)
    if strips * (window * BORDER + tiles * REGISTERS) > BORDERS:
        parts = int(math.ceil(math.sqrt(strips)))
    height = (strips + parts - 1) // parts
    kept = height if again else plain(0)
    above, top = new_border(kept * window), new_border(parts * window if again else 0)
    states = empty((kept * tiles + tiles + 1) * 4 * LANES)
    states_k = empty((kept * tiles + tiles + 1) * 2 * LANES, np.int64)
    weights = empty(TILE * KEPT * (strips * tiles if stored else 1))
    packed = empty(TILE * LANES), empty(TILE * LANES)
    border = new_border(widest + 3 * LANES)
    below_e, below_f = empty(widest + 3 * LANES), empty(widest + 3 * LANES)
    flows, checks = empty(8 * LANES + 2), empty(3 * LANES)
    rates = empty(WARPED_ROWS * LANES)
    limits = empty(LANES, np.int64), empty(LANES, np.int64)
    before = flush_subnormals()
    for q in items:
        a, b = q // shape[1], q % shape[1]
        matrices, out = (cost4[a, b], tangent4[a, b]), out4[a, b]
        g = entry(gamma, q)
        n_q, m_q = length(n, q, shape[2]), length(m, q, shape[3])
        lattice = lattice_of(n_q, m_q, weak, bandwidth)
        rows, columns = lattice[:2]
        parameters = (
            entry(dummy, q) if weak else 0.0,
            tangent_dummy[q] if weak else 0.0,
            tangent_gamma[q] * math.log(2.0),
            -1.0 / g,
        )
        begin(g, bounds, rates, checks, border, floor)
        final = (rows - 1) // LANES
        last = plain(0)
        for strip in range(final + 1):
            row, left, steps, end = enter_strip(strip, lattice, limits)
            place = strip % height if again else plain(0)
            if again:
                if place == 0:
                    copy(border, top, left, strip // height * window, steps + 1)
                copy(border, above, left, place * window, steps + 1)
            walk(
                matrices, parameters, weak, row, left, plain(0), tiles_of(steps), steps, limits,
                packed, rates, floor, border, left, border, checks, states, states_k,
                place * tiles, stored, weights, strip * tiles * TILE * KEPT, with_gamma,
            )  # fmt: skip
            if row == 0:
                border[1][0] = floor
            last = place * tiles + tiles_of(steps)
        lane = (rows - 1) % LANES
        exponent = states_k[2 * last * LANES + lane]
        values[0, q], status[q] = result_of(checks, exponent, lattice, g, floor, bounds)
        if status[q] == NOT_A_NUMBER:
            for i in range(n_q if with_grad else 0):
                for j in range(m_q):
                    out[i, j] = np.nan
            values[0, q] = values[1, q] = sums[0, q] = sums[1, q] = np.nan
        if status[q] != SURE:
            continue
        mantissa, s = states[4 * last * LANES + lane], states[(4 * last + 2) * LANES + lane]
        values[1, q] = s - parameters[2] * math.log2(mantissa)
        if not with_grad:
            status[q] = SURE if math.isfinite(values[1, q]) else AGAIN
            continue
        fill(below_e, 0.0)
        fill(below_f, 0.0)
        by_dummy = by_gamma = 0.0
        rightmost = columns
        for strip in range(final, -1, -1):
            if again and strip % height == height - 1 and strip < final:
                # The borders of the next part, as far as mass can flow in it.
                while rightmost > 0 and not below_e[rightmost + 1] > 0.0:
                    rightmost -= 1
                for place in range(height):
                    row, left, steps, _ = enter_strip(strip - height + 1 + place, lattice, limits)
                    steps = min(steps, tiles_of(rightmost - left + LANES) * TILE)
                    if place == 0:
                        reset(border, floor)
                        copy(top, border, strip // height * window, left, steps + 1)
                    copy(border, above, left, place * window, steps + 1)
                    walk(
                        matrices, parameters, weak, row, left, plain(0), tiles_of(steps), steps,
                        limits, packed, rates, floor, border, left, border, checks, states,
                        states_k, place * tiles, stored, weights, plain(0), with_gamma,
                    )  # fmt: skip
                    if row == 0:
                        border[1][0] = floor
            row, left, steps, end = enter_strip(strip, lattice, limits)
            place = strip % height
            for c in range(flows.size):
                flows[c] = 1.0 if c == end else 0.0
            for tile in range(tiles_of(min(steps, rightmost - left + LANES)) - 1, -1, -1):
                t0 = tile * TILE
                t1 = min(steps, t0 + TILE)
                handed = left + t0 - LANES + 2
                if dead(t1 - t0, flows, below_e, below_f, left + t0 + 1, handed):
                    continue
                offset = (strip * tiles + tile) * TILE * KEPT
                if again:
                    offset = plain(0)
                    walk(
                        matrices, parameters, weak, row, left, tile, tile + 1, steps, limits,
                        packed, rates, floor, above, place * window, border, checks, states,
                        states_k, place * tiles, plain(True), weights, offset, with_gamma,
                    )  # fmt: skip
                by_gamma += sweep(
                    t1 - t0, weights, offset, flows, below_e, below_f, left + t0 + 1, handed,
                    factors[0, q], factors[1, q], bounds[TINY], packed[0], with_gamma,
                )  # fmt: skip
                by_dummy += unpack(packed[0], weak, row, left, t0, t1, limits[0], limits[1], out)
            below_e[left], below_f[left] = flows[8 * LANES], flows[8 * LANES + 1]
        sums[0, q], sums[1, q] = by_dummy, by_gamma * factors[1, q] * math.log(2.0)
        if not math.isfinite(values[1, q] + sums[0, q] + sums[1, q]):
            status[q] = AGAIN
    restore(before)


def solve(
    task: Batch,
    scale: np.ndarray,
    tangents: tuple[np.ndarray, np.ndarray, np.ndarray],
    out: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """The derivatives of all values along the tangents (by costs, gamma, dummy cost), and `scale`
    times those of their gradients: by the costs to out, which is 0 before, by dummy cost and gamma
    in the rows of the second result.
    """
    values, sums = directional(task, tangents, np.stack([np.zeros_like(scale), scale]), out, True)
    return values[1], sums


@without_warnings
def directional(
    task: Batch,
    tangents: tuple[np.ndarray, np.ndarray, np.ndarray],
    factors: np.ndarray | None,
    out: np.ndarray,
    with_gamma: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """The values and their derivatives along the tangents, in rows. With factors (2, P) also the
    gradient of factors[0] values + factors[1] derivatives: by the costs to out, which is 0 before,
    and, where factors[0] is 0, by dummy cost and gamma in the rows of the second result. Without
    gamma, its tangents are 0, and that by it is not computed.
    """
    by_cost, by_gamma, by_dummy = tangents
    with_grad = factors is not None
    if factors is None:
        factors = np.empty((2, 0))  # not read
    values, sums = np.zeros((2, task.pairs)), np.zeros((2, task.pairs))
    status = np.full(task.pairs, SURE, np.uint8)
    soft = np.arange(task.pairs)
    if not task.gamma.all():
        zero = np.broadcast_to(task.gamma == 0.0, task.pairs)
        along_paths(task, soft[zero], tangents, factors, values, out, sums)
        soft = soft[~zero]
    matrices = task.cost, by_cost, out
    numbers = task.exact_arguments[1:]

    def work(first: int, last: int) -> None:
        solve_soft(
            soft[first:last], matrices[0], *numbers, DOUBLE.floor, DOUBLE.bounds, with_grad,
            with_gamma, factors, matrices[1], by_gamma, by_dummy, values, matrices[2], sums, status,
        )  # fmt: skip

    def again(first: int, last: int) -> None:
        exact_second_order.solve(
            matrices[0], *numbers, rest[first:last], with_grad, factors,
            matrices[1], by_gamma, by_dummy, values, matrices[2], sums,
        )  # fmt: skip

    if soft.size:
        run_chunks(soft.size, task.cells * soft.size // task.pairs, work)
    if not status.any():
        return values, sums
    if factors.size:
        task.clear_beyond_band(out, values[0])
    if task.dummy.size == 0:  # all is 0 where no path is
        without_path(task, None, np.flatnonzero(status == AGAIN), values[0], status)
    rest = np.flatnonzero(status == AGAIN)
    if rest.size:
        run_chunks(rest.size, EXACT_COST * task.cells * rest.size // task.pairs, again)
    return values, sums


def along_paths(
    task: Batch,
    items: np.ndarray,
    tangents: tuple[np.ndarray, np.ndarray, np.ndarray],
    factors: np.ndarray,
    values: np.ndarray,
    out: np.ndarray,
    sums: np.ndarray,
) -> None:
    """Pairs of gamma = 0: their paths are written to out as gradients, and taken away again."""
    by_cost, _, by_dummy = tangents
    visits = Gradients(np.ones(task.pairs, out.dtype), False, out)
    own = np.empty(task.pairs, out.dtype)
    hard_minimum(task, visits, items, own, np.empty(task.pairs, np.uint8))
    cells = np.nonzero(out)
    pairs = cells[0] * out.shape[1] + cells[1]
    along = np.bincount(pairs, out[cells] * by_cost[cells], task.pairs)
    # NaN stays.
    out[cells] *= factors[0, pairs] if factors.size else 0
    values[0, items], values[1, items] = own[items], along[items]
    if task.dummy.size:
        values[1, items] += (visits.dummy * by_dummy)[items]
    sums[:, items] = visits.dummy[items] * 0.0
