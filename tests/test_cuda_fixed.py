"""Differences in fixed point: source/fixed.cu, on the emulator.

The laws of all kernels, in test_cuda_kernels.py and test_cuda_state.py, draw these too.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from cuda_calls import MUCH, ONE, check_against_oracle, costs_rounded_alike, no_limits, planted
from cuda_emulator import COMPILER, NO_COMPILER, SCHEDULES, EmulatorLauncher
from helpers import bits

from softdtw_kernels._cpu import operators as numba_cpu
from softdtw_kernels._cuda import fixed, lattice
from softdtw_kernels._cuda.fields import SOURCES
from softdtw_kernels._cuda.fixed import FIXED, fixed_plan, reason_against
from softdtw_kernels._cuda.variants import Shape
from softdtw_kernels._problem import Problem

pytestmark = pytest.mark.skipif(COMPILER is None, reason=NO_COMPILER)


def costs_of(kind: str, n: int, m: int) -> torch.Tensor:
    """(1, n, m) in float32: costs as they are in use, of sequences of some kind."""
    random = np.random.default_rng(1)
    if kind == "uniform":
        return torch.from_numpy(random.random((1, n, m))).float()
    x, y = (random.standard_normal((k, 64 if kind in ("far", "cosine") else 4)) for k in (n, m))
    if kind in ("walks", "z-normed", "near"):
        x, y = x.cumsum(0), y.cumsum(0)
    if kind == "near":
        y = x[np.arange(m) * n // m] + 0.1 * random.standard_normal((m, 4))
    if kind == "z-normed":
        x, y = ((z - z.mean(0)) / z.std(0) for z in (x, y))
    if kind == "cosine":
        x, y = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (x, y))
        return torch.from_numpy(1 - x @ y.T).float()[None]
    return torch.from_numpy(((x[:, None] - y) ** 2).sum(-1)).float()[None]


def single(cost: torch.Tensor, gamma: float) -> dict[str, object]:
    return no_limits(cost, torch.full(cost.shape[:-2], gamma, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["uniform", "cosine", "near", "z-normed", "far", "walks"])
def test_float32_keeps_its_bar_on_costs_in_use(kind: str) -> None:
    """A tenth of the bar, in gradients: what is rounded here does not add up."""
    cost = costs_of(kind, 300, 290)
    for gamma in (1.0, 0.1, 0.01, 0.001):
        launcher = EmulatorLauncher(ONE, family=FIXED)
        problem, one = Problem(**single(cost, gamma)), torch.ones(1)
        truth = problem._replace(cost=cost.double())
        value, state = lattice.value_and_state(launcher, problem)
        torch.testing.assert_close(value.double(), numba_cpu.value(truth), rtol=1e-6, atol=0)
        visits, in_gamma, _ = lattice.gradient(launcher, problem, one, True, state)
        true, true_in_gamma, _ = numba_cpu.gradient(truth, one.double(), True)
        assert (visits - true).abs().max() <= 5e-6, gamma
        assert (in_gamma - true_in_gamma).abs() <= 5e-5 * (300 + 290), gamma


@pytest.mark.parametrize("shape", [(64, 64), (300, 6), (2, 450), (300, 1), (200, 300)], ids=str)
def test_values_keep_their_bar_where_equal_costs_are_rounded_alike(shape: tuple[int, int]) -> None:
    for kind, gamma in (("constant", 1.0), ("constant", 0.1), ("integers", 1.0)):
        call = single(costs_rounded_alike(kind, shape, 12), gamma)
        value = lattice.value(EmulatorLauncher(ONE, family=FIXED), Problem(**call)).double()
        truth = numba_cpu.value(Problem(**{**call, "cost": call["cost"].double()}))
        torch.testing.assert_close(value, truth, rtol=1e-6, atol=0)


def wide() -> dict[str, object]:
    """Two strips, several items a warp, all of another length; every other column of the memory."""
    random = np.random.default_rng(3)
    cost = torch.from_numpy(random.random((3, 90, 600))).float()[..., ::2]
    call = single(cost, 0.2)
    return call | {
        "x_lengths": torch.tensor([90, 61, 7]),
        "y_lengths": torch.tensor([300, 130, 257]),
    }


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
def test_every_access_is_in_bounds_and_ordered(schedule: str) -> None:
    check_against_oracle(EmulatorLauncher(ONE, schedule, True, family=FIXED), wide())


def test_results_depend_on_the_item_alone() -> None:
    """Not on its place, on what is beside it, on the memory of costs, or on a state."""
    call = single(costs_of("z-normed", 140, 300), 0.02)
    cost = call["cost"]
    expected = results(cost, 0.02, ONE)[0]
    beside = torch.cat((cost * 3, cost, cost * 0 + math.nan, cost))
    for layout in (beside, beside.mT.contiguous().mT, torch.stack((beside, beside), -1)[..., 0]):
        for multiprocessors in (ONE, 64):
            found = results(layout, 0.02, multiprocessors)
            assert found[1] == found[3] == expected


def results(cost: torch.Tensor, gamma: float, multiprocessors: int) -> list[list[object]]:
    """Bits of value, gradient and derivative by gamma of every item."""
    problem = Problem(**single(cost, gamma))
    launcher = EmulatorLauncher(multiprocessors, "random", family=FIXED)
    ones = torch.ones(len(cost))
    value, state = lattice.value_and_state(launcher, problem)
    assert bits(value) == bits(lattice.value(launcher, problem))
    found = lattice.gradient(launcher, problem, ones, True, state)[:2]
    for a, b in zip(found, lattice.gradient(launcher, problem, ones, True)[:2], strict=True):
        assert bits(a) == bits(b)
    return [[bits(t[k].contiguous()) for t in (value, *found)] for k in range(len(cost))]


@pytest.mark.parametrize("is_planted", [False, True])
def test_differences_beyond_32_bits_are_seen(is_planted: bool, tmp_path: Path) -> None:
    """Small costs around a block of large ones: without the check results would be wrong."""
    right = "return outside || lowest < LEAST || bits >> RANGE != MAGIC_BITS >> RANGE;"
    directory = planted(tmp_path, "fixed.cuh", right, "return false;") if is_planted else SOURCES
    call = wide()
    call["cost"][:, 20:60, 50:150] *= 4000
    launcher = EmulatorLauncher(ONE, directory=directory, family=FIXED)
    if not is_planted:
        check_against_oracle(launcher, call)
        return
    with pytest.raises(AssertionError):
        check_against_oracle(launcher, call)


def test_a_float_that_has_left_its_integer_is_seen(tmp_path: Path) -> None:
    """What is beyond any range goes to the launch that follows."""
    directory = planted(
        tmp_path,
        "fixed.cuh",
        "rest = fmaf(q.d, units, -log);",
        "rest = fmaf(q.d, units, -log) + 1.0f;",
    )
    problem = Problem(**single(costs_of("walks", 80, 90), 0.1))
    for sources, is_left in ((SOURCES, False), (directory, True)):
        launcher = EmulatorLauncher(ONE, directory=sources, family=FIXED)
        _, state = lattice.value_and_state(launcher, problem)
        assert (state[-256:].view(torch.int32)[0] != 0) == is_left


@pytest.mark.parametrize("gamma", [1.0, 0.05])
def test_segments_without_visits_are_passed_over_with_the_same_bits(
    gamma: float, tmp_path: Path
) -> None:
    everything = planted(
        tmp_path,
        "tiles.cuh",
        "const bool visited = has_visits(k, visits);",
        "const bool visited = true;",
    )
    problem = Problem(**single(costs_of("near", 260, 300), gamma))
    found = []
    for directory in (SOURCES, everything):
        launcher = EmulatorLauncher(ONE, family=FIXED, directory=directory)
        grads = lattice.gradient(launcher, problem, torch.full((1,), 0.7), True)
        found.append([bits(g) for g in grads[:2]])
        assert (launcher.counts["passed"] > 0) == (directory == SOURCES)
    assert found[0] == found[1]


def test_it_takes_batches_of_plain_float32_costs() -> None:
    """On the 132 multiprocessors of an H100 or H200."""

    def reason(pairs: int, n: int, m: int, order: int = 1, **others: object) -> str | None:
        fields = {"dtype": torch.float32, "weak": False, "bandwidth": -1, **others}
        shape = Shape(pairs=pairs, n=n, m=m, **fields)
        assert (fixed_plan(shape, order, 132, MUCH, None) is None) == bool(
            reason_against(shape, order, 132, None)
        )
        return reason_against(shape, order, 132, None)

    assert reason(4096, 256, 256) is None
    assert reason(2048, 1024, 1024) is reason(1056, 4096, 500, 0) is None
    assert "idle" in str(reason(512, 256, 256))  # two strips of 128 columns have more warps
    assert "idle" in str(reason(4096, 64, 64))
    assert "idle" in str(reason(4096, 256, 300))
    assert "float64" in str(reason(4096, 256, 256, dtype=torch.float64))
    assert "dummy" in str(reason(4096, 513, 513, weak=True))
    assert "band" in str(reason(4096, 256, 256, bandwidth=10, banded=True))
    assert "band" in str(reason(4096, 256, 256, banded=True))  # with lengths
    assert "float64" in str(reason(4096, 256, 256, 2))


@pytest.mark.parametrize("lengths", [(None, None), ([9, 4, 7], None), ([9, 3, 8], [11, 11, 2])])
@pytest.mark.parametrize("order", [0, 1])
def test_a_band_is_left_to_others(order: int, lengths: tuple[list[int] | None, ...]) -> None:
    """With lengths too, where it lies elsewhere in every item."""
    cost = torch.rand(3, 9, 11, generator=torch.Generator().manual_seed(1))
    problem = Problem(
        cost,
        torch.full((3,), 0.3, dtype=torch.float64),
        None,
        *(None if n is None else torch.tensor(n) for n in lengths),
        2,
    )
    for launcher in (EmulatorLauncher(ONE, family=FIXED), EmulatorLauncher(ONE)):
        if order:
            found = lattice.gradient(launcher, problem, torch.ones(3), True)[0]
            expected = numba_cpu.gradient(problem, torch.ones(3), True)[0]
        else:
            found, expected = lattice.value(launcher, problem), numba_cpu.value(problem)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=5e-6)
        assert all(name != "fixed" for name, *_ in launcher.launches)


def test_the_host_counts_in_the_tiles_of_the_kernels() -> None:
    assert f"constexpr int SEGMENT = {fixed.SEGMENT};" in (SOURCES / "tiles.cuh").read_text()
    text = (SOURCES / "fixed.cu").read_text()
    assert f"typedef Tiles<{fixed.ROWS}, {fixed.COLUMNS}> TheTiles;" in text
    value, gradient = fixed.RESIDENT
    assert f"__launch_bounds__(32, WITH_ORDER ? {gradient} : {value})" in text
