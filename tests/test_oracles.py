"""The oracles agree with each other, so that no law is tested against a wrong truth."""

from __future__ import annotations

import math

import numpy as np
import oracles
import pytest


def _delannoy(n: int, m: int) -> int:
    return sum(math.comb(n, k) * math.comb(m, k) * 2**k for k in range(min(n, m) + 1))


@pytest.mark.parametrize("n, m", [(1, 1), (1, 4), (4, 1), (3, 4), (5, 5)])
def test_enumeration_lists_every_alignment_once(n: int, m: int) -> None:
    paths = oracles.incidence(n, m)
    assert len(paths) == _delannoy(n - 1, m - 1)
    assert len(np.unique(paths, axis=0)) == len(paths)


@pytest.mark.parametrize("gamma", [1e-3, 0.1, 1.0, 10.0])
@pytest.mark.parametrize("size", [1.0, 1e4, 1e30])
def test_recursion_matches_enumeration(gamma: float, size: float) -> None:
    random = np.random.default_rng(0)
    for n, m in [(1, 1), (1, 5), (5, 1), (4, 5)]:
        cost = random.normal(size=(n, m))
        cost[random.random((n, m)) < 0.2] *= size
        cost[random.random((n, m)) < 0.1] = np.inf
        brute, fast = oracles.enumerate_alignments(cost, gamma), oracles.recursion(cost, gamma)
        if math.isinf(brute.value):
            assert math.isinf(fast.value)
        else:
            assert abs(brute.value - fast.value) <= 1e-13 * max(abs(brute.value), 1.0)
        np.testing.assert_allclose(fast.visits, brute.visits, rtol=0, atol=1e-12)
        assert fast.by_gamma == pytest.approx(brute.by_gamma, abs=1e-11)


@pytest.mark.parametrize("gamma", [1e-3, 0.1, 10.0])
@pytest.mark.parametrize("wall", [0.0, 1e9, 1e30])
def test_recursion_matches_fifty_digits(gamma: float, wall: float) -> None:
    random = np.random.default_rng(1)
    cost = random.normal(size=(41, 37)) * 3
    cost[17] += wall
    truth, fast = oracles.recursion_mpmath(cost, gamma), oracles.recursion(cost, gamma)
    assert abs(truth.value - fast.value) <= 1e-14 * abs(truth.value)
    np.testing.assert_allclose(fast.visits, truth.visits, rtol=0, atol=1e-12)
    assert fast.by_gamma == pytest.approx(truth.by_gamma, abs=1e-11)


def test_differences_match_the_covariance_of_visits() -> None:
    random = np.random.default_rng(2)
    cost, direction = random.normal(size=(2, 4, 5))
    exact = oracles.hessian_product(cost, 0.7, direction)
    np.testing.assert_allclose(
        oracles.hessian_product_by_differences(cost, 0.7, direction), exact, rtol=0, atol=1e-9
    )


def test_smoothing_gradient_matches_differences() -> None:
    random = np.random.default_rng(3)
    cost, visits = random.normal(size=(2, 3, 4))
    by_cost, step = oracles.smooth_vjp(cost, 0.3, visits), 1e-6
    for cell in np.ndindex(3, 4):
        bump = np.zeros((3, 4))
        bump[cell] = step
        change = oracles.smooth(cost + bump, 0.3) - oracles.smooth(cost - bump, 0.3)
        assert (change * visits).sum() / (2 * step) == pytest.approx(by_cost[cell], abs=1e-8)


def test_enumeration_keeps_the_digits_of_values_near_zero() -> None:
    """Where one alignment has nearly all the mass: against the recursion in fixed point."""
    cost = np.array([[2.9363274575533574e-06, 1.0462063331560807], [2.5374738849, 6.386181067e-07]])
    truth = oracles.recursion(cost, 0.1).value
    assert abs(truth) < 1e-5
    assert oracles.enumerate_alignments(cost, 0.1).value == pytest.approx(truth, rel=1e-14)
