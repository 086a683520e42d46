"""S2DTW against its definition: smooth, build the lattice, align; and its four special cases."""

from __future__ import annotations

import math

import numpy as np
import oracles
import pytest
import torch
from helpers import assert_close, assert_value, value_and_gradient
from hypothesis import assume, example, given
from hypothesis import strategies as st
from strategies import Problem, gammas, make_cost, masked, problems

from softdtw_kernels import _reference as reference
from softdtw_kernels import (
    s2dtw,
    s2dtw_alignment_from_cost,
    s2dtw_from_cost,
    soft_dtw_from_cost,
)
from softdtw_kernels._operators import kernels
from softdtw_kernels._problem import Smoothing

DUMMIES = st.none() | st.sampled_from([0.5, 0.0, -1.0, 3.0]) | st.floats(-2, 2, width=32)


def _lengths(problem: Problem) -> dict[str, object]:
    return {"x_lengths": problem.x_lengths, "y_lengths": problem.y_lengths}


def _check(
    problem: Problem,
    smoothing: bool,
    dummy: float | None,
    origin_count: float,
    backend: str,
    brute: bool,
) -> None:
    """Value, gradients by cost and dummy, and the visits of the real pairs, item by item."""
    theta = None if dummy is None else torch.tensor(dummy, dtype=torch.float64, requires_grad=True)
    cost = problem.cost.clone().requires_grad_()
    arguments = {
        "gamma": problem.gamma, "smoothing": smoothing, "dummy_cost": theta,
        "origin_count": origin_count, "backend": backend, **_lengths(problem),
    }  # fmt: skip
    value = s2dtw_from_cost(cost, **arguments)
    expected = s2dtw_alignment_from_cost(problem.cost, **arguments).expected
    inputs = (cost,) if theta is None else (cost, theta)
    by_cost, *by_dummy = torch.autograd.grad(value.sum(), inputs)
    total = 0.0
    for index, item in problem.items():
        truth = oracles.s2dtw(item, problem.gamma, smoothing, dummy, origin_count, brute)
        smoothed = oracles.smooth(item, problem.gamma, origin_count) if smoothing else item
        scale = oracles.value_scale(truth, smoothed, problem.gamma)
        scale = max(scale, abs(dummy or 0.0))
        tolerance = oracles.gradient_tolerance(item, problem.gamma)
        assert_value(value[index].item(), truth.value, scale, 1e-12, f"value {index}")
        assert_close(
            expected[index].detach(),
            problem.padded(index, truth.visits),
            tolerance,
            f"visits {index}",
        )
        assert_close(
            by_cost[index], problem.padded(index, truth.by_cost), 3 * tolerance, f"gradient {index}"
        )
        total += truth.by_dummy
    if by_dummy:
        assert_close(by_dummy[0], total, 1e-8 * max(1.0, total), "gradient by the dummy cost")


def _smoothed(cost: list[list[float]], gamma: float, dummy: float | None) -> dict[str, object]:
    """Return one item as the laws below draw it."""
    problem = Problem(torch.tensor(cost, dtype=torch.float64), gamma, None, None, None)
    return {"problem": problem, "smoothing": True, "dummy": dummy, "origin_count": 1}


@example(**_smoothed([[1.2573e-07], [-1.3210e-07]], 0.01, None))
@example(**_smoothed([[2e-06, 1.2], [3e-06, -4e-06]], 0.1, None))
@given(
    problem=problems(largest=3, bands=False),
    smoothing=st.booleans(),
    dummy=DUMMIES,
    origin_count=st.sampled_from([1, 3]),
)
def test_matches_brute_force_over_the_lattice(
    problem: Problem, smoothing: bool, dummy: float | None, origin_count: int, backend: str
) -> None:
    _check(problem, smoothing, dummy, origin_count, backend, brute=True)


@example(**_smoothed([[1e30] * 3, [1e30] * 3, [0.2, 1e30, 0.1]], 0.1, 0.5))
@example(**_smoothed([[1e30] * 3] * 3, 1e-3, None))
@given(
    problem=problems(largest=17, bands=False, masks=True),
    smoothing=st.booleans(),
    dummy=DUMMIES,
    origin_count=st.sampled_from([1, 3]),
)
def test_matches_the_high_precision_lattice(
    problem: Problem, smoothing: bool, dummy: float | None, origin_count: int, backend: str
) -> None:
    assume(backend != "reference" or not masked(problem))
    _check(problem, smoothing, dummy, origin_count, backend, brute=False)


