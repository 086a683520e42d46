"""What torch composes with: torch.func, opcheck, fake tensors, autocast, checkpoints.

`test_compile` has torch.compile.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_close, examples
from hypothesis import given
from strategies import Problem, problems
from torch import Tensor
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from softdtw_kernels import (
    S2DTWFunction,
    SoftDTWFunction,
    _problem,
    dilate_loss,
    forward_sum,
    s2dtw,
    s2dtw_from_cost,
    soft_dtw,
    soft_dtw_alignment,
    soft_dtw_barycenter,
    soft_dtw_divergence,
    soft_dtw_from_cost,
    soft_dtw_kmeans,
)
from softdtw_kernels import _backends as backends
from softdtw_kernels._operators import ops

FUNCTIONS = [soft_dtw, s2dtw, soft_dtw_divergence]
BOTH = [soft_dtw_from_cost, s2dtw_from_cost]


def _data(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("function", BOTH)
def test_func_grad_jvp_vjp_and_hessian(function: Callable[..., Tensor], backend: str) -> None:
    cost, direction = _data(4, 5), _data(4, 5, seed=1)
    leaf = cost.clone().requires_grad_()
    value = function(leaf, gamma=0.5, backend=backend)
    (gradient,) = torch.autograd.grad(value, leaf, create_graph=True)
    (product,) = torch.autograd.grad((gradient * direction).sum(), leaf)

    def call(cost: Tensor) -> Tensor:
        return function(cost, gamma=0.5, backend=backend)

    assert_close(grad(call)(cost), gradient.detach(), 1e-12, "grad")
    got, tangent = jvp(call, (cost,), (direction,))
    assert_close(got, value.detach(), 1e-12, "jvp value")
    assert_close(tangent, (gradient * direction).sum().detach(), 1e-12, "jvp")
    assert_close(vjp(call, cost)[1](torch.tensor(1.0).double())[0], gradient.detach(), 1e-12, "vjp")
    full = hessian(call)(cost)
    assert full.shape == (4, 5, 4, 5)
    assert_close((full * direction).sum((-1, -2)), product, 1e-10, "hessian")
    assert_close(full.reshape(20, 20), full.reshape(20, 20).T, 1e-10, "symmetry")
    assert_close(jacfwd(grad(call))(cost), full, 1e-10, "jacfwd of grad")
    assert_close(jacrev(grad(call))(cost), full, 1e-10, "jacrev of grad")
    assert_close(jvp(grad(call), (cost,), (direction,))[1], product, 1e-10, "jvp of grad")


@pytest.mark.parametrize("function", BOTH)
def test_vmap_with_lengths(function: Callable[..., Tensor]) -> None:
    cost = _data(6, 4, 5)
    n, m = torch.tensor([4, 1, 2, 3, 4, 4]), torch.tensor([5, 5, 1, 2, 3, 4])
    leaf = cost.clone().requires_grad_()
    value = function(leaf, gamma=0.5, x_lengths=n, y_lengths=m)
    (gradient,) = torch.autograd.grad(value.sum(), leaf)

    def call(cost: Tensor, n: Tensor, m: Tensor) -> Tensor:
        return function(cost, gamma=0.5, x_lengths=n, y_lengths=m)

    assert_close(vmap(call)(cost, n, m), value.detach(), 1e-12, "vmap")
    assert_close(vmap(grad(call))(cost, n, m), gradient, 1e-12, "vmap of grad")
    assert vmap(hessian(call))(cost, n, m).shape == (6, 4, 5, 4, 5)
    nested = vmap(vmap(call))(cost.view(2, 3, 4, 5), n.view(2, 3), m.view(2, 3))
    assert_close(nested, value.detach().view(2, 3), 1e-12, "vmap of vmap")
    last = vmap(call, in_dims=(-1, 0, 0))(cost.movedim(0, -1), n, m)
    assert_close(last, value.detach(), 1e-12, "vmap over the last dimension")


@pytest.mark.parametrize("dummy", [None, 0.5])
def test_every_order_of_modes_by_gamma_of_smoothed_costs(dummy: float | None) -> None:
    cost = torch.rand(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gamma = torch.tensor(0.5, dtype=torch.float64)

    def call(gamma: Tensor, backend: str | None = None) -> Tensor:
        return s2dtw_from_cost(cost, gamma=gamma, dummy_cost=dummy, backend=backend)

    truth = jacrev(jacrev(lambda g: call(g, "reference")))(gamma)
    for outer in (jacfwd, jacrev):
        for inner in (jacfwd, jacrev):
            assert_close(outer(inner(call))(gamma), truth, 1e-9, f"{outer} of {inner}")


def test_vmap_over_gamma_alone_and_hessian_in_gamma() -> None:
    cost, gammas = _data(3, 4), torch.tensor([0.1, 1.0, 3.0], dtype=torch.float64)

    def call(gamma: Tensor) -> Tensor:
        return soft_dtw_from_cost(cost, gamma=gamma)

    truth = torch.stack([call(g) for g in gammas])
    assert_close(vmap(call)(gammas), truth, 1e-12, "vmap over gamma")
    by_gamma = vmap(grad(call))(gammas)
    step = 1e-5
    slope = (
        torch.stack([call(g + step) for g in gammas])
        - torch.stack([call(g - step) for g in gammas])
    ) / (2 * step)
    assert_close(by_gamma, slope, 1e-8, "gradient by gamma")
    curvature = torch.stack([grad(call)(g + step) - grad(call)(g - step) for g in gammas]) / (
        2 * step
    )
    assert_close(vmap(hessian(call))(gammas), curvature, 1e-7, "second derivative by gamma")


@pytest.mark.parametrize("function", FUNCTIONS)
def test_vmap_of_features(function: Callable[..., Tensor]) -> None:
    x, y = _data(3, 5, 2), _data(3, 6, 2, seed=1)
    assert_close(vmap(function)(x, y), function(x, y), 1e-12, "vmap")
    assert_close(
        vmap(function, in_dims=(0, None))(x, y[0]), function(x, y[0]), 1e-12, "vmap over x"
    )
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(leaf, y).sum(), leaf)
    assert_close(vmap(grad(function))(x, y), gradient, 1e-12, "vmap of grad")


@examples(8)
@given(problem=problems(largest=5))
def test_vmap_is_the_batch(problem: Problem) -> None:
    cost = problem.cost.reshape(-1, *problem.cost.shape[-2:])
    value = soft_dtw_from_cost(cost, gamma=problem.gamma, bandwidth=problem.bandwidth)
    mapped = vmap(
        lambda c: soft_dtw_from_cost(c, gamma=problem.gamma, bandwidth=problem.bandwidth)
    )(cost)
    assert torch.equal(mapped, value)


def test_per_sample_gradients_of_a_module() -> None:
    layer = torch.nn.Linear(3, 2).double()
    parameters = dict(layer.named_parameters())
    x, y = _data(4, 6, 3), _data(4, 5, 2, seed=1)

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return soft_dtw(functional_call(layer, parameters, x), y, gamma=0.3)

    each = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, x, y)
    soft_dtw(layer(x), y, gamma=0.3).sum().backward()
    for name, parameter in layer.named_parameters():
        assert_close(each[name].detach().sum(0), parameter.grad, 1e-11, name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bandwidth", [None, 2])
def test_opcheck(dtype: torch.dtype, bandwidth: int | None) -> None:
    """Schema, fake kernels and dynamic shapes of the operators themselves."""
    ops = torch.ops.softdtw_kernels
    cost = _data(3, 4, 5).to(dtype)
    item = torch.full((3,), 0.5, dtype=torch.float64)
    n, m = torch.tensor([4, 2, 1]), torch.tensor([5, 1, 4])
    problem = (cost, item, None, n, m, bandwidth)
    weight, direction = torch.ones(3, dtype=dtype), _data(3, 4, 5, seed=1).to(dtype)
    weak = (cost, item, item, n, m, None)
    calls = [
        (ops.value, problem),
        (ops.value, weak),
        (ops.gradient, (*problem, weight, True)),
        (ops.gradient, (*weak, weight, False)),
        (ops.hessian_product, (*problem, weight, direction, item, None)),
        (ops.hessian_product, (*weak, weight, direction, item, item)),
        (ops.smooth, (cost, item, n, m, 1.0)),
        (ops.smooth_vjp, (cost, item, n, m, 3.0, direction)),
        (ops.smoothed_value, (cost, item, item, n, m, 1.0)),
        (ops.smoothed_gradient, (cost, item, None, n, m, 3.0, weight, True)),
        (ops.squared_distances, (cost, cost + 1)),
    ]
    for operator, arguments in calls:
        torch.library.opcheck(operator.default, arguments)


def test_fake_tensors_know_the_shapes() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        x = torch.empty(3, 5, 2, requires_grad=True)
        y = torch.empty(4, 6, 2)
        value = soft_dtw(x, y, pairwise=True, x_lengths=torch.tensor([5, 1, 2]), bandwidth=3)
        assert value.shape == (3, 4)
        (gradient,) = torch.autograd.grad(value.sum(), x)
        assert gradient.shape == x.shape
        assert s2dtw(x[0], y[0]).shape == ()


class OneDevice(TorchDispatchMode):
    """Torch's operators are never given tensors of two devices, nor ours but for gamma and dummy.

    On a GPU that raises; tensors without memory may be mixed.
    """

    def __init__(self, numbers: set[str]) -> None:
        super().__init__()
        self.numbers = numbers

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "softdtw_kernels":
            parameters = {"gamma", "dummy"}
            names = [argument.name for argument in func._schema.arguments]
            given = dict(zip(names, args, strict=True))
            self.numbers |= {
                name
                for name in parameters & given.keys()
                if given[name] is not None and ops.is_number(given[name])
            }
            args_of_one = [value for name, value in given.items() if name not in parameters]
        else:
            args_of_one = [*args, *(kwargs or {}).values()]
        tensors = [t for t in tree_leaves(args_of_one) if isinstance(t, Tensor) and t.dim() > 0]
        assert len({t.device for t in tensors}) <= 1, func
        return func(*args, **(kwargs or {}))


def first(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return torch.autograd.grad(f(x).sum(), x, create_graph=True)[0]


@pytest.mark.parametrize("function", [soft_dtw_from_cost, s2dtw_from_cost, soft_dtw])
def test_numbers_in_host_memory_meet_no_tensor_of_a_device(
    function: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As CUDA calls have them, whatever derivative or transform; another device stands for CUDA."""
    monkeypatch.setattr(backends, "select", lambda *_: "cuda")
    features = function is soft_dtw
    x = torch.empty(3, 40, 9, device="meta", requires_grad=True)
    y = torch.empty(3, 45, 9, device="meta")
    gammas: set[str] = set()

    def f(z: Tensor) -> Tensor:
        return function(z, y, gamma=0.1) if features else function(z, gamma=0.1)

    with OneDevice(gammas):
        value = f(x)
        gradient = first(f, x)
        second = torch.autograd.grad(gradient.sum(), x)[0]
        z = x.detach()
        tangent = torch.func.jvp(f, (z,), (z,))[1]
        along = torch.func.jvp(lambda z: torch.func.jvp(f, (z,), (z,))[1], (z,), (z,))[1]
        product = torch.func.jvp(torch.func.grad(lambda z: f(z).sum()), (z,), (z,))[1]
        if not features:
            vmapped = torch.func.vmap(torch.func.grad(lambda z: f(z).sum()))(z[:, None])
            assert vmapped.shape == (3, 1, 40, 9)
    assert gammas == ({"gamma", "dummy"} if function is s2dtw_from_cost else {"gamma"})
    for result in (value, tangent, along):
        assert result.shape == (3,) and result.device.type == "meta"
    for result in (gradient, second, product):
        assert result.shape == x.shape and result.device.type == "meta"


