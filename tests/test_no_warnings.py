"""Numbers at the ends of their range give infinite and NaN results, as in torch: without a warning
of NumPy, which callers who turn warnings into errors would meet as an error.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import softdtw_kernels as sk

pytestmark = pytest.mark.filterwarnings("error")

PRICES = [1.0, -1e300]
SHAPE = (3, 5, 8)
LENGTHS = {"x_lengths": torch.tensor([5, 1, 3]), "y_lengths": torch.tensor([2, 8, 1])}


def pattern(whole: bool = False, **settings: Any) -> Callable[..., Tensor]:
    """whole: without lengths, as calls are that are prepared."""

    def value(cost: Tensor, gamma: Any) -> Tensor:
        prices = settings if whole else settings | LENGTHS
        values = [sk.soft_dtw_from_cost(cost, gamma=gamma, warp_cost=w, **prices) for w in PRICES]
        return torch.stack(values)

    return value


def by_feature(function: Callable[..., Tensor], **settings: Any) -> Callable[..., Tensor]:
    return lambda t, gamma: function(t, t.flip(1)[:, :4], gamma=gamma, **settings)


def alignment(cost: Tensor, gamma: Any) -> Tensor:
    found = sk.soft_dtw_alignment_from_cost(cost, gamma=gamma)
    found.path()
    return found.entropy + found.expected.sum((-1, -2))


FUNCTIONS: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "soft_dtw": lambda c, g: sk.soft_dtw_from_cost(c, gamma=g, **LENGTHS),
    "band": lambda c, g: sk.soft_dtw_from_cost(c, gamma=g, bandwidth=1),
    "alignment": alignment,
    "warp_cost": pattern(),
    "repeat": pattern(repeat="x"),
    "repeat, whole": pattern(repeat="x", whole=True),
    "open ends, whole": pattern(open_begin="x", open_end="x", skip_cost=-1e300, whole=True),
    "open ends": pattern(open_begin="xy", open_end="y", skip_cost=1e300),
    "open ends, one repeat": pattern(repeat="y", open_begin="y", open_end="xy", skip_cost=-1.0),
    "s2dtw": lambda c, g: sk.s2dtw_from_cost(c, gamma=g, dummy_cost=1e300, **LENGTHS),
    "s2dtw without dummies": lambda c, g: sk.s2dtw_from_cost(c, gamma=g, dummy_cost=None),
    "forward_sum": lambda c, g: sk.forward_sum(c.mT) + sk.monotonic_alignment(c).sum((-1, -2)),
    "features": by_feature(sk.soft_dtw, x_lengths=LENGTHS["x_lengths"]),
    "few features": lambda t, g: by_feature(sk.soft_dtw)(t[..., :1], g),
    "all pairs": by_feature(sk.soft_dtw, pairwise=True),
    "euclidean": by_feature(sk.soft_dtw, cost="euclidean"),
    "divergence": by_feature(sk.soft_dtw_divergence),
    "features of s2dtw": by_feature(sk.s2dtw),
    "DILATE": lambda t, g: by_feature(sk.dilate_loss)(t, g or 0.1),
}
ONCE = {"DILATE", "alignment"}  # whose second derivatives would be third ones


def extremes(dtype: torch.dtype) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    plain = torch.randn(SHAPE, generator=random, dtype=dtype)
    largest = torch.finfo(dtype).max
    some = torch.rand(SHAPE, generator=random) < 0.3
    return [
        plain,
        torch.full(SHAPE, largest, dtype=dtype),
        torch.full(SHAPE, -largest, dtype=dtype),
        plain * (largest / 4),
        *(plain.masked_fill(some, mask) for mask in (1e30, math.inf, -math.inf, math.nan)),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_number_makes_numpy_warn(name: str, dtype: torch.dtype) -> None:
    function = FUNCTIONS[name]
    for given in extremes(dtype):
        for gamma in (0.0, 1e-30, 1.0, 1e28, torch.tensor(0.5, requires_grad=True)):
            leaf = given.clone().requires_grad_()
            leaves = [leaf, gamma] if isinstance(gamma, Tensor) else [leaf]
            for factor in (1.0, math.inf, 1e38):
                value = function(leaf, gamma)
                torch.autograd.grad((value * factor).sum(), leaves, allow_unused=True)
            if name not in ONCE:
                (grad,) = torch.autograd.grad(function(leaf, gamma).sum(), leaf, create_graph=True)
                if grad.requires_grad:
                    torch.autograd.grad((grad * math.inf).sum(), leaves, allow_unused=True)