@pytest.mark.parametrize("gamma", [1e-3, 0.1, 10.0])
@pytest.mark.parametrize("smoothing", [False, True])
def test_matches_the_high_precision_lattice_when_long(
    smoothing: bool, gamma: float, backend: str
) -> None:
    cost = torch.from_numpy(make_cost("walk", (128, 127), seed=2))
    _check(Problem(cost, gamma, None, None, None), smoothing, 0.5, 1, backend, brute=False)


@pytest.mark.parametrize("height", [1e9, 1e30])
@pytest.mark.parametrize("smoothing", [False, True])
def test_masks_are_exact(height: float, smoothing: bool, backend: str) -> None:
    """Masked pairs, a masked row and a masked corner; dummies lead around all of them."""
    cost = make_cost("normal", (3, 12, 9), seed=5)
    cost[0][np.random.default_rng(0).random((12, 9)) < 0.3] = height
    cost[1, 6] = height
    cost[2, 0, 0] = height
    for gamma in (1e-3, 0.1):
        _check(
            Problem(torch.from_numpy(cost), gamma, None, None, None),
            smoothing,
            0.5,
            1,
            backend,
            False,
        )


@given(problem=problems(bands=False))
def test_without_smoothing_and_dummies_it_is_soft_dtw(problem: Problem, backend: str) -> None:
    shared = {"gamma": problem.gamma, "backend": backend, **_lengths(problem)}
    left = value_and_gradient(
        s2dtw_from_cost, problem.cost, smoothing=False, dummy_cost=None, **shared
    )
    right = value_and_gradient(soft_dtw_from_cost, problem.cost, **shared)
    assert torch.equal(left[0], right[0])
    assert torch.equal(left[1], right[1])


@given(problem=problems(bands=False), dummy=DUMMIES)
def test_smoothing_first_is_smoothing_inside(
    problem: Problem, dummy: float | None, backend: str
) -> None:
    """S2DTW of a cost is weak soft-DTW of the smoothed cost."""
    smoothed = torch.full_like(problem.cost, math.nan)
    for index, cost in problem.items():
        n, m = cost.shape
        smoothed[index][:n, :m] = torch.from_numpy(oracles.smooth(cost, problem.gamma))
    shared = {"gamma": problem.gamma, "dummy_cost": dummy, "backend": backend, **_lengths(problem)}
    left = s2dtw_from_cost(problem.cost, smoothing=True, **shared)
    right = s2dtw_from_cost(smoothed, smoothing=False, **shared)
    finite = smoothed[smoothed.isfinite()].abs()
    scale = max(problem.gamma, abs(dummy or 0.0), finite.max().item() if finite.numel() else 0.0)
    size = sum(problem.cost.shape[-2:])
    assert_close(left, right, 1e-13 * scale * size, "value")


@given(problem=problems(largest=6, bands=False), dummy=st.floats(-1, 1))
def test_transposition_exchanges_the_sequences(
    problem: Problem, dummy: float, backend: str
) -> None:
    shared = {"gamma": problem.gamma, "dummy_cost": dummy, "backend": backend}
    value, gradient = value_and_gradient(
        s2dtw_from_cost, problem.cost, **shared, **_lengths(problem)
    )
    other_value, other_gradient = value_and_gradient(
        s2dtw_from_cost,
        problem.cost.mT,
        x_lengths=problem.y_lengths,
        y_lengths=problem.x_lengths,
        **shared,
    )
    finite = problem.cost[problem.cost.isfinite()].abs()
    scale = max(problem.gamma, 1.0, finite.max().item() if finite.numel() else 0.0)
    assert_close(value, other_value, 1e-12 * scale, "value")
    tolerance = 1e-6 if scale > 1e5 * problem.gamma else 1e-9
    assert_close(gradient, other_gradient.mT, tolerance, "gradient")


@given(problem=problems(largest=6, bands=False, forbidden=False), gamma=gammas())
def test_an_affordable_dummy_makes_every_real_pair_optional(
    problem: Problem, gamma: float, backend: str
) -> None:
    """Real pairs of cost 1e4 are left out, and the value is that of a path through dummies alone.

    The value of that path comes from the oracle with every real pair forbidden.
    """
    cost = torch.full_like(problem.cost, 1e4 * max(gamma, 1.0))
    value = s2dtw_from_cost(cost, gamma=gamma, dummy_cost=0.5, smoothing=False, backend=backend)
    n, m = cost.shape[-2:]
    truth = oracles.s2dtw(np.full((n, m), np.inf), gamma, False, 0.5)
    assert_close(
        value, np.full(value.shape, truth.value), 1e-12 * max(abs(truth.value), gamma), "value"
    )


