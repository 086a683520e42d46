"""The results of the operators without their values: shapes and dtypes, for fake tensors and
compilers. See `ops`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def like_cost(cost: Tensor) -> Tensor:
    return torch.empty_like(cost) if cost.dim() <= 4 else cost.new_empty(cost.shape)


def value(cost: Tensor, *_: Any) -> Tensor:
    return cost.new_empty(cost.shape[:-2])


def item(cost: Tensor) -> Tensor:
    return cost.new_empty(cost.shape[:-2], dtype=torch.float64)


def gradient(cost: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return like_cost(cost), item(cost), item(cost)


def value_and_state(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    # Of costs or features. How much is kept only a device tells, and nobody asks: compiled code
    # keeps nothing.
    return value(x), x.new_empty(0, dtype=torch.uint8)


def hessian_product(cost: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return value(cost), like_cost(cost), item(cost), item(cost)


def smooth(cost: Tensor, *_: Any) -> Tensor:
    return like_cost(cost)


def smooth_vjp(cost: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return like_cost(cost), item(cost)


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], y.shape[-2])


def squared_distances_vjp(
    x: Tensor, y: Tensor, g: Tensor, with_x: bool, with_y: bool
) -> tuple[Tensor, Tensor]:
    return (
        x.new_empty(*x.shape[:-1], x.shape[-1] if with_x else 0),
        y.new_empty(*y.shape[:-1], y.shape[-1] if with_y else 0),
    )


def fused_gradient(x: Tensor, y: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    *_, with_x, with_y, _ = others
    return *squared_distances_vjp(x, y, x, with_x, with_y), item(x)


def pattern_gradient(cost: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return like_cost(cost), item(cost), item(cost), item(cost)


def pattern_product(cost: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return value(cost), *pattern_gradient(cost)


def monotonic_sum(log_probs: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    shape = log_probs.shape if others[-1] else (*log_probs.shape[:-2], 0, 0)
    return value(log_probs), log_probs.new_empty(shape)


def monotonic(log_probs: Tensor, *_: Any) -> Tensor:
    return log_probs.new_empty(log_probs.shape)
