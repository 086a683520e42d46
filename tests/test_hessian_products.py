"""Products with a Hessian, by each way that torch has to them: a derivative by the directions of a
second derivative is none of third order.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers import assert_close
from torch import Tensor
from torch.autograd.functional import hessian, hvp, jacobian, jvp, vhp
from torch.func import grad

import softdtw_kernels as sk

Total = Callable[..., Tensor]  # of differentiable arguments

LENGTHS = {"x_lengths": torch.tensor([5, 3]), "y_lengths": torch.tensor([2, 4])}


def draw(*shape: int, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=random, dtype=torch.float64)


COST, SETTING, OTHER = draw(2, 5, 4), 0.3 + draw(2, seed=1), draw(2, seed=2)
X, Y = draw(2, 5, 3, seed=3), draw(2, 4, 3, seed=4)
LONG = draw(1, 200, 2, seed=5), draw(1, 210, 2, seed=6)  # without a matrix


def of(function: Callable[..., Tensor], **options: object) -> Total:
    """Not linear in the value: its derivatives have factors that have derivatives."""
    return lambda a, b, **settings: function(a, b, **options, **settings).square().sum()


def of_cost(**options: object) -> Total:
    return lambda c: sk.soft_dtw_from_cost(c, **options).square().sum()


CASES: dict[str, tuple[Total, tuple[Tensor, ...]]] = {
    "cost": (of_cost(), (COST,)),
    "lengths": (of_cost(**LENGTHS), (COST,)),
    "band": (of_cost(bandwidth=1, **LENGTHS), (COST,)),
    "gamma": (lambda c, g: sk.soft_dtw_from_cost(c, gamma=g).square().sum(), (COST, SETTING)),
    "dummy": (
        lambda c, g, d: sk.s2dtw_from_cost(c, gamma=g, dummy_cost=d).square().sum(),
        (COST, SETTING, OTHER),
    ),
    "warp cost": (
        lambda c, g, w: sk.soft_dtw_from_cost(c, gamma=g, warp_cost=w).square().sum(),
        (COST, SETTING, OTHER),
    ),
    "open ends": (
        lambda c, g, w: (
            sk.soft_dtw_from_cost(c, gamma=g, skip_cost=w, open_begin="x", open_end="y")
            .square()
            .sum()
        ),
        (COST, SETTING, OTHER),
    ),
    "repeat": (of_cost(repeat="y"), (COST,)),
    **{kind: (of(sk.soft_dtw, cost=kind), (X, Y)) for kind in sorted(sk.costs.NAMED)},
    "long": (of(sk.soft_dtw), LONG),
    "s2dtw": (of(sk.s2dtw), (X, Y)),
    "divergence": (of(sk.soft_dtw_divergence, **LENGTHS), (X, Y)),
    "forward_sum": (lambda c: sk.forward_sum(c).square().sum(), (COST,)),
}


def directions(points: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(draw(*point.shape, seed=7 + k) - 0.5 for k, point in enumerate(points))


def assert_all_close(got: tuple[Tensor, ...], truth: tuple[Tensor, ...], name: str) -> None:
    for a, b in zip(got, truth, strict=True):
        assert_close(a, b, 1e-12 * (1 + float(b.abs().max())), name)


@pytest.mark.parametrize("name", CASES)
def test_double_backward_is_as_the_other_ways(name: str) -> None:
    total, points = CASES[name]
    along = directions(points)
    _, truth = vhp(total, points, along)
    assert any(t.any() for t in truth)
    assert_all_close(hvp(total, points, along)[1], truth, "hvp")
    gradient = torch.func.grad(total, argnums=tuple(range(len(points))))
    assert_all_close(torch.func.jvp(gradient, points, along)[1], truth, "func.jvp")
    assert_all_close(jvp(gradient, points, along)[1], truth, "functional.jvp")
    # The product is linear in the direction, and the Hessian symmetric.
    _, pull = torch.func.vjp(gradient, *points)
    assert_all_close(torch.func.jvp(pull, (along,), (along,))[1], truth, "jvp of the product")
    _, pull_again = torch.func.vjp(pull, along)
    assert_all_close(pull_again(truth)[0], pull(truth), "vjp of the product")


@pytest.mark.parametrize("name", CASES)
def test_its_derivative_by_the_direction_alone(name: str) -> None:
    total, points = CASES[name]
    along = tuple(t.requires_grad_() for t in directions(points))
    leaves = tuple(point.clone().requires_grad_() for point in points)
    _, product = hvp(total, leaves, along, create_graph=True)
    norm = sum(t.square().sum() for t in product)
    got = torch.autograd.grad(norm, along, retain_graph=True)
    _, truth = hvp(total, points, tuple(2 * t.detach() for t in product))
    assert_all_close(got, truth, "twice the Hessian")
    for leaf in leaves:
        with pytest.raises(RuntimeError, match="a third one was asked for"):
            torch.autograd.grad(norm, leaf, retain_graph=True)
    with pytest.raises(RuntimeError, match="a third one was asked for"):
        norm.backward()


ROUTES: dict[str, Callable[..., object]] = {
    "grad of jvp of grad": lambda f, p, v: grad(
        lambda q: (torch.func.jvp(grad(f), (q,), (v,))[1] * v).sum()
    )(p),
    "grad of jvp of jvp": lambda f, p, v: grad(
        lambda q: torch.func.jvp(lambda r: torch.func.jvp(f, (r,), (v,))[1], (q,), (v,))[1]
    )(p),
    "jacrev of jvp of grad": lambda f, p, v: torch.func.jacrev(
        lambda q: torch.func.jvp(grad(f), (q,), (v,))[1]
    )(p),
    "jacfwd of hessian": lambda f, p, v: torch.func.jacfwd(torch.func.hessian(f))(p),
    "grad of grad of grad": lambda f, p, v: grad(
        lambda q: (grad(lambda r: (grad(f)(r) * v).sum())(q) * v).sum()
    )(p),
}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", ["cost", "repeat", "sqeuclidean", "divergence", "forward_sum"])
def test_a_third_derivative_is_refused_by_all_transforms(name: str, route: str) -> None:
    total, (point, *rest) = CASES[name]
    (along,) = directions((point,))
    with pytest.raises(RuntimeError, match="a third one was asked for"):
        ROUTES[route](lambda p: total(p, *rest), point, along)


@pytest.mark.parametrize("name", CASES)
def test_the_slope_along_a_direction_has_a_derivative(name: str) -> None:
    """Made by double backward it is linear in the direction, and of second order in the problem."""
    total, points = CASES[name]
    along = directions(points)
    leaves = tuple(point.clone().requires_grad_() for point in points)
    _, slope = jvp(total, leaves, along, create_graph=True)
    got = torch.autograd.grad(slope, leaves)
    assert_all_close(got, vhp(total, points, along)[1], "derivative of the slope")


def test_of_the_operators_in_all_that_they_are_linear_in() -> None:
    """By the factor too, and by all outputs: torch's own check, of first and second order."""
    operators = torch.ops.softdtw_kernels
    s, by_value = draw(2, seed=8), draw(2, seed=9)
    slopes = [t.requires_grad_() for t in (s, *directions((COST, SETTING, OTHER, OTHER)))]
    lengths = *LENGTHS.values(), None
    cases = {
        operators.hessian_product: ((COST, SETTING, OTHER, *lengths), slopes[:4]),
        operators.pattern_hessian_product: (
            (COST, SETTING, OTHER, by_value, *lengths, "xy", "", ""),
            slopes,
        ),
        operators.monotonic_product: ((COST.mT, None, None), [slopes[1].detach().mT]),
    }
    for operator, (problem, linear) in cases.items():
        linear = [t.detach().requires_grad_() for t in linear]
        assert torch.autograd.gradcheck(
            lambda *t, operator=operator, problem=problem: operator(*problem, *t), linear
        )
        assert torch.autograd.gradgradcheck(
            lambda *t, operator=operator, problem=problem: operator(*problem, *t), linear
        )


