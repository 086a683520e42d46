"""Soft-DTW from features as one Function: the laws that its derivatives obey, on the CPU. What the
kernels compute: test_cpu_features and test_cuda_features.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.library import opcheck

from softdtw_kernels import soft_dtw
from softdtw_kernels._checks import KINDS
from softdtw_kernels._inputs import Sequences
from softdtw_kernels._operators import from_features, ops
from softdtw_kernels._problem import FeatureProblem


@pytest.fixture(autouse=True)
def of_any_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(from_features, "LEAST_LENGTH", 1)


COSTS = ("sqeuclidean", "negative_dot", "cosine", "shifted_cosine")


def features(batch: tuple[int, ...], n: int, m: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    x, y = (
        torch.randn(*batch, k, 3, dtype=torch.float64, generator=random).requires_grad_()
        for k in (n, m)
    )
    return x, y


def value_of(
    cost: str, batch: tuple[int, ...] = (), bandwidth: int | None = None
) -> Callable[..., torch.Tensor]:
    lengths = torch.full(batch, 4), torch.full(batch, 3)

    def value(x: torch.Tensor, y: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
        given = Sequences("cuda", batch, x, y, *(lengths if batch else (None, None)), False)
        return from_features.value(given.without_matrix(cost, gamma, bandwidth))

    return value


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("bandwidth", [None, 1])
def test_first_and_second_derivatives(cost: str, bandwidth: int | None) -> None:
    x, y = features((2,), 5, 4)
    gamma = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    value = value_of(cost, (2,), bandwidth)
    assert torch.autograd.gradcheck(value, (x, y, gamma), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(value, (x, y, gamma))


@pytest.mark.parametrize("cost", COSTS)
def test_it_is_soft_dtw(cost: str) -> None:
    x, y = features((2,), 7, 6)
    gamma = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    truth = soft_dtw(x, y, gamma=gamma, cost=cost)
    given = Sequences("cuda", (2,), x, y, None, None, False)
    value = from_features.value(given.without_matrix(cost, gamma, None))
    torch.testing.assert_close(value, truth)
    wanted = torch.autograd.grad(truth.sum(), (x, y, gamma))
    for inputs in ((x, y, gamma), (x,), (y,), (gamma,)):  # those that need none get none
        got = torch.autograd.grad(value.sum(), inputs, retain_graph=True)
        names = {id(t): w for t, w in zip((x, y, gamma), wanted, strict=True)}
        for tensor, gradient in zip(inputs, got, strict=True):
            torch.testing.assert_close(gradient, names[id(tensor)])


def test_leading_dimensions_broadcast() -> None:
    x, _ = features((3, 1), 6, 5)
    _, y = features((2,), 6, 5)
    given = Sequences("cuda", (3, 2), x, y, None, None, False)
    gamma = torch.ones((), dtype=torch.float64)
    value = from_features.value(given.without_matrix("sqeuclidean", gamma, None))
    truth = soft_dtw(x, y)
    torch.testing.assert_close(value, truth)
    got, wanted = (torch.autograd.grad(v.sum(), (x, y)) for v in (value, truth))
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("cost", ["sqeuclidean", "shifted_cosine"])
def test_transforms(cost: str) -> None:
    x, y = (t.detach() for t in features((2,), 5, 4))
    one = value_of(cost)
    gamma = torch.tensor(0.5, dtype=torch.float64)

    def truth(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return soft_dtw(x, y, gamma=0.5, cost=cost)

    def value(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return one(x, y, gamma)

    func = torch.func
    torch.testing.assert_close(func.vmap(value)(x, y), truth(x, y))
    torch.testing.assert_close(func.vmap(func.grad(value))(x, y), func.vmap(func.grad(truth))(x, y))
    torch.testing.assert_close(func.hessian(value)(x[0], y[0]), func.hessian(truth)(x[0], y[0]))
    tangents = (x[1], y[1])
    torch.testing.assert_close(
        func.jvp(value, (x[0], y[0]), tangents), func.jvp(truth, (x[0], y[0]), tangents)
    )


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("lengths", [None, [4, 5]])
def test_a_gradient_that_is_0_has_derivatives_in_forward_mode(
    cost: str, lengths: list[int] | None
) -> None:
    """Of a feature that is the same everywhere, say: only padding counts for nothing."""
    x, y = (t.detach() for t in features((2,), 5, 4))
    x[..., 1] = y[..., 1] = 1.0
    padded = torch.zeros(2, 5, dtype=torch.bool)
    if lengths is not None:
        padded = torch.arange(5) >= torch.tensor(lengths)[:, None]

    def value(x: torch.Tensor) -> torch.Tensor:
        of_x = None if lengths is None else torch.tensor(lengths)
        given = Sequences("cuda", (2,), x, y, of_x, None, False)
        return from_features.value(given.without_matrix(cost, torch.tensor(0.5), None)).sum()

    func = torch.func
    truth = func.jacfwd(func.jacrev(value))(x)
    assert truth[..., 1, :, :, 1].abs().max() > 0.1
    for other in (func.jacfwd(func.jacfwd(value)), func.jacrev(func.jacfwd(value))):
        torch.testing.assert_close(other(x), truth)
    tangent = torch.ones_like(x).masked_fill(padded[..., None], torch.nan)
    _, along = func.jvp(value, (x,), (tangent,))
    assert along.isfinite()


def test_compile() -> None:
    x, y = features((2,), 5, 4)

    gamma, ones = torch.full((2,), 0.5, dtype=torch.float64), torch.ones(2, dtype=torch.float64)

    # Nothing but our operators: inductor then has no C++ to write, whose compilation is slow.
    def value(x: torch.Tensor, y: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
        problem = FeatureProblem(x, y, gamma, None, None, None, "sqeuclidean")
        return from_features.value(problem)

    compiled = torch.compile(value, fullgraph=True)
    got, wanted = (torch.autograd.grad(f(x, y, gamma), (x, y), ones) for f in (compiled, value))
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_operators(kind: str) -> None:
    x, y = (t.detach() for t in features((2,), 5, 4))
    gamma, ones = torch.full((2,), 0.5, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    problem = x, y, gamma, torch.tensor([5, 3]), None, 2, kind
    opcheck(torch.ops.softdtw_kernels.fused_value.default, problem)
    for wanted in ((True, True, True), (True, False, False)):
        opcheck(torch.ops.softdtw_kernels.fused_gradient.default, (*problem, ones, *wanted))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "euclidean"}, "kind must be one of"),
        ({"y": torch.zeros(3, 4, 3, dtype=torch.float64)}, "equal leading dimensions"),
        ({"y": torch.zeros(2, 4, 3)}, "float32 or float64"),
        ({"gamma": torch.ones(3, dtype=torch.float64)}, "expanded to the leading dimensions"),
    ],
)
def test_the_operators_refuse_other_shapes(change: dict[str, object], message: str) -> None:
    x, y = (t.detach() for t in features((2,), 5, 4))
    gamma = torch.ones(2, dtype=torch.float64)
    problem = {"x": x, "y": y, "gamma": gamma, "x_lengths": None, "y_lengths": None}
    problem |= {"bandwidth": None, "kind": "sqeuclidean", **change}
    with pytest.raises((TypeError, ValueError), match=message):
        ops.fused_value(*problem.values())
