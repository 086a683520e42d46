"""Kernels flush subnormal numbers to 0, and nobody else does so after a call."""

from __future__ import annotations

import platform

import numpy as np
import pytest
import torch

import softdtw_kernels as sk
from softdtw_kernels._cpu import subnormal
from softdtw_kernels._cpu.jit import jit

KNOWN = platform.machine().lower() in ("x86_64", "amd64", "aarch64", "arm64")


@jit
def product_inside(a):
    before = subnormal.flush_subnormals()
    product = a[0] * a[1]
    subnormal.restore(before)
    return product


def outside() -> tuple[float, float, float]:
    """A subnormal product by NumPy, by torch, and a subnormal number as it is read."""
    a = np.array([1e-30, 1e-10, 1e-42], np.float32)
    t = torch.from_numpy(a)
    return float(a[0] * a[1]), float((t[:1] * t[1:2])[0]), float((t[2:] + 0.0)[0])


@pytest.mark.skipif(not KNOWN, reason="no switch is known for this processor")
def test_inside_a_kernel_a_subnormal_product_is_zero() -> None:
    assert product_inside(np.array([1e-30, 1e-10], np.float32)) == 0.0
    assert product_inside(np.array([1e-300, 1e-10])) == 0.0


@pytest.mark.parametrize("size", [8, 64], ids=["lanes", "strips"])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("case", ["usual", "nan", "no path", "again", "smoothed"])
def test_after_a_call_subnormal_numbers_are_as_before(size: int, threads: int, case: str) -> None:
    cost = torch.rand(20, size, size)
    if case == "nan":
        cost[3, 0, 0] = torch.nan
    elif case == "no path":
        cost[:, size // 2] = torch.inf
    elif case == "again":  # in float64, then in the exact tier
        cost[:, size // 2] = 1e30
    cost.requires_grad_()
    function = sk.s2dtw_from_cost if case == "smoothed" else sk.soft_dtw_from_cost
    before, number = outside(), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        function(cost, gamma=0.01).sum().backward()
    finally:
        torch.set_num_threads(number)
    assert outside() == before
    assert min(before) > 0.0


def test_a_caller_who_flushes_goes_on_to_do_so() -> None:
    if not torch.set_flush_denormal(True):
        pytest.skip("torch knows no switch")
    try:
        sk.soft_dtw_from_cost(torch.rand(2, 8, 8), gamma=0.1)
        assert max(outside()) == 0.0
    finally:
        torch.set_flush_denormal(False)
