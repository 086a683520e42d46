"""Importing the package imports torch and nothing heavy besides."""

from __future__ import annotations

import pkgutil

import pytest
from helpers import Forks

import softdtw_kernels

pytestmark = pytest.mark.quick


def test_import_adds_no_numba_cupy_or_matplotlib(fresh: Forks) -> None:
    fresh.run(
        """
import sys
import torch
import softdtw_kernels
heavy = {"numba", "llvmlite", "cupy", "matplotlib", "scipy"}
found = sorted(heavy & set(sys.modules))
assert not found, f"import softdtw_kernels imports {found}"
"""
    )


def test_only_the_numba_backend_imports_numba(fresh: Forks) -> None:
    fresh.run(
        """
import sys
import torch
from softdtw_kernels import soft_dtw
x = torch.zeros(3, 2, requires_grad=True)
soft_dtw(x, x + 1, backend="reference").backward()
assert "numba" not in sys.modules
soft_dtw(x, x + 1).backward()
assert "numba" in sys.modules
"""
    )


def test_import_registers_no_thread_and_leaves_the_settings_of_torch(fresh: Forks) -> None:
    fresh.run(
        """
import threading
import torch

def settings():
    return torch.get_num_threads(), torch.get_default_dtype(), torch.initial_seed()

before = settings(), threading.active_count()
import softdtw_kernels
assert before == (settings(), threading.active_count())
"""
    )


def test_public_names_are_those_that_are_documented() -> None:
    expected = {
        "Alignment", "DILATELoss", "ForwardSumLoss", "KMeans", "S2DTWFunction", "S2DTWLoss",
        "SoftDTWFunction", "SoftDTWLoss", "cost_matrix", "dilate_loss", "forward_sum",
        "monotonic_alignment", "s2dtw", "s2dtw_alignment", "s2dtw_alignment_from_cost",
        "s2dtw_from_cost", "soft_dtw", "soft_dtw_alignment", "soft_dtw_alignment_from_cost",
        "soft_dtw_barycenter", "soft_dtw_divergence", "soft_dtw_from_cost", "soft_dtw_kmeans",
    }  # fmt: skip
    assert expected <= set(softdtw_kernels.__all__)
    for name in expected:
        assert getattr(softdtw_kernels, name).__doc__, f"{name} has no docstring"
    assert isinstance(softdtw_kernels.__version__, str)


def test_no_public_module_needs_an_optional_dependency_to_be_listed() -> None:
    names = {module.name for module in pkgutil.iter_modules(softdtw_kernels.__path__)}
    assert {"functional", "losses", "alignment", "barycenter", "costs", "plot"} <= names
