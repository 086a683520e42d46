"""Patterns of steps, begins and ends: the tiers of the CPU against each other and the reference,
and what runs on CUDA.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import framed_costs
import numpy as np
import pytest
import torch
from helpers import assert_close, bits, examples
from hypothesis import example, given
from hypothesis import strategies as st
from pattern_calls import PRICES, cost_of, number, options_of, value_of
from pattern_oracle import PATTERNS
from strategies import gammas, make_cost, seeds
from torch import Tensor

from softdtw_kernels import _backends as backends
from softdtw_kernels import _reference_pattern as reference
from softdtw_kernels import soft_dtw_alignment_from_cost, soft_dtw_from_cost
from softdtw_kernels._cpu import pattern as on_cpu
from softdtw_kernels._operators import compositions
from softdtw_kernels._problem import PatternProblem

# Kernels on vectors -------------------------------------------------------------------------------

ON_VECTORS: tuple[dict[str, Any], ...] = (
    {},
    {"repeat": "y"},
    {"repeat": "x"},
    {"repeat": ""},
    {"open_begin": "y", "open_end": "y"},
    {"open_begin": "x", "open_end": "x"},
    {"open_begin": "x"},
    {"open_end": "y"},
    {"repeat": "y", "open_end": "xy"},
    {"open_begin": "xy", "open_end": "xy"},
    {"repeat": "x", "open_begin": "x", "open_end": "y"},
)
# gamma, warp cost, skip cost.
SETTINGS = ((1.0, 0.3, 0.1), (0.01, 0.0, 0.5), (0.05, 256.0, 0.0), (1e-3, 2.0, 1.0))


@pytest.mark.slow  # most of it compiles
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n, m, repeat", [(40, 30, "y"), (30, 40, "x"), (40, 40, "")])
def test_the_largest_warp_cost_allows_the_fewest_repeats(
    n: int, m: int, repeat: str, dtype: torch.dtype
) -> None:
    cost = torch.from_numpy(make_cost("walk", (3, n, m), 1)).to(dtype)
    for gamma in (0.0, 1e-3, 1.0):
        by_cost = []
        for options in ({"warp_cost": 1e7}, {"warp_cost": 1e20}, {"repeat": repeat}):
            leaf = cost.clone().requires_grad_()
            value = soft_dtw_from_cost(leaf, gamma=gamma, **options)
            by_cost.append(torch.autograd.grad(value.sum(), leaf)[0])
        for got in by_cost[:2]:
            assert_close(got, by_cost[2], 1e-9 if dtype == torch.float64 else 5e-5, "visits")


@pytest.mark.parametrize("options", ON_VECTORS)
@pytest.mark.parametrize("shape", [(5, 20, 15), (1, 70, 66)])
def test_long_pairs_are_those_of_the_reference(
    options: dict[str, Any], shape: tuple[int, ...]
) -> None:
    random = np.random.default_rng(0)
    cost = torch.from_numpy(make_cost("walk", shape, 3)).float().double()
    full = [torch.full(shape[:1], size) for size in shape[1:]]
    short = [torch.from_numpy(random.integers(k // 2, k + 1, shape[:1])) for k in shape[1:]]
    cases = [(numbers, limits) for numbers in SETTINGS for limits in (None, short)]

    def run(leaves: tuple[Tensor, ...], **more: Any) -> tuple[Tensor, ...]:
        value = value_of({**options, **more}, *leaves)
        finite = torch.where(value.isfinite(), value, 0).double().sum()
        return value.detach().double(), *torch.autograd.grad(finite, leaves)

    # The reference takes all cases at once: it is slow, and as slow for one.
    lengths = (torch.stack([(limits or full)[k] for _, limits in cases]) for k in (0, 1))
    columns = torch.tensor([numbers for numbers, _ in cases], dtype=torch.float64).T[..., None]
    leaves = (t.clone().requires_grad_() for t in (cost.expand(len(cases), *shape), *columns))
    names = "x_lengths", "y_lengths"
    truths = run(tuple(leaves), backend="reference", **dict(zip(names, lengths, strict=True)))
    for (numbers, limits), (value_truth, by_cost_truth, *of_settings) in zip(
        cases, zip(*truths, strict=True), strict=True
    ):
        for dtype, exact in ((torch.float64, True), (torch.float32, False)):
            leaves = cost.to(dtype).requires_grad_(), *map(number, numbers)
            more = {} if limits is None else dict(zip(names, limits, strict=True))
            value, by_cost, *by_settings = run(leaves, backend="numba", **more)
            close = {"rtol": 1e-12 if exact else 1e-6, "atol": 0.0}
            torch.testing.assert_close(value, value_truth, **close)
            assert_close(by_cost.double(), by_cost_truth, 1e-9 if exact else 5e-5, "by cost")
            for got, of_it in zip(by_settings, of_settings, strict=True):
                scale = max(1.0, abs(of_it.item()))
                assert abs(got - of_it) <= (1e-9 if exact else 1e-4) * scale


@pytest.mark.parametrize("options", ON_VECTORS)
def test_bits_depend_neither_on_threads_nor_on_the_place(options: dict[str, Any]) -> None:
    cost = torch.rand(24, 40, 30)
    before = torch.get_num_threads()

    def run(cost: Tensor) -> tuple[Tensor, ...]:
        leaf = cost.clone().requires_grad_()
        value = value_of(options, leaf, 0.1, 0.3, 0.2)
        (by_cost,) = torch.autograd.grad(value, leaf, torch.ones_like(value))
        return value.detach(), by_cost

    try:
        torch.set_num_threads(2)
        together = run(cost)
    finally:
        torch.set_num_threads(before)
    for k in (0, 17):
        for one, all_of_them in zip(run(cost[k : k + 1]), together, strict=True):
            assert bits(one[0]) == bits(all_of_them[k])


@contextmanager
def _scalars() -> Iterator[None]:
    """All pairs go to the scalar tier, but for those of a cost of warping alone."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("solve_open", "solve_hard", "solve_fewest"):
            patch.setattr(on_cpu, name, lambda *given: None)
        yield


