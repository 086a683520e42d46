"""What threads that work on one pair tell each other: counters in an array of int64.

Requirements: numba.
"""

from __future__ import annotations

import platform
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .jit import inline
from .simd import call_llvm

SPINS = 1000  # looks at a counter before the processor is given to another thread
MACHINE = platform.machine().lower()
CAN_YIELD = platform.system() in ("Linux", "Darwin")


def place(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    return builder.gep(context.make_array(array_type)(context, builder, array).data, [index])


@intrinsic
def take(typingctx, counters, index):
    """Add 1 to a counter; what it was before."""

    def codegen(context, builder, sig, args):
        one = ir.Constant(ir.IntType(64), 1)
        at = place(context, builder, sig.args[0], *args)
        return builder.atomic_rmw("add", at, one, "seq_cst")

    return types.int64(counters, types.intp), codegen


@intrinsic
def look(typingctx, counters, index):
    """A counter, and with it all that its writer had written before."""

    def codegen(context, builder, sig, args):
        at = place(context, builder, sig.args[0], *args)
        return builder.load_atomic(at, "acquire", 8, typ=ir.IntType(64))

    return types.int64(counters, types.intp), codegen


@intrinsic
def tell(typingctx, counters, index, value):
    """Set a counter, behind all that was written before."""

    def codegen(context, builder, sig, args):
        at = place(context, builder, sig.args[0], *args[:2])
        builder.store_atomic(args[2], at, "release", 8)
        return context.get_dummy_value()

    return types.void(counters, types.intp, types.int64), codegen


@intrinsic
def pause(typingctx):
    """Tell the processor that this thread waits."""

    def codegen(context, builder, sig, args):
        if MACHINE in ("x86_64", "amd64"):
            call_llvm(builder, "llvm.x86.sse2.pause", ir.VoidType(), [])
        elif MACHINE in ("aarch64", "arm64"):
            call_llvm(builder, "llvm.aarch64.hint", ir.VoidType(), [ir.Constant(ir.IntType(32), 1)])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def give_way(typingctx):
    """Let another thread have the processor, where the system has a call for it."""

    def codegen(context, builder, sig, args):
        if CAN_YIELD:
            of_type = ir.FunctionType(ir.IntType(32), [])
            builder.call(cgutils.get_or_insert_function(builder.module, of_type, "sched_yield"), [])
        return context.get_dummy_value()

    return types.void(), codegen


@inline
def wait(counters, index, least):
    """Until the counter is at least so large."""
    spins = 0
    while look(counters, index) < least:
        spins += 1
        pause()
        if spins >= SPINS:
            give_way()
