"""Backends by name. None of their requirements (numba, CuPy) is imported before the first call that
needs it.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from ._checks import check_backend

_MODULES = {
    "numba": "_cpu.operators",
    "cuda": "_cuda.operators",
    "reference": "_reference",
    "features": "_operators.compositions",
    "cpu_features": "_cpu.distance_gradient",
}
_BY_DEVICE = {"cpu": "numba", "cuda": "cuda"}
_DEVICES = {"numba": "cpu", "cuda": "cuda"}
_WITHOUT_FLOAT64 = ("mps",)  # in which the reference computes
_loaded: dict[str, ModuleType] = {}


def load(name: str) -> ModuleType:
    """The module of a backend, imported at its first use."""
    module = _loaded.get(name)
    if module is None:
        module = importlib.import_module(f".{_MODULES[name]}", __package__)
        _loaded[name] = module
    return module


def in_shape(x: Tensor, shape: Sequence[int]) -> Tensor:
    """A result in another shape, for its maker: not a view of what nobody else holds, since
    autograd lets nobody change in place a view that a Function returns.
    """
    return x if x.shape == shape else torch.ops.aten._unsafe_view.default(x, shape)


def select(backend: str | None, x: Tensor) -> str:
    """The name of the backend for a tensor: the one asked for if it runs on that device, by device
    if None.
    """
    device = x.device.type
    if device in _WITHOUT_FLOAT64 and backend in (None, "reference"):
        raise ValueError(
            f"no backend runs on {x.device}, which has no float64; move the tensors with .cpu(), "
            "and the result back: gradients follow"
        )
    if backend is None:
        if device in _BY_DEVICE:
            return _BY_DEVICE[device]
        if device == "meta":  # shapes only: any kernel backend tells them
            return "numba"
        raise ValueError(
            f"no kernels for tensors on {x.device}; pass backend='reference' (plain torch) "
            "or move them to the CPU or to a CUDA device"
        )
    check_backend(backend)
    if backend == "reference":
        return backend
    if device != _DEVICES[backend]:
        raise ValueError(
            f"backend {backend!r} takes tensors on {_DEVICES[backend]}, got one on {x.device}; "
            "move it, or pass backend=None to choose by device"
        )
    return backend