def _assert_tiers_agree(cost: Tensor, settings: tuple[float, ...], **options: Any) -> None:
    """The kernels on vectors and the scalar tier in float64, each within what it promises."""
    runs = []
    for leaf, where in ((cost, nullcontext()), (cost.double(), _scalars())):
        leaves = leaf.clone().requires_grad_(), *map(number, settings)
        with where:
            value = value_of(options, *leaves)
            finite = torch.where(value.isfinite(), value, 0).double().sum()
            runs.append((value.detach().double(), *torch.autograd.grad(finite, leaves)))
    got, truth = runs
    exact = cost.dtype == torch.float64
    close = {"rtol": 1e-12 if exact else 1e-6, "atol": 1e-12 if exact else 1e-7}
    torch.testing.assert_close(got[0], truth[0], **close)
    assert_close(got[1].double(), truth[1], 1e-9 if exact else 5e-5, "by cost")
    frames = cost.shape[:-2].numel() * sum(cost.shape[-2:])
    for a, b in zip(got[2:], truth[2:], strict=True):
        assert abs(a - b) <= (1e-9 if exact else 5e-5) * max(1.0, abs(b), 1e-2 * frames)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("skip", [0.5, -0.5])
def test_prices_of_a_billion_gammas(skip: float, dtype: torch.dtype) -> None:
    """Of many ends that cost the same, each has its share: no digit of the prices may be lost."""
    cost = torch.from_numpy(cost_of("integers", 40, 30, 3)).to(dtype).expand(2, -1, -1)
    for pattern in PATTERNS:
        if pattern[1:] != ("", ""):
            _assert_tiers_agree(cost, (1e-9, 0.0, skip), **options_of(pattern))


