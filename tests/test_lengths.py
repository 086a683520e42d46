"""Lengths are slicing: what lies beyond them is never read, and gets a gradient of exactly zero."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from helpers import assert_close, derivative, value_and_gradient
from hypothesis import given
from hypothesis import strategies as st
from strategies import Problem, problems, seeds
from torch import Tensor

from softdtw_kernels import (
    s2dtw,
    s2dtw_from_cost,
    soft_dtw,
    soft_dtw_alignment_from_cost,
    soft_dtw_barycenter,
    soft_dtw_divergence,
    soft_dtw_from_cost,
)
from softdtw_kernels._cpu.arrays import NOTHING
from softdtw_kernels._cpu.batch import Batch

GARBAGE = (math.nan, math.inf, -math.inf, 1e38, -1e38)
BOTH = [soft_dtw_from_cost, s2dtw_from_cost]
OF_FEATURES = [soft_dtw, s2dtw, soft_dtw_divergence]
COSTS = ("sqeuclidean", "euclidean", "cosine", "shifted_cosine", "negative_dot")


def _second(
    function: Callable[..., Tensor], leaves: tuple[Tensor, ...], **arguments: object
) -> tuple[Tensor, ...]:
    """Return value, gradients, and the gradients of a fixed linear function of these gradients."""
    leaves = tuple(t.detach().clone().requires_grad_() for t in leaves)
    value = function(*leaves, **arguments)
    first = derivative(value.sum(), *leaves, again=True)
    weights = [torch.linspace(-1, 1, g.numel(), dtype=g.dtype).reshape(g.shape) for g in first]
    second = derivative(sum((g * w).sum() for g, w in zip(first, weights, strict=True)), *leaves)
    return (value.detach(), *(g.detach() for g in first), *second)


@pytest.mark.parametrize("function", BOTH)
@given(
    problem=problems(largest=7, forbidden=False, kinds=("normal", "walk")),
    garbage=st.sampled_from(GARBAGE),
)
def test_padding_of_costs_changes_nothing(
    problem: Problem, garbage: float, function: Callable[..., Tensor], backend: str
) -> None:
    arguments = dict(problem.arguments, backend=backend)
    if function is s2dtw_from_cost:
        del arguments["bandwidth"]
    padded, outside = problem.cost.clone(), torch.ones_like(problem.cost, dtype=torch.bool)
    for index, block in problem.items():
        outside[index][: block.shape[0], : block.shape[1]] = False
    padded[outside] = garbage
    truth = _second(function, (problem.cost,), **arguments)
    got = _second(function, (padded,), **arguments)
    for a, b in zip(got, truth, strict=True):
        assert torch.equal(a, b)
    for part in got[1:]:
        assert (part[outside] == 0).all()


@pytest.mark.parametrize("function", BOTH)
@given(problem=problems(largest=8))
def test_lengths_are_slices_of_the_cost(
    problem: Problem, function: Callable[..., Tensor], backend: str
) -> None:
    arguments = {"gamma": problem.gamma, "backend": backend}
    if function is soft_dtw_from_cost:
        arguments["bandwidth"] = problem.bandwidth
    lengths = {"x_lengths": problem.x_lengths, "y_lengths": problem.y_lengths}
    value, gradient = value_and_gradient(function, problem.cost, **arguments, **lengths)
    for index, _ in problem.items():
        n, m = problem.sizes(index)
        one = value_and_gradient(function, problem.cost[index][:n, :m], **arguments)
        assert torch.equal(value[index], one[0]), (
            "the place in the batch and the padding change the value"
        )
        assert torch.equal(gradient[index][:n, :m], one[1])


@pytest.mark.parametrize("name", COSTS)
@pytest.mark.parametrize("function", OF_FEATURES)
@pytest.mark.parametrize("pairwise", [False, True])
def test_padding_of_features_changes_nothing(
    function: Callable[..., Tensor], name: str, pairwise: bool, backend: str
) -> None:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(3, 5, 2, generator=generator, dtype=torch.float64)
    y = torch.randn(3, 6, 2, generator=generator, dtype=torch.float64)
    n, m = torch.tensor([5, 2, 1]), torch.tensor([3, 6, 1])
    rows, columns = torch.arange(5) >= n[:, None], torch.arange(6) >= m[:, None]
    shared = {
        "cost": name, "gamma": 0.3, "pairwise": pairwise, "backend": backend,
        "x_lengths": n, "y_lengths": m,
    }  # fmt: skip
    truth = _second(function, (x, y), **shared)
    for garbage in (math.nan, math.inf, 1e38):
        x, y = x.clone(), y.clone()
        x[rows], y[columns] = garbage, garbage
        got = _second(function, (x, y), **shared)
        for a, b in zip(got, truth, strict=True):
            assert_close(a, b, 1e-12, f"{name}, padding of {garbage}")
        for part in got[1::2]:
            assert (part[rows] == 0).all()
        for part in got[2::2]:
            assert (part[columns] == 0).all()


@pytest.mark.parametrize("function", OF_FEATURES)
def test_lengths_are_slices_of_the_features(function: Callable[..., Tensor], backend: str) -> None:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(4, 6, 3, generator=generator, dtype=torch.float64)
    y = torch.randn(4, 7, 3, generator=generator, dtype=torch.float64)
    n, m = torch.tensor([6, 3, 1, 2]), torch.tensor([1, 7, 4, 2])
    value, by_x, by_y = value_and_gradient(
        function, x, y, x_lengths=n, y_lengths=m, backend=backend
    )
    for k in range(4):
        one = value_and_gradient(function, x[k, : n[k]], y[k, : m[k]], backend=backend)
        assert_close(value[k], one[0], 1e-12, "value")
        assert_close(by_x[k, : n[k]], one[1], 1e-11, "gradient by x")
        assert_close(by_y[k, : m[k]], one[2], 1e-11, "gradient by y")


@pytest.mark.parametrize("kind", [torch.int64, torch.int32, torch.uint8, list])
def test_lengths_of_any_integer_kind(kind: object, backend: str) -> None:
    cost = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(1))
    sizes = [4, 1, 3]
    lengths = sizes if kind is list else torch.tensor(sizes, dtype=kind)
    value = soft_dtw_from_cost(cost, x_lengths=lengths, backend=backend)
    for k, n in enumerate(sizes):
        assert torch.equal(value[k], soft_dtw_from_cost(cost[k, :n], backend=backend))


@pytest.mark.parametrize("lengths", [np.array([3, 1, 4])[::-1], np.array([4, 1, 3], ">i8")])
def test_arrays_that_torch_refuses(lengths: np.ndarray) -> None:
    """As sorting in descending order and files make them."""
    x = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(1))
    assert torch.equal(
        soft_dtw(x, x + 1, x_lengths=lengths), soft_dtw(x, x + 1, x_lengths=[4, 1, 3])
    )
    weights = lengths.astype(lengths.dtype.kind + "8")[::-1]
    for settings in ({"lengths": lengths}, {"weights": lengths}, {"weights": weights}):
        assert soft_dtw_barycenter(x, **settings, max_iter=1).isfinite().all()


@given(problem=problems(largest=6), seed=seeds())
def test_the_expected_alignment_of_a_padded_pair_is_that_of_its_slice(
    problem: Problem, seed: int, backend: str
) -> None:
    arguments = dict(problem.arguments, backend=backend)
    expected = soft_dtw_alignment_from_cost(problem.cost, **arguments).expected
    for index, _ in problem.items():
        n, m = problem.sizes(index)
        one = soft_dtw_alignment_from_cost(
            problem.cost[index][:n, :m],
            gamma=problem.gamma,
            bandwidth=problem.bandwidth,
            backend=backend,
        )
        assert torch.equal(expected[index][:n, :m], one.expected)
        assert expected[index].count_nonzero() == one.expected.count_nonzero()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_groups_of_like_lengths(dtype: type) -> None:
    """A group is walked as the largest of its pairs: one that takes from two parts of the order
    would hold the longest of one sequence, and of the other.
    """
    random = np.random.default_rng(0)
    n, m = random.integers(1, 65, (2, 512))
    task = Batch(np.empty((512, 1, 64, 64), dtype), np.ones(1), NOTHING, n, m, -1)
    order = task.in_order
    assert sorted(order) == list(range(512))
    groups = order.reshape(task.groups, -1)
    walked = (n[groups].max(1) * m[groups].max(1)).sum() * groups.shape[1]
    assert walked < 1.4 * (n * m).sum()
