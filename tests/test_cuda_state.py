"""What a value keeps on CUDA for the gradient to come: the gradient from it has the bits of the
gradient without it, as often as it is asked for, and the state is only read.

The kernels run on the emulator, by whatever way of sharing out the work.
"""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from cuda_calls import (
    FAMILIES,
    MANY,
    MUCH,
    ONE,
    RecordingLauncher,
    calls,
    launchers,
    no_limits,
    wide_call,
)
from cuda_emulator import COMPILER, NO_COMPILER, SCHEDULES, EmulatorLauncher
from helpers import bits, examples
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from softdtw_kernels import _backends as backends
from softdtw_kernels import soft_dtw_from_cost
from softdtw_kernels._cuda import lattice
from softdtw_kernels._cuda.fields import items_of
from softdtw_kernels._cuda.fixed import FIXED
from softdtw_kernels._cuda.operators import Operators
from softdtw_kernels._cuda.plan import state_plans
from softdtw_kernels._cuda.variants import Shape
from softdtw_kernels._operators import from_features as fused
from softdtw_kernels._operators import ops
from softdtw_kernels._problem import FeatureProblem, Problem

pytestmark = pytest.mark.skipif(COMPILER is None, reason=NO_COMPILER)


def check(launcher: EmulatorLauncher, call: dict[str, object], with_parameters: bool = True) -> int:
    """The laws; returns the bytes kept."""
    cost, problem = call["cost"], Problem(**call)
    value, state = lattice.value_and_state(launcher, problem)
    assert bits(value) == bits(lattice.value(launcher, problem))
    lead = cost.shape[:-2]
    grad_value = torch.linspace(-1, 2, math.prod(lead)).reshape(lead).to(cost.dtype)
    backward = problem, grad_value, with_parameters
    truth = lattice.gradient(launcher, *backward)
    before = bits(state)
    for _ in range(2):
        grads = lattice.gradient(launcher, *backward, state)
        names = ("cost", "gamma", "dummy")[: 3 if with_parameters else 1]
        for name, a, b in zip(names, grads, truth, strict=False):
            assert bits(a) == bits(b), name
            assert a.stride() == b.stride()
        assert bits(state) == before
    return state.numel()


@pytest.mark.parametrize("weak", [False, True])
@examples(60)
@given(data=st.data())
def test_a_gradient_from_state_has_the_bits_of_one_without(data: st.DataObject, weak: bool) -> None:
    launcher = data.draw(launchers(checked=False))
    call = data.draw(calls(24 if weak else 48, weak))
    assert check(launcher, call, data.draw(st.booleans())) > 0


@pytest.mark.parametrize("weak", [False, True])
@examples(25)
@given(data=st.data())
def test_every_access_is_in_bounds_and_ordered(data: st.DataObject, weak: bool) -> None:
    check(data.draw(launchers(checked=True)), data.draw(calls(12, weak)))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
@pytest.mark.parametrize(("weak", "bandwidth"), [(False, None), (False, 7), (True, None)])
def test_strips_of_one_item_wait_for_each_other(
    schedule: str, weak: bool, bandwidth: int | None, family: str
) -> None:
    """Over more strips than there are borders for what flows."""
    call = wide_call(weak, bandwidth)
    for resident in (1, 3):
        check(EmulatorLauncher(MANY, schedule, True, resident, family=family), call)


@pytest.mark.slow
@pytest.mark.parametrize("family", (*FAMILIES, FIXED))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_items_of_every_status_side_by_side(dtype: torch.dtype, family: str) -> None:
    """Plain ones of every kind of gamma, NaN, without a path, beyond the fast arithmetic, masked,
    and of a value that only the slow arithmetic gives precisely.
    """
    gamma = torch.tensor([0.5, 0.0, -1.0, math.nan, *[0.5] * 4, 1e12], dtype=torch.float64)
    random = torch.Generator().manual_seed(0)
    cost = torch.rand(len(gamma), 20, 150, dtype=dtype, generator=random)
    cost[4, 7, 9] = math.nan
    cost[5, 10] = math.inf
    cost[6, :, 70] = 1e30
    cost[7, :19, 70] = 1e30
    call = no_limits(cost, gamma)
    for multiprocessors in (ONE, MANY):
        check(EmulatorLauncher(multiprocessors, "random", True, family=family), call)


