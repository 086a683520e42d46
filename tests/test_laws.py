"""Invariances, bounds and identities of soft-DTW."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import oracles
import pytest
import torch
from helpers import assert_close, assert_value, bits, derivative, value_and_gradient
from hypothesis import assume, example, given
from hypothesis import strategies as st
from strategies import Problem, features, gammas, problems, seeds

from softdtw_kernels import cost_matrix, soft_dtw, soft_dtw_divergence, soft_dtw_from_cost

MILD = ("normal", "walk", "near", "integers", "constant", "negative")


def _value(problem: Problem, backend: str, **changes: object) -> torch.Tensor:
    return soft_dtw_from_cost(problem.cost, **{**problem.arguments, **changes}, backend=backend)


def _value_and_visits(problem: Problem, backend: str) -> tuple[torch.Tensor, torch.Tensor]:
    value, visits = value_and_gradient(
        soft_dtw_from_cost, problem.cost, backend=backend, **problem.arguments
    )
    return value, visits


def _scale(problem: Problem, value: torch.Tensor) -> float:
    """Size of the terms that a value of this problem sums; infinities left out."""
    finite = [
        t[t.isfinite()].abs().max().item() for t in (problem.cost, value) if t.isfinite().any()
    ]
    return max(problem.gamma, *finite, 0.0)


def _same(problem: Problem, left: torch.Tensor, right: torch.Tensor, name: str) -> None:
    assert_close(left, right, 1e-12 * _scale(problem, left), name)


@given(problem=problems())
def test_transposition_exchanges_the_sequences(problem: Problem, backend: str) -> None:
    other = dataclasses.replace(
        problem, cost=problem.cost.mT, x_lengths=problem.y_lengths, y_lengths=problem.x_lengths
    )
    value, visits = _value_and_visits(problem, backend)
    other_value, other_visits = _value_and_visits(other, backend)
    _same(problem, value, other_value, "value")
    assert_close(visits, other_visits.mT, 1e-9, "expected alignment")


@given(problem=problems(lengths=False))
def test_time_reversal_changes_nothing(problem: Problem, backend: str) -> None:
    other = dataclasses.replace(problem, cost=problem.cost.flip(-1, -2))
    value, visits = _value_and_visits(problem, backend)
    other_value, other_visits = _value_and_visits(other, backend)
    _same(problem, value, other_value, "value")
    assert_close(visits, other_visits.flip(-1, -2), 1e-9, "expected alignment")


@given(problem=problems(kinds=MILD), factor=st.sampled_from([1e-6, 0.25, 3.0, 1e6]))
def test_cost_and_gamma_scale_together(problem: Problem, factor: float, backend: str) -> None:
    other = dataclasses.replace(problem, cost=problem.cost * factor, gamma=problem.gamma * factor)
    value, visits = _value_and_visits(problem, backend)
    other_value, other_visits = _value_and_visits(other, backend)
    _same(problem, value, other_value / factor, "value")
    assert_close(visits, other_visits, 1e-9, "expected alignment")


@given(problem=problems(kinds=MILD, lengths=False), offset=st.sampled_from([1e5, -1e5, 1e12, 1e30]))
def test_an_offset_of_both_ends_leaves_the_alignment(
    problem: Problem, offset: float, backend: str
) -> None:
    """Every path visits the first and the last cell exactly once, so their cost chooses nothing.

    The reference cumulates in float64 (see test_exact) and is given the offset of 1e5 only.
    """
    assume(backend != "reference" or abs(offset) <= 1e5)
    cost = problem.cost.clone()
    cost[..., 0, 0] += offset
    if cost[..., 0, 0].numel() and cost.shape[-2:] != (1, 1):
        cost[..., -1, -1] += offset
    _, visits = _value_and_visits(problem, backend)
    _, other = _value_and_visits(dataclasses.replace(problem, cost=cost), backend)
    assert_close(visits, other, 1e-6, "expected alignment")


@given(problem=problems(kinds=MILD, forbidden=False))
def test_a_constant_offset_leaves_the_choice_among_shortest_paths(
    problem: Problem, backend: str
) -> None:
    """A large constant leaves the alignments of max(n, m) cells; a larger one the same.

    Costs are rounded to multiples of 2^-20, so that adding 1e5 to them is exact.
    """
    cost = (problem.cost.clamp(-1e3, 1e3) * 2**20).round() / 2**20
    gamma = max(problem.gamma, 0.1)
    by_offset = []
    for offset in (1e5, 3e5):
        shifted = dataclasses.replace(problem, cost=cost + offset, gamma=gamma)
        value, visits = _value_and_visits(shifted, backend)
        shortest = torch.tensor(
            [float(max(problem.sizes(k))) for k in np.ndindex(*cost.shape[:-2])],
            dtype=torch.float64,
        ).reshape(value.shape)
        assert_close(visits.sum((-1, -2)), shortest, 1e-9, "cells of a shortest path")
        by_offset.append((value - offset * shortest, visits))
    assert_close(by_offset[0][1], by_offset[1][1], 1e-6, "expected alignment")
    assert_close(by_offset[0][0], by_offset[1][0], 1e-12 * 3e5 * 20, "value less the offset")


@given(problem=problems())
def test_the_expected_alignment_is_an_average_of_alignments(problem: Problem, backend: str) -> None:
    value, visits = _value_and_visits(problem, backend)
    for index, cost in problem.items():
        n, m = cost.shape
        block = visits[index][:n, :m]
        if math.isinf(value[index]):
            assert not block.any()
            continue
        assert block.min() >= 0
        assert block.max() <= 1 + 1e-12
        assert block.sum(-1).min() >= 1 - 1e-9, "a row is visited less than once"
        assert block.sum(-2).min() >= 1 - 1e-9, "a column is visited less than once"
        assert block[0, 0] == pytest.approx(1, abs=1e-9)
        assert block[-1, -1] == pytest.approx(1, abs=1e-9)
        assert max(n, m) - 1e-9 <= block.sum() <= n + m - 1 + 1e-9


@given(problem=problems())
def test_anti_diagonals_carry_the_mass_of_one_path(problem: Problem, backend: str) -> None:
    """An anti-diagonal is visited at most once, two successive ones at least once."""
    value, visits = _value_and_visits(problem, backend)
    for index, cost in problem.items():
        n, m = cost.shape
        if math.isinf(value[index]):
            continue
        flipped = visits[index][:n, :m].flip(1)
        mass = torch.stack([flipped.diagonal(m - 1 - k).sum() for k in range(n + m - 1)])
        assert mass.max() <= 1 + 1e-9
        assert n + m < 3 or (mass[1:] + mass[:-1]).min() >= 1 - 1e-9


@given(problem=problems(), larger=st.floats(1.0, 50.0))
def test_the_value_falls_with_gamma_and_stays_near_the_hard_one(
    problem: Problem, larger: float, backend: str
) -> None:
    """hard - gamma log(number of alignments) <= soft <= hard, and soft falls as gamma grows."""
    value = _value(problem, backend)
    softer = _value(problem, backend, gamma=problem.gamma * larger)
    hard = _value(problem, backend, gamma=0.0)
    slack = 1e-12 * _scale(problem, value) * larger
    n, m = problem.cost.shape[-2:]
    count = sum(math.comb(n - 1, k) * math.comb(m - 1, k) * 2**k for k in range(min(n, m)))
    assert (value >= softer - slack).all()
    assert (value <= hard + slack).all()
    assert (value >= hard - problem.gamma * math.log(count) - slack).all()


@given(problem=problems(kinds=("normal", "walk", "near", "negative", "large")))
def test_gamma_zero_is_the_cheapest_path(problem: Problem, backend: str) -> None:
    hard = dataclasses.replace(problem, gamma=0.0)
    value, visits = _value_and_visits(hard, backend)
    for index, cost in problem.items():
        truth = oracles.recursion(cost, 0.0)
        scale = oracles.value_scale(truth, cost, 0.0)
        assert_value(value[index].item(), truth.value, scale, 1e-12)
        assert_close(visits[index], problem.padded(index, truth.visits), 0.0, "path")


@given(problem=problems(kinds=("integers", "constant")))
def test_gamma_zero_takes_one_path_where_many_are_cheapest(problem: Problem, backend: str) -> None:
    """The subgradient is the indicator of one path; ties: diagonal, up, left."""
    value, visits = _value_and_visits(dataclasses.replace(problem, gamma=0.0), backend)
    for index, cost in problem.items():
        if math.isfinite(value[index]):
            assert_close(
                visits[index],
                problem.padded(index, oracles.recursion(cost, 0.0).visits),
                0.0,
                "path",
            )


@given(problem=problems(kinds=("normal", "walk")))
def test_small_gamma_tends_to_the_hard_alignment(problem: Problem, backend: str) -> None:
    value, visits = _value_and_visits(dataclasses.replace(problem, gamma=1e-9), backend)
    hard, path = _value_and_visits(dataclasses.replace(problem, gamma=0.0), backend)
    _same(problem, value, hard, "value")
    assert_close(visits, path, 1e-6, "expected alignment")


@given(problem=problems(forbidden=False))
def test_the_value_is_homogeneous(problem: Problem, backend: str) -> None:
    """Euler: V = <E, cost> + gamma dV/dgamma, and -dV/dgamma is the entropy of the alignment."""
    gamma = torch.tensor(problem.gamma, dtype=torch.float64, requires_grad=True)
    cost = problem.cost.clone().requires_grad_()
    value = soft_dtw_from_cost(cost, gamma=gamma, **problem.limits, backend=backend)
    visits, by_gamma = derivative(value.sum(), cost, gamma)
    sums = (visits * problem.cost).sum() + problem.gamma * by_gamma
    assert_close(
        sums, value.detach().sum(), 1e-11 * problem.cost.numel() * _scale(problem, value), "Euler"
    )
    truth = sum(oracles.recursion(c, problem.gamma).by_gamma for _, c in problem.items())
    assert_close(by_gamma, truth, 1e-8 * max(1, len(problem.items())), "derivative by gamma")
    assert by_gamma <= 1e-9


@given(problem=problems(forbidden=False), seed=seeds())
def test_the_value_is_concave_and_increasing_in_the_cost(
    problem: Problem, seed: int, backend: str
) -> None:
    generator = torch.Generator().manual_seed(seed)
    step = torch.randn(problem.cost.shape, generator=generator, dtype=torch.float64)
    values = [
        _value(dataclasses.replace(problem, cost=problem.cost + t * step), backend)
        for t in (-1, 0, 1)
    ]
    slack = 1e-12 * max(_scale(problem, v) for v in values)
    assert (values[1] >= (values[0] + values[2]) / 2 - slack).all()
    above = _value(dataclasses.replace(problem, cost=problem.cost + step.abs()), backend)
    assert (above >= values[1] - slack).all()


@given(problem=problems(bands=False))
def test_a_wider_band_lowers_the_value_down_to_no_band(problem: Problem, backend: str) -> None:
    widths: list[int | None] = [*range(max(problem.cost.shape[-2:]) + 1), None]
    values = [_value(problem, backend, bandwidth=w) for w in widths]
    slack = 1e-12 * _scale(problem, values[-1])
    for narrow, wide in zip(values, values[1:], strict=False):
        assert (narrow >= wide - slack).all()
    assert_close(values[-2], values[-1], slack, "a band that leaves nothing out")


@given(sequences=features(), gamma=gammas(1e-2, 10.0))
def test_divergence_is_zero_and_stationary_at_equal_sequences(
    sequences: tuple[torch.Tensor, torch.Tensor], gamma: float, backend: str
) -> None:
    x = sequences[0]
    value, by_x, by_y = value_and_gradient(soft_dtw_divergence, x, x, gamma=gamma, backend=backend)
    scale = max(1.0, soft_dtw(x, x, gamma=gamma, backend=backend).abs().max().item())
    assert_close(value, torch.zeros_like(value), 1e-12 * scale, "divergence of x and x")
    assert_close(by_x, torch.zeros_like(x), 1e-9, "gradient by x")
    assert_close(by_y, torch.zeros_like(x), 1e-9, "gradient by y")


@given(sequences=features(), gamma=gammas(1e-2, 10.0))
def test_divergence_is_symmetric_and_made_of_three_terms(
    sequences: tuple[torch.Tensor, torch.Tensor], gamma: float, backend: str
) -> None:
    x, y = sequences
    value = soft_dtw_divergence(x, y, gamma=gamma, backend=backend)
    terms = [soft_dtw(a, b, gamma=gamma, backend=backend) for a, b in ((x, y), (x, x), (y, y))]
    scale = max(1.0, *(t.abs().max().item() for t in terms))
    assert_close(value, terms[0] - terms[1] / 2 - terms[2] / 2, 1e-12 * scale, "three terms")
    assert_close(
        value, soft_dtw_divergence(y, x, gamma=gamma, backend=backend), 1e-12 * scale, "symmetry"
    )


def _positive_definite_cost(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Cost whose kernel is positive definite at gamma = 1 (Cuturi 2007; Blondel et al. 2021)."""
    half = (x.unsqueeze(-2) - y.unsqueeze(-3)).square().sum(-1) / 2
    return half + torch.log(2 - torch.exp(-half))


