"""Small calls on the CPU take a way of their own: past torch's dispatcher, and with the gradient by
the costs made beside the value. Nothing but the time may tell: here, no bit. See also
`test_prepared_calls`.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import bits
from hypothesis import given
from hypothesis import strategies as st
from small_calls import SPECIAL, random
from torch import Tensor

from softdtw_kernels import (
    s2dtw_from_cost,
    soft_dtw,
    soft_dtw_from_cost,
)
from softdtw_kernels._cpu import small
from softdtw_kernels._operators import from_features, prepared

Call = Callable[[], Tensor]


def no_call_is_small(patch: pytest.MonkeyPatch) -> None:
    """Every call goes the way of all."""
    assert small.LARGEST == from_features.SMALL_CALL
    assert small.KEPT == prepared.MOST_CELLS
    patch.setattr(small, "LARGEST", 0)
    patch.setattr(small, "KEPT", 0)
    patch.setattr(from_features, "SMALL_CALL", 0)
    patch.setattr(prepared, "takes", lambda *_: False)


def results(function: Callable[..., Tensor], inputs: list[Tensor], factor: Tensor) -> list[bytes]:
    """The bits of the value and of its gradients, twice."""
    leaves = [t.clone().requires_grad_() for t in inputs]
    value = function(*leaves)
    found = [value]
    for _ in range(2):
        found += torch.autograd.grad(value, leaves, factor, retain_graph=True)
    return [bits(t) for t in found]


FACTORS = {
    "ones": lambda pairs: torch.ones(()).expand(pairs),
    "thirds": lambda pairs: torch.full((pairs,), 1 / 3),
    "signs": lambda pairs: random(pairs, seed=9) - 0.2,
    "tiny": lambda pairs: torch.full((pairs,), 1e-36),  # products below the smallest normal number
    "subnormal": lambda pairs: torch.full((pairs,), -1e-40),
    "no number": lambda pairs: torch.tensor([torch.inf, *[torch.nan] * (pairs - 1)]),
}


@given(data=st.data())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("function", [soft_dtw_from_cost, s2dtw_from_cost])
def test_bits_are_those_of_all_calls(
    function: Callable[..., Tensor],
    dtype: torch.dtype,
    data: st.DataObject,
) -> None:
    draw = data.draw
    pairs, rows, columns = (draw(st.integers(1, top)) for top in (20, 12, 12))
    cost = SPECIAL[draw(st.sampled_from(list(SPECIAL)))](random(pairs, rows, columns).abs())
    settings: dict[str, Any] = {"gamma": draw(st.sampled_from([1.0, 0.1, 1e-4, 0.0]))}
    if draw(st.booleans()):
        settings["gamma"] = torch.full((pairs,), 0.3, dtype=torch.float64)
        settings["gamma"][0] = draw(st.sampled_from([0.0, 1e-30, 2.0]))
    if draw(st.booleans()):
        settings["x_lengths"] = torch.tensor([1 + (3 * k) % rows for k in range(pairs)])
        settings["y_lengths"] = torch.tensor([1 + (5 * k) % columns for k in range(pairs)])
    if function is soft_dtw_from_cost and draw(st.booleans()):
        settings["bandwidth"] = draw(st.integers(0, 4))
    factor = FACTORS[draw(st.sampled_from(list(FACTORS)))](pairs).to(dtype)
    inputs = [cost.to(dtype)]

    def call(cost: Tensor) -> Tensor:
        return function(cost, **settings)

    found = results(call, inputs, factor)
    with pytest.MonkeyPatch.context() as patch:
        no_call_is_small(patch)
        assert found == results(call, inputs, factor)


@given(data=st.data())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bits_from_features(dtype: torch.dtype, data: st.DataObject) -> None:
    draw = data.draw
    lead = draw(st.sampled_from([(), (1,), (3,), (17,), (2, 3), (2, 1, 2, 2)]))
    sizes = st.integers(1, 12) | st.integers(30, 40)  # with a matrix, and without
    rows, columns, size = draw(sizes), draw(sizes), draw(st.integers(1, 6))
    x, y = random(*lead, rows, size, dtype=dtype), random(*lead, columns, size, seed=1, dtype=dtype)
    settings: dict[str, Any] = {"gamma": draw(st.sampled_from([1.0, 0.1, 1e-4, 0.0]))}
    if draw(st.booleans()):
        settings["x_lengths"] = torch.full(lead, draw(st.integers(1, rows)))
    if draw(st.booleans()):
        settings["bandwidth"] = draw(st.integers(0, 4))
    if draw(st.booleans()):
        x, y = x * 1e-3, y * 1e-3  # values near 0
    if draw(st.booleans()):
        y = y.mT.contiguous().mT
    pairs = x.shape[:-2].numel()
    factor = FACTORS[draw(st.sampled_from(list(FACTORS)))](pairs).to(dtype).reshape(lead)
    which = draw(st.sampled_from([(0,), (1,), (0, 1)]))

    def call(*leaves: Tensor) -> Tensor:
        both = [x, y]
        for k, leaf in zip(which, leaves, strict=True):
            both[k] = leaf
        return soft_dtw(*both, **settings)

    inputs = [(x, y)[k] for k in which]
    found, constant = results(call, inputs, factor), bits(call(*inputs))
    with pytest.MonkeyPatch.context() as patch:
        no_call_is_small(patch)
        assert found == results(call, inputs, factor)
        assert constant == bits(call(*inputs))


WITH_THREADS = ("costs", "all tiers", "hard", "hard warp", "features", "weak", "ends")
WITH_THREADS += ("lengths", "lengths and band")


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(40, 37, 33), (1100, 7, 9), (4, 160, 150)])
@pytest.mark.parametrize("of", WITH_THREADS)
def test_bits_where_threads_share_the_work(
    of: str, shape: tuple[int, int, int], dtype: torch.dtype, threads: int
) -> None:
    pairs, rows, columns = shape
    assert small.LARGEST < pairs * rows * columns < small.KEPT
    cost = random(*shape).abs()
    cost[pairs // 2, :, :3] *= 20
    if of == "all tiers":
        for k, change in zip(range(pairs), itertools.cycle(SPECIAL.values()), strict=False):
            cost[k : k + 1] = change(cost[k : k + 1])
    inputs, function, settings = [cost.to(dtype)], soft_dtw_from_cost, {"gamma": 0.5}
    if of == "features":
        inputs = [random(pairs, size, 2, seed=k, dtype=dtype) for k, size in enumerate(shape[1:])]
        function = soft_dtw
    elif of == "hard":
        settings["gamma"] = 0.0
    elif of == "hard warp":
        settings |= {"gamma": 0.0, "warp_cost": 0.3}
    elif of == "weak":
        function = functools.partial(s2dtw_from_cost, smoothing=False, dummy_cost=0.4)
        inputs = [cost[: pairs // 3].to(dtype).contiguous()]
    elif of == "ends":
        settings |= {"open_begin": "x", "open_end": "xy", "skip_cost": 0.1}
    elif of.startswith("lengths"):
        settings["x_lengths"] = torch.tensor([1 + (3 * k) % rows for k in range(pairs)])
        settings["y_lengths"] = torch.tensor([1 + (5 * k) % columns for k in range(pairs)])
        if of == "lengths and band":
            settings["bandwidth"] = 5
    factor = FACTORS["signs"](len(inputs[0])).to(dtype)

    def call(*given: Tensor) -> Tensor:
        return function(*given, **settings)

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found, constant = results(call, inputs, factor), bits(call(*inputs))
        with pytest.MonkeyPatch.context() as patch:
            no_call_is_small(patch)
            assert found == results(call, inputs, factor)
            assert constant == bits(call(*inputs))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("settings", [{}, {"x_lengths": [5, 7, 6]}, {"open_end": "x"}], ids=str)
@pytest.mark.parametrize("copies", [1, 2000])
def test_strides_of_the_costs_change_no_bit(
    copies: int, settings: dict[str, Any], dtype: torch.dtype, kind: str
) -> None:
    """In calls that keep their gradient and in larger ones."""
    cost = SPECIAL[kind](random(3, 7, 9).abs()).to(dtype).repeat(copies, 1, 1)
    if "x_lengths" in settings:
        settings = {"x_lengths": settings["x_lengths"] * copies}
    factor = FACTORS["signs"](len(cost)).to(dtype)
    call = functools.partial(soft_dtw_from_cost, gamma=1e-2, **settings)
    found = []
    for view in (cost, cost.mT.contiguous().mT, torch.stack((cost, cost), -1)[..., 0]):
        leaf = view.detach().requires_grad_()
        assert leaf.stride() == view.stride()
        value = call(leaf)
        (grad,) = torch.autograd.grad(value, leaf, factor)
        found.append((bits(value), bits(grad.contiguous())))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1), (700, 1), (1, 700), (3, 90, 1), (2, 20, 1, 1)])
def test_bits_of_columns_and_rows(shape: tuple[int, ...], dtype: torch.dtype, kind: str) -> None:
    """Of costs, and of squares that are the same numbers."""
    *lead, rows, columns = shape
    cost = SPECIAL[kind](random(1, *shape[-2:]).abs())[0].expand(shape).to(dtype).contiguous()
    x = cost.abs().sqrt().reshape(*lead, rows * columns, 1)
    y = torch.zeros_like(x[..., :1, :])
    factor = FACTORS["signs"](cost.shape[:-2].numel()).to(dtype).reshape(lead)
    for function, inputs in (
        (soft_dtw_from_cost, [cost]),
        (soft_dtw, [x, y] if columns == 1 else [y, x]),
    ):
        call = functools.partial(function, gamma=0.3)
        found, constant = results(call, inputs, factor), bits(call(*inputs))
        with pytest.MonkeyPatch.context() as patch:
            no_call_is_small(patch)
            assert found == results(call, inputs, factor)
            assert constant == bits(call(*inputs))


SIDES = st.sampled_from(["", "x", "y", "xy"])


@given(data=st.data())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bits_of_other_patterns(dtype: torch.dtype, data: st.DataObject) -> None:
    draw = data.draw
    lead = draw(st.sampled_from([(), (3,), (17,), (2, 3)]))
    rows, columns = (draw(st.integers(1, 12) | st.integers(30, 40)) for _ in "xy")
    kind = draw(st.sampled_from([name for name in SPECIAL if name != "near 0"]))
    special = SPECIAL[kind](random(1, rows, columns).abs())[0]
    cost = special * (1 + random(*lead, 1, 1, seed=2).abs())
    settings: dict[str, Any] = {
        "gamma": draw(st.sampled_from([1.0, 0.1, 1e-4, 0.0])),
        "warp_cost": draw(st.sampled_from([0.0, 0.3, -0.1, 1e30])),
        "skip_cost": draw(st.sampled_from([0.0, 0.2, -0.3, 1e30])),
        "open_begin": draw(SIDES),
        "open_end": draw(SIDES),
        "repeat": draw(st.just("xy") | SIDES),
    }
    pairs = cost.shape[:-2].numel()
    if draw(st.booleans()):  # what is not prepared
        names = ("gamma", "warp_cost", "skip_cost")
        for name in draw(st.lists(st.sampled_from(names), min_size=1, unique=True)):
            settings[name] = torch.full(lead, settings[name], dtype=torch.float64)
    if draw(st.booleans()):
        for name, size in (("x_lengths", rows), ("y_lengths", columns)):
            lengths = [1 + (k + draw(st.integers(0, size - 1))) % size for k in range(pairs)]
            settings[name] = torch.tensor(lengths).reshape(lead)
    factor = FACTORS[draw(st.sampled_from(list(FACTORS)))](pairs).to(dtype).reshape(lead)
    inputs = [cost.to(dtype).contiguous()]

    def call(cost: Tensor) -> Tensor:
        return soft_dtw_from_cost(cost, **settings)

    found, constant = results(call, inputs, factor), bits(call(*inputs))
    with pytest.MonkeyPatch.context() as patch:
        no_call_is_small(patch)
        assert found == results(call, inputs, factor)
        assert constant == bits(call(*inputs))


@pytest.mark.parametrize("factor", [-1.0, -math.inf, math.nan])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "shape", [(1, 30, 1), (1, 40, 40), (3, 12, 12), (20, 12, 12), (1, 300, 300)]
)
@pytest.mark.parametrize("ends", ["", "x", "xy"])
def test_gradients_are_plus_0_without_visits(
    ends: str, shape: tuple[int, ...], dtype: torch.dtype, factor: float
) -> None:
    cost = random(*shape, dtype=dtype).abs()
    cost[:, -1, 0] = torch.inf  # so that there are such cells in every shape

    def gradient(factor: float) -> Tensor:
        leaf = cost.clone().requires_grad_()
        value = soft_dtw_from_cost(leaf, gamma=1e-4, open_begin=ends, open_end=ends)
        return torch.autograd.grad(value, leaf, torch.full_like(value, factor))[0]

    for all_calls in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            if all_calls:
                no_call_is_small(patch)
            without_visits = gradient(1.0) == 0
            zeros = gradient(factor)[without_visits]
        assert len(zeros) > 0
        assert bits(zeros) == bits(torch.zeros_like(zeros))


def test_a_pair_has_the_same_bits_in_a_small_call_and_in_a_large_one() -> None:
    pairs = 4000
    x, y = random(pairs, 8, 3), random(pairs, 9, 3, seed=1)
    assert pairs * 8 * 9 > small.KEPT
    factor = FACTORS["signs"](pairs)
    for start, stop in ((0, 1), (17, 40), (880, 900), (0, 2000)):
        some = slice(start, stop)
        leaves = [[t.clone().requires_grad_() for t in ts] for ts in ((x, y), (x[some], y[some]))]
        large, little = (soft_dtw(*ts, gamma=0.2) for ts in leaves)
        assert bits(large[some]) == bits(little)
        of_large = torch.autograd.grad(large, leaves[0], factor)
        of_little = torch.autograd.grad(little, leaves[1], factor[some])
        for a, b in zip(of_large, of_little, strict=True):
            assert bits(a[some]) == bits(b)
