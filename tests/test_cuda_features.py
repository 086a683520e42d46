"""Soft-DTW from features on CUDA: the kernels, on the emulator, against the reference in float64
and against the path through a cost matrix.

Of squared distances both paths give the same value to the bit: each cost is the same sum in the
same order. Drawn are shapes up to a few strips and tiles, lengths, bands, strides and features that
need slow arithmetic; how the work is shared out follows from the launcher.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from cuda_emulator import COMPILER, NO_COMPILER, SCHEDULES, EmulatorLauncher
from helpers import bits, examples
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from softdtw_kernels import _reference as reference
from softdtw_kernels._checks import KINDS
from softdtw_kernels._cuda import distances, features, lattice, wide
from softdtw_kernels._problem import FeatureProblem

pytestmark = pytest.mark.skipif(COMPILER is None, reason=NO_COMPILER)

MANY, ONE = 64, 1  # multiprocessors: strips go to several blocks, or whole items to a few


@st.composite
def launchers(draw: st.DrawFn, checked: bool) -> EmulatorLauncher:
    return EmulatorLauncher(
        multiprocessors=draw(st.sampled_from((MANY, ONE))),
        schedule=draw(st.sampled_from(sorted(SCHEDULES))),
        checked=checked,
        resident=draw(st.integers(1, 4)),
        seed=draw(st.integers(1, 1000)),
    )


def walks(seed: int, *shapes: tuple[int, ...], scale: float = 0.3) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return [
        scale * torch.randn(s, dtype=torch.float64, generator=random).cumsum(-2) / s[-1] ** 0.5
        for s in shapes
    ]


@st.composite
def problems(draw: st.DrawFn, largest: int) -> FeatureProblem:
    """NaN beyond the lengths, where nothing may look."""
    lead = draw(st.sampled_from(((), (3,), (2, 2), (1,))))
    n, m, d = (draw(st.integers(1, k)) for k in (largest, largest, 40))
    x, y = walks(draw(st.integers(0, 999)), (*lead, n, d), (*lead, m, d))
    if draw(st.booleans()):
        x, y = x + 100, y + 100
    dtype = draw(st.sampled_from((torch.float32, torch.float64)))
    kind = draw(st.sampled_from(KINDS))
    if kind == "negative_dot":  # of unit vectors, as for the cosine
        x, y = (z / z.norm(dim=-1, keepdim=True) for z in (x, y))
    gamma = torch.tensor(draw(st.sampled_from((1e-2, 0.1, 1.0, 10.0))), dtype=torch.float64)
    lengths: list[torch.Tensor | None] = [None, None]
    if draw(st.booleans()):
        random = torch.Generator().manual_seed(n + m)
        lengths = [torch.randint(1, k + 1, lead, generator=random) for k in (n, m)]
    bandwidth = draw(st.none() | st.integers(0, 5))
    x, y = (
        strided(draw(st.sampled_from(LAYOUTS)), with_nan_beyond(z.to(dtype), own))
        for z, own in zip((x, y), lengths, strict=True)
    )
    return FeatureProblem(x, y, gamma.expand(lead), *lengths, bandwidth, kind)


LAYOUTS = ("contiguous", "transposed", "every other feature")


def strided(layout: str, x: torch.Tensor) -> torch.Tensor:
    if layout == "transposed":
        return x.mT.contiguous().mT
    if layout == "every other feature":
        return torch.stack((x, torch.full_like(x, math.nan)), -1)[..., 0]
    return x


def with_nan_beyond(x: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
    return x.masked_fill(beyond(x, lengths), math.nan)


def beyond(x: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
    if lengths is None:
        return torch.zeros(x.shape[:-1] + (1,), dtype=torch.bool)
    return (torch.arange(x.shape[-2]) >= lengths[..., None])[..., None]


def exact(problem: FeatureProblem, grad_value: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Value and gradient in float64, by the reference."""
    lengths = problem.x_lengths, problem.y_lengths
    x, y = (
        z.double().masked_fill(beyond(z, own), 0).requires_grad_()
        for z, own in zip((problem.x, problem.y), lengths, strict=True)
    )
    gamma = problem.gamma.clone().requires_grad_()
    cost = reference.squared_distances(x, y) if problem.kind == "sqeuclidean" else -x @ y.mT
    value = reference.value(problem._replace(gamma=gamma).of(cost))
    # At 1 x 1 the value does not depend on gamma, and torch would say so by an error.
    grads = torch.autograd.grad(
        (value * grad_value.double()).sum(),
        (x, y, gamma),
        allow_unused=True,
        materialize_grads=True,
    )
    return value.detach(), *grads


