"""Tensors as the arrays that kernels take, and back."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

NOTHING = np.empty(0)
HUGE = 2**21  # bytes of a huge page
FRESH = 2**25  # bytes of an array whose memory the C library has from the system each time
NUMPY_TYPE = {torch.float32: np.float32, torch.float64: np.float64}


def without_warnings(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Infinite and NaN numbers are results, as in torch: NumPy does not warn of them.

    Around what computes with numbers of the caller by NumPy. It takes some microseconds, which are
    too many for small calls: these have but kernels, which never warn.
    """

    @functools.wraps(function)
    def call(*args: Arguments.args, **settings: Arguments.kwargs) -> Result:
        with np.errstate(all="ignore"):
            return function(*args, **settings)

    return call


def four_dimensional(x: Tensor) -> Tensor:
    """(*, N, M) as (A, B, N, M): a view unless strides of three or more dimensions forbid it."""
    if x.dim() == 4:
        return x
    if x.dim() < 4:
        return x[(None,) * (4 - x.dim())]
    # Not -1, which an empty batch leaves undetermined. reshape copies only where it must.
    return x.reshape(x.shape[0], x.shape[1:-2].numel(), *x.shape[-2:])


def three_dimensional(x: Tensor) -> Tensor:
    """(*, N, D) as (P, N, D), contiguous."""
    if x.dim() != 3:
        x = x.reshape(x.shape[:-2].numel(), *x.shape[-2:])
    return x.contiguous()


def dense(x: Tensor, shape: tuple[int, ...]) -> np.ndarray:
    """An array of another shape, contiguous. What NumPy does takes a fifth of torch's time."""
    return np.ascontiguousarray(x.detach().numpy()).reshape(shape)


def nothing_kept() -> Tensor:
    """The state of a value that keeps none for its gradient."""
    return torch.empty(0, dtype=torch.uint8)


def bits_of(values: np.ndarray) -> np.ndarray:
    """Floats as the integers that their bits are."""
    return values.view(np.int32 if values.itemsize == 4 else np.int64)


def as_array(x: Tensor) -> np.ndarray:
    return x.detach().numpy()


def flat_memory(x: Tensor) -> tuple[np.ndarray, tuple[int, ...]]:
    """The memory that a tensor reaches, and its strides in elements: of one type for Numba whatever
    the strides.
    """
    x, strides = x.detach(), x.stride()
    if x.is_contiguous():
        return x.view(-1).numpy(), strides
    reached = sum((n - 1) * stride for n, stride in zip(x.shape, strides, strict=True)) + 1
    return x.as_strided((reached if x.numel() else 0,), (1,)).numpy(), strides


def matrices(x: Tensor) -> np.ndarray:
    """As `four_dimensional`, as an array. What NumPy does takes a fifth of torch's time."""
    array = as_array(x if x.dim() <= 4 else four_dimensional(x))
    return array[(None,) * (4 - array.ndim)]


def from_array(x: np.ndarray, shape: tuple[int, ...]) -> Tensor:
    """A result. NumPy shapes it: autograd lets nobody change a view of torch in place."""
    return torch.from_numpy(x.reshape(shape))


def on_huge_pages(make: Callable[..., np.ndarray], size: int, dtype: Any) -> np.ndarray:
    """As np.empty or np.zeros make it; if large, from the begin of a huge page on: before that,
    memory costs a page fault every 4 KiB, up to 511 of them.
    """
    itemsize = np.dtype(dtype).itemsize
    if size * itemsize < FRESH:
        return make(size, dtype)
    memory = make(size + HUGE // itemsize, dtype)
    start = -memory.ctypes.data % HUGE // itemsize
    return memory[start : start + size]


def matrix_like(cost: Tensor, zeros: bool) -> Tensor:
    """A matrix for every pair, laid out as the costs if that allows a four-dimensional view.

    From NumPy, which asks the system for huge pages: a large matrix fresh from torch costs a page
    fault every 4 KiB, nearly half the time of its gradient. Zeros that nobody touches cost nothing.
    """
    memory = on_huge_pages(np.zeros if zeros else np.empty, cost.numel(), NUMPY_TYPE[cost.dtype])
    if cost.is_contiguous() or cost.dim() > 4:
        return from_array(memory, cost.shape)
    strides = torch.empty_like(cost, device="meta").stride()  # dense, in the order of the costs
    bytes_of = tuple(stride * memory.itemsize for stride in strides)
    return torch.from_numpy(np.ndarray(tuple(cost.shape), memory.dtype, memory, 0, bytes_of))


def flat(x: Tensor | None) -> np.ndarray:
    return NOTHING if x is None else np.ascontiguousarray(as_array(x)).reshape(-1)


def one_or_all(x: Tensor | None) -> np.ndarray:
    """One entry if a single number was expanded to all pairs, else as many as there are pairs."""
    if x is None:
        return NOTHING
    array = as_array(x)
    if array.size > 1 and not any(array.strides):
        return array[(0,) * (array.ndim - 1)][:1]
    return np.ascontiguousarray(array).reshape(-1)
