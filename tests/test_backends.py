"""The backends agree, and the choice of a backend is honored."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers import assert_close, derivative, value_and_gradient
from hypothesis import given
from hypothesis import strategies as st
from strategies import Problem, features, gammas, problems, seeds
from torch import Tensor

from softdtw_kernels import (
    s2dtw,
    s2dtw_from_cost,
    soft_dtw,
    soft_dtw_divergence,
    soft_dtw_from_cost,
)

KINDS = ("normal", "walk", "near", "integers", "constant", "negative", "tiny")


def _everything(
    problem: Problem, backend: str, direction: Tensor, **weak: object
) -> dict[str, Tensor]:
    """Return the value and its first and second derivatives by cost, gamma and dummy cost."""
    cost = problem.cost.clone().requires_grad_()
    gamma = torch.tensor(problem.gamma, dtype=torch.float64, requires_grad=True)
    arguments = {**problem.limits, "gamma": gamma, "backend": backend}
    inputs = {"cost": cost, "gamma": gamma}
    if weak:
        del arguments["bandwidth"]
        if weak["dummy_cost"] is not None:
            inputs["dummy"] = torch.tensor(
                weak["dummy_cost"], dtype=torch.float64, requires_grad=True
            )
            weak["dummy_cost"] = inputs["dummy"]
        value = s2dtw_from_cost(cost, **arguments, **weak)
    else:
        value = soft_dtw_from_cost(cost, **arguments)
    results = {"value": value.detach()}
    finite = torch.where(value.isfinite(), value, 0).sum()
    first = derivative(finite, *inputs.values(), again=True)
    mixed = (
        (first[0] * direction).sum() + 0.7 * first[1] + (0.3 * first[2] if len(first) > 2 else 0)
    )
    second = derivative(mixed, *inputs.values())
    for name, one, two in zip(inputs, first, second, strict=True):
        results[f"gradient by {name}"] = one.detach()
        results[f"second derivative by {name}"] = two
    return results


def _agree(problem: Problem, seed: int, **weak: object) -> None:
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(problem.cost.shape, generator=generator, dtype=torch.float64)
    reference = _everything(problem, "reference", direction, **weak)
    numba = _everything(problem, "numba", direction, **weak)
    for name, truth in reference.items():
        finite = truth[truth.isfinite()].abs()
        scale = max(1.0, finite.max().item() if finite.numel() else 0.0)
        assert_close(numba[name], truth, (1e-12 if name == "value" else 1e-8) * scale, name)


@given(problem=problems(largest=8, kinds=KINDS, gamma=gammas(1e-2)), seed=seeds())
def test_numba_agrees_with_reference(problem: Problem, seed: int) -> None:
    _agree(problem, seed)


@given(
    problem=problems(largest=6, kinds=KINDS, bands=False, gamma=gammas(1e-2)),
    seed=seeds(),
    smoothing=st.booleans(),
    dummy=st.none() | st.floats(-1, 1),
    origin_count=st.sampled_from([1, 3]),
)
def test_numba_agrees_with_reference_in_s2dtw(
    problem: Problem, seed: int, smoothing: bool, dummy: float | None, origin_count: int
) -> None:
    _agree(problem, seed, smoothing=smoothing, dummy_cost=dummy, origin_count=origin_count)


@pytest.mark.parametrize("function", [soft_dtw, s2dtw, soft_dtw_divergence])
@given(sequences=features(), gamma=gammas(1e-2))
def test_numba_agrees_with_reference_from_features(
    sequences: tuple[Tensor, Tensor], gamma: float, function: Callable[..., Tensor]
) -> None:
    both = [
        value_and_gradient(function, *sequences, gamma=gamma, backend=b)
        for b in ("numba", "reference")
    ]
    for got, truth, name in zip(*both, ("value", "by x", "by y"), strict=True):
        scale = max(1.0, truth.abs().max().item())
        assert_close(got, truth, (1e-12 if name == "value" else 1e-9) * scale, name)


@pytest.mark.parametrize("batch", [1, 7, 8, 9, 33, 257])
@pytest.mark.parametrize("sides", [(8, 8), (1, 5), (33, 17)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_batch_size_agrees(batch: int, sides: tuple[int, int], dtype: torch.dtype) -> None:
    """Batches that fill vector lanes or leave some empty, and single pairs; ragged lengths."""
    generator = torch.Generator().manual_seed(batch)
    cost = torch.randn(batch, *sides, generator=generator).to(dtype)
    lengths = {
        "x_lengths": torch.randint(1, sides[0] + 1, (batch,), generator=generator),
        "y_lengths": torch.randint(1, sides[1] + 1, (batch,), generator=generator),
    }
    for gamma in (1e-3, 0.5):
        got = value_and_gradient(soft_dtw_from_cost, cost, gamma=gamma, **lengths)
        truth = value_and_gradient(
            soft_dtw_from_cost, cost.double(), gamma=gamma, backend="reference", **lengths
        )
        exact = dtype == torch.float64
        assert_close(got[0], truth[0], 1e-12 if exact else 1e-5, "value", rtol=0 if exact else 1e-6)
        assert_close(got[1], truth[1], 1e-9 if exact else 5e-5, "gradient")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_strides_of_the_cost(dtype: torch.dtype) -> None:
    """Row- and column-major, expanded and sliced, and the view that all-pairs costs are."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(3, 10, 4, 12, generator=generator).to(dtype)
    views = [
        base.permute(0, 2, 1, 3),  # (3, 4, 10, 12): all pairs from one matrix product
        base.permute(3, 2, 1, 0),
        base[:, ::2, 1:, 3:9],
        base[:1].expand(5, 10, 4, 12),
        base[0, 0, 0, :1].expand(2, 6, 7),
        base.transpose(-1, -2),
    ]
    for view in views:
        got = value_and_gradient(lambda c: soft_dtw_from_cost(c, gamma=0.1), view.contiguous())
        assert torch.equal(soft_dtw_from_cost(view, gamma=0.1), got[0])
        leaf = view.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(soft_dtw_from_cost(leaf, gamma=0.1).sum(), leaf)
        assert torch.equal(gradient, got[1])


@pytest.mark.parametrize("shape", [(0, 4, 5), (2, 0, 3, 3)])
def test_an_empty_batch_gives_an_empty_value(shape: tuple[int, ...], backend: str) -> None:
    for function in (soft_dtw_from_cost, s2dtw_from_cost):
        value, gradient = value_and_gradient(function, torch.zeros(shape), backend=backend)
        assert value.shape == shape[:-2]
        assert gradient.shape == shape
    x = torch.zeros(0, 4, 2)
    assert soft_dtw(x, torch.zeros(0, 5, 2), backend=backend).shape == (0,)
    assert soft_dtw(x, torch.zeros(3, 5, 2), pairwise=True, backend=backend).shape == (0, 3)


@pytest.mark.parametrize("batch", [(0,), (0, 2, 3), (2, 0, 3, 1), (0, 0, 0)])
def test_empty_batches_of_features(batch: tuple[int, ...], backend: str) -> None:
    x, y = torch.zeros(*batch, 4, 2), torch.zeros(*batch, 5, 2)
    lengths = [] if batch == (0,) else torch.ones(batch, dtype=torch.long)
    for function in (soft_dtw, s2dtw, soft_dtw_divergence):
        for limits in ({}, {"x_lengths": lengths, "y_lengths": lengths}):
            value, by_x, by_y = value_and_gradient(function, x, y, backend=backend, **limits)
            assert value.shape == batch
            assert by_x.shape == x.shape
            assert by_y.shape == y.shape