@given(sequences=features())
def test_divergence_is_not_negative(
    sequences: tuple[torch.Tensor, torch.Tensor], backend: str
) -> None:
    """exp(-V) is then a positive definite kernel; Cauchy-Schwarz gives the sign."""
    x, y = sequences
    value = soft_dtw_divergence(x, y, gamma=1.0, cost=_positive_definite_cost, backend=backend)
    assert (value >= -1e-10).all()


@given(sequences=features(), gamma=gammas(1e-2, 10.0), copies=st.integers(2, 4))
def test_hard_dtw_ignores_repeated_frames(
    sequences: tuple[torch.Tensor, torch.Tensor], gamma: float, copies: int, backend: str
) -> None:
    """DTW is invariant to holding frames: repeating each frame of a sequence costs nothing."""
    x = sequences[0]
    held = x.repeat_interleave(copies, dim=-2)
    value = soft_dtw(x, held, gamma=0.0, backend=backend)
    assert_close(value, torch.zeros_like(value), 0.0, "DTW of a sequence and itself held")
    assert (soft_dtw(x, held, gamma=gamma, backend=backend) <= 0).all()


@given(problem=problems(kinds=MILD, forbidden=False, lengths=False, bands=False))
def test_one_row_or_column_has_one_alignment(problem: Problem, backend: str) -> None:
    row = problem.cost[..., :1, :]
    assume(problem.cost.numel() > 0)
    for cost in (row, row.mT):
        value, visits = value_and_gradient(
            soft_dtw_from_cost, cost, gamma=problem.gamma, backend=backend
        )
        scale = max(1.0, row.abs().sum((-1, -2)).max().item())
        assert_close(value, cost.sum((-1, -2)), 1e-12 * scale, "sum of the costs")
        assert_close(visits, torch.ones_like(cost), 0.0, "every cell visited")


