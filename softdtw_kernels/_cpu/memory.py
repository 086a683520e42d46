"""Arrays that kernels make for themselves, written where they are made.

Numba compiles a function for `np.empty` of each type, and others for `np.zeros` and `np.full`: an
eighth of the time that the first kernel takes. Sizes are not checked for overflow.

Requirements: numba.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.npydecl import parse_dtype
from numba.extending import intrinsic
from numba.np.arrayobj import get_itemsize, make_array, populate_array

ALIGNMENT = 32  # bytes, as Numba has it: with 64 kernels are no faster
LINES = 128  # bytes: processors fetch lines of the cache in pairs


def kind_of(shape: Any, dtype: Any) -> types.Array:
    """The type of an array; sizes may be one number, types None."""
    element = types.float64 if dtype is None else parse_dtype(dtype)
    return types.Array(element, getattr(shape, "count", 1), "C")


def allocate(context: Any, builder: Any, size: Any) -> tuple[Any, Any]:
    """What holds so many bytes, and where they begin."""
    alignment = ir.Constant(ir.IntType(32), ALIGNMENT)
    holder = context.nrt.meminfo_alloc_aligned(builder, size, alignment)
    return holder, context.nrt.meminfo_data(builder, holder)


def make(context: Any, builder: Any, sig: Any, args: Any) -> tuple[Any, Any]:
    """The array that a signature returns, whose first argument is its shape, and its entries."""
    kind, of_shape, shape = sig.return_type, sig.args[0], args[0]
    sizes = cgutils.unpack_tuple(builder, shape) if kind.ndim > 1 else [shape]
    kinds = of_shape if kind.ndim > 1 else [of_shape]
    sizes = [
        context.cast(builder, size, its, types.intp) for size, its in zip(sizes, kinds, strict=True)
    ]
    itemsize = context.get_constant(types.intp, get_itemsize(context, kind))
    strides = [itemsize]
    for size in reversed(sizes[1:]):
        strides.insert(0, builder.mul(strides[0], size))
    size = builder.mul(strides[0], sizes[0])
    holder, data = allocate(context, builder, size)
    array = make_array(kind)(context, builder)
    data = builder.bitcast(data, array.data.type)
    populate_array(array, data, sizes, strides, itemsize, holder)
    return array, builder.sdiv(size, itemsize)


@intrinsic
def empty(typingctx, shape, dtype=None):
    """As np.empty."""
    kind = kind_of(shape, dtype)

    def codegen(context, builder, sig, args):
        return make(context, builder, sig, args)[0]._getvalue()

    return kind(shape, types.none if dtype is None else dtype), codegen


@intrinsic
def filled(typingctx, shape, value, dtype=None):
    """As np.full."""
    kind = kind_of(shape, dtype)

    def codegen(context, builder, sig, args):
        array, entries = make(context, builder, sig, args)
        entry = context.cast(builder, args[1], sig.args[1], kind.dtype)
        with cgutils.for_range(builder, entries) as loop:
            builder.store(entry, builder.gep(array.data, [loop.index]))
        return array._getvalue()

    return kind(shape, value, types.none if dtype is None else dtype), codegen


@intrinsic
def parts_of_block(typingctx, requests):
    """An array as of np.empty for each (size, dtype), all in one block of memory.

    At the end of a call the C library gives back to the system what is free at the end of its
    memory, if that is more than twice the largest block that was freed before; the next call then
    pays a page fault for every 4 KiB of it. Arrays of about the same size are more than that
    together. One block never is.
    """
    kinds = [types.Array(parse_dtype(dtype), 1, "C") for _, dtype in requests]

    def codegen(context, builder, sig, args):
        def constant(number):
            return context.get_constant(types.intp, number)

        layout, end = [], constant(0)
        for kind, request, kinds_of_request in zip(
            kinds, cgutils.unpack_tuple(builder, args[0]), sig.args[0], strict=True
        ):
            size = builder.extract_value(request, 0)
            size = context.cast(builder, size, kinds_of_request[0], types.intp)
            itemsize = constant(get_itemsize(context, kind))
            layout.append((kind, end, size, itemsize))
            end = builder.add(end, builder.mul(size, itemsize))
            end = builder.and_(builder.add(end, constant(ALIGNMENT - 1)), constant(-ALIGNMENT))
        holder, data = allocate(context, builder, end)
        arrays = []
        for kind, start, size, itemsize in layout:
            array = make_array(kind)(context, builder)
            own = builder.bitcast(builder.gep(data, [start]), array.data.type)
            populate_array(array, own, [size], [itemsize], itemsize, holder)
            if arrays:  # each of them holds the block
                context.nrt.incref(builder, kind, array._getvalue())
            arrays.append(array._getvalue())
        return context.make_tuple(builder, sig.return_type, arrays)

    return types.Tuple(kinds)(requests), codegen


def shared_block(*requests: tuple[int, np.dtype]) -> list[np.ndarray]:
    """As parts_of_block, of what threads share: what one of them writes is in no line of the cache
    that holds what another one reads.
    """
    starts = [0]
    for size, dtype in requests:
        starts.append(starts[-1] + -(-size * dtype.itemsize // LINES) * LINES + LINES)
    block = np.empty(starts.pop(), np.uint8)
    return [
        block[start : start + size * dtype.itemsize].view(dtype)
        for start, (size, dtype) in zip(starts, requests, strict=True)
    ]
