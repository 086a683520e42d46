"""What the backward sweep of the CUDA kernels passes over: chunks of steps without visits.

They get zeros, without a cost read or a probability recomputed; other results keep their bits.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from cuda_calls import ONE, no_limits, planted
from cuda_emulator import COMPILER, NO_COMPILER, EmulatorLauncher
from helpers import bits
from strategies import make_cost

from softdtw_kernels._cuda import lattice
from softdtw_kernels._cuda.fields import SOURCES
from softdtw_kernels._problem import Problem

pytestmark = pytest.mark.skipif(COMPILER is None, reason=NO_COMPILER)

FIRST_LOOK = "bool visited = !Cells::STAGED || has_visits(carried, false);"


def peaked(
    kind: str, n: int, m: int, gamma: float, items: int = 1, **limits: object
) -> dict[str, object]:
    cost = torch.from_numpy(make_cost(kind, (n, m), 3)).float().repeat(items, 1, 1)
    return {**no_limits(cost, torch.full((items,), gamma, dtype=torch.float64)), **limits}


# Each makes zeros of its own.
SCALES = torch.tensor([-2.0, math.nan, math.inf])


@pytest.mark.parametrize("weak", [False, True])
def test_results_have_the_bits_of_a_sweep_that_passes_over_nothing(
    weak: bool, tmp_path: Path
) -> None:
    everything = planted(tmp_path, "strip.cuh", FIRST_LOOK, "bool visited = true;")
    dummy = torch.full((3,), 0.4, dtype=torch.float64) if weak else None
    half = 2 if weak else 1
    limits = [{}, {"y_lengths": torch.tensor([70, 140, 10])}] + [{"bandwidth": 30}] * (not weak)
    for family in ("warp", "block", "long"):
        for kind, gamma in (("walk", 1.0), ("near", 0.05)):
            for limit in limits:
                call = peaked(kind, 260 // half, 300 // half, gamma, 3, dummy=dummy, **limit)
                found = []
                for directory in (SOURCES, everything):
                    launcher = EmulatorLauncher(ONE, family=family, directory=directory)
                    grads = lattice.gradient(launcher, Problem(**call), SCALES, True)
                    found.append([bits(g) for g in grads if g is not None])
                    assert (launcher.counts["passed"] > 0) == (directory == SOURCES)
                assert found[0] == found[1], (family, kind, limit)


def costs_in_use(kind: str, n: int) -> torch.Tensor:
    """(1, n, n) in float32, of two random sequences."""
    generator = torch.Generator().manual_seed(3)
    if kind == "uniform":
        return torch.rand(1, n, n, generator=generator)
    walks = kind in ("walks", "z-normed walks")
    x, y = torch.randn(2, n, 4 if walks else 64, generator=generator, dtype=torch.float64)
    if walks:
        x, y = x.cumsum(0), y.cumsum(0)
    if kind == "z-normed walks":
        x, y = ((s - s.mean(0)) / s.std(0) for s in (x, y))
    if kind == "cosine":
        return (1 - torch.nn.functional.normalize(x) @ torch.nn.functional.normalize(y).T)[
            None
        ].float()
    return torch.cdist(x, y).square()[None].float()


# Of the steps of the backward sweep at 1024 x 1024: at most so many are not passed over.
SHARES = {
    "uniform": (0.50, 0.40, 0.20),
    "cosine": (0.50, 0.25, 0.15),
    "z-normed walks": (0.30, 0.16, 0.13),
    "walks": (0.13, 0.13, 0.13),
    "squared distances": (0.15, 0.13, 0.13),
}


@pytest.mark.parametrize("kind", SHARES)
def test_most_steps_read_no_cost_and_recompute_nothing(kind: str) -> None:
    cost = costs_in_use(kind, 1024)
    for gamma, share in zip((1.0, 0.1, 0.01), SHARES[kind], strict=True):
        launcher = EmulatorLauncher(family="warp")
        problem = Problem(**no_limits(cost, torch.tensor([gamma], dtype=torch.float64)))
        visits, *_ = lattice.gradient(launcher, problem, torch.ones(1), False)
        visited, passed = launcher.counts["visited"], launcher.counts["passed"]
        assert visited <= share * (visited + passed), gamma
        assert launcher.counts["recomputed"] == visited  # tiles are of one chunk here
        # The forward sweep reads every chunk of rows once; the ring runs ahead of the visits.
        strips = 16
        assert launcher.counts["fetched"] <= strips * 1024 // 16 + visited + 8 * strips
        # Every row and column is passed through.
        assert min(visits.sum(2).min(), visits.sum(1).min()) >= 1 - 1e-4


def test_costs_far_from_every_visit_are_not_read() -> None:
    """A gradient from state, after the others were made NaN."""
    problem = Problem(**peaked("walk", 1024, 300, 1.0))
    launcher = EmulatorLauncher(family="warp")
    _, state = lattice.value_and_state(launcher, problem)
    backward = problem, torch.ones(1), True
    truth = lattice.gradient(launcher, *backward, state)
    reach = 256  # rows: a ring and a tile of four chunks, and the lanes' skew
    by_strip = [block.amax((0, 2)) > 0 for block in truth[0].split(64, dim=2)]
    read = [
        torch.nn.functional.max_pool1d(rows[None].float(), 2 * reach + 1, 1, reach)[0] > 0
        for rows in by_strip
    ]
    far = ~torch.stack(read, 1).repeat_interleave(64, 1)[:, :300]
    assert far.float().mean() > 0.1
    problem.cost[0, far] = math.nan
    for a, b in zip(lattice.gradient(launcher, *backward, state), truth, strict=True):
        assert a is None or bits(a) == bits(b)


MISTAKES = {
    "results of lanes that are done are overwritten by costs": (
        "pass_steps(to, to + LANES - 1, min(last - first, to), factor, false);",
        "",
    ),
    "nothing flows on to the left": (
        "const uint64 word = visited ? gathered[lane] : THERE;",
        "const uint64 word = gathered[lane];",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_in_passing_over_are_seen(mistake: str, tmp_path: Path) -> None:
    """By wrong results."""
    directory = planted(tmp_path, "strip.cuh", *MISTAKES[mistake])
    problem = Problem(**peaked("walk", 260, 300, 1.0))
    right, wrong = (
        lattice.gradient(
            EmulatorLauncher(ONE, family="warp", directory=d), problem, torch.ones(1), False
        )
        for d in (SOURCES, directory)
    )
    assert bits(right[0]) != bits(wrong[0])
