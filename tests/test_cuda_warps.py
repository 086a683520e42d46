"""CUDA kernels, by the emulator, where C + 2 w, for w as the cost of warping, has not the digits
that count: values near 0, costs beside which it or a price is huge, and ties. Costs of -inf too.

The truth is exact: sums of fractions, and exponentials of 80 digits.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from cuda_calls import MANY, ONE, no_limits
from cuda_emulator import COMPILER, NO_COMPILER, EmulatorLauncher
from pattern_calls import check_paths_and_slopes_of_gamma_0, warp_problem
from pattern_oracle import Truth, exact_paths
from torch import Tensor

from softdtw_kernels._cpu import operators as plain_cpu
from softdtw_kernels._cpu import pattern as cpu
from softdtw_kernels._cuda.operators import Operators
from softdtw_kernels._problem import PatternProblem, Problem, SmoothedProblem

pytestmark = pytest.mark.skipif(COMPILER is None, reason=NO_COMPILER)

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
WARPS = ("xy", "", "")
PATTERNS = WARPS, ("y", "", ""), ("xy", "xy", "xy"), ("y", "x", "y")
KINDS = "usual", "near 0", "huge", "huge, gamma 0", "large", "walls", "prices that cancel"
ITEMS = 12


def operators(multiprocessors: int = MANY) -> Operators:
    return Operators(lambda _: EmulatorLauncher(multiprocessors))


def of_kind(kind: str, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, list[float]]:
    """Costs, and gamma, warp and skip."""
    random = np.random.default_rng(len(kind))
    cost = torch.from_numpy(random.random(shape)).to(dtype)
    if kind == "near 0":
        return cost - 0.2, [0.1, 0.5, -0.1]
    if kind == "huge":
        return cost * 1e-3, [1e-4, 1e12, 0.3]
    if kind == "huge, gamma 0":
        return (10 * cost).round(), [0.0, 1e14 + 0.1, 0.3]
    if kind == "large":
        return 10 * cost, [1.0, 1e6, 0.3]
    if kind == "prices that cancel":
        return cost - 1000, [0.1, 0.5, 1e3]
    if kind == "walls":
        walls = torch.from_numpy(random.random(shape))
        cost = cost.masked_fill(walls < 0.2, 1e30).masked_fill(walls > 0.8, -1e30)
    return cost, [0.1, 0.5, 0.3]


def problem_and_truths(
    kind: str, sides: tuple[str, str, str], dtype: torch.dtype
) -> tuple[PatternProblem, list[Truth]]:
    rows = 6 if kind == "near 0" else 4  # some frames are repeated in all alignments
    costs, (gamma, warp, skip) = of_kind(kind, (ITEMS, rows, 4), dtype)
    if kind == "near 0" and not any(sides[1:]):
        costs -= 5  # without a begin and an end of its own a path has to take them
    problem = warp_problem(costs, sides, gamma, warp, skip)
    if kind == "near 0":
        problem = near_0(problem)
    truths = [
        exact_paths(cost, gamma, *own, sides)
        for cost, *own in zip(
            costs.double().numpy(), problem.warp.tolist(), problem.skip.tolist(), strict=True
        )
    ]
    assert kind != "near 0" or all(abs(truth.value) < 0.01 for truth in truths)
    return problem, truths


def near_0(problem: PatternProblem) -> PatternProblem:
    """With a price of repeats, or of frames left out, that makes the values next to 0: by steps of
    Newton's.
    """
    ones = torch.ones(problem.cost.shape[0], dtype=torch.float64)
    name = "skip" if problem.open_begin or problem.open_end else "warp"
    wide = problem._replace(cost=problem.cost.double())
    for _ in range(8):
        _, _, by_warp, by_skip = cpu.pattern_gradient(wide, ones, True)
        step = (cpu.pattern_value(wide) - 1e-3) / (by_skip if name == "skip" else by_warp)
        wide = wide._replace(**{name: getattr(wide, name) - step})
    return problem._replace(**{name: getattr(wide, name)})


def check(engine: Operators, problem: PatternProblem, truths: list[Truth]) -> None:
    single = problem.cost.dtype == torch.float32
    ones = torch.ones(len(truths), dtype=problem.cost.dtype)
    value, grads = engine.pattern_value(problem), engine.pattern_gradient(problem, ones, True)
    kept, state = engine.pattern_value_and_state(problem)
    assert torch.equal(kept, value)
    for one, two in zip(
        engine.pattern_gradient_from_state(problem, state, ones, True), grads, strict=True
    ):
        assert torch.equal(one, two)
    alone = engine.pattern_gradient(problem, ones, False)[0]
    bar, is_open = 5e-5 if single else 1e-9, problem.open_begin or problem.open_end
    for item, truth in enumerate(truths):
        error = abs(float(value[item]) - truth.value)
        assert error <= (1e-6 if single else 1e-12) * abs(truth.value), (item, truth.value)
        for by_cost in (grads[0], alone):
            assert np.abs(by_cost[item].double().numpy() - truth.visits).max() <= bar, item
        by_skip = truth.by_skip if is_open else 0.0
        by_gamma = 0.0 if float(problem.gamma[item]) == 0 else truth.by_gamma
        expected = by_gamma, truth.by_warp, by_skip
        for got, right in zip(grads[1:], expected, strict=True):
            assert abs(float(got[item]) - right) <= 20 * bar, item


@DTYPES
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sides", PATTERNS, ids=str)
def test_prices_beside_costs_of_any_size(
    sides: tuple[str, str, str], kind: str, dtype: torch.dtype
) -> None:
    check(operators(), *problem_and_truths(kind, sides, dtype))


@pytest.mark.slow
@DTYPES
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sides", [WARPS, ("y", "x", "y")], ids=str)
def test_prices_of_many_small_pairs(
    sides: tuple[str, str, str], kind: str, dtype: torch.dtype
) -> None:
    """A thread each, in place of a warp."""
    problem, truths = problem_and_truths(kind, sides, dtype)
    many = [t if t is None else t.repeat(2, *[1] * (t.dim() - 1)) for t in problem[:6]]
    check(operators(ONE), PatternProblem(*many, *problem[6:]), truths * 2)


@DTYPES
@pytest.mark.parametrize("sides", [WARPS, ("y", "", "")], ids=str)
def test_values_near_0_of_several_strips(sides: tuple[str, str, str], dtype: torch.dtype) -> None:
    """Against the CPU, which has them to the last digit; lengths, and what lies beyond."""
    generator = torch.Generator().manual_seed(3)
    cost = torch.rand(3, 60, 40, generator=generator, dtype=torch.float64).to(dtype) - 3.0
    cost[1, 50:], cost[2, :, 33:] = math.nan, -math.inf
    lengths = {"x_lengths": torch.tensor([60, 50, 60]), "y_lengths": torch.tensor([40, 40, 33])}
    given = warp_problem(cost, sides, 0.1, 0.0, 0.2)._replace(**lengths)
    given = near_0(given)
    truth = cpu.pattern_value(given._replace(cost=cost.double()))
    assert (truth.abs() < 1).all()
    found = operators().pattern_value(given).double()
    close = {"rtol": 1e-6 if dtype == torch.float32 else 1e-12, "atol": 0}
    torch.testing.assert_close(found, truth, **close)


@DTYPES
def test_usual_prices_do_not_ask_for_the_slow_arithmetic(dtype: torch.dtype) -> None:
    """Costs of either sign: the last launch finds nothing to do."""
    cost = torch.randn(4, 40, 40, generator=torch.Generator().manual_seed(4)).to(dtype)
    ones = torch.ones(4, dtype=dtype)
    for sides in (WARPS, ("xy", "xy", "xy")):
        switches = []
        for gamma in (1.0, math.nan):  # of which the first launch makes NaN
            launcher = EmulatorLauncher(MANY)
            engine = Operators(lambda _, launcher=launcher: launcher)
            problem = warp_problem(10 * cost, sides, gamma, 0.3, 0.2)
            assert engine.pattern_value(problem).isnan().all() == math.isnan(gamma)
            engine.pattern_gradient(problem, ones, True)
            wide = [run[2] for run in launcher.launches if "-DWITH_WIDE=1" in run[1]]
            assert len(wide) == 2
            switches.append(wide)
        assert switches[0] == switches[1]


@DTYPES
def test_paths_and_second_derivatives_of_gamma_0_count_every_digit(dtype: torch.dtype) -> None:
    check_paths_and_slopes_of_gamma_0(operators(), dtype)


@DTYPES
def test_second_derivatives_beside_walls(dtype: torch.dtype) -> None:
    """As the CPU has them."""
    cost, settings = of_kind("walls", (ITEMS, 5, 5), dtype)
    problem, random = warp_problem(cost, WARPS, *settings), torch.Generator().manual_seed(6)
    along = torch.rand(cost.shape, generator=random, dtype=torch.float64).to(dtype)
    ones, numbers = torch.ones(ITEMS, dtype=dtype), torch.rand(3, ITEMS, generator=random).double()
    directions = ones, along, numbers[0], numbers[1], 0 * numbers[2]
    found = operators().pattern_hessian_product(problem, *directions)
    truth = cpu.pattern_hessian_product(problem, *directions)
    for got, expected in zip(found, truth, strict=True):
        size = max(1.0, float(expected.double().abs().max()))
        error = (got.double() - expected.double()).abs().max()
        assert error <= (1e-4 if dtype == torch.float32 else 1e-8) * size


@DTYPES
@pytest.mark.parametrize("many", [False, True])
def test_a_cost_of_minus_infinity_counts_at_gamma_0(many: bool, dtype: torch.dtype) -> None:
    """The value is -inf where a path has it, and has no derivatives; where none has it, it is that
    of the others. Above 0 the item is NaN.
    """
    items = 20 if many else 2
    engine, zeros = operators(ONE if many else MANY), torch.zeros(items, dtype=torch.float64)
    ones = torch.ones(items, dtype=dtype)
    random = torch.Generator().manual_seed(7)
    for reachable in (True, False):
        cost = torch.rand(items, 4, 4, dtype=dtype, generator=random)
        cost[0, 0, 3] = -math.inf
        if not reachable:
            cost[0, :2, 2:] = math.inf
            cost[0, 0, 3] = -math.inf
        plain = Problem(**no_limits(cost, zeros))
        calls: list[tuple[Any, Any]] = [
            (engine.value(plain), engine.gradient(plain, ones, False)[0]),
            (plain_cpu.value(plain), plain_cpu.gradient(plain, ones, False)[0]),
        ]
        weak = plain._replace(dummy=zeros + 0.4)
        smoothed = SmoothedProblem(cost, zeros, zeros + 0.4, None, None, 1.0)
        for by in (engine, plain_cpu):
            calls.append((by.value(weak), by.gradient(weak, ones, False)[0]))
        for by in (engine, plain_cpu):
            value = by.smoothed_value(smoothed)
            calls.append((value, by.smoothed_gradient(smoothed, ones, False)[0]))
        for sides in (WARPS, ("x", "", ""), ("xy", "xy", "xy")):
            pattern = warp_problem(cost, sides, 0.0, 0.3, 0.2)
            for by in (engine, cpu):
                value = by.pattern_value(pattern)
                calls.append((value, by.pattern_gradient(pattern, ones, False)[0]))
        assert calls[0][0][0].isinf() == reachable
        for (got, grads), (expected, truths) in zip(calls[::2], calls[1::2], strict=True):
            torch.testing.assert_close(got, expected, equal_nan=True, rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(grads, truths, equal_nan=True, rtol=0, atol=5e-5)
    soft = plain._replace(gamma=zeros + 1)
    assert engine.value(soft)[0].isnan()
