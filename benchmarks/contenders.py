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

import numba
import numpy as np
import torch
from torch import Tensor

GAMMA = 1.0

OURS = "softdtw-kernels"
TEXTBOOK = "textbook loop"

Forward = Callable[[Tensor, float], Tensor]
Train = Callable[[Tensor, float], tuple[Tensor, Tensor]]


NO_REGISTRY = "no registry has it"
# Named, so that nobody misses them in a table.
NOT_MEASURED = {
    "sdtw-cuda-torch": "its CPU code is for tests, not for speed: see make gpu",
    "torchdtw": "exact DTW alone, without soft-DTW",
}


@dataclass(frozen=True)
class Contender:
    """An implementation at one dtype, on costs (batch, N, M)."""

    name: str
    dtype: torch.dtype
    how: str
    forward: Forward  # of a cost and gamma -> values (batch,), or their sum (1,)
    train: Train  # -> the same, and the gradient of the sum

    @property
    def label(self) -> str:
        return f"{self.name} {str(self.dtype).removeprefix('torch.')}"


def differentiable(name: str, dtype: torch.dtype, how: str, function: Forward) -> Contender:
    """A contender from a function that torch differentiates."""

    def forward(cost: Tensor, gamma: float) -> Tensor:
        with torch.no_grad():
            return function(cost, gamma)

    def train(cost: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
        leaf = cost.detach().requires_grad_()
        value = function(leaf, gamma)
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
        return value.detach(), gradient

    return Contender(name, dtype, how, forward, train)


def ours() -> list[Contender]:
    from softdtw_kernels import soft_dtw_from_cost

    def function(cost: Tensor, gamma: float) -> Tensor:
        return soft_dtw_from_cost(cost, gamma=gamma)

    return [
        differentiable(OURS, dtype, "soft_dtw_from_cost", function)
        for dtype in (torch.float32, torch.float64)
    ]


@numba.njit(nogil=True)
def textbook_softmin(a: float, b: float, c: float, gamma: float) -> float:
    a, b, c = -a / gamma, -b / gamma, -c / gamma
    top = max(a, b, c)
    return -gamma * (top + np.log(np.exp(a - top) + np.exp(b - top) + np.exp(c - top)))


@numba.njit(nogil=True)
def textbook_forward(costs: np.ndarray, gamma: float) -> np.ndarray:
    """R of the recursion, one cell after the other, with a border on all sides."""
    batch, rows, columns = costs.shape
    r = np.full((batch, rows + 2, columns + 2), np.inf)
    r[:, 0, 0] = 0.0
    for b in range(batch):
        for i in range(1, rows + 1):
            for j in range(1, columns + 1):
                low = textbook_softmin(r[b, i - 1, j - 1], r[b, i - 1, j], r[b, i, j - 1], gamma)
                r[b, i, j] = costs[b, i - 1, j - 1] + low
    return r


@numba.njit(nogil=True)
def textbook_backward(costs: np.ndarray, r: np.ndarray, gamma: float) -> np.ndarray:
    """The gradient, by the weights of Cuturi and Blondel (2017), algorithm 2."""
    batch, rows, columns = costs.shape
    padded = np.zeros((rows + 2, columns + 2))
    e = np.zeros((rows + 2, columns + 2))
    gradient = np.empty((batch, rows, columns))
    for b in range(batch):
        padded[1:-1, 1:-1] = costs[b]
        r[b, :, -1] = r[b, -1, :] = -np.inf
        r[b, -1, -1] = r[b, -2, -2]
        e[-1, -1] = 1.0
        for j in range(columns, 0, -1):
            for i in range(rows, 0, -1):
                up = np.exp((r[b, i + 1, j] - r[b, i, j] - padded[i + 1, j]) / gamma)
                left = np.exp((r[b, i, j + 1] - r[b, i, j] - padded[i, j + 1]) / gamma)
                corner = np.exp((r[b, i + 1, j + 1] - r[b, i, j] - padded[i + 1, j + 1]) / gamma)
                e[i, j] = e[i + 1, j] * up + e[i, j + 1] * left + e[i + 1, j + 1] * corner
        gradient[b] = e[1:-1, 1:-1]
    return gradient


def textbook() -> list[Contender]:
    """What everybody writes first, compiled: a yardstick that is the same on every machine."""

    def forward(cost: Tensor, gamma: float) -> Tensor:
        return torch.from_numpy(textbook_forward(cost.numpy(), gamma)[:, -2, -2].copy())

    def train(cost: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
        costs = cost.numpy()
        r = textbook_forward(costs, gamma)
        values = r[:, -2, -2].copy()
        return torch.from_numpy(values), torch.from_numpy(textbook_backward(costs, r, gamma))

    how = "loops over the cells in Numba, float64"
    return [Contender(TEXTBOOK, torch.float64, how, forward, train)]


def pysdtw() -> list[Contender]:
    apply = importlib.import_module("pysdtw.sdtw_cpu").SoftDTWcpu.apply

    def function(cost: Tensor, gamma: float) -> Tensor:
        lengths = torch.tensor(cost.shape[1:]).expand(len(cost), 2)
        return apply(cost, lengths, gamma, 0)

    return [differentiable("pysdtw", torch.float32, "its Function on the cost", function)]


def module_of_file(path: Path) -> Any:
    specification = importlib.util.spec_from_file_location("maghoumi_soft_dtw", path)
    if specification is None or specification.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def maghoumi(path: Path) -> list[Contender]:
    module = module_of_file(path)
    return [
        differentiable(
            "pytorch-softdtw-cuda (CPU path)",
            torch.float32,
            "its Function on the cost",
            lambda cost, gamma: module._SoftDTW.apply(cost, gamma, 0),
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
            lambda cost, gamma: module._SoftDTW.apply(cost, gamma, 0),
        )
    ]


def tslearn() -> list[Contender]:
    module = importlib.import_module("tslearn.metrics.soft_dtw_loss_pytorch")

    def function(cost: Tensor, gamma: float) -> Tensor:
        # It writes +inf into the cells outside its band, in place, which autograd refuses for a
        # leaf even where there is no such cell: hence a view.
        return module._SoftDTWLossPyTorch.apply(cost.view_as(cost), gamma)

    return [
        differentiable(
            "tslearn", dtype, "the Function of SoftDTWLossPyTorch, on the cost", function
        )
        for dtype in (torch.float32, torch.float64)
    ]


def ddtw() -> list[Contender]:
    module = importlib.import_module("ddtw")

    def function(cost: Tensor, gamma: float) -> Tensor:
        loss = module.SDTW(gamma=gamma, normalization="none", backend="cpu_numba")
        return (loss(C=cost) * len(cost)).reshape(1)  # it returns the mean

    return [differentiable("ddtw", torch.float32, "SDTW of the cost, cpu_numba", function)]


def soft_dtw_divergences(folder: Path) -> list[Contender]:
    sys.path.insert(0, str(folder))
    module: Any = importlib.import_module("sdtw_div.numba_ops")

    def forward(cost: Tensor, gamma: float) -> Tensor:
        return torch.tensor([module.sdtw_C(item, gamma=gamma) for item in cost.numpy()])

    def train(cost: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
        items = [module.sdtw_value_and_grad_C(item, gamma=gamma) for item in cost.numpy()]
        values = torch.tensor([value for value, _ in items], dtype=torch.float64)
        return values, torch.from_numpy(np.stack([gradient for _, gradient in items]))

    how = "sdtw_value_and_grad_C on each cost in turn (NumPy, no batch)"
    name = "soft-dtw-divergences"
    return [Contender(name, torch.float64, how, forward, train)]


def all_contenders(
    maghoumi_path: Path | None, divergences_path: Path | None, label: str = ""
) -> tuple[list[Contender], dict[str, str]]:
    """Every contender that can run here, ours first, and the reasons of those left out.

    With a label only the package that has it is imported.
    """
    makers: dict[str, Callable[[], list[Contender]] | None] = {
        OURS: ours,
        TEXTBOOK: textbook,
        "pysdtw": pysdtw,
        "tslearn": tslearn,
        "dtw-loss-functions": dtw_loss_functions,
        "ddtw": ddtw,
        "pytorch-softdtw-cuda": partial(maghoumi, maghoumi_path) if maghoumi_path else None,
        "soft-dtw-divergences": (
            partial(soft_dtw_divergences, divergences_path) if divergences_path else None
        ),
    }
    found: list[Contender] = []
    left_out = dict(NOT_MEASURED)
    for name, make in makers.items():
        if label and not label.startswith(f"{name} "):
            continue
        if make is None:
            left_out[name] = f"no path given; {NO_REGISTRY}"
            continue
        try:
            found += make()
        except ImportError as error:
            left_out[name] = str(error)
    return found, left_out


# Of a call with so little to compute that its own time counts: the sum of the values of x and y.
Sum = Callable[[Tensor, Tensor], Tensor]


def small_calls(maghoumi_path: Path | None) -> tuple[dict[str, Sum], dict[str, str]]:
    """What users call, of every contender that can run here, from features; beside them torch's own
    sum. Also the reasons of those left out.
    """

    def ours() -> Sum:
        from softdtw_kernels import soft_dtw

        return lambda x, y: soft_dtw(x, y, gamma=GAMMA).sum()

    def of_pysdtw() -> Sum:
        loss = importlib.import_module("pysdtw").SoftDTW(gamma=GAMMA, use_cuda=False)
        return lambda x, y: loss(x, y).sum()

    def of_tslearn() -> Sum:
        module = importlib.import_module("tslearn.metrics.soft_dtw_loss_pytorch")
        loss = module.SoftDTWLossPyTorch(gamma=GAMMA)
        return lambda x, y: loss(x, y).sum()

    def of_maghoumi(module: Any) -> Sum:
        loss = module.SoftDTW(use_cuda=False, gamma=GAMMA)
        return lambda x, y: loss(x, y).sum()

    def of_ddtw() -> Sum:
        backend = "cpu_numba"
        loss = importlib.import_module("ddtw").SDTW(
            gamma=GAMMA, normalization="none", backend=backend
        )
        return lambda x, y: loss(x, y) * len(x)  # it returns the mean

    copy = "dtw_loss_functions.soft_dtw_implementations.soft_dtw_cuda_mag"
    makers: dict[str, Callable[[], Sum] | None] = {
        OURS: ours,
        "torch.sum": lambda: lambda x, y: x.sum(),
        "pysdtw": of_pysdtw,
        "tslearn": of_tslearn,
        "dtw-loss-functions": lambda: of_maghoumi(importlib.import_module(copy)),
        "ddtw": of_ddtw,
        "pytorch-softdtw-cuda": (
            (lambda: of_maghoumi(module_of_file(maghoumi_path))) if maghoumi_path else None
        ),
    }
    found: dict[str, Sum] = {}
    left_out: dict[str, str] = {}
    for name, make in makers.items():
        try:
            if make is None:
                left_out[name] = "no path given"
            else:
                found[name] = make()
        except ImportError as error:
            left_out[name] = str(error)
    return found, left_out
