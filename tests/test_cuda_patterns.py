"""Other steps, begins and ends in the CUDA kernels, executed on the CPU by the emulator, against
the kernels of the CPU in float64. Brute force, which these are tested against, is too slow here,
and the recursion in plain torch loses digits of what large costs leave.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cuda_calls import MANY, ONE, launchers
from cuda_emulator import COMPILER, NO_COMPILER, EmulatorLauncher
from helpers import Forks, bits, examples
from hypothesis import given
from hypothesis import strategies as st
from pattern_oracle import PATTERNS, SIDES
from strategies import make_cost
from torch import Tensor

from softdtw_kernels import _backends as backends
from softdtw_kernels import _reference_pattern as reference
from softdtw_kernels import soft_dtw_from_cost
from softdtw_kernels._cpu import pattern as cpu
from softdtw_kernels._cuda import pattern, tiny
from softdtw_kernels._cuda.operators import Operators
from softdtw_kernels._cuda.plan import FAMILIES
from softdtw_kernels._problem import PatternProblem

pytestmark = pytest.mark.skipif(COMPILER is None, reason=NO_COMPILER)

OTHERS = [p for p in PATTERNS if p != ("xy", "", "")]


def problem_of(cost: Tensor, sides: tuple[str, ...], **more: Any) -> PatternProblem:
    """Numbers for all items, unless tensors are given."""
    batch = cost.shape[:-2]
    given = {"gamma": 1.0, "warp": 0.0, "skip": 0.0} | more
    limits = (given.get(name) for name in ("x_lengths", "y_lengths", "bandwidth"))
    numbers = (
        torch.as_tensor(given[name], dtype=torch.float64).expand(batch)
        for name in ("gamma", "warp", "skip")
    )
    return PatternProblem(cost, *numbers, *limits, *sides)


@st.composite
def problems(draw: st.DrawFn, largest: int) -> PatternProblem:
    sides = draw(st.sampled_from(OTHERS))
    lead = draw(st.sampled_from(((), (3,), (2, 2))))
    n, m = draw(st.integers(1, largest)), draw(st.integers(1, largest))
    if draw(st.booleans()):
        m = n
    seed = draw(st.integers(0, 2**16))
    random = np.random.default_rng(seed)
    dtype = draw(st.sampled_from((torch.float32, torch.float64)))
    kind = draw(st.sampled_from(("normal", "walk", "integers", "negative", "large")))
    cost = torch.from_numpy(make_cost(kind, (*lead, n, m), seed)).to(dtype)
    if draw(st.booleans()):
        walls = torch.from_numpy(random.random(cost.shape) < draw(st.sampled_from((0.02, 0.3))))
        cost = cost.masked_fill(walls, draw(st.sampled_from((math.inf, 1e9, 1e30))))
    lengths: list[Tensor | None] = [None, None]
    if draw(st.booleans()):
        lengths = [torch.from_numpy(random.integers(1, k + 1, size=lead)) for k in (n, m)]
        beyond = torch.arange(n)[:, None] >= lengths[0][..., None, None]
        cost = cost.masked_fill(beyond, math.nan)
    if draw(st.booleans()):
        cost = cost.mT.contiguous().mT
    closed = sides[1:] == ("", "")
    return problem_of(
        cost,
        sides,
        gamma=draw(st.sampled_from((1e-2, 0.1, 1.0, 10.0, 0.0))),
        warp=draw(st.sampled_from((0.0, 0.0, 0.7, -0.2))),
        skip=draw(st.sampled_from((0.0, 0.3, -0.4, 2.0))),
        x_lengths=lengths[0],
        y_lengths=lengths[1],
        bandwidth=draw(st.none() | st.integers(0, 5)) if closed else None,
    )


def check(launcher: EmulatorLauncher, problem: PatternProblem) -> None:
    """Value, and gradients by cost and settings, of each item."""
    cost = problem.cost
    single = cost.dtype == torch.float32
    factors = 0.5 + torch.rand(cost.shape[:-2], generator=torch.Generator().manual_seed(1))
    value = pattern.value(launcher, problem).double()
    grads = pattern.gradient(launcher, problem, factors.to(cost.dtype), True)
    assert grads[0].stride() == torch.empty_like(cost).stride()
    wide = problem._replace(cost=cost.double())
    truth, truths = cpu.pattern_value(wide), cpu.pattern_gradient(wide, factors.double(), True)
    close = {"rtol": 1e-6 if single else 1e-12, "atol": 1e-15}
    torch.testing.assert_close(value, truth, equal_nan=True, **close)
    tolerance, steps = 5e-5 if single else 1e-9, sum(cost.shape[-2:])
    alone = pattern.gradient(launcher, problem, factors.to(cost.dtype), False)[0]
    scales = 1, 20 * steps, 4 * steps, steps, 1
    for got, expected, scale in zip((*grads, alone), (*truths, truths[0]), scales, strict=True):
        assert torch.equal(got.isnan(), expected.isnan())
        error = (got.double() - expected).abs().nan_to_num(0)
        assert (error <= tolerance * scale).all(), (problem[6:], error.max() / scale)


@examples(60)
@given(data=st.data())
def test_values_and_gradients_are_those_of_the_recursion(data: st.DataObject) -> None:
    check(data.draw(launchers(checked=False)), data.draw(problems(40)))


def check_state(
    launcher: EmulatorLauncher, problem: PatternProblem, with_parameters: bool = True
) -> int:
    """From what a value has kept, the gradient has the bits of the one without; returns the bytes
    kept.
    """
    cost = problem.cost
    value, state = pattern.value_and_state(launcher, problem)
    assert bits(value) == bits(pattern.value(launcher, problem))
    lead = cost.shape[:-2]
    grad_value = torch.linspace(-1, 2, lead.numel()).reshape(lead).to(cost.dtype)
    backward = launcher, problem, grad_value, with_parameters
    truth, before = pattern.gradient(*backward), bits(state)
    for _ in range(2):
        grads = pattern.gradient(*backward, state)
        for one, two in zip(grads[: 4 if with_parameters else 1], truth, strict=False):
            assert bits(one) == bits(two)
            assert one.stride() == two.stride()
        assert bits(state) == before
    return state.numel()


@examples(40)
@given(data=st.data())
def test_a_gradient_from_state_has_the_bits_of_one_without(data: st.DataObject) -> None:
    launcher, problem = data.draw(launchers(checked=False)), data.draw(problems(48))
    assert check_state(launcher, problem, data.draw(st.booleans())) > 0


@pytest.mark.parametrize("sides", [("xy", "", ""), ("y", "", ""), ("xy", "y", "xy")], ids=str)
def test_the_public_functions_go_on_from_the_state(
    sides: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the emulator in the place of what the CPU has for the operators."""
    emulated, names = Operators(lambda _: EmulatorLauncher(MANY)), []

    def counted(name: str) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            names.append(name)
            return getattr(emulated, name)(*args)

        return call

    cost = torch.rand(2, 9, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    cost.requires_grad_()
    warp = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    call = functools.partial(
        soft_dtw_from_cost,
        gamma=torch.tensor([0.5, 0.7], dtype=torch.float64),
        **dict(zip(("repeat", "open_begin", "open_end"), sides, strict=True)),
    )
    for leaves in ((cost,), (cost, warp)):
        settings = {"warp_cost": leaves[1] if len(leaves) > 1 else 0.2}
        monkeypatch.undo()
        plain = torch.autograd.grad(call(cost, **settings).sum(), leaves)
        for name in ("pattern_value_and_state", "pattern_gradient_from_state"):
            monkeypatch.setattr(backends.load("numba"), name, counted(name))
        value = call(cost, **settings)
        both = [torch.autograd.grad(value.sum(), leaves, retain_graph=True) for _ in range(2)]
        assert names == ["pattern_value_and_state", *["pattern_gradient_from_state"] * 2]
        for one, two, other in zip(*both, plain, strict=True):
            assert bits(one) == bits(two)
            torch.testing.assert_close(one, other)
        assert torch.autograd.gradgradcheck(functools.partial(call, **settings), cost)
        names.clear()


@examples(40)
@given(data=st.data())
def test_many_small_pairs(data: st.DataObject) -> None:
    """A thread each, in place of a warp."""
    launcher = EmulatorLauncher(ONE, checked=data.draw(st.booleans()))
    problem = data.draw(problems(8))
    repeated = [t if t is None else t[None].expand(16, *t.shape) for t in problem[:6]]
    many = PatternProblem(*repeated, *problem[6:])
    check(launcher, many)
    assert launcher.launches[0][0] == "tiny_pattern"


@pytest.mark.parametrize("columns", tiny.COLUMNS[torch.float32])
def test_small_pairs_of_every_width(columns: int) -> None:
    """Numbers without exponents, and where these do not do."""
    cost = torch.rand(64, 4, columns, generator=torch.Generator().manual_seed(8))
    cost[::3] *= torch.linspace(1, 300, 22)[:, None, None]
    for sides in (("xy", "xy", "xy"), ("x", "", ""), ("y", "x", "y")):
        check(EmulatorLauncher(ONE), problem_of(cost, sides, gamma=0.5, skip=0.2))


def test_a_cost_of_warping_at_gamma_0_counts_to_its_last_digit() -> None:
    """2 at a fifth more steps of -0.2 is the same but for a digit that C + 2 w has not."""
    cost = torch.tensor([[[1.0, 1, 2, -2, -2, 2, -2], [0, -2, -1, 0, 0, 0, -2]]])
    problem = problem_of(cost, ("xy", "xy", "xy"), gamma=0.0, warp=-0.2)
    found = pattern.gradient(EmulatorLauncher(), problem, torch.ones(1), False)[0]
    exact = cpu.pattern_gradient(problem, torch.ones(1), False)[0]
    assert torch.equal(found, exact)
    check(EmulatorLauncher(), problem)


# Two strips at least, so that ends are written by other warps than read them.
WIDE = [
    ("xy", "xy", "xy"),
    ("y", "x", "x"),
    ("x", "y", "y"),
    ("", "xy", "xy"),
    ("xy", "", "x"),
    ("y", "", ""),
]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sides", WIDE, ids=str)
def test_strips_that_wait_for_each_other(family: str, sides: tuple[str, ...]) -> None:
    """In the build that sees races, under schedules of any order."""
    cost = torch.rand(2, 90, 80, generator=torch.Generator().manual_seed(2))
    lengths = {"x_lengths": torch.tensor([90, 70]), "y_lengths": torch.tensor([80, 41])}
    for multiprocessors in (MANY, ONE):
        launcher = EmulatorLauncher(
            multiprocessors, family=family, checked=True, schedule="random", resident=3
        )
        problem = problem_of(cost, sides, gamma=0.1, skip=0.2, **lengths)
        check(launcher, problem)
        assert check_state(launcher, problem) > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_the_fast_arithmetic_leaves(dtype: torch.dtype) -> None:
    """Gammas of 0 and nearly 0, costs and prices beyond its range, values near 0, all with ends in
    several strips, whose order decides at gamma = 0.
    """
    cost = torch.randint(0, 3, (6, 40, 70), generator=torch.Generator().manual_seed(3)).to(dtype)
    cost[3] *= 1e9
    cost[5] *= 1e-7
    gamma = torch.tensor([0.0, 1e-9, 1.0, 1.0, 0.0, 10.0], dtype=torch.float64)
    skip = torch.tensor([1.0, 0.5, 1e7, 0.25, 0.0, 0.0], dtype=torch.float64)
    for sides in (("xy", "xy", "xy"), ("", "x", "y"), ("y", "y", "x"), ("x", "", "xy")):
        problem = problem_of(cost, sides, gamma=gamma, skip=skip)
        check(EmulatorLauncher(), problem)
        assert check_state(EmulatorLauncher(), problem) > 0


@pytest.mark.parametrize("sides", [("y", "", ""), ("xy", "xy", "xy")], ids=str)
def test_what_is_no_number_makes_its_item_one(sides: tuple[str, ...]) -> None:
    """Among costs, wherever no path comes; and a price, where it counts."""
    cost = torch.rand(5, 70, 70, generator=torch.Generator().manual_seed(4))
    cost[0, 0, 69] = cost[1, 69, 0] = math.nan
    cost[2, 3, 60] = -math.inf
    skip = torch.tensor([0.1, 0.1, 0.1, math.nan, 0.1], dtype=torch.float64)
    problem, launcher = problem_of(cost, sides, skip=skip), EmulatorLauncher()
    counts = sides[1] != ""
    expected = torch.tensor([True, True, True, counts, False])
    assert torch.equal(pattern.value(launcher, problem).isnan(), expected)
    assert check_state(launcher, problem) > 0
    ones = torch.ones(5)
    for grad in pattern.gradient(launcher, problem, ones, True):
        assert torch.equal(grad.reshape(5, -1).isnan().any(-1), expected)
    if not counts:
        assert (pattern.gradient(launcher, problem, ones, True)[3][4] == 0).all()


def test_paths_are_where_the_gradient_of_gamma_0_is() -> None:
    cost = torch.randint(0, 2, (4, 9, 12), generator=torch.Generator().manual_seed(5)).float()
    for sides in (("x", "", ""), ("xy", "y", "xy"), ("", "xy", "xy")):
        problem = problem_of(cost, sides)
        found = pattern.path(EmulatorLauncher(), problem)
        for one, two in zip(found, reference.path(problem), strict=True):
            assert torch.equal(one, two)


def test_bits_do_not_depend_on_the_place() -> None:
    cost = torch.rand(7, 50, 40, generator=torch.Generator().manual_seed(6))
    problem = problem_of(cost, ("xy", "xy", "xy"), gamma=0.1, skip=0.2)
    launcher = EmulatorLauncher(multiprocessors=ONE)

    def run(some: PatternProblem) -> tuple[Tensor, ...]:
        ones = torch.ones(some.cost.shape[:-2])
        return pattern.value(launcher, some), *pattern.gradient(launcher, some, ones, True)

    whole = run(problem)
    alone = run(problem_of(cost[4:5], ("xy", "xy", "xy"), gamma=0.1, skip=0.2))
    for one, two in zip(whole, alone, strict=True):
        assert bits(one[4:5]) == bits(two)


@pytest.mark.parametrize("shape", [(0, 4, 5), (2, 0, 4, 5)])
def test_empty_batches(shape: tuple[int, ...]) -> None:
    problem = problem_of(torch.rand(shape), ("y", "x", "x"))
    ones = torch.ones(shape[:-2])
    assert pattern.value(EmulatorLauncher(), problem).shape == shape[:-2]
    assert pattern.gradient(EmulatorLauncher(), problem, ones, True)[0].shape == shape


def test_a_cost_of_warping_under_another_default_device(fresh: Forks) -> None:
    """The kernels are first imported there."""
    fresh.run(f"""if True:
        import sys
        import torch

        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from cuda_emulator import EmulatorLauncher
        from softdtw_kernels._problem import PatternProblem

        cost = torch.rand(2, 3, 4)
        numbers = (torch.full((2,), number, dtype=torch.float64) for number in (1.0, 0.5, 0.1))
        given = PatternProblem(cost, *numbers, None, None, None, "xy", "y", "y")
        with torch.device("meta"):
            from softdtw_kernels._cuda import pattern

            value = pattern.value(EmulatorLauncher(), given)
        assert value.isfinite().all()
    """)


def test_every_pattern_has_its_number() -> None:
    assert [pattern.SIDES[side] for side in SIDES] == [3, 1, 2, 0]