@pytest.mark.slow  # most of it compiles
@examples(80)
@given(
    pattern=st.sampled_from(PATTERNS),
    n=st.integers(1, 70),
    m=st.integers(1, 70),
    count=st.sampled_from([1, 2, 20]),
    seed=seeds(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    kind=st.sampled_from(["normal", "walk", "integers"]),
    forbidden=st.sampled_from([0.0, 0.05]),
    gamma=st.sampled_from([0.0, 0.05, 1.0]),
    warp=st.sampled_from([0.0, 0.25]),
    skip=st.sampled_from([0.0, 0.5, -0.125]),
    ragged=st.booleans(),
)
def test_vectors_and_scalars_agree(
    pattern: tuple[str, str, str],
    n: int,
    m: int,
    count: int,
    seed: int,
    dtype: torch.dtype,
    kind: str,
    forbidden: float,
    gamma: float,
    warp: float,
    skip: float,
    ragged: bool,
) -> None:
    costs = [cost_of(kind, n, m, seed + k, forbidden) for k in range(count)]
    options: dict[str, Any] = options_of(pattern)
    if ragged:
        random = torch.Generator().manual_seed(seed)
        for name, size in (("x_lengths", n), ("y_lengths", m)):
            options[name] = torch.randint(1, size + 1, (count,), generator=random)
    cost = torch.from_numpy(np.stack(costs)).to(dtype)
    _assert_tiers_agree(cost, (gamma, warp, skip), **options)


@pytest.mark.parametrize("ends", [("xy", "xy"), ("x", "y"), ("y", "y")], ids="-".join)
@pytest.mark.parametrize("gamma", [0.0, 0.05])
def test_long_open_pairs(ends: tuple[str, str], gamma: float) -> None:
    """Of which the borders of all strips are more than a tenth of the costs."""
    cost = torch.from_numpy(make_cost("walk", (1, 1900, 1850), 3))
    _assert_tiers_agree(cost, (gamma, 0.0, 0.3), open_begin=ends[0], open_end=ends[1])


def test_settings_of_each_pair() -> None:
    random = torch.Generator().manual_seed(1)
    cost = torch.rand(19, 12, 14, generator=random, dtype=torch.float64)
    gamma, warp, skip = 0.1 + torch.rand(3, 19, generator=random, dtype=torch.float64)
    gamma[::5] = 0.0
    ends = {"open_begin": "xy", "open_end": "y"}
    together = soft_dtw_from_cost(cost, gamma=gamma, warp_cost=warp, skip_cost=skip, **ends)
    for k, value in enumerate(together):
        own = {"gamma": gamma[k], "warp_cost": warp[k], "skip_cost": skip[k]}
        assert bits(soft_dtw_from_cost(cost[k], **own, **ends)) == bits(value)


# Accuracy -----------------------------------------------------------------------------------------


def test_a_large_warp_cost_costs_no_accuracy() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1000, 2, generator=generator).cumsum(0)
    y = torch.randn(1000, 2, generator=generator).cumsum(0)
    costs = torch.cdist(x.double(), y.double()).square().float()

    def run(cost: Tensor) -> tuple[Tensor, Tensor]:
        leaf = cost.clone().requires_grad_()
        value = soft_dtw_from_cost(leaf, gamma=0.05, warp_cost=256.0)
        return value.detach().double(), torch.autograd.grad(value, leaf)[0].double()

    (value, visits), (truth, true_visits) = run(costs), run(costs.double())
    assert abs(value - truth) <= 1e-6 * abs(truth)
    assert (visits - true_visits).abs().max() <= 5e-5


