"""Pairs of which one path outweighs all others: to what the exact tier gives, which did them
before.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers import bits
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from softdtw_kernels import soft_dtw_from_cost
from softdtw_kernels._cpu import dominant
from softdtw_kernels._cpu.batch import ALL, Batch
from softdtw_kernels._cpu.scaling import AGAIN, SURE

DTYPES = [torch.float32, torch.float64]
VALUE = {torch.float32: 1e-6, torch.float64: 1e-12}
GRADIENT = {torch.float32: 5e-5, torch.float64: 1e-9}


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, dtype=torch.float64, generator=generator)


def found(cost: Tensor, settings: dict[str, Any]) -> tuple[Tensor, Tensor]:
    cost = cost.clone().requires_grad_()
    value = soft_dtw_from_cost(cost, **settings)
    factors = 0.5 + random(*value.shape, seed=7).to(value.dtype)
    return value.detach(), torch.autograd.grad(value, cost, factors)[0]


def counted(patch: pytest.MonkeyPatch) -> list[int]:
    """How many pairs come to the tier, and how many it finishes."""
    solve, counts = dominant.solve, [0, 0]

    def count(task: Any, gradients: Any, items: Any, out: Any, status: Any) -> None:
        solve(task, gradients, items, out, status)
        counts[0] += items.size
        counts[1] += int((status[items] == SURE).sum())

    patch.setattr(dominant, "solve", count)
    return counts


def without(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(dominant, "solve", lambda *_: None)


@st.composite
def huge_costs(draw: st.DrawFn, dtype: torch.dtype) -> Tensor:
    pairs = draw(st.sampled_from([1, 2, 9, 40]))
    rows, columns = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    kind = draw(st.sampled_from(["uniform", "signed", "integers", "few digits", "one of each"]))
    cost = random(pairs, rows, columns, seed=draw(st.integers(0, 9)))
    if kind == "signed":
        cost = 2.0 * cost - 1.0
    elif kind == "integers":  # ties, of which no path is alone
        cost = (4.0 * cost).floor()
    elif kind == "few digits":
        cost = (1e3 * cost).floor() * 1e-3
    elif kind == "one of each":  # huge beside what is not
        cost = cost * 10.0 ** (-10.0 * random(pairs, rows, columns, seed=3))
    cost = cost * 10.0 ** draw(st.integers(5, 33))
    for number in draw(st.lists(st.sampled_from([torch.inf, torch.nan, -torch.inf]), max_size=1)):
        cost[random(pairs, rows, columns, seed=2) < 0.05] = number
    if draw(st.booleans()):
        cost[0] = random(rows, columns, seed=4)  # a plain pair among them
    return cost.to(dtype)


@pytest.mark.slow  # most of it compiles
@given(data=st.data())
@pytest.mark.parametrize("dtype", DTYPES)
def test_results_are_those_of_the_exact_tier(dtype: torch.dtype, data: st.DataObject) -> None:
    draw = data.draw
    cost = draw(huge_costs(dtype))
    pairs, rows, columns = cost.shape
    settings: dict[str, Any] = {"gamma": draw(st.sampled_from([1.0, 0.01, 10.0]))}
    kind = draw(st.sampled_from(["plain", "band", "lengths"]))
    if kind == "band":
        settings["bandwidth"] = draw(st.integers(0, 6))
    if kind == "lengths":
        settings["x_lengths"] = [1 + (3 * k) % rows for k in range(pairs)]
        settings["y_lengths"] = [1 + k % columns for k in range(pairs)]
    results = found(cost, settings)
    with pytest.MonkeyPatch.context() as patch:
        without(patch)
        expected = found(cost, settings)
    value, truth = results[0].double(), expected[0].double()
    near = (value - truth).abs() <= VALUE[dtype] * truth.abs()
    assert (near | (value == truth) | (value.isnan() & truth.isnan())).all(), (value, truth)
    grad, right = (g.double() for g in (results[1], expected[1]))
    off = (grad - right).abs()
    assert ((off <= GRADIENT[dtype]) | (grad.isnan() & right.isnan())).all(), (grad, right)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(9, 8, 8), (40, 12, 31), (3, 33, 20), (2, 70, 100)], ids=str)
def test_most_huge_costs_are_such(
    shape: tuple[int, int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else nothing of this is tested."""
    counts = counted(monkeypatch)
    for change in (lambda c: c, lambda c: 2.0 * c - 1.0):
        value, grad = found(1e30 * change(random(*shape)).to(dtype), {"gamma": 1.0})
        hard = found(1e30 * change(random(*shape)).to(dtype), {"gamma": 0.0})
        torch.testing.assert_close(value, hard[0], rtol=VALUE[dtype], atol=0)
        assert torch.equal(grad, hard[1])
    assert counts[0] > 0 and counts[1] == counts[0]


def test_margins_tell_how_far_another_path_is() -> None:
    """From the first of four pairs to the last one directly, or by another that costs little."""
    apart = np.array([0.0, 1e-9, 1.0, 50.0, 64.3, 64.5, 1e4])
    cost = np.zeros((1, apart.size, 2, 2))
    cost[0, :, 0, 1], cost[0, :, 1, 0] = apart, 1e9
    cost[..., 0, 0], cost[..., 1, 1] = 1e10, 1e12
    task = Batch(cost, np.ones(1), np.empty(0), ALL, ALL, -1)
    values, status = np.empty(apart.size), np.full(apart.size, AGAIN, np.uint8)
    dominant.solve_some(task, None, np.arange(apart.size), values, status)
    assert (status == SURE).tolist() == [False] * 5 + [True] * 2


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_pair_has_the_same_bits_wherever_it_stands(dtype: torch.dtype) -> None:
    cost = 1e30 * random(70, 9, 11).to(dtype)
    cost[::7] *= 1e-30
    cost[3, 4, 4] = torch.nan
    cost[5] = (cost[5] * 1e-29).floor()
    settings = {"gamma": 0.1}
    value, grad = found(cost, settings)
    for k in range(0, 70, 3):
        one, by_one = found(cost[k : k + 1], settings)
        assert bits(one) == bits(value[k : k + 1])
        factor = (0.5 + random(70, seed=7)[[k, 0]]).to(dtype)
        torch.testing.assert_close(by_one / factor[1], grad[k : k + 1] / factor[0], equal_nan=True)


@pytest.mark.parametrize("pairs", [12, 13])
def test_no_gradient_by_gamma_beside_plain_pairs(pairs: int) -> None:
    """One path has no entropy, whatever the pairs in the lanes beside it have."""
    cost = random(pairs, 45, 45).float()  # more cells than pairs have that are copied
    cost[::2] *= 1e9
    gamma = torch.ones(pairs, dtype=torch.float64, requires_grad=True)
    soft_dtw_from_cost(cost, gamma=gamma).sum().backward()
    small = torch.ones(pairs, dtype=torch.float64, requires_grad=True)
    soft_dtw_from_cost(cost[:, :30, :30], gamma=small).sum().backward()
    for leaf in (gamma, small):
        assert leaf.grad is not None
        assert (leaf.grad[::2] == 0.0).all() and (leaf.grad[1::2] < -1.0).all()
