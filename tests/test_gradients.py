"""First and second derivatives: torch's numerical checks, the covariance of visits, the oracle.

The numerical checks are for the kernels, whose derivatives are written by hand; the reference has
those of autograd, and agrees with the kernels in test_backends.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import oracles
import pytest
import strategies
import torch
from helpers import assert_close, derivative, examples
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import Problem, features, gammas, problems, seeds
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck

from softdtw_kernels import (
    cost_matrix,
    s2dtw,
    s2dtw_from_cost,
    soft_dtw,
    soft_dtw_alignment_from_cost,
    soft_dtw_divergence,
    soft_dtw_from_cost,
)

COSTS = ("sqeuclidean", "euclidean", "cosine", "shifted_cosine", "negative_dot")
MILD = ("normal", "walk", "negative")
# Numerical differentiation needs a function that is smooth at the scale of its step.
SMOOTH_GAMMAS = st.floats(0.3, 3.0)
FEW = examples(8)


def _check(function: Callable[..., Tensor], *inputs: Tensor, second: bool = True) -> None:
    leaves = tuple(t.detach().double().clone().requires_grad_() for t in inputs)
    assert gradcheck(function, leaves)
    if second:
        assert gradgradcheck(function, leaves)


def _tame(problem: Problem) -> Tensor:
    """Costs of order 1, +inf kept."""
    cost = problem.cost
    return torch.where(cost.isinf(), cost, cost.clamp(-5, 5))


@FEW
@given(problem=problems(largest=5, kinds=MILD, forbidden=False, gamma=SMOOTH_GAMMAS))
def test_gradcheck_from_cost_and_gamma(problem: Problem) -> None:
    gamma = torch.tensor(problem.gamma, dtype=torch.float64)
    _check(
        lambda c, g: soft_dtw_from_cost(c, gamma=g, **problem.limits),
        _tame(problem),
        gamma,
    )


@FEW
@given(problem=problems(largest=5, kinds=MILD, gamma=SMOOTH_GAMMAS))
def test_gradcheck_with_forbidden_cells(problem: Problem) -> None:
    """Forbidden cells are held fixed: a difference quotient across infinity has no meaning."""
    cost = _tame(problem)
    allowed = cost.isfinite()
    gamma = torch.tensor(problem.gamma, dtype=torch.float64)

    def function(free: Tensor, gamma: Tensor) -> Tensor:
        full = torch.where(allowed, torch.zeros_like(cost), cost).masked_scatter(allowed, free)
        value = soft_dtw_from_cost(full, gamma=gamma, **problem.limits)
        return torch.where(value.isinf(), 0.0, value)  # differences of infinities are NaN

    assume(allowed.any())
    _check(function, cost[allowed], gamma)


@FEW
@given(
    problem=problems(largest=4, kinds=MILD, forbidden=False, bands=False, gamma=SMOOTH_GAMMAS),
    smoothing=st.booleans(),
    dummy=st.none() | st.floats(-1, 1),
    origin_count=st.sampled_from([1, 3]),
)
def test_gradcheck_s2dtw_from_cost(
    problem: Problem, smoothing: bool, dummy: float | None, origin_count: int
) -> None:
    limits = {k: v for k, v in problem.limits.items() if k != "bandwidth"}
    gamma = torch.tensor(problem.gamma, dtype=torch.float64)

    def function(cost: Tensor, gamma: Tensor, dummy: Tensor | None = None) -> Tensor:
        return s2dtw_from_cost(
            cost, gamma=gamma, smoothing=smoothing, dummy_cost=dummy, origin_count=origin_count,
            **limits,
        )  # fmt: skip

    inputs = (_tame(problem), gamma)
    _check(
        function, *inputs, *(() if dummy is None else (torch.tensor(dummy, dtype=torch.float64),))
    )


@pytest.mark.parametrize("name", COSTS)
@pytest.mark.parametrize("function", [soft_dtw, s2dtw, soft_dtw_divergence])
@pytest.mark.parametrize("pairwise", [False, True])
def test_gradcheck_from_features(
    name: str, function: Callable[..., Tensor], pairwise: bool
) -> None:
    random = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, 2, generator=random, dtype=torch.float64)
    y = torch.randn(3 if pairwise else 2, 4, 2, generator=random, dtype=torch.float64)
    lengths = {"x_lengths": torch.tensor([3, 2]), "y_lengths": torch.tensor([4, 1, 3][: len(y)])}
    _check(
        lambda x, y, g: function(x, y, gamma=g, cost=name, pairwise=pairwise, **lengths),
        x,
        y,
        torch.tensor(0.7, dtype=torch.float64),
    )


@pytest.mark.parametrize("name", COSTS)
def test_gradcheck_of_costs(name: str) -> None:
    random = torch.Generator().manual_seed(2)
    x = torch.randn(2, 3, 4, generator=random, dtype=torch.float64)
    y = torch.randn(2, 5, 4, generator=random, dtype=torch.float64)
    _check(lambda x, y: cost_matrix(x, y, cost=name), x, y)


@FEW
@given(problem=problems(largest=4, kinds=MILD, forbidden=False, gamma=SMOOTH_GAMMAS))
def test_gradcheck_of_the_expected_alignment(problem: Problem) -> None:
    gamma = torch.tensor(problem.gamma, dtype=torch.float64)
    _check(
        lambda c, g: soft_dtw_alignment_from_cost(c, gamma=g, **problem.limits).expected,
        _tame(problem),
        gamma,
        second=False,
    )


@FEW
@given(problem=problems(largest=4, kinds=MILD, forbidden=False, gamma=SMOOTH_GAMMAS))
def test_forward_mode_matches_differences(problem: Problem) -> None:
    gamma = torch.tensor(problem.gamma, dtype=torch.float64, requires_grad=True)
    cost = _tame(problem).clone().requires_grad_()

    def function(cost: Tensor, gamma: Tensor) -> Tensor:
        return soft_dtw_from_cost(cost, gamma=gamma, **problem.limits)

    assert gradcheck(function, (cost, gamma), check_forward_ad=True, check_backward_ad=False)


@given(problem=problems(largest=5, masks=False), seed=seeds())
def test_forward_mode_is_the_gradient_along_the_direction(
    problem: Problem, seed: int, backend: str
) -> None:
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(problem.cost.shape, generator=generator, dtype=torch.float64)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(problem.cost, direction)
        value = soft_dtw_from_cost(dual, **problem.arguments, backend=backend)
        tangent = forward_ad.unpack_dual(value).tangent
    for index, cost in problem.items():
        truth = oracles.recursion(cost, problem.gamma)
        along = (problem.padded(index, truth.visits) * direction[index].numpy()).sum()
        assert_close(
            tangent[index], along, 1e-6 if problem.gamma < 0.1 else 1e-8, f"tangent {index}"
        )


def _second(problem: Problem, direction: Tensor, backend: str) -> Tensor:
    cost = problem.cost.clone().requires_grad_()
    value = soft_dtw_from_cost(cost, **problem.arguments, backend=backend)
    (visits,) = derivative(value.sum(), cost, again=True)
    (product,) = derivative((visits * direction).sum(), cost)
    return product


@given(problem=problems(largest=5, gamma=gammas(1e-2)), seed=seeds())
def test_hessian_product_is_the_covariance_of_visits(
    problem: Problem, seed: int, backend: str
) -> None:
    """The Hessian is -1/gamma times the covariance of the visits over all alignments."""
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(problem.cost.shape, generator=generator, dtype=torch.float64)
    product = _second(problem, direction, backend)
    for index, cost in problem.items():
        n, m = cost.shape
        truth = oracles.hessian_product(cost, problem.gamma, direction[index][:n, :m].numpy())
        tolerance = 10 * oracles.gradient_tolerance(cost, problem.gamma) / min(problem.gamma, 1.0)
        assert_close(product[index], problem.padded(index, truth), tolerance, f"product {index}")


@pytest.mark.parametrize("walls", [False, True])
@pytest.mark.parametrize("bandwidth", [None, 7])
@pytest.mark.parametrize("gamma", [0.1, 1.0, 10.0])
def test_hessian_product_matches_differences_of_the_oracle(
    gamma: float, bandwidth: int | None, walls: bool, backend: str
) -> None:
    random = np.random.default_rng(3)
    cost, direction = random.normal(size=(61, 53)), random.normal(size=(61, 53))
    if walls:
        cost[random.random(cost.shape) < 0.1] = np.inf
        np.fill_diagonal(cost, 0.0)
        cost[52:, 52] = 0.0
    problem = Problem(torch.from_numpy(cost), gamma, None, None, bandwidth)
    product = _second(problem, torch.from_numpy(direction), backend)
    truth = oracles.hessian_product_by_differences(
        oracles.restrict(cost, 61, 53, bandwidth), gamma, direction, step=0.02 * gamma
    )
    assert_close(product, truth, 1e-5 * np.abs(truth).max(), "Hessian-vector product")


@pytest.mark.parametrize("height", [1e9, 1e30])
@pytest.mark.parametrize("where", ["mask", "wall", "ends"])
def test_hessian_product_beside_walls(where: str, height: float) -> None:
    """A mask acts as a forbidden cell; a cost that every path pays once changes nothing."""
    random = np.random.default_rng(4)
    cost = torch.from_numpy(random.normal(size=(9, 8)))
    direction = torch.from_numpy(random.normal(size=(9, 8)))
    other = cost.clone()
    mask = torch.from_numpy(random.random((9, 8)) < 0.2)
    mask[[0, -1], [0, -1]] = False
    if where == "mask":
        cost[mask], other[mask] = np.inf, height
    elif (
        where == "wall"
    ):  # crossed by one vertical or diagonal step, staying in the row is forbidden
        cost[4], other[4] = 1e6, height
    else:
        other[0, 0], other[-1, -1] = height, height
    truth = _second(Problem(cost, 0.5, None, None, None), direction, "numba")
    product = _second(Problem(other, 0.5, None, None, None), direction, "numba")
    assert_close(product, truth, 1e-6, "Hessian-vector product")


@given(problem=problems(largest=6, kinds=("normal", "walk", "integers")), seed=seeds())
def test_float32_second_order_matches_float64(problem: Problem, seed: int, backend: str) -> None:
    assume(problem.gamma >= 0.1)
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(problem.cost.shape, generator=generator)
    rounded = problem.cost.float()
    single = Problem(rounded, *list(vars(problem).values())[1:])
    double = Problem(rounded.double(), *list(vars(problem).values())[1:])
    got, truth = _second(single, direction, backend), _second(double, direction.double(), backend)
    assert got.dtype == torch.float32
    scale = max(1.0, truth.abs().max().item()) if truth.numel() else 1.0
    assert_close(got / scale, truth / scale, 1e-4, "Hessian-vector product")


@given(problem=problems())
def test_gamma_zero_has_no_second_derivative(problem: Problem, backend: str) -> None:
    gamma = torch.zeros((), dtype=torch.float64, requires_grad=True)
    cost = problem.cost.clone().requires_grad_()
    value = soft_dtw_from_cost(cost, gamma=gamma, **problem.limits, backend=backend)
    visits, by_gamma = derivative(value.sum(), cost, gamma, again=True)
    assert by_gamma == 0
    assert not derivative((visits * visits.detach()).sum(), cost)[0].any()


@given(problem=problems(largest=5))
def test_backward_twice_and_incoming_gradients(problem: Problem, backend: str) -> None:
    """retain_graph gives the same again; an incoming gradient scales its own item."""
    cost = problem.cost.clone().requires_grad_()
    value = soft_dtw_from_cost(cost, **problem.arguments, backend=backend)
    (first,) = torch.autograd.grad(value.sum(), cost, retain_graph=True)
    (again,) = torch.autograd.grad(value.sum(), cost, retain_graph=True)
    assert torch.equal(first, again)
    weight = torch.arange(value.numel(), dtype=value.dtype).reshape(value.shape) - 1
    (scaled,) = torch.autograd.grad(value, cost, weight)
    assert_close(
        scaled, first * weight[..., None, None], 1e-12 * max(1, value.numel()), "scaled gradient"
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inputs_that_need_no_gradient_get_none(dtype: torch.dtype, backend: str) -> None:
    x, y = torch.randn(2, 5, 3, dtype=dtype), torch.randn(2, 6, 3, dtype=dtype)
    assert not soft_dtw(x, y, backend=backend).requires_grad
    x.requires_grad_()
    soft_dtw(x, y, backend=backend).sum().backward()
    assert x.grad is not None
    assert y.grad is None
    gamma = torch.tensor(0.5, requires_grad=True)
    s2dtw(x.detach(), y, gamma=gamma, backend=backend).sum().backward()
    assert gamma.grad is not None
    assert gamma.grad.shape == ()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype, backend: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 6, 4, generator=generator).to(dtype).requires_grad_()
    y = torch.randn(3, 5, 4, generator=generator).to(dtype).requires_grad_()
    value = soft_dtw(x, y, gamma=0.1, backend=backend)
    truth = soft_dtw(x.float(), y.float(), gamma=0.1, backend=backend)
    assert value.dtype == torch.float32
    assert torch.equal(value, truth)
    got = torch.autograd.grad(value.sum(), (x, y))
    expected = torch.autograd.grad(truth.sum(), (x, y))
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == dtype
        assert torch.equal(a, b)


@given(sequences=features(largest=4), pairwise=st.booleans(), gamma=strategies.gammas(0.1, 1.0))
@FEW
def test_gradients_are_the_same_for_any_strides_and_are_not_overwritten(
    sequences: tuple[Tensor, Tensor], pairwise: bool, gamma: float, backend: str
) -> None:
    """Strided inputs give what their contiguous copies give, and stay as they were."""
    x, y = (s.reshape(-1, *s.shape[-2:]) for s in sequences)
    wide = torch.stack((x, -x), -1)
    views = [wide[..., 0], x.mT.contiguous().mT, torch.cat((x, x), -2)[:, : x.shape[1]]]
    arguments = {"gamma": gamma, "pairwise": pairwise, "backend": backend}
    leaf = x.clone().requires_grad_()
    (truth,) = torch.autograd.grad(soft_dtw(leaf, y, **arguments).sum(), leaf)
    for view in views:
        before = view.clone()
        leaf = view.detach().requires_grad_()
        value = soft_dtw(leaf, y, **arguments)
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
        assert_close(gradient, truth, 1e-12 * max(1.0, truth.abs().max().item()), "gradient")
        assert torch.equal(view, before)


@pytest.mark.parametrize("function", [soft_dtw_from_cost, s2dtw_from_cost])
def test_gamma_gets_a_gradient_where_nothing_is_to_be_chosen(
    function: Callable[..., Tensor], backend: str
) -> None:
    gamma = torch.tensor(0.5, requires_grad=True)
    arguments = {} if function is soft_dtw_from_cost else {"dummy_cost": None}
    function(torch.randn(3, 1, 1), gamma=gamma, backend=backend, **arguments).sum().backward()
    assert gamma.grad is not None
    assert_close(gamma.grad, 0.0, 1e-7, "gradient by gamma")
