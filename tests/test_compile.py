"""What torch.compile makes of the public functions, and of transforms of torch.func of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_close
from torch import Tensor
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.utils._pytree import tree_leaves

from softdtw_kernels import (
    dilate_loss,
    forward_sum,
    s2dtw,
    s2dtw_from_cost,
    soft_dtw,
    soft_dtw_alignment,
    soft_dtw_alignment_from_cost,
    soft_dtw_divergence,
    soft_dtw_from_cost,
)
from softdtw_kernels._cpu import operators as engine

FUNCTIONS = [soft_dtw, s2dtw, soft_dtw_divergence]
BOTH = [soft_dtw_from_cost, s2dtw_from_cost]


def _data(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_compile_fullgraph_forward_and_backward(function: Callable[..., Tensor]) -> None:
    """One graph, dynamic shapes; aot_eager traces what inductor would, without a C++ compiler."""
    torch._dynamo.reset()

    def loss(x: Tensor, y: Tensor, n: Tensor, gamma: Tensor) -> Tensor:
        return function(x, y, gamma=gamma, x_lengths=n, reduction="mean")

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=True)
    for size in (5, 7):
        x, y = _data(3, size, 2).requires_grad_(), _data(3, size + 1, 2, seed=1).requires_grad_()
        gamma = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
        n = torch.tensor([size, 2, 1])
        got, truth = compiled(x, y, n, gamma), loss(x, y, n, gamma)
        assert_close(got.detach(), truth.detach(), 1e-12, "value")
        pairs = zip(
            torch.autograd.grad(got, (x, y, gamma)),
            torch.autograd.grad(truth, (x, y, gamma)),
            strict=True,
        )
        for a, b in pairs:
            assert_close(a, b, 1e-11, "gradient")


@pytest.mark.parametrize("function", BOTH)
def test_compile_fullgraph_from_cost(function: Callable[..., Tensor]) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lambda c: function(c, gamma=0.2), fullgraph=True, backend="aot_eager")
    cost = _data(3, 4, 5).float().requires_grad_()
    (got,) = torch.autograd.grad(compiled(cost).sum(), cost)
    (truth,) = torch.autograd.grad(function(cost, gamma=0.2).sum(), cost)
    assert torch.equal(got, truth)


WITHOUT_LENGTHS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "divergence": soft_dtw_divergence,
    "divergences of all pairs": lambda x, y: soft_dtw_divergence(x, y, pairwise=True),
    "dilate_loss": lambda x, y: dilate_loss(x, y, gamma=0.3),
    "entropy": lambda x, y: soft_dtw_alignment(x, y).entropy,
}


@pytest.mark.parametrize("name", WITHOUT_LENGTHS)
def test_compile_of_sizes_that_become_equal(name: str) -> None:
    torch._dynamo.reset()
    function = WITHOUT_LENGTHS[name]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows, columns in ((5, 6), (4, 4), (7, 3)):
        x, y = _data(3, rows, 2).requires_grad_(), _data(3, columns, 2, seed=1)
        if rows == columns:
            y[0] = x[0].detach()
        got, truth = compiled(x, y), function(x, y)
        assert_close(got.detach(), truth.detach(), 1e-12, "value")
        gradients = (torch.autograd.grad(v.sum(), x)[0] for v in (got, truth))
        assert_close(*gradients, 1e-11, "gradient")


@pytest.mark.parametrize("of", ["expected", "entropy"])
def test_compile_of_an_alignment_without_gradients(of: str) -> None:
    torch._dynamo.reset()

    def function(cost: Tensor) -> Tensor:
        return getattr(soft_dtw_alignment_from_cost(cost, gamma=0.2), of)

    cost = _data(2, 4, 5)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert_close(compiled(cost), function(cost), 1e-12, of)


@pytest.mark.parametrize("function", [soft_dtw_from_cost, forward_sum])
def test_compile_of_a_gradient_of_functorch(function: Callable[..., Tensor]) -> None:
    torch._dynamo.reset()
    gradient = torch.func.grad(lambda cost: function(cost).sum())
    cost = _data(2, 5, 4)
    assert_close(torch.compile(gradient, backend="eager")(cost), gradient(cost), 1e-12, "gradient")


OF_FEATURES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "soft_dtw": lambda x, y: soft_dtw(x, y, gamma=0.3),
    "euclidean": lambda x, y: soft_dtw(x, y, cost="euclidean", gamma=0.3),
    "open ends": lambda x, y: soft_dtw(x, y, gamma=0.3, open_end="xy", skip_cost=0.4),
    "s2dtw": lambda x, y: s2dtw(x, y, gamma=0.3),
    "divergence": lambda x, y: soft_dtw_divergence(x, y, gamma=0.3),
    "forward_sum": lambda x, y: forward_sum((y @ x.mT).log_softmax(-1)),
}
Transform = Callable[[Callable[[Tensor, Tensor], Tensor]], Callable[[Tensor, Tensor], Any]]
TRANSFORMS: dict[str, Transform] = {
    "vmap": lambda f: vmap(f, in_dims=(0, None), out_dims=-1),
    "gradients of items": lambda f: vmap(grad(f, argnums=(0, 1)), in_dims=(0, None)),
    "jvp": lambda f: lambda x, y: jvp(vmap(f, in_dims=(0, None)), (x, y), (x.cos(), y.cos())),
    "jacfwd": lambda f: jacfwd(lambda x, y: f(x[0], y)),
    "hessian": lambda f: hessian(lambda x, y: f(x[0], y)),
    "twice in reverse": lambda f: jacrev(jacrev(lambda x, y: f(x[0], y))),
}


# Of each one; the other pairs take longer.
QUICK = set(zip(OF_FEATURES, TRANSFORMS, strict=True))
PAIRS = [
    pytest.param(*pair, marks=() if pair in QUICK else pytest.mark.slow)
    for pair in itertools.product(OF_FEATURES, TRANSFORMS)
]


@pytest.mark.parametrize(("name", "transform"), PAIRS)
def test_compile_of_a_transform(name: str, transform: str) -> None:
    torch._dynamo.reset()
    function = TRANSFORMS[transform](OF_FEATURES[name])
    x, y = _data(3, 4, 2), _data(5, 2, seed=1)
    found = torch.compile(function, fullgraph=True, backend="aot_eager")(x, y)
    for a, b in zip(tree_leaves(found), tree_leaves(function(x, y)), strict=True):
        assert_close(a, b, 1e-10, transform)


@pytest.mark.parametrize("name", ["soft_dtw", "s2dtw"])
def test_backward_through_a_compiled_gradient_of_items(name: str) -> None:
    """As of a penalty on gradients."""
    torch._dynamo.reset()
    each = vmap(grad(OF_FEATURES[name]))
    compiled = torch.compile(each, fullgraph=True, backend="aot_eager")
    x, y = _data(3, 4, 2).requires_grad_(), _data(3, 5, 2, seed=1)
    found, truth = (torch.autograd.grad(f(x, y).square().sum(), x)[0] for f in (compiled, each))
    assert_close(found, truth, 1e-10, "second derivative")


def test_vmap_in_compiled_code_is_one_call_of_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    sizes: list[tuple[int, ...]] = []
    for name in ("value", "gradient"):
        kernel = getattr(engine, name)

        def count(problem: Any, *rest: Any, kernel: Any = kernel) -> Any:
            sizes.append(tuple(problem.cost.shape))
            return kernel(problem, *rest)

        monkeypatch.setattr(engine, name, count)
    gammas, lengths = torch.rand(7, dtype=torch.float64) + 0.1, torch.tensor([1, 4, 2, 3, 4, 4, 1])

    def call(cost: Tensor, gamma: Tensor, lengths: Tensor) -> Tensor:
        return soft_dtw_from_cost(cost, gamma=gamma, x_lengths=lengths)

    def each(cost: Tensor) -> Any:
        return vmap(grad(call, argnums=(0, 1)))(cost, gammas, lengths), vmap(call)(
            cost, gammas, lengths
        )

    compiled = torch.compile(each, fullgraph=True, backend="aot_eager")
    cost = _data(7, 4, 5)
    compiled(cost)
    sizes.clear()
    found = compiled(cost)
    assert 2 <= len(sizes) <= 3
    assert set(sizes) == {(7, 4, 5)}
    for a, b in zip(tree_leaves(found), tree_leaves(each(cost)), strict=True):
        assert_close(a, b, 1e-12, "each")
