"""Floating point in the lanes of vectors: products rounded once, and exponents as integers."""

from __future__ import annotations

from numba import types
from numba.extending import intrinsic

from .simd import FLOAT_OF, INTEGER_OF, Vector, call_llvm, constant, suffix


@intrinsic
def fma(typingctx, a, b, c):
    """a * b + c, rounded once."""

    def codegen(context, builder, sig, args):
        return call_llvm(builder, f"llvm.fma.{suffix(a)}", a.ir_type, list(args))

    return a(a, b, c), codegen


@intrinsic
def fms(typingctx, a, b, c):
    """a * b - c, rounded once."""

    def codegen(context, builder, sig, args):
        negative = builder.fneg(args[2])
        return call_llvm(builder, f"llvm.fma.{suffix(a)}", a.ir_type, [*args[:2], negative])

    return a(a, b, c), codegen


@intrinsic
def fnma(typingctx, a, b, c):
    """c - a * b, rounded once."""

    def codegen(context, builder, sig, args):
        negative = builder.fneg(args[0])
        return call_llvm(builder, f"llvm.fma.{suffix(a)}", a.ir_type, [negative, *args[1:]])

    return a(a, b, c), codegen


@intrinsic
def nearest(typingctx, a):
    """Rounded to the nearest integer, ties to even."""

    def codegen(context, builder, sig, args):
        return call_llvm(builder, f"llvm.rint.{suffix(a)}", a.ir_type, list(args))

    return a(a), codegen


@intrinsic
def to_integer(typingctx, a):
    """The integer in each lane of an integral float vector, at most 2^30 (float32) or 2^50
    (float64) in size.
    """
    result = Vector(INTEGER_OF[a.dtype], a.lanes)

    def codegen(context, builder, sig, args):
        if a.dtype == types.float32:
            return builder.fptosi(args[0], result.ir_type)
        # Few processors convert to 64 bits. Added to 1.5 * 2^52, the integer stands in the low
        # bits.
        magic = constant(a, 6755399441055744.0)
        bits = builder.bitcast(builder.fadd(args[0], magic), result.ir_type)
        return builder.sub(bits, constant(result, 0x4338000000000000))

    return result(a), codegen


@intrinsic
def to_float(typingctx, k):
    """The floats nearest to integers, of 64 bits if at most 2^51 in size."""
    result = Vector(FLOAT_OF[k.dtype], k.lanes)

    def codegen(context, builder, sig, args):
        if k.dtype.bitwidth == 32:
            return builder.sitofp(args[0], result.ir_type)
        bits = builder.add(args[0], constant(k, 0x4338000000000000))  # as in to_integer
        magic = constant(result, 6755399441055744.0)
        return builder.fsub(builder.bitcast(bits, result.ir_type), magic)

    return result(k), codegen


EXPONENT = {32: (23, 127), 64: (52, 1023)}  # bits of the fraction, bias


@intrinsic
def power_of_two(typingctx, k):
    """2^k as floats for integers k <= 0; exactly 0 at the smallest exponent and below."""
    result = Vector(FLOAT_OF[k.dtype], k.lanes)

    def codegen(context, builder, sig, args):
        fraction, bias = EXPONENT[k.dtype.bitwidth]
        low = constant(k, -bias)
        k0 = builder.select(builder.icmp_signed(">", args[0], low), args[0], low)
        bits = builder.shl(builder.add(k0, constant(k, bias)), constant(k, fraction))
        return builder.bitcast(bits, result.ir_type)

    return result(k), codegen


@intrinsic
def scaled(typingctx, m, k):
    """m 2^k for 1 <= m < 2 and integers k <= 0; exactly 0 where m 2^k is subnormal."""

    def codegen(context, builder, sig, args):
        fraction, bias = EXPONENT[k.dtype.bitwidth]
        inside = builder.icmp_signed(">", args[1], constant(k, -bias))
        moved = builder.shl(args[1], constant(k, fraction))
        bits = builder.add(builder.bitcast(args[0], k.ir_type), moved)
        return builder.bitcast(builder.select(inside, bits, constant(k, 0)), m.ir_type)

    return m(m, k), codegen


@intrinsic
def split_exponent(typingctx, a):
    """(m, e) with a = m 2^e and 1 <= m < 2, for positive normal floats."""
    integer = Vector(INTEGER_OF[a.dtype], a.lanes)
    result = types.Tuple((a, integer))

    def codegen(context, builder, sig, args):
        fraction, bias = EXPONENT[a.dtype.bitwidth]
        bits = builder.bitcast(args[0], integer.ir_type)
        e = builder.sub(builder.lshr(bits, constant(integer, fraction)), constant(integer, bias))
        kept = builder.and_(bits, constant(integer, (1 << fraction) - 1))
        m = builder.or_(kept, constant(integer, bias << fraction))
        return context.make_tuple(builder, result, (builder.bitcast(m, a.ir_type), e))

    return result(a), codegen