def test_expected_visits_and_entropy_along_a_direction(backend: str) -> None:
    def visits(cost: Tensor) -> tuple[Tensor, Tensor]:
        found = sk.soft_dtw_alignment_from_cost(cost, gamma=0.5, backend=backend, **LENGTHS)
        return found.expected, found.entropy

    (along,) = directions((COST,))
    _, got = jvp(visits, COST, along)
    assert_all_close(got, torch.func.jvp(visits, (COST,), (along,))[1], "functional.jvp")


@pytest.mark.parametrize("name", ["cost", "repeat", "dummy", "sqeuclidean", "long"])
def test_gradients_that_torch_batches_have_derivatives_or_an_error(name: str) -> None:
    """In the backward of these torch loses what a Function records."""
    total, (point, *rest) = CASES[name]
    leaf = point.clone().requires_grad_()
    of_items = jacobian(lambda p: total(p, *rest)[None], leaf, vectorize=True)
    assert_close(of_items, jacobian(lambda p: total(p, *rest)[None], leaf), 1e-12, "jacobian")
    with pytest.raises(RuntimeError, match="use torch.func.jacrev"):
        jacobian(lambda p: total(p, *rest)[None], leaf, vectorize=True, create_graph=True)
    hessians = (
        hessian(lambda p: total(p, *rest), point[:, :5], vectorize=batched)
        for batched in (True, False)
    )
    if name != "long":
        assert_close(*hessians, 1e-10, "Hessian")
