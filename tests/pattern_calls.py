"""What the tests of patterns of steps, begins and ends call, and with what."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from strategies import make_cost
from torch import Tensor

from softdtw_kernels import soft_dtw_from_cost

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
