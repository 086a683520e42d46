"""Checks of values: of gamma, of prices, and of what is inside tensors.

The latter are made where the operator reads them anyway, on the CPU, so that torch.compile, vmap
and fake tensors never meet a data-dependent branch; on other devices a bad value gives NaN.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LARGEST_GAMMA = 1e28  # 1 / gamma stays a normal float32; as in cuda/numbers.cuh


def gamma_in_range(gamma: Tensor) -> Tensor:
    """Which gammas are of the range that every backend takes."""
    return (gamma >= 0) & (gamma <= LARGEST_GAMMA)


def gamma_error(value: Any) -> ValueError:
    return ValueError(
        "gamma must be finite, at least 0 (0 is the hard DTW) and at most "
        f"{LARGEST_GAMMA:g}, got {value}"
    )


def finite_error(value: Any, name: str) -> ValueError:
    remedy = "; to forbid the steps pass repeat" if name == "warp_cost" else ""
    return ValueError(f"{name} must be finite, got {value}{remedy}")


def check_finite(value: Tensor, name: str) -> None:
    """Where it can be read."""
    bad = ~value.isfinite()
    if is_seen(bad):
        raise finite_error(value[bad].flatten()[0].item(), name)


def is_seen(condition: Tensor) -> bool:
    """Whether it holds somewhere; False where that cannot be read: on a device, or recorded."""
    recorded = torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None
    if recorded or condition.device.type != "cpu":
        return False
    try:
        return bool(condition.any())
    except RuntimeError:  # vmap and fake tensors refuse to be read
        return False


def check_gamma_and_lengths(
    gamma: Tensor, x_lengths: Tensor | None, y_lengths: Tensor | None, rows: int, columns: int
) -> None:
    """Values out of range raise ValueError where they can be read."""
    bad_gamma = ~gamma_in_range(gamma)
    if is_seen(bad_gamma):
        raise gamma_error(gamma[bad_gamma].flatten()[0].item())
    for lengths, size, name in ((x_lengths, rows, "x_lengths"), (y_lengths, columns, "y_lengths")):
        bad = ~lengths_in_range(lengths, size)
        if lengths is not None and is_seen(bad):
            raise ValueError(
                f"{name} must lie in 1..{size}, the size of that dimension, "
                f"got {lengths[bad].flatten()[0].item()}"
            )


def lengths_in_range(lengths: Tensor | None, size: int) -> Tensor:
    """Which of the lengths are 1..size; all if there are none."""
    return (
        torch.ones((), dtype=torch.bool, device="cpu")
        if lengths is None
        else (lengths >= 1) & (lengths <= size)
    )
