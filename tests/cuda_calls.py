"""Calls of the CUDA kernels that several test files draw, and how their results are compared."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import oracles
import torch
from cuda_emulator import SCHEDULES, EmulatorLauncher
from hypothesis import strategies as st
from strategies import make_cost

from softdtw_kernels import _reference as reference
from softdtw_kernels._cpu import operators as numba_cpu
from softdtw_kernels._cuda import lattice
from softdtw_kernels._cuda.fields import SOURCES
from softdtw_kernels._cuda.fixed import FIXED
from softdtw_kernels._cuda.plan import FAMILIES, SHARED_BYTES
from softdtw_kernels._cuda.recipe import Buffer, Launch
from softdtw_kernels._problem import Problem

KINDS = ("normal", "walk", "integers", "negative", "large", "tiny")
# With many multiprocessors an item has many narrow strips. With one, a warp has several items.
MANY, ONE = 64, 1
LITTLE, MUCH = SHARED_BYTES, 227 << 10  # shared memory of a block


@st.composite
def launchers(draw: st.DrawFn, checked: bool) -> EmulatorLauncher:
    return EmulatorLauncher(
        multiprocessors=draw(st.sampled_from((MANY, ONE))),
        family=draw(st.none() | st.sampled_from((*FAMILIES, FIXED))),
        shared_limit=draw(st.sampled_from((LITTLE, MUCH))),
        schedule=draw(st.sampled_from(sorted(SCHEDULES))),
        checked=checked,
        resident=draw(st.integers(1, 5)),
        seed=draw(st.integers(1, 1000)),
    )


@st.composite
def calls(draw: st.DrawFn, largest: int, weak: bool) -> dict[str, object]:
    """Fields of one problem: costs of any strides, what may differ from item to item."""
    lead = draw(st.sampled_from(((), (3,), (2, 2), (1,))))
    n, m = draw(st.integers(1, largest)), draw(st.integers(1, largest))
    seed = draw(st.integers(0, 2**16))
    random = np.random.default_rng(seed)
    dtype = draw(st.sampled_from((torch.float32, torch.float64)))
    cost = torch.from_numpy(make_cost(draw(st.sampled_from(KINDS)), (*lead, n, m), seed)).to(dtype)
    if draw(st.booleans()):
        walls = torch.from_numpy(random.random(cost.shape) < draw(st.sampled_from((0.02, 0.3))))
        cost = cost.masked_fill(walls, draw(st.sampled_from((math.inf, 1e9, 1e30))))
    layout = draw(st.sampled_from(("contiguous", "transposed", "every other column")))
    if layout == "transposed":
        cost = cost.mT.contiguous().mT
    elif layout == "every other column":
        cost = torch.stack((cost, torch.full_like(cost, math.nan)), -1)[..., 0]
    gamma = draw(st.sampled_from((1e-3, 0.1, 1.0, 10.0, 0.0)))
    gammas = torch.full(lead, gamma, dtype=torch.float64)
    if draw(st.booleans()):
        gammas = torch.tensor(gamma, dtype=torch.float64).expand(lead)
    lengths: list[torch.Tensor | None] = [None, None]
    if draw(st.booleans()):
        lengths = [torch.from_numpy(random.integers(1, k + 1, size=lead)) for k in (n, m)]
    limits = {
        "x_lengths": lengths[0],
        "y_lengths": lengths[1],
        "bandwidth": None if weak else draw(st.none() | st.integers(0, 5)),
    }
    dummy = torch.full(lead, draw(st.sampled_from((0.5, 0.0, -1.0, 3.0))), dtype=torch.float64)
    return {"cost": cost, "gamma": gammas, "dummy": dummy if weak else None, **limits}


def inside(call: dict[str, object]) -> torch.Tensor:
    cost, x, y = call["cost"], call["x_lengths"], call["y_lengths"]
    n = reference.per_item_lengths(x, cost.shape[-2], cost)
    m = reference.per_item_lengths(y, cost.shape[-1], cost)
    return reference.allowed_cells(cost, n, m, call["bandwidth"]).expand(cost.shape)


def items(call: dict[str, object]) -> Iterator[tuple[tuple[int, ...], np.ndarray, float]]:
    """Index, restricted lattice (float64, +inf outside the band) and gamma of each item."""
    cost = call["cost"].double().numpy()
    for index in np.ndindex(cost.shape[:-2]):
        n, m = (
            size if lengths is None else int(lengths[index])
            for lengths, size in (
                (call["x_lengths"], cost.shape[-2]),
                (call["y_lengths"], cost.shape[-1]),
            )
        )
        restricted = oracles.restrict(cost[index], n, m, call["bandwidth"])
        yield index, restricted, float(call["gamma"][index])


def check_against_oracle(
    launcher: EmulatorLauncher,
    call: dict[str, object],
    kernels: ModuleType = lattice,
    with_parameters: bool = True,
) -> None:
    """Value and gradient of each item against the fixed-point recursion, gamma = 0 included.

    `with_parameters` is whether the kernels have the derivatives in gamma and dummy.
    """
    problem, cost = Problem(**call), call["cost"]
    single = cost.dtype == torch.float32
    value = kernels.value(launcher, problem)
    ones = torch.ones(cost.shape[:-2], dtype=cost.dtype)
    if with_parameters:
        visits, in_gamma, in_dummy = kernels.gradient(launcher, problem, ones, True)
    else:
        visits = kernels.gradient(launcher, problem, ones)
    assert visits.stride() == torch.empty_like(cost).stride()
    assert (visits[~inside(call)] == 0).all()
    for index, real, gamma in items(call):
        weak = call["dummy"] is not None
        costs = oracles.weak_lattice(real, float(call["dummy"][index])) if weak else real
        truth = oracles.recursion(costs, gamma)
        scale = 1.0
        if truth.value < math.inf:
            scale = oracles.value_scale(truth, costs, gamma)
        error = abs_difference(float(value[index]), truth.value)
        assert error <= (1e-6 if single else 1e-12) * scale, (index, gamma, truth.value)
        tolerance = oracles.gradient_tolerance(costs, gamma)
        if single:
            tolerance = 5e-5
        n, m = real.shape
        at_real = truth.visits[1::2, 1::2] if weak else truth.visits
        error = np.abs(visits[index][:n, :m].double().numpy() - at_real).max()
        assert error <= tolerance, (index, gamma)
        if not with_parameters:
            continue
        if weak:
            error = float(in_dummy[index]) - (truth.visits.sum() - at_real.sum())
            assert abs(error) <= tolerance * truth.visits.size
        error = float(in_gamma[index]) - truth.by_gamma
        assert abs(error) <= 10 * tolerance * truth.visits.size


def abs_difference(a: float, b: float) -> float:
    return 0.0 if a == b or (math.isnan(a) and math.isnan(b)) else abs(a - b)


def planted(directory: Path, file: str, right: str, wrong: str) -> Path:
    """The sources of the kernels, with one change in one file, which has it at one place."""
    for source in SOURCES.glob("*.cu*"):
        text = source.read_text()
        if source.name == file:
            assert text.count(right) == 1, f"{file} has changed: plant anew"
            text = text.replace(right, wrong)
        (directory / source.name).write_text(text)
    return directory


def wide_call(weak: bool, bandwidth: int | None, dtype: torch.dtype = torch.float32) -> dict:
    """Several strips wide, so that warps wait for each other."""
    random = np.random.default_rng(5)
    cost = torch.from_numpy(random.random((2, 45 if weak else 90, 140 if weak else 300))).to(dtype)
    gamma = torch.full((2,), 0.1, dtype=torch.float64)
    dummy = torch.full((2,), 0.4, dtype=torch.float64) if weak else None
    lengths = {"x_lengths": torch.tensor([45, 33]), "y_lengths": torch.tensor([140, 70])}
    return {"cost": cost, "gamma": gamma, "dummy": dummy, **lengths, "bandwidth": bandwidth}


def no_limits(cost: torch.Tensor, gamma: torch.Tensor) -> dict[str, object]:
    others = dict.fromkeys(("dummy", "x_lengths", "y_lengths", "bandwidth"))
    return {"cost": cost, "gamma": gamma, **others}


# Kinds of float32 costs that are rounded alike, each with gamma and a dummy cost.
ALIKE = [
    ("constant", 1.0, None),
    ("constant", 0.1, None),
    ("constant", 1.0, 0.3),
    ("integers", 1.0, None),
    ("integers", 0.7, 0.5),
    ("forbidden", 10.0, 0.5),
    ("forbidden", 1.0, 0.5),
]


def costs_rounded_alike(kind: str, shape: tuple[int, int], items: int) -> torch.Tensor:
    """(items, n, m) in float32: what is lost in the weight of one cost is lost at every cell."""
    random = np.random.default_rng(7)
    cost = np.linspace(0.02, 2.0, items)[:, None, None] + np.zeros(shape)
    if kind == "constant":
        cost[0] = 1.03632
    elif kind == "integers":
        cost = random.integers(0, 3, size=cost.shape).astype(float)
    else:
        cost[random.random(cost.shape) < 0.1] = np.inf
    return torch.from_numpy(cost).float()


def check_values(
    kernels: ModuleType, cost: torch.Tensor, gamma: float, dummy: float | None
) -> None:
    """Values to 1e-6 of themselves, not of what cancels in them. The truth is that of float64."""
    call = no_limits(cost, torch.full(cost.shape[:-2], gamma, dtype=torch.float64))
    if dummy is not None:
        call["dummy"] = torch.full(cost.shape[:-2], dummy, dtype=torch.float64)
    value = kernels.value(EmulatorLauncher(ONE), Problem(**call)).double()
    truth = numba_cpu.value(Problem(**{**call, "cost": cost.double()}))
    torch.testing.assert_close(value, truth, rtol=1e-6, atol=0)


class RecordingLauncher:
    """An H100 or H200 that notes the storages it is given, and computes nothing."""

    multiprocessors, shared_limit, family = 132, MUCH, None

    def __init__(self) -> None:
        self.storages: dict[int, int] = {}

    def run(self, _: Sequence[Launch], buffers: Sequence[Buffer]) -> None:
        for buffer in buffers:
            if isinstance(buffer, torch.Tensor):
                storage = buffer.untyped_storage()
                self.storages[storage.data_ptr()] = storage.nbytes()
