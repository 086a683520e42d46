"""Options of a path that are refused, and what the loss keeps of them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from softdtw_kernels import (
    SoftDTWLoss,
    soft_dtw,
    soft_dtw_alignment,
    soft_dtw_alignment_from_cost,
    soft_dtw_divergence,
    soft_dtw_from_cost,
)

COST, X, Y = torch.rand(2, 3, 4), torch.rand(2, 5, 3), torch.rand(2, 6, 3)
CALLS = [
    lambda **options: soft_dtw(X, Y, **options),
    lambda **options: soft_dtw_from_cost(COST, **options),
    lambda **options: soft_dtw_alignment(X, Y, **options),
    lambda **options: soft_dtw_alignment_from_cost(COST, **options),
    lambda **options: SoftDTWLoss(**options),
]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", ["repeat", "open_begin", "open_end"])
@pytest.mark.parametrize("value", ["yx", "z", "xyx", None, 1, ["x"], True])
def test_sides_are_four_strings(call: Any, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} must be one of"):
        call(**{name: value})


@pytest.mark.parametrize("call", CALLS)
def test_prices_are_finite_numbers(call: Any) -> None:
    for name in ("warp_cost", "skip_cost"):
        for value in (math.inf, -math.inf, math.nan):
            with pytest.raises(ValueError, match=f"{name} must be finite, got"):
                call(**{name: value})
        for wrong in ("1", None, True, [1.0]):
            with pytest.raises(TypeError, match=name):
                call(**{name: wrong})
        with pytest.raises(TypeError, match=name):
            call(**{name: torch.tensor(True)})


def test_prices_in_tensors_are_finite(backend: str) -> None:
    for value in (math.inf, math.nan):
        price = torch.tensor([0.0, value])
        with pytest.raises(ValueError, match="warp_cost must be finite.*repeat"):
            soft_dtw_from_cost(COST, warp_cost=price, backend=backend)
        with pytest.raises(ValueError, match="skip_cost must be finite"):
            soft_dtw_from_cost(COST, skip_cost=price, open_end="x", backend=backend)
        # Without use it is not looked at.
        assert soft_dtw_from_cost(COST, skip_cost=price, backend=backend).isfinite().all()
    with pytest.raises(ValueError, match="warp_cost must be a number or a tensor"):
        soft_dtw_from_cost(COST, warp_cost=torch.zeros(3), backend=backend)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", ["open_begin", "open_end"])
def test_open_ends_have_no_band(call: Any, name: str) -> None:
    with pytest.raises(ValueError, match="bandwidth must be None with open ends, got 2"):
        call(**{name: "x"}, bandwidth=2)


def test_operators_ask_again() -> None:
    item = torch.ones(2, dtype=torch.float64)
    operator = torch.ops.softdtw_kernels.pattern_value
    with pytest.raises(ValueError, match="repeat"):
        operator(COST, item, item, item, None, None, None, "yx", "", "")
    with pytest.raises(ValueError, match="bandwidth"):
        operator(COST, item, item, item, None, None, 2, "xy", "x", "")


@pytest.mark.parametrize("n, m, repeat", [(3, 4, ""), (4, 3, ""), (3, 4, "y"), (4, 3, "x")])
def test_shapes_without_an_alignment_are_infinite(
    n: int, m: int, repeat: str, backend: str
) -> None:
    cost, warp = torch.rand(n, m, requires_grad=True), torch.tensor(0.3, requires_grad=True)
    value = soft_dtw_from_cost(cost, repeat=repeat, warp_cost=warp, backend=backend)
    value.backward()
    assert value.item() == math.inf
    assert not cost.grad.any() and warp.grad == 0
    found = soft_dtw_alignment_from_cost(cost, repeat=repeat, backend=backend)
    assert found.path().shape == (0, 2)
    assert SoftDTWLoss(repeat=repeat)(torch.rand(1, n, 2), torch.rand(1, m, 2)) == math.inf


def test_pairwise_divergence_takes_one_warp_cost() -> None:
    with pytest.raises(ValueError, match="warp_cost must be a number or a 0-d tensor"):
        soft_dtw_divergence(X, Y, warp_cost=torch.zeros(2), pairwise=True)


def test_the_loss_is_the_function() -> None:
    options = {"repeat": "y", "open_end": "x", "skip_cost": 0.2, "warp_cost": 0.1}
    loss = SoftDTWLoss(0.5, reduction="none", **options)
    long, short = torch.rand(2, 6, 3), torch.rand(2, 5, 3)
    assert torch.equal(loss(long, short), soft_dtw(long, short, gamma=0.5, **options))
    assert "warp_cost=0.1, skip_cost=0.2, repeat='y', open_end='x'" in repr(loss)
    assert "repeat" not in repr(SoftDTWLoss()) and "warp" not in repr(SoftDTWLoss())
    diverging = SoftDTWLoss(divergence=True, warp_cost=0.1)
    expected = soft_dtw_divergence(long, short, warp_cost=0.1, reduction="mean")
    assert torch.equal(diverging(long, short), expected)


def test_the_loss_keeps_tensors() -> None:
    warp, skip = nn.Parameter(torch.tensor(0.1)), torch.tensor(0.2)
    loss = SoftDTWLoss(warp_cost=warp, skip_cost=skip, open_begin="y")
    assert list(dict(loss.named_parameters())) == ["warp_cost"]
    assert sorted(loss.state_dict()) == ["skip_cost", "warp_cost"]
    loss(X, Y).backward()
    assert warp.grad is not None


@pytest.mark.parametrize(
    "options",
    [
        {"repeat": "x"},
        {"open_begin": "x"},
        {"open_end": "xy"},
        {"skip_cost": 0.1},
        {"skip_cost": torch.tensor(0.0)},
    ],
)
def test_the_divergence_has_no_open_ends(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"divergence=True has no {next(iter(options))}"):
        SoftDTWLoss(divergence=True, **options)
