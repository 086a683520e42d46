"""Names that an argument may have are types: a type checker sees a typo before a run does."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

import softdtw_kernels
from softdtw_kernels import Backend, Reduction, costs
from softdtw_kernels import _checks as checks

PUBLIC = [
    getattr(softdtw_kernels, name)
    for name in softdtw_kernels.__all__
    if inspect.isroutine(getattr(softdtw_kernels, name)) or name.endswith("Loss")
]
TYPES = {"cost": "Cost", "reduction": "Reduction", "backend": "Backend | None"}


@pytest.mark.parametrize("function", PUBLIC, ids=lambda f: f.__name__)
def test_public_signatures_name_their_choices(function: Callable[..., Any]) -> None:
    matrix = function.__name__.endswith("_from_cost")
    expected = TYPES | ({"cost": "Tensor"} if matrix else {})
    for name, parameter in inspect.signature(function).parameters.items():
        if name in expected:
            assert parameter.annotation == expected[name], name


def test_names_are_those_that_the_checks_take() -> None:
    assert get_args(costs.CostName) == tuple(costs.NAMED)
    assert get_args(Reduction) == checks.REDUCTIONS
    assert get_args(Backend) == checks.BACKENDS


CODE = """
import torch
from softdtw_kernels import SoftDTWLoss, cost_matrix, s2dtw, soft_dtw, soft_dtw_alignment

x = torch.rand(4, 3)
soft_dtw(x, x, cost="cosine", reduction="mean", backend="numba")
soft_dtw(x, x, cost=lambda a, b: a @ b.mT)
soft_dtw(x, x, cost="sqeuclidian")  # wrong
cost_matrix(x, x, "cosinus")  # wrong
s2dtw(x, x, reduction="average")  # wrong
s2dtw(x, x, backend="gpu")  # wrong
SoftDTWLoss(reduction="avg")  # wrong
SoftDTWLoss(use_cuda=True)  # wrong
soft_dtw_alignment(x, x).path().shap  # wrong
"""


# What the signatures say of torch. To read torch itself takes a type checker half a minute, which
# `make lint` has.
TORCH = """
from typing import Any

class Tensor:
    shape: tuple[int, ...]
    mT: Tensor
    def __matmul__(self, other: Tensor) -> Tensor: ...

def rand(*shape: int) -> Tensor: ...
def __getattr__(name: str) -> Any: ...
"""
NN = """
from typing import Any

class Module: ...

def __getattr__(name: str) -> Any: ...
"""
SETTINGS = """
[mypy]
follow_imports = silent
ignore_missing_imports = True
mypy_path = $MYPY_CONFIG_FILE_DIR:{package}
[mypy-torch.*]
follow_imports = skip
[mypy-torch._C.*,numpy.*,numba.*,llvmlite.*,matplotlib.*,cupy.*]
follow_imports = skip
follow_imports_for_stubs = True
"""


def test_a_type_checker_sees_a_typo(tmp_path: Path) -> None:
    api = pytest.importorskip("mypy.api", reason="needs mypy (extra dev)")
    package = Path(softdtw_kernels.__file__).parents[1]
    files = {
        "typos.py": CODE, "torch/__init__.pyi": TORCH, "torch/nn/__init__.pyi": NN,
        "mypy.ini": SETTINGS.format(package=package),
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    settings = f"--config-file={tmp_path / 'mypy.ini'}", f"--cache-dir={tmp_path / 'cache'}"
    found, _, _ = api.run([*settings, str(tmp_path / "typos.py")])
    wrong = {int(line.split(":")[1]) for line in found.splitlines() if ": error:" in line}
    lines = CODE.splitlines()
    assert wrong == {k for k, line in enumerate(lines, 1) if line.endswith("# wrong")}, found
