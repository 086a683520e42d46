"""Values are the same whether a gradient is due or not, and whatever it is due to.

Near 0 above all, as of a sequence with itself at a small gamma: there the kernels that make a
gradient at once know the value to roundings of gamma only.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from softdtw_kernels import (
    s2dtw,
    s2dtw_from_cost,
    soft_dtw,
    soft_dtw_alignment,
    soft_dtw_alignment_from_cost,
    soft_dtw_from_cost,
)

SHAPES = [(4, 30, 3), (64, 100, 3), (2, 300, 3)]
OF_FEATURES: dict[str, Callable[..., Tensor]] = {
    **{
        f"soft_dtw {cost}": lambda x, y, cost=cost, **more: soft_dtw(x, y, cost=cost, **more)
        for cost in ("sqeuclidean", "negative_dot", "cosine", "manhattan")
    },
    "soft_dtw of a band": lambda x, y, **more: soft_dtw(x, y, bandwidth=3, **more),
    "soft_dtw with open ends": lambda x, y, **more: soft_dtw(x, y, open_end="y", **more),
    "soft_dtw with a warp cost": lambda x, y, **more: soft_dtw(x, y, warp_cost=0.1, **more),
    "soft_dtw_alignment": lambda x, y, **more: soft_dtw_alignment(x, y, **more).value,
    "s2dtw": lambda x, y, **more: s2dtw(x, y, cost="sqeuclidean", **more),
}
OF_COSTS: dict[str, Callable[..., Tensor]] = {
    "soft_dtw_from_cost": soft_dtw_from_cost,
    "with open ends": lambda cost, **more: soft_dtw_from_cost(cost, open_begin="y", **more),
    "s2dtw_from_cost": s2dtw_from_cost,
    "its alignment": lambda cost, **more: soft_dtw_alignment_from_cost(cost, **more).value,
}


def _walks(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).cumsum(-2).to(dtype)


def _check(function: Callable[..., Tensor], tensors: list[Tensor], gamma: float) -> None:
    batch = tensors[0].shape[:1]
    plain = function(*tensors, gamma=gamma)
    assert not plain.requires_grad
    for due in (*range(len(tensors)), None):
        settings = torch.full(batch, gamma, dtype=torch.float64, requires_grad=due is None)
        given = [t.clone().requires_grad_(k == due) for k, t in enumerate(tensors)]
        value = function(*given, gamma=settings if due is None else gamma)
        assert value.requires_grad
        torch.testing.assert_close(
            value.detach(), plain, rtol=0, atol=0, msg=lambda text, due=due: f"{due}: {text}"
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("gamma", [1.0, 0.01])
@pytest.mark.parametrize("name", OF_FEATURES)
def test_of_features_with_themselves(name: str, gamma: float, dtype: torch.dtype) -> None:
    for shape in SHAPES:
        x = _walks(shape, dtype)
        _check(OF_FEATURES[name], [x, x], gamma)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("gamma", [1.0, 0.01])
@pytest.mark.parametrize("name", OF_COSTS)
def test_of_their_costs(name: str, gamma: float, dtype: torch.dtype) -> None:
    for shape in SHAPES:
        x = _walks(shape, dtype)
        _check(OF_COSTS[name], [(x[:, :, None] - x[:, None]).square().sum(-1)], gamma)
