"""The vector kernels for processors that are not at hand: LLVM makes their machine code here.

A kernel is written in vectors of 512 bits, which LLVM splits into the registers of a processor.
What a processor has no instruction for is done lane by lane, or by a function of C: ten times
slower. These tests read the assembly: it has as many vector instructions as the registers ask for,
and none for a lane alone.
"""

from __future__ import annotations

import functools
import inspect
import platform
import re
from typing import Any, NamedTuple

import llvmlite.binding as llvm
import pytest
import torch
from llvmlite import ir as build
from numba import types

from softdtw_kernels import soft_dtw_from_cost
from softdtw_kernels._cpu import lanes, strips, subnormal

pytestmark = pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"),
    reason="the IR of the kernels is that of another processor, whose own parts are not known here",
)

# With a shape that each does.
KERNELS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "lanes": (lanes.solve, (64, 8, 8)),
    "strips": (strips.solve, (1, 64, 64)),
    "strips of one vector": (strips.solve, (1, 4, 2048)),
}


class Processor(NamedTuple):
    triple: str
    name: str
    bits: int  # of a vector register


ARM = Processor("aarch64-unknown-linux-gnu", "generic", 128)
APPLE = Processor("arm64-apple-macosx", "apple-m1", 128)
AVX2 = Processor("x86_64-unknown-linux-gnu", "x86-64-v3", 256)
WITHOUT_FMA = Processor("x86_64-unknown-linux-gnu", "x86-64-v2", 128)

# Fused products of whole registers and of one number, and arithmetic of one number.
ON_X86 = r"vfn?m(?:add|sub)\d+p[sd]", r"vfn?m(?:add|sub)\d+s[sd]", r"v?(?:add|sub|mul|div)s[sd]"
ON_ARM = r"fml[as]", r"fn?m(?:add|sub)", r"f(?:add|sub|mul|div)\s+[sd]\d"
# What vectors are asked for, by name: x86 calls through a register that holds the address.
FUNCTIONS_OF_C = r"\b_?(?:fma|rint)f?\b"


@functools.cache
def _ir_of(name: str, dtype: torch.dtype) -> str:
    """What Numba keeps of the compiled form of costs of this type, as text."""
    kernel, shape = KERNELS[name]
    cost = torch.rand(shape, dtype=dtype, generator=torch.Generator().manual_seed(0))
    soft_dtw_from_cost(cost.requires_grad_()).sum().backward()
    at = list(inspect.signature(kernel.py_func).parameters).index("floats")
    product = rf"@llvm\.fma\.v\d+f{dtype.itemsize * 8}"
    # A library from the cache has this module, and one that was just compiled makes it.
    forms = [
        str(entry.library._shared_module)
        for signature, entry in kernel.overloads.items()
        if signature[-1] == types.none  # no open ends
        and signature[at].ndim == (2 if name == "strips of one vector" else 1)
    ]
    return next(ir for ir in forms if re.search(product, ir))


def _assembly(ir: str, processor: Processor) -> list[str]:
    """The instructions for a processor.

    The IR holds two things of this one: its control register, which is not vector code, and the
    counter of who holds an array, for which a constant stands in.
    """
    machine = llvm.Target.from_triple(processor.triple).create_target_machine(
        cpu=processor.name, opt=1
    )
    ir = re.sub(r"target datalayout.*", f'target datalayout = "{machine.target_data}"', ir)
    ir = re.sub(r"target triple.*", f'target triple = "{processor.triple}"', ir)
    ir = re.sub(r"(?:tail )?call i8 @llvm\.x86\.atomic.*", "add i8 0, 0", ir)
    if not processor.triple.startswith("x86"):
        ir = "\n".join(line for line in ir.splitlines() if "@llvm.x86.sse" not in line)
    lines = machine.emit_assembly(llvm.parse_assembly(ir)).splitlines()
    return [line.strip() for line in lines if re.match(r"\t[^.]", line)]


def _count(pattern: str, lines: list[str]) -> int:
    return sum(re.match(pattern, line) is not None for line in lines)


@pytest.fixture(autouse=True, scope="module")
def _every_target() -> None:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()


CASES = [
    (kernel, dtype, processor)
    for kernel in KERNELS
    for dtype in (torch.float32, torch.float64)
    for processor in (ARM, AVX2)
]


@pytest.mark.parametrize(
    ("kernel", "dtype", "processor"),
    [*CASES, ("lanes", torch.float32, APPLE)],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_no_vector_is_done_lane_by_lane(
    kernel: str, dtype: torch.dtype, processor: Processor
) -> None:
    ir = _ir_of(kernel, dtype)
    fused = re.findall(r"call [^@]*<\d+ x (?:float|double)> @llvm\.fma\.v(\d+)f(\d+)", ir)
    registers = sum(int(width) * int(bits) // processor.bits for width, bits in fused)
    scalar = len(re.findall(r"= f(?:add|sub|mul|div) (?:\w+ )*(?:float|double) ", ir))
    lines = _assembly(ir, processor)
    whole, alone, arithmetic = ON_X86 if processor is AVX2 else ON_ARM
    assert registers > 50
    assert _count(whole, lines) >= registers
    assert _count(alone, lines) == 0
    # A block of code may be doubled for the sake of a jump; a vector would be 8 or 16 of them.
    assert _count(arithmetic, lines) <= 1.25 * scalar + 8, scalar
    assert not [line for line in lines if re.search(FUNCTIONS_OF_C, line)]


def test_a_processor_without_fused_products_is_noticed() -> None:
    """What the test above looks for is there where it must be."""
    ir = """
    target datalayout = ""
    target triple = ""
    declare <16 x float> @llvm.fma.v16f32(<16 x float>, <16 x float>, <16 x float>)
    define <16 x float> @product(<16 x float> %a, <16 x float> %b) {
      %c = call <16 x float> @llvm.fma.v16f32(<16 x float> %a, <16 x float> %b, <16 x float> %a)
      ret <16 x float> %c
    }
    """
    for processor, whole in (AVX2, 2), (WITHOUT_FMA, 0):
        lines = _assembly(ir, processor)
        assert _count(ON_X86[0], lines) == whole
        assert any(re.search(FUNCTIONS_OF_C, line) for line in lines) == (whole == 0)


def test_the_switch_of_subnormals_on_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads and writes the control register of floating point, and nothing else."""
    monkeypatch.setattr(subnormal, "ON_ARM", True)
    module = build.Module()
    function = build.Function(module, build.FunctionType(build.VoidType(), []), "switch")
    builder = build.IRBuilder(function.append_basic_block())
    before = subnormal.read_control(builder)
    subnormal.write_control(builder, builder.or_(before, build.Constant(before.type, 1 << 24)))
    builder.ret_void()
    header = 'target datalayout = ""\n'
    lines = [re.sub(r"\s+", " ", line).lower() for line in _assembly(header + str(module), ARM)]
    assert lines == [
        "mrs x8, fpcr", "orr x8, x8, #0x1000000", "msr fpcr, x8", "ret"
    ]  # fmt: skip
