"""Pairs that hold a number of huge size are solved with another number in its place: to what the
exact tier gives, which did them before.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers import bits
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from softdtw_kernels import s2dtw_from_cost, soft_dtw_from_cost
from softdtw_kernels._cpu import walls
from softdtw_kernels._cpu.batch import Batch

VALUE = {torch.float32: 1e-6, torch.float64: 1e-12}
GRADIENT = {torch.float32: 5e-5, torch.float64: 1e-9}
SIDES = st.sampled_from(["", "x", "y", "xy"])


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, dtype=torch.float64, generator=generator)


def found(
    function: Callable[..., Tensor], cost: Tensor, settings: dict[str, Any]
) -> tuple[Tensor, ...]:
    """The values, and their gradients by costs and settings."""
    leaves = {
        name: value.clone().requires_grad_() if isinstance(value, Tensor) else value
        for name, value in settings.items()
    }
    cost = cost.clone().requires_grad_()
    value = function(cost, **leaves)
    inputs = [cost, *(leaf for leaf in leaves.values() if isinstance(leaf, Tensor))]
    factors = 0.5 + random(*value.shape, seed=7).to(value.dtype)
    return value.detach(), *torch.autograd.grad(value, inputs, factors)


def rounding(cost: Tensor, gamma: float) -> float:
    """Of gradients of the exact tier: of its three parts, multiples of 1e200 or 2e37 take two, and
    of the sum of all other costs, that far below, the third has 53 bits at most.
    """
    sizes = cost.double().abs()
    others = sizes[sizes < 1e7]
    largest = float(others.max()) if others.numel() else 0.0
    far = ((sizes > 2.0**95 * largest) & sizes.isfinite()).any()
    return 4 * 2.0**-53 * largest / gamma if far else 0.0


def without_walls(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(walls, "may_have_bars", lambda task, items: items[:0])


@st.composite
def masked_costs(draw: st.DrawFn, dtype: torch.dtype) -> Tensor:
    pairs = draw(st.sampled_from([1, 2, 5, 17]))
    rows, columns = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    cost = draw(st.sampled_from([1e-3, 1.0, 50.0])) * random(pairs, rows, columns)
    heights = [1e30, -1e30, 1e20, -3e25, 2e37, *([1e200] if dtype == torch.float64 else [])]
    height = draw(st.sampled_from(heights))
    share = draw(st.sampled_from([0.1, 0.5, 1.0]))
    where = random(pairs, rows, columns, seed=1) <= share
    if draw(st.booleans()):
        where[:, rows // 2] = True  # no path passes it by
    cost[where] = height
    other = draw(st.sampled_from([None, None, torch.inf, torch.nan, -height, height / 8, 1e6]))
    if other is not None:
        cost[random(pairs, rows, columns, seed=2) < 0.1] = other
    return cost.to(dtype)


@pytest.mark.slow  # most of it compiles
@given(data=st.data())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_are_those_of_the_exact_tier(dtype: torch.dtype, data: st.DataObject) -> None:
    draw = data.draw
    cost = draw(masked_costs(dtype))
    pairs, rows, columns = cost.shape
    gamma = draw(st.sampled_from([1.0, 0.01, 10.0]))
    settings: dict[str, Any] = {"gamma": torch.full((pairs,), gamma, dtype=torch.float64)}
    if draw(st.booleans()):
        settings["gamma"] *= 1 + random(pairs, seed=3)
    function: Callable[..., Tensor] = soft_dtw_from_cost
    if draw(st.booleans()):
        function = functools.partial(
            soft_dtw_from_cost,
            x_lengths=[1 + (3 * k) % rows for k in range(pairs)],
            y_lengths=[1 + k % columns for k in range(pairs)],
        )
    kind = draw(st.sampled_from(["plain", "band", "weak", "pattern"]))
    read = kind != "pattern" and draw(st.booleans())  # as of long pairs
    if kind == "band":
        settings["bandwidth"] = draw(st.integers(0, 4))
    if kind == "weak":
        dummy = draw(st.sampled_from([0.5, -0.5, float(cost.flatten()[0].nan_to_num(0.0, 0.0))]))
        function = functools.partial(s2dtw_from_cost, smoothing=False)
        settings["dummy_cost"] = torch.full((pairs,), dummy, dtype=torch.float64)
    if kind == "pattern":
        settings["warp_cost"] = torch.full((pairs,), draw(st.sampled_from([0.0, 0.3])))
        settings["open_begin"], settings["open_end"] = draw(SIDES), draw(SIDES)
        settings["skip_cost"] = torch.full((pairs,), draw(st.sampled_from([0.0, 0.2])))
    with pytest.MonkeyPatch.context() as patch:
        if read:
            patch.setattr(walls, "LONG", 0)
            patch.setattr(walls, "BLOCK", 64)
        results = found(function, cost, settings)
    with pytest.MonkeyPatch.context() as patch:
        without_walls(patch)
        expected = found(function, cost, settings)
    value, truth = results[0].double(), expected[0].double()
    near = (value - truth).abs() <= VALUE[dtype] * truth.abs()
    assert (near | (value == truth) | (value.isnan() & truth.isnan())).all(), (value, truth)
    allowed = GRADIENT[dtype] + rounding(cost, gamma)
    for got, right in zip(results[1:], expected[1:], strict=True):
        scale = 1.0 if got.shape == cost.shape else right.double().abs().clamp(min=rows + columns)
        off = (got.double() - right.double()).abs() / scale
        assert ((off <= allowed) | (got.isnan() & right.isnan())).all(), (got, right)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_pair_has_the_same_bits_wherever_it_stands(dtype: torch.dtype) -> None:
    cost = random(40, 9, 11).to(dtype)
    cost[random(40, 9, 11, seed=1) < 0.3] = 1e30
    cost[::3, 4] = 1e30
    cost[5] = 1e30
    cost[7] *= 1e30
    settings = {"gamma": 0.1}
    value, grad = found(soft_dtw_from_cost, cost, settings)
    for k in range(40):
        one, by_one = found(soft_dtw_from_cost, cost[k : k + 1], settings)
        assert bits(one) == bits(value[k : k + 1])
        factor = (0.5 + random(40, seed=7)[[k, 0]]).to(dtype)
        torch.testing.assert_close(by_one / factor[1], grad[k : k + 1] / factor[0])


def test_the_number_of_walls_that_a_path_crosses_is_told_for_long_pairs() -> None:
    """Of as many paths as there are, each with one wall: their entropy is thousands of gamma."""
    size = 500
    cost = torch.zeros(1, size, size, dtype=torch.float64)
    cost[:, 300] = 1e30
    value = soft_dtw_from_cost(cost, gamma=1.0)
    with pytest.MonkeyPatch.context() as patch:
        without_walls(patch)
        torch.testing.assert_close(value, soft_dtw_from_cost(cost, gamma=1.0), rtol=1e-12, atol=0)


def test_a_long_pair_has_the_same_bits_in_any_batch() -> None:
    for size in (400, 600):  # with another number in place of the mask, and without
        cost = random(9, size, size).float()
        cost[:, size // 2] = 1e30
        many, one = (soft_dtw_from_cost(c, gamma=0.1) for c in (cost, cost[4:5].clone()))
        assert bits(many[4:5]) == bits(one)


@pytest.mark.slow  # most of it compiles
@pytest.mark.parametrize("kind", ["weak", "ends"])
def test_masks_of_long_pairs_beside_other_costs(kind: str) -> None:
    cost = random(2, 530, 540)
    cost[:, 200] = 1e30
    cost[:, :, 300] = 1e30
    settings: dict[str, Any] = {"gamma": torch.full((2,), 0.1, dtype=torch.float64)}
    function: Callable[..., Tensor] = soft_dtw_from_cost
    if kind == "weak":
        function = functools.partial(s2dtw_from_cost, smoothing=False, dummy_cost=1e30)
        cost = cost[:, ::2]
    else:
        settings |= {"open_begin": "y", "open_end": "y"}
    results = found(function, cost, settings)
    with pytest.MonkeyPatch.context() as patch:
        without_walls(patch)
        expected = found(function, cost, settings)
    torch.testing.assert_close(results[0], expected[0], rtol=1e-12, atol=0)
    torch.testing.assert_close(results[1], expected[1], rtol=0, atol=1e-9)
    torch.testing.assert_close(results[2], expected[2], rtol=1e-9, atol=1e-9)


def test_most_masks_have_bars() -> None:
    """Else nothing of this is tested."""
    cost = random(3, 8, 8).numpy()[None]
    cost[:, :, 4] = 1e30
    empty, all_of_them = np.empty(0), np.empty(0, np.int64)
    for kind in (np.float32, np.float64):
        task = Batch(cost.astype(kind), np.ones(1), empty, all_of_them, all_of_them, -1)
        [(items, part, bars, more)] = walls.with_bars(task, np.arange(3))
        assert items.tolist() == [0, 1, 2]
        assert (part.cost[0, :, 4] == bars[:, None]).all()
        assert (bars + more == np.asarray(1e30, kind)).all()
        assert walls.with_bars_read(task, np.arange(3))[0].size == 0
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(walls, "LONG", 0)
            assert not list(walls.with_bars(task, np.arange(3)))
            items, part, bars, more = walls.with_bars_read(task, np.array([0, 2]))
        assert items.tolist() == [0, 2]
        assert part.bars is not None
        assert (part.bars[1][items] == bars).all() and np.isnan(part.bars[0][1])
        assert (bars + more == np.asarray(1e30, kind)).all()
