"""Subnormal numbers count as 0 inside a kernel: flows times weights underflow where a path is sure,
and each subnormal result costs a processor a hundred cycles.

    before = flush_subnormals()
    ...                          # nothing that can raise: an error would leave without restoring
    restore(before)

A kernel allocates what it needs before it begins to flush. The switch belongs to the thread, and
is put back before the kernel returns: neither torch nor the caller ever sees it. On a processor
without a known switch nothing is set, and results are the same but for gradients below the smallest
normal number, which are not 0 there.
"""

from __future__ import annotations

import platform
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .simd import call_llvm

# Bits of the control register: on x86 for results (15) and operands (6), on AArch64 for both.
SWITCH = {
    "x86_64": (1 << 15) | (1 << 6),
    "amd64": (1 << 15) | (1 << 6),
    "aarch64": 1 << 24,
    "arm64": 1 << 24,
}.get(platform.machine().lower(), 0)
ON_ARM = platform.machine().lower() in ("aarch64", "arm64")


def read_control(builder: Any) -> Any:
    if ON_ARM:
        return call_llvm(builder, "llvm.aarch64.get.fpcr", ir.IntType(64), [])
    memory = cgutils.alloca_once(builder, ir.IntType(32))
    call_llvm(builder, "llvm.x86.sse.stmxcsr", ir.VoidType(), [memory])
    return builder.zext(builder.load(memory), ir.IntType(64))


def write_control(builder: Any, value: Any) -> None:
    if ON_ARM:
        call_llvm(builder, "llvm.aarch64.set.fpcr", ir.VoidType(), [value])
        return
    memory = cgutils.alloca_once(builder, ir.IntType(32))
    builder.store(builder.trunc(value, ir.IntType(32)), memory)
    call_llvm(builder, "llvm.x86.sse.ldmxcsr", ir.VoidType(), [memory])


@intrinsic
def flush_subnormals(typingctx):
    """Turn the switch on; returns the control register as it was."""

    def codegen(context, builder, sig, args):
        if SWITCH == 0:
            return ir.Constant(ir.IntType(64), 0)
        before = read_control(builder)
        write_control(builder, builder.or_(before, ir.Constant(ir.IntType(64), SWITCH)))
        return before

    return types.uint64(), codegen


@intrinsic
def restore(typingctx, before):
    """Put the control register back to what flush_subnormals returned."""

    def codegen(context, builder, sig, args):
        if SWITCH:
            write_control(builder, args[0])
        return context.get_dummy_value()

    return types.void(types.uint64), codegen
