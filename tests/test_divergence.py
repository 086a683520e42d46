"""The divergence in float32 is that of its inputs: what cancels is computed in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers import assert_close, examples, value_and_gradient
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import gammas, seeds
from torch import Tensor, nn
from torch.func import grad, hessian, jvp, vmap

from softdtw_kernels import SoftDTWLoss, divergence, soft_dtw, soft_dtw_divergence

COSTS = ["sqeuclidean", "euclidean", "cosine", "shifted_cosine", "negative_dot"]


OWN_VALUES: dict[str, dict[str, Any]] = {  # under which values are not those of derivatives
    "gamma": {"gamma": 0.1},
    "small gamma": {"gamma": 1e-4},
    "warp cost": {"warp_cost": 0.7},
    "warp costs": {"warp_cost": torch.tensor([0.0, 1e-9, 0.3, 1.0, 1e3, 2.0])},
    "large warp cost": {
        "warp_cost": 1e8,
        "gamma": torch.tensor([1.0, 0.1, 0.0, 0.01, 1e-3, 5.0]),
    },
    "function": {"cost": lambda x, y: torch.cdist(x, y)},
}


def _squares(x: Tensor, y: Tensor) -> Tensor:
    return (x.unsqueeze(-2) - y.unsqueeze(-3)).square().sum(-1)


def _near(*shape: int, noise: float, size: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.randn(shape, generator=generator)
    x = y + noise * torch.randn(shape, generator=generator)
    return size * x, size * y


def _assert_exact(x: Tensor, y: Tensor, **arguments: Any) -> None:
    """The promise: 1e-5 relative, and 4e-15 of the absolute values of the three terms. The cosine
    of frames that are near is rounded beside 1, so a cost has no more digits than that leaves.
    """
    got = soft_dtw_divergence(x, y, **arguments)
    assert got.dtype == torch.float32
    x, y = x.double(), y.double()
    truth = soft_dtw_divergence(x, y, **arguments)
    terms = dict(arguments)
    of_x, of_y = terms.pop("x_lengths", None), terms.pop("y_lengths", None)
    size = soft_dtw(x, y, x_lengths=of_x, y_lengths=of_y, **terms).abs()
    terms.pop("pairwise", None)
    own_x = soft_dtw(x, x, x_lengths=of_x, y_lengths=of_x, **terms).abs()
    own_y = soft_dtw(y, y, x_lengths=of_y, y_lengths=of_y, **terms).abs()
    size = size + (own_x[:, None] if arguments.get("pairwise") else own_x) / 2 + own_y / 2
    if arguments.get("cost") == "cosine":
        size = size + x.shape[-2]
    assert ((got - truth).abs() <= 1e-5 * truth.abs() + 4e-15 * size).all(), (got, truth)


@pytest.mark.parametrize(
    ("n", "noise", "size"), [(500, 1e-3, 1.0), (100, 1.0, 1e-6), (1000, 0.02, 1.0)]
)
def test_a_small_divergence_in_float32_does_not_cancel(n: int, noise: float, size: float) -> None:
    x, y = _near(n, 2, noise=noise, size=size)
    _assert_exact(x, y)
    value = soft_dtw_divergence(x.clone().requires_grad_(), y)
    assert torch.equal(value.detach(), soft_dtw_divergence(x, y))


@pytest.mark.parametrize("bandwidth", [None, 2])
@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("shape", [(32, 32, 32), (64, 64, 64), (20, 80, 32), (13, 7, 9)], ids=str)
def test_as_many_features_as_costs_are_stored_with(
    shape: tuple[int, int, int], cost: str, bandwidth: int | None
) -> None:
    """D = 2 N M / (N + M), up to which no matrix is stored; with a cosine kernels take D + 1."""
    n, m, size = shape
    generator = torch.Generator().manual_seed(0)
    for features in (size - 1, size, size + 1):
        x, y = (torch.randn(2, k, features, generator=generator) for k in (n, m))
        _assert_exact(x, y, cost=cost, bandwidth=bandwidth)


@examples(20)
@given(
    seed=seeds(),
    cost=st.sampled_from([*COSTS, _squares]),
    gamma=gammas(1e-2, 10.0) | st.just(0.0),
    pairwise=st.booleans(),
    bandwidth=st.none() | st.integers(0, 3),
    lengths=st.booleans(),
)
def test_all_variants_are_exact_and_zero_at_equal_sequences(
    seed: int, cost: Any, gamma: float, pairwise: bool, bandwidth: int | None,
    lengths: bool, backend: str,
) -> None:  # fmt: skip
    x, y = _near(4, 9, 5, noise=1e-3, seed=seed)
    arguments: dict[str, Any] = {
        "cost": cost, "gamma": gamma, "pairwise": pairwise, "bandwidth": bandwidth,
        "backend": backend,
    }  # fmt: skip
    sides = [torch.tensor([9, 4, 1, 7])] * 2 if lengths else [None, None]
    arguments |= {"x_lengths": sides[0], "y_lengths": sides[1]}
    _assert_exact(x, y, **arguments)
    for features in (x, x.double()):
        zero = soft_dtw_divergence(features, features.clone(), **arguments)
        zero = zero.diagonal() if pairwise else zero
        assert torch.equal(zero, torch.zeros_like(zero))


@examples(30)
@example(
    seed=5, noises=[1e-7], frames=9, gamma=10.0, cost="cosine", pairwise=False, lengths=True,
    own_gammas=False,
)  # fmt: skip
@example(  # 7.6e-21, of which the first kernels leave 0
    seed=525, noises=[0.0, 0.0, 0.0, 1e-9], frames=9, gamma=1e-3, cost="sqeuclidean",
    pairwise=False, lengths=False, own_gammas=False,
)  # fmt: skip
@given(
    seed=seeds(),
    noises=st.lists(st.sampled_from([0.0, 1e-9, 1e-7, 1e-5, 1e-3, 1.0]), min_size=1, max_size=5),
    frames=st.sampled_from([3, 9, 40]),
    gamma=gammas(1e-3, 10.0),
    cost=st.sampled_from(COSTS),
    pairwise=st.booleans(),
    lengths=st.booleans(),
    own_gammas=st.booleans(),
)
def test_near_and_far_pairs_of_one_batch(
    seed: int, noises: list[float], frames: int, gamma: float, cost: Any, pairwise: bool,
    lengths: bool, own_gammas: bool,
) -> None:  # fmt: skip
    """Terms next to 0 are certified only where that counts, of each pair by itself."""
    pairs = [_near(1, frames, 2, noise=noise, seed=seed + k) for k, noise in enumerate(noises)]
    x, y = (torch.cat(side) for side in zip(*pairs, strict=True))
    count = len(noises)
    arguments: dict[str, Any] = {"cost": cost, "pairwise": pairwise, "gamma": gamma}
    if own_gammas and not pairwise:
        arguments["gamma"] = gamma * torch.arange(1, count + 1, dtype=torch.float64)
    if lengths:
        some = 1 + torch.arange(count) % frames
        arguments |= {"x_lengths": some, "y_lengths": some}
    _assert_exact(x, y, **arguments)
    if pairwise:
        return
    whole = soft_dtw_divergence(x, y, **arguments)
    for k in range(count):
        alone = {
            name: value[k : k + 1] if isinstance(value, Tensor) else value
            for name, value in arguments.items()
        }
        assert torch.equal(
            soft_dtw_divergence(x[k : k + 1], y[k : k + 1], **alone), whole[k : k + 1]
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", OWN_VALUES)
def test_values_of_their_own_are_those_of_the_three_terms(name: str, dtype: torch.dtype) -> None:
    """Of pairs far, near, in part equal, of huge size and with NaN, with a gradient and without."""
    arguments = OWN_VALUES[name]
    x, y = (t.to(dtype) for t in _near(6, 9, 2, noise=1.0))
    y = y[:, :7].clone()
    x[1] *= 1e18
    y[2, 3] = math.nan
    y[3] = x[3, :7] * 1e-3
    x[4, :7] = y[4]
    y[5] = x[5, :7] + 1e-4 * y[5]
    got = soft_dtw_divergence(x, y, **arguments)
    trained = soft_dtw_divergence(x.clone().requires_grad_(), y, **arguments)
    assert torch.equal(got.nan_to_num(7), trained.detach().nan_to_num(7))
    x, y = x.double(), y.double()
    terms = [soft_dtw(a, b, **arguments) for a, b in ((x, y), (x, x), (y, y))]
    truth = terms[0] - (terms[1] + terms[2]) / 2
    size = sum(term.abs() for term in terms).nan_to_num(0)
    rounding = 1e-6 if dtype == torch.float32 else 1e-12
    assert torch.equal(got.isnan(), truth.isnan())
    error = (got.double() - truth).abs().nan_to_num(0)
    assert (error <= rounding * truth.abs().nan_to_num(0) + 4e-15 * size).all(), (got, truth)


def test_equal_within_their_lengths_is_zero() -> None:
    x = torch.randn(3, 9, 2, generator=torch.Generator().manual_seed(0))
    y = torch.cat((x[:, :7], torch.full((3, 40, 2), math.nan)), dim=1)
    n = torch.tensor([7, 3, 1])
    value = soft_dtw_divergence(x, y, x_lengths=n, y_lengths=n)
    assert torch.equal(value, torch.zeros(3))
    assert (soft_dtw_divergence(x, y, x_lengths=n + 1, y_lengths=n) != 0).all()


def test_the_divergence_of_squared_distances_can_be_negative(backend: str) -> None:
    """A counterexample to a conjecture of Blondel et al. (2021); the value by 50 digits."""
    x = torch.tensor([-3.6, -3.5, -3.8, -1.6, 0.5, 2.4, 2.0, 0.3], dtype=torch.float64)[:, None]
    y = torch.tensor([-3.7, -3.2, -4.2, -2.4, -0.3, 1.9, 2.2, 0.4], dtype=torch.float64)[:, None]
    value = soft_dtw_divergence(x, y, gamma=3.0, backend=backend)
    assert_close(value, -0.0867599496486665, 1e-13, "divergence")
    assert value < soft_dtw_divergence(y, y, gamma=3.0, backend=backend)


@examples(20)
@given(seed=seeds(), gamma=gammas(1e-2, 10.0))
def test_the_divergence_of_absolute_differences_is_not_negative(seed: int, gamma: float) -> None:
    """Of one feature, where 1 / (1 + exp(|x - y| / gamma)) is a positive definite kernel."""
    x, y = (t.double() for t in _near(8, 9, 1, noise=0.3, seed=seed))
    value = soft_dtw_divergence(x, y[:, :8], cost="manhattan", gamma=gamma)
    assert (value >= 0).all()


def test_what_is_not_finite_stays_so_at_equal_sequences() -> None:
    x = torch.zeros(2, 3, 1)
    x[1, 1] = math.nan
    value = soft_dtw_divergence(x, x)
    assert value[0] == 0
    assert value[1].isnan()


@pytest.mark.parametrize("cost", COSTS)
def test_float32_gradients_are_those_of_the_three_terms(cost: str) -> None:
    x, y = _near(3, 8, 3, noise=0.5)
    arguments: dict[str, Any] = {"cost": cost, "gamma": 0.3}

    def three_terms(x: Tensor, y: Tensor) -> Tensor:
        own = soft_dtw(x, x, **arguments) + soft_dtw(y, y, **arguments)
        return soft_dtw(x, y, **arguments) - 0.5 * own

    truth = value_and_gradient(three_terms, x, y)[1:]
    got = value_and_gradient(lambda x, y: soft_dtw_divergence(x, y, **arguments), x, y)[1:]
    for a, b in zip(got, truth, strict=True):
        assert a.dtype == torch.float32
        assert_close(a, b, 1e-5, "gradient")


@pytest.mark.parametrize("cost", ["sqeuclidean", "cosine", _squares])
def test_derivatives_of_all_modes_in_float32(cost: Any) -> None:
    x, y = _near(3, 5, 2, noise=0.3)
    direction = torch.randn(3, 5, 2, generator=torch.Generator().manual_seed(9))

    def call(x: Tensor, y: Tensor) -> Tensor:
        return soft_dtw_divergence(x, y, gamma=0.5, cost=cost, reduction="sum")

    wide = x.double(), y.double()
    tangent = jvp(lambda x: call(x, y), (x,), (direction,))
    truth = jvp(lambda x: call(x, wide[1]), wide[:1], (direction.double(),))
    for got, expected, name in zip(tangent, truth, ("value", "tangent"), strict=True):
        assert got.dtype == torch.float32
        assert_close(got, expected, 1e-4, name)
    assert_close(vmap(call)(x, y), vmap(call)(*wide), 1e-5, "vmap")
    assert_close(vmap(grad(call))(x, y), vmap(grad(call))(*wide), 1e-4, "vmap of grad")
    assert_close(hessian(call)(x, y), hessian(call)(*wide), 1e-3, "hessian")
    leaf = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(call(leaf, y), leaf, create_graph=True)
    (product,) = torch.autograd.grad((first * direction).sum(), leaf)
    along = jvp(grad(call), wide, (direction.double(), torch.zeros_like(wide[1])))[1]
    assert_close(product, along, 1e-3, "double backward")


@pytest.mark.parametrize("cost", ["sqeuclidean", "cosine", "euclidean", _squares])
def test_compile_in_float32(cost: Any) -> None:
    torch._dynamo.reset()

    def loss(x: Tensor, y: Tensor, gamma: Tensor) -> Tensor:
        return soft_dtw_divergence(x, y, gamma=gamma, cost=cost, reduction="mean")

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    x, y = _near(3, 6, 2, noise=0.1)
    gamma = torch.tensor([0.2, 1.0, 3.0])
    assert_close(compiled(x, y, gamma), loss(x, y, gamma), 0.0, "value without gradient")
    x.requires_grad_()
    gamma.requires_grad_()
    got, truth = compiled(x, y, gamma), loss(x, y, gamma)
    assert_close(got.detach(), truth.detach(), 0.0, "value")
    pairs = (torch.autograd.grad(v, (x, gamma)) for v in (got, truth))
    for a, b in zip(*pairs, strict=True):
        assert_close(a, b, 1e-6, "gradient")


def test_a_function_is_called_once_a_term_and_its_parameters_learn() -> None:
    layer, calls = nn.Linear(2, 3), []

    def cost(x: Tensor, y: Tensor) -> Tensor:
        calls.append(x.dtype)
        scale = layer.weight.sum() + layer.bias.sum()
        return scale.square() * _squares(x, y)

    x, y = _near(2, 6, 2, noise=0.1)
    soft_dtw_divergence(x, y, cost=cost).sum().backward()
    assert calls == [torch.float64] * 3
    assert layer.weight.grad is not None
    assert (layer.weight.grad != 0).all()


def test_a_module_in_float32_is_a_cost_too() -> None:
    layer = nn.Linear(2, 3)
    x, y = _near(2, 6, 2, noise=0.1)
    value = SoftDTWLoss(cost=lambda a, b: _squares(layer(a), layer(b)), divergence=True)(x, y)
    value.backward()
    assert value.dtype == torch.float32
    assert layer.weight.grad is not None
    assert layer.weight.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_exact_for_its_numbers(dtype: torch.dtype) -> None:
    x, y = (t.to(dtype) for t in _near(30, 2, noise=0.1))
    got = soft_dtw_divergence(x, y)
    assert got.dtype == torch.float32
    assert_close(got, soft_dtw_divergence(x.double(), y.double()), 0.0, "value", rtol=1e-6)


@pytest.mark.parametrize("pairwise", [False, True])
def test_blocks_of_items_are_the_batch(monkeypatch: pytest.MonkeyPatch, pairwise: bool) -> None:
    x, y = _near(150, 6, 2, noise=0.1)
    x, y = (x[:40], y) if pairwise else (x.view(75, 2, 6, 2), y.view(75, 2, 6, 2)[:, :1])
    n = torch.arange(x.shape[:-2].numel()).view(x.shape[:-2]) % 6 + 1
    arguments = {
        "x_lengths": n,
        "gamma": 0.3 if pairwise else torch.linspace(0.1, 2, 75)[:, None],
        "pairwise": pairwise,
    }
    monkeypatch.setattr(divergence, "BLOCK", 1)
    blocks = soft_dtw_divergence(x, y, **arguments)
    monkeypatch.setattr(divergence, "BLOCK", 1 << 40)
    assert_close(blocks, soft_dtw_divergence(x, y, **arguments), 1e-12, "blocks", rtol=1e-6)
