"""Pairs out of the range of exponents: on vectors as in the scalar tier."""

from __future__ import annotations

import numpy as np
import pytest

from softdtw_kernels._cpu import exact, unbounded
from softdtw_kernels._cpu.arrays import NOTHING
from softdtw_kernels._cpu.batch import ALL
from softdtw_kernels._cpu.scaling import DOUBLE

# Around the 32 rows of a strip and the 16 of its halves; the last keeps borders and not weights.
SHAPES = [(1, 1), (1, 50), (40, 2), (16, 17), (33, 31), (70, 90), (500, 420)]


def costs_of_kind(kind: str, shape: tuple[int, int, int, int]) -> np.ndarray:
    rng = np.random.default_rng(sum(shape))
    cost = rng.random(shape)
    if kind == "walls":  # all paths cross some, in sums that hide the rest from one float64
        cost[rng.random(shape) < 0.3] = 1e30
        cost[..., shape[2] // 2, :] = 1e30
    elif kind == "ties":
        cost = np.full(shape, 1e30)
    elif kind == "holes":
        cost = 1e25 * rng.standard_normal(shape)
        cost[rng.random(shape) < 0.1] = np.inf
        cost[..., 0, 0] = cost[..., -1, -1] = 0.0
    return cost


@pytest.mark.parametrize("kind", ["plain", "walls", "ties", "holes"])
@pytest.mark.parametrize("weak", [False, True], ids=["", "weak"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_are_those_of_the_scalar_tier(
    shape: tuple[int, int], weak: bool, kind: str
) -> None:
    pairs = 1 if shape[0] > 100 else 3
    cost = costs_of_kind(kind, (1, pairs, *shape))
    gamma, dummy = np.array([0.7, 1e-3, 30.0])[:pairs], np.array([0.3] if weak else [])
    n, m = ALL, ALL
    if pairs > 1:
        n, m = (np.array([size, (size + 1) // 2, 1]) for size in shape)
    bandwidth = -1 if weak else shape[0] // 3
    items, scale = np.arange(pairs), np.linspace(0.5, 2.0, pairs)
    truth, found = np.empty((2, pairs))
    true_grad, grad = np.zeros((2, *cost.shape))
    true_sums, sums = np.zeros((2, 2, pairs))
    problem = (cost, gamma, dummy, n, m, bandwidth)
    exact.gradient(*problem, items, scale, truth, true_grad, true_sums)
    unbounded.solve(items, *problem, DOUBLE.bounds, found, True, scale, True, grad, sums)
    np.testing.assert_allclose(found, truth, rtol=1e-14)
    np.testing.assert_allclose(grad, true_grad, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(sums, true_sums, rtol=1e-9, atol=1e-11)
    alone = np.empty(pairs)
    unbounded.solve(items, *problem, DOUBLE.bounds, alone, False, alone, False, cost, NOTHING[None])
    assert alone.tobytes() == found.tobytes()
