"""Runs the CUDA kernels on the CPU: their source, by g++, with the runtime beside this file.

The compiler lets a kernel report every memory access to the runtime, which knows the buffers of
the launch and who synchronized with whom (emulator.cpp), and looks at them in `checked` launches.
The others run the same code: to compile it again without reports takes longer than they do.
Compiled objects are cached by content in build/ of the checkout, or in the directory that
SOFTDTW_EMULATOR_CACHE names.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import torch

from softdtw_kernels._cuda.fields import SOURCES
from softdtw_kernels._cuda.recipe import Argument, Buffer, Launch, addresses_of, word

HERE = Path(__file__).parent
SCHEDULES = {"ascending": 0, "descending": 1, "random": 2, "one warp ahead": 3}
COUNTED = ("fetched", "recomputed", "visited", "passed")  # chunks; as in notes.cuh
# Most kernels are compiled for a few small problems: passes that take longer than they save are
# left out, a quarter of the time. Values stay in registers, as at -O1, for what is in memory is
# checked, access by access.
WITHOUT = (
    "-fno-tree-loop-optimize", "-fno-ivopts", "-fno-tree-loop-im", "-fno-move-loop-invariants",
    "-fno-tree-dominator-opts", "-fno-tree-pta", "-fno-ipa-modref", "-fno-tree-sink",
    "-fno-tree-slsr", "-fno-cprop-registers", "-fno-if-conversion", "-fno-if-conversion2",
    "-fno-reorder-blocks", "-fno-shrink-wrap", "-fno-compare-elim", "-fira-algorithm=priority",
)  # fmt: skip
COMPILER = shutil.which(os.environ.get("CXX", "g++"))
NO_COMPILER = "the CUDA emulator needs a C++ compiler: none found as $CXX or g++"


class EmulatorError(Exception):
    """A kernel did what CUDA forbids."""


class _Launch(ctypes.Structure):
    _fields_ = [
        ("grid", ctypes.c_int64 * 3),
        ("block", ctypes.c_int64 * 3),
        ("shared_bytes", ctypes.c_int64),
        ("schedule", ctypes.c_int64),
        ("seed", ctypes.c_int64),
        ("resident", ctypes.c_int64),
        ("buffers", ctypes.c_int64),
        ("checked", ctypes.c_int64),
        ("flushes", ctypes.c_int64),
        ("begin", ctypes.c_void_p),
        ("size", ctypes.c_void_p),
        ("message", ctypes.c_char_p),
        ("message_size", ctypes.c_int64),
        ("switches", ctypes.c_int64),
        ("counts", ctypes.c_int64 * len(COUNTED)),
    ]


def cache_directory() -> Path:
    named = os.environ.get("SOFTDTW_EMULATOR_CACHE")
    directory = Path(named) if named else HERE.parents[1] / "build" / "cuda_emulator"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


@cache
def _supports(*flags: str) -> bool:
    command = [str(COMPILER), *flags, "-x", "c++", "-fsyntax-only", os.devnull]
    return subprocess.run(command, capture_output=True).returncode == 0


@contextmanager
def _whole_or_not_at_all(output: Path) -> Iterator[str]:
    """Write elsewhere, then rename: several test processes may want the same file."""
    with tempfile.NamedTemporaryFile(
        dir=output.parent, suffix=output.suffix, delete=False
    ) as temporary:
        pass
    try:
        yield temporary.name
        os.replace(temporary.name, output)
    finally:
        Path(temporary.name).unlink(missing_ok=True)


def _write(output: Path, text: bytes) -> None:
    with _whole_or_not_at_all(output) as temporary:
        Path(temporary).write_bytes(text)


def _run_compiler(command: Sequence[str], output: Path) -> None:
    with _whole_or_not_at_all(output) as temporary:
        done = subprocess.run([*command, "-o", temporary], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"the emulator's compiler failed:\n{done.stderr[:4000]}")


def _cached(name: str, command: Sequence[str], inputs: bytes, suffix: str) -> Path:
    digest = hashlib.sha256(inputs + "\0".join(command).encode()).hexdigest()[:20]
    output = cache_directory() / f"{name}-{digest}{suffix}"
    if not output.exists():
        _run_compiler(command, output)
    return output


@cache
def sources_of(directory: Path, name: str) -> bytes:
    """The text of a kernel's file after that of all that it includes from `directory`."""
    text = (directory / name).read_bytes()
    included = re.findall(rb'^\s*#\s*include\s*"(.+)"', text, re.MULTILINE)
    return b"".join(sources_of(directory, file.decode()) for file in included) + text


@cache
def _header(command: tuple[str, ...]) -> Path:
    """The header for -include, precompiled with these flags: half of a kernel's compilation."""
    source = HERE / "emulator.h"
    text = source.read_bytes()
    compiled = _cached("header", [*command, "-x", "c++-header", str(source)], text, ".h.gch")
    header = compiled.with_suffix("")  # what a compiler reads that does not take to the other
    if not header.exists():
        _write(header, text)
    return header