def test_what_is_kept_is_a_small_part_of_the_cost() -> None:
    """On the 132 multiprocessors of an H100 or H200.

    In float64, a warp of many has one column a lane, as more leave too little shared memory, and
    twice the checkpoints.
    """
    for dtype in (torch.float32, torch.float64):
        state, scratch = kept_by((1, 16384, 16384), dtype)
        assert state + scratch < 0.1
        most = 0.25 if dtype == torch.float32 else 0.35
        for shape in ((8, 4096, 4096), (64, 1024, 1024), (100, 1024, 1024), (4096, 256, 256)):
            assert kept_by(shape, dtype)[0] < most, shape
    # A weak lattice has four times the cells of its cost, and short rows leave most lanes idle.
    for shape in (Shape(torch.float32, 4096, 513, 513, True, -1), shape_of((50_000, 64, 8))):
        assert state_plans(shape, 132, MUCH, None) is None
    # But for little memory that is no matter.
    assert state_plans(shape_of((1, 8, 8)), 132, MUCH, None)


def shape_of(shape: tuple[int, int, int], dtype: torch.dtype = torch.float32) -> Shape:
    return Shape(dtype, *shape, False, -1)


def kept_by(shape: tuple[int, int, int], dtype: torch.dtype) -> tuple[float, float]:
    """The state, and the scratch memory of the gradient from it: as shares of the cost, of which
    nothing is allocated here.
    """
    cost = torch.empty(1, dtype=dtype).expand(shape)
    launcher = RecordingLauncher()
    problem = Problem(**no_limits(cost, torch.ones(shape[:1], dtype=torch.float64)))
    _, state = lattice.value_and_state(launcher, problem)
    size = state.numel()
    assert size
    launcher.storages.clear()
    items = items_of(problem, torch.ones(1))
    lattice.run(launcher, 1, problem, items, {"state": state}, state=size)
    bytes_of_cost = cost.numel() * cost.element_size()
    return size / bytes_of_cost, (sum(launcher.storages.values()) - size) / bytes_of_cost


