"""Second derivatives of long pairs, of any layout, and beside what has no derivative."""

from __future__ import annotations

import pytest
import torch
from helpers import assert_close, derivative
from torch import Tensor

from softdtw_kernels import s2dtw_from_cost, soft_dtw_from_cost
from softdtw_kernels._operators import kernels, smoothing
from softdtw_kernels._problem import Problem, Smoothing


def _product(problem: Problem, tangent: Tensor, **tangents: Tensor) -> tuple[Tensor, ...]:
    """The operator's results along a direction that is 0 where none is given."""
    nothing = torch.zeros_like(problem.gamma)
    by_dummy = None if problem.dummy is None else tangents.get("dummy", nothing)
    ones = torch.ones_like(problem.cost[..., 0, 0])
    return kernels.hessian_product(problem, ones, tangent, tangents.get("gamma", nothing), by_dummy)


def _problem(cost: Tensor, gamma: float = 0.5, dummy: float | None = None) -> Problem:
    item = torch.ones(cost.shape[:-2], dtype=torch.float64)
    return Problem(cost, gamma * item, None if dummy is None else dummy * item, None, None, None)


@pytest.mark.slow
@pytest.mark.parametrize("dummy", [None, 0.3])
@pytest.mark.parametrize(
    ("n", "m", "bandwidth"), [(1300, 900, None), (900, 1300, 40), (600, 2500, None)]
)
def test_long_pairs_match_differences_of_gradients(
    n: int, m: int, bandwidth: int | None, dummy: float | None
) -> None:
    """So long that borders are kept for a part of the rows at a time."""
    if dummy is not None:
        n, m, bandwidth = n // 2, m // 2, None
    generator = torch.Generator().manual_seed(n)
    cost = torch.rand(1, n, m, generator=generator, dtype=torch.float64)
    tangent = torch.randn(cost.shape, generator=generator, dtype=torch.float64)
    tangent_gamma, tangent_dummy = torch.randn(2, 1, generator=generator, dtype=torch.float64)
    problem = _problem(cost, dummy=dummy)._replace(bandwidth=bandwidth)
    along, *products = _product(problem, tangent, gamma=tangent_gamma, dummy=tangent_dummy)

    def central(step: float) -> list[Tensor]:
        ends = []
        for h in (step, -step):
            moved = problem._replace(
                cost=cost + h * tangent, gamma=problem.gamma + h * tangent_gamma
            )
            if problem.dummy is not None:
                moved = moved._replace(dummy=problem.dummy + h * tangent_dummy)
            gradients = kernels.gradient(moved, torch.ones_like(cost[..., 0, 0]), True)
            ends.append((kernels.value(moved), *gradients))
        return [(a - b) / (2 * step) for a, b in zip(*ends, strict=True)]

    truth = [(4 * a - b) / 3 for a, b in zip(central(5e-4), central(1e-3), strict=True)]
    for got, true in zip((along, *products), truth, strict=True):
        assert_close(got, true, 1e-6 * max(1.0, float(true.abs().max())), "derivative")


