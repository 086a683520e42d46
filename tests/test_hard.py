"""gamma = 0: exact sums decide, so values are rounded once, and ties are ties."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction

import numpy as np
import oracles
import pytest
import torch
from helpers import bits, value_and_gradient
from hypothesis import given
from hypothesis import strategies as st
from strategies import Problem, make_cost, problems

from softdtw_kernels import (
    s2dtw_alignment_from_cost,
    s2dtw_from_cost,
    soft_dtw_alignment_from_cost,
    soft_dtw_from_cost,
)

SCALES = st.sampled_from([1.0, 0.1, 1 / 3, 1e-30])  # of integers: sums are rounded, ties remain
DTYPES = [torch.float32, torch.float64]


def _run(cost: torch.Tensor, **arguments: object) -> list[torch.Tensor]:
    return value_and_gradient(soft_dtw_from_cost, cost, gamma=0.0, **arguments)


def _check(problem: Problem) -> None:
    """Value, gradient and path of every item, to the bit."""
    value, visits = _run(problem.cost, **problem.limits)
    lengths = [n if n is None else n.reshape(-1) for n in (problem.x_lengths, problem.y_lengths)]
    paths = soft_dtw_alignment_from_cost(
        problem.cost.reshape(-1, *problem.cost.shape[-2:]),
        gamma=1.0,
        x_lengths=lengths[0],
        y_lengths=lengths[1],
        bandwidth=problem.bandwidth,
    ).path()
    for place, (index, cost) in enumerate(problem.items()):
        truth = oracles.recursion(cost, 0.0)
        assert value[index] == torch.tensor(truth.value, dtype=torch.float64).to(value.dtype)
        assert np.array_equal(visits[index], problem.padded(index, truth.visits))
        cells = np.argwhere(truth.visits) if math.isfinite(truth.value) else np.empty((0, 2))
        assert np.array_equal(paths[place], cells)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("low", [1e-7, -1e-7, 0.0])
def test_what_is_halfway_between_two_floats_is_rounded_by_what_is_below(
    low: float, sign: float
) -> None:
    """Three costs of 1e30 are; paths of one row have all costs."""
    for numbers in ([1e30, 1e30, 1e30, low], [low, 1e30, 1e30, 1e30], [1e30, low, 1e30, low, 1e30]):
        cost = sign * torch.tensor([numbers], dtype=torch.float64)
        _check(Problem(cost, 0.0, None, None, None))


@given(problem=problems(largest=40, masks=True), dtype=st.sampled_from(DTYPES))
def test_every_bit_is_that_of_exact_sums(problem: Problem, dtype: torch.dtype) -> None:
    _check(dataclasses.replace(problem, cost=problem.cost.to(dtype)))


@given(
    problem=problems(largest=40, kinds=("integers", "constant"), masks=True),
    scale=SCALES,
    dtype=st.sampled_from(DTYPES),
)
def test_ties_are_ties_of_exact_sums(problem: Problem, scale: float, dtype: torch.dtype) -> None:
    _check(dataclasses.replace(problem, cost=(problem.cost * scale).to(dtype)))


@given(problem=problems(largest=5, kinds=("normal", "integers"), lengths=False, bands=False))
def test_no_path_is_cheaper(problem: Problem) -> None:
    """Brute force over all paths, in rational numbers."""
    value, _ = _run(problem.cost)
    for index, cost in problem.items():
        sums = [
            sum((Fraction(float(cost[cell])) for cell in path), Fraction(0))
            for path in oracles.alignments(*cost.shape)
            if all(math.isfinite(cost[cell]) for cell in path)
        ]
        assert value[index].item() == (float(min(sums)) if sums else math.inf)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bandwidth", [None, 5])
@pytest.mark.parametrize("shape", [(130, 97), (97, 200), (257, 31), (3, 300), (300, 3)], ids=str)
def test_more_rows_and_columns_than_lanes(
    shape: tuple[int, int], bandwidth: int | None, dtype: torch.dtype
) -> None:
    for kind in ("walk", "integers"):
        cost = torch.from_numpy(make_cost(kind, shape, 3)).to(dtype)
        for layout in (cost, cost.mT.contiguous().mT, torch.stack((cost, cost), -1)[..., 0]):
            _check(Problem(layout, 0.0, None, None, bandwidth))


@pytest.mark.parametrize("scale", [1e-9, 1.0])
@pytest.mark.parametrize(
    "place", [(0, 0), (35,), (slice(None), 30)], ids=["first", "row", "column"]
)
def test_sums_that_two_floats_cannot_hold(place: tuple[object, ...], scale: float) -> None:
    """Beyond a wall that every path crosses, the small costs decide as before."""
    cost = make_cost("normal", (70, 60), 5) * scale
    cost[place] += 1e30
    _check(Problem(torch.from_numpy(cost), 0.0, None, None, None))


def _many(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Every seventh pair is of one kind."""
    cost = make_cost("normal", (math.prod(shape[:2]), *shape[2:]), 1)
    random = np.random.default_rng(1)
    cost[::7] = make_cost("integers", shape[2:], 1)
    cost[1::7, 2, :3] = np.inf
    cost[2::7] *= np.where(random.random(shape[2:]) < 0.3, 1e30, 1e-3)
    cost[3::7, 1, 1] = np.nan
    cost[4::7, 1] = np.inf
    cost[5::7, 0, 1] = -np.inf
    return torch.from_numpy(cost).reshape(shape).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 70, 9, 11), (70, 1, 9, 11), (5, 14, 9, 11), (1, 40, 33, 8)])
