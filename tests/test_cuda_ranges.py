"""CUDA kernels in float32 where numbers come to the ends of its range, against the kernels of the
CPU in float64: by the emulator, with subnormal numbers flushed to 0, as CuPy has the kernels
compiled, and without.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from cuda_calls import MANY, ONE, no_limits
from cuda_emulator import COMPILER, NO_COMPILER, EmulatorLauncher
from torch import Tensor

from softdtw_kernels._cpu import operators as cpu
from softdtw_kernels._cuda.operators import Operators
from softdtw_kernels._cuda.plan import FAMILIES
from softdtw_kernels._problem import PatternProblem, Problem, SmoothedProblem

pytestmark = pytest.mark.skipif(COMPILER is None, reason=NO_COMPILER)

flushing = pytest.mark.parametrize("flushes", [False, True])


def spiky(seed: int, rare: float, low: float, high: float) -> Tensor:
    """Costs near 0, and here and there one of so many times gamma ln 2."""
    random = np.random.default_rng(seed)
    bits = random.random((16, 64, 64)) * 0.7
    spikes = random.random(bits.shape) < rare
    bits = np.where(spikes, random.uniform(low, high, bits.shape), bits)
    return torch.from_numpy(bits * math.log(2)).float()


def error_of(launcher: EmulatorLauncher, cost: Tensor) -> float:
    """Of the gradient; NaN counts as infinite. The value keeps its bar."""
    call = no_limits(cost, torch.ones(cost.shape[:-2], dtype=torch.float64))
    problem, exact = Problem(**call), Problem(**{**call, "cost": cost.double()})
    operators, ones = Operators(lambda _: launcher), torch.ones(cost.shape[:-2])
    truth = cpu.value(exact)
    torch.testing.assert_close(operators.value(problem).double(), truth, rtol=1e-6, atol=0)
    got = operators.gradient(problem, ones, False)[0].double()
    error = (got - cpu.gradient(exact, ones.double(), False)[0]).abs()
    return float(error.nan_to_num(nan=math.inf).max())


@flushing
@pytest.mark.parametrize("family", FAMILIES)
def test_spikes_near_the_range_of_float32_do_not_turn_a_gradient_aside(
    family: str, flushes: bool
) -> None:
    """Sums above 2^126 have a reciprocal of 0: all that visits such a cell went on diagonally."""
    for rare in (1 / 100, 1 / 400, 1 / 1500):
        for multiprocessors in (ONE, MANY):
            launcher = EmulatorLauncher(multiprocessors, family=family, flushes=flushes)
            assert error_of(launcher, spiky(0, rare, 105, 126)) <= 5e-5


@flushing
@pytest.mark.parametrize("family", [None, *FAMILIES])
def test_a_cheap_cell_after_a_sum_below_the_range_of_float32(
    family: str | None, flushes: bool
) -> None:
    """A subnormal sum, whose reciprocal is infinite, under a weight that makes it normal again."""
    bits = torch.zeros(12, 40, 64)
    bits[:, 1, 0], bits[:, 1, 1], bits[:, 2, 0] = 100, -32, -20
    launcher = EmulatorLauncher(ONE, family=family, flushes=flushes)
    assert error_of(launcher, bits * math.log(2)) <= 5e-5


@flushing
@pytest.mark.parametrize("repeat", ["x", "y", ""])
def test_spikes_both_ways_where_steps_are_missing(repeat: str, flushes: bool) -> None:
    cost = spiky(1, 1 / 60, -60, 126)
    zeros = torch.zeros((), dtype=torch.float64).expand(16)
    limits = (None, None, None)
    problem = PatternProblem(cost, zeros + 1, zeros, zeros, *limits, repeat, "xy", "xy")
    launcher = EmulatorLauncher(ONE, family="warp", flushes=flushes)
    ones = torch.ones(16)
    got = Operators(lambda _: launcher).pattern_gradient(problem, ones, False)[0]
    exact = problem._replace(cost=cost.double())
    truth = cpu.pattern_gradient(exact, ones.double(), False)[0]
    torch.testing.assert_close(got.double(), truth, rtol=0, atol=5e-5)


@flushing
def test_a_large_sum_in_a_small_pair_with_missing_steps(flushes: bool) -> None:
    """With the derivatives by gamma too, tiny_pattern.cu keeps the shares of the predecessors."""
    costs = [[0, 60, 70, 58], [95.8, 14, 75, 75], [95.8, 95.8, 14.5, 95.8]]
    bits = torch.tensor(costs, dtype=torch.float64).repeat(32, 1, 1)
    cost = (bits * math.log(2)).float()
    zeros = torch.zeros(32, dtype=torch.float64)
    free = torch.zeros((), dtype=torch.float64).expand(32)  # of one number: nothing is added
    problem = PatternProblem(cost, zeros + 1, free, zeros, None, None, None, "x", "", "")
    launcher, ones = EmulatorLauncher(ONE, flushes=flushes), torch.ones(32)
    got = Operators(lambda _: launcher).pattern_gradient(problem, ones, True)[0]
    assert launcher.launches[0][0] == "tiny_pattern"
    exact = problem._replace(cost=cost.double())
    truth = cpu.pattern_gradient(exact, ones.double(), True)[0]
    torch.testing.assert_close(got.double(), truth, rtol=0, atol=5e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zeros_of_a_smoothed_gradient_stay_zeros_times_infinity(dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(0)
    cost = torch.rand(2, 20, 20, dtype=dtype, generator=random)
    gammas = torch.zeros(2, dtype=torch.float64)
    problem = SmoothedProblem(cost, gammas, None, None, None, 1.0)
    operators = Operators(lambda _: EmulatorLauncher(MANY))
    ones = torch.ones(2, dtype=dtype)
    plain = operators.smoothed_gradient(problem, ones, True)
    endless = operators.smoothed_gradient(problem, ones * math.inf, True)
    assert (plain[0] == 0).any()
    for one, many in zip(plain[:2], endless[:2], strict=True):
        assert torch.equal(many, torch.where(one == 0, 0, one * math.inf))
