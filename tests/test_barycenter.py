"""Barycenters: known answers, stationarity, and what must not change them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers import assert_close, examples, value_and_gradient
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeds

from softdtw_kernels import soft_dtw, soft_dtw_barycenter, soft_dtw_kmeans


def _walks(count: int, n: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, n, 2, generator=generator, dtype=torch.float64).cumsum(-2)


def _objective(
    z: torch.Tensor,
    sequences: torch.Tensor,
    weights: torch.Tensor | None = None,
    **arguments: object,
) -> torch.Tensor:
    values = soft_dtw(z, sequences, **arguments)
    return values.mean() if weights is None else (values * weights).sum() / weights.sum()


def test_the_hard_barycenter_of_one_sequence_is_that_sequence(backend: str) -> None:
    x = _walks(1, 6)
    center = soft_dtw_barycenter(x, gamma=1e-4, init=x[0] + 0.05, max_iter=200, backend=backend)
    assert_close(center, x[0], 1e-3, "barycenter")


def test_single_frames_have_their_weighted_mean(backend: str) -> None:
    """One frame each has one alignment: the barycenter of squared distances is the mean."""
    x = torch.tensor([[[0.0, 1.0]], [[3.0, -2.0]], [[1.0, 4.0]]], dtype=torch.float64)
    weights = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
    center = soft_dtw_barycenter(x, weights=weights, gamma=0.7, backend=backend)
    assert_close(center, (x * weights[:, None, None]).sum(0) / weights.sum(), 1e-6, "mean")
    center = soft_dtw_barycenter(x, gamma=0.7, backend=backend)
    assert_close(center, x.mean(0), 1e-6, "mean")


@examples(5)
@given(seed=seeds(), gamma=st.sampled_from([0.1, 1.0, 5.0]))
def test_the_barycenter_is_stationary_and_below_its_start(
    seed: int, gamma: float, backend: str
) -> None:
    x = _walks(4, 7, seed)
    start = x.mean(0)
    center = soft_dtw_barycenter(
        x, gamma=gamma, init=start, max_iter=400, tol=1e-8, backend=backend
    )
    assert center.shape == start.shape
    leaf = center.clone().requires_grad_()
    value = _objective(leaf, x, gamma=gamma)
    (gradient,) = torch.autograd.grad(value, leaf)
    leaf = start.clone().requires_grad_()
    (first,) = torch.autograd.grad(_objective(leaf, x, gamma=gamma), leaf)
    assert value <= _objective(start, x, gamma=gamma)
    assert gradient.abs().max() <= 1e-4 * first.abs().max()


def test_weights_act_as_repetitions(backend: str) -> None:
    x = _walks(3, 5)
    shared = {"gamma": 1.0, "init": x[0], "max_iter": 300, "tol": 1e-9, "backend": backend}
    weighted = soft_dtw_barycenter(x, weights=[2.0, 1.0, 0.0], **shared)
    repeated = soft_dtw_barycenter(x[[0, 0, 1]], **shared)
    assert_close(weighted, repeated, 1e-4, "barycenter")


def test_padding_changes_nothing(backend: str) -> None:
    x = _walks(3, 8)
    lengths = torch.tensor([8, 5, 3])
    padded = x.clone()
    for k, n in enumerate(lengths):
        padded[k, n:] = math.nan
    shared = {"gamma": 0.5, "init": x[0, :6], "backend": backend}
    truth = soft_dtw_barycenter(x, lengths=lengths, **shared)
    assert torch.equal(soft_dtw_barycenter(padded, lengths=lengths, **shared), truth)
    pieces = [s[:n] for s, n in zip(x, lengths, strict=True)]
    assert_close(soft_dtw_barycenter(pieces, **shared), truth, 1e-9, "list of sequences")
    without = soft_dtw_barycenter(padded, lengths=lengths, gamma=0.5, backend=backend)
    assert without.isfinite().all()


def test_inputs_stay_as_they_are_and_no_graph_is_kept(backend: str) -> None:
    x = _walks(3, 5).requires_grad_()
    before = x.detach().clone()
    init = x[0].detach().clone()
    center = soft_dtw_barycenter(x, init=init, backend=backend)
    assert torch.equal(x.detach(), before)
    assert torch.equal(init, before[0])
    assert not center.requires_grad
    assert x.grad is None
    with torch.no_grad():
        assert_close(soft_dtw_barycenter(x, init=init, backend=backend), center, 0.0, "no_grad")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_and_length_of_the_result(dtype: torch.dtype, backend: str) -> None:
    x = _walks(3, 5).to(dtype)
    assert soft_dtw_barycenter(x, backend=backend).dtype == dtype
    assert soft_dtw_barycenter(x, init=9, backend=backend).shape == (9, 2)
    assert soft_dtw_barycenter(x, init=x[1, :3], backend=backend).shape == (3, 2)


@pytest.mark.parametrize("init", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_flat_stretches_of_an_objective_are_no_failure(dtype: torch.dtype, init: int) -> None:
    """Of single frames under absolute differences: a median, between which the slope is 0."""
    x = torch.tensor([-2.0, 0.0, 1.0, 1.0], dtype=dtype)[:, None, None]
    center = soft_dtw_barycenter(x, gamma=0.01, cost="manhattan", init=init)
    assert ((center >= 0) & (center <= 1)).all()


def test_float32_goes_on_after_a_direction_that_leads_nowhere() -> None:
    generator = torch.Generator().manual_seed(948)
    x, start = (torch.randn(11, 1, generator=generator) for _ in "xs")
    center = soft_dtw_barycenter(x[None], gamma=0.1, init=start)
    values, slopes = [], []
    for z in (start, center):
        value, slope, _ = value_and_gradient(soft_dtw, z.double(), x.double(), gamma=0.1)
        values.append(value)
        slopes.append(slope.abs().max())
    assert values[1] < 0.1 * values[0] and slopes[1] < 1e-3 * slopes[0]


def test_every_iteration_counts() -> None:
    x = _walks(5, 12)
    values = [_objective(soft_dtw_barycenter(x, max_iter=n), x) for n in range(5)]
    assert all(later < sooner for sooner, later in zip(values, values[1:], strict=False))


@pytest.mark.parametrize("far", [1e8, math.nan])
def test_a_sequence_of_weight_0_is_none(far: float) -> None:
    x = _walks(5, 12).float()
    with_another = torch.cat([x[:2], torch.full_like(x[:1], far), x[2:]])
    lengths, weights = [12, 9, 12, 12, 12, 10], [1, 1, 0, 1, 1, 1]
    found = soft_dtw_barycenter(with_another, weights=weights, lengths=lengths)
    assert torch.equal(found, soft_dtw_barycenter(x, lengths=[12, 9, 12, 12, 10]))


def test_weights_keep_their_digits_whatever_their_size() -> None:
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)[:, None, None]
    mean = soft_dtw_barycenter(ends, weights=[0.9, 0.1], max_iter=0)
    assert_close(mean, torch.full_like(mean, 0.1), 1e-16, "mean")
    x = _walks(5, 6)
    for weight in (1e308, 5e-324):
        assert torch.equal(soft_dtw_barycenter(x, weights=[weight] * 5), soft_dtw_barycenter(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("unit", [2.0**-20, 2.0**13])
@pytest.mark.parametrize("cost, power", [("sqeuclidean", 2), ("euclidean", 1)])
def test_units_change_nothing(cost: str, power: int, unit: float, dtype: torch.dtype) -> None:
    """Volts or microvolts: gamma is in units of the cost."""
    x, lengths = _walks(4, 12).to(dtype), [12, 9, 10, 7]
    settings: dict[str, Any] = {"lengths": lengths, "cost": cost, "divergence": cost[0] == "s"}
    plain = soft_dtw_barycenter(x, gamma=0.5, **settings)
    scaled = soft_dtw_barycenter(x * unit, gamma=0.5 * unit**power, **settings)
    assert_close(scaled / unit, plain, 1e-5, "barycenter")
    centers, labels, inertia = soft_dtw_kmeans(x, 2, init=x[:2], gamma=0.5, lengths=lengths)
    far = soft_dtw_kmeans(x * unit, 2, init=x[:2] * unit, gamma=0.5 * unit**2, lengths=lengths)
    assert_close(far.centers / unit, centers, 1e-5, "centers")
    assert_close(far.inertia / unit**2, inertia, 1e-4, "inertia")
    assert torch.equal(far.labels, labels)


def test_an_offset_of_all_frames_is_no_reason_to_stop() -> None:
    x = _walks(4, 12)
    plain = soft_dtw_barycenter(x)
    assert_close(soft_dtw_barycenter(x + 1000.0) - 1000.0, plain, 1e-3, "barycenter")


def _minus_squares(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return -(x.unsqueeze(-2) - y.unsqueeze(-3)).square().sum(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cost", ["negative_dot", _minus_squares])
def test_an_objective_without_a_bottom_is_an_error(dtype: torch.dtype, cost: object) -> None:
    x = _walks(3, 6).to(dtype)
    with pytest.raises(ValueError, match="bounded below"):
        soft_dtw_barycenter(x, cost=cost)
    if cost == "negative_dot":  # the self-term bounds it
        assert soft_dtw_barycenter(x, cost=cost, divergence=True).isfinite().all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("cost", ["sqeuclidean", "cosine", "negative_dot"])
def test_frames_that_are_not_finite_are_an_error(bad: float, cost: str) -> None:
    x = _walks(3, 6)
    start = x[0].clone()
    x[1, 2] = bad
    for init in (None, start):
        with pytest.raises(ValueError, match="finite"):
            soft_dtw_barycenter(x, cost=cost, init=init)


def _of_what_both_have(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    differences = x[..., :, None, :] - y[..., None, :, :]
    return torch.where(differences.isnan(), 0, differences).square().sum(-1)


@pytest.mark.parametrize("cluster", [False, True])
def test_missing_values_need_a_start_that_has_none(cluster: bool) -> None:
    def found(x: torch.Tensor, init: torch.Tensor | None) -> torch.Tensor:
        settings: dict[str, Any] = {"gamma": 0.1, "cost": _of_what_both_have}
        if not cluster:
            return soft_dtw_barycenter(x, init=init, **settings)
        start = None if init is None else init[None]
        return soft_dtw_kmeans(x, 1, init=start, **settings).centers[0]

    x = _walks(3, 6)
    whole = x.mean(0)
    x[1, 2, 0] = x[2, 4:] = math.nan
    with pytest.raises(ValueError, match="not finite.*give init"):
        found(x, None)
    z = found(x, whole)
    assert z.isfinite().all()
    assert _objective(z, x, gamma=0.1, cost=_of_what_both_have) < _objective(
        whole, x, gamma=0.1, cost=_of_what_both_have
    )