def test_a_cost_of_warping_without_kernels_for_it() -> None:
    """What runs on CUDA: the cost of warping added to the costs. Other patterns are refused, and
    their second derivatives are those of the recursion in plain torch.
    """
    random = torch.Generator().manual_seed(3)
    cost = torch.rand(4, 6, 5, generator=random, dtype=torch.float64)
    items = torch.rand(3, 4, generator=random, dtype=torch.float64)
    n = torch.tensor([6, 3, 5, 1])
    problem = PatternProblem(cost, *items, n, None, None, "xy", "", "")
    weight, tangents = torch.rand(4, generator=random, dtype=torch.float64), (cost, *items)
    engine = backends.load("numba")
    for name, rest in (
        ("pattern_value", ()),
        ("pattern_gradient", (weight, True)),
        ("pattern_hessian_product", (weight, *tangents)),
    ):
        got = getattr(compositions, name)(problem, *rest)
        torch.testing.assert_close(got, getattr(engine, name)(problem, *rest))
        for other in ({"repeat": "x"}, {"open_end": "y"}):
            with pytest.raises(NotImplementedError, match="call the public functions"):
                getattr(compositions, name)(problem._replace(**other), *rest)
    for other in ({"repeat": "x"}, {"open_end": "y"}):
        args = problem._replace(**other), weight, *tangents
        found = reference.hessian_product(*args)
        torch.testing.assert_close(found, engine.pattern_hessian_product(*args))


FRAMED = st.sampled_from([("x", ""), ("y", ""), ("", "x"), ("", "y"), ("x", "x"), ("y", "y")])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ends", [("", "x"), ("", "y"), ("xy", "xy")], ids="-".join)
@pytest.mark.parametrize("pairs", [2, 40])
def test_a_pair_leaves_nothing_to_the_next_one(
    pairs: int, ends: tuple[str, str], dtype: torch.dtype
) -> None:
    """Of exponents far above all: longer pairs with costs down to -1e37, among short ones."""
    random = torch.Generator().manual_seed(0)
    settings: dict[str, Any] = {"open_begin": ends[0], "open_end": ends[1]}
    for power in range(6, 38):
        cost = torch.rand(pairs, 10, 3, generator=random, dtype=torch.float64).to(dtype)
        cost[::4, 2, 0] = -(10.0**power)
        n = [10 if k % 4 == 0 else 1 + k % 3 for k in range(pairs)]
        m = [3 if k % 4 == 0 else 1 + k % 2 for k in range(pairs)]
        together = soft_dtw_from_cost(cost, x_lengths=n, y_lengths=m, **settings)
        for k in range(1, pairs, 7 if pairs > 2 else 1):
            own = cost[k : k + 1, : n[k], : m[k]]
            truth = soft_dtw_from_cost(own, backend="reference", **settings)
            torch.testing.assert_close(together[k : k + 1], truth)


@example(ends=("x", ""), seed=0, gamma=0.01, warp=3.0, skip=5.0)  # prices of 800 gamma
@given(ends=FRAMED, seed=seeds(), gamma=gammas(1e-2), warp=PRICES, skip=PRICES)
def test_framed_costs_are_open_ends(
    ends: tuple[str, str], seed: int, gamma: float, warp: float, skip: float
) -> None:
    """An oracle of its own: values, and derivatives of both orders, against the recursion; with
    lengths, NaN beyond them, forbidden pairs, no path, and NaN in an item.
    """
    random = np.random.default_rng(seed)
    n, m = torch.from_numpy(random.integers(1, 6, (2, 5)))
    cost = cost_of("normal", 5, 4, seed)[None].repeat(5, 0) * random.uniform(0.5, 2, (5, 1, 1))
    forbidden = random.random(cost.shape) < 0.1
    forbidden[2] = False  # else nothing may depend on a price in the pair that is no number
    cost[forbidden] = math.inf
    cost[1] = math.inf
    m = m.clamp(max=4)
    n[2], m[2] = n[2].clamp(min=2), m[2].clamp(min=2)  # of one pair nothing depends on a price
    for item in range(5):
        cost[item, n[item] :], cost[item, :, m[item] :] = math.nan, math.nan
    cost[2, n[2] - 1, m[2] - 1] = math.nan
    settings = (
        torch.from_numpy(cost),
        *(torch.full((5,), value, dtype=torch.float64) for value in (gamma, warp, skip)),
    )
    results = []
    for module in (framed_costs, reference):
        leaves = [t.clone().requires_grad_() for t in settings]
        problem = PatternProblem(*leaves, n, m, None, "xy", *ends)
        value = module.value(problem)
        first = torch.autograd.grad(
            torch.where(value.isfinite(), value, 0).sum(), leaves, create_graph=True
        )
        grads = module.gradient(problem, torch.ones_like(value), True)
        weights = [torch.where(t.isfinite(), t.detach().cos(), 0) for t in first]
        second = torch.autograd.grad(first, leaves, weights)
        results.append((value, *first, *grads, *second))
    for one, two in zip(*results, strict=True):
        assert one[2].isnan().any() and two[2].isnan().any()
        one, two = (torch.cat([t[:2], t[3:]]).detach() for t in (one, two))
        assert_close(one, two, 1e-9 + 1e-10 / gamma**2, str(ends))


