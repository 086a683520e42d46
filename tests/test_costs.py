"""Cost matrices: their formulas, and accuracy where x^2 + y^2 - 2xy has none."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import oracles
import pytest
import torch
from helpers import assert_close, value_and_gradient
from hypothesis import given
from hypothesis import strategies as st
from strategies import features
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from softdtw_kernels import cost_matrix, soft_dtw, soft_dtw_from_cost

DIFFERENCES = ("sqeuclidean", "euclidean", "manhattan")
NAMES = (*DIFFERENCES, "cosine", "shifted_cosine", "negative_dot")


@pytest.mark.parametrize("name", NAMES)
@given(sequences=features())
def test_cost_is_its_formula(sequences: tuple[Tensor, Tensor], name: str) -> None:
    x, y = sequences
    cost = cost_matrix(x, y, cost=name)
    assert cost.shape == (*x.shape[:-1], y.shape[-2])
    for index in np.ndindex(*x.shape[:-2]):
        truth = oracles.pairwise_cost(x[index].numpy(), y[index].numpy(), name)
        assert_close(cost[index], truth, 1e-13 * max(1.0, np.abs(truth).max()), name)


def test_the_default_is_the_squared_euclidean_distance_without_a_half() -> None:
    x, y = torch.tensor([[0.0]]), torch.tensor([[2.0]])
    assert cost_matrix(x, y).item() == 4.0
    assert soft_dtw(x, y).item() == 4.0


@pytest.mark.parametrize("name", DIFFERENCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("offset", [0.0, 100.0, 1e4])
@pytest.mark.parametrize("dimensions", [1, 3, 4, 17, 64, 200])
def test_differences_keep_their_accuracy(
    name: str, dtype: torch.dtype, offset: float, dimensions: int
) -> None:
    """Relative to each distance, not to the norms: y within 1e-3 of x, far from the origin."""
    random = np.random.default_rng(dimensions)
    x = torch.from_numpy(offset + random.normal(size=(37, dimensions))).to(dtype)
    y = (x[:29].double() + 1e-3 * torch.from_numpy(random.normal(size=(29, dimensions)))).to(dtype)
    cost, by_x, by_y = value_and_gradient(lambda x, y: cost_matrix(x, y, cost=name), x, y)
    truth = oracles.pairwise_cost(x.numpy(), y.numpy(), name)
    assert_close(cost, truth, 0.0, "cost", rtol=4 * torch.finfo(dtype).eps * dimensions)
    pulls = oracles.pairwise_cost_vjp(x.numpy(), y.numpy(), np.ones((37, 29)), name)
    for got, pull, letter in zip((by_x, by_y), pulls, "xy", strict=True):
        if dtype == torch.float64:
            assert_close(got, pull, 1e-9, f"gradient by {letter}")
        else:
            scale = max(1.0, np.abs(pull).max())
            assert_close(got / scale, pull / scale, 5e-6, f"gradient by {letter}")


@pytest.mark.parametrize("name", DIFFERENCES)
def test_equal_frames_have_distance_and_gradient_zero(name: str) -> None:
    x = torch.randn(6, 3, dtype=torch.float64) + 100
    cost, by_x, by_y = value_and_gradient(
        lambda x, y: cost_matrix(x, y, cost=name).diagonal(), x, x
    )
    assert (cost == 0).all()
    assert (by_x == 0).all()
    assert (by_y == 0).all()


@pytest.mark.parametrize("name", NAMES)
@given(sequences=features(largest=4))
def test_broadcasting_and_strides_do_not_matter(
    sequences: tuple[Tensor, Tensor], name: str
) -> None:
    x, y = (s.reshape(-1, *s.shape[-2:]) for s in sequences)
    truth = torch.stack([torch.stack([cost_matrix(a, b, cost=name) for b in y]) for a in x])
    left, right = x[:, None], y[None]
    assert_close(
        cost_matrix(left, right, cost=name), truth, 1e-12 * max(1.0, truth.abs().max()), name
    )
    turned = left.mT.contiguous().mT, right.flip(-1).flip(-1)
    assert_close(cost_matrix(*turned, cost=name), truth, 1e-12 * max(1.0, truth.abs().max()), name)


@pytest.mark.parametrize("pairwise", [False, True])
def test_a_callable_cost_sees_broadcastable_sequences(pairwise: bool, backend: str) -> None:
    def absolute(x: Tensor, y: Tensor) -> Tensor:
        assert x.dim() >= 2
        assert y.dim() >= 2
        return (x.unsqueeze(-2) - y.unsqueeze(-3)).abs().sum(-1)

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 5, 2, generator=generator, dtype=torch.float64)
    y = torch.randn(4 if pairwise else 3, 6, 2, generator=generator, dtype=torch.float64)
    value, by_x, by_y = value_and_gradient(
        soft_dtw, x, y, cost=absolute, pairwise=pairwise, backend=backend
    )
    left, right = (x[:, None], y[None]) if pairwise else (x, y)
    truth = value_and_gradient(
        lambda x, y: soft_dtw_from_cost(absolute(x, y), backend=backend), left, right
    )
    assert value.shape == ((3, 4) if pairwise else (3,))
    assert torch.equal(value, truth[0])
    assert_close(by_x, truth[1].reshape(x.shape), 1e-12, "gradient by x")
    assert_close(by_y, truth[2].reshape(y.shape), 1e-12, "gradient by y")


@pytest.mark.parametrize("name", NAMES)
@given(sequences=features(largest=4), rows=st.integers(1, 3))
def test_pairwise_is_every_pair_and_sums_its_gradients(
    sequences: tuple[Tensor, Tensor], rows: int, name: str
) -> None:
    x, y = (s.reshape(-1, *s.shape[-2:]) for s in sequences)
    x = torch.cat([x + k for k in range(rows)])
    value, by_x, by_y = value_and_gradient(soft_dtw, x, y, cost=name, pairwise=True)
    truth = value_and_gradient(
        lambda x, y: torch.stack([torch.stack([soft_dtw(a, b, cost=name) for b in y]) for a in x]),
        x,
        y,
    )
    scale = max(1.0, *(t.abs().max().item() for t in truth))
    for got, expected, what in zip(
        (value, by_x, by_y), truth, ("value", "by x", "by y"), strict=True
    ):
        assert_close(got, expected, 1e-11 * scale, what)


@pytest.mark.parametrize("cost", [*NAMES, lambda x, y: 1.0 - x @ y.mT], ids=[*NAMES, "callable"])
@pytest.mark.parametrize("call", [cost_matrix, soft_dtw])
def test_autocast_is_ignored(
    cost: str | Callable[[Tensor, Tensor], Tensor], call: Callable[..., Tensor]
) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 2, 9, 16, generator=generator)
    truth = call(x, y, cost=cost)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(call(x, y, cost=cost), truth)


@pytest.mark.parametrize("pairwise", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_autocast_is_ignored_in_derivatives(name: str, pairwise: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y, direction = torch.randn(3, 2, 9, 16, generator=generator)

    def call(x: Tensor) -> Tensor:
        return soft_dtw(x, y, cost=name, pairwise=pairwise)

    def derivatives() -> list[Tensor]:
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(call(leaf).sum(), leaf, create_graph=True)
        (second,) = torch.autograd.grad((gradient * direction).sum(), leaf)
        return [gradient, second, torch.func.jvp(call, (x,), (direction,))[1]]

    truth = derivatives()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = derivatives()
    for a, b, what in zip(got, truth, ("first", "second", "forward"), strict=True):
        assert torch.equal(a, b), what


def test_derivatives_of_manhattan_in_every_mode() -> None:
    """Of any order: the second one, of a value that is not linear in the costs."""
    x, y = (draw.requires_grad_() for draw in torch.randn(2, 4, 3, dtype=torch.float64))

    def call(x: Tensor, y: Tensor) -> Tensor:
        return soft_dtw(x, y, cost="manhattan")

    assert torch.autograd.gradcheck(call, (x, y), check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(call, (x, y), check_fwd_over_rev=True)
    given = x.detach(), y.detach()
    second = torch.func.hessian(call)(*given)
    assert_close(torch.func.jacfwd(torch.func.jacfwd(call))(*given), second, 1e-12, "jacfwd twice")
    many = torch.stack([given[0], given[0] + 1])
    by_vmap = torch.func.vmap(cost_matrix, in_dims=(0, None, None))(many, given[1], "manhattan")
    assert torch.equal(by_vmap, cost_matrix(many, given[1], "manhattan"))
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: call(x, given[1]), backend="aot_eager", fullgraph=True)
    (truth,) = torch.autograd.grad(call(x, given[1]), x)
    assert_close(torch.autograd.grad(compiled(x), x)[0], truth, 1e-14, "compiled")


def test_manhattan_holds_no_tensor_of_all_differences() -> None:
    x, y = (torch.rand(60, 50, requires_grad=True) for _ in "xy")
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            nonlocal largest
            sizes = [t.numel() for t in tree_leaves(result) if isinstance(t, Tensor)]
            largest = max([largest, *sizes])
            return result

    with Watch():
        cost_matrix(x, y, "manhattan").sum().backward()
    assert largest == 60 * 60
