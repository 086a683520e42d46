"""k-means: the loop it stands for, known clusters, and what must not change them."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import assert_close
from torch import Tensor

from softdtw_kernels import KMeans, soft_dtw, soft_dtw_kmeans


def families(each: int = 5, n: int = 20) -> Tensor:
    """Waves, ramps and pulses, shifted a little: (3 each, n, 1), family after family."""
    t = torch.linspace(0, 6, n, dtype=torch.float64)
    shifts = torch.linspace(0, 0.6, each, dtype=torch.float64)[:, None]
    pulses = 3 * ((t - 3 - shifts).abs() < 0.8).double()
    return torch.cat([torch.sin(t - shifts), t / 3 + 0.1 * shifts, pulses])[..., None]


def grouped(labels: Tensor) -> set[frozenset[int]]:
    """The clusters, whatever their numbers."""
    return {frozenset((labels == c).nonzero()[:, 0].tolist()) for c in labels.unique()}


TRUTH = {frozenset(range(5 * k, 5 * k + 5)) for k in range(3)}


def test_families_are_found_and_the_result_fits_together(backend: str) -> None:
    x, seen = families(n=8 if backend == "reference" else 20), []
    start = x[[0, 5, 10]] + 0.3
    found = soft_dtw_kmeans(
        x, 3, gamma=0.1, init=start, max_iter=3, backend=backend,
        callback=lambda k, result: seen.append((k, result)),
    )  # fmt: skip
    assert isinstance(found, KMeans)
    assert grouped(found.labels) == TRUTH and found.labels.dtype == torch.int64
    values = soft_dtw(x, found.centers, gamma=0.1, pairwise=True)
    assert torch.equal(values.argmin(1), found.labels)
    assert_close(found.inertia, values.min(1).values.sum(), 1e-9, "inertia")
    assert found.inertia < soft_dtw(x, start, gamma=0.1, pairwise=True).min(1).values.sum()
    assert [k for k, _ in seen] == list(range(len(seen)))
    assert torch.equal(seen[-1][1].labels, found.labels)


def test_a_seed_decides_the_draws() -> None:
    x = families()
    results = [
        soft_dtw_kmeans(x, 3, gamma=0.1, generator=torch.Generator().manual_seed(7)) for _ in "12"
    ]
    assert torch.equal(results[0].centers, results[1].centers)
    assert grouped(results[0].labels) == TRUTH
    noise = torch.randn(6, 4, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    all_of_them = soft_dtw_kmeans(noise, 6, gamma=0.0, max_iter=1)
    assert len(grouped(all_of_them.labels)) == 6  # no sequence is drawn twice


def test_padding_order_and_form_of_the_sequences_change_nothing() -> None:
    x, n = families(), torch.tensor([20, 17, 15] * 5)
    start = x[[0, 5, 10], :16]
    pieces = [z[:k] for z, k in zip(x, n, strict=True)]
    truth = soft_dtw_kmeans(pieces, 3, gamma=0.1, init=start, max_iter=2)
    padded = x.clone()
    for z, k in zip(padded, n, strict=True):
        z[k:] = math.nan
    found = soft_dtw_kmeans(padded, 3, gamma=0.1, init=start, max_iter=2, lengths=n)
    assert torch.equal(found.labels, truth.labels)
    assert_close(found.centers, truth.centers, 1e-9, "centers")
    order = torch.arange(14, -1, -1)
    turned = soft_dtw_kmeans(x[order], 3, gamma=0.1, init=start, max_iter=2, lengths=n[order])
    assert torch.equal(turned.labels, truth.labels[order])
    drawn = soft_dtw_kmeans(pieces, 2, generator=torch.Generator().manual_seed(1), max_iter=1)
    assert drawn.centers.shape == (2, 20, 1) and drawn.centers.isfinite().all()


def test_an_empty_cluster_takes_the_farthest_sequence() -> None:
    x = families()[:10]
    start = torch.stack([x[:5].mean(0), torch.full_like(x[0], 100.0)])
    found = soft_dtw_kmeans(x, 2, gamma=0.1, init=start)
    assert grouped(found.labels) == {frozenset(range(5)), frozenset(range(5, 10))}


def test_the_edges() -> None:
    x = families(each=2)
    one = soft_dtw_kmeans(x, 1, gamma=0.0, max_iter=1)
    assert not one.labels.any()
    gamma = torch.tensor(0.5, requires_grad=True)
    found = soft_dtw_kmeans(x.float().requires_grad_(), 2, gamma=gamma, bandwidth=5, max_iter=1)
    assert found.centers.dtype == found.inertia.dtype == torch.float32
    assert not any(t.requires_grad for t in found)
    half = soft_dtw_kmeans(x.half(), 2, max_iter=1)
    assert half.centers.dtype == torch.float16 and half.inertia.dtype == torch.float32
    same = soft_dtw_kmeans(torch.zeros(4, 3, 1), 3, max_iter=1)
    assert same.centers.shape == (3, 3, 1)
    with torch.inference_mode():
        assert soft_dtw_kmeans(x, 2, max_iter=1).labels.shape == (6,)


def test_a_median_under_absolute_differences() -> None:
    """Between the middle two the objective has no slope, where a line search gave NaN."""
    x = torch.tensor([0.040108129382133484, -0.9004615545272827, 0.03974154219031334])
    x = torch.cat([x, torch.tensor([-0.08759113401174545])])[:, None, None]
    draws = torch.Generator().manual_seed(0)
    found = soft_dtw_kmeans(x, 1, cost="manhattan", generator=draws)
    assert x[3] <= found.centers <= x[2]


def test_bad_arguments() -> None:
    x = families(each=1)
    for error, message, arguments in (
        (ValueError, r"k must lie in 1..3, .*got 4", {"k": 4}),
        (TypeError, "k must be an integer", {"k": 2.5}),
        (ValueError, r"init must have shape \(2, L, 1\)", {"k": 2, "init": x}),
        (ValueError, "max_iter must be at least 1", {"k": 2, "max_iter": 0}),
        (ValueError, "tol must be at least 0", {"k": 2, "tol": -1.0}),
        (ValueError, "0-d tensor with k-means", {"k": 2, "gamma": torch.ones(3)}),
        (ValueError, "cost must be one of", {"k": 2, "cost": "l1"}),
        (ValueError, "lengths must be integers of shape", {"k": 2, "lengths": [1, 2]}),
        (ValueError, r"^lengths must lie in 1..\d+, .*got 0", {"k": 2, "lengths": [1, 0, 1]}),
        (TypeError, r"generator must be .*got int; .*manual_seed\(", {"k": 2, "generator": 42}),
        (TypeError, r"init must be .*got list; .*torch.stack\(init\)", {"k": 1, "init": [x[0]]}),
    ):
        with pytest.raises(error, match=message):
            soft_dtw_kmeans(x, **arguments)
    with pytest.raises(ValueError, match=r"must have shape \(B, N, D\)"):
        soft_dtw_kmeans(x[0], 1)
    x[0, 0] = math.nan
    with pytest.raises(ValueError, match="finite"):
        soft_dtw_kmeans(x, 1, max_iter=1)
