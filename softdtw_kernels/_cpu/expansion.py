"""Cumulated costs without rounding: vectors of sums of two or three float64 a lane.

An expansion is a tuple of vectors, the largest part first, whose sum is meant. Two parts hold 106
bits, three 159: what two cannot hold is told, so that three can be taken. +inf has zeros behind it.
One part is a float64 as any other, whose sums are rounded.

These vectors are four times as wide as those of `simd`, for one comparison waits for the other:
with four registers side by side the processor has something to do meanwhile.

Requirements: numba.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .simd import Vector, call_llvm, constant, shuffle, splat_value, suffix, vector_pointer

WIDE = 32  # lanes
FLOATS = Vector(types.float64, WIDE)
VECTOR = FLOATS.ir_type


# Memory: the parts of an expansion lie `size` entries apart ---------------------------------------


@intrinsic
def load_wide(typingctx, array, index):
    """The lanes array[index : index + WIDE]."""
    kind = Vector(array.dtype, WIDE)

    def codegen(context, builder, sig, args):
        pointer = vector_pointer(context, builder, sig.args[0], *args, kind)
        return builder.load(pointer, align=8, typ=kind.ir_type)

    return kind(array, types.intp), codegen


def parts_of(builder: Any, expansion: Any) -> list[Any]:
    return [builder.extract_value(expansion, k) for k in range(len(expansion.type.elements))]


def places(
    context: Any, builder: Any, array_type: Any, args: Any, parts: int, of_vectors: bool
) -> Iterator[Any]:
    array, size, index = args
    data = context.make_array(array_type)(context, builder, array).data
    for k in range(parts):
        at = builder.add(index, builder.mul(size, ir.Constant(size.type, k)))
        place = builder.gep(data, [at])
        yield builder.bitcast(place, VECTOR.as_pointer()) if of_vectors else place


@intrinsic
def load_parts(typingctx, like, array, size, index):
    """An expansion of as many parts as `like` has."""

    def codegen(context, builder, sig, args):
        of_parts = places(context, builder, sig.args[1], args[1:], len(like), True)
        loaded = [builder.load(place, align=8, typ=VECTOR) for place in of_parts]
        return context.make_tuple(builder, like, loaded)

    return like(like, array, types.intp, types.intp), codegen


@intrinsic
def store_parts(typingctx, expansion, array, size, index):
    def codegen(context, builder, sig, args):
        of_parts = places(context, builder, sig.args[1], args[1:], len(expansion), True)
        for place, part in zip(of_parts, parts_of(builder, args[0]), strict=True):
            builder.store(part, place, align=8)
        return context.get_dummy_value()

    return types.void(expansion, array, types.intp, types.intp), codegen


@intrinsic
def enter(typingctx, expansion, array, size, index):
    """Lane l becomes lane l - 1; lane 0 comes from the array."""

    def codegen(context, builder, sig, args):
        of_parts = places(context, builder, sig.args[1], args[1:], len(expansion), False)
        shifted = []
        for place, part in zip(of_parts, parts_of(builder, args[0]), strict=True):
            first = builder.load(place, typ=ir.DoubleType())
            undefined = ir.Constant(VECTOR, ir.Undefined)
            entering = builder.insert_element(undefined, first, ir.Constant(ir.IntType(32), 0))
            shifted.append(shuffle(builder, part, entering, [WIDE, *range(WIDE - 1)]))
        return context.make_tuple(builder, expansion, shifted)

    return expansion(expansion, array, types.intp, types.intp), codegen


@intrinsic
def leave(typingctx, expansion, array, size, index):
    """The last lane goes to the array."""

    def codegen(context, builder, sig, args):
        of_parts = places(context, builder, sig.args[1], args[1:], len(expansion), False)
        for place, part in zip(of_parts, parts_of(builder, args[0]), strict=True):
            last = builder.extract_element(part, ir.Constant(ir.IntType(32), WIDE - 1))
            builder.store(last, place)
        return context.get_dummy_value()

    return types.void(expansion, array, types.intp, types.intp), codegen


# Arithmetic ---------------------------------------------------------------------------------------


def two_sum(builder: Any, a: Any, b: Any) -> tuple[Any, Any]:
    """a + b as rounded sum and exact error."""
    s = builder.fadd(a, b)
    t = builder.fsub(s, a)
    return s, builder.fadd(builder.fsub(a, builder.fsub(s, t)), builder.fsub(b, t))


def is_finite(builder: Any, a: Any) -> Any:
    size = call_llvm(builder, f"llvm.fabs.{suffix(FLOATS)}", VECTOR, [a])
    return builder.fcmp_ordered("<", size, constant(FLOATS, float("inf")))


def is_less(builder: Any, a: list[Any], b: list[Any]) -> Any:
    """Lanes where a < b.

    Two parts have one form only, the first being their sum rounded to nearest, so that they compare
    like digits. Three have not; there the sign of the difference is taken. Its first term may be
    rounded, for it is exact wherever the others count.
    """
    less = builder.fcmp_ordered("<", a[0], b[0])
    if len(a) == 1:
        return less
    if len(a) == 2:
        equal = builder.fcmp_ordered("==", a[0], b[0])
        return builder.or_(less, builder.and_(equal, builder.fcmp_ordered("<", a[1], b[1])))
    first = builder.fsub(a[0], b[0])
    t, f = two_sum(builder, a[1], builder.fneg(b[1]))
    s, g = two_sum(builder, first, t)
    rest = builder.fadd(g, builder.fadd(f, builder.fsub(a[2], b[2])))
    below = builder.fcmp_ordered("<", builder.fadd(s, rest), constant(FLOATS, 0.0))
    return builder.select(is_finite(builder, first), below, less)


@intrinsic
def unreached(typingctx, parts):
    """+inf in every lane, in as many parts as the tuple has entries."""
    result = types.UniTuple(FLOATS, len(parts))

    def codegen(context, builder, sig, args):
        values = [float("inf"), *[0.0] * (len(parts) - 1)]
        return context.make_tuple(builder, result, [constant(FLOATS, v) for v in values])

    return result(parts), codegen


@intrinsic
def from_floats(typingctx, expansion, vector):
    """The vector as expansions of as many parts."""

    def codegen(context, builder, sig, args):
        rest = [constant(FLOATS, 0.0)] * (len(expansion) - 1)
        return context.make_tuple(builder, expansion, [args[1], *rest])

    return expansion(expansion, vector), codegen


@intrinsic
def with_lane(typingctx, expansion, lane, number):
    """The expansion, in one lane the number."""

    def codegen(context, builder, sig, args):
        order = ir.Constant(
            ir.VectorType(ir.IntType(64), WIDE),
            [ir.Constant(ir.IntType(64), k) for k in range(WIDE)],
        )
        index = splat_value(builder, Vector(types.int64, WIDE), args[1])
        chosen = builder.icmp_signed("==", order, index)
        values = [splat_value(builder, FLOATS, args[2])]
        values += [constant(FLOATS, 0.0)] * (len(expansion) - 1)
        parts = [
            builder.select(chosen, value, part)
            for value, part in zip(values, parts_of(builder, args[0]), strict=True)
        ]
        return context.make_tuple(builder, expansion, parts)

    return expansion(expansion, types.int64, types.float64), codegen


@intrinsic
def least(typingctx, a, b):
    """The smaller of two expansions, b where they are equal; as bits, the lanes where it is a."""
    result = types.Tuple((a, types.uint32))

    def codegen(context, builder, sig, args):
        left, right = (parts_of(builder, v) for v in args)
        mask = is_less(builder, left, right)
        chosen = [builder.select(mask, x, y) for x, y in zip(left, right, strict=True)]
        bits = builder.bitcast(mask, ir.IntType(WIDE))
        return context.make_tuple(builder, result, (context.make_tuple(builder, a, chosen), bits))

    return result(a, b), codegen


@intrinsic
def not_above(typingctx, a, b):
    """As bits, the lanes where a <= b of two vectors."""

    def codegen(context, builder, sig, args):
        mask = builder.fcmp_ordered("<=", *args)
        return builder.bitcast(mask, ir.IntType(WIDE))

    return types.uint32(a, b), codegen


@intrinsic
def apart(typingctx, a, b):
    """a - b of two expansions of three parts, rounded once; +inf where a is."""

    def codegen(context, builder, sig, args):
        left, right = (parts_of(builder, v) for v in args)
        s, e = two_sum(builder, left[0], builder.fneg(right[0]))
        t, f = two_sum(builder, left[1], builder.fneg(right[1]))
        s, g = two_sum(builder, s, t)
        rest = builder.fadd(f, builder.fsub(left[2], right[2]))
        difference = builder.fadd(s, builder.fadd(g, builder.fadd(e, rest)))
        infinity = constant(FLOATS, float("inf"))
        reached = builder.fcmp_ordered("<", left[0], infinity)
        return builder.select(reached, difference, infinity)

    return FLOATS(a, b), codegen


@intrinsic
def half(typingctx, vector, upper):
    """The first or the second half of the lanes; upper: a literal."""
    if not isinstance(upper, types.IntegerLiteral):
        return None
    n = vector.lanes // 2
    result = Vector(vector.dtype, n)

    def codegen(context, builder, sig, args):
        order = [upper.literal_value * n + k for k in range(n)]
        return shuffle(builder, args[0], args[0], order)

    return result(vector, upper), codegen


@intrinsic
def plus(typingctx, a, d, lost):
    """The expansion a plus the vector d, and `lost`, integers with bits set besides the sign once
    two parts were too few.

    +inf stays +inf. With two parts, -inf is not allowed.
    """
    result = types.Tuple((a, lost))

    def codegen(context, builder, sig, args):
        r, d, told = parts_of(builder, args[0]), args[1], args[2]
        zero, infinity = (constant(FLOATS, v) for v in (0.0, float("inf")))
        s, e = two_sum(builder, r[0], d)
        if len(r) == 1:
            parts = [s]
        elif len(r) == 2:
            inside = builder.fcmp_ordered("<", s, infinity)
            t, f = two_sum(builder, r[1], builder.select(inside, e, zero))
            told = builder.or_(told, builder.bitcast(f, told.type))
            h, rest = two_sum(builder, s, t)
            parts = [h, builder.select(inside, rest, zero)]
        else:
            inside = is_finite(builder, s)
            t, f = two_sum(builder, r[1], e)
            t, u = two_sum(builder, t, builder.fadd(r[2], f))
            h, t = two_sum(builder, s, t)
            h = builder.select(inside, h, s)
            for term in (r[0], d):  # beside -inf
                h = builder.select(builder.fcmp_ordered("==", term, infinity), infinity, h)
            rest = two_sum(builder, t, u)
            parts = [h, *(builder.select(inside, part, zero) for part in rest)]
        return context.make_tuple(builder, result, (context.make_tuple(builder, a, parts), told))

    return result(a, d, lost), codegen
