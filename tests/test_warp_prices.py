"""Prices of steps and of frames left out beside costs of any size, against sums of 120 digits."""

from __future__ import annotations

import decimal
import math
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from helpers import assert_close
from pattern_calls import check_paths_and_slopes_of_gamma_0
from pattern_oracle import paths
from torch import Tensor

from softdtw_kernels import soft_dtw_from_cost
from softdtw_kernels._cpu import pattern as cpu

DTYPES = torch.float32, torch.float64
VALUES = {torch.float32: 1e-6, torch.float64: 1e-12}
GRADIENTS = {torch.float32: 5e-5, torch.float64: 1e-9}
Numbers = list[list[Decimal]]


def exact(matrix: Tensor) -> Numbers:
    return [[Decimal(number) for number in row] for row in matrix.tolist()]


def truth(cost: Numbers, gamma: float, warp: float, repeat: str) -> tuple[Decimal, Numbers]:
    """The value, and the visits. No path is forbidden."""
    rows, columns = len(cost), len(cost[0])
    with decimal.localcontext(decimal.Context(prec=120)):
        g, w, infinite = Decimal(gamma), Decimal(warp), Decimal("Infinity")
        found: dict[tuple[int, int], Decimal] = {}
        weights: dict[tuple[int, int], list[tuple[tuple[int, int], Decimal]]] = {}
        for i in range(rows):
            for j in range(columns):
                before = [((i - 1, j - 1), found.get((i - 1, j - 1), infinite))]
                if "y" in repeat:
                    before.append(((i - 1, j), found.get((i - 1, j), infinite) + w))
                if "x" in repeat:
                    before.append(((i, j - 1), found.get((i, j - 1), infinite) + w))
                least = min(number for _, number in before)
                if i + j == 0:
                    found[0, 0], weights[0, 0] = cost[0][0], []
                elif least == infinite:
                    found[i, j], weights[i, j] = infinite, []
                else:
                    powers = [(cell, (-(number - least) / g).exp()) for cell, number in before]
                    total = sum(power for _, power in powers)
                    found[i, j] = cost[i][j] + least - g * Decimal(total).ln()
                    weights[i, j] = [(cell, power / total) for cell, power in powers]
        visits = [[Decimal(0)] * columns for _ in range(rows)]
        visits[-1][-1] = Decimal(1)
        for i in reversed(range(rows)):
            for j in reversed(range(columns)):
                for (a, b), weight in weights[i, j]:
                    if weight:
                        visits[a][b] += weight * visits[i][j]
        return found[rows - 1, columns - 1], visits


def as_floats(matrix: Numbers) -> np.ndarray:
    return np.array([[float(number) for number in row] for row in matrix])


