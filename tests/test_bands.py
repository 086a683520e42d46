"""The band min(0, M - N) - w <= j - i <= max(0, M - N) + w, by each pair's own lengths."""

from __future__ import annotations

import functools
import math

import numpy as np
import oracles
import pytest
import torch
from helpers import assert_close, bits, value_and_gradient
from hypothesis import given
from hypothesis import strategies as st
from strategies import Problem, gammas, problems

from softdtw_kernels import (
    soft_dtw,
    soft_dtw_alignment_from_cost,
    soft_dtw_divergence,
    soft_dtw_from_cost,
)


def _outside(problem: Problem) -> torch.Tensor:
    outside = torch.ones_like(problem.cost, dtype=torch.bool)
    for index, block in problem.items():
        n, m = block.shape
        outside[index][:n, :m] = ~torch.from_numpy(oracles.band(n, m, problem.bandwidth))
    return outside


@given(problem=problems(largest=12, forbidden=False), bandwidth=st.integers(0, 12))
def test_a_band_is_forbidden_cells_outside_it(
    problem: Problem, bandwidth: int, backend: str
) -> None:
    problem = Problem(problem.cost, problem.gamma, problem.x_lengths, problem.y_lengths, bandwidth)
    forbidden = problem.cost.masked_fill(_outside(problem), math.inf)
    value, gradient = value_and_gradient(
        soft_dtw_from_cost, problem.cost, backend=backend, **problem.arguments
    )
    other_value, other_gradient = value_and_gradient(
        soft_dtw_from_cost, forbidden, backend=backend, **{**problem.arguments, "bandwidth": None}
    )
    scale = max(problem.gamma, problem.cost.abs().max().item()) if problem.cost.numel() else 1.0
    assert_close(value, other_value, 1e-12 * scale * sum(problem.cost.shape[-2:]), "value")
    tolerance = 1e-6 if scale > 1e5 * problem.gamma else 1e-9
    assert_close(gradient, other_gradient, tolerance, "gradient")
    assert value.isfinite().all(), "a path exists within every band"


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 1e38])
@given(problem=problems(largest=10, forbidden=False), bandwidth=st.integers(0, 8))
def test_cells_outside_the_band_are_never_read(
    problem: Problem, bandwidth: int, garbage: float, backend: str
) -> None:
    problem = Problem(problem.cost, problem.gamma, problem.x_lengths, problem.y_lengths, bandwidth)
    outside = _outside(problem)
    value, gradient = value_and_gradient(
        soft_dtw_from_cost, problem.cost, backend=backend, **problem.arguments
    )
    other_value, other_gradient = value_and_gradient(
        soft_dtw_from_cost,
        problem.cost.masked_fill(outside, garbage),
        backend=backend,
        **problem.arguments,
    )
    assert bits(value) == bits(other_value)
    assert bits(gradient) == bits(other_gradient)
    assert (gradient[outside] == 0).all()


@functools.cache  # both backends are compared with it
def _truth(shape: tuple[int, int], bandwidth: int) -> tuple[np.ndarray, oracles.Truth]:
    cost = np.random.default_rng(bandwidth).normal(size=shape)
    return cost, oracles.recursion(oracles.restrict(cost, *shape, bandwidth), 0.1)


@pytest.mark.parametrize("shape", [(200, 200), (200, 120), (90, 260), (257, 255)])
@pytest.mark.parametrize("bandwidth", [0, 1, 5, 31, 64, 1000])
def test_long_bands_match_the_oracle(shape: tuple[int, int], bandwidth: int, backend: str) -> None:
    cost, truth = _truth(shape, bandwidth)
    value, gradient = value_and_gradient(
        soft_dtw_from_cost, torch.from_numpy(cost), gamma=0.1, bandwidth=bandwidth, backend=backend
    )
    assert_close(value, truth.value, 0.0, "value", rtol=1e-12)
    assert_close(gradient, truth.visits, 1e-9, "gradient")


