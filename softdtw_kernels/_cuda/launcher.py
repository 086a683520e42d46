"""Launches on a GPU: the kernels of source/, compiled and launched through CuPy.

Requirements: CuPy 14 or newer for CUDA 12 or 13, as the extras `softdtw-kernels[cuda12]` and
`[cuda13]` install it. Importing this module needs no CuPy; making a launcher does. Kernels run on
the current stream of torch and the device of the tensors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .fields import SOURCES
from .plan import SHARED_BYTES
from .recipe import Buffer, Launch, addresses_of

COMPILER_OPTIONS = ("-std=c++17", "--fmad=false", f"-I{SOURCES}")


@cache
def import_cupy() -> Any:
    """CuPy, or an ImportError that says how to get it."""
    if torch.version.hip:
        raise ImportError(
            f"the CUDA kernels need a GPU of NVIDIA, and this PyTorch is built for ROCm "
            f"{torch.version.hip}: pass backend='reference' (plain torch, slow), or move the "
            "tensors with .cpu()"
        )
    try:
        import cupy
        import cupy.cuda
    except ImportError as error:
        major = (torch.version.cuda or "").split(".")[0]
        extras = [f"softdtw-kernels[cuda{v}]" for v in ("12", "13") if major in ("", v)]
        raise ImportError(
            f"CUDA tensors need CuPy, which compiles the kernels, but: {error}. Install "
            f"the extra {' or '.join(extras)}, or pass backend='reference' (plain torch, slow)"
        ) from error
    return cupy


@cache
def source_code(source: str) -> str:
    """A kernel's text, with a digest of the headers.

    CuPy knows what it has compiled by this text and the options, in memory and on disk: it would
    not see that an included file has changed.
    """
    headers = b"".join(header.read_bytes() for header in sorted(SOURCES.glob("*.cuh")))
    text = (SOURCES / f"{source}.cu").read_text()
    return f"// headers {hashlib.sha256(headers).hexdigest()}\n{text}"


class CupyLauncher:
    """Launches on torch's current stream of one device."""

    family: str | None = None  # by shape

    def __init__(self, device: int) -> None:
        self.cupy = import_cupy()
        self.device = device
        self.multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
        attributes = self.cupy.cuda.Device(device).attributes
        self.shared_limit = int(attributes["MaxSharedMemoryPerBlockOptin"])
        self.kernels: dict[tuple[str, tuple[str, ...]], Callable[..., None]] = {}
        self.streams: dict[int, Any] = {}  # CuPy's, by torch's handle

    def run(self, launches: Sequence[Launch], buffers: Sequence[Buffer]) -> None:
        if not self.is_current():
            with torch.cuda.device(self.device), self.cupy.cuda.Device(self.device):
                self.run(launches, buffers)
            return
        addresses = addresses_of(buffers)
        # What torch.cuda.current_stream makes an object of, which costs two microseconds.
        handle = torch._C._cuda_getCurrentRawStream(self.device)
        stream = self.streams.get(handle) or self.stream_of(handle)
        for launch in launches:
            kernel = self.kernels.get(launch.kernel) or self.compile(*launch.kernel)
            kernel(
                launch.grid,
                launch.block,
                (launch.argument(addresses),),
                shared_mem=launch.shared_bytes,
                stream=stream,
            )

    def stream_of(self, handle: int) -> Any:
        """Of CuPy, for a stream of torch: it holds the handle and nothing else."""
        stream = self.cupy.cuda.Stream.from_external(StreamOfTorch(handle))
        self.streams[handle] = stream
        return stream

    def is_current(self) -> bool:
        """The device, for torch and for CuPy; asking costs less than setting."""
        current = self.cupy.cuda.runtime.getDevice()
        return bool(torch.cuda.current_device() == current == self.device)

    def compile(self, source: str, options: tuple[str, ...]) -> Callable[..., None]:
        """One kernel of source/, compiled for the device or loaded from CuPy's cache on disk."""
        of_any_device = self.module(source, options).get_function(source)
        if self.shared_limit > SHARED_BYTES:  # more than every launch may have must be asked for
            of_any_device.max_dynamic_shared_size_bytes = self.shared_limit
        kernel: Callable[..., None] = of_any_device.kernel
        self.kernels[source, options] = kernel
        return kernel

    def module(self, source: str, options: tuple[str, ...]) -> Any:
        all_options = (*COMPILER_OPTIONS, *options)
        return self.cupy.RawModule(code=source_code(source), options=all_options, backend="nvrtc")


class StreamOfTorch:
    """A stream of torch by the protocol that CuPy takes streams by: torch 2.6 has it not."""

    def __init__(self, stream: int) -> None:
        self.stream = stream

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.stream


@cache
def launcher_of(device: int) -> CupyLauncher:
    return CupyLauncher(device)


def launcher_for(tensor: Tensor) -> CupyLauncher:
    return launcher_of(tensor.get_device())
