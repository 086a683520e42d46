"""What one backend refuses, every backend refuses, by the same words: a dummy cost with a band, and
gamma out of its one range. Values in CUDA tensors are not read: there the item becomes NaN.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from cuda_calls import FAMILIES, MANY, RecordingLauncher
from cuda_emulator import EmulatorLauncher

from softdtw_kernels import (
    S2DTWFunction,
    SoftDTWFunction,
    SoftDTWLoss,
    soft_dtw,
    soft_dtw_from_cost,
)
from softdtw_kernels import _reference as reference
from softdtw_kernels._cuda import features, fields, lattice, smoothing, tiny
from softdtw_kernels._cuda.operators import Operators
from softdtw_kernels._problem import FeatureProblem, Problem, SmoothedProblem, Smoothing
from softdtw_kernels._values import LARGEST_GAMMA

OPERATORS = torch.ops.softdtw_kernels
COST, ITEM = torch.rand(2, 3, 6), torch.ones(2)
GAMMA = torch.full((2,), 0.1, dtype=torch.float64)
NUMBERS = GAMMA, GAMMA
STATE = torch.empty(0, dtype=torch.uint8)

# What follows the problem (cost, gamma, dummy, lengths, bandwidth) in a call of each operator.
BANDED: dict[str, tuple[Any, ...]] = {
    "value": (),
    "gradient": (ITEM, False),
    "value_and_state": (),
    "gradient_from_state": (STATE, ITEM, True),
    "hessian_product": (ITEM, COST, *NUMBERS),
}


def ways_to_call(name: str) -> list[Callable[..., Any]]:
    """With the problem, and the rest."""
    operator = getattr(OPERATORS, name)
    ways = [
        getattr(Operators(lambda _: RecordingLauncher()), name),
        lambda problem, *rest: operator(*problem, *rest),
    ]
    if "state" in name:  # which kernels alone keep; its other homes are the checks of torch.ops
        assert not hasattr(reference, name)
    else:
        ways.append(getattr(reference, name))
    return ways


@pytest.mark.parametrize("name", BANDED)
@pytest.mark.parametrize("band", [0, 2])
def test_a_dummy_cost_with_a_band_is_refused_everywhere_alike(name: str, band: int) -> None:
    said = set()
    for call in ways_to_call(name):
        with pytest.raises(ValueError, match=f"bandwidth must be None with a dummy.*{band}") as e:
            call(Problem(COST, GAMMA, GAMMA, None, None, band), *BANDED[name])
        said.add(str(e.value))
    with pytest.raises(ValueError) as e:
        SoftDTWFunction.apply(COST, 0.1, 0.7, None, None, band)
    assert said == {str(e.value)}


@pytest.mark.parametrize("dummy, band", [(None, 2), (GAMMA, None), (None, None)])
def test_either_of_the_two_is_taken(dummy: torch.Tensor | None, band: int | None) -> None:
    problem = Problem(COST, GAMMA, dummy, None, None, band)
    truth = reference.value(problem)
    torch.testing.assert_close(OPERATORS.value(*problem), truth)
    on_cuda = Operators(lambda _: EmulatorLauncher())
    torch.testing.assert_close(on_cuda.value(problem), truth)


def test_small_pairs_on_cuda_refuse_a_dummy_cost_with_a_band_too() -> None:
    cost, many = torch.rand(32, 3, 4), torch.ones(32, dtype=torch.float64)
    on_cuda = Operators(lambda _: EmulatorLauncher(multiprocessors=1))
    problem = Problem(cost, many, many, None, None, 1)
    assert tiny.applies(cost, 1)
    with pytest.raises(ValueError, match="bandwidth must be None with a dummy"):
        on_cuda.value(problem)
    with pytest.raises(ValueError, match="bandwidth must be None with a dummy"):
        on_cuda.gradient(problem, torch.ones(32), False)


BEYOND = [1e29, math.nextafter(LARGEST_GAMMA, math.inf), math.inf, -1e-300, -1.0, math.nan]


def operators_of_cost(gamma: torch.Tensor) -> list[Callable[[], Any]]:
    problem = Problem(COST, gamma, None, None, None, None)
    smoothing = Smoothing(COST, gamma, None, None, 1.0)
    smoothed = SmoothedProblem(COST, gamma, None, None, None, 1.0)
    return [
        lambda: OPERATORS.value(*problem),
        lambda: OPERATORS.gradient(*problem, ITEM, True),
        lambda: OPERATORS.hessian_product(*problem, ITEM, COST, GAMMA, None),
        lambda: OPERATORS.smooth(*smoothing),
        lambda: OPERATORS.smooth_vjp(*smoothing, COST),
        lambda: OPERATORS.smoothed_value(*smoothed),
        lambda: OPERATORS.fused_value(COST, COST, gamma, None, None, None, "sqeuclidean"),
        lambda: reference.value(problem),
        lambda: reference.gradient(problem, ITEM, True),
        lambda: reference.smooth(smoothing),
        lambda: reference.smoothed_value(smoothed),
        lambda: SoftDTWFunction.apply(COST, gamma),
        lambda: S2DTWFunction.apply(COST, gamma),
    ]


@pytest.mark.parametrize("bad", BEYOND)
def test_gamma_out_of_range_is_refused_everywhere_alike(bad: float) -> None:
    number = torch.tensor(bad, dtype=torch.float64)
    calls = operators_of_cost(torch.stack((GAMMA[0], number)))
    for backend in ("numba", "reference"):
        for gamma in (bad, number, number.requires_grad_()):
            calls += [
                lambda b=backend, g=gamma: soft_dtw_from_cost(COST, gamma=g, backend=b),
                lambda b=backend, g=gamma: soft_dtw(COST, COST, gamma=g, backend=b),
                lambda b=backend, g=gamma: SoftDTWLoss(g, backend=b)(COST, COST),
            ]
    calls += [lambda: SoftDTWLoss(bad), lambda: SoftDTWFunction.apply(COST, bad)]
    said = set()
    for call in calls:
        with pytest.raises(ValueError, match="^gamma must be finite, at least 0") as e:
            call()
        said.add(str(e.value))
    (message,) = said
    assert "at most 1e+28" in message and message.endswith(f"got {bad}")


@pytest.mark.parametrize("gamma", [0.0, -0.0, 1e-300, LARGEST_GAMMA])
def test_the_ends_of_the_range_are_taken_by_every_backend(gamma: float) -> None:
    gammas = torch.tensor([gamma, 0.1], dtype=torch.float64)
    for dtype in (torch.float32, torch.float64):
        problem = Problem(COST.to(dtype), gammas, None, None, None, None)
        truth = reference.value(problem)
        assert truth.isfinite().all()
        torch.testing.assert_close(OPERATORS.value(*problem), truth)
        for family in FAMILIES:
            launcher = EmulatorLauncher(MANY, family=family)
            torch.testing.assert_close(lattice.value(launcher, problem), truth)


def is_nan(result: torch.Tensor | Sequence[torch.Tensor]) -> list[list[bool]]:
    """For each tensor and item, whether it holds a NaN."""
    tensors = [result] if isinstance(result, torch.Tensor) else result
    return [t.reshape(t.shape[0], -1).isnan().any(-1).tolist() for t in tensors]


@pytest.mark.parametrize("bad", BEYOND)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_on_cuda_gamma_out_of_range_makes_its_item_nan(bad: float, dtype: torch.dtype) -> None:
    count, wrong = 32, 5
    cost, ones = torch.rand(count, 3, 4, dtype=dtype), torch.ones(count, dtype=dtype)
    gamma = torch.full((count,), 0.5, dtype=torch.float64)
    gamma[wrong] = bad
    expected = [k == wrong for k in range(count)]
    problem = Problem(cost, gamma, None, None, None, None)
    smoothed = SmoothedProblem(cost, gamma, gamma * 0, None, None, 1.0)
    results = []
    for family in FAMILIES:
        launcher = EmulatorLauncher(MANY, family=family)
        results += is_nan(lattice.value(launcher, problem))
        results += is_nan(lattice.gradient(launcher, problem, ones, True)[:2])
    small = EmulatorLauncher(multiprocessors=1)
    on_small = Operators(lambda _: small)
    assert tiny.applies(cost, 1)
    results += is_nan(on_small.value(problem))
    results += is_nan(on_small.gradient(problem, ones, False)[0])
    results += is_nan(on_small.smoothed_value(smoothed))
    results += is_nan(smoothing.smooth(small, smoothed.smoothing))
    results += is_nan(smoothing.smooth_vjp(small, smoothed.smoothing, cost))
    x = torch.rand(count, 40, 2, dtype=dtype)
    fused = FeatureProblem(x, x, gamma, None, None, None, "sqeuclidean")
    results += is_nan(features.value(small, fused))
    assert results == [expected] * len(results)


def test_the_kernels_have_the_range_of_the_checks() -> None:
    source = (fields.SOURCES / "numbers.cuh").read_text()
    found = re.search(r"LARGEST_GAMMA = ([^;]+);", source)
    assert found is not None and float(found.group(1)) == LARGEST_GAMMA
