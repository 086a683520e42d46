"""Alignments: value, expected visits and the cheapest path, of batches, of all pairs, of S2DTW."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable

import mpmath
import numpy as np
import oracles
import pytest
import torch
from helpers import assert_close, derivative, value_and_gradient
from hypothesis import given
from hypothesis import strategies as st
from strategies import Problem, gammas, problems

from softdtw_kernels import (
    Alignment,
    s2dtw,
    s2dtw_alignment,
    s2dtw_alignment_from_cost,
    s2dtw_from_cost,
    soft_dtw,
    soft_dtw_alignment,
    soft_dtw_alignment_from_cost,
    soft_dtw_from_cost,
)

UNTIED = ("normal", "walk", "near", "negative", "large")


def _data(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _flat(paths: object, index: tuple[int, ...]) -> torch.Tensor:
    for k in index:
        paths = paths[k]
    assert isinstance(paths, torch.Tensor)
    return paths


@given(problem=problems(largest=8))
def test_value_and_expected_are_those_of_soft_dtw(problem: Problem, backend: str) -> None:
    alignment = soft_dtw_alignment_from_cost(problem.cost, **problem.arguments, backend=backend)
    value, gradient = value_and_gradient(
        soft_dtw_from_cost, problem.cost, **problem.arguments, backend=backend
    )
    assert isinstance(alignment, Alignment)
    assert torch.equal(alignment.value, value)
    assert torch.equal(alignment.expected, gradient)


@given(problem=problems(largest=8, bands=False), dummy=st.none() | st.floats(-1, 1, width=32))
def test_value_of_the_s2dtw_alignment(problem: Problem, dummy: float | None, backend: str) -> None:
    arguments = {k: v for k, v in problem.arguments.items() if k != "bandwidth"}
    for smoothing in (False, True):
        shared = {**arguments, "smoothing": smoothing, "dummy_cost": dummy, "backend": backend}
        alignment = s2dtw_alignment_from_cost(problem.cost, **shared)
        assert torch.equal(alignment.value, s2dtw_from_cost(problem.cost, **shared))


@given(problem=problems(largest=9, kinds=UNTIED))
def test_the_path_is_the_cheapest_one(problem: Problem, backend: str) -> None:
    paths = soft_dtw_alignment_from_cost(problem.cost, **problem.arguments, backend=backend).path()
    for index, cost in problem.items():
        path = _flat(paths, index)
        assert path.dtype == torch.int64
        best, cells = oracles.hard_path(cost)
        assert [tuple(p) for p in path.tolist()] == ([] if math.isinf(best) else cells)


@given(problem=problems(largest=9, kinds=("integers", "constant"), bands=False))
def test_a_path_steps_by_one_and_pays_the_hard_value(problem: Problem, backend: str) -> None:
    """Where many paths are cheapest, the path is one of them, from the first pair to the last."""
    arguments = dict(problem.arguments, backend=backend)
    paths = soft_dtw_alignment_from_cost(problem.cost, **arguments).path()
    hard = soft_dtw_from_cost(problem.cost, **{**arguments, "gamma": 0.0})
    for index, cost in problem.items():
        path = _flat(paths, index)
        if math.isinf(hard[index]):
            assert path.shape == (0, 2)
            continue
        assert path[0].tolist() == [0, 0]
        assert path[-1].tolist() == [cost.shape[0] - 1, cost.shape[1] - 1]
        assert {tuple(step) for step in path.diff(dim=0).tolist()} <= set(oracles.STEPS)
        paid = cost[tuple(path.T.numpy())].sum()
        assert_close(paid, hard[index], 1e-12 * max(1.0, np.abs(paid)), "cost along the path")


@given(problem=problems(largest=6, bands=False, kinds=UNTIED), dummy=st.floats(-1, 1, width=32))
def test_the_s2dtw_path_visits_the_real_pairs_of_the_cheapest_lattice_path(
    problem: Problem, dummy: float, backend: str
) -> None:
    lengths = {"x_lengths": problem.x_lengths, "y_lengths": problem.y_lengths}
    paths = s2dtw_alignment_from_cost(
        problem.cost, gamma=problem.gamma, smoothing=False, dummy_cost=dummy,
        backend=backend, **lengths,
    ).path()  # fmt: skip
    for index, cost in problem.items():
        lattice = oracles.weak_lattice(cost, dummy)
        best = oracles.recursion(lattice, 0.0)
        path = _flat(paths, index)
        # Dummies tie with each other; the real pairs must still pay for the cheapest lattice path.
        assert path.shape[1] == 2
        assert (path.diff(dim=0) >= 0).all()
        rows, columns = path.T.numpy()
        n, m = cost.shape
        real, dummies = cost[rows, columns].sum(), _fewest_dummies(path.tolist(), n, m)
        assert_close(
            real + dummy * dummies if dummy >= 0 else best.value,
            best.value,
            1e-12 * max(1.0, abs(best.value), np.abs(cost[rows, columns]).sum()),
            "cost along the path",
        )


def _fewest_dummies(pairs: list[list[int]], n: int, m: int) -> int:
    """The number of dummy cells that the shortest lattice path through these real pairs visits."""
    stops = [(0, 0), *((2 * i + 1, 2 * j + 1) for i, j in pairs), (2 * n, 2 * m)]
    total = 2  # the two ends are dummies
    for (a, b), (c, d) in zip(stops, stops[1:], strict=False):
        total += _dummies_between(a, b, c, d)
    return total


def _dummies_between(a: int, b: int, c: int, d: int) -> int:
    """Dummy cells strictly between two cells, on the shortest way that meets no real pair."""
    best = {(a, b): 0}
    for i in range(a, c + 1):
        for j in range(b, d + 1):
            if (i, j) == (a, b):
                continue
            is_end = (i, j) == (c, d)
            if i % 2 and j % 2 and not is_end:
                continue
            before = [best[i - p, j - q] for p, q in oracles.STEPS if (i - p, j - q) in best]
            if before:
                best[i, j] = min(before) + (not is_end)
    return best[c, d]


def test_features_give_what_their_costs_give(backend: str) -> None:
    x, y = _data(3, 5, 2), _data(3, 6, 2, seed=1)
    for function, of_cost, plain in (
        (soft_dtw_alignment, soft_dtw_alignment_from_cost, soft_dtw),
        (s2dtw_alignment, s2dtw_alignment_from_cost, s2dtw),
    ):
        left = function(x, y, cost="negative_dot", gamma=0.3, backend=backend)
        right = of_cost(-(x @ y.mT), gamma=0.3, backend=backend)
        assert_close(left.value, plain(x, y, cost="negative_dot", gamma=0.3), 1e-12, "value")
        assert_close(left.expected, right.expected, 1e-12, "expected")
        for a, b in zip(left.path(), right.path(), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("function", [soft_dtw_alignment, s2dtw_alignment])
def test_pairwise_alignments(function: Callable[..., Alignment], backend: str) -> None:
    x, y = _data(2, 5, 3), _data(3, 6, 3, seed=1)
    n, m = torch.tensor([5, 2]), torch.tensor([6, 1, 4])
    alignment = function(x, y, pairwise=True, x_lengths=n, y_lengths=m, backend=backend)
    assert alignment.value.shape == (2, 3)
    assert alignment.expected.shape == (2, 3, 5, 6)
    paths = alignment.path()
    for a in range(2):
        for b in range(3):
            one = function(x[a, : n[a]], y[b, : m[b]], backend=backend)
            assert_close(alignment.value[a, b], one.value, 1e-12, "value")
            assert_close(alignment.expected[a, b, : n[a], : m[b]], one.expected, 1e-11, "expected")
            assert torch.equal(paths[a][b], one.path())


@given(problem=problems(largest=6), gamma=gammas(0.1))
def test_expected_is_differentiable_like_the_gradient(
    problem: Problem, gamma: float, backend: str
) -> None:
    weight = torch.linspace(-1, 1, problem.cost.numel(), dtype=torch.float64)
    weight = weight.reshape(problem.cost.shape)
    cost = problem.cost.clone().requires_grad_()
    arguments = {**problem.arguments, "gamma": gamma, "backend": backend}
    expected = soft_dtw_alignment_from_cost(cost, **arguments).expected
    (left,) = derivative((expected * weight).sum(), cost)
    value = soft_dtw_from_cost(cost, **arguments)
    (gradient,) = derivative(value.sum(), cost, again=True)
    (right,) = derivative((gradient * weight).sum(), cost)
    assert_close(left, right, 1e-12 * max(1.0, 1.0 / gamma), "derivative of the expected alignment")


def test_a_batch_gives_a_list_and_one_pair_a_tensor(backend: str) -> None:
    one = soft_dtw_alignment(_data(4, 2), _data(5, 2), backend=backend)
    assert one.path().shape[1] == 2
    many = soft_dtw_alignment(_data(3, 4, 2), _data(3, 5, 2), backend=backend)
    assert isinstance(many.path(), list)
    assert len(many.path()) == 3
    assert "Alignment" in repr(one)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_path_is_that_of_its_value_or_an_error(dtype: torch.dtype, backend: str) -> None:
    cost, n = _data(2, 4, 5).to(dtype), torch.tensor([4, 3])
    alignment = soft_dtw_alignment_from_cost(cost, x_lengths=n, backend=backend)
    before = alignment.path()
    assert all(torch.equal(a, b) for a, b in zip(before, alignment.path(), strict=True))
    cost.neg_()
    with pytest.raises(RuntimeError, match="changed in place"):
        alignment.path()
    alignment = soft_dtw_alignment_from_cost(cost, x_lengths=n, backend=backend)
    n.fill_(1)
    with pytest.raises(RuntimeError, match="changed in place"):
        alignment.path()
    dummy = torch.tensor(0.5, dtype=torch.float64)
    weak = s2dtw_alignment_from_cost(cost, smoothing=False, dummy_cost=dummy, backend=backend)
    weak.path()
    dummy.fill_(-9)
    with pytest.raises(RuntimeError, match="changed in place"):
        weak.path()


def test_a_path_of_inference_mode_is_that_of_its_value() -> None:
    with torch.inference_mode():
        cost = _data(4, 5)
        alignment = soft_dtw_alignment_from_cost(cost)
        before = alignment.path()
        cost.copy_(cost.flip(0))
        assert not torch.equal(soft_dtw_alignment_from_cost(cost).path(), before)
        assert torch.equal(alignment.path(), before)
    assert torch.equal(alignment.path(), before)


def _entropy(cost: np.ndarray, gamma: float) -> float:
    """Of all alignments enumerated."""
    totals = oracles.incidence(*cost.shape) @ cost.reshape(-1)
    p = np.exp(-(totals - totals.min()) / gamma)
    p /= p.sum()
    return float(-(p[p > 0] * np.log(p[p > 0])).sum())


def test_an_entropy_that_was_logged_is_learned_from(backend: str) -> None:
    x, y = _data(3, 6, 2), _data(3, 5, 2, seed=1)
    gradients = []
    for mode in (None, torch.no_grad(), torch.inference_mode()):
        leaf = x.clone().requires_grad_()
        alignment = soft_dtw_alignment(leaf, y, gamma=0.4, backend=backend)
        if mode is not None:
            with mode:
                assert not alignment.entropy.requires_grad
        assert alignment.entropy is alignment.entropy
        (alignment.value.sum() + 5 * alignment.entropy.sum()).backward()
        gradients.append(leaf.grad)
    assert torch.equal(gradients[1], gradients[0]) and torch.equal(gradients[2], gradients[0])


def test_an_entropy_without_gradients_is_kept_of_no_other_mode() -> None:
    alignment = soft_dtw_alignment(_data(6, 2), _data(5, 2, seed=1))
    with torch.inference_mode():
        inside = alignment.entropy
    assert torch.equal(alignment.entropy, inside) and not alignment.entropy.is_inference()


COPIES: list[Callable[[Alignment], Alignment]] = [
    copy.copy,
    copy.deepcopy,
    lambda a: pickle.loads(pickle.dumps(a)),
    lambda a: _saved(a),
]


def _saved(alignment: Alignment) -> Alignment:
    file = io.BytesIO()
    torch.save(alignment, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", COPIES, ids=["copy", "deepcopy", "pickle", "save"])
def test_a_copy_has_the_path_and_the_entropy(
    copied: Callable[[Alignment], Alignment], backend: str
) -> None:
    x, y = _data(3, 6, 2), _data(3, 5, 2, seed=1)
    for alignment in (
        soft_dtw_alignment(x, y, gamma=torch.tensor(0.5), backend=backend),
        soft_dtw_alignment(x, y, x_lengths=[6, 4, 5], backend=backend),
        soft_dtw_alignment(x, y, open_begin="y", skip_cost=0.1, backend=backend),
        s2dtw_alignment(x, y, backend=backend),
    ):
        other = copied(alignment)
        for its, own in zip(other.path(), alignment.path(), strict=True):
            assert torch.equal(its, own)
        assert torch.equal(other.entropy, alignment.entropy)
        assert torch.equal(copied(other).entropy, alignment.entropy)


@pytest.mark.parametrize("copied", COPIES, ids=["copy", "deepcopy", "pickle", "save"])
def test_a_copy_of_what_was_changed_tells_no_path_either(
    copied: Callable[[Alignment], Alignment],
) -> None:
    cost = _data(6, 5)
    alignment = soft_dtw_alignment_from_cost(cost)
    cost.mul_(2)
    for _ in range(2):
        alignment = copied(alignment)
        with pytest.raises(RuntimeError, match="changed in place"):
            alignment.path()
    fresh = copied(soft_dtw_alignment_from_cost(cost))
    with torch.inference_mode():
        again = copied(fresh)
        assert torch.equal(again.path(), fresh.path())
    fresh._problem.cost.add_(1)
    with pytest.raises(RuntimeError, match="changed in place"):
        fresh.entropy.item()


@pytest.mark.parametrize("gamma", [0.05, 1.0, 20.0])
def test_entropy_is_that_of_all_alignments(gamma: float, backend: str) -> None:
    cost = _data(3, 4, 5)
    alignment = soft_dtw_alignment_from_cost(
        cost, gamma=gamma, x_lengths=[4, 2, 1], y_lengths=[5, 3, 5], backend=backend
    )
    assert alignment.entropy is alignment.entropy
    for k, (n, m) in enumerate([(4, 5), (2, 3), (1, 5)]):
        own = cost[k, :n, :m].numpy()
        assert_close(alignment.entropy[k], _entropy(own, gamma), 1e-12, "entropy")
        totals = oracles.incidence(n, m) @ own.reshape(-1)
        mean = float((alignment.expected[k] * cost[k]).sum())
        total = alignment.value[k] + gamma * alignment.entropy[k]
        assert_close(total, mean, 1e-11, "expected total cost")
        assert totals.min() - 1e-12 <= mean


def test_entropy_has_derivatives_by_costs_and_gamma(backend: str) -> None:
    cost, gamma = _data(2, 3, 4).requires_grad_(), torch.tensor([0.4, 2.0]).double()

    def entropy(cost: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
        return soft_dtw_alignment_from_cost(cost, gamma=gamma, backend=backend).entropy

    assert torch.autograd.gradcheck(entropy, (cost, gamma.requires_grad_()))
    features = torch.vmap(lambda c: soft_dtw_alignment_from_cost(c, backend=backend).entropy)
    assert_close(features(cost.detach()), entropy(cost.detach(), 1.0), 1e-12, "vmap")


@pytest.mark.parametrize("pairs", [1, 40])  # in strips, and in lanes
@pytest.mark.parametrize("gamma", [0.2, 0.1, 0.05, 0.02])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_small_entropy_has_its_digits(dtype: torch.dtype, gamma: float, pairs: int) -> None:
    """Of alignments that are all but certain, beside whose 1 the others are below rounding."""
    cost = _data(12, 12).abs().add(1 - torch.eye(12, dtype=torch.float64)).to(dtype)
    entropy = _entropy_by_shares(cost.double().numpy(), gamma)
    got = soft_dtw_alignment_from_cost(cost.expand(pairs, 12, 12), gamma=gamma).entropy
    bar = 2e-5 if dtype == torch.float32 else 1e-9
    assert ((got - entropy).abs() <= bar * entropy).all(), (got[0], entropy)


def _entropy_by_shares(cost: np.ndarray, gamma: float) -> float:
    with mpmath.workdps(60):
        g, n = mpmath.mpf(gamma), len(cost)
        z = {(-1, -1): mpmath.mpf(1)}
        entropy = {(-1, -1): mpmath.mpf(0)}
        for i in range(n):
            for j in range(n):
                before = [k for k in ((i - 1, j - 1), (i - 1, j), (i, j - 1)) if k in z]
                total = sum(z[k] for k in before)
                p = [z[k] / total for k in before]
                own = sum(-q * mpmath.log(q) for q in p)
                entropy[i, j] = own + sum(q * entropy[k] for q, k in zip(p, before, strict=True))
                z[i, j] = total * mpmath.exp(-mpmath.mpf(float(cost[i, j])) / g)
        return float(entropy[n - 1, n - 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (70, 9, 1), (70, 9, 9)], ids=str)
def test_a_single_alignment_has_no_entropy(
    shape: tuple[int, ...], dtype: torch.dtype, backend: str
) -> None:
    cost = _data(*shape).to(dtype)
    if shape[-1] == shape[-2]:
        cost = torch.where(torch.eye(shape[-1], dtype=torch.bool), cost, math.inf)
    entropy = soft_dtw_alignment_from_cost(cost, gamma=0.3, backend=backend).entropy
    assert (entropy == 0).all(), entropy


def test_entropy_at_the_edges(backend: str) -> None:
    cost = _data(3, 3, 4).float()
    assert (soft_dtw_alignment_from_cost(cost, gamma=0.0, backend=backend).entropy == 0).all()
    cost[1] = math.inf
    cost[2, 1, 1] = math.nan
    entropy = soft_dtw_alignment_from_cost(cost, backend=backend).entropy
    assert entropy.dtype == torch.float32
    assert entropy.isnan().tolist() == [False, True, True]
    weak = s2dtw_alignment_from_cost(
        torch.zeros(2, 1), smoothing=False, dummy_cost=0.0, backend=backend
    )
    assert_close(weak.entropy, math.log(len(oracles.incidence(5, 3))), 1e-5, "weak lattice")
    gamma = torch.tensor(1.0, dtype=torch.float64)
    alignment = soft_dtw_alignment_from_cost(cost, gamma=gamma, backend=backend)
    gamma.fill_(2.0)
    alignment.path()
    with pytest.raises(RuntimeError, match="the gamma, costs, .*so its entropy can no longer"):
        _ = alignment.entropy