@given(
    shape=st.tuples(*[st.integers(1, 5)] * 4),
    order=st.permutations(range(4)),
    gap=st.integers(1, 3),
    odd=st.integers(0, 9),
    gamma=st.sampled_from([1.0, 0.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@example(shape=(3, 1, 4, 1), order=[0, 1, 3, 2], gap=1, odd=7, gamma=1.0, dtype=torch.float64)
def test_strides_change_no_bit(
    shape: tuple[int, ...],
    order: list[int],
    gap: int,
    odd: int,
    gamma: float,
    dtype: torch.dtype,
    backend: str,
) -> None:
    """Dimensions in any order, with gaps; those of one element have a stride without a meaning."""
    cost = torch.randn(shape, generator=torch.Generator().manual_seed(gap), dtype=dtype)
    memory = torch.empty([shape[k] for k in order] + [gap], dtype=dtype)[..., 0]
    strided = memory.permute([order.index(k) for k in range(4)]).copy_(cost)
    strides = [odd if n == 1 else s for n, s in zip(shape, strided.stride(), strict=True)]
    strided = strided.as_strided(shape, strides)
    assert torch.equal(strided, cost)
    results = []
    for leaf in (cost.requires_grad_(), strided.requires_grad_()):
        value = soft_dtw_from_cost(leaf, gamma=gamma, backend=backend)
        results.append([bits(t) for t in (value, *torch.autograd.grad(value.sum(), leaf))])
    assert results[0] == results[1]


@given(sequences=features(), gamma=gammas(1e-2, 10.0))
def test_features_and_their_cost_give_the_same_value(
    sequences: tuple[torch.Tensor, torch.Tensor], gamma: float, backend: str
) -> None:
    x, y = sequences
    for name in ("sqeuclidean", "euclidean", "cosine", "shifted_cosine", "negative_dot"):
        cost = cost_matrix(x, y, cost=name)
        left = soft_dtw(x, y, gamma=gamma, cost=name, backend=backend)
        right = soft_dtw_from_cost(cost, gamma=gamma, backend=backend)
        scale = max(gamma, cost.abs().max().item(), right.abs().max().item())
        assert_close(left, right, 1e-12 * scale, name)