def largest_cost(problem: FeatureProblem) -> float:
    x, y = problem.x.double().nan_to_num(), problem.y.double().nan_to_num()
    return float((x.amax() - y.amin()).square() + (y.amax() - x.amin()).square()) * x.shape[-1]


def check(launcher: EmulatorLauncher, problem: FeatureProblem) -> None:
    x, y, gamma, x_lengths, y_lengths, _, _ = problem
    single, lead = x.dtype == torch.float32, x.shape[:-2]
    grad_value = torch.linspace(-1, 2, math.prod(lead)).reshape(lead).to(x.dtype)
    got = (
        features.value(launcher, problem),
        *features.gradient(launcher, problem, grad_value, True, True, True),
    )
    truth = exact(problem, grad_value)
    steps = x.shape[-2] + y.shape[-2]
    scale = 1 + largest_cost(problem)
    epsilon = torch.finfo(x.dtype).eps
    # A cost has a relative error of a few roundings, and the value one of gamma more at each cell
    # of a path; divided by gamma, the former is that of the weights.
    error = (got[0].double() - truth[0]).abs().max()
    largest_gamma = float(gamma.max() if gamma.numel() else 1)
    assert error <= 8 * epsilon * (scale + largest_gamma) * steps
    of_weights = 8 * epsilon * scale / largest_gamma
    bar = (5e-5 if single else 1e-11) + of_weights * steps
    for a, b, own in zip(got[1:3], truth[1:3], (x_lengths, y_lengths), strict=True):
        assert (a.double() - b).abs().max() <= bar * (1 + b.abs().max())
        assert (a.masked_select(beyond(a, own)) == 0).all()
    assert (got[3] - truth[3]).abs().max() <= bar * steps


@examples(40)
@given(data=st.data())
def test_value_and_gradient_match_the_reference(data: st.DataObject) -> None:
    check(data.draw(launchers(checked=False)), data.draw(problems(110)))


@examples(15)
@given(data=st.data())
def test_every_access_is_in_bounds_and_ordered(data: st.DataObject) -> None:
    check(data.draw(launchers(checked=True)), data.draw(problems(50)))


def check_state(launcher: EmulatorLauncher, problem: FeatureProblem) -> None:
    """The gradient from what the value has kept has the bits of the one without, as often as it is
    asked for, and only reads it.
    """
    lead, dtype = problem.x.shape[:-2], problem.x.dtype
    grad_value = torch.linspace(-1, 2, math.prod(lead)).reshape(lead).to(dtype)
    wanted = grad_value, True, True, True
    truth = features.gradient(launcher, problem, *wanted)
    value, state = features.value_and_state(launcher, problem)
    assert bits(value) == bits(features.value(launcher, problem))
    before = bits(state)
    assert before
    for _ in range(2):
        grads = features.gradient(launcher, problem, *wanted, state)
        assert [bits(g) for g in grads] == [bits(t) for t in truth]
        assert bits(state) == before


@examples(30)
@given(data=st.data())
def test_a_gradient_from_state_has_the_bits_of_one_without(data: st.DataObject) -> None:
    check_state(data.draw(launchers(checked=False)), data.draw(problems(110)))


