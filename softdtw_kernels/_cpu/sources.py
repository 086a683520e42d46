"""Where the strips take their costs from, and where the gradient goes: matrices in memory, or
features, of which no cost is ever stored.

A source is an array (A, B, N, M) of costs, with another for their gradients as the sink; or a tuple
of features, with a tuple of gradients. Or it is costs in which another number is read in place of
one of each pair (see `walls`): a tuple of the array, the numbers and the others. The functions here
are chosen by the type, so that one recursion serves all.

Features are packed a pair at a time in the type to compute in: x as (D, rows), and y as (D,
columns) from the last column to the first, so that what the lanes of a strip have at one step is
one vector in memory. Zeros on both sides stand for what lies outside.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from .blocks import common, load_block, store_block
from .floating import fma, fnma
from .jit import HELPER, inline
from .lattice import cost_at, give, length
from .memory import filled, parts_of_block
from .simd import first_lane, like, limits, shift_down, store, where_between
from .simd import load_double as load

STEPS = 4  # of a strip whose costs are computed in registers together
SIDE = 2  # features whose gradients are: D is padded to a multiple


def chosen_by_type(stub: Any, returns_arrays: bool = False) -> Any:
    """Decorate a function that returns the form of `stub` for the types of its arguments.

    Only what returns arrays counts who holds them: as the helpers of `jit`.
    """
    options: Any = HELPER | {"_nrt": returns_arrays}
    return overload(stub, jit_options=options)


def is_matrix(source: Any) -> bool:
    return isinstance(source, types.Array)


def is_barred(source: Any) -> bool:
    """Costs, or those of a pair, with other numbers in place of some."""
    return isinstance(source, types.BaseTuple) and len(source) == 3


def shape_of(source: Any) -> Any:
    """(A, B, N, M); pair q is the one of (q // B, q % B)."""
    raise NotImplementedError


@chosen_by_type(shape_of)
def _shape_of(source):
    if is_matrix(source):
        return lambda source: source.shape
    if is_barred(source):
        return lambda source: source[0].shape

    def of_features(source):
        x, x_of, y, _, _, _ = source
        return (1, x_of.size, x.shape[1], y.shape[1])

    return of_features


def size_of_costs(source: Any) -> Any:
    """Bytes of the costs of a pair, if they were in memory; for Python too."""
    if isinstance(source, np.ndarray):
        return source.shape[2] * source.shape[3] * source.itemsize
    if len(source) == 3:
        return size_of_costs(source[0])
    x, _, y, *_ = source
    return x.shape[1] * y.shape[1] * x.itemsize


@chosen_by_type(size_of_costs)
def _size_of_costs(source):
    if is_matrix(source):
        return lambda source: source.shape[2] * source.shape[3] * source.itemsize
    if is_barred(source):
        return lambda source: size_of_costs(source[0])
    return lambda source: source[0].shape[1] * source[2].shape[1] * source[0].itemsize


def is_returned(source: Any, with_grad: Any) -> Any:
    """Whether the value has to be certified too."""
    raise NotImplementedError


@chosen_by_type(is_returned)
def _is_returned(source, with_grad):
    if is_matrix(source) or is_barred(source):
        return lambda source, with_grad: not with_grad
    return lambda source, with_grad: source[5]


@inline
def sizes_of(n, m, features, lanes):
    """Entries of a feature of packed x and y, and how many features."""
    # An odd number of vectors: rows at a distance of whole pages get in each other's way.
    nx = (n + lanes - 1) // lanes * lanes
    ny = (m + 3 * lanes + 2 * STEPS) // lanes // 2 * 2 * lanes + lanes
    return nx, ny, (features + SIDE - 1) // SIDE * SIDE


def room_for(source: Any, sink: Any, lanes: Any, floats: Any, with_grad: Any, chunk: Any) -> Any:
    """What the pairs of a call use one after another."""
    raise NotImplementedError


@chosen_by_type(room_for, returns_arrays=True)
def _room_for(source, sink, lanes, floats, with_grad, chunk):
    if is_matrix(source) or is_barred(source):
        return lambda source, sink, lanes, floats, with_grad, chunk: 0

    def for_features(source, sink, lanes, floats, with_grad, chunk):
        x, _, y, _, _, _ = source
        _, _, gx, gy = sink
        nx, ny, size = sizes_of(x.shape[1], y.shape[1], x.shape[2], lanes)
        if with_grad and gx.size == 0:
            gx, gy = parts_of_block(((size * nx, np.float64), (size * ny, np.float64)))
        at_hand = filled(4, -1)  # which sequences, and of which lengths
        part, xs, ys = parts_of_block((
            (SIDE * (chunk + lanes), floats.dtype),
            (size * nx, floats.dtype),
            (size * ny, floats.dtype),
        ))  # fmt: skip
        xs[:] = 0
        ys[:] = 0
        return xs, nx, ys, ny, size, gx, gy, part, at_hand

    return for_features


def cost_of(pair: Any, i: Any, j: Any) -> Any:
    """One cost of the source of a pair."""
    raise NotImplementedError


@chosen_by_type(cost_of)
def _cost_of(pair, i, j):
    if is_matrix(pair):
        return lambda pair, i, j: float(pair[i, j])
    if is_barred(pair):

        def with_bar(pair, i, j):
            costs, height, bar = pair
            return float(bar if costs[i, j] == height else costs[i, j])

        return with_bar

    def of_features(pair, i, j):
        xs, nx, ys, ny, origin, size, distance = pair
        total = 0.0
        for d in range(size):
            x, y = float(xs[d * nx + i]), float(ys[d * ny + origin - j])
            total += (x - y) ** 2 if distance else -x * y
        return total

    return of_features


def begin_of(source: Any, sink: Any, q: Any, n: Any, m: Any, room: Any, lanes: Any) -> Any:
    """The source and the sink of the pair q."""
    raise NotImplementedError


@chosen_by_type(begin_of, returns_arrays=True)
def _begin_of(source, sink, q, n, m, room, lanes):
    if is_matrix(source):

        def of_matrix(source, sink, q, n, m, room, lanes):
            a, b = q // source.shape[1], q % source.shape[1]
            return source[a, b], sink[a, b]

        return of_matrix
    if is_barred(source):

        def with_bar(source, sink, q, n, m, room, lanes):
            costs, heights, bars = source
            a, b = q // costs.shape[1], q % costs.shape[1]
            return (costs[a, b], heights[q], bars[q]), sink[a, b]

        return with_bar

    def of_features(source, sink, q, n, m, room, lanes):
        x, x_of, y, y_of, distance, _ = source
        xs, nx, ys, ny, size, gx, gy, part, at_hand = room
        rows, columns = length(n, q, x.shape[1]), length(m, q, y.shape[1])
        origin = y.shape[1] - 1 + lanes + STEPS  # where the column 0 is
        if at_hand[0] != x_of[q] or at_hand[1] != rows:
            at_hand[0], at_hand[1] = x_of[q], rows
            for d in range(x.shape[2]):
                for i in range(nx):
                    xs[d * nx + i] = x[x_of[q], i, d] if i < rows else 0.0
        if at_hand[2] != y_of[q] or at_hand[3] != columns:
            at_hand[2], at_hand[3] = y_of[q], columns
            for d in range(y.shape[2]):
                for j in range(y.shape[1]):
                    ys[d * ny + origin - j] = y[y_of[q], j, d] if j < columns else 0.0
        if sink[2].size == 0:  # else threads share the sums, which were 0 before
            gx[:] = 0.0
            gy[:] = 0.0
        pair = xs, nx, ys, ny, origin, size, distance
        return pair, (pair, gx, gy, part)

    return of_features


def end_of(sink: Any, q: Any, n: Any, m: Any, of_pair: Any) -> Any:
    """Write what has been added up for the pair q, if it has been."""
    raise NotImplementedError


@chosen_by_type(end_of)
def _end_of(sink, q, n, m, of_pair):
    if is_matrix(sink):
        return lambda sink, q, n, m, of_pair: None

    def of_features(sink, q, n, m, of_pair):
        by_x, by_y, _, _ = sink
        pair, gx, gy, _ = of_pair
        _, nx, _, ny, origin, _, distance = pair
        factor = 2.0 if distance else 1.0
        if q < by_x.shape[0]:
            for i in range(length(n, q, by_x.shape[1])):
                for d in range(by_x.shape[2]):
                    by_x[q, i, d] = factor * gx[d * nx + i]
        if q < by_y.shape[0]:
            for j in range(length(m, q, by_y.shape[1])):
                for d in range(by_y.shape[2]):
                    by_y[q, j, d] = factor * gy[d * ny + origin - j]

    return of_features


def pack(
    source: Any, theta: Any, weak: Any, row: Any, first: Any, t0: Any, t1: Any, starts: Any,
    stops: Any, packed: Any,
) -> Any:  # fmt: skip
    """packed[(t - t0) lanes + lane] = cost of the cell of lane k at step t, for t0 <= t < t1 (and
    up to a square more).
    """
    raise NotImplementedError


@chosen_by_type(pack)
def _pack(source, theta, weak, row, first, t0, t1, starts, stops, packed):
    if is_barred(source):
        return _pack_with_bar
    return _pack_matrix if is_matrix(source) else _pack_features


def _pack_with_bar(source, theta, weak, row, first, t0, t1, starts, stops, packed):
    costs, height, bar = source
    pack(costs, theta, weak, row, first, t0, t1, starts, stops, packed)
    for k in range((t1 - t0) * starts.size):
        packed[k] = bar if packed[k] == height else packed[k]


def _pack_matrix(source, theta, weak, row, first, t0, t1, starts, stops, packed):
    lanes = starts.size
    skew = source.strides[0] - source.strides[1]
    if not weak and source.strides[1] == source.itemsize:
        side = 64 // packed.itemsize
        for k in range(0, lanes, side):
            base = source.ctypes.data + row * source.strides[0] + first * source.strides[1]
            begin, end = starts[k : k + side], stops[k : k + side]
            last_begin, first_end = common(begin, end)
            for t in range(t0, t1, side):
                at, to = base + k * skew + t * source.strides[1], (t - t0) * lanes + k
                if last_begin <= t and t + side <= first_end:
                    load_block(source, at, skew, None, None, t, packed, to, lanes)
                else:
                    load_block(source, at, skew, begin, end, t, packed, to, lanes)
        return
    for k in range(packed.size):
        packed[k] = np.inf
    for lane in range(lanes):
        i, j = row + lane, first - lane
        for t in range(max(starts[lane], t0), min(stops[lane], t1)):
            packed[(t - t0) * lanes + lane] = cost_at(source, theta, weak, i, j + t)


def _pack_features(source, theta, weak, row, first, t0, t1, starts, stops, packed):
    xs, nx, ys, ny, origin, size, distance = source
    lanes = starts.size
    zero = like(load(packed, 0), 0.0)
    begin, end = limits(zero, starts), limits(zero, stops)
    all_begun, one_ends = common(starts, stops)
    for t in range(t0, t1, STEPS):
        at = origin - first - t
        d0, d1, d2, d3 = zero, zero, zero, zero
        if distance:
            for k in range(size):
                x, y = load(xs, k * nx + row), k * ny + at
                a0, a1 = x - load(ys, y), x - load(ys, y - 1)
                a2, a3 = x - load(ys, y - 2), x - load(ys, y - 3)
                d0, d1, d2, d3 = fma(a0, a0, d0), fma(a1, a1, d1), fma(a2, a2, d2), fma(a3, a3, d3)
        else:
            for k in range(size):
                x, y = load(xs, k * nx + row), k * ny + at
                d0, d1 = fnma(x, load(ys, y), d0), fnma(x, load(ys, y - 1), d1)
                d2, d3 = fnma(x, load(ys, y - 2), d2), fnma(x, load(ys, y - 3), d3)
        if t < all_begun or t + STEPS > one_ends:
            d0, d1 = where_between(d0, begin, end, t), where_between(d1, begin, end, t + 1)
            d2, d3 = where_between(d2, begin, end, t + 2), where_between(d3, begin, end, t + 3)
        k = (t - t0) * lanes
        store(packed, k, d0)
        store(packed, k + lanes, d1)
        store(packed, k + 2 * lanes, d2)
        store(packed, k + 3 * lanes, d3)


def unpack(
    mass: Any, weak: Any, row: Any, first: Any, t0: Any, t1: Any, starts: Any, stops: Any, sink: Any
) -> Any:
    """What pack did, backward: mass to the gradient; returns the sum over the dummy cells."""
    raise NotImplementedError


@chosen_by_type(unpack)
def _unpack(mass, weak, row, first, t0, t1, starts, stops, sink):
    return _unpack_matrix if is_matrix(sink) else _unpack_features


def _unpack_matrix(mass, weak, row, first, t0, t1, starts, stops, sink):
    lanes = starts.size
    dummies = 0.0
    skew = sink.strides[0] - sink.strides[1]
    if not weak and sink.strides[1] == sink.itemsize:
        side = 64 // mass.itemsize
        for k in range(0, lanes, side):
            base = sink.ctypes.data + row * sink.strides[0] + first * sink.strides[1]
            begin, end = starts[k : k + side], stops[k : k + side]
            last_begin, first_end = common(begin, end)
            for t in range(t0, t1, side):
                at, of = base + k * skew + t * sink.strides[1], (t - t0) * lanes + k
                if last_begin <= t and t + side <= first_end:
                    store_block(mass, of, lanes, sink, at, skew, None, None, t)
                else:
                    store_block(mass, of, lanes, sink, at, skew, begin, end, t)
        return dummies
    for lane in range(lanes):
        i, j = row + lane, first - lane
        for t in range(max(starts[lane], t0), min(stops[lane], t1)):
            e = mass[(t - t0) * lanes + lane]
            dummies += give(sink, weak, i, j + t, e)
    return dummies


def _unpack_features(mass, weak, row, first, t0, t1, starts, stops, sink):
    """A row stays in its lane, where its sum is. The sum of a column moves down the lanes with it,
    and is done where it leaves them. Sums over this part are added up in float64. Columns that this
    part does not hold are not touched: threads that share a pair may be there.
    """
    pair, gx, gy, part = sink
    xs, nx, ys, ny, origin, size, distance = pair
    lanes = starts.size
    zero = like(load(mass, 0), 0.0)
    nothing = first_lane(zero)
    width = t1 - t0 + lanes
    for k in range(0, size, SIDE):
        x0, x1 = load(xs, k * nx + row), load(xs, (k + 1) * nx + row)
        gx0, gx1, gy0, gy1 = zero, zero, zero, zero
        y = k * ny + origin - first
        for t in range(t1 - 1, t0 - 1, -1):
            e = load(mass, (t - t0) * lanes)
            y0, y1 = load(ys, y - t), load(ys, y + ny - t)
            if distance:
                a0, a1 = x0 - y0, x1 - y1
                gx0, gx1 = fma(e, a0, gx0), fma(e, a1, gx1)
                gy0, gy1 = fnma(e, a0, gy0), fnma(e, a1, gy1)
            else:
                gx0, gx1 = fnma(e, y0, gx0), fnma(e, y1, gx1)
                gy0, gy1 = fnma(e, x0, gy0), fnma(e, x1, gy1)
            part[t1 - 1 - t] = first_lane(gy0)
            part[width + t1 - 1 - t] = first_lane(gy1)
            gy0, gy1 = shift_down(gy0, nothing), shift_down(gy1, nothing)
        store(part, t1 - t0, gy0)
        store(part, width + t1 - t0, gy1)
        at = y - (t1 - 1)
        for c in range(width - 1):  # the last column may be another thread's
            gy[at + c] += part[c]
        for c in range(width - 1):
            gy[at + ny + c] += part[width + c]
        store(part, 0, gx0)
        store(part, lanes, gx1)
        for c in range(lanes):
            gx[k * nx + row + c] += part[c]
        for c in range(lanes):
            gx[(k + 1) * nx + row + c] += part[lanes + c]
    return 0.0
