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
from softdtw_kernels._cuda import features as _cuda_features
from softdtw_kernels._operators import compositions as features
from softdtw_kernels._operators import from_features as fused
from softdtw_kernels.costs import KernelCost

OPERATORS = torch.ops.softdtw_kernels


def manhattan(x: Tensor, y: Tensor) -> Tensor:
    return (x[..., :, None, :] - y[..., None, :, :]).abs().sum(-1)


def halved(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return x * 0.5**0.5, y * 0.5**0.5


def half_squared(x: Tensor, y: Tensor) -> Tensor:
    return 0.5 * (x[..., :, None, :] - y[..., None, :, :]).square().sum(-1)


def logistic(x: Tensor, y: Tensor) -> Tensor:
    return torch.nn.functional.softplus(-(x @ y.mT))


NEW = {
    "manhattan": (manhattan, manhattan, False),
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
    return tuple(torch.randn(*batch, k, 3, generator=random, dtype=torch.float64) for k in sides)  # type: ignore[return-value]


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


def test_only_what_kernels_can_compute_is_fused(new: str) -> None:
    x, y = sequences(2, sides=LONG)
    assert fused.applies("cuda", x, y, new, False) == NEW[new][2]
    gamma = torch.ones(2, dtype=torch.float64)
    call = x, y, gamma, None, None, None, new
    if NEW[new][2]:
        torch.testing.assert_close(fused.value(*call), soft_dtw(x, y, cost=NEW[new][1]))
    else:
        with pytest.raises(ValueError, match=f"the cost '{new}' needs its matrix"):
            fused.value(*call)


def test_what_is_fused_today() -> None:
    x, y = sequences(2, sides=LONG)
    fusible = {name for name in costs.NAMED if fused.applies("cuda", x, y, name, False)}
    assert fusible == {"sqeuclidean", "cosine", "shifted_cosine", "negative_dot"}
    assert {costs.NAMED[name].kind for name in fusible} == set(KINDS)
    assert not any(fused.applies("cuda", x, y, name, True) for name in costs.NAMED)
    assert not fused.applies("cuda", x, y, manhattan, False)


UNKNOWN = "manhattan"


@pytest.mark.parametrize(
    "call",
    [
        lambda x, y, g: soft_dtw(x, y, cost=UNKNOWN),
        lambda x, y, g: cost_matrix(x, y, UNKNOWN),
        lambda x, y, g: SoftDTWLoss(cost=UNKNOWN),
        lambda x, y, g: costs.from_features(x, y, UNKNOWN, False, "numba"),
        lambda x, y, g: costs.from_features(x, y, UNKNOWN, True, "reference"),
        lambda x, y, g: fused.applies("cuda", x, y, UNKNOWN, False),
        lambda x, y, g: fused.value(x, y, g, None, None, None, UNKNOWN),
    ],
)
def test_an_unknown_name_is_refused(call: Callable[..., Any]) -> None:
    gamma = torch.ones(2, dtype=torch.float64)
    with pytest.raises(ValueError, match="^cost must be one of .*sqeuclidean.*got 'manhattan'"):
        call(*sequences(2), gamma)


class Launcher:
    multiprocessors, shared_limit, family = 132, 227 << 10, None


@pytest.mark.parametrize("kind", ["euclidean", "cosine", "manhattan", "", "SQEUCLIDEAN"])
def test_an_unknown_kind_is_refused(kind: str) -> None:
    x, y = sequences(2)
    gamma, ones = torch.ones(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    problem = x, y, gamma, None, None, None, kind
    gradient = ones, True, True, True
    state = torch.empty(0, dtype=torch.uint8)
    on_cuda = _cuda_features.Problem(*problem)
    calls: list[Callable[[], Any]] = [
        lambda: OPERATORS.fused_value(*problem),
        lambda: OPERATORS.fused_gradient(*problem, *gradient),
        lambda: OPERATORS.fused_value_and_state(*problem),
        lambda: OPERATORS.fused_gradient_from_state(*problem, state, *gradient),
        lambda: features.fused_value(*problem),
        lambda: features.fused_gradient(*problem, *gradient),
        lambda: _cuda_features.value(Launcher(), on_cuda),
        lambda: _cuda_features.gradient(Launcher(), on_cuda, *gradient),
        lambda: is_distance(kind),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=f"^kind must be one of .*got '{kind}'"):
            call()


def test_an_entry_of_an_unknown_kind_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(costs.NAMED, "new", KernelCost("absolute"))
    with pytest.raises(ValueError, match="^kind must be one of .*got 'absolute'"):
        soft_dtw(*sequences(2), cost="new")
