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


CACHE = Path(__file__).parents[1] / ".mypy_cache"  # that of `make lint`: torch takes half a minute
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


def test_a_type_checker_sees_a_typo(tmp_path: Path) -> None:
    api = pytest.importorskip("mypy.api", reason="needs mypy (extra dev)")
    (tmp_path / "typos.py").write_text(CODE)
    settings = "--follow-imports=silent", "--ignore-missing-imports", f"--cache-dir={CACHE}"
    found, _, _ = api.run([*settings, str(tmp_path / "typos.py")])
    wrong = {int(line.split(":")[1]) for line in found.splitlines() if ": error:" in line}
    lines = CODE.splitlines()
    assert wrong == {k for k, line in enumerate(lines, 1) if line.endswith("# wrong")}, found
