"""To the bit: the same again, whatever the number of threads and the place in the batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from helpers import bits
from strategies import make_cost
from torch import Tensor

from softdtw_kernels import s2dtw_from_cost, soft_dtw, soft_dtw_from_cost

# Many pairs have vectors in common, and few not.
SHAPES = [(300, 8, 8), (37, 33, 40), (28, 100, 90), (5, 129, 130), (1, 700, 650)]


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _run(
    function: Callable[..., Tensor], cost: Tensor, second: bool, **arguments: object
) -> list[bytes]:
    leaf = cost.detach().clone().requires_grad_()
    value = function(leaf, **arguments)
    (gradient,) = torch.autograd.grad(value.sum(), leaf, create_graph=second)
    results = [value, gradient]
    if second:
        weight = torch.linspace(-1, 1, cost[0].numel(), dtype=cost.dtype).reshape(cost.shape[1:])
        results.append(torch.autograd.grad((gradient * weight).sum(), leaf)[0])
    return [bits(t) for t in results]


@pytest.mark.parametrize("function", [soft_dtw_from_cost, s2dtw_from_cost])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_number_of_threads_changes_no_bit(
    shape: tuple[int, ...], dtype: torch.dtype, function: Callable[..., Tensor]
) -> None:
    cost = torch.from_numpy(make_cost("walk", shape, 1)).to(dtype)
    with threads(1):
        truth = _run(function, cost, True, gamma=0.1)
    for count in (1, 2, 3):
        with threads(count):
            assert _run(function, cost, True, gamma=0.1) == truth


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "scale, arguments",
    [
        (1.0, {"bandwidth": 70}),
        (1.0, {"x_lengths": torch.tensor([650]), "y_lengths": torch.tensor([549])}),
        (1e9, {}),  # float32 passes on to float64
        (math.nan, {}),
    ],
    ids=["band", "lengths", "large", "nan"],
)
def test_threads_that_share_a_pair_change_no_bit(
    scale: float, arguments: dict[str, Any], dtype: torch.dtype
) -> None:
    cost = torch.from_numpy(make_cost("walk", (1, 700, 650), 3)).to(dtype)
    cost[0, 300, 300] *= scale
    if scale > 1:
        cost *= scale
    found = []
    for count in (1, 2, 5):
        with threads(count):
            leaf, gamma = cost.clone().requires_grad_(), torch.tensor(0.5, requires_grad=True)
            value = soft_dtw_from_cost(leaf, gamma=gamma, **arguments)
            by_cost, by_gamma = torch.autograd.grad(value.sum(), (leaf, gamma))
            found.append([bits(t) for t in (value, by_cost, by_gamma)])
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("function", [soft_dtw_from_cost, s2dtw_from_cost])
@pytest.mark.parametrize("shape", SHAPES[:4], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["walk", "normal", "large"])
def test_the_place_in_the_batch_changes_no_bit(
    shape: tuple[int, ...], dtype: torch.dtype, kind: str, function: Callable[..., Tensor]
) -> None:
    """Alone, in the batch, and shuffled among unlike neighbors (masks, NaN, other lengths)."""
    cost = torch.from_numpy(make_cost(kind, shape, 2)).to(dtype)
    leaf = cost.clone().requires_grad_()
    value = function(leaf, gamma=0.1)
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    for k in {0, 1, shape[0] // 2, shape[0] - 1}:
        alone = cost[k].clone().requires_grad_()
        one = function(alone, gamma=0.1)
        (its,) = torch.autograd.grad(one, alone)
        assert bits(one) == bits(value[k])
        assert bits(its) == bits(gradient[k])
    order = torch.randperm(shape[0], generator=torch.Generator().manual_seed(0))
    strange = cost[order].clone()
    lengths = torch.full((shape[0],), shape[1])
    strange[::4] *= 1e6
    strange[1::4, 0, 0] = float("nan")
    lengths[2::4] = 1
    leaf = strange.requires_grad_()
    mixed = function(leaf, gamma=0.1, x_lengths=lengths)
    (its,) = torch.autograd.grad(mixed.sum(), leaf)
    for place in range(3, shape[0], 4):
        assert bits(mixed[place]) == bits(value[order[place]])
        assert bits(its[place]) == bits(gradient[order[place]])


def test_features_pairwise_and_in_threads_change_no_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 9, 20, 3, generator=generator)

    def run(x: Tensor, y: Tensor) -> list[bytes]:
        x, y = x.clone().requires_grad_(), y.clone().requires_grad_()
        value = soft_dtw(x, y, pairwise=True)
        return [bits(t) for t in (value, *torch.autograd.grad(value.sum(), (x, y)))]

    with threads(1):
        truth = run(x, y)
    for count in (2, 3):
        with threads(count):
            assert run(x, y) == truth
    assert bits(soft_dtw(x[2], y[5])) == bits(soft_dtw(x, y, pairwise=True)[2, 5])
