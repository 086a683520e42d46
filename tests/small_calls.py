"""Calls that are small, for the tests of these and of what is plain."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from softdtw_kernels import s2dtw, s2dtw_from_cost, soft_dtw, soft_dtw_from_cost

VALUES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "soft_dtw": soft_dtw,
    "soft_dtw band": lambda x, y: soft_dtw(x, y, bandwidth=1, gamma=0.3),
    "soft_dtw lengths": lambda x, y: soft_dtw(x, y, x_lengths=[3, 2], y_lengths=[1, 4]),
    "soft_dtw_from_cost": lambda x, y: soft_dtw_from_cost(x @ y.mT),
    "s2dtw_from_cost": lambda x, y: s2dtw_from_cost(x @ y.mT),
    "open ends": lambda x, y: soft_dtw(x, y, gamma=0.5, open_begin="y", open_end="xy"),
    "warped": lambda x, y: soft_dtw_from_cost(x @ y.mT, warp_cost=0.3, bandwidth=2),
    "cosine": lambda x, y: soft_dtw(x, y, gamma=0.3, cost="cosine"),
    "s2dtw raw": lambda x, y: s2dtw(x, y, smoothing=False),
    "s2dtw": lambda x, y: s2dtw(x, y, gamma=0.4),
}


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)


def pair(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    x, y = random(2, 4, 3, dtype=dtype), random(2, 5, 3, seed=1, dtype=dtype)
    return x.requires_grad_(), y.requires_grad_()


SPECIAL = {
    "plain": lambda cost: cost,
    "near 0": lambda cost: cost - 0.4,  # values that the first tier does not return
    "walls": lambda cost: torch.where(cost > 1.2, 1e30, cost),
    "forbidden": lambda cost: torch.where(cost > 1.5, torch.inf, cost),
    "no path": lambda cost: torch.cat((torch.full_like(cost[:, :1], torch.inf), cost[:, 1:]), 1),
    "not a number": lambda cost: torch.where(cost == cost.max(), torch.nan, cost),
    "far apart": lambda cost: cost * 1e30,  # one path has all of the weight
    "ties": lambda cost: (3 * cost).floor() * 1e6,
    "many sizes": lambda cost: cost.exp2() ** 40,  # up to 1e30 and more: no tier on vectors
}
