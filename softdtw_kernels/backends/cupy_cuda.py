"""The operators on CUDA tensors: the kernels of cuda/, compiled and launched through CuPy.

Requirements: CuPy 14 or newer for CUDA 12 or 13, as the extras `softdtw-kernels[cuda12]` and
`[cuda13]` install it. Imported by the first call on a CUDA tensor. Importing this module needs no
CuPy; calling it does. Kernels run on the current stream of torch and the device of the tensors.
The host reads no value from the device: an item whose gamma, dummy cost or length is out of range
is NaN. See `_cuda_host` for what is launched when.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from . import _cuda_features, _cuda_host
from ._cuda_host import SOURCES
from ._cuda_plan import Argument

COMPILER_OPTIONS = ("-std=c++17", "--device-int128", "--fmad=false", f"-I{SOURCES}")


@cache
def import_cupy() -> Any:
    """CuPy, or an ImportError that says how to get it."""
    try:
        import cupy  # noqa: PLC0415
        import cupy.cuda  # noqa: PLC0415
    except ImportError as error:
        major = (torch.version.cuda or "").split(".")[0]
        extras = [f"softdtw-kernels[cuda{v}]" for v in ("12", "13") if major in ("", v)]
        raise ImportError(
            f"CUDA tensors need CuPy, which compiles the kernels, but: {error}. Install "
            f"the extra {' or '.join(extras)}, or pass backend='reference' (plain torch, slow)"
        ) from error
    return cupy


@cache
def compiled(source: str, options: tuple[str, ...], device: int) -> Callable[..., None]:
    """One kernel of cuda/, compiled for the device or loaded from CuPy's cache on disk."""
    code = (SOURCES / f"{source}.cu").read_text()
    module = import_cupy().RawModule(
        code=code, options=(*COMPILER_OPTIONS, *options), backend="nvrtc"
    )
    return module.get_function(source)


@cache
def multiprocessors(device: int) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


class CupyLauncher:
    """Launches on the current stream of one device."""

    def __init__(self, device: torch.device) -> None:
        self.device = torch.cuda.current_device() if device.index is None else device.index
        self.multiprocessors = multiprocessors(self.device)

    def launch(
        self,
        source: str,
        options: Sequence[str],
        grid: int,
        block: int,
        shared_bytes: int,
        arguments: Sequence[Argument],
    ) -> None:
        cupy = import_cupy()
        with torch.cuda.device(self.device), cupy.cuda.Device(self.device):
            kernel = compiled(source, tuple(options), self.device)
            values = [as_kernel_argument(a) for a in arguments]
            with stream_of_torch(cupy, self.device):
                kernel((grid,), (block,), tuple(values), shared_mem=shared_bytes)


def as_kernel_argument(argument: Argument) -> int | float:
    """CuPy passes Python integers and floats as the 8-byte types that every parameter has."""
    if isinstance(argument, Tensor):
        return argument.data_ptr()
    return 0 if argument is None else argument


def stream_of_torch(cupy: Any, device: int) -> Any:
    """torch's current stream as a context in which CuPy launches."""
    stream = torch.cuda.current_stream(device)
    if hasattr(cupy.cuda.Stream, "from_external"):
        return cupy.cuda.Stream.from_external(stream)
    return cupy.cuda.ExternalStream(stream.cuda_stream, device)


def value(
    cost: Tensor,
    gamma: Tensor,
    dummy: Tensor | None,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    bandwidth: int | None,
) -> Tensor:
    launcher = CupyLauncher(cost.device)
    return _cuda_host.value(launcher, cost, gamma, dummy, x_lengths, y_lengths, bandwidth)


def gradient(
    cost: Tensor,
    gamma: Tensor,
    dummy: Tensor | None,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    bandwidth: int | None,
    grad_value: Tensor,
    with_gamma: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    launcher = CupyLauncher(cost.device)
    return _cuda_host.gradient(
        launcher, cost, gamma, dummy, x_lengths, y_lengths, bandwidth, grad_value, with_gamma
    )


def hessian_product(
    cost: Tensor,
    gamma: Tensor,
    dummy: Tensor | None,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    bandwidth: int | None,
    grad_value: Tensor,
    tangent_cost: Tensor,
    tangent_gamma: Tensor,
    tangent_dummy: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _cuda_host.hessian_product(
        CupyLauncher(cost.device),
        cost,
        gamma,
        dummy,
        x_lengths,
        y_lengths,
        bandwidth,
        grad_value,
        tangent_cost,
        tangent_gamma,
        tangent_dummy,
    )


def smooth(
    cost: Tensor,
    gamma: Tensor,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    origin_count: float,
) -> Tensor:
    launcher = CupyLauncher(cost.device)
    return _cuda_host.smooth(launcher, cost, gamma, x_lengths, y_lengths, origin_count)


def smooth_vjp(
    cost: Tensor,
    gamma: Tensor,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    origin_count: float,
    grad_s: Tensor,
) -> tuple[Tensor, Tensor]:
    launcher = CupyLauncher(cost.device)
    return _cuda_host.smooth_vjp(launcher, cost, gamma, x_lengths, y_lengths, origin_count, grad_s)


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    return _cuda_host.squared_distances(CupyLauncher(x.device), x, y)


def fused_value(
    x: Tensor,
    y: Tensor,
    gamma: Tensor,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    bandwidth: int | None,
    kind: str,
) -> Tensor:
    problem = _cuda_features.Problem(x, y, gamma, x_lengths, y_lengths, bandwidth, kind)
    return _cuda_features.value(CupyLauncher(x.device), problem)


def fused_gradient(
    x: Tensor,
    y: Tensor,
    gamma: Tensor,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    bandwidth: int | None,
    kind: str,
    grad_value: Tensor,
    with_x: bool,
    with_y: bool,
    with_gamma: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    problem = _cuda_features.Problem(x, y, gamma, x_lengths, y_lengths, bandwidth, kind)
    return _cuda_features.gradient(
        CupyLauncher(x.device), problem, grad_value, with_x, with_y, with_gamma
    )


def path(
    cost: Tensor,
    dummy: Tensor | None,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    bandwidth: int | None,
) -> list[Tensor]:
    """The cheapest path of every item as (L, 2) indices, of a weak lattice the real pairs on it.

    Waits for the device, as the length of a path is not known before.
    """
    return _cuda_host.path(CupyLauncher(cost.device), cost, dummy, x_lengths, y_lengths, bandwidth)
