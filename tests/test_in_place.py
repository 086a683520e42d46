"""A result belongs to its caller, who may change it in place: that changes neither a gradient to
come, but as the same program out of place would, nor what was given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from cuda_calls import MANY
from cuda_emulator import COMPILER, NO_COMPILER, EmulatorLauncher
from helpers import bits
from torch import Tensor

import softdtw_kernels as sk
from softdtw_kernels import _backends as backends
from softdtw_kernels._cuda import features
from softdtw_kernels._cuda.operators import Operators
from softdtw_kernels._operators import compositions, ops, pattern
from softdtw_kernels._problem import FeatureProblem
from softdtw_kernels.costs import NAMED

LENGTHS = torch.tensor([4, 2, 3])


def part_of(name: str, part: str) -> Callable[..., Tensor]:
    align, of_cost = getattr(sk, name), name.endswith("cost")
    return lambda x, y, c, **k: getattr(align(c, **k) if of_cost else align(x, y, **k), part)


ALIGNMENTS = {
    f"{name}.{part}": part_of(name, part)
    for name in (
        "soft_dtw_alignment",
        "soft_dtw_alignment_from_cost",
        "s2dtw_alignment",
        "s2dtw_alignment_from_cost",
    )
    for part in ("value", "expected", "entropy")
}
VALUES: dict[str, Callable[..., Tensor]] = {
    "soft_dtw": lambda x, y, c, **k: sk.soft_dtw(x, y, **k),
    "soft_dtw one pair": lambda x, y, c, **k: sk.soft_dtw(x[0], y[0], **k),
    "soft_dtw batch of one": lambda x, y, c, **k: sk.soft_dtw(x[:1], y[:1], reduction="sum", **k),
    "soft_dtw many dimensions": lambda x, y, c, **k: sk.soft_dtw(
        x[:, None, None, None], y[None, :, None], **k
    ),
    "soft_dtw lengths": lambda x, y, c, **k: sk.soft_dtw(
        x, y, x_lengths=LENGTHS, reduction="mean", **k
    ),
    "soft_dtw pairs": lambda x, y, c, **k: sk.soft_dtw(x, y, pairwise=True, **k),
    "soft_dtw_from_cost": lambda x, y, c, **k: sk.soft_dtw_from_cost(c, **k),
    "soft_dtw_from_cost strided": lambda x, y, c, **k: sk.soft_dtw_from_cost(c.mT, **k),
    "soft_dtw_from_cost band": lambda x, y, c, **k: sk.soft_dtw_from_cost(c, bandwidth=1, **k),
    "soft_dtw warp_cost": lambda x, y, c, **k: sk.soft_dtw(x, y, warp_cost=0.5, **k),
    "soft_dtw_from_cost ends": lambda x, y, c, **k: sk.soft_dtw_from_cost(c, open_end="y", **k),
    "s2dtw": lambda x, y, c, **k: sk.s2dtw(x, y, **k),
    "s2dtw_from_cost": lambda x, y, c, **k: sk.s2dtw_from_cost(c, **k),
    "s2dtw_from_cost raw": lambda x, y, c, **k: sk.s2dtw_from_cost(c, smoothing=False, **k),
    "soft_dtw_divergence": lambda x, y, c, **k: sk.soft_dtw_divergence(x, y, **k),
    "SoftDTWLoss": lambda x, y, c, **k: sk.SoftDTWLoss(reduction="none", **k)(x, y),
    "S2DTWLoss": lambda x, y, c, **k: sk.S2DTWLoss(reduction="sum", **k)(x, y),
}
# On CUDA these have no kernels that the emulator could run.
WITHOUT_CUDA: dict[str, Callable[..., Tensor]] = {
    "forward_sum": lambda x, y, c, **k: sk.forward_sum(c.mT, **k),
    "dilate_loss": lambda x, y, c, **k: sk.dilate_loss(x, y, gamma=0.1, **k),
    "dilate_loss euclidean": lambda x, y, c, **k: sk.dilate_loss(x, y, cost="euclidean", **k),
    "dilate_loss shape alone": lambda x, y, c, **k: sk.dilate_loss(x, y, alpha=1, **k),
    "DILATELoss": lambda x, y, c, **k: sk.DILATELoss(gamma=0.1, reduction="none", **k)(x, y),
}
COST_MATRICES: dict[str, Callable[..., Tensor]] = {
    f"cost_matrix {name} {pairwise}": lambda x, y, c, name=name, pairwise=pairwise, **k: (
        sk.cost_matrix(x, y, name, pairwise=pairwise, **k)
    )
    for name in NAMED
    for pairwise in (False, True)
}
PROGRAMS = VALUES | ALIGNMENTS | COST_MATRICES


def first_of(v: Tensor) -> Tensor:
    mask = torch.zeros_like(v, dtype=torch.bool)
    mask[(0,) * v.dim()] = True
    return mask


def in_place(v: Tensor) -> Tensor:
    v += 1.5
    v /= 3
    v[(0,) * v.dim()] = 0.25
    v.mul_(2)
    v.sub_(0.5).clamp_(-1e3, 1e3)
    return v


def out_of_place(v: Tensor) -> Tensor:
    v = (v + 1.5) / 3
    v = torch.where(first_of(v), 0.25, v) * 2
    return (v - 0.5).clamp(-1e3, 1e3)


def data(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    return tuple(
        torch.randn(shape, generator=random, dtype=torch.float64).to(dtype)
        for shape in ((3, 4, 3), (3, 5, 3), (3, 4, 5))
    )


class Emulated(Operators):
    """The CUDA backend in the place of the CPU's."""

    # CUDA has no kernel for it.
    squared_distances_vjp = staticmethod(compositions.squared_distances_vjp)


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPU tensors go to the host of the CUDA kernels, and these to the emulator."""
    if COMPILER is None:
        pytest.skip(NO_COMPILER)
    backends.load("numba")
    launcher = EmulatorLauncher(MANY)
    monkeypatch.setitem(backends._loaded, "numba", Emulated(lambda _: launcher))
    monkeypatch.setattr(pattern, "declined", lambda problem: not problem.warps_alone)


@pytest.fixture(params=["reference", "numba", "cuda"])
def settings(request: pytest.FixtureRequest) -> dict[str, str]:
    """What a public function is given for a backend."""
    if request.param != "cuda":
        return {"backend": request.param}
    request.getfixturevalue("emulated")
    return {}


@pytest.mark.parametrize("name", PROGRAMS)
def test_gradients_are_those_of_the_program_out_of_place(
    name: str, settings: dict[str, str]
) -> None:
    program = PROGRAMS[name]
    for dtype in (torch.float32, torch.float64):
        check_program(program, dtype, settings)


@pytest.mark.parametrize("name", WITHOUT_CUDA)
def test_gradients_of_losses_of_other_lattices(name: str, backend: str) -> None:
    for dtype in (torch.float32, torch.float64):
        check_program(WITHOUT_CUDA[name], dtype, {"backend": backend})


def check_program(
    program: Callable[..., Tensor], dtype: torch.dtype, settings: dict[str, str]
) -> None:
    results = []
    for edit in (in_place, out_of_place):
        leaves = [t.requires_grad_() for t in data(dtype)]
        v = edit(program(*leaves, **settings))
        (v * v).sum().backward()
        results.append([v.detach(), *[t.grad for t in leaves if t.grad is not None]])
    assert len(results[0]) == len(results[1]) > 1
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", VALUES | COST_MATRICES)
def test_gradients_too_may_be_changed(name: str, settings: dict[str, str]) -> None:
    """Those that will be differentiated again, and those in .grad."""
    program = PROGRAMS[name]
    results = []
    for edit in (in_place, out_of_place):
        leaves = [t.requires_grad_() for t in data(torch.float64)]
        v = edit(program(*leaves, **settings))
        grads = torch.autograd.grad((v * v).sum(), leaves, create_graph=True, allow_unused=True)
        total = sum((edit(g) ** 2).sum() for g in grads if g is not None)
        total.backward(retain_graph=True)
        once = [t.grad.clone() for t in leaves if t.grad is not None]
        for t in leaves:
            if t.grad is not None:
                t.grad.mul_(0.5)
        total.backward()
        results.append(once)
        for t, g in zip((t for t in leaves if t.grad is not None), once, strict=True):
            torch.testing.assert_close(t.grad, 1.5 * g)
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("name", PROGRAMS)
def test_what_was_given_stays_as_it_is(
    name: str, mode: Callable[[], Any], settings: dict[str, str]
) -> None:
    given = data(torch.float64)
    before = [bits(t) for t in given]
    with mode():
        v = PROGRAMS[name](*given, **settings)
        truth = out_of_place(v)
        assert bits(in_place(v)) == bits(truth)
        again = PROGRAMS[name](*given, **settings)
    assert bits(out_of_place(again)) == bits(truth)
    assert [bits(t) for t in given] == before


def test_a_barycenter_may_be_changed() -> None:
    x, _, _ = data(torch.float32)
    before = bits(x)
    z = sk.soft_dtw_barycenter(x, init=x[0], max_iter=0)
    assert bits(in_place(z.clone())) == bits(in_place(z))
    assert bits(x) == before


@pytest.mark.parametrize("function", [sk.soft_dtw_from_cost, sk.s2dtw_from_cost])
def test_an_empty_batch_too(function: Callable[..., Tensor], settings: dict[str, str]) -> None:
    cost = torch.zeros(0, 2, 3, requires_grad=True)
    value = function(cost, **settings)
    value += 1
    value.sum().backward()
    assert cost.grad.shape == cost.shape


def results(name: str, shape: tuple[int, ...]) -> Iterator[Tensor]:
    """Of an operator, called as autograd calls it."""
    lead, random = shape[:-2], torch.Generator().manual_seed(0)
    cost, direction = (torch.randn(shape, generator=random) for _ in range(2))
    gamma = torch.full(lead, 0.5, dtype=torch.float64)
    ones = torch.ones(lead)
    smoothing = cost, gamma, None, None, 1.0
    problem = cost, gamma, gamma, None, None, None
    of_pattern = cost, gamma, gamma, gamma, None, None, None, "x", "y", "y"
    fused = cost, cost + 1, gamma, None, None, None, "sqeuclidean"
    arguments = {
        "value": problem,
        "gradient": (*problem, ones, True),
        "value_and_state": problem,
        "hessian_product": (*problem, ones, direction, gamma, gamma),
        "smooth": smoothing,
        "smooth_vjp": (*smoothing, direction),
        "smoothed_value": (cost, gamma, gamma, None, None, 1.0),
        "smoothed_gradient": (cost, gamma, gamma, None, None, 1.0, ones, True),
        "squared_distances": (cost, cost + 1),
        "squared_distances_vjp": (cost, cost, cost @ cost.mT, True, True),
        "fused_value": fused,
        "fused_gradient": (*fused, ones, True, True, True),
        "fused_value_and_state": fused,
        "monotonic_sum": (cost, None, None, True),
        "monotonic_product": (cost, None, None, cost),
        "monotonic_path": (cost, None, None),
        "pattern_value": of_pattern,
        "pattern_gradient": (*of_pattern, ones, True),
        "pattern_hessian_product": (*of_pattern, ones, direction, gamma, gamma, gamma),
    }
    if name == "gradient_from_state":
        arguments[name] = (*problem, ops.value_and_state(*problem)[1], ones, False)
    if name == "fused_gradient_from_state":
        state = ops.fused_value_and_state(*fused)[1]
        arguments[name] = (*fused, state, ones, True, True, False)
        by_y = ops.fused_gradient_from_state(*fused, state, ones, False, True, False)
        assert by_y[0].shape == (*shape[:-1], 0)
    found = getattr(ops, name)(*arguments[name])
    found = (found,) if isinstance(found, Tensor) else found
    given = {t.data_ptr() for t in arguments[name] if isinstance(t, Tensor)} - {0}
    assert not given & {result.data_ptr() for result in found}
    yield from found


SHAPES = [(4, 5), (3, 4, 5), (2, 1, 4, 5), (2, 3, 2, 4, 5), (0, 4, 5)]
PLAIN = [name for name in ops.OPERATORS if "state" not in name]
WITH_STATE = [name for name in ops.OPERATORS if "state" in name]


def check_results(name: str, shape: tuple[int, ...]) -> None:
    """None of them a view, which autograd lets nobody change in place, and each its own memory."""
    found = list(results(name, shape))
    assert not any(result._is_view() for result in found)
    assert 0 in shape or len({result.data_ptr() for result in found}) == len(found)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", [*PLAIN, *WITH_STATE])
def test_no_operator_returns_a_view(name: str, shape: tuple[int, ...]) -> None:
    check_results(name, shape)


@pytest.mark.parametrize("shape", [*SHAPES, (17 * MANY, 2, 3)])  # the last one for tiny pairs
@pytest.mark.parametrize("name", [*PLAIN[:8], "value_and_state"])
def test_nor_do_those_of_cuda(emulated: None, name: str, shape: tuple[int, ...]) -> None:
    check_results(name, shape)


@pytest.mark.skipif(COMPILER is None, reason=NO_COMPILER)
@pytest.mark.parametrize("count", [3, 4])  # of which four fill a pack
def test_nor_do_the_fused_kernels(count: int) -> None:
    launcher = EmulatorLauncher(MANY)
    x, y = torch.rand(2, 6, count), torch.rand(2, 5, count)
    gamma = torch.ones(2, dtype=torch.float64)
    problem = FeatureProblem(x, y, gamma, None, None, None, "sqeuclidean")
    grads = features.gradient(launcher, problem, torch.ones(2), True, True, True)
    for result in (*features.value_and_state(launcher, problem), *grads):
        assert not result._is_view()
