"""Every form of every CUDA kernel, what it may use of a GPU, and what NVRTC says that it uses.

    python tests/cuda_registers.py        compiles what changed and writes cuda_registers.json

Needs two packages of NVIDIA on the package index, no GPU and no CUDA toolkit: nvidia-cuda-nvrtc
compiles, nvidia-cuda-cuobjdump reads registers and spills. NVRTC is what CuPy compiles with.

All forms for seven GPUs take ten minutes of a core, and the result depends on nothing but source,
options and compiler. So it is recorded under a seal: a digest of these and of the result, which no
longer fits once either has changed. test_cuda_nvrtc.py compiles what no record tells, and a small
share of what one does.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from cuda_emulator import cache_directory, sources_of

from softdtw_kernels._cuda import features, fixed, pattern, tiny
from softdtw_kernels._cuda.features import FeatureVariant
from softdtw_kernels._cuda.fields import SOURCES
from softdtw_kernels._cuda.launcher import COMPILER_OPTIONS
from softdtw_kernels._cuda.plan import LARGEST_TEAM
from softdtw_kernels._cuda.tiny import TinyVariant
from softdtw_kernels._cuda.variants import Variant, variants

RECORDS = Path(__file__).with_suffix(".json")
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
    up to 224 registers, and four of two columns a lane in float64, whose values let seven run. The
    wide arithmetic is for the few items that the fast one marks: the limit is that of the hardware.
    """
    if variant.wide:
        return Budget(255, 480 if variant.pattern else 192)
    if variant.pattern:  # the compiler is told to keep to 168, but not in gradients of doubles
        dear = variant.dtype == torch.float64 and variant.order == 1
        return Budget(255, 64) if dear else Budget(168, 128)
    two_doubles = variant.dtype == torch.float64 and variant.columns == 2
    if variant.order == 0:
        return Budget(184 if two_doubles else 168, 32)
    dear = variant.order == 2 or variant.dtype == torch.float64
    return Budget(248 if two_doubles else 240 if dear else 208, 64)


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
    return Budget(128, 32) if variant.dtype == torch.float32 else Budget(168, 72)


def kernels() -> list[Kernel]:
    of_lattice = variants() + pattern.variants()
    found = [Kernel("lattice", v.options, budget_of(v), not v.wide) for v in of_lattice]
    found += [
        Kernel("features", v.options, budget_from_features(v), not v.wide)
        for v in features.variants()
    ]
    # Registers for as many warps as run beside each other; nothing in memory.
    found += [
        Kernel("fixed", v.options, Budget(255 if v.order else 168, 0)) for v in fixed.variants()
    ]
    found += tiny_kernels()
    # A stack for what is computed once an item; compiled for one GPU, as most forms of tiny.cu.
    found += [
        Kernel("tiny_pattern", v.options, Budget(168, 256), main_only=True)
        for v in pattern.tiny_variants()
    ]
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


ARCHITECTURES = EVERYTHING + FAST_ONLY


def kernels_of(architecture: str) -> list[Kernel]:
    """The kernels that are compiled for a GPU."""
    return [
        kernel
        for kernel in kernels()
        if (kernel.fast or architecture in EVERYTHING)
        and (architecture == MAIN or not kernel.main_only)
    ]


def name_of(kernel: Kernel) -> str:
    return " ".join((kernel.source, *(o.removeprefix("-DWITH_") for o in kernel.options)))


def digest_of(kernel: Kernel, architecture: str) -> str:
    """Of all that the machine code depends on."""
    options = [o for o in COMPILER_OPTIONS if not o.startswith("-I")]  # names where the checkout is
    key = json.dumps([NVRTC_VERSION, kernel.source, kernel.options, architecture, options])
    text = key.encode() + sources_of(SOURCES, f"{kernel.source}.cu")
    return hashlib.sha256(text).hexdigest()[:16]


def compiled(kernel: Kernel, architecture: str) -> tuple[int, int]:
    """Registers and bytes of stack by NVRTC; kept in build/, since a change meets many forms."""
    cached = cache_directory() / f"nvrtc-{digest_of(kernel, architecture)}.json"
    if not cached.exists():
        used = resources(Compiler(NVRTC).compile(kernel, architecture))
        temporary = cached.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
        temporary.write_text(json.dumps(used))
        temporary.replace(cached)
    registers, stack = json.loads(cached.read_text())
    return registers, stack


@dataclass(frozen=True)
class Record:
    seal: str
    registers: int
    stack: int

    def tells(self, digest: str) -> bool:
        """Whether this was written for what has this digest, and is as it was written."""
        return self.seal == seal_of(digest, self.registers, self.stack)


def seal_of(digest: str, registers: int, stack: int) -> str:
    return hashlib.sha256(f"{digest} {registers} {stack}".encode()).hexdigest()[:16]


def read_records() -> tuple[str, dict[tuple[str, str], Record]]:
    """The version of the compiler, and the records by name of the kernel and architecture."""
    content = json.loads(RECORDS.read_text(encoding="utf-8"))
    return content["nvrtc"], {
        (name, architecture): Record(*entry)
        for name, entries in content["kernels"].items()
        for architecture, entry in entries.items()
    }


def write_records() -> None:
    """Compile what no record tells, and write all records, a line for each kernel."""
    known = read_records()[1] if RECORDS.exists() else {}

    def record(form: tuple[Kernel, str]) -> Record:
        kernel, architecture = form
        digest, old = digest_of(*form), known.get((name_of(kernel), architecture))
        if old and old.tells(digest):
            return old
        if old and old.seal == digest:  # as records were before they had seals
            used = old.registers, old.stack
        else:
            used = compiled(*form)
        return Record(seal_of(digest, *used), *used)

    forms = [(k, a) for a in ARCHITECTURES for k in kernels_of(a)]
    lines: dict[str, dict[str, tuple[object, ...]]] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for (kernel, a), found in zip(forms, pool.map(record, forms), strict=True):
            entry = (found.seal, found.registers, found.stack)
            lines.setdefault(name_of(kernel), {})[a] = entry
    text = ",\n".join(f"{json.dumps(name)}: {json.dumps(e)}" for name, e in sorted(lines.items()))
    head = f'{{"nvrtc": {json.dumps(NVRTC_VERSION)}, "columns": ["seal", "registers", "stack"],'
    RECORDS.write_text(f'{head}\n"kernels": {{\n{text}\n}}}}\n', encoding="utf-8")


if __name__ == "__main__":
    if NVRTC is None or CUOBJDUMP is None:
        sys.exit("needs the packages nvidia-cuda-nvrtc and nvidia-cuda-cuobjdump (extra dev)")
    write_records()
