"""Pairs of many strips on the CPU: tiles that no mass reaches are not visited, borders of very long
pairs are made once more, and what is short shares vectors. No result may tell.
"""

from __future__ import annotations

import pytest
import torch
from helpers import bits

from softdtw_kernels import soft_dtw_from_cost


def trained(cost: torch.Tensor, **arguments: object) -> tuple[torch.Tensor, torch.Tensor]:
    leaf = cost.detach().clone().requires_grad_()
    value = soft_dtw_from_cost(leaf, **arguments)
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), gradient


def drawn(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("kind", ["plain", "band", "lengths", "large"])
@pytest.mark.parametrize("gamma", [0.01, 1.0])
def test_a_long_pair_and_its_transpose(gamma: float, kind: str) -> None:
    """In float64 several parts of strips; "large" float32 costs are done in float64."""
    cost = drawn(1, 1900, 2100)
    there: dict[str, object] = {"gamma": gamma}
    back = dict(there)
    if kind == "band":
        there["bandwidth"] = back["bandwidth"] = 300
    elif kind == "lengths":
        there |= {"x_lengths": torch.tensor([1777]), "y_lengths": torch.tensor([1999])}
        back |= {"x_lengths": torch.tensor([1999]), "y_lengths": torch.tensor([1777])}
    elif kind == "large":
        cost = (cost * 1e8 * gamma).float()
    value, gradient = trained(cost, **there)
    other, transposed = trained(cost.mT.contiguous(), **back)
    assert torch.allclose(value, other, rtol=1e-12 if cost.dtype == torch.float64 else 1e-6)
    error = (gradient - transposed.mT).abs().max()
    assert error < (1e-9 if cost.dtype == torch.float64 else 5e-5)
    # Every path passes every row, column, and both ends.
    n, m = (1777, 1999) if kind == "lengths" else (1900, 2100)
    assert (gradient[0, :n].sum(1) > 1 - 1e-4).all() and (
        gradient[0, :, :m].sum(0) > 1 - 1e-4
    ).all()
    assert gradient[0, n:].abs().sum() == 0 and gradient[0, :, m:].abs().sum() == 0
    if kind != "large":
        single, its = trained(cost.float(), **there)
        assert torch.allclose(single.double(), value, rtol=1e-6, atol=0.0)
        assert (its - gradient).abs().max() < 5e-5


@pytest.mark.parametrize("shape", [(24, 260), (250, 200), (65, 64), (90, 33), (1, 300), (300, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bandwidth", [None, 30])
def test_vectors_of_pairs_and_of_rows_give_the_same_bits(
    shape: tuple[int, int], dtype: torch.dtype, bandwidth: int | None
) -> None:
    cost = drawn(*shape).to(dtype)
    for gamma in (0.01, 1.0):
        value, gradient = trained(cost, gamma=gamma, bandwidth=bandwidth)
        values, gradients = trained(cost.expand(16, *shape), gamma=gamma, bandwidth=bandwidth)
        for k in (0, 7, 15):
            assert bits(values[k]) == bits(value)
            assert bits(gradients[k]) == bits(gradient)


def test_a_cost_far_below_zero_is_no_nan() -> None:
    """It leaves the range of float32 as a multiple of gamma; other tiers tell it from NaN."""
    for shape in ((7, 7), (120, 130)):
        cost = torch.ones(shape)
        cost[3, 3] = -1e38
        assert soft_dtw_from_cost(cost, gamma=1e-3) == cost.min()
        cost[5, 5] = torch.nan
        assert soft_dtw_from_cost(cost, gamma=1e-3).isnan()
