"""Pairs of many strips on the CPU: tiles that no mass reaches are not visited, borders of very long
pairs are made once more, and what is short shares vectors. No result may tell.
"""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pytest
import torch
from helpers import bits, examples
from hypothesis import given
from hypothesis import strategies as st
from strategies import COST_KINDS, gammas, make_cost, seeds

from softdtw_kernels import soft_dtw_from_cost
from softdtw_kernels._cpu.arrays import NOTHING
from softdtw_kernels._cpu.batch import ALL, Batch, Gradients
from softdtw_kernels._cpu.ends import Open
from softdtw_kernels._cpu.scaling import precision_of
from softdtw_kernels._cpu.solve import solve


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


def solved(task: Batch, scale: np.ndarray, low: bool) -> tuple[np.ndarray, Gradients]:
    """By strips of one vector, or of two."""
    gradients = Gradients(scale, True, np.zeros_like(task.cost))
    with (
        patch.object(Batch, "in_lanes", lambda task, sums: False),
        patch.object(Batch, "in_low_strips", lambda task, precision: low),
    ):
        values = solve(task, gradients)
    return values, gradients


def check_heights_of_strips(task: Batch, scale: np.ndarray) -> None:
    """Values and gradients by the costs to the bit; sums over cells have other orders."""
    (values, one), (truth, two) = solved(task, scale, True), solved(task, scale, False)
    assert values.tobytes() == truth.tobytes()
    assert one.cost.tobytes() == two.cost.tobytes()
    rounding = 1e-4 if task.cost.dtype == np.float32 else 1e-12
    np.testing.assert_allclose(one.sums, two.sums, rounding, rounding * sum(task.lattice))


@pytest.mark.slow
@examples(60)
@given(data=st.data())
def test_strips_of_one_vector_give_the_bits_of_those_of_two(data: st.DataObject) -> None:
    sides = st.integers(1, 70), st.one_of(st.integers(1, 70), st.integers(1, 300))
    rows, columns = data.draw(st.permutations([data.draw(side) for side in sides]))
    shape = (*data.draw(st.sampled_from(((1, 1), (1, 3), (2, 2)))), rows, columns)
    kind, seed = data.draw(st.sampled_from(COST_KINDS)), data.draw(seeds())
    cost = make_cost(kind, shape, seed).astype(data.draw(st.sampled_from((np.float32, float))))
    random, pairs = np.random.default_rng(seed), shape[0] * shape[1]
    cost[random.random(shape) < data.draw(st.sampled_from((0.0, 0.1)))] = np.inf
    task = Batch(cost, np.array([data.draw(gammas())]), NOTHING, ALL, ALL, -1)
    form = data.draw(st.sampled_from(("plain", "band", "lengths", "weak", "open")))
    if form == "band":
        task.bandwidth = data.draw(st.integers(0, 40))
    elif form == "lengths":
        task.n, task.m = (random.integers(1, size + 1, pairs) for size in (rows, columns))
    elif form == "weak":
        task.dummy = random.normal(size=1)
    elif form == "open":
        begin, end = (data.draw(st.sampled_from(("x", "y", "xy"))) for _ in "12")
        task.open = Open(begin, end, "xy", np.array([0.1]))
    check_heights_of_strips(task, random.normal(size=pairs).astype(cost.dtype))


@pytest.mark.parametrize("shape", [(2, 4096), (4096, 3), (8, 9000), (200_000, 4), (70_000, 8)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_low_strips_of_long_pairs(shape: tuple[int, int], dtype: type) -> None:
    """Of which not all weights, or not all borders, are kept."""
    cost = drawn(1, 1, *shape).numpy().astype(dtype)
    task = Batch(cost, np.array([0.1]), NOTHING, ALL, ALL, -1)
    assert task.in_low_strips(precision_of(cost))
    check_heights_of_strips(task, np.full(1, 1.5, dtype))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_where_strips_are_low(dtype: type) -> None:
    """Where most of the lanes of higher ones would be outside, and nowhere else."""
    precision = precision_of(np.empty(0, dtype))

    def low(rows: int, columns: int, bandwidth: int = -1) -> bool:
        cost = np.empty((1, 1, rows, columns), dtype)
        return Batch(cost, np.ones(1), NOTHING, ALL, ALL, bandwidth).in_low_strips(precision)

    assert low(2, 4096) and low(4096, 2) and low(4096, 4096, bandwidth=3)
    for rows, columns in ((1024, 1024), (4096, 4096), (512, 2048), (2048, 512), (300, 5000)):
        assert not low(rows, columns)
        assert not low(rows, columns, bandwidth=200)
    assert not low(8, 8) and not low(200, 2)  # not worth a form of their own


def test_a_cost_far_below_zero_is_no_nan() -> None:
    """It leaves the range of float32 as a multiple of gamma; other tiers tell it from NaN."""
    for shape in ((7, 7), (120, 130)):
        cost = torch.ones(shape)
        cost[3, 3] = -1e38
        assert soft_dtw_from_cost(cost, gamma=1e-3) == cost.min()
        cost[5, 5] = torch.nan
        assert soft_dtw_from_cost(cost, gamma=1e-3).isnan()
