"""CUDA kernels where numbers come to the ends of their range, by the emulator."""

from __future__ import annotations

import math

import pytest
import torch
from cuda_calls import MANY
from cuda_emulator import COMPILER, NO_COMPILER, EmulatorLauncher

from softdtw_kernels._cuda.operators import Operators
from softdtw_kernels._problem import SmoothedProblem

pytestmark = pytest.mark.skipif(COMPILER is None, reason=NO_COMPILER)


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
