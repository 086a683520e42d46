"""Square blocks of a matrix into vectors and back: rows of memory become lanes, transposed in
registers, with masks for what lies outside; and rows that need not fill a vector.

Requirements: numba.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .jit import inline
from .order import max, min
from .simd import (
    INTEGER_OF,
    Vector,
    call_llvm,
    constant,
    shuffle,
    splat_value,
    suffix,
    vector_pointer,
)


def lane_mask(builder: Any, kind: Vector, start: Any, stop: Any) -> Any:
    """Lanes start <= l < stop."""
    index = Vector(INTEGER_OF[kind.dtype], kind.lanes)
    iota = ir.Constant(index.ir_type, list(range(kind.lanes)))
    if index.dtype.bitwidth < 64:
        start, stop = (builder.trunc(v, index.ir_type.element) for v in (start, stop))
    return builder.and_(
        builder.icmp_signed(">=", iota, splat_value(builder, index, start)),
        builder.icmp_signed("<", iota, splat_value(builder, index, stop)),
    )


def transpose(builder: Any, rows: list[Any]) -> list[Any]:
    """The columns of a square of vectors, by interleaving halves log2(n) times."""
    n = len(rows)
    low = [x for k in range(n // 2) for x in (k, n + k)]
    high = [x for k in range(n // 2, n) for x in (k, n + k)]
    for _ in range(n.bit_length() - 1):
        pairs = [(rows[k], rows[k + n // 2]) for k in range(n // 2)]
        rows = [shuffle(builder, a, b, order) for a, b in pairs for order in (low, high)]
    return rows


def element(context: Any, builder: Any, argument: Any, lane: int) -> Any:
    """One integer of an array that is an argument: (type, value)."""
    array_type, array = argument
    data = context.make_array(array_type)(context, builder, array).data
    at = builder.gep(data, [ir.Constant(ir.IntType(64), lane)])
    return builder.load(at, typ=ir.IntType(64))


def row_pointer(context: Any, builder: Any, kind: Vector, where: list[Any], lane: int) -> Any:
    """Of the row of a lane. where: the byte address, and (type, value) of the distance between
    lanes, or of an array of the distances of all.
    """
    address, (stride_type, stride) = where
    if isinstance(stride_type, types.Array):
        apart = element(context, builder, where[1], lane)
    else:
        apart = builder.mul(stride, ir.Constant(stride.type, lane))
    return builder.inttoptr(builder.add(address, apart), kind.ir_type.as_pointer())


def inside(
    context: Any,
    builder: Any,
    kind: Vector,
    pointer: Any,
    memory: Any,
    limits: list[Any],
    lane: int,
) -> tuple[Any, Any]:
    """The pointer to a row, or to the memory if the lane is idle, and the mask of the elements of
    the row in [starts[lane] - offset, stops[lane] - offset); the limits are these three.

    The row of an idle lane may lie in no page at all. Nothing of it is read, but the processor
    takes hundreds of cycles to find out.
    """
    starts, stops, offset = limits
    start, stop = (element(context, builder, edge, lane) for edge in (starts, stops))
    memory_type, array = memory
    data = context.make_array(memory_type)(context, builder, array).data
    idle = builder.icmp_signed(">=", start, stop)
    pointer = builder.select(idle, builder.bitcast(data, pointer.type), pointer)
    edges = [builder.sub(edge, offset) for edge in (start, stop)]
    return pointer, lane_mask(builder, kind, *edges)


def column_index(builder: Any, index: Any, step: Any, column: int) -> Any:
    return builder.add(index, builder.mul(step, ir.Constant(step.type, column)))


def masked(builder: Any, kind: Vector, name: str, result: ir.Type, arguments: list[Any]) -> Any:
    return call_llvm(builder, f"llvm.masked.{name}.{suffix(kind)}.p0", result, arguments)


def of_type(builder: Any, vector: Any, source: Vector, target: Vector) -> Any:
    """The vector with lanes of another float type."""
    if source.dtype == target.dtype:
        return vector
    wider = source.dtype.bitwidth < target.dtype.bitwidth
    return (builder.fpext if wider else builder.fptrunc)(vector, target.ir_type)


@intrinsic
def load_block(typingctx, memory, address, stride, starts, stops, offset, packed, at, step):
    """packed[at + c step + l] = element c of the row of lane l, if starts[l] <= offset + c <
    stops[l]; else +inf. starts and stops may be None: all of them.

    The row of lane l begins at the byte address + l stride, or address + stride[l] if the stride
    is an array. Elements outside the bounds are not read. memory: the array of the elements, which
    are converted to the type of packed.
    """
    kind = Vector(packed.dtype)
    stored = Vector(memory.dtype, kind.lanes)

    def codegen(context, builder, sig, args):
        source, base, skew, first, last, shift, array, index, packed_step = args
        limits = [(sig.args[3], first), (sig.args[4], last), shift]
        size, rows = stored.dtype.bitwidth // 8, []
        for lane in range(kind.lanes):
            pointer = row_pointer(context, builder, stored, [base, (sig.args[2], skew)], lane)
            if starts == types.none:
                row = builder.load(pointer, align=size, typ=stored.ir_type)
            else:
                memory_of = (sig.args[0], source)
                pointer, mask = inside(context, builder, stored, pointer, memory_of, limits, lane)
                align, outside = ir.Constant(ir.IntType(32), size), constant(stored, float("inf"))
                arguments = [pointer, align, mask, outside]
                row = masked(builder, stored, "load", stored.ir_type, arguments)
            rows.append(of_type(builder, row, stored, kind))
        for c, column in enumerate(transpose(builder, rows)):
            target = column_index(builder, index, packed_step, c)
            pointer = vector_pointer(context, builder, sig.args[6], array, target, kind)
            builder.store(column, pointer, align=kind.dtype.bitwidth // 8)
        return context.get_dummy_value()

    integer = types.intp
    apart = stride if isinstance(stride, types.Array) else integer
    arguments = (memory, integer, apart, starts, stops, integer, packed, integer, integer)
    return types.void(*arguments), codegen


@intrinsic
def store_block(typingctx, packed, at, step, memory, address, stride, starts, stops, offset):
    """The inverse of load_block. Elements outside the bounds are not written."""
    kind = Vector(packed.dtype)
    stored = Vector(memory.dtype, kind.lanes)

    def codegen(context, builder, sig, args):
        array, index, packed_step, target, base, skew, first, last, shift = args
        limits = [(sig.args[6], first), (sig.args[7], last), shift]
        size, columns = stored.dtype.bitwidth // 8, []
        for c in range(kind.lanes):
            source = column_index(builder, index, packed_step, c)
            pointer = vector_pointer(context, builder, sig.args[0], array, source, kind)
            columns.append(builder.load(pointer, align=kind.dtype.bitwidth // 8, typ=kind.ir_type))
        for lane, row in enumerate(transpose(builder, columns)):
            pointer = row_pointer(context, builder, stored, [base, (sig.args[5], skew)], lane)
            row = of_type(builder, row, kind, stored)
            if starts == types.none:
                builder.store(row, pointer, align=size)
                continue
            memory_of = (sig.args[3], target)
            pointer, mask = inside(context, builder, stored, pointer, memory_of, limits, lane)
            arguments = [row, pointer, ir.Constant(ir.IntType(32), size), mask]
            masked(builder, stored, "store", ir.VoidType(), arguments)
        return context.get_dummy_value()

    integer = types.intp
    apart = stride if isinstance(stride, types.Array) else integer
    arguments = (packed, integer, integer, memory, integer, apart, starts, stops, integer)
    return types.void(*arguments), codegen


@inline
def common(starts, stops):
    """Where the last of the lanes begins, and the first of them ends."""
    last_start, first_stop = starts[0], stops[0]
    for lane in range(1, starts.size):
        last_start, first_stop = max(last_start, starts[lane]), min(first_stop, stops[lane])
    return last_start, first_stop


@intrinsic
def load_some(typingctx, array, index, count):
    """The elements array[index : index + count], as far as there are lanes; in the others +inf."""
    kind = Vector(array.dtype)

    def codegen(context, builder, sig, args):
        pointer = vector_pointer(context, builder, sig.args[0], args[0], args[1], kind)
        align = ir.Constant(ir.IntType(32), kind.dtype.bitwidth // 8)
        mask = lane_mask(builder, kind, ir.Constant(args[2].type, 0), args[2])
        arguments = [pointer, align, mask, constant(kind, float("inf"))]
        return masked(builder, kind, "load", kind.ir_type, arguments)

    return kind(array, types.intp, types.intp), codegen


@intrinsic
def store_some(typingctx, array, index, vector, count):
    """array[index : index + count] = vector, as far as it has lanes."""

    def codegen(context, builder, sig, args):
        kind = sig.args[2]
        pointer = vector_pointer(context, builder, sig.args[0], args[0], args[1], kind)
        align = ir.Constant(ir.IntType(32), kind.dtype.bitwidth // 8)
        mask = lane_mask(builder, kind, ir.Constant(args[3].type, 0), args[3])
        masked(builder, kind, "store", ir.VoidType(), [args[2], pointer, align, mask])
        return context.get_dummy_value()

    return types.void(array, types.intp, vector, types.intp), codegen
