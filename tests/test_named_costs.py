"""One table says all that is known of a cost by its name: an entry is all that a new one takes, and
a name that is not there is refused wherever a name is read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import value_and_gradient
from torch import Tensor

from softdtw_kernels import (
    SoftDTWLoss,
    cost_matrix,
    costs,
    s2dtw,
    soft_dtw,
    soft_dtw_alignment,
    soft_dtw_barycenter,
    soft_dtw_divergence,
)
from softdtw_kernels._checks import KINDS, is_distance
from softdtw_kernels._cuda import features as on_cuda
from softdtw_kernels._inputs import Sequences
from softdtw_kernels._operators import compositions, from_features, ops
from softdtw_kernels._problem import FeatureProblem
from softdtw_kernels.costs import KernelCost

OPERATORS = torch.ops.softdtw_kernels


def canberra(x: Tensor, y: Tensor) -> Tensor:
    x, y = x[..., :, None, :], y[..., None, :, :]
    return ((x - y).abs() / (x.abs() + y.abs())).sum(-1)


def halved(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return x * 0.5**0.5, y * 0.5**0.5


def half_squared(x: Tensor, y: Tensor) -> Tensor:
    return 0.5 * (x[..., :, None, :] - y[..., None, :, :]).square().sum(-1)


def logistic(x: Tensor, y: Tensor) -> Tensor:
    return torch.nn.functional.softplus(-(x @ y.mT))


NEW = {
    "canberra": (canberra, canberra, False),
    "half_sqeuclidean": (KernelCost("sqeuclidean", halved), half_squared, True),
    "logistic": (
        KernelCost("negative_dot", finish=torch.nn.functional.softplus), logistic, False,
    ),
}  # fmt: skip


@pytest.fixture(params=NEW)
def new(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(costs.NAMED, request.param, NEW[request.param][0])
    return str(request.param)


LONG = 40, 35  # enough to be fused


def sequences(*batch: int, sides: tuple[int, int] = (6, 5)) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(3)
    return tuple(torch.randn(*batch, k, 3, generator=random, dtype=torch.float64) for k in sides)


@pytest.mark.parametrize("pairwise", [False, True])
@pytest.mark.parametrize("function", [cost_matrix, soft_dtw, s2dtw, soft_dtw_divergence])
def test_an_entry_is_all_that_a_new_cost_takes(
    new: str, function: Callable[..., Tensor], pairwise: bool, backend: str
) -> None:
    """By its name it is the callable of the same formula, derivatives included."""
    arguments = {"pairwise": pairwise, "backend": backend}
    got = value_and_gradient(function, *sequences(2), cost=new, **arguments)
    truth = value_and_gradient(function, *sequences(2), cost=NEW[new][1], **arguments)
    for a, b in zip(got, truth, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_the_rest_of_the_package_takes_a_new_name_too(new: str) -> None:
    x, y = sequences(2)
    loss = SoftDTWLoss(cost=new)
    torch.testing.assert_close(loss(x, y), soft_dtw(x, y, cost=NEW[new][1]).mean())
    assert new in repr(loss)
    assert soft_dtw_alignment(x, y, cost=new).expected.shape == (2, 6, 5)
    assert soft_dtw_barycenter(x, cost=new, max_iter=2).isfinite().all()


def test_second_derivatives_of_a_new_cost(new: str) -> None:
    x, y = (t.requires_grad_() for t in sequences(sides=(4, 3)))
    assert torch.autograd.gradgradcheck(lambda x, y: soft_dtw(x, y, cost=new), (x, y))


def without_matrix(
    x: Tensor, y: Tensor, cost: Any, pairwise: bool = False
) -> FeatureProblem | None:
    """What a call on CUDA has for the kernels that store no cost."""
    batch = (len(x), len(y)) if pairwise else (len(x),)
    given = Sequences("cuda", batch, x, y, None, None, pairwise)
    return given.without_matrix(cost, torch.tensor(1.0, dtype=torch.float64), None)


def test_only_what_kernels_can_compute_is_fused(new: str) -> None:
    x, y = sequences(2, sides=LONG)
    problem = without_matrix(x, y, new)
    assert (problem is not None) == NEW[new][2]
    if problem is not None:
        truth = soft_dtw(x, y, cost=NEW[new][1])
        torch.testing.assert_close(from_features.value(problem), truth)


def test_what_is_fused_today() -> None:
    x, y = sequences(2, sides=LONG)
    fusible = {name for name in costs.NAMED if without_matrix(x, y, name) is not None}
    assert fusible == {"sqeuclidean", "cosine", "shifted_cosine", "negative_dot"}
    assert {costs.NAMED[name].kind for name in fusible} == set(KINDS)
    assert all(without_matrix(x, y, name, pairwise=True) is None for name in costs.NAMED)
    assert without_matrix(x, y, canberra) is None


UNKNOWN = "canberra"


@pytest.mark.parametrize(
    "call",
    [
        lambda x, y, g: soft_dtw(x, y, cost=UNKNOWN),
        lambda x, y, g: cost_matrix(x, y, UNKNOWN),
        lambda x, y, g: SoftDTWLoss(cost=UNKNOWN),
        lambda x, y, g: costs.matrix(x, y, UNKNOWN, False, "numba"),
        lambda x, y, g: costs.matrix(x, y, UNKNOWN, True, "reference"),
        lambda x, y, g: without_matrix(x, y, UNKNOWN),
        lambda x, y, g: Sequences("cuda", (2,), x, y, None, None, False).value(UNKNOWN, g, None),
    ],
)
def test_an_unknown_name_is_refused(call: Callable[..., Any]) -> None:
    gamma = torch.ones(2, dtype=torch.float64)
    with pytest.raises(ValueError, match="^cost must be one of .*sqeuclidean.*got 'canberra'"):
        call(*sequences(2, sides=LONG), gamma)


class Launcher:
    multiprocessors, shared_limit, family = 132, 227 << 10, None


@pytest.mark.parametrize("kind", ["euclidean", "cosine", "manhattan", "", "SQEUCLIDEAN"])
def test_an_unknown_kind_is_refused(kind: str) -> None:
    x, y = sequences(2)
    gamma, ones = torch.ones(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    problem = FeatureProblem(x, y, gamma, None, None, None, kind)
    gradient = ones, True, True, True
    state = torch.empty(0, dtype=torch.uint8)
    calls: list[Callable[[], Any]] = [
        lambda: OPERATORS.fused_value(*problem),
        lambda: OPERATORS.fused_gradient(*problem, *gradient),
        # Of the operators with a state, what CUDA tensors go to: the CPU has neither.
        lambda: ops._of_backend("fused_value_and_state", "cuda")(*problem),
        lambda: ops._of_backend("fused_gradient_from_state", "cuda")(*problem, state, *gradient),
        lambda: compositions.fused_value(problem),
        lambda: compositions.fused_gradient(problem, *gradient),
        lambda: on_cuda.value(Launcher(), problem),
        lambda: on_cuda.gradient(Launcher(), problem, *gradient),
        lambda: is_distance(kind),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=f"^kind must be one of .*got '{kind}'"):
            call()


def test_an_entry_of_an_unknown_kind_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(costs.NAMED, "new", KernelCost("absolute"))
    with pytest.raises(ValueError, match="^kind must be one of .*got 'absolute'"):
        soft_dtw(*sequences(2), cost="new")
