"""Arrays that kernels make for themselves, written where they are made.

Numba compiles a function for `np.empty` of each type, and others for `np.zeros` and `np.full`: an
eighth of the time that the first kernel takes. Sizes are not checked for overflow.

Requirements: numba.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.npydecl import parse_dtype
from numba.extending import intrinsic
from numba.np.arrayobj import get_itemsize, make_array, populate_array

ALIGNMENT = 32  # bytes, as Numba has it: with 64 kernels are no faster


def kind_of(shape: Any, dtype: Any) -> types.Array:
    """The type of an array; sizes may be one number, types None."""
    element = types.float64 if dtype is None else parse_dtype(dtype)
    return types.Array(element, getattr(shape, "count", 1), "C")


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
    alignment = ir.Constant(ir.IntType(32), ALIGNMENT)
    holder = context.nrt.meminfo_alloc_aligned(builder, size, alignment)
    data = context.nrt.meminfo_data(builder, holder)
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
