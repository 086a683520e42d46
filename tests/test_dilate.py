"""DILATE: its definition as published, derivatives, lengths and bands."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import assert_close, value_and_gradient
from test_barycenter import _walks as walks
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from softdtw_kernels import DILATELoss, dilate_loss, soft_dtw, soft_dtw_from_cost
from softdtw_kernels._cpu import directional


def published(x: Tensor, y: Tensor, alpha: float, gamma: float) -> Tensor:
    """Le Guen and Thome 2019, Eq. (2) to (5): loops over the cells, the alignment as the derivative
    of the value in the costs, which autograd can take.
    """
    n, m = len(x), len(y)
    cost = (x[:, None] - y[None]).square().sum(-1)
    total: dict[tuple[int, int], Tensor] = {}
    for i in range(n):
        for j in range(m):
            before = [total[k] for k in ((i - 1, j - 1), (i - 1, j), (i, j - 1)) if k in total]
            low = -gamma * torch.logsumexp(-torch.stack(before) / gamma, 0) if before else 0.0
            total[i, j] = cost[i, j] + low
    value = total[n - 1, m - 1]
    (path,) = torch.autograd.grad(value, cost, create_graph=True)
    omega = torch.tensor([[(i - j) ** 2 for j in range(m)] for i in range(n)]).to(x) / (n * m)
    return alpha * value + (1 - alpha) * (path * omega).sum()


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("gamma", [0.01, 1.0])
def test_values_and_gradients_are_those_of_the_paper(
    alpha: float, gamma: float, backend: str
) -> None:
    x, y = walks(3, 5), walks(3, 5, seed=1)
    n, m = [5, 4, 2], [5, 3, 5]
    lengths = {"input_lengths": n, "target_lengths": m, "backend": backend}
    padded_x, padded_y = x.clone(), y.clone()
    for k in range(3):
        padded_x[k, n[k] :] = padded_y[k, m[k] :] = math.nan
    found = value_and_gradient(dilate_loss, padded_x, padded_y, alpha=alpha, gamma=gamma, **lengths)
    for k in range(3):
        own = x[k, : n[k]], y[k, : m[k]]
        truth = value_and_gradient(lambda a, b: published(a, b, alpha, gamma), *own)
        assert_close(found[0][k], truth[0], 1e-10, "value")
        assert_close(found[1][k, : n[k]], truth[1], 1e-9, "gradient of the forecast")
        assert_close(found[2][k, : m[k]], truth[2], 1e-9, "gradient of the target")
        assert not found[1][k, n[k] :].any() and not found[2][k, m[k] :].any()


def test_gradients_by_all_that_has_one(backend: str) -> None:
    gamma = torch.tensor([0.3, 1.0], dtype=torch.float64, requires_grad=True)
    x, y = (0.5 * walks(2, 4, seed=s) for s in (0, 1))

    def call(x: Tensor, y: Tensor, gamma: Tensor) -> Tensor:
        return dilate_loss(x, y, gamma=gamma, alpha=0.4, bandwidth=2, backend=backend)

    assert torch.autograd.gradcheck(call, (x.requires_grad_(), y.requires_grad_(), gamma))


def test_the_temporal_term_sees_shifts_and_the_other_does_not() -> None:
    t = torch.arange(40.0, dtype=torch.float64)
    pulse, late = ((t > k).double()[:, None] for k in (15, 22))
    own, moved = (dilate_loss(z, pulse, alpha=0.0, gamma=1e-3) for z in (pulse, late))
    assert own < 0.4 * moved
    assert_close(dilate_loss(late, pulse, alpha=1.0, gamma=1e-3), 0.0, 0.2, "shape")


def test_a_band_bounds_the_temporal_term(backend: str) -> None:
    x, y = walks(2, 8), walks(2, 8, seed=1)
    loss = dilate_loss(x, y, alpha=0.0, bandwidth=0, backend=backend)
    assert_close(loss, 0.0, 0.0, "only the diagonal is allowed")
    shape = dilate_loss(x, y, alpha=1.0, bandwidth=2, backend=backend)
    assert torch.equal(shape, soft_dtw(x, y, gamma=0.01, bandwidth=2, backend=backend))


def test_float32_half_batches_and_the_module(backend: str) -> None:
    x, y = walks(3, 9), walks(3, 7, seed=1)
    truth = dilate_loss(x, y, backend=backend)
    narrow = dilate_loss(x.float(), y.float(), backend=backend)
    assert narrow.dtype == torch.float32
    assert_close(narrow, truth, 1e-5, "float32", rtol=1e-5)
    assert dilate_loss(x.half(), y.half(), backend=backend).dtype == torch.float32
    loss = DILATELoss(backend=backend)
    assert_close(loss(x, y), truth.mean(), 1e-13, "mean")
    assert dilate_loss(x[0], y, backend=backend).shape == (3,)
    assert repr(DILATELoss(0.8, torch.tensor(0.1))) == (
        "DILATELoss(alpha=0.8, gamma=tensor(0.1000), cost='sqeuclidean', bandwidth=None, "
        "reduction='mean')"
    )
    assert "gamma" in DILATELoss(gamma=torch.tensor(0.1)).state_dict()


def test_where_no_path_is_allowed_the_loss_is_infinite() -> None:
    x, y = walks(2, 3), walks(2, 3, seed=1)
    walls = torch.zeros(2, 3, 3, dtype=torch.float64)
    walls[0, 1] = math.inf
    for alpha in (0.0, 0.5, 1.0):
        loss = dilate_loss(x, y, alpha=alpha, cost=lambda a, b: walls)
        assert loss.isinf().tolist() == [True, False]


def test_it_compiles() -> None:
    x, y = walks(2, 6).requires_grad_(), walks(2, 6, seed=1)
    torch._dynamo.reset()
    compiled = torch.compile(lambda z: dilate_loss(z, y).sum(), backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert_close(compiled(x), dilate_loss(x, y).sum(), 1e-12, "value")


def squares_of(x: Tensor, y: Tensor) -> Tensor:
    """A cost that is no named one: through a matrix."""
    return (x[..., :, None, :] - y[..., None, :, :]).square().sum(-1)


class Nothing(TorchDispatchMode):
    """A mode in which no call is plain."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gamma", [1e-30, 0.01, 100.0])