@given(problem=problems(largest=6, bands=False, forbidden=False), dummy=DUMMIES)
def test_gamma_zero_is_the_cheapest_path_of_the_lattice(
    problem: Problem, dummy: float | None, backend: str
) -> None:
    for smoothing in (False, True):
        value = s2dtw_from_cost(
            problem.cost,
            gamma=0.0,
            smoothing=smoothing,
            dummy_cost=dummy,
            backend=backend,
            **_lengths(problem),
        )
        for index, cost in problem.items():
            truth = oracles.s2dtw(cost, 0.0, smoothing, dummy) if not smoothing else None
            smoothed = oracles.smooth(cost, 0.0) if smoothing else cost
            lattice = smoothed if dummy is None else oracles.weak_lattice(smoothed, dummy)
            best = oracles.recursion(lattice, 0.0)
            scale = oracles.value_scale(best, lattice, 0.0)
            assert truth is None or truth.value == best.value
            assert_value(value[index].item(), best.value, scale, 1e-12)


@given(
    problem=problems(
        bands=False, forbidden=False, gamma=gammas(1e-3, 1.0), kinds=("normal", "walk", "near")
    )
)
def test_float32_matches_the_lattice_on_the_same_cost(problem: Problem, backend: str) -> None:
    """The smoothed cost is float64 inside; with the costs exact, the bars are those of soft-DTW."""
    single = Problem(problem.cost.float(), *list(vars(problem).values())[1:])
    value, visits = value_and_gradient(
        s2dtw_from_cost,
        single.cost,
        gamma=single.gamma,
        smoothing=False,
        backend=backend,
        **_lengths(single),
    )
    for index, cost in single.items():
        truth = oracles.s2dtw(cost, single.gamma, smoothing=False)
        scale = max(0.5, oracles.value_scale(truth, cost, single.gamma))
        assert_value(value[index].item(), truth.value, scale, 1e-6)
        assert_close(visits[index], single.padded(index, truth.by_cost), 5e-5, f"gradient {index}")


@pytest.mark.parametrize("smoothing", [False, True])
def test_all_collapsed_captions(smoothing: bool, backend: str) -> None:
    """Collapsed embeddings, all costs -1: the linear recursion overflows float32 here."""
    cost = -torch.ones(4, 8, 8)
    value, gradient = value_and_gradient(
        s2dtw_from_cost, cost, smoothing=smoothing, backend=backend
    )
    truth = oracles.s2dtw(-np.ones((8, 8)), 0.1, smoothing)
    assert_close(value, np.full(4, truth.value), 0.0, "value", rtol=1e-6)
    assert_close(gradient, np.broadcast_to(truth.by_cost, (4, 8, 8)), 5e-5, "gradient")


def test_pairwise_is_every_pair(backend: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 6, 5, generator=generator, dtype=torch.float64)
    y = torch.randn(4, 7, 5, generator=generator, dtype=torch.float64)
    n, m = torch.tensor([6, 1, 4]), torch.tensor([7, 3, 1, 5])
    value, by_x, by_y = value_and_gradient(
        s2dtw, x, y, pairwise=True, x_lengths=n, y_lengths=m, backend=backend
    )
    assert value.shape == (3, 4)
    sums = [torch.zeros_like(x), torch.zeros_like(y)]
    for a in range(3):
        for b in range(4):
            one = value_and_gradient(s2dtw, x[a, : n[a]], y[b, : m[b]], backend=backend)
            assert_close(value[a, b], one[0], 1e-12, f"value {a, b}")
            sums[0][a, : n[a]] += one[1]
            sums[1][b, : m[b]] += one[2]
    assert_close(by_x, sums[0], 1e-10, "gradient by x")
    assert_close(by_y, sums[1], 1e-10, "gradient by y")


@pytest.mark.parametrize("origin_count", [1, 3])
def test_origin_count_moves_only_the_first_pair(origin_count: int, backend: str) -> None:
    cost = torch.tensor([[0.3]], dtype=torch.float64)
    value = s2dtw_from_cost(
        cost, gamma=0.1, dummy_cost=None, origin_count=origin_count, backend=backend
    )
    assert value.item() == pytest.approx(0.3 - 0.1 * math.log(origin_count), abs=1e-15)


@given(
    problem=problems(bands=False, forbidden=False),
    origin_count=st.sampled_from([1, 3, 0.5]),
)
def test_the_origin_s_zeros_count_at_gamma_zero(
    problem: Problem, origin_count: float, backend: str
) -> None:
    """Minus ln(origin_count) at the first pair is linear in gamma, so it is the whole derivative by
    gamma where minima are hard: here, where every path has the first pair.
    """
    gamma = torch.zeros(problem.cost.shape[:-2], dtype=torch.float64, requires_grad=True)
    value = s2dtw_from_cost(
        problem.cost, gamma=gamma, dummy_cost=None, origin_count=origin_count, backend=backend,
        **_lengths(problem),
    )  # fmt: skip
    (by_gamma,) = torch.autograd.grad(value.sum(), gamma)
    assert_close(by_gamma, np.full(by_gamma.shape, -math.log(origin_count)), 1e-15, "by gamma")


