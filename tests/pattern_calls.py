"""What the tests of patterns of steps, begins and ends call, and with what."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from pattern_oracle import exact_paths
from strategies import make_cost
from torch import Tensor

from softdtw_kernels import soft_dtw_from_cost
from softdtw_kernels._problem import PatternProblem

NAMES = ("repeat", "open_begin", "open_end")
PRICES = st.sampled_from([0.0, 0.3, -0.4, 2.0]) | st.floats(-2, 5)


def options_of(pattern: tuple[str, str, str]) -> dict[str, Any]:
    return dict(zip(NAMES, pattern, strict=True))


def cost_of(kind: str, n: int, m: int, seed: int, forbidden: float = 0.0) -> np.ndarray:
    cost = make_cost(kind, (n, m), seed)
    cost[np.random.default_rng(seed + 1).random((n, m)) < forbidden] = math.inf
    return cost


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


def value_of(options: dict[str, Any], cost: Tensor, gamma: Any, warp: Any, skip: Any) -> Tensor:
    return soft_dtw_from_cost(cost, gamma=gamma, warp_cost=warp, skip_cost=skip, **options)


def warp_problem(cost: Tensor, sides: tuple[str, ...], *settings: Any) -> PatternProblem:
    """settings: gamma, warp and skip, each one or one an item."""
    batch = cost.shape[:-2]
    numbers = (torch.as_tensor(s, dtype=torch.float64).expand(batch) for s in settings)
    return PatternProblem(cost, *numbers, None, None, None, *sides)


def check_paths_and_slopes_of_gamma_0(engine: Any, dtype: torch.dtype) -> None:
    """With a cost of warping: ties, and costs that differ by less than a digit of C + 2 w."""
    random, sides = np.random.default_rng(0), ("xy", "", "")
    ties = torch.tensor([[[1.0, 1, 2, -2, -2, 2, -2], [0, -2, -1, 0, 0, 0, -2]]], dtype=dtype)
    small = torch.from_numpy(random.integers(0, 3, size=(6, 4, 5))).to(dtype)
    cases = [(ties, -0.2), *((small * size, warp) for size, warp in ((1, 0.1), (1e-9, 1e7)))]
    for cost, warp in cases:
        problem = warp_problem(cost, sides, 0.0, warp, 0.0)
        batch = cost.shape[:-2]
        along = torch.from_numpy(random.random(cost.shape)).to(dtype)
        zeros, ones = torch.zeros(batch, dtype=torch.float64), torch.ones(batch, dtype=dtype)
        directions = along, zeros, zeros + 0.5, zeros
        slopes, *products = engine.pattern_hessian_product(problem, ones, *directions)
        for item, path in enumerate(engine.pattern_path(problem)):
            truth = exact_paths(cost[item].double().numpy(), 0.0, warp, 0.0, sides)
            assert np.array_equal(path.numpy(), truth.path)
            expected = (truth.visits * along[item].double().numpy()).sum() + 0.5 * truth.by_warp
            assert abs(float(slopes[item]) - expected) <= 1e-6 * abs(expected)
        assert all((product == 0).all() for product in products)