@examples(15)
@given(data=st.data())
def test_every_access_from_state_is_in_bounds_and_ordered(data: st.DataObject) -> None:
    check_state(data.draw(launchers(checked=True)), data.draw(problems(50)))


@pytest.mark.parametrize("multiprocessors", [ONE, MANY])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gradient_from_state_leaves_to_the_slow_arithmetic_what_the_value_does(
    dtype: torch.dtype, multiprocessors: int
) -> None:
    """Also what is NaN, and what only as a value."""
    x, y = (z.to(dtype) for z in walks(3, (4, 70, 6), (4, 150, 6)))
    x[2, 7, 1] = math.nan
    gammas = torch.tensor([0.0, 0.3, 0.3, 1e12], dtype=torch.float64)
    problem = FeatureProblem(x, y, gammas, None, None, None, "sqeuclidean")
    check_state(EmulatorLauncher(multiprocessors, "random", True), problem)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_strips_in_groups_give_the_same_bits(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the slow arithmetic does with one very long item: here with five strips."""
    x, y = (z.to(dtype) for z in walks(3, (2, 30, 3), (2, 600, 3)))
    gammas = torch.tensor([0.0, 1e-12], dtype=torch.float64)
    problem = FeatureProblem(x, y, gammas, None, None, None, "sqeuclidean")

    def results(checked: bool) -> bytes:
        features.plan_of.cache_clear()
        features.recipe_of.cache_clear()
        launcher = EmulatorLauncher(ONE, "random", checked)
        ones = torch.ones(2, dtype=dtype)
        return b"".join(map(bits, features.gradient(launcher, problem, ones, True, True, True)))

    truth = results(False)
    with monkeypatch.context() as few_bytes:
        few_bytes.setattr(wide, "WIDE_ITEM_BYTES", 0)
        assert results(True) == results(False) == truth
    features.plan_of.cache_clear()
    features.recipe_of.cache_clear()


def wide_problem(
    kind: str = "sqeuclidean", dtype: torch.dtype = torch.float32, bandwidth: int | None = None
) -> FeatureProblem:
    """Several strips wide and tiles long, so that blocks wait for each other."""
    x, y = (z.to(dtype) for z in walks(3, (2, 100, 6), (2, 150, 6)))
    lengths = torch.tensor([100, 60]), torch.tensor([150, 70])
    return FeatureProblem(
        x, y, torch.full((2,), 0.3, dtype=torch.float64), *lengths, bandwidth, kind
    )


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
@pytest.mark.parametrize("bandwidth", [None, 7])
def test_strips_of_one_item_wait_for_each_other(schedule: str, bandwidth: int | None) -> None:
    dtype = torch.float64 if bandwidth else torch.float32
    for resident in (1, 3):  # one block at a time must do as well: no co-residency is assumed
        problem = wide_problem(dtype=dtype, bandwidth=bandwidth)
        check(EmulatorLauncher(MANY, schedule, True, resident), problem)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_are_the_same_to_the_bit_however_the_work_is_shared_out(
    kind: str, dtype: torch.dtype
) -> None:
    problem = wide_problem(kind, dtype)
    ones = torch.ones(2, dtype=dtype)
    results = set()
    for multiprocessors in (ONE, MANY):
        for schedule in ("ascending", "random"):
            launcher = EmulatorLauncher(multiprocessors, schedule)
            parts = features.gradient(launcher, problem, ones, True, True, True)
            results.add(b"".join(bits(t) for t in (features.value(launcher, problem), *parts)))
    assert len(results) == 1


@pytest.mark.parametrize("gamma", [0.0, 0.3])
@pytest.mark.parametrize("multiprocessors", [1, MANY])
def test_what_is_no_number_makes_its_item_nan_whatever_else_is_wrong_with_it(
    multiprocessors: int, gamma: float
) -> None:
    """At gamma = 0, which the fast arithmetic leaves to the other, and where a cost is -inf: there
    the lowest.
    """
    for kind, bad in (("sqeuclidean", math.nan), ("negative_dot", 3e38)):
        x, y = walks(4, (2, 50, 6), (2, 70, 6))
        x, y = x.float(), y.float()
        x[0, 7], y[0, 9] = bad, 3e38
        gammas = torch.full((2,), gamma, dtype=torch.float64)
        problem = FeatureProblem(x, y, gammas, None, None, None, kind)
        launcher = EmulatorLauncher(multiprocessors)
        value = features.value(launcher, problem)
        grads = features.gradient(launcher, problem, torch.ones(2), True, True, True)
        lowest = -math.inf if gamma == 0.0 and kind == "negative_dot" else math.nan
        torch.testing.assert_close(value[0].item(), lowest, equal_nan=True)
        assert value[1].isfinite()
        assert [g[1].isnan().any().item() for g in grads] == [False] * 3
        assert grads[0][0, 7].isnan().all() and grads[2][0].isnan()


@examples(10)
@given(data=st.data())
def test_squared_distances_give_the_value_of_the_cost_matrix(data: st.DataObject) -> None:
    """To the bit in float64; in float32 only the sweep of costs tries one exponent a lane."""
    launcher = data.draw(launchers(checked=False))
    problem = data.draw(problems(70))._replace(kind="sqeuclidean")
    cost = distances.squared_distances(launcher, problem.x, problem.y)
    value = features.value(launcher, problem)
    expected = lattice.value(launcher, problem.of(cost))
    if cost.dtype == torch.float64:
        assert bits(value) == bits(expected)
    scale = expected.abs() + problem.gamma
    torch.testing.assert_close(value / scale, expected / scale, rtol=0, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gamma", [0.0, 1e-12])
def test_what_is_out_of_range_is_done_by_the_slow_arithmetic(
    kind: str, dtype: torch.dtype, gamma: float
) -> None:
    problem = wide_problem(kind, dtype)
    problem = problem._replace(gamma=torch.tensor([gamma, 0.5], dtype=torch.float64))
    ones = torch.ones(2, dtype=dtype)
    truth = exact(problem, ones)
    bar = 1e-4 if dtype == torch.float32 else 1e-11
    for checked, multiprocessors in ((True, MANY), (False, ONE)):
        launcher = EmulatorLauncher(multiprocessors, "random", checked)
        got = (
            features.value(launcher, problem),
            *features.gradient(launcher, problem, ones, True, True, False),
        )
        for a, b in zip(got[:3], truth, strict=False):
            assert (a.double() - b).abs().max() <= bar * (1 + b.abs().max())


@pytest.mark.parametrize("bad", ["gamma", "length", "feature"])
@pytest.mark.parametrize("multiprocessors", [ONE, MANY])
def test_what_is_out_of_range_makes_its_item_nan_and_no_other(
    bad: str, multiprocessors: int
) -> None:
    problem, launcher = wide_problem(), EmulatorLauncher(multiprocessors, "random")
    ones = torch.ones(2)

    def results() -> tuple[torch.Tensor, ...]:
        grads = features.gradient(launcher, problem, ones, True, True, True)
        return features.value(launcher, problem), *grads

    good = results()
    if bad == "gamma":
        problem.gamma[1] = -1.0
    elif bad == "length":
        problem.x_lengths[1] = 0
    else:
        problem.x[1, 59, 3] = math.nan
    for before, after in zip(good, results(), strict=True):
        assert torch.equal(before[0], after[0])
        assert after[1].isnan().any()


def test_only_the_wanted_gradients_are_computed() -> None:
    problem, launcher, ones = wide_problem(), EmulatorLauncher(ONE), torch.ones(2)
    whole = features.gradient(launcher, problem, ones, True, True, True)
    for wanted in ((True, False, False), (False, True, False), (False, False, True)):
        part = features.gradient(launcher, problem, ones, *wanted)
        for a, b, want in zip(part, whole, wanted, strict=True):
            assert torch.equal(a, b) if want else a is None or a.numel() == 0


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_float32_keeps_its_bar_over_a_long_path(offset: float) -> None:
    """y near x: costs as small as can be next to the features."""
    x, y = walks(2, (600, 4), (600, 4), scale=0.05)
    x, y = (x + offset).float(), (x + 0.02 * y + offset).float()
    problem = FeatureProblem(
        x, y, torch.tensor(0.1, dtype=torch.float64), None, None, None, "sqeuclidean"
    )
    exactly = problem._replace(x=x.double(), y=y.double())
    single, double = (
        features.gradient(
            EmulatorLauncher(MANY), p, torch.ones((), dtype=p.x.dtype), True, True, False
        )
        for p in (problem, exactly)
    )
    for a, b in zip(single[:2], double[:2], strict=True):
        assert (a - b).abs().max() <= 5e-5 * max(1.0, float(b.abs().max()))


@contextmanager
def allocations() -> Iterator[list[int]]:
    """Bytes of every storage that a torch function makes."""
    seen: dict[int, torch.UntypedStorage] = {}
    sizes: list[int] = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            given = {
                t.untyped_storage()._cdata
                for t in torch.utils._pytree.tree_leaves((args, kwargs))
                if isinstance(t, torch.Tensor)
            }
            result = function(*args, **(kwargs or {}))
            for t in torch.utils._pytree.tree_leaves(result):
                if not isinstance(t, torch.Tensor):
                    continue
                storage = t.untyped_storage()
                if storage._cdata not in given and storage._cdata not in seen:
                    seen[storage._cdata] = storage
                    sizes.append(storage.nbytes())
            return result

    with Record():
        yield sizes


class NoLauncher:
    """An H100 or H200 that does nothing."""

    multiprocessors = 132

    def run(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("shape", [(32, 512, 512, 64), (4, 2048, 2048, 8), (1, 8192, 8192, 4)])
def test_no_matrix_is_allocated(shape: tuple[int, int, int, int]) -> None:
    items, n, m, d = shape
    x, y = torch.empty(items, n, d), torch.empty(items, m, d)
    gamma = torch.ones(items, dtype=torch.float64)
    problem = FeatureProblem(x, y, gamma, None, None, None, "sqeuclidean")
    matrix = 4 * items * n * m
    with allocations() as of_value:
        features.value(NoLauncher(), problem)
    with allocations() as of_gradient:
        features.gradient(NoLauncher(), problem, torch.ones(items), True, True, True)
    inputs = 4 * (x.numel() + y.numel())
    # What the slow arithmetic keeps is bounded by the same 32 MiB for every call.
    assert sum(of_value) < 0.15 * matrix + (32 << 20)
    assert sum(of_gradient) < 0.3 * matrix + inputs + (32 << 20)
    # In training, what is kept is no more than what a gradient takes otherwise.
    _, state = features.value_and_state(NoLauncher(), problem)
    assert 0 < state.numel() < 0.2 * matrix
    with allocations() as of_gradient:
        features.gradient(NoLauncher(), problem, torch.ones(items), True, True, True, state)
    assert sum(of_gradient) < 0.1 * matrix + inputs + (32 << 20)


def test_of_many_items_nothing_is_kept() -> None:
    x, y = torch.empty(4096, 256, 8), torch.empty(4096, 256, 8)
    gamma = torch.ones(4096, dtype=torch.float64)
    problem = FeatureProblem(x, y, gamma, None, None, None, "sqeuclidean")
    _, state = features.value_and_state(NoLauncher(), problem)
    assert state.numel() == 0


def test_shared_memory_of_every_launch_fits_without_asking() -> None:
    """48 KiB are there on every GPU; more would need an attribute of the kernel."""
    assert all(v.shared_bytes(3) <= 48 << 10 for v in features.variants())