@pytest.mark.parametrize("dummy", [None, 0.5])
def test_smoothing_forbids_what_only_forbidden_pairs_precede(
    dummy: float | None, backend: str
) -> None:
    """The formula, literally: a pair whose predecessors are all +inf becomes +inf itself."""
    cost = np.array([[0.1, np.inf, 0.2, 0.4], [0.3, 0.2, 0.1, 0.2], [0.4, 0.3, 0.2, 0.1]])
    assert math.isinf(oracles.smooth(cost, 0.1)[0, 2])
    _check(
        Problem(torch.from_numpy(cost), 0.1, None, None, None), True, dummy, 1, backend, brute=True
    )


def test_dummies_lead_around_forbidden_pairs(backend: str) -> None:
    """With dummies a path always exists; without, the value may be +inf."""
    cost = torch.full((2, 3, 4), math.inf, dtype=torch.float64)
    value, gradient = value_and_gradient(s2dtw_from_cost, cost, smoothing=False, backend=backend)
    truth = oracles.s2dtw(cost[0].numpy(), 0.1, smoothing=False)
    assert_close(value, [truth.value] * 2, 1e-12, "value")
    assert not gradient.any()
    value, gradient = value_and_gradient(s2dtw_from_cost, cost, dummy_cost=None, backend=backend)
    assert (value == math.inf).all()
    assert not gradient.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(2, 3, 2600), (2, 700, 5), (2, 90, 70), (3, 1, 1), (4, 1, 40)])
def test_smoothing_of_rows_long_and_short(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Kernels take some rows at a time, many short ones, or a long one alone: all by the formula,
    and with the same bits alone and in the batch.
    """
    generator = torch.Generator().manual_seed(0)
    cost, mass = torch.randn(2, *shape, generator=generator, dtype=dtype)
    lengths = [torch.full(shape[:1], size) for size in shape[1:]]
    for size in lengths:
        size[-1] = (size[-1] + 1) // 2
    gamma = torch.linspace(0.1, 2.0, shape[0], dtype=torch.float64)
    smoothing = Smoothing(cost, gamma, *lengths, 1.0)
    exact = smoothing._replace(cost=cost.double())
    got = kernels.smooth(smoothing), *kernels.smooth_vjp(smoothing, mass)
    truth = reference.smooth(exact), *reference.smooth_vjp(exact, mass.double())
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    for a, b in zip(got, truth, strict=True):
        assert_close(a.double(), b, tolerance * max(1.0, float(b.abs().max())), "smoothing")
    transposed = cost.mT.contiguous().mT
    for item in range(shape[0]):
        alone = Smoothing(*(x[item : item + 1] for x in (transposed, gamma, *lengths)), 1.0)
        part = kernels.smooth(alone), *kernels.smooth_vjp(alone, mass[item : item + 1])
        for a, b in zip(part, got, strict=True):
            assert torch.equal(a[0], b[item])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(2, 2), (3, 9, 4), (2, 20, 150)])
def test_a_gradient_is_the_factor_times_the_visits(
    shape: tuple[int, ...], dtype: torch.dtype, backend: str
) -> None:
    """Whatever the factor is: where there are no visits the gradient is +0."""
    generator = torch.Generator().manual_seed(0)
    cost = torch.rand(shape, generator=generator, dtype=dtype)
    cost[torch.rand(shape, generator=generator) < 0.2] = math.inf
    cost[..., torch.arange(shape[-2]), torch.arange(shape[-2]) * shape[-1] // shape[-2]] = 0.5
    exact = cost.double()
    _, visits = value_and_gradient(s2dtw_from_cost, exact, gamma=1.0, backend="reference")
    assert (visits == 0.0).any() or shape == (2, 2)
    told = (visits == 0.0) | (visits > 1e-20)  # others may be 0 in kernels
    cost.requires_grad_()
    value = s2dtw_from_cost(cost, gamma=1.0, backend=backend)
    assert value.isfinite().all()
    for factor in (math.inf, -math.inf, math.nan):
        (got,) = torch.autograd.grad(value, cost, torch.full_like(value, factor), True)
        expected = torch.where(visits > 0.0, factor, 0.0).to(dtype)
        assert torch.equal(got.nan_to_num(7.0)[told], expected.nan_to_num(7.0)[told])
        assert not got[visits == 0.0].signbit().any()