@pytest.mark.parametrize("alpha", [0.0, 0.7])
def test_all_ways_give_the_same(
    gamma: float, alpha: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From features, a block of pairs at a time; through a matrix, contiguous or not; by operators,
    where torch has a mode; without a gradient; and in plain torch.
    """
    monkeypatch.setattr(directional, "BLOCK", 1000)
    x, y = (walks(5, n, seed=s).to(dtype) for s, n in ((0, 9), (1, 7)))
    settings = {"alpha": alpha, "gamma": gamma, "bandwidth": 4}
    settings |= {"input_lengths": [9, 5, 1, 9, 8], "target_lengths": [7, 7, 2, 1, 6]}
    wide = value_and_gradient(dilate_loss, x.double(), y.double(), backend="reference", **settings)
    found = {
        "features": value_and_gradient(dilate_loss, x, y, **settings),
        "matrix": value_and_gradient(dilate_loss, x, y, cost=squares_of, **settings),
        "strided": value_and_gradient(
            dilate_loss, x, y, cost=lambda a, b: squares_of(b, a).mT, **settings
        ),
    }
    with Nothing():
        found["operators"] = value_and_gradient(dilate_loss, x, y, **settings)
    value, gradient = (1e-12, 1e-9) if dtype == torch.float64 else (1e-6, 5e-5)
    for way, results in found.items():
        assert_close(results[0], wide[0], 1e-12, f"value, {way}", rtol=value)
        for got, truth in zip(results[1:], wide[1:], strict=True):
            assert_close(got, truth, gradient * float(truth.abs().max()), f"gradient, {way}")
    assert torch.equal(dilate_loss(x, y, **settings), found["features"][0])
    for k in range(5):  # bits do not depend on the batch
        own = {name: value[k : k + 1] for name, value in settings.items() if "lengths" in name}
        alone = value_and_gradient(dilate_loss, x[k : k + 1], y[k : k + 1], **settings | own)
        for got, of_batch in zip(alone, found["features"], strict=True):
            assert torch.equal(got[0], of_batch[k])


def test_one_sequence_for_all_and_what_needs_no_gradient() -> None:
    x, y = walks(3, 6), walks(1, 5)[0]
    own = [value_and_gradient(dilate_loss, a, y, gamma=0.1) for a in x]
    losses, by_x, by_y = value_and_gradient(dilate_loss, x, y, gamma=0.1)
    assert_close(losses, torch.stack([value for value, _, _ in own]), 1e-12, "values")
    assert_close(by_x, torch.stack([grad for _, grad, _ in own]), 1e-12, "gradients of the batch")
    assert_close(by_y, sum(grad for *_, grad in own), 1e-12, "gradient of what all share")
    leaf = y.clone().requires_grad_()
    (alone,) = torch.autograd.grad(dilate_loss(x, leaf, gamma=0.1).sum(), leaf)
    assert torch.equal(alone, by_y)
    assert dilate_loss(x[:0], y, gamma=0.1).shape == (0,)


def test_what_one_sweep_cannot_certify() -> None:
    """A value next to 0, costs of 10^9 gamma, no path, and NaN, beside an ordinary pair."""
    x, y = walks(5, 8), walks(5, 8, seed=1)
    cost = squares_of(x, y)
    for _ in "12":  # then the value is next to 0
        cost[0, -1, -1] -= soft_dtw_from_cost(cost[0], gamma=1.0)
    cost[1] *= 1e9
    cost[2, 3] = math.inf
    cost[3, 2, 2] = math.nan
    truth = value_and_gradient(lambda c: dilate_of(c, backend="reference"), cost)
    found = value_and_gradient(dilate_of, cost)
    for k in (0, 1, 4):
        assert_close(found[0][k], truth[0][k], 1e-13, f"value {k}", rtol=1e-12)
        assert_close(found[1][k], truth[1][k], 1e-9, f"gradient {k}")
    assert found[0][2] == math.inf and not found[1][2].any()
    assert found[0][3].isnan()


def dilate_of(cost: Tensor, **settings: str) -> Tensor:
    x = torch.zeros(*cost.shape[:-1], 1, dtype=cost.dtype)
    return dilate_loss(x, x, alpha=0.5, gamma=1.0, cost=lambda a, b: cost, **settings)


def test_a_gradient_that_is_not_finite_stays_within_the_lengths() -> None:
    x, y = walks(2, 6).requires_grad_(), walks(2, 6, seed=1)
    for cost in ("sqeuclidean", squares_of):
        loss = dilate_loss(x, y, cost=cost, gamma=0.1, input_lengths=[6, 4], target_lengths=[6, 3])
        (grad,) = torch.autograd.grad(loss, x, torch.tensor([1.0, math.inf], dtype=x.dtype))
        assert grad[0].isfinite().all() and not grad[1, :4].isfinite().all()


@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean", "cosine"])
def test_a_second_derivative_is_an_error_and_not_0(cost: str) -> None:
    x, y = torch.rand(2, 5, 2, dtype=torch.float64)

    def loss(x: Tensor, backend: str | None = None) -> Tensor:
        return dilate_loss(x, y, gamma=0.5, cost=cost, backend=backend)

    with pytest.raises(RuntimeError, match="no second derivative.*backend='reference'"):
        torch.autograd.functional.hessian(loss, x)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        (gradient.sum() + x.sum()).backward()
    torch.testing.assert_close(gradient, torch.autograd.grad(loss(x), x)[0])
    of_reference = torch.autograd.functional.hessian(lambda x: loss(x, "reference"), x)
    assert of_reference.abs().max() > 0.01
    (gradient,) = torch.autograd.grad(loss(x) ** 2, x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.sum().backward()
    # Along a direction, beside what has second derivatives.
    both = torch.autograd.functional.jvp(
        lambda x: loss(x) + x.sum() ** 2, x, torch.ones_like(x), create_graph=True
    )
    with pytest.raises(RuntimeError, match="no second derivative"):
        both[1].backward()


@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean"])
@pytest.mark.parametrize("lengths", [None, [5, 3]])
def test_the_gradient_is_linear_in_that_of_the_loss(cost: str, lengths: list[int] | None) -> None:
    """A learned weight of the loss, and the derivative along a direction by two backward passes."""
    generator = torch.Generator().manual_seed(0)
    x, y, along = torch.rand(3, 2, 5, 2, dtype=torch.float64, generator=generator)

    def loss(x: Tensor, backend: str | None = None) -> Tensor:
        settings = {"gamma": 0.5, "cost": cost, "input_lengths": lengths, "backend": backend}
        return dilate_loss(x, y, **settings).sum()

    results = []
    for backend in (None, "reference"):
        weight = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(weight * loss(leaf, backend), leaf, create_graph=True)
        (by_weight,) = torch.autograd.grad((gradient * along).sum(), weight)
        _, along_x = torch.autograd.functional.jvp(lambda x, b=backend: loss(x, b), x, along)
        results.append((by_weight, along_x))
    torch.testing.assert_close(*results)
    assert all(result.abs() > 1e-3 for result in results[1])


def test_bad_arguments() -> None:
    x = walks(2, 4)
    zero = torch.tensor([1.0, 0.0])
    for error, message, call in (
        (ValueError, "alpha must lie in 0..1, got 1.5", lambda: dilate_loss(x, x, alpha=1.5)),
        (TypeError, "alpha must be a number", lambda: dilate_loss(x, x, alpha=torch.tensor(0.5))),
        (TypeError, "alpha must be a number, got str", lambda: dilate_loss(x, x, alpha="x")),
        (ValueError, "gamma must be greater than 0", lambda: dilate_loss(x, x, gamma=0)),
        (ValueError, "gamma must be greater than 0", lambda: dilate_loss(x, x, gamma=zero)),
        (ValueError, "gamma must be greater than 0", lambda: DILATELoss(gamma=0.0)),
        (ValueError, "alpha must lie", lambda: DILATELoss(alpha=-1)),
        (ValueError, "reduction must be", lambda: DILATELoss(reduction="average")),
        (ValueError, "cost must be one of", lambda: DILATELoss(cost="l1")),
        (TypeError, "input must be a torch.Tensor", lambda: dilate_loss([1.0], x)),
        (ValueError, "target_lengths must be integers of shape",
         lambda: dilate_loss(x, x, target_lengths=[1, 2, 3])),
        (ValueError, r"^input_lengths must lie in 1..4, .*got 9",
         lambda: dilate_loss(x, x, input_lengths=[9, 1])),
        (ValueError, r"^target_lengths must lie in 1..4, .*got 0",
         lambda: DILATELoss(1.0, backend="reference")(x, x, target_lengths=[4, 0])),
        (ValueError, r"^target_lengths must lie in 1..4, .*got 5",
         lambda: DILATELoss(cost="cosine")(x, x, target_lengths=[5, 1])),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            call()
