"""Every form of every CUDA kernel compiles for every GPU since 2018, within its registers.

Needs two packages of NVIDIA on the package index, no GPU and no CUDA toolkit: nvidia-cuda-nvrtc
compiles, nvidia-cuda-cuobjdump reads registers and spills. NVRTC is what CuPy compiles with;
reports are cached by content in build/ of the checkout.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.metadata
import json
import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from cuda_emulator import cache_directory, sources_of

from softdtw_kernels._cuda import features, tiny
from softdtw_kernels._cuda.features import FeatureVariant
from softdtw_kernels._cuda.fields import SOURCES
from softdtw_kernels._cuda.launcher import COMPILER_OPTIONS
from softdtw_kernels._cuda.plan import LARGEST_TEAM, fast_plan
from softdtw_kernels._cuda.tiny import TinyVariant
from softdtw_kernels._cuda.variants import Shape, Variant, variants

# Turing, Hopper and Blackwell in all forms; Ampere, Ada and the Blackwell of data centers without
# the slow arithmetic, which a neighbor has.
EVERYTHING = ("sm_75", "sm_90", "sm_120")
FAST_ONLY = ("sm_80", "sm_86", "sm_89", "sm_100")
MAIN = "sm_90"  # what has very many forms is compiled in all of them for this one only


def file_of(package: str, pattern: str) -> Path | None:
    """A file that a package installed, None without the package."""
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    found = [Path(str(f.locate())) for f in files if re.fullmatch(pattern, f.name)]
    return found[0] if found else None


NVRTC = file_of("nvidia-cuda-nvrtc", r"libnvrtc\.so\.\d+")
NVRTC_VERSION = importlib.metadata.version("nvidia-cuda-nvrtc") if NVRTC else None
CUOBJDUMP = file_of("nvidia-cuda-cuobjdump", "cuobjdump")
pytestmark = pytest.mark.skipif(
    NVRTC is None or CUOBJDUMP is None,
    reason="needs the packages nvidia-cuda-nvrtc and nvidia-cuda-cuobjdump (extra dev)",
)


THREADS_IN_BLOCK = 32 * LARGEST_TEAM


@dataclass(frozen=True)
class Budget:
    registers: int
    stack_bytes: int  # spills and arrays that are not in registers


@dataclass(frozen=True)
class Kernel:
    """One compiled form and what it may use."""

    source: str
    options: tuple[str, ...]
    budget: Budget
    fast: bool = True
    main_only: bool = False


def budget_of(variant: Variant) -> Budget:
    """By what runs beside it: 65,536 registers a multiprocessor.

    168 registers are twelve warps. In a gradient, rings and tiles in shared memory let nine run, of
    up to 224 registers, and four of two columns a lane in float64. The wide arithmetic is for the
    few items that the fast one marks: the limit is that of the hardware.
    """
    if variant.wide:
        return Budget(255, 192)
    if variant.order == 0:
        return Budget(168, 32)
    dear = variant.order == 2 or variant.dtype == torch.float64
    return Budget(240 if dear else 200, 64)


def budget_of_tiny(variant: TinyVariant) -> Budget:
    """Up to 8 columns of float32, registers for as many threads as the shared memory of a
    multiprocessor of sm_90 holds (gradients), or for ten blocks (values); fewer with lengths. Two
    words of stack are nothing in a thousand instructions. The others fit somehow.
    """
    if variant.columns > 8 or variant.dtype == torch.float64:
        return Budget(255, 72)
    if variant.restricted:
        return Budget(216 if variant.order else 128, 16)
    return Budget(144 if variant.order else 96, 8)


def tiny_kernels() -> list[Kernel]:
    """The S2DTW of VT-TWINS for every GPU, all forms for one."""
    found = {}
    for v in tiny.variants():
        everywhere = v.columns == 8 and v.weak and v.smoothing
        found[v.options] = Kernel(
            "tiny", v.options, budget_of_tiny(v), everywhere, main_only=not everywhere
        )
        exact = Kernel("tiny_exact", v.exact_options, Budget(255, 96), fast=False)
        found[v.exact_options] = exact
    return list(found.values())


def budget_from_features(variant: FeatureVariant) -> Budget:
    """Blocks of 160 threads: 128 registers are three of them on a multiprocessor, 168 two.

    On Hopper and after the launch bounds ask for room for four, 96 registers, in float32, for which
    a few words of stack are a fair price; in float64 a few more are.
    """
    if variant.wide:
        return Budget(255, 192)
    return Budget(128, 32) if variant.dtype == torch.float32 else Budget(168, 64)


def kernels() -> list[Kernel]:
    found = [Kernel("lattice", v.options, budget_of(v), not v.wide) for v in variants()]
    found += [
        Kernel("features", v.options, budget_from_features(v), not v.wide)
        for v in features.variants()
    ]
    found += tiny_kernels()
    for cost in ("float", "double"):
        define = f"-DWITH_COST={cost}"
        for order in (0, 1):
            budget = Budget(96, 16)
            found.append(Kernel("smoothing", (define, f"-DWITH_ORDER={order}"), budget))
        found.append(Kernel("distances", (define,), Budget(128, 0)))
    return found


class Compiler:
    """The part of NVRTC that is needed, through ctypes."""

    def __init__(self, library: Path) -> None:
        # NVRTC opens its builtins by name: loaded here, they need not be on the search path.
        for builtins in library.parent.glob("libnvrtc-builtins.so.*"):
            ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
        self.nvrtc = ctypes.CDLL(str(library))

    def text(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        getattr(self.nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        getattr(self.nvrtc, f"nvrtcGet{what}")(program, buffer)
        return buffer.raw

    def compile(self, kernel: Kernel, architecture: str) -> bytes:
        """Machine code, compiled as CuPy does it."""
        code = (SOURCES / f"{kernel.source}.cu").read_bytes()
        program = ctypes.c_void_p()
        name = f"{kernel.source}.cu".encode()
        self.nvrtc.nvrtcCreateProgram(ctypes.byref(program), code, name, 0, None, None)
        # CuPy adds the last one.
        options = (*COMPILER_OPTIONS, *kernel.options, f"-arch={architecture}", "-ftz=true")
        array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        failed = self.nvrtc.nvrtcCompileProgram(program, len(options), array)
        log = self.text(program, "ProgramLog").decode().strip("\0 \n")
        assert not failed, f"{kernel.source} {kernel.options} for {architecture}:\n{log[:3000]}"
        assert "warning" not in log, log[:3000]
        return self.text(program, "CUBIN")


def resources(machine_code: bytes) -> tuple[int, int]:
    """Registers a thread, and bytes of stack and local memory."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(machine_code)
        file.flush()
        report = subprocess.run(
            [str(CUOBJDUMP), "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    numbers = [int(re.search(rf"{name}:(\d+)", report)[1]) for name in ("REG", "STACK", "LOCAL")]
    return numbers[0], numbers[1] + numbers[2]


def report(kernel: Kernel, architecture: str, compiler: Compiler) -> tuple[int, int]:
    options = [o for o in COMPILER_OPTIONS if not o.startswith("-I")]  # names where the checkout is
    key = json.dumps([NVRTC_VERSION, kernel.source, kernel.options, architecture, options])
    digest = hashlib.sha256(key.encode() + sources_of(SOURCES, f"{kernel.source}.cu")).hexdigest()
    cached = cache_directory() / f"nvrtc-{digest[:24]}.json"
    if cached.exists():
        return tuple(json.loads(cached.read_text()))
    used = resources(compiler.compile(kernel, architecture))
    temporary = cached.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(used))
    temporary.replace(cached)
    return used


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "architecture" in metafunc.fixturenames:
        metafunc.parametrize("architecture", EVERYTHING + FAST_ONLY)


PARTS = 4  # which different processes may take


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_every_kernel_compiles_within_its_budget(architecture: str, part: int) -> None:
    compiler = Compiler(NVRTC)
    beyond = []
    for kernel in kernels()[part::PARTS]:
        if architecture in FAST_ONLY and not kernel.fast:
            continue
        if kernel.main_only and architecture != MAIN:
            continue
        registers, stack = report(kernel, architecture, compiler)
        budget = kernel.budget
        # What runs beside each other was measured on MAIN alone, and is less on most others, whose
        # shared memory leaves room for six warps.
        free = kernel.source == "lattice" and architecture != MAIN
        most = 255 if free else budget.registers
        if kernel.source == "tiny" and architecture == "sm_120":
            most += 8  # nine blocks run where ten would, since small values keep their digits
        if registers > most or stack > budget.stack_bytes:
            beyond.append(f"{kernel.source} {' '.join(kernel.options)}: {registers}, {stack} bytes")
    assert not beyond, "registers and stack beyond the budget:\n" + "\n".join(beyond)


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
    assert f"__launch_bounds__({THREADS_IN_BLOCK}, 1) lattice(" in text
