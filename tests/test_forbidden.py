"""+inf forbids a cell; without an allowed path +inf with gradient 0; NaN stays in its item."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import oracles
import pytest
import torch
from helpers import assert_close, bits, derivative, value_and_gradient
from hypothesis import given
from hypothesis import strategies as st
from strategies import Problem, problems, seeds
from torch import Tensor

from softdtw_kernels import (
    s2dtw,
    s2dtw_from_cost,
    soft_dtw,
    soft_dtw_alignment_from_cost,
    soft_dtw_divergence,
    soft_dtw_from_cost,
)

BLOCKED = {
    "all cells": lambda c: c.fill_(math.inf),
    "first cell": lambda c: c[0, 0].fill_(math.inf),
    "last cell": lambda c: c[-1, -1].fill_(math.inf),
    "a row": lambda c: c[3].fill_(math.inf),
    "a column": lambda c: c[:, 2].fill_(math.inf),
    "a diagonal step": lambda c: (c[:4, 3:].fill_(math.inf), c[3:, :4].fill_(math.inf)),
}


@pytest.mark.parametrize("where", list(BLOCKED))
@pytest.mark.parametrize("gamma", [0.0, 1e-3, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_an_allowed_path_the_value_is_infinite_and_the_gradient_zero(
    where: str, gamma: float, dtype: torch.dtype, backend: str
) -> None:
    cost = torch.randn(3, 7, 6, generator=torch.Generator().manual_seed(0), dtype=dtype)
    BLOCKED[where](cost[1])
    assert math.isinf(oracles.recursion(cost[1].double().numpy(), gamma).value)
    leaf = cost.clone().requires_grad_()
    scale = torch.tensor(gamma, dtype=torch.float64, requires_grad=True)
    value = soft_dtw_from_cost(leaf, gamma=scale, backend=backend)
    assert value[1] == math.inf
    by_cost, by_gamma = derivative(value.sum(), leaf, scale, again=True)
    assert (by_cost[1] == 0).all()
    assert by_cost.isfinite().all()
    assert by_gamma.isfinite()
    for k in (0, 2):
        one = value_and_gradient(soft_dtw_from_cost, cost[k], gamma=gamma, backend=backend)
        assert torch.equal(value[k], one[0])
        assert torch.equal(by_cost[k], one[1])
    (second,) = derivative((by_cost * cost.nan_to_num(posinf=0)).sum(), leaf)
    assert second.isfinite().all()
    assert (second[1] == 0).all()


@given(problem=problems(largest=8), seed=seeds())
def test_forbidden_cells_get_exactly_zero(problem: Problem, seed: int, backend: str) -> None:
    value, gradient = value_and_gradient(
        soft_dtw_from_cost, problem.cost, backend=backend, **problem.arguments
    )
    assert not value.isnan().any()
    assert gradient.isfinite().all()
    assert (gradient[problem.cost.isinf()] == 0).all()


@pytest.mark.parametrize("function", [soft_dtw_from_cost, s2dtw_from_cost])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(seed=seeds(), batch=st.integers(1, 20), gamma=st.sampled_from([0.0, 1e-3, 0.1, 1.0]))
def test_nan_stays_in_its_item(
    seed: int,
    batch: int,
    gamma: float,
    function: Callable[..., Tensor],
    dtype: torch.dtype,
    backend: str,
) -> None:
    random = np.random.default_rng(seed)
    n, m = random.integers(1, 12, size=2)
    cost = torch.from_numpy(random.normal(size=(batch, n, m))).to(dtype)
    clean = value_and_gradient(function, cost, gamma=gamma, backend=backend)
    item, i, j = int(random.integers(batch)), int(random.integers(n)), int(random.integers(m))
    cost[item, i, j] = math.nan
    value, gradient = value_and_gradient(function, cost, gamma=gamma, backend=backend)
    others = torch.arange(batch) != item
    assert value[item].isnan()
    assert gradient[item].isnan().all(), "the gradient of an item with a NaN is NaN"
    assert torch.equal(value[others], clean[0][others])
    assert torch.equal(gradient[others], clean[1][others])


@pytest.mark.parametrize("gamma", [0.0, 1e-3, 1.0])
@pytest.mark.parametrize("blocked", [False, True])
def test_nan_that_no_alignment_reaches_is_still_nan(
    gamma: float, blocked: bool, backend: str
) -> None:
    """A NaN behind forbidden cells, and one beside a matrix without any allowed path."""
    cost = torch.ones(2, 5, 5, dtype=torch.float64)
    cost[0, 1:4, 1:4] = math.inf
    cost[0, 2, 2] = math.nan
    if blocked:
        cost[0, 0, 0] = math.inf
    value, gradient = value_and_gradient(soft_dtw_from_cost, cost, gamma=gamma, backend=backend)
    assert value[0].isnan()
    assert gradient[0].isnan().all()
    assert gradient[1].isfinite().all()


@pytest.mark.parametrize("function", [soft_dtw, s2dtw, soft_dtw_divergence])
def test_nan_features_stay_in_their_sequence(function: Callable[..., Tensor], backend: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 5, 2, generator=generator)
    y = torch.randn(3, 6, 2, generator=generator)
    clean = value_and_gradient(function, x, y, backend=backend)
    x[1, 2, 0] = math.nan
    dirty = value_and_gradient(function, x, y, backend=backend)
    assert dirty[0][1].isnan()
    for a, b in zip(clean, dirty, strict=True):
        assert torch.equal(a[[0, 2]], b[[0, 2]])


@pytest.mark.parametrize("gamma", [1e-3, 0.1, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_staircase_through_forbidden_cells(
    gamma: float, dtype: torch.dtype, backend: str
) -> None:
    """All cells but those of one path are forbidden: left to choose is which corners to cut."""
    random = np.random.default_rng(0)
    n, m = 150, 170
    i = j = 0
    visits = np.zeros((n, m))
    visits[0, 0] = 1
    while (i, j) != (n - 1, m - 1):
        di, dj = oracles.STEPS[random.integers(3)]
        if i + di < n and j + dj < m:
            i, j = i + di, j + dj
            visits[i, j] = 1
    cost = torch.from_numpy(np.where(visits > 0, random.normal(size=(n, m)), np.inf)).to(dtype)
    truth = oracles.recursion(cost.double().numpy(), gamma)
    value, gradient = value_and_gradient(soft_dtw_from_cost, cost, gamma=gamma, backend=backend)
    assert_close(value, truth.value, 0.0, "value", rtol=1e-12 if dtype == torch.float64 else 1e-6)
    assert_close(gradient, truth.visits, 1e-9 if dtype == torch.float64 else 5e-5, "gradient")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_costs_at_the_end_of_the_range(dtype: torch.dtype) -> None:
    """Masks near the largest number of the dtype act as +inf does."""
    cost = torch.randn(2, 9, 8, generator=torch.Generator().manual_seed(3), dtype=dtype)
    mask = torch.rand(2, 9, 8, generator=torch.Generator().manual_seed(4)) < 0.2
    mask[:, [0, -1], [0, -1]] = False
    huge = cost.masked_fill(mask, torch.finfo(dtype).max / 8)
    value, gradient = value_and_gradient(soft_dtw_from_cost, huge, gamma=0.1)
    truth = value_and_gradient(soft_dtw_from_cost, cost.masked_fill(mask, math.inf), gamma=0.1)
    assert_close(value, truth[0], 0.0, "value", rtol=1e-6)
    assert_close(gradient, truth[1], 5e-5, "gradient")


def test_alignment_of_an_item_without_a_path_is_empty(backend: str) -> None:
    cost = torch.full((2, 3, 3), math.inf)
    cost[0] = 1.0
    alignment = soft_dtw_alignment_from_cost(cost, backend=backend)
    assert not alignment.expected[1].any()
    paths = alignment.path()
    assert len(paths[0]) == 3
    assert len(paths[1]) == 0


@given(problem=problems(largest=6))
def test_results_do_not_depend_on_forbidden_padding(problem: Problem, backend: str) -> None:
    """A frame around the costs that no path can use changes nothing but the indices."""
    n, m = problem.cost.shape[-2:]
    framed = torch.full((*problem.cost.shape[:-2], n + 2, m + 2), math.inf, dtype=torch.float64)
    framed[..., 1:-1, 1:-1] = problem.cost
    framed[..., 0, 0] = framed[..., -1, -1] = 0.0
    plain = value_and_gradient(
        soft_dtw_from_cost, problem.cost, gamma=problem.gamma, backend=backend
    )
    value, gradient = value_and_gradient(
        soft_dtw_from_cost, framed, gamma=problem.gamma, backend=backend
    )
    finite = problem.cost[problem.cost.isfinite()].abs()
    scale = max(problem.gamma, finite.max().item() if finite.numel() else 0.0)
    assert_close(value, plain[0], 1e-12 * scale * (n + m), "value")
    tolerance = 1e-6 if scale > 1e5 * problem.gamma else 1e-9
    assert_close(gradient[..., 1:-1, 1:-1], plain[1], tolerance, "gradient")
    assert bits(gradient[..., 1, 0]) == bits(torch.zeros_like(value))
