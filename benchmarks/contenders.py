"""The implementations that `compare` measures, each called on a cost matrix.

Where an implementation has an autograd Function on the cost, that Function is called, and no time
goes into its features or module. An implementation that is not installed, or whose path is not
given, is left out with the reason.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

GAMMA = 1.0

OURS = "softdtw-kernels"


@dataclass(frozen=True)
class Contender:
    """An implementation at one dtype, on costs (batch, N, M)."""

    name: str
    dtype: torch.dtype
    how: str
    forward: Callable[[Tensor], Tensor]  # -> values (batch,)
    train: Callable[[Tensor], tuple[Tensor, Tensor]]  # -> values, gradient of their sum
    torch_peer: bool = True

    @property
    def label(self) -> str:
        return f"{self.name} {str(self.dtype).removeprefix('torch.')}"


def differentiable(
    name: str, dtype: torch.dtype, how: str, function: Callable[[Tensor], Tensor]
) -> Contender:
    """A contender from a function that torch differentiates."""

    def forward(cost: Tensor) -> Tensor:
        with torch.no_grad():
            return function(cost)

    def train(cost: Tensor) -> tuple[Tensor, Tensor]:
        leaf = cost.detach().requires_grad_()
        value = function(leaf)
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
        return value.detach(), gradient

    return Contender(name, dtype, how, forward, train)


def ours() -> list[Contender]:
    from softdtw_kernels import soft_dtw_from_cost

    function = partial(soft_dtw_from_cost, gamma=GAMMA)
    return [
        differentiable(OURS, dtype, "soft_dtw_from_cost", function)
        for dtype in (torch.float32, torch.float64)
    ]


def pysdtw() -> list[Contender]:
    apply = importlib.import_module("pysdtw.sdtw_cpu").SoftDTWcpu.apply

    def function(cost: Tensor) -> Tensor:
        lengths = torch.tensor(cost.shape[1:]).expand(len(cost), 2)
        return apply(cost, lengths, GAMMA, 0)

    return [differentiable("pysdtw", torch.float32, "its Function on the cost", function)]


def maghoumi(path: Path) -> list[Contender]:
    specification = importlib.util.spec_from_file_location("maghoumi_soft_dtw", path)
    if specification is None or specification.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return [
        differentiable(
            "pytorch-softdtw-cuda (CPU path)",
            torch.float32,
            "its Function on the cost",
            lambda cost: module._SoftDTW.apply(cost, GAMMA, 0),
        )
    ]


def dtw_loss_functions() -> list[Contender]:
    package = "dtw_loss_functions.soft_dtw_implementations.soft_dtw_cuda_mag"
    module = importlib.import_module(package)
    return [
        differentiable(
            "dtw-loss-functions",
            torch.float32,
            "the CPU Function of its default implementation, on the cost",
            lambda cost: module._SoftDTW.apply(cost, GAMMA, 0),
        )
    ]


def tslearn() -> list[Contender]:
    module = importlib.import_module("tslearn.metrics.soft_dtw_loss_pytorch")

    def function(cost: Tensor) -> Tensor:
        # It writes +inf into the cells outside its band, in place, which autograd refuses for a
        # leaf even where there is no such cell: hence a view.
        return module._SoftDTWLossPyTorch.apply(cost.view_as(cost), GAMMA)

    return [
        differentiable(
            "tslearn", dtype, "the Function of SoftDTWLossPyTorch, on the cost", function
        )
        for dtype in (torch.float32, torch.float64)
    ]


def soft_dtw_divergences(folder: Path) -> list[Contender]:
    sys.path.insert(0, str(folder))
    module: Any = importlib.import_module("sdtw_div.numba_ops")

    def forward(cost: Tensor) -> Tensor:
        return torch.tensor([module.sdtw_C(item, gamma=GAMMA) for item in cost.numpy()])

    def train(cost: Tensor) -> tuple[Tensor, Tensor]:
        items = [module.sdtw_value_and_grad_C(item, gamma=GAMMA) for item in cost.numpy()]
        values = torch.tensor([value for value, _ in items], dtype=torch.float64)
        return values, torch.from_numpy(np.stack([gradient for _, gradient in items]))

    how = "sdtw_value_and_grad_C on each cost in turn (NumPy, no batch)"
    name = "soft-dtw-divergences"
    return [Contender(name, torch.float64, how, forward, train, torch_peer=False)]


def all_contenders(
    maghoumi_path: Path | None, divergences_path: Path | None
) -> tuple[list[Contender], dict[str, str]]:
    """Every contender that can run here, ours first, and the reasons of those left out."""
    makers: dict[str, Callable[[], list[Contender]] | None] = {
        OURS: ours,
        "pysdtw": pysdtw,
        "tslearn": tslearn,
        "dtw-loss-functions": dtw_loss_functions,
        "pytorch-softdtw-cuda": partial(maghoumi, maghoumi_path) if maghoumi_path else None,
        "soft-dtw-divergences": (
            partial(soft_dtw_divergences, divergences_path) if divergences_path else None
        ),
    }
    found: list[Contender] = []
    left_out: dict[str, str] = {}
    for name, make in makers.items():
        if make is None:
            left_out[name] = "no path given"
            continue
        try:
            found += make()
        except ImportError as error:
            left_out[name] = str(error)
    return found, left_out