@given(sides=st.tuples(st.integers(1, 9), st.integers(1, 9)), gamma=gammas())
def test_band_zero_of_equal_lengths_is_the_diagonal(
    sides: tuple[int, int], gamma: float, backend: str
) -> None:
    n = sides[0]
    cost = torch.randn(n, n, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    value, gradient = value_and_gradient(
        soft_dtw_from_cost, cost, gamma=gamma, bandwidth=0, backend=backend
    )
    assert_close(value, cost.trace(), 1e-12 * n, "trace")
    assert_close(gradient, torch.eye(n), 0.0, "diagonal")


def test_features_and_divergence_take_the_band(backend: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 9, 2, generator=generator, dtype=torch.float64)
    y = torch.randn(3, 7, 2, generator=generator, dtype=torch.float64)
    terms = [
        soft_dtw(a, b, bandwidth=1, gamma=0.2, backend=backend) for a, b in ((x, y), (x, x), (y, y))
    ]
    divergence = soft_dtw_divergence(x, y, bandwidth=1, gamma=0.2, backend=backend)
    assert_close(divergence, terms[0] - (terms[1] + terms[2]) / 2, 1e-12, "divergence")
    assert not torch.allclose(terms[0], soft_dtw(x, y, gamma=0.2, backend=backend))


@pytest.mark.parametrize("bandwidth", [2**31 - 1, 2**62, 2**63 - 1, 2**70])
def test_a_band_of_any_width_is_no_band(bandwidth: int, backend: str) -> None:
    """Sums with it fit no integer: run small and large, value and both derivatives."""
    generator = torch.Generator().manual_seed(0)
    for shape in ((2, 4, 5), (2, 50, 60)):
        cost = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        results = []
        for width in (bandwidth, None):
            alignment = soft_dtw_alignment_from_cost(
                cost, gamma=0.3, bandwidth=width, backend=backend
            )
            (product,) = torch.autograd.grad(alignment.expected[..., 1:, :].sum(), cost)
            results.append((alignment.value, alignment.expected, product))
        for got, truth, what in zip(*results, ("value", "expected", "Hessian"), strict=True):
            assert_close(got.detach(), truth.detach(), 1e-12, what)


OF_BATCHES = {
    "plain": {},
    "warp_cost": {"warp_cost": 0.3},
    "repeat": {"repeat": "y"},
    "hard": {"gamma": 0.0},
    "hard, warp_cost": {"gamma": 0.0, "warp_cost": 0.3},
    "one hard": {"gamma": torch.tensor([0.0, 0.5, 0.5], dtype=torch.float64)},
}


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(7, 6), (9, 5), (70, 60), (600, 500)], ids=str)
@pytest.mark.parametrize("settings", OF_BATCHES)
def test_beyond_the_band_the_gradient_is_0_where_the_value_is_no_number(
    settings: str, shape: tuple[int, int], dtype: torch.dtype, bad: float
) -> None:
    n, m = shape[0] - 1, shape[1]
    random = torch.Generator().manual_seed(0)
    for spoilt in ((0,), (1,), (0, 1)):
        cost = torch.rand(3, *shape, dtype=dtype, generator=random)
        for item in spoilt:
            cost[item, 2, 2] = bad
        (grad,) = value_and_gradient(
            soft_dtw_from_cost, cost, x_lengths=[n] * 3, bandwidth=1, **OF_BATCHES[settings]
        )[1:]
        within = torch.zeros(shape, dtype=torch.bool)
        within[:n] = torch.from_numpy(oracles.band(n, m, 1))
        assert (grad[:, ~within] == 0).all()
        assert grad[list(spoilt)][:, within].isnan().all()
        assert not grad[2].isnan().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("pairs, rows, columns", [(1, 3, 3), (20, 9, 8), (1, 30, 20), (1, 70, 60)])
@pytest.mark.parametrize("settings", ["plain", "warp_cost", "repeat"])
def test_a_cost_of_minus_infinity_is_no_number(
    settings: str, pairs: int, rows: int, columns: int, dtype: torch.dtype
) -> None:
    """At gamma > 0, in lattices of any size; the value may be -inf."""
    cost = torch.rand(pairs, rows, columns, dtype=dtype)
    for place in ((2, 2), (0, 0), (-1, -1)):
        given_ = cost.clone()
        given_[:, place[0], place[1]] = -math.inf
        value, grad = value_and_gradient(soft_dtw_from_cost, given_, **OF_BATCHES[settings])
        assert (value.isnan() | (value == -math.inf)).all()
        assert grad.isnan().all()