@pytest.mark.parametrize("lengths", [False, True])
def test_a_pair_has_its_bits_wherever_it_stands(
    shape: tuple[int, ...], lengths: bool, dtype: torch.dtype
) -> None:
    """In the lanes of a batch, whichever axis, among soft pairs, and alone in strips."""
    cost = _many(shape, dtype)
    lead, (rows, columns) = shape[:2], shape[2:]
    arguments = {}
    if lengths:
        generator = torch.Generator().manual_seed(0)
        arguments["x_lengths"] = torch.randint(3, rows + 1, lead, generator=generator)
        arguments["y_lengths"] = torch.randint(3, columns + 1, lead, generator=generator)
    gamma = torch.zeros(lead, dtype=torch.float64)
    together = value_and_gradient(soft_dtw_from_cost, cost, gamma=gamma, **arguments)
    gamma.view(-1)[::2] = 1.0
    mixed = value_and_gradient(soft_dtw_from_cost, cost, gamma=gamma, **arguments)
    for index in np.ndindex(*lead):
        own = {name: of_all[index] for name, of_all in arguments.items()}
        alone = _run(cost[index], **own)
        for got, truth in zip(together, alone, strict=True):
            assert bits(got[index].contiguous()) == bits(truth)
        if gamma[index] == 0:
            for got, truth in zip(mixed, alone, strict=True):
                assert bits(got[index].contiguous()) == bits(truth)


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_path_nan_and_minus_infinity(dtype: torch.dtype) -> None:
    for rows, pairs in ((6, 1), (6, 40), (50, 1)):
        cost = torch.rand(pairs, rows, 7, dtype=dtype)
        closed, broken, deep, both = (cost.clone() for _ in range(4))
        closed[:, 2] = math.inf
        broken[:, 2, 3] = math.nan
        deep[:, 0, 0] = -math.inf
        both[:, 0, 0], both[:, 2] = -math.inf, math.inf
        for given_, wanted, slope in (
            (closed, math.inf, 0.0),
            (broken, math.nan, math.nan),
            (deep, -math.inf, math.nan),
            (both, math.inf, 0.0),
        ):
            value, gradient = _run(given_)
            same = torch.full_like(value, wanted), torch.full_like(gradient, slope)
            torch.testing.assert_close((value, gradient), same, equal_nan=True, rtol=0, atol=0)
            paths = soft_dtw_alignment_from_cost(given_, gamma=1.0).path()
            assert all(len(path) == 0 for path in paths) or wanted == -math.inf


