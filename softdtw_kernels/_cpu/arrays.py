"""Tensors as the arrays that kernels take, and back."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

NOTHING = np.empty(0)


def four_dimensional(x: Tensor) -> Tensor:
    """(*, N, M) as (A, B, N, M): a view unless strides of three or more dimensions forbid it."""
    if x.dim() == 4:
        return x
    if x.dim() < 4:
        return x[(None,) * (4 - x.dim())]
    # Not -1, which an empty batch leaves undetermined. reshape copies only where it must.
    return x.reshape(x.shape[0], x.shape[1:-2].numel(), *x.shape[-2:])


def as_array(x: Tensor) -> np.ndarray:
    return x.detach().numpy()


def from_array(x: np.ndarray, shape: torch.Size) -> Tensor:
    """A result. NumPy shapes it: autograd lets nobody change a view of torch in place."""
    return torch.from_numpy(x.reshape(shape))


def flat(x: Tensor | None) -> np.ndarray:
    return NOTHING if x is None else np.ascontiguousarray(as_array(x)).reshape(-1)


def one_or_all(x: Tensor | None) -> np.ndarray:
    """One entry if a single number was expanded to all pairs, else as many as there are pairs."""
    if x is not None and x.numel() > 1 and not any(x.stride()):
        return as_array(x.as_strided((1,), (1,)))
    return flat(x)