@pytest.mark.parametrize("dummy", [None, 0.3])
def test_layouts_and_the_place_in_the_batch_change_no_bits(dummy: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    cost, tangent = torch.rand(2, 5, 21, 34, generator=generator)
    truth = _product(_problem(cost, dummy=dummy), tangent)
    transposed = cost.mT.contiguous().mT, tangent.mT.contiguous().mT
    wide = torch.stack((cost, tangent), -1)
    for a, b in (transposed, (wide[..., 0], wide[..., 1]), (cost, transposed[1])):
        for got, true in zip(_product(_problem(a, dummy=dummy), b), truth, strict=True):
            assert torch.equal(got, true)
    single = _product(_problem(cost[3:4], dummy=dummy), tangent[3:4])
    for got, true in zip(single, truth, strict=True):
        assert torch.equal(got, true[3:4])
    constant = tangent[:, :1, :1].expand(cost.shape)
    stretched = _product(_problem(cost, dummy=dummy), constant)
    for got, true in zip(
        stretched, _product(_problem(cost, dummy=dummy), constant.clone()), strict=True
    ):
        assert torch.equal(got, true)


@pytest.mark.parametrize("where", ["wall", "unreached", "dead end"])
def test_tangents_of_cells_that_no_path_visits_count_for_nothing(where: str) -> None:
    generator = torch.Generator().manual_seed(0)
    cost, tangent = torch.rand(2, 1, 19, 23, generator=generator, dtype=torch.float64)
    cost[0, 4:8, 5:9] = torch.inf
    inside = {"wall": (4, 5), "unreached": (6, 7), "dead end": (6, 6)}[where]
    cost[0, 6, 7] = 0.5
    if where == "dead end":  # a way in, and none out
        cost[0, 5, 5] = cost[0, 4, 5] = 0.5
        cost[0, 6, 6] = 0.5
        cost[0, 6, 7] = torch.inf
    truth = _product(_problem(cost), tangent)
    tangent[0][inside] = torch.nan
    for got, true in zip(_product(_problem(cost), tangent), truth, strict=True):
        assert_close(got, true, 1e-12, "derivative")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dummy", [None, 0.3])
def test_without_a_path_all_is_zero(dtype: torch.dtype, dummy: float | None) -> None:
    cost, tangent = torch.rand(2, 3, 11, 12, dtype=dtype)
    cost[1, 5] = torch.inf
    if dummy is not None:  # which has ways around costs
        dummy = torch.inf
    along, *products = _product(_problem(cost, dummy=dummy), tangent)
    for result in (along, *products):
        assert not result[1].any()
    if dummy is None:
        assert products[0][0].any()


def test_a_hard_minimum_changes_along_its_path() -> None:
    generator = torch.Generator().manual_seed(0)
    cost, tangent = torch.rand(2, 4, 13, 11, generator=generator, dtype=torch.float64)
    cost[1, 6] = torch.inf  # no path
    cost[2, 3, 3] = torch.nan
    problem = _problem(cost, 0.0)
    visits, *_ = kernels.gradient(problem, torch.ones(4, dtype=torch.float64), False)
    tangent[visits == 0] = torch.nan
    along, product, *sums = _product(problem, tangent)
    expected = torch.where(visits == 0, 0, tangent * visits).sum((-2, -1))
    torch.testing.assert_close(along, expected, equal_nan=True, rtol=1e-12, atol=0)
    assert product[2].isnan().all()
    assert not product[[0, 1, 3]].any()
    for by_parameter in sums:
        assert by_parameter.isnan().tolist() == [False, False, True, False]
        assert not by_parameter[[0, 1, 3]].any()
    mixed = problem._replace(gamma=torch.tensor([0.0, 0.5, 0.5, 0.5], dtype=torch.float64))
    along_mixed, product_mixed, *_ = _product(mixed, tangent.nan_to_num())
    torch.testing.assert_close(along_mixed[0], along[0])
    assert not product_mixed[[0, 1]].any()
    assert product_mixed[2].isnan().all()
    assert product_mixed[3].any()


def test_nan_stays_within_a_band_and_its_item() -> None:
    generator = torch.Generator().manual_seed(0)
    cost, tangent = torch.rand(2, 2, 8, 8, generator=generator, dtype=torch.float64)
    cost[1, 3, 3] = torch.nan
    _, product, *_ = _product(_problem(cost)._replace(bandwidth=1), tangent)
    row, column = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    inside = (row - column).abs() <= 1
    assert product[0].isfinite().all()
    assert product[1][inside].isnan().all()
    assert not product[:, ~inside].any()


def test_s2dtw_matches_differences_of_its_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    cost, tangent = torch.rand(2, 1, 70, 90, generator=generator, dtype=torch.float64)
    leaf = cost.clone().requires_grad_()
    (visits,) = derivative(s2dtw_from_cost(leaf, gamma=0.2).sum(), leaf, again=True)
    (product,) = derivative((visits * tangent).sum(), leaf)

    def central(step: float) -> Tensor:
        ends = []
        for h in (step, -step):
            moved = (cost + h * tangent).requires_grad_()
            ends += derivative(s2dtw_from_cost(moved, gamma=0.2).sum(), moved)
        return (ends[0] - ends[1]) / (2 * step)

    truth = (4 * central(5e-4) - central(1e-3)) / 3
    assert_close(product, truth, 1e-6 * float(truth.abs().max()), "Hessian-vector product")


def test_a_pair_is_alone_the_same_as_under_autograd() -> None:
    generator = torch.Generator().manual_seed(1)
    cost, tangent = torch.rand(2, 40, 33, generator=generator, dtype=torch.float64)
    leaf = cost.clone().requires_grad_()
    (visits,) = derivative(soft_dtw_from_cost(leaf, gamma=0.5), leaf, again=True)
    (product,) = derivative((visits * tangent).sum(), leaf)
    assert torch.equal(product, _product(_problem(cost), tangent)[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(3, 4, 2300), (3, 400, 7), (3, 60, 50), (3, 1, 1)])
def test_kernels_give_the_second_derivatives_of_the_smoothing(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    cost, mass, tangent = torch.randn(3, *shape, generator=generator, dtype=dtype)
    cost[torch.rand(shape, generator=generator) < 0.1] = torch.inf
    lengths = [torch.full(shape[:1], size) for size in shape[1:]]
    for size in lengths:
        size[-1] = (size[-1] + 1) // 2
    gamma, by_gamma = torch.tensor([[0.1, 1.0, 3.0], [0.3, -0.5, 0.7]], dtype=torch.float64)
    problem = Smoothing(cost.mT.contiguous().mT, gamma, *lengths, 2.0)
    with torch.no_grad():
        got = smoothing._second_order(problem, mass, tangent, by_gamma)
        alone = smoothing._second_order(
            Smoothing(*(x[1:2] for x in (cost, gamma, *lengths)), 2.0),
            mass[1:2], tangent[1:2], by_gamma[1:2],
        )  # fmt: skip
    truth = smoothing._second_order_in_torch(problem, mass, tangent, by_gamma)
    for a, b, one in zip(got, truth, alone, strict=True):
        tolerance = 1e-6 if a.dtype == torch.float32 else 1e-12
        assert_close(a, b, tolerance * max(1.0, float(b.abs().max())), "second derivative")
        assert torch.equal(one[0], a[1])