@cache
def load(source: str, options: tuple[str, ...], directory: Path = SOURCES) -> ctypes.CDLL:
    """Return the library of one compiled kernel; its launch function takes the kernel's entry."""
    common = (str(COMPILER), "-std=c++17", "-fPIC")
    runtime_source = HERE / "emulator.cpp"
    runtime = _cached(
        "runtime",
        [*common, "-O3", "-shared", str(runtime_source)],
        sources_of(HERE, runtime_source.name),
        ".so",
    )
    # Contraction is off and fma explicit in the kernels: the same arithmetic here and on the GPU.
    flags = (
        "-O1", *(WITHOUT if _supports(*WITHOUT) else ()), "-ffp-contract=off", "-w",
        "-fno-exceptions", "-fno-rtti", "-fno-asynchronous-unwind-tables",
        "-fsanitize=thread", "--param=tsan-instrument-func-entry-exit=0",
    )  # fmt: skip
    flags += ("-mfma",) if _supports("-mfma") else ()
    header = _header((*common, *flags))
    kernel = (directory / f"{source}.cu").as_posix()
    wrapper = f'#include "{kernel}"\nEMULATOR_ENTRY({source})\n'
    wrapper_file = (
        cache_directory() / f"{source}-{hashlib.sha256(wrapper.encode()).hexdigest()[:12]}.cpp"
    )
    if not wrapper_file.exists():
        _write(wrapper_file, wrapper.encode())
    # Without the libraries of C++, which only the runtime needs: linking would take longer.
    linked = ["-shared", "-nostdlib", str(wrapper_file), str(runtime), "-lm", "-lc"]
    library = _cached(
        source,
        [*common, *flags, "-include", str(header), *options, *linked],
        sources_of(directory, f"{source}.cu"),  # the names of header and runtime tell theirs
        ".so",
    )
    return ctypes.CDLL(str(library))


def _extent(tensor: torch.Tensor) -> tuple[int, int]:
    """First byte and size of the memory that a view can reach."""
    if tensor.numel() == 0:
        return tensor.data_ptr(), 0
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), (last + 1) * tensor.element_size()


class EmulatorLauncher:
    """Launches kernels on the CPU; `launches` lists source, options and context switches."""

    def __init__(
        self,
        multiprocessors: int = 2,
        schedule: str = "ascending",
        checked: bool = False,
        resident: int = 4,
        seed: int = 1,
        directory: Path = SOURCES,
        shared_limit: int = 227 << 10,
        family: str | None = None,
        flushes: bool = True,
    ) -> None:
        self.multiprocessors = multiprocessors
        self.shared_limit = shared_limit
        self.family = family
        self.schedule = schedule
        self.checked = checked
        self.flushes = flushes  # subnormal numbers to 0, as CuPy has it compiled
        self.resident = resident
        self.seed = seed
        self.directory = directory
        self.launches: list[tuple[str, tuple[str, ...], int]] = []
        self.counts: Counter[str] = Counter()  # of what the kernels note; see notes.cuh

    def run(self, launches: Sequence[Launch], buffers: Sequence[Buffer]) -> None:
        addresses = addresses_of(buffers)
        for launch in launches:
            fields: list[Argument] = launch.argument(addresses).view(np.int64).tolist()
            for (position, buffer, begin), end in zip(launch.places, launch.ends, strict=True):
                whole = buffers[buffer]
                if isinstance(whole, torch.Tensor):
                    part = whole if end is None else whole.view(torch.uint8)[begin:end]
                    assert part.data_ptr() == fields[position]
                    fields[position] = part  # its bounds are checked
            self.launch(*launch.kernel, *launch.grid, *launch.block, launch.shared_bytes, fields)

    def launch(
        self,
        source: str,
        options: tuple[str, ...],
        grid: int,
        block: int,
        shared_bytes: int,
        fields: Sequence[Argument],
    ) -> None:
        """Tensors among the fields are the memory that the kernel may touch."""
        library = load(source, tuple(options), self.directory)
        words = (ctypes.c_int64 * len(fields))(
            *[f.data_ptr() if isinstance(f, torch.Tensor) else word(f) for f in fields]
        )
        extents = [_extent(f) for f in fields if isinstance(f, torch.Tensor)]
        begin = (ctypes.c_uint64 * len(extents))(*[b for b, _ in extents])
        size = (ctypes.c_uint64 * len(extents))(*[s for _, s in extents])
        message = ctypes.create_string_buffer(1024)
        how = _Launch(
            (grid, 1, 1),
            (block, 1, 1),
            shared_bytes,
            SCHEDULES[self.schedule],
            self.seed,
            self.resident,
            len(extents),
            int(self.checked),
            int(self.flushes),
            ctypes.addressof(begin),
            ctypes.addressof(size),
            ctypes.cast(message, ctypes.c_char_p),
            len(message),
        )
        entry = getattr(library, f"emulator_entry_{source}")
        entry.restype = ctypes.c_int64
        of_struct = entry(None)
        assert of_struct == ctypes.sizeof(words), f"{source} takes {of_struct} bytes"
        failed = library.emulator_launch(
            entry, ctypes.byref(words), ctypes.c_int64(of_struct), ctypes.byref(how)
        )
        self.launches.append((source, tuple(options), how.switches))
        self.counts.update(dict(zip(COUNTED, how.counts, strict=True)))
        if failed:
            raise EmulatorError(message.value.decode())