def test_only_expanded_numbers_may_be_in_host_memory() -> None:
    cost = torch.empty(3, 5, 6, device="meta")
    number = torch.tensor(0.5, dtype=torch.float64).expand(3)
    ops._check_costs("value", (cost, number, number, None, None, None))
    problem = _problem.Problem(cost, number, None, None, None, None)
    grad_value = torch.empty(3, device="meta")
    ops._check_costs("gradient", (*problem, grad_value, False))
    for args in (
        (*problem._replace(gamma=number.clone()), grad_value, False),
        (*problem._replace(gamma=number.float()), grad_value, False),
        (*problem._replace(x_lengths=number.long()), grad_value, False),
        (*problem, number, False),
    ):
        with pytest.raises(ValueError, match="another tensor of the same call on cpu"):
            ops._check_costs("gradient", args)
    x, y = torch.empty(3, 5, 2, device="meta"), torch.empty(3, 6, 2, device="meta")
    fused = _problem.FeatureProblem(x, y, number, None, None, None, "sqeuclidean")
    ops.check_features("fused_value", fused)
    for wrong in (fused._replace(gamma=number.clone()), fused._replace(x_lengths=number.long())):
        with pytest.raises(ValueError, match="on one device"):
            ops.check_features("fused_value", wrong)


@pytest.mark.parametrize("pairwise", [False, True])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_meta_tensors_know_the_shapes(function: Callable[..., Tensor], pairwise: bool) -> None:
    x = torch.empty(3, 5, 2, device="meta", requires_grad=True)
    y = torch.empty(3, 6, 2, device="meta")
    for cost in ("sqeuclidean", "euclidean", "cosine", "shifted_cosine", "negative_dot"):
        value = function(x, y, cost=cost, pairwise=pairwise, x_lengths=[5, 1, 2])
        assert value.shape == ((3, 3) if pairwise else (3,))
        (gradient,) = torch.autograd.grad(value.sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(gradient.sum(), x)
        assert gradient.shape == second.shape == x.shape
    with pytest.raises(TypeError, match="one dtype"):
        function(x, y.double())


@pytest.mark.parametrize("function", FUNCTIONS)
def test_autocast_keeps_single_precision(function: Callable[..., Tensor]) -> None:
    """Costs ignore autocast; features that a layer made in bfloat16 meet a float32 target."""
    x, y = _data(2, 6, 8).float(), _data(2, 7, 8, seed=1).float()
    truth = function(x, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(function(x, y), truth)
        features = torch.nn.Linear(8, 8)(x)
        assert features.dtype == torch.bfloat16
        value = function(features, y)
    assert value.dtype == torch.float32
    assert_close(value.detach(), function(features.float(), y).detach(), 0.0, "mixed", rtol=1e-6)


def test_the_functions_themselves_are_public() -> None:
    cost = _data(2, 3, 4).requires_grad_()
    value = SoftDTWFunction.apply(cost, 0.5)
    assert torch.equal(value, soft_dtw_from_cost(cost, gamma=0.5))
    assert_close(
        S2DTWFunction.apply(cost, 0.1, 0.5).detach(), s2dtw_from_cost(cost).detach(), 1e-12, "S2DTW"
    )
    assert torch.autograd.gradcheck(lambda c: SoftDTWFunction.apply(c, 0.5), (cost,))
    assert torch.autograd.gradgradcheck(lambda c: S2DTWFunction.apply(c, 0.5, 0.3), (cost,))
    assert issubclass(SoftDTWFunction, torch.autograd.Function)
    assert issubclass(S2DTWFunction, torch.autograd.Function)


def test_activation_checkpointing_and_hooks() -> None:
    from torch.utils.checkpoint import checkpoint

    x, y = _data(2, 5, 3).requires_grad_(), _data(2, 4, 3, seed=1)
    seen: list[Tensor] = []
    x.register_hook(seen.append)
    soft_dtw(x, y).sum().backward()
    truth = x.grad.clone()
    x.grad = None
    checkpoint(soft_dtw, x, y, use_reentrant=False).sum().backward()
    assert torch.equal(x.grad, truth)
    assert len(seen) == 2


def test_a_change_in_place_between_forward_and_backward_is_noticed() -> None:
    cost = _data(3, 4).requires_grad_()
    scaled = cost * 1.0
    value = soft_dtw_from_cost(scaled)
    scaled.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


def test_the_default_device_is_not_that_of_the_sequences() -> None:
    x = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(1))
    lengths = [4, 1, 3]
    calls: list[Callable[[], Tensor]] = [
        lambda: soft_dtw(x, x + 1, x_lengths=lengths, y_lengths=lengths),
        lambda: s2dtw(x, x + 1, pairwise=True, x_lengths=lengths),
        lambda: soft_dtw_divergence(x, x + 1, y_lengths=lengths),
        lambda: soft_dtw_divergence(x, x + 1, pairwise=True),
        lambda: dilate_loss(x, x + 1, input_lengths=lengths),
        lambda: soft_dtw_alignment(x, x + 1, open_end="x", warp_cost=1.0).expected,
        lambda: soft_dtw(x, x + 1, open_end="x", backend="reference"),
        lambda: forward_sum(x, x_lengths=[4, 2, 3]),
        lambda: soft_dtw_barycenter(x, lengths=lengths, weights=[1.0, 2.0, 1.0]),
        lambda: soft_dtw_barycenter(list(x)),
        lambda: soft_dtw_kmeans(x, 2, lengths=lengths, generator=seeded()).centers,
    ]
    for call in calls:
        with torch.device("meta"):
            found = call()
        assert_close(found, call(), 1e-5, "the same")


def seeded() -> torch.Generator:
    return torch.Generator(device="cpu").manual_seed(0)