# ---- the operators and autograd, with the emulator in the place of the CPU's kernels


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the operators that reach the CUDA backend."""
    launcher, names = EmulatorLauncher(MANY), []
    emulated = Operators(lambda _: launcher)

    def routed(name: str) -> Callable[..., object]:
        def run(*args: object) -> object:
            names.append(name)
            return getattr(emulated, name)(*args)

        return run

    operators = ("value", "gradient", "value_and_state", "gradient_from_state", "hessian_product")
    backend = SimpleNamespace(**{name: routed(name) for name in operators})
    monkeypatch.setitem(backends._loaded, "numba", backend)
    return names


def leaves(*shape: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    cost = torch.rand(shape, dtype=dtype, generator=torch.Generator().manual_seed(2))
    gamma = torch.tensor(0.3, dtype=torch.float64)
    return cost.requires_grad_(), gamma.requires_grad_()


def test_training_goes_forward_once(called: list[str]) -> None:
    cost, gamma = leaves(2, 5, 70)
    value = soft_dtw_from_cost(cost, gamma=gamma)
    grads = [torch.autograd.grad(value.sum(), (cost, gamma), retain_graph=True) for _ in range(2)]
    assert called == ["value_and_state", *["gradient_from_state"] * 2]
    for a, b in zip(*grads, strict=True):
        assert bits(a) == bits(b)
    ones = torch.ones(2, dtype=torch.float64)
    problem = Problem(**no_limits(cost, gamma.expand(2)))
    truth = lattice.gradient(EmulatorLauncher(MANY), problem, ones, True)
    assert bits(grads[0][0]) == bits(truth[0])


def test_without_a_gradient_to_come_nothing_is_kept(called: list[str]) -> None:
    cost, gamma = leaves(2, 5, 7)
    with torch.no_grad():
        soft_dtw_from_cost(cost, gamma=gamma)
    with torch.inference_mode():
        soft_dtw_from_cost(cost, gamma=gamma)
    soft_dtw_from_cost(cost.detach(), gamma=0.3)
    assert called == ["value"] * 3


def test_transforms_keep_nothing(called: list[str]) -> None:
    cost, _ = leaves(2, 5, 7)
    plain = torch.autograd.grad(soft_dtw_from_cost(cost).sum(), cost)[0]
    called.clear()

    def total(c: torch.Tensor) -> torch.Tensor:
        return soft_dtw_from_cost(c).sum()

    torch.testing.assert_close(torch.func.grad(total)(cost.detach()), plain)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(total))(cost.detach()), plain)
    torch.func.jvp(total, (cost.detach(),), (plain,))
    with forward_ad.dual_level():
        total(forward_ad.make_dual(cost, plain))
    compiled = torch.compile(total, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(torch.autograd.grad(compiled(cost), cost)[0], plain)
    assert not {"value_and_state", "gradient_from_state"} & set(called)


def test_derivatives_of_the_gradient_do_without_state(called: list[str]) -> None:
    cost, gamma = leaves(2, 3, 4)

    def value(cost: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
        return soft_dtw_from_cost(cost, gamma=gamma)

    assert torch.autograd.gradcheck(value, (cost, gamma), check_batched_grad=True)
    assert torch.autograd.gradgradcheck(value, (cost, gamma))
    assert {"value_and_state", "gradient", "hessian_product"} <= set(called)


def test_the_state_is_a_saved_tensor(called: list[str]) -> None:
    """What hooks do with it: here, take it elsewhere and back."""
    cost, gamma = leaves(2, 5, 70)
    plain = torch.autograd.grad(soft_dtw_from_cost(cost, gamma=gamma).sum(), cost)[0]
    packed = []

    def pack(t: torch.Tensor) -> torch.Tensor:
        packed.append(t.dtype)
        return t.clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t.clone()):
        value = soft_dtw_from_cost(cost, gamma=gamma)
    hooked = torch.autograd.grad(value.sum(), cost)[0]
    assert torch.uint8 in packed
    assert bits(hooked) == bits(plain)
    recomputed = checkpoint(soft_dtw_from_cost, cost, gamma=gamma, use_reentrant=False)
    assert bits(torch.autograd.grad(recomputed.sum(), cost)[0]) == bits(plain)


def test_a_backward_frees_the_state(called: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    states = []
    keep = backends._loaded["numba"].value_and_state

    def noted(*args: object) -> tuple[torch.Tensor, torch.Tensor]:
        value, state = keep(*args)
        states.append(weakref.ref(state))
        return value, state

    monkeypatch.setattr(backends._loaded["numba"], "value_and_state", noted)
    cost, gamma = leaves(2, 5, 7)
    value = soft_dtw_from_cost(cost, gamma=gamma)
    gc.collect()
    assert [state() is None for state in states] == [False]
    value.sum().backward()
    gc.collect()
    assert [state() is None for state in states] == [True]
    assert value.grad_fn is not None  # though the graph is still there


@pytest.mark.parametrize("shape", [(2, 3, 2, 5, 9), (2, 1, 3, 1, 4, 6)])
def test_more_leading_dimensions_than_the_kernels_take(
    called: list[str], shape: tuple[int, ...]
) -> None:
    """Not viewable as two, so that costs are copied."""
    cost, gamma = leaves(*shape)
    strided = cost.transpose(0, 2)
    value = soft_dtw_from_cost(strided, gamma=gamma)
    (grad,) = torch.autograd.grad(value.sum(), cost)
    assert called == ["value_and_state", "gradient_from_state"]
    lead = value.shape
    ones, gammas = torch.ones(lead, dtype=torch.float64), gamma.detach().expand(lead)
    truth = ops.gradient(strided.detach(), gammas, *[None] * 4, ones, True)[0]
    assert bits(grad) == bits(truth.transpose(0, 2))
    assert bits(value) == bits(ops.value(strided.detach(), gammas, *[None] * 4))


def test_small_pairs_in_great_number_keep_nothing(called: list[str]) -> None:
    cost, gamma = leaves(MANY * 16, 3, 4)
    value, state = ops.value_and_state(cost.detach(), gamma.detach().expand(MANY * 16), *[None] * 4)
    assert state.numel() == 0
    (grad,) = torch.autograd.grad(soft_dtw_from_cost(cost, gamma=0.3).sum(), cost)
    ones = torch.ones_like(value)
    truth = ops.gradient(cost.detach(), gamma.detach().expand_as(value), *[None] * 4, ones, False)
    assert bits(grad) == bits(truth[0])


@pytest.mark.parametrize("wrong", ["size", "dtype", "layout"])
def test_what_is_no_state_of_the_call_is_refused(called: list[str], wrong: str) -> None:
    cost = torch.rand(2, 5, 7)
    problem = cost, torch.ones(2, dtype=torch.float64), *[None] * 4
    _, state = ops.value_and_state(*problem)
    state = {
        "size": state[:-256],
        "dtype": state.float(),
        "layout": state.repeat_interleave(2)[::2],
    }[wrong]
    with pytest.raises(ValueError, match="state"):
        ops.gradient_from_state(*problem, state, torch.ones(2), True)


def test_the_operator_returns_tensors_where_the_engine_gives_nothing(called: list[str]) -> None:
    problem = torch.rand(2, 5, 70), torch.ones(2, dtype=torch.float64), *[None] * 4
    _, state = ops.value_and_state(*problem)
    grads = ops.gradient_from_state(*problem, state, torch.ones(2), False)
    expected = ops.gradient(*problem, torch.ones(2), False)
    assert bits(grads[0]) == bits(expected[0])
    assert [(g.shape, g.dtype) for g in grads] == [(g.shape, g.dtype) for g in expected]


def test_from_features_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the emulator in the place of what the CPU has for the fused operators."""
    launcher, names = EmulatorLauncher(MANY), []
    emulated = Operators(lambda _: launcher)

    def value_and_state(problem: FeatureProblem) -> object:
        names.append("value_and_state")
        return emulated.fused_value_and_state(problem)

    def gradient_from_state(*args: object) -> object:
        names.append("gradient_from_state")
        return emulated.fused_gradient_from_state(*args)

    fused_operators = {
        "fused_value_and_state": value_and_state,
        "fused_gradient_from_state": gradient_from_state,
    }
    random = torch.Generator().manual_seed(3)
    x, y = (
        torch.randn(2, k, 3, dtype=torch.float64, generator=random).requires_grad_() for k in (6, 5)
    )
    gamma = torch.full((2,), 0.5, dtype=torch.float64, requires_grad=True)
    rest = None, None, None, "sqeuclidean"

    def fused_value(*features: torch.Tensor) -> torch.Tensor:
        return fused.value(FeatureProblem(*features, *rest))

    plain = torch.autograd.grad(fused_value(x, y, gamma).sum(), (x, y, gamma))
    for name, function in fused_operators.items():
        monkeypatch.setattr(backends.load("numba"), name, function)
    value = fused_value(x, y, gamma)
    grads = [torch.autograd.grad(value.sum(), (x, y, gamma), retain_graph=True) for _ in range(2)]
    assert names == ["value_and_state", *["gradient_from_state"] * 2]
    for a, b, c in zip(*grads, plain, strict=True):
        assert bits(a) == bits(b)
        torch.testing.assert_close(a, c)
    assert torch.autograd.gradgradcheck(fused_value, (x, y, gamma))
    names.clear()
    with torch.no_grad():
        fused_value(x, y, gamma)
    assert not names
