"""Every form of every CUDA kernel compiles for every GPU since 2018, within its registers.

What is compiled and what it may use: cuda_registers.py, whose records spare most of the compiling.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cuda_instructions import (
    FIXED,
    LATTICE,
    NVDISASM,
    PATTERN,
    counted,
    kernel_of,
    recorded,
    seal_of,
)
from cuda_registers import (
    ARCHITECTURES,
    CUOBJDUMP,
    MAIN,
    NVRTC,
    NVRTC_VERSION,
    THREADS_IN_BLOCK,
    Compiler,
    compiled,
    digest_of,
    kernels_of,
    name_of,
    read_records,
)

from benchmarks.gpu_stamps import ARRAY, OPTION
from softdtw_kernels._cuda import tiny
from softdtw_kernels._cuda.fields import SOURCES
from softdtw_kernels._cuda.plan import fast_plan
from softdtw_kernels._cuda.variants import Shape, variants

needs_nvrtc = pytest.mark.skipif(
    NVRTC is None or CUOBJDUMP is None,
    reason="needs the packages nvidia-cuda-nvrtc and nvidia-cuda-cuobjdump (extra dev)",
)
SAMPLE = 64  # one recorded form in so many is compiled all the same: others after every change


@needs_nvrtc
@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_kernel_compiles_within_its_budget(architecture: str) -> None:
    version, records = read_records()
    beyond, denied, stale = [], [], []
    for kernel in kernels_of(architecture):
        name, digest = name_of(kernel), digest_of(kernel, architecture)
        record = records.get((name, architecture))
        if record is None or not record.tells(digest):
            stale.append(name)
            registers, stack = compiled(kernel, architecture)
        else:
            registers, stack = record.registers, record.stack
            if int(digest, 16) % SAMPLE == 0:
                found = compiled(kernel, architecture)
                if found != (registers, stack):
                    denied.append(f"{name}: recorded {registers}, {stack}; compiled {found}")
        budget = kernel.budget
        # What runs beside each other was measured on MAIN alone, and is less on most others, whose
        # shared memory leaves room for six warps.
        free = kernel.source == "lattice" and architecture != MAIN
        most = 255 if free else budget.registers
        if kernel.source == "tiny" and architecture == "sm_120":
            most += 8  # nine blocks run where ten would, since small values keep their digits
        if registers > most or stack > budget.stack_bytes:
            beyond.append(f"{name}: {registers}, {stack} bytes")
    assert not beyond, "registers and stack beyond the budget:\n" + "\n".join(beyond)
    assert not denied, "records that the compiler denies:\n" + "\n".join(denied)
    if version == NVRTC_VERSION:
        assert not stale, "`make registers` records anew:\n" + "\n".join(stale)


def test_a_record_that_is_changed_by_hand_counts_for_nothing() -> None:
    records = read_records()[1]
    for (name, architecture), record in list(records.items())[:3]:
        kernel = next(k for k in kernels_of(architecture) if name_of(k) == name)
        digest = digest_of(kernel, architecture)
        assert record.tells(digest) and not record.tells(digest[::-1])
        for other in ({"registers": record.registers + 1}, {"stack": record.stack + 8}):
            assert not replace(record, **other).tells(digest)


@needs_nvrtc
def test_counts_of_instructions_are_those_of_this_source() -> None:
    for variant in (FIXED, LATTICE, PATTERN):
        seal, found = recorded(variant)
        if read_records()[0] == NVRTC_VERSION:
            assert seal == seal_of(variant, found), "`make registers` counts anew"
        assert seal != seal_of(variant, {loop: count - 1 for loop, count in found.items()})


@needs_nvrtc
@pytest.mark.slow
def test_kernels_with_marks_compile() -> None:
    """Those of benchmarks/gpu_stamps.py; to see them run takes no GPU: test_gpu_session.py."""
    plain = kernel_of(next(v for v in variants() if v.order == 0 and not v.wide))
    marked = replace(plain, options=(*plain.options, OPTION))
    assert ARRAY.encode() in Compiler(NVRTC).compile(marked, MAIN)


@needs_nvrtc
@pytest.mark.skipif(NVDISASM is None, reason="needs the package nvidia-cuda-nvdisasm (group dev)")
@pytest.mark.slow
def test_steady_loops_of_fixed_point_take_few_instructions() -> None:
    """A cell, on Hopper: what makes these kernels the quickest."""
    most = {
        "Short forward": 24,
        "Short recomputing": 29,
        "Long forward": 40,
        "Long recomputing": 46,
        "backward": 12,
    }
    found = counted(FIXED)
    assert found.keys() == most.keys()
    assert all(found[loop] <= count for loop, count in most.items()), found


@needs_nvrtc
@pytest.mark.skipif(NVDISASM is None, reason="needs the package nvidia-cuda-nvdisasm (group dev)")
@pytest.mark.slow
def test_patterns_cost_little_in_the_steady_loops() -> None:
    """Less repeats 1.15 times the plain operator at most, open ends 1.3: both are one form."""
    plain, patterns = counted(LATTICE), counted(PATTERN)
    loops = "Narrow forward", "Narrow recomputing", "Scaled forward", "Scaled recomputing"
    assert {*loops, "backward"} <= plain.keys() & patterns.keys()
    for kind in "Narrow", "Scaled":
        of_gradient = f"{kind} forward", f"{kind} recomputing", "backward"
        in_all = [sum(counts[loop] for loop in of_gradient) for counts in (plain, patterns)]
        assert in_all[1] <= 1.12 * in_all[0]
        assert patterns[of_gradient[0]] <= 1.15 * plain[of_gradient[0]]


@pytest.mark.parametrize("limit", [48 << 10, 64 << 10, 99 << 10, 227 << 10])
def test_shared_memory_of_every_launch_fits(limit: int) -> None:
    """48 KiB are there on every GPU; beyond, the limits of Turing, Ada and Hopper."""
    for order in (0, 1, 2):
        for pairs in (1, 40, 500, 5000):
            for m in (1, 33, 200, 1000, 16000, 70_000):
                for dtype in (torch.float32, torch.float64):
                    for family in (None, "block", "long", "warp"):
                        shape = Shape(dtype, pairs, 500, m, False, -1)
                        if family == "block" and m > 16_000:
                            continue  # never chosen: more strips than flags that fit
                        plan = fast_plan(shape, order, 132, limit, family)
                        assert 0 <= plan.shared_bytes() <= limit, plan
                        assert plan.warps_in_block * 32 <= THREADS_IN_BLOCK
                        assert plan.warps % plan.warps_in_block == 0

    for variant in tiny.variants():
        assert not variant.shared or variant.threads * variant.kept_bytes <= 48 << 10


def test_launch_bounds_are_those_of_the_largest_block() -> None:
    text = (SOURCES / "lattice.cu").read_text()
    assert "__launch_bounds__(THREADS, 1) lattice(" in text
    assert f"? {THREADS_IN_BLOCK} : {3 * THREADS_IN_BLOCK // 2};" in text