@pytest.mark.parametrize("spoiler", [math.nan, -1e30, math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gamma", [0.1, 0.0])
@pytest.mark.parametrize("lengths", [False, True])
@pytest.mark.parametrize("shape", [(40, 6, 7), (4, 70, 40)], ids=str)
def test_pairs_of_the_same_sizes_leave_nothing_to_the_next_ones(
    shape: tuple[int, ...], lengths: bool, gamma: float, dtype: torch.dtype, spoiler: float
) -> None:
    """In the lanes of the same vectors, or one after another."""
    cost = torch.rand(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)
    spoilt = cost.clone()
    spoilt[0, 2, 2] = spoilt[1] = spoiler
    more = {"x_lengths": torch.full(shape[:1], shape[1])} if lengths else {}
    for options in ON_VECTORS:
        for begin in ("", "x", "y"):
            settings: dict[str, Any] = {"open_begin": begin, "gamma": gamma} | options | more
            found = []
            for costs in (cost, spoilt):
                leaf = costs.clone().requires_grad_()
                value = soft_dtw_from_cost(leaf, **settings)
                (grad,) = torch.autograd.grad(value, leaf, torch.ones_like(value))
                found.append((bits(value[2:]), bits(grad[2:])))
            assert found[0] == found[1], settings


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("pairs", [1, 40])
@pytest.mark.parametrize("shape", [(40, 38), (33, 31), (31, 70), (100, 90)], ids=str)
@pytest.mark.parametrize("options", [{"warp_cost": 0.5}, {"repeat": "y"}, {"repeat": "x"}], ids=str)
def test_gamma_0_in_a_band_of_more_rows_than_lanes(
    options: dict[str, Any], shape: tuple[int, int], pairs: int, dtype: torch.dtype
) -> None:
    random = torch.Generator().manual_seed(0)
    cost = torch.randint(0, 3, (pairs, *shape), generator=random).to(dtype)
    cost[0, :, shape[1] // 2] += 1
    for bandwidth in (0, 1, 5, 60):
        found = []
        for backend in ("numba", "reference"):
            leaf = cost.clone().requires_grad_()
            settings = {"gamma": 0.0, "bandwidth": bandwidth, "backend": backend} | options
            value = soft_dtw_from_cost(leaf, **settings)
            found.append((value, torch.autograd.grad(value.sum(), leaf)[0]))
        for one, two in zip(*found, strict=True):
            assert torch.equal(one, two), bandwidth
        alignment = soft_dtw_alignment_from_cost(cost, bandwidth=bandwidth, **options)
        for path, visits in zip(alignment.path(), found[0][1], strict=True):
            assert torch.equal(path, visits.nonzero()), bandwidth
