"""Vectors of 512 bits as values in Numba code: 16 lanes of float32 and int32, or 8 of float64 and
int64.

Requirements: numba. LLVM splits a vector into what the processor has (one AVX-512, two AVX2, four
SSE or NEON registers), so one source serves all of them and every lane computes the same bits on
each: nothing depends on what an auto-vectorizer makes of a loop. A vector lives in registers;
memory is reached by load and store on 1-D arrays.

    a + b, a - b, a * b, a / b     lane by lane, both of one type
    fma(a, b, c)                   a * b + c, rounded once
    smaller(a, b), larger(a, b)    b where the comparison is false, so also where either is NaN
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

BITS = 512
INTEGER_OF: dict[Any, Any] = {types.float32: types.int32, types.float64: types.int64}
FLOAT_OF = {v: k for k, v in INTEGER_OF.items()}


class Vector(types.Type):
    """The Numba type of a vector with lanes of `dtype`; in memory also half of one."""

    def __init__(self, dtype: Any, lanes: int = 0) -> None:
        self.dtype = dtype
        self.lanes = lanes or BITS // dtype.bitwidth
        super().__init__(name=f"Vector({dtype}x{self.lanes})")

    @property
    def is_float(self) -> bool:
        return isinstance(self.dtype, types.Float)

    @property
    def ir_type(self) -> ir.VectorType:
        width = self.dtype.bitwidth
        if self.is_float:
            return ir.VectorType(ir.FloatType() if width == 32 else ir.DoubleType(), self.lanes)
        return ir.VectorType(ir.IntType(width), self.lanes)


@register_model(Vector)
class VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, fe_type: Vector) -> None:
        super().__init__(manager, fe_type, fe_type.ir_type)


def constant(kind: Vector, value: float) -> ir.Constant:
    element = float(value) if kind.is_float else int(value)
    return ir.Constant(kind.ir_type, [ir.Constant(kind.ir_type.element, element)] * kind.lanes)


def splat_value(builder: Any, kind: Vector, scalar: Any) -> Any:
    zero = ir.Constant(ir.IntType(32), 0)
    one = builder.insert_element(ir.Constant(kind.ir_type, ir.Undefined), scalar, zero)
    mask = ir.Constant(ir.VectorType(ir.IntType(32), kind.lanes), [0] * kind.lanes)
    return builder.shuffle_vector(one, one, mask)


def shuffle(builder: Any, a: Any, b: Any, order: list[int]) -> Any:
    mask = ir.Constant(ir.VectorType(ir.IntType(32), len(order)), order)
    return builder.shuffle_vector(a, b, mask)


def call_llvm(builder: Any, name: str, result: ir.Type, arguments: list[Any]) -> Any:
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(result, [a.type for a in arguments]), name
    )
    return builder.call(function, arguments)


def suffix(kind: Vector) -> str:
    return f"v{kind.lanes}{'f' if kind.is_float else 'i'}{kind.dtype.bitwidth}"


# Arithmetic operators
# ------------------------------------------------------------------------------------------------

FLOAT_OPS = {
    operator.add: "fadd",
    operator.sub: "fsub",
    operator.mul: "fmul",
    operator.truediv: "fdiv",
}
INTEGER_OPS = {operator.add: "add", operator.sub: "sub", operator.and_: "and_", operator.or_: "or_"}


def define_operator(op: Callable[..., Any]) -> None:
    @infer_global(op)
    class Template(AbstractTemplate):
        def generic(self, args, kws):
            if len(args) == 2 and isinstance(args[0], Vector) and args[0] == args[1]:
                return signature(args[0], *args)
            return None

    @lower_builtin(op, Vector, Vector)
    def lower(context, builder, sig, args):
        names = FLOAT_OPS if sig.return_type.is_float else INTEGER_OPS
        return getattr(builder, names[op])(*args)


for _op in {**FLOAT_OPS, **INTEGER_OPS}:
    define_operator(_op)


# Memory -------------------------------------------------------------------------------------------
# -------------------


def vector_pointer(
    context: Any, builder: Any, array_type: Any, array: Any, index: Any, kind: Vector
) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), kind.ir_type.as_pointer())


def load_as(kind: Vector) -> Any:
    """The code of an intrinsic of an array and an index that loads such a vector."""

    def codegen(context, builder, sig, args):
        pointer = vector_pointer(context, builder, sig.args[0], args[0], args[1], kind)
        return builder.load(pointer, align=kind.dtype.bitwidth // 8, typ=kind.ir_type)

    return codegen


@intrinsic
def load(typingctx, array, index):
    """The lanes array[index : index + lanes] of a contiguous 1-D array."""
    kind = Vector(array.dtype)
    return kind(array, types.intp), load_as(kind)


@intrinsic
def load_double(typingctx, array, index):
    """As load, twice as many lanes: LLVM makes two vectors of them."""
    kind = Vector(array.dtype, 2 * BITS // array.dtype.bitwidth)
    return kind(array, types.intp), load_as(kind)


@intrinsic
def store(typingctx, array, index, vector):
    """array[index : index + lanes] = vector."""

    def codegen(context, builder, sig, args):
        kind = sig.args[2]
        pointer = vector_pointer(context, builder, sig.args[0], args[0], args[1], kind)
        builder.store(args[2], pointer, align=kind.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), codegen


@intrinsic
def limits(typingctx, vector, array):
    """A number of steps of an int64 array for each lane of the vector, as integers of its width."""
    kind = Vector(INTEGER_OF[vector.dtype], vector.lanes)

    def codegen(context, builder, sig, args):
        wide = Vector(types.int64, vector.lanes)
        zero = ir.Constant(ir.IntType(64), 0)
        pointer = vector_pointer(context, builder, sig.args[1], args[1], zero, wide)
        read = builder.load(pointer, align=8, typ=wide.ir_type)
        return read if kind.dtype == types.int64 else builder.trunc(read, kind.ir_type)

    return kind(vector, array), codegen


# Lanes --------------------------------------------------------------------------------------------
# -------------------


@intrinsic
def splat(typingctx, scalar):
    """All lanes equal to the scalar (float32, float64, int32 or int64)."""
    kind = Vector(scalar)

    def codegen(context, builder, sig, args):
        return splat_value(builder, kind, args[0])

    return kind(scalar), codegen


@intrinsic
def like(typingctx, vector, value):
    """All lanes equal to the number, in the type of the vector."""

    def codegen(context, builder, sig, args):
        scalar = context.cast(builder, args[1], sig.args[1], vector.dtype)
        return splat_value(builder, vector, scalar)

    return vector(vector, value), codegen


@intrinsic
def shift_up(typingctx, vector, scalar):
    """Lane l becomes lane l - 1; lane 0 becomes the scalar."""

    def codegen(context, builder, sig, args):
        n = vector.lanes
        first = splat_value(builder, vector, args[1])
        return shuffle(builder, args[0], first, [n, *range(n - 1)])

    return vector(vector, vector.dtype), codegen


@intrinsic
def shift_down(typingctx, vector, scalar):
    """Lane l becomes lane l + 1; the last lane becomes the scalar."""

    def codegen(context, builder, sig, args):
        n = vector.lanes
        last = splat_value(builder, vector, args[1])
        return shuffle(builder, args[0], last, [*range(1, n), n])

    return vector(vector, vector.dtype), codegen


@intrinsic
def first_lane(typingctx, vector):
    def codegen(context, builder, sig, args):
        return builder.extract_element(args[0], ir.Constant(ir.IntType(32), 0))

    return vector.dtype(vector), codegen


@intrinsic
def last_lane(typingctx, vector):
    def codegen(context, builder, sig, args):
        return builder.extract_element(args[0], ir.Constant(ir.IntType(32), vector.lanes - 1))

    return vector.dtype(vector), codegen


@intrinsic
def lane_sum(typingctx, vector):
    """Sum of the lanes in a fixed order, by halves."""

    def codegen(context, builder, sig, args):
        v, n = args[0], vector.lanes
        while n > 1:
            n //= 2
            low = shuffle(builder, v, v, list(range(n)))
            high = shuffle(builder, v, v, list(range(n, 2 * n)))
            v = builder.fadd(low, high)
        return builder.extract_element(v, ir.Constant(ir.IntType(32), 0))

    return vector.dtype(vector), codegen


# Comparison ---------------------------------------------------------------------------------------
# -------------------


def define_choice(comparison: str) -> Any:
    @intrinsic
    def choose(typingctx, a, b):
        def codegen(context, builder, sig, args):
            compare = builder.fcmp_ordered if a.is_float else builder.icmp_signed
            return builder.select(compare(comparison, *args), *args)

        return a(a, b), codegen

    return choose


smaller = define_choice("<")  # a where a < b, else b: NaN in a gives b, NaN in b gives b
larger = define_choice(">")


@intrinsic
def where_finite(typingctx, a, b, otherwise):
    """b where a is less than +inf, elsewhere (for NaN too) the third vector."""

    def codegen(context, builder, sig, args):
        finite = builder.fcmp_ordered("<", args[0], constant(a, float("inf")))
        return builder.select(finite, args[1], args[2])

    return a(a, b, otherwise), codegen


@intrinsic
def without_infinity(typingctx, a):
    """0 where a is +inf, elsewhere (for NaN too) a."""

    def codegen(context, builder, sig, args):
        infinite = builder.fcmp_ordered("==", args[0], constant(a, float("inf")))
        return builder.select(infinite, constant(a, 0.0), args[0])

    return a(a), codegen


@intrinsic
def where_between(typingctx, a, begin, end, step):
    """a where begin <= step < end, elsewhere +inf."""

    def codegen(context, builder, sig, args):
        steps = splat_value(
            builder, begin, context.cast(builder, args[3], sig.args[3], begin.dtype)
        )
        inside = builder.and_(
            builder.icmp_signed("<=", args[1], steps), builder.icmp_signed("<", steps, args[2])
        )
        return builder.select(inside, args[0], constant(a, float("inf")))

    return a(a, begin, end, step), codegen


@intrinsic
def keep_above(typingctx, a, threshold):
    """a where it is greater than the threshold, else 0 (for NaN too)."""

    def codegen(context, builder, sig, args):
        return builder.select(builder.fcmp_ordered(">", *args), args[0], constant(a, 0.0))

    return a(a, threshold), codegen


@intrinsic
def where_above(typingctx, a, threshold, b):
    """b where a is greater than the threshold, else 0 (whatever b is)."""

    def codegen(context, builder, sig, args):
        chosen = builder.fcmp_ordered(">", *args[:2])
        return builder.select(chosen, args[2], constant(a, 0.0))

    return a(a, threshold, b), codegen


def define_choice_of_lanes(comparison: str) -> Any:
    @intrinsic
    def choose(typingctx, a, b, lane):
        def codegen(context, builder, sig, args):
            index = Vector(types.int64 if a.dtype.bitwidth == 64 else types.int32, a.lanes)
            order = ir.Constant(
                index.ir_type, [ir.Constant(index.ir_type.element, k) for k in range(a.lanes)]
            )
            wanted = context.cast(builder, args[2], sig.args[2], index.dtype)
            chosen = builder.icmp_signed(comparison, order, splat_value(builder, index, wanted))
            return builder.select(chosen, args[0], args[1])

        return a(a, b, lane), codegen

    return choose


in_lane = define_choice_of_lanes("==")  # a in one lane, b in the others
up_to_lane = define_choice_of_lanes("<=")
