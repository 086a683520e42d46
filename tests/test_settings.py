"""gamma and dummy_cost as tensors: one value an item is a loop over the items."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_close, examples
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeds
from torch import Tensor, nn
from torch.func import hessian, jvp, vmap

from softdtw_kernels import (
    S2DTWLoss,
    SoftDTWLoss,
    s2dtw,
    s2dtw_alignment,
    s2dtw_from_cost,
    soft_dtw,
    soft_dtw_alignment,
    soft_dtw_barycenter,
    soft_dtw_divergence,
    soft_dtw_from_cost,
)

OF_FEATURES = [soft_dtw, s2dtw, soft_dtw_divergence]
SHAPES = [(), (1,), (3,), (2, 1), (1, 3), (2, 3)]


def _data(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _setting(*shape: int, seed: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.2 + 2 * torch.rand(shape, generator=generator, dtype=torch.float64)


def _settings(function: Callable[..., Tensor], shape: tuple[int, ...]) -> dict[str, Tensor]:
    found = {"gamma": _setting(*shape)}
    if function in (s2dtw, s2dtw_from_cost):
        found["dummy_cost"] = _setting(*shape, seed=6)
    return found


@examples(15)
@given(seed=seeds(), shape=st.sampled_from(SHAPES), function=st.sampled_from(OF_FEATURES))
def test_a_setting_an_item_is_a_loop_over_items(
    seed: int, shape: tuple[int, ...], function: Any, backend: str
) -> None:
    x, y = _data(2, 3, 5, 2, seed=seed), _data(3, 4, 2, seed=seed + 1)
    tensors = _settings(function, shape)
    got = function(x, y, **tensors, backend=backend)
    assert got.shape == (2, 3)
    full = {name: t.expand(2, 3) for name, t in tensors.items()}
    for i in range(2):
        for j in range(3):
            numbers = {name: t[i, j].item() for name, t in full.items()}
            truth = function(x[i, j], y[j], **numbers, backend=backend)
            assert_close(got[i, j], truth, 1e-11, "item")


@pytest.mark.parametrize("function", [soft_dtw, s2dtw])
@pytest.mark.parametrize("shape", [(), (3,), (2, 1), (2, 3)])
def test_a_setting_a_pair_is_a_loop_over_pairs(function: Any, shape: tuple[int, ...]) -> None:
    x, y = _data(2, 5, 2), _data(3, 4, 2, seed=1)
    tensors = _settings(function, shape)
    got = function(x, y, **tensors, pairwise=True)
    full = {name: t.expand(2, 3) for name, t in tensors.items()}
    for i in range(2):
        for j in range(3):
            numbers = {name: t[i, j].item() for name, t in full.items()}
            assert_close(got[i, j], function(x[i], y[j], **numbers), 1e-11, "pair")


@pytest.mark.parametrize("function", [soft_dtw_from_cost, s2dtw_from_cost, *OF_FEATURES])
@pytest.mark.parametrize("shape", [(), (3,), (2, 1)])
def test_gradients_by_a_setting_have_its_shape(function: Any, shape: tuple[int, ...]) -> None:
    inputs = (
        (_data(2, 3, 3, 4),)
        if function in (soft_dtw_from_cost, s2dtw_from_cost)
        else (_data(2, 3, 3, 2), _data(2, 3, 4, 2, seed=1))
    )
    tensors = _settings(function, shape)
    names, leaves = zip(*((k, t.requires_grad_()) for k, t in tensors.items()), strict=True)

    def call(*values: Tensor) -> Tensor:
        return function(*inputs, **dict(zip(names, values, strict=True)))

    assert torch.autograd.gradcheck(call, leaves, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(call, leaves)
    for gradient, leaf in zip(
        torch.autograd.grad(call(*leaves).sum(), leaves), leaves, strict=True
    ):
        assert gradient.shape == leaf.shape


def test_transforms_of_a_setting_an_item() -> None:
    x, y, gamma = _data(3, 5, 2), _data(3, 4, 2, seed=1), _setting(3)
    for function in OF_FEATURES:
        truth = function(x, y, gamma=gamma)
        mapped = vmap(lambda x, y, g, f=function: f(x, y, gamma=g))(x, y, gamma)
        assert_close(mapped, truth, 1e-12, "vmap")

        def call(gamma: Tensor, f: Any = function) -> Tensor:
            return f(x, y, gamma=gamma)

        by_item = hessian(lambda g, f=call: f(g).sum())(gamma)
        assert_close(by_item, by_item.diagonal().diag(), 0.0, "items do not mix")
        tangent = jvp(call, (gamma,), (torch.ones(3).double(),))[1]
        leaf = gamma.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(call(leaf).sum(), leaf)
        assert_close(tangent, gradient, 1e-11, "jvp")

        torch._dynamo.reset()
        compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
        (got,) = torch.autograd.grad(compiled(leaf).sum(), leaf)
        assert_close(got, gradient, 1e-12, "compiled")


def test_alignments_take_a_setting_an_item() -> None:
    x, y, gamma = _data(3, 5, 2), _data(3, 4, 2, seed=1), _setting(3)
    for align in (soft_dtw_alignment, s2dtw_alignment):
        got = align(x, y, gamma=gamma)
        for k in range(3):
            truth = align(x[k], y[k], gamma=gamma[k].item())
            assert_close(got.expected[k], truth.expected, 1e-11, "expected")


def test_shapes_that_do_not_fit_are_refused() -> None:
    x, y = _data(3, 5, 2), _data(3, 4, 2, seed=1)
    wrong = _setting(2)
    for function in OF_FEATURES:
        with pytest.raises(ValueError, match=r"gamma .* broadcasts .*\(3,\).*\(2,\)"):
            function(x, y, gamma=wrong)
    with pytest.raises(ValueError, match=r"dummy_cost .*\(3,\).*\(2, 1, 3\)"):
        s2dtw(x, y, dummy_cost=_setting(2, 1, 3))
    with pytest.raises(ValueError, match=r"gamma .* 0-d tensor with pairwise=True.*\(3,\)"):
        soft_dtw_divergence(x, y, gamma=_setting(3), pairwise=True)
    with pytest.raises(ValueError, match=r"gamma .* 0-d tensor with barycenters.*\(3,\)"):
        soft_dtw_barycenter(x, gamma=_setting(3))


def _modules() -> list[nn.Module]:
    return [
        SoftDTWLoss(_setting(3), divergence=True),
        SoftDTWLoss(_setting()),
        S2DTWLoss(_setting(3), dummy_cost=_setting(seed=6)),
    ]


@pytest.mark.parametrize("module", _modules())
def test_tensor_settings_of_modules_are_buffers(module: nn.Module) -> None:
    x, y = _data(3, 5, 2), _data(3, 4, 2, seed=1)
    truth = module(x, y)
    expected = {"gamma", "dummy_cost"} if isinstance(module, S2DTWLoss) else {"gamma"}
    assert set(dict(module.named_buffers())) == expected
    assert list(module.parameters()) == []
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    loaded = copy.deepcopy(module)
    for buffer in loaded.buffers():
        buffer.fill_(7.0)
    assert not torch.equal(loaded(x, y), truth)
    loaded.load_state_dict(torch.load(file))
    for other in (loaded, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(other(x, y), truth)
    half = copy.deepcopy(module).half()
    assert half(x, y).dtype == torch.float64
    rounded = copy.deepcopy(module)
    for buffer in rounded.buffers():
        buffer.copy_(buffer.half())
    assert torch.equal(half(x, y), rounded(x, y))
    meta = copy.deepcopy(module).to("meta")
    assert all(buffer.device.type == "meta" for buffer in meta.buffers())
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert_close(compiled(x, y), truth, 1e-12, "compiled")


def test_numbers_stay_numbers_and_parameters_parameters() -> None:
    module = S2DTWLoss(0.2, dummy_cost=nn.Parameter(_setting(3)))
    assert module.gamma == 0.2
    assert list(module.buffers()) == []
    module(_data(3, 5, 2), _data(3, 4, 2, seed=1)).backward()
    assert module.dummy_cost.grad.shape == (3,)
    assert list(S2DTWLoss(dummy_cost=None).state_dict()) == []