@pytest.mark.parametrize("dtype", DTYPES)
def test_subnormal_costs_count(dtype: torch.dtype) -> None:
    tiny = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    cost = torch.from_numpy(make_cost("integers", (40, 33), 2)).to(dtype)
    value, visits = _run(cost)
    small, same = _run(cost * tiny)
    assert small == value * tiny != 0 and torch.equal(same, visits)


def test_costs_whose_sum_overflows_forbid_a_path() -> None:
    value, gradient = _run(torch.full((4, 5), 1e308, dtype=torch.float64))
    assert value == math.inf and not gradient.any()


@given(problem=problems(largest=20, bands=False), dummy=st.sampled_from([-0.3, 0.0, 0.1, 2.0]))
def test_weak_lattices(problem: Problem, dummy: float) -> None:
    arguments = {k: v for k, v in problem.limits.items() if k != "bandwidth"}
    leaf, theta = problem.cost.clone().requires_grad_(), torch.tensor(dummy, dtype=torch.float64)
    theta.requires_grad_()
    value = s2dtw_from_cost(leaf, gamma=0.0, dummy_cost=theta, smoothing=False, **arguments)
    visits, by_dummy = torch.autograd.grad(value.sum(), (leaf, theta))
    flat = problem.cost.reshape(-1, *problem.cost.shape[-2:])
    lengths = {k: None if v is None else v.reshape(-1) for k, v in arguments.items()}
    paths = s2dtw_alignment_from_cost(
        flat, gamma=1.0, dummy_cost=dummy, smoothing=False, **lengths
    ).path()
    dummies = 0.0
    for place, (index, cost) in enumerate(problem.items()):
        truth = oracles.recursion(oracles.weak_lattice(cost, dummy), 0.0)
        assert value[index].item() == truth.value
        pairs = truth.visits[1::2, 1::2]
        assert np.array_equal(visits[index], problem.padded(index, pairs))
        assert np.array_equal(paths[place], np.argwhere(pairs))
        dummies += truth.visits.sum() - pairs.sum()
    assert by_dummy == dummies


def test_many_small_weak_lattices_have_the_bits_of_each_alone() -> None:
    cost = torch.from_numpy(make_cost("integers", (70, 7, 5), 4))
    lengths = torch.randint(1, 8, (70,), generator=torch.Generator().manual_seed(1))
    arguments = {"gamma": 0.0, "dummy_cost": 0.1, "smoothing": False}
    together = value_and_gradient(s2dtw_from_cost, cost, x_lengths=lengths, **arguments)
    for k in range(70):
        alone = value_and_gradient(s2dtw_from_cost, cost[k], x_lengths=lengths[k], **arguments)
        assert bits(together[0][k]) == bits(alone[0]) and bits(together[1][k]) == bits(alone[1])


@given(
    numbers=st.lists(st.tuples(st.integers(-3, 3), st.sampled_from([0, 30, 60])), min_size=3),
    pairs=st.sampled_from([1, 40]),
)
def test_open_ends_are_chosen_by_exact_sums(numbers: list[tuple[int, int]], pairs: int) -> None:
    """Of a single column, whose sums are far larger than what they differ by."""
    skip, *costs = (Fraction(k * 2**power) for k, power in numbers[:20])
    rows = len(costs)
    totals = [sum(costs[: i + 1]) + skip * (rows - 1 - i) for i in range(rows)]
    end = totals.index(min(totals))
    column = torch.tensor([[float(c)] for c in costs], dtype=torch.float64)
    value, visits = _run(column.repeat(pairs, 1, 1), open_end="x", skip_cost=float(skip))
    assert (value == float(totals[end])).all()
    assert torch.equal(visits.sum(2), (torch.arange(rows) <= end).double().expand(pairs, rows))