def values_of(cost: Tensor, gamma: float, **options: Any) -> list[float]:
    """By the ways that a call may take: prepared, with a state, and neither."""
    ways = (
        (cost, gamma),
        (cost.clone().requires_grad_(), gamma),
        (cost, torch.tensor(gamma, dtype=torch.float64)),
    )
    batch = torch.stack([cost + 1.0, cost])
    found = [soft_dtw_from_cost(c, gamma=g, **options).item() for c, g in ways]
    leaf = batch.clone().requires_grad_()
    numbers = torch.full((2,), gamma, dtype=torch.float64)
    found += [soft_dtw_from_cost(c, gamma=numbers, **options)[1].item() for c in (batch, leaf)]
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 1), (9, 4), (3, 12), (40, 13)])
def test_values_near_0_after_the_price_of_repeats(
    shape: tuple[int, int], dtype: torch.dtype
) -> None:
    repeat, gamma = "y" if shape[0] > shape[1] else "x", 0.01
    generator = torch.Generator().manual_seed(0)
    cost = torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype) - 5.0
    numbers = exact(cost)
    more = abs(shape[0] - shape[1])
    free, _ = truth(numbers, gamma, 0.0, repeat)
    for value in (1e-3, -1e-4, 3.0):
        warp = float((Decimal(value) - free) / more)
        expected = float(truth(numbers, gamma, warp, repeat)[0])
        for got in values_of(cost, gamma, warp_cost=warp, repeat=repeat):
            assert abs(got - expected) <= VALUES[dtype] * abs(expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_price_that_cancels_the_costs(dtype: torch.dtype) -> None:
    cost = torch.tensor([[-2.0], [1.0]], dtype=dtype)
    for repeat in ("y", "xy"):
        assert values_of(cost, 1.0, warp_cost=1.0, repeat=repeat) == [0.0] * 5


@pytest.mark.parametrize("warp", [1e-20, 1e-12, 1e-6, 0.5])
def test_a_cost_of_warping_beside_costs_that_cancel(warp: float) -> None:
    """One path: the value is the sum, rounded once."""
    for cost in ([-1.0, 2.0, -2.0, 1.0, 0.0], [0.2, 1e30, 0.1, -1e30, 0.3], [1e9, -1e9, 0.25]):
        expected = float(sum(map(Fraction, cost)) + (len(cost) - 1) * Fraction(warp))
        for shape in ((1, -1), (-1, 1)):
            matrix = torch.tensor(cost, dtype=torch.float64).reshape(shape)
            for got in values_of(matrix, 1.0, warp_cost=warp):
                assert abs(got - expected) <= 1e-12 * abs(expected)


def costs_with_walls(seed: int, dtype: torch.dtype) -> Tensor:
    random = np.random.default_rng(seed)
    cost = random.random((6, 6))
    walls = random.random((6, 6))
    cost[walls < 0.2], cost[walls > 0.8] = 1e30, -1e30
    return torch.from_numpy(cost).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_derivatives_beside_walls_that_cancel(dtype: torch.dtype) -> None:
    """First derivatives, and second ones along a direction by differences of 1e-30."""
    gamma, warp, step = 0.1, 0.5, Decimal("1e-30")
    cost = torch.stack([*(costs_with_walls(seed, dtype) for seed in range(16)), torch.rand(6, 6)])
    direction = torch.rand(6, 6, generator=torch.Generator().manual_seed(1)).to(dtype)
    along = exact(direction)
    leaf = cost.clone().requires_grad_()
    value = soft_dtw_from_cost(leaf, gamma=gamma, warp_cost=warp)
    (by_cost,) = torch.autograd.grad(value.sum(), leaf, create_graph=True)
    (product,) = torch.autograd.grad((by_cost * direction).sum(), leaf)
    for item, matrix in enumerate(cost):
        numbers, sides = exact(matrix), []
        expected, visits = truth(numbers, gamma, warp, "xy")
        assert abs(value[item].item() - float(expected)) <= VALUES[dtype] * abs(float(expected))
        assert_close(by_cost[item].detach(), as_floats(visits), GRADIENTS[dtype], "visits")
        with decimal.localcontext(decimal.Context(prec=120)):
            for sign in (1, -1):
                moved = [
                    [c + sign * step * d for c, d in zip(row, its, strict=True)]
                    for row, its in zip(numbers, along, strict=True)
                ]
                sides.append(truth(moved, gamma, warp, "xy")[1])
            slopes = [
                [(a - b) / (2 * step) for a, b in zip(*rows, strict=True)]
                for rows in zip(*sides, strict=True)
            ]
        assert_close(product[item], as_floats(slopes), 10 * GRADIENTS[dtype], "second derivative")


@pytest.mark.parametrize("dtype", DTYPES)
def test_paths_and_second_derivatives_of_gamma_0_count_every_digit(dtype: torch.dtype) -> None:
    check_paths_and_slopes_of_gamma_0(cpu, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sides", ["x", "y", "xy"])
def test_a_cost_of_minus_infinity_counts_with_open_ends_at_gamma_0(
    sides: str, dtype: torch.dtype
) -> None:
    """As with closed ends, of one pair and of many."""
    for where in ((1, 1), (0, 0), (2, 2), (1, 2), (2, 1)):
        for count in (1, 40):
            cost = torch.zeros(count, 3, 3, dtype=dtype)
            cost[(0, *where)] = -math.inf
            for options in ({"open_end": sides}, {"open_begin": sides, "open_end": sides}, {}):
                leaf = cost.clone().requires_grad_()
                value = soft_dtw_from_cost(leaf, gamma=0.0, skip_cost=0.1, **options)
                (by_cost,) = torch.autograd.grad(value.sum(), leaf)
                assert value[0] == -math.inf
                assert (value[1:].abs() < 1.0).all()
                assert by_cost[0].isnan().all()
                assert by_cost[1:].isfinite().all()


def truth_of_open_ends(
    cost: Tensor, gamma: float, warp: float, skip: float, pattern: tuple[str, str, str]
) -> tuple[float, np.ndarray]:
    """The value, and the visits, by all alignments."""
    numbers, (rows, columns) = exact(cost), cost.shape
    with decimal.localcontext(decimal.Context(prec=120)):
        g, w, s = Decimal(gamma), Decimal(warp), Decimal(skip)
        listed = paths(rows, columns, *pattern)
        totals = [
            sum(numbers[i][j] for i, j in p.cells) + w * p.repeats + s * p.skipped for p in listed
        ]
        least = min(totals)
        weights = [(-(t - least) / g).exp() for t in totals]
        value = least - g * Decimal(sum(weights)).ln()
        visits = np.zeros((rows, columns))
        for p, weight in zip(listed, weights, strict=True):
            for cell in p.cells:
                visits[cell] += float(weight / sum(weights))
        return float(value), visits


def assert_open_ends(
    cost: Tensor, gamma: float, warp: float, skip: float, pattern: tuple[str, str, str]
) -> None:
    options = dict(zip(("repeat", "open_begin", "open_end"), pattern, strict=True))
    prices = {"warp_cost": warp, "skip_cost": skip}
    expected, visits = truth_of_open_ends(cost, gamma, warp, skip, pattern)
    for got in values_of(cost, gamma, **options, **prices):
        assert abs(got - expected) <= VALUES[cost.dtype] * abs(expected)
    leaf = cost.clone().requires_grad_()
    soft_dtw_from_cost(leaf, gamma=gamma, **options, **prices).backward()
    assert_close(leaf.grad, visits, GRADIENTS[cost.dtype], "visits")


OPEN = [("xy", "y", "y"), ("xy", "xy", ""), ("y", "x", "y"), ("x", "", "xy"), ("", "xy", "x")]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pattern", OPEN)
@pytest.mark.parametrize("warp", [1e4, 1e7, -1e7, 1e13, -1e13])
def test_a_cost_of_warping_far_above_the_price_of_open_ends(
    warp: float, pattern: tuple[str, str, str], dtype: torch.dtype
) -> None:
    """Their sum loses digits of the price, which may decide between alignments."""
    generator = torch.Generator().manual_seed(0)
    for shape in ((3, 5), (4, 2), (1, 4)):
        cost = torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype)
        for skip in (0.3, -0.7):
            assert_open_ends(cost, 0.05, warp, skip, pattern)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pattern", OPEN)
@pytest.mark.parametrize("prices", [(0.0, -900.0), (-20.0, 0.1), (-3.1, 77.7), (0.3, 456.7)])
def test_values_of_open_ends_near_0(
    prices: tuple[float, float], pattern: tuple[str, str, str], dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((3, 4), (1, 1), (1, 3)):
        cost = torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype)
        for _ in range(3):
            value, visits = truth_of_open_ends(cost, 0.05, *prices, pattern)
            cost = cost - (value - 1e-4) / visits.sum()
        assert_open_ends(cost, 0.05, *prices, pattern)
