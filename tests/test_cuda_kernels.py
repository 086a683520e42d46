"""The CUDA kernels, executed on the CPU by the emulator, against the oracles and the reference.

What the emulator's two builds check is in cuda_emulator; here the results are compared, over drawn
shapes, lengths, bands, strides and values, and through each way of sharing out the work (families),
each with few and with many multiprocessors and little and much shared memory.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import oracles
import pytest
import torch
from cuda_emulator import COMPILER, NO_COMPILER, SCHEDULES, EmulatorError, EmulatorLauncher
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import make_cost

from softdtw_kernels.backends import _cuda_host as host
from softdtw_kernels.backends import _cuda_plan, cupy_cuda, numba_cpu, reference

pytestmark = pytest.mark.skipif(COMPILER is None, reason=NO_COMPILER)

KINDS = ("normal", "walk", "integers", "negative", "large", "tiny")
FAMILIES = _cuda_plan.FAMILIES
# With many multiprocessors an item has many narrow strips. With one, a warp has several items.
MANY, ONE = 64, 1
LITTLE, MUCH = _cuda_plan.SHARED_BYTES, 227 << 10  # shared memory of a block


@st.composite
def launchers(draw: st.DrawFn, checked: bool) -> EmulatorLauncher:
    return EmulatorLauncher(
        multiprocessors=draw(st.sampled_from((MANY, ONE))),
        family=draw(st.none() | st.sampled_from(FAMILIES)),
        shared_limit=draw(st.sampled_from((LITTLE, MUCH))),
        schedule=draw(st.sampled_from(sorted(SCHEDULES))),
        checked=checked,
        resident=draw(st.integers(1, 5)),
        seed=draw(st.integers(1, 1000)),
    )


@st.composite
def calls(draw: st.DrawFn, largest: int, weak: bool) -> dict[str, object]:
    """Arguments of one call: costs of any strides, what may differ from item to item."""
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
        lattice = oracles.restrict(cost[index], n, m, call["bandwidth"])
        yield index, lattice, float(call["gamma"][index])


def check_against_oracle(
    launcher: EmulatorLauncher,
    call: dict[str, object],
    kernels: ModuleType = host,
    with_parameters: bool = True,
) -> None:
    """Value and gradient of each item against the fixed-point recursion, gamma = 0 included."""
    cost, single = call["cost"], call["cost"].dtype == torch.float32
    value = kernels.value(launcher, **call)
    ones = torch.ones(cost.shape[:-2], dtype=cost.dtype)
    visits, in_gamma, in_dummy = kernels.gradient(
        launcher, **call, grad_value=ones, with_parameters=with_parameters
    )
    assert visits.stride() == torch.empty_like(cost).stride()
    assert (visits[~inside(call)] == 0).all()
    for index, real, gamma in items(call):
        weak = call["dummy"] is not None
        lattice = oracles.weak_lattice(real, float(call["dummy"][index])) if weak else real
        truth = oracles.recursion(lattice, gamma)
        scale = 1.0
        if truth.value < math.inf:
            scale = oracles.value_scale(truth, lattice, gamma)
        error = abs_difference(float(value[index]), truth.value)
        assert error <= (1e-6 if single else 1e-12) * scale, (index, gamma, truth.value)
        tolerance = oracles.gradient_tolerance(lattice, gamma)
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


@pytest.mark.parametrize("weak", [False, True])
@settings(max_examples=60)
@given(data=st.data())
def test_value_and_gradient_match_the_oracle(data: st.DataObject, weak: bool) -> None:
    launcher = data.draw(launchers(checked=False))
    check_against_oracle(launcher, data.draw(calls(20 if weak else 40, weak)))


@pytest.mark.parametrize("wall", [1e9, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_small_costs_decide_behind_masks_that_no_path_avoids(
    dtype: torch.dtype, wall: float
) -> None:
    cost = torch.rand(2, 30, 40, dtype=dtype, generator=torch.Generator().manual_seed(0))
    cost[:, 7:9] = wall
    for gamma in (0.0, 1e-3):
        gammas = torch.full((2,), gamma, dtype=torch.float64)
        check_against_oracle(EmulatorLauncher(MANY), no_limits(cost, gammas))


@pytest.mark.parametrize("weak", [False, True])
@settings(max_examples=25)
@given(data=st.data())
def test_every_access_is_in_bounds_and_ordered(data: st.DataObject, weak: bool) -> None:
    launcher = data.draw(launchers(checked=True))
    check_against_oracle(launcher, data.draw(calls(12, weak)))


def wide_call(weak: bool, bandwidth: int | None, dtype: torch.dtype = torch.float32) -> dict:
    """Several strips wide, so that warps wait for each other."""
    random = np.random.default_rng(5)
    cost = torch.from_numpy(random.random((2, 45 if weak else 90, 140 if weak else 300))).to(dtype)
    gamma = torch.full((2,), 0.1, dtype=torch.float64)
    dummy = torch.full((2,), 0.4, dtype=torch.float64) if weak else None
    lengths = {"x_lengths": torch.tensor([45, 33]), "y_lengths": torch.tensor([140, 70])}
    return {"cost": cost, "gamma": gamma, "dummy": dummy, **lengths, "bandwidth": bandwidth}


@pytest.mark.parametrize("family", ["block", "long"])
@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
@pytest.mark.parametrize(("weak", "bandwidth"), [(False, None), (False, 7), (True, None)])
def test_strips_of_one_item_wait_for_each_other(
    schedule: str, weak: bool, bandwidth: int | None, family: str
) -> None:
    call = wide_call(weak, bandwidth)
    for resident in (1, 3):  # one block at a time must do as well: no co-residency is assumed
        launcher = EmulatorLauncher(MANY, schedule, True, resident, family=family)
        check_against_oracle(launcher, call)
        plan = plan_of(call, family)
        assert plan.strips > 1
        assert plan.team < plan.strips  # a warp of a block has several


MISTAKES = {
    "flags that neither release nor acquire": (
        "portability.cuh",
        (
            "{ return emulator_load_acquire(address); }\ninline void store_release_in_block",
            "{ return *address; }\ninline void store_release_in_block",
        ),
    ),
    "no barrier between the sweeps": (
        "lattice.cu",
        ("__syncthreads();  // now the status is known to all", ""),
    ),
    "flags not reset": ("lattice.cu", ("work.flags.rows[k] = 0", "work.flags.rows[k] += 0")),
    "rows not awaited": (
        "sweeps.cuh",
        ("while (seen < rows && (seen = flag.read()) < rows) pause_while_polling();", ""),
    ),
    "the border overwritten while others read it": (
        "strip.cuh",
        ("__syncwarp();  // lane 0 is about to overwrite the border that the others have read", ""),
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_in_what_a_block_shares_are_seen(mistake: str, tmp_path: Path) -> None:
    """Planted in the kernel itself, one at a time."""
    file, (right, wrong) = MISTAKES[mistake]
    for source in host.SOURCES.glob("*.cu*"):
        text = source.read_text()
        if source.name == file:
            assert text.count(right) == 1, f"{file} has changed: plant the mistake anew"
            text = text.replace(right, wrong)
        (tmp_path / source.name).write_text(text)
    launcher = EmulatorLauncher(ONE, "random", True, directory=tmp_path, family="block")
    call = wide_call(False, None)
    call["cost"][0, 44, 139] = 1e9  # beyond the fast arithmetic, which only the last strip sees
    with pytest.raises(EmulatorError, match="race|deadlock"):
        host.gradient(launcher, **call, grad_value=torch.ones(2), with_parameters=True)


def plan_of(
    call: dict[str, object], family: str | None = None, multiprocessors: int = MANY, order: int = 1
) -> _cuda_plan.Plan:
    task = host.batch(call["cost"], None, *list(call.values())[1:])
    return _cuda_plan.fast_plan(task, order, multiprocessors, MUCH, family)


def as_bytes(tensors: Iterable[torch.Tensor]) -> bytes:
    return b"".join(t.numpy().tobytes() for t in tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("weak", "bandwidth"), [(False, None), (False, 7), (True, None)])
def test_results_are_the_same_to_the_bit_however_the_work_is_shared_out(
    weak: bool, bandwidth: int | None, dtype: torch.dtype
) -> None:
    """Sums over cells (the derivatives in gamma and dummy) have an order for each width of strips:
    they are the same among families where the width is.
    """
    call = wide_call(weak, bandwidth, dtype)
    ones = torch.ones(2, dtype=dtype)
    results, sums = set(), {}
    for family in FAMILIES:
        for multiprocessors in (ONE, MANY):
            columns = plan_of(call, family, multiprocessors).variant.columns
            for schedule in ("ascending", "random"):
                launcher = EmulatorLauncher(multiprocessors, schedule, False, family=family)
                value = host.value(launcher, **call)
                visits, *parts = host.gradient(
                    launcher, **call, grad_value=ones, with_parameters=True
                )
                results.add(as_bytes((value, visits)))
                sums.setdefault(columns, set()).add(as_bytes(parts))
    assert len(results) == 1
    assert all(len(of_width) == 1 for of_width in sums.values())


def test_families_are_chosen_by_shape() -> None:
    """On the 132 multiprocessors of an H100 or H200."""

    def family_of(*shape: int) -> str:
        cost = torch.empty(1).expand(shape)
        gamma = torch.ones(shape[:1], dtype=torch.float64)
        return plan_of(no_limits(cost, gamma), None, 132).family

    assert family_of(4096, 256, 256) == "warp"
    assert family_of(1, 64, 32) == "warp"
    assert family_of(512, 64, 64) == family_of(100, 1024, 1024) == family_of(1, 512, 512) == "block"
    assert family_of(1, 16384, 16384) == family_of(8, 4096, 4096) == "long"
    assert family_of(100, 2, 40_000) == "long"  # more flags than fit beside the tiles


def no_limits(cost: torch.Tensor, gamma: torch.Tensor) -> dict[str, object]:
    others = dict.fromkeys(("dummy", "x_lengths", "y_lengths", "bandwidth"))
    return {"cost": cost, "gamma": gamma, **others}


@pytest.mark.parametrize("weak", [False, True])
@settings(max_examples=30)
@given(data=st.data())
def test_hessian_product_matches_the_reference(data: st.DataObject, weak: bool) -> None:
    call = data.draw(calls(9, weak))
    launcher = data.draw(launchers(checked=data.draw(st.booleans())))
    cost = call["cost"]
    single, lead = cost.dtype == torch.float32, cost.shape[:-2]
    finite = cost[inside(call) & cost.isfinite()].double().abs()
    if weak:  # the dummy cells are costs of the lattice too
        finite = torch.cat((finite, call["dummy"].reshape(-1).abs()))
    gamma = call["gamma"].reshape(-1)[0].item()
    if gamma == 0 or (finite.numel() and finite.max() / gamma > 1e4):
        return  # ties and rounding in the costs decide there
    random = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=random)

    tangents = (
        normal(*lead),
        normal(*cost.shape),
        normal(*lead),
        normal(*lead) if weak else None,
    )
    got = host.hessian_product(
        launcher,
        **call,
        **named(tangents[0].to(cost.dtype), tangents[1].to(cost.dtype), *tangents[2:]),
    )
    exact = {**call, "cost": cost.double()}
    tangent_cost = tangents[1].to(cost.dtype).double()
    grad_value = tangents[0].to(cost.dtype).double()
    truth = reference.hessian_product(**exact, **named(grad_value, tangent_cost, *tangents[2:]))
    for name, a, b in zip(("value", "cost", "gamma", "dummy"), got, truth, strict=True):
        scale = 1 + b.abs().max().item() + truth[1].abs().sum().item()
        largest = finite.max().item() if finite.numel() else 1.0
        scale *= (1 + largest / gamma) if name in ("gamma",) else 1
        assert (a.double() - b).abs().max().item() <= (2e-4 if single else 1e-9) * scale, name


def named(grad_value, tangent_cost, tangent_gamma, tangent_dummy) -> dict[str, torch.Tensor]:
    return {
        "grad_value": grad_value,
        "tangent_cost": tangent_cost,
        "tangent_gamma": tangent_gamma,
        "tangent_dummy": tangent_dummy,
    }


@settings(max_examples=30)
@given(data=st.data())
def test_smoothing_and_its_gradient_match_the_reference(data: st.DataObject) -> None:
    call = data.draw(calls(40, True))
    launcher = data.draw(launchers(checked=data.draw(st.booleans())))
    cost = call["cost"]
    arguments = (
        call["gamma"],
        call["x_lengths"],
        call["y_lengths"],
        data.draw(st.sampled_from((1.0, 3.0))),
    )
    got = host.smooth(launcher, cost, *arguments)
    truth = reference.smooth(cost.double(), *arguments)
    single = cost.dtype == torch.float32
    finite = truth.isfinite()
    assert torch.equal(got.isfinite(), finite)
    error = (got.double() - truth)[finite].abs() / (1 + truth[finite].abs())
    assert (error <= (1e-6 if single else 1e-12)).all()
    grad = torch.from_numpy(np.random.default_rng(1).normal(size=tuple(cost.shape))).to(cost.dtype)
    grad = torch.where(inside(call) & truth.isfinite(), grad, 0)
    got_cost, got_gamma = host.smooth_vjp(launcher, cost, *arguments, grad)
    true_cost, true_gamma = reference.smooth_vjp(cost.double(), *arguments, grad.double())
    assert (got_cost.double() - true_cost).abs().max() <= (5e-5 if single else 1e-9)
    assert (
        (got_gamma - true_gamma).abs()
        <= (1e-5 if single else 1e-9) * cost.shape[-1] * cost.shape[-2]
    ).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (70, 65, 20), (64, 64, 16), (2, 130, 33)])
def test_squared_distances_come_from_differences(
    shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    n, m, d = shape
    random = torch.Generator().manual_seed(0)
    x = torch.randn(2, 1, n, d, dtype=torch.float64, generator=random).to(dtype).expand(2, 3, n, d)
    y = torch.randn(3, m, d, dtype=torch.float64, generator=random).to(dtype).expand(2, 3, m, d)
    y = y.mT.contiguous().mT + 100
    for checked in (False, True):
        got = host.squared_distances(EmulatorLauncher(checked=checked), x + 100, y)
        truth = reference.squared_distances((x + 100).double(), y.double())
        assert (
            (got.double() - truth).abs() <= (1e-5 if dtype == torch.float32 else 1e-13) * truth
        ).all()


@pytest.mark.parametrize(
    "bad", ["gamma", "negative gamma", "length", "zero length", "cost", "dummy"]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_out_of_range_makes_its_item_nan_and_no_other(bad: str, family: str) -> None:
    random = torch.Generator().manual_seed(0)
    weak = bad == "dummy"
    cost = torch.randn(3, 10, 150, generator=random)
    call: dict[str, object] = {
        "cost": cost.clone(),
        "gamma": torch.full((3,), 0.5, dtype=torch.float64),
        "dummy": torch.full((3,), 0.5, dtype=torch.float64) if weak else None,
        "x_lengths": torch.tensor([10, 7, 3]),
        "y_lengths": torch.tensor([150, 150, 20]),
        "bandwidth": None,
    }
    launcher = EmulatorLauncher(MANY, "random", True, family=family)
    ones = torch.ones(3)
    good = (
        host.value(launcher, **call),
        *host.gradient(launcher, **call, grad_value=ones, with_parameters=True),
    )
    if "gamma" in bad:
        call["gamma"][1] = -1.0 if bad == "negative gamma" else math.nan
    elif "length" in bad:
        call["x_lengths"][1] = 0 if bad == "zero length" else 11
    elif bad == "dummy":
        call["dummy"][1] = math.nan
    else:
        call["cost"][1, 6, 149] = math.nan
    value = host.value(launcher, **call)
    visits, in_gamma, in_dummy = host.gradient(
        launcher, **call, grad_value=ones, with_parameters=True
    )
    assert value.isnan().tolist() == in_gamma.isnan().tolist() == [False, True, False]
    assert visits[1, :7].isnan().all()
    others = [0, 2]
    for before, after in zip(good, (value, visits, in_gamma, in_dummy), strict=True):
        assert torch.equal(before[others], after[others])


def test_padding_is_never_read_and_gets_gradient_zero() -> None:
    call = wide_call(False, 7)
    beyond = ~inside(call)
    plain = host.gradient(
        EmulatorLauncher(MANY), **call, grad_value=torch.ones(2), with_parameters=True
    )
    call["cost"] = call["cost"].masked_fill(beyond, math.nan)
    filled = host.gradient(
        EmulatorLauncher(MANY), **call, grad_value=torch.ones(2), with_parameters=True
    )
    for a, b in zip(plain, filled, strict=True):
        assert torch.equal(a, b)
    assert (filled[0][beyond] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_path_has_value_infinity_and_gradient_zero(dtype: torch.dtype) -> None:
    cost = torch.rand(2, 20, 150, dtype=dtype)
    cost[0, 10] = math.inf
    call = {
        "cost": cost,
        "gamma": torch.ones(2, dtype=torch.float64),
        **dict.fromkeys(("dummy", "x_lengths", "y_lengths", "bandwidth")),
    }
    for family in FAMILIES:
        launcher = EmulatorLauncher(MANY, checked=True, family=family)
        assert host.value(launcher, **call).isfinite().tolist() == [False, True]
        parts = host.gradient(
            launcher, **call, grad_value=torch.ones(2, dtype=dtype), with_parameters=True
        )
        assert all((part[0] == 0).all() for part in parts)
        assert parts[0][1].sum() > 150 - 1e-3


@pytest.mark.parametrize("weak", [False, True])
@settings(max_examples=20)
@given(data=st.data())
def test_path_matches_the_reference(data: st.DataObject, weak: bool) -> None:
    call = data.draw(calls(12, weak))
    call.pop("gamma")
    call["cost"] = call["cost"].double().round(decimals=2)
    got = host.path(data.draw(launchers(checked=False)), **call)
    truth = reference.path(**call)
    assert all(torch.equal(a, b) for a, b in zip(got, truth, strict=True))


@pytest.mark.parametrize("gamma", [1.0, 1e-3])
@pytest.mark.parametrize("kind", ["walk", "near"])
def test_float32_keeps_its_bar_over_a_long_path(kind: str, gamma: float) -> None:
    n = 700
    cost = torch.from_numpy(make_cost(kind, (n, n), 3)).float()
    call = {
        "cost": cost,
        "gamma": torch.tensor(gamma, dtype=torch.float64),
        **dict.fromkeys(("dummy", "x_lengths", "y_lengths", "bandwidth")),
    }
    one = torch.ones(())
    single = host.gradient(EmulatorLauncher(MANY), **call, grad_value=one, with_parameters=False)[0]
    exact = {**call, "cost": cost.double()}
    double = host.gradient(
        EmulatorLauncher(MANY), **exact, grad_value=one.double(), with_parameters=False
    )[0]
    assert (single - double).abs().max() <= 5e-5
    value, truth = (
        float(host.value(EmulatorLauncher(MANY), **arguments)) for arguments in (call, exact)
    )
    assert value == pytest.approx(truth, rel=1e-6)


@pytest.mark.parametrize(("limit", "gamma"), [("band", 1e-2), ("forbidden", 1.0)])
def test_float32_keeps_its_bar_at_4096(limit: str, gamma: float) -> None:
    """Against the CPU kernels in float64 on the same float32 cost."""
    n = 4096
    random = np.random.default_rng(1)
    x, y = (random.normal(size=(n, 4)).cumsum(0) for _ in range(2))
    squares = (x * x).sum(1)[:, None] + (y * y).sum(1) - 2 * x @ y.T
    cost = torch.from_numpy(squares).float()
    call = no_limits(cost, torch.tensor(gamma, dtype=torch.float64))
    if limit == "band":
        call["bandwidth"] = n // 10
    else:
        cost[torch.from_numpy(random.random((n, n)) < 0.1)] = math.inf
    exact = {**call, "cost": cost.double()}
    one = torch.ones((), dtype=torch.float64)
    truth = numba_cpu.gradient(**exact, grad_value=one, with_parameters=False)[0]
    launcher = EmulatorLauncher(family="warp")
    visits = host.gradient(launcher, **call, grad_value=one.float(), with_parameters=False)[0]
    assert (visits - truth).abs().max() <= 5e-5
    value, true_value = float(host.value(launcher, **call)), float(numba_cpu.value(**exact))
    assert value == pytest.approx(true_value, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 16384, 16384), (8, 4096, 4096)])
def test_what_a_gradient_saves_is_less_than_a_tenth_of_the_cost(
    shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    """On the 132 multiprocessors of an H100 or H200: all memory but cost and gradient."""
    assert scratch_of(shape, dtype, 1) < 0.1


def test_a_value_of_65536_by_65536_needs_little_beside_its_cost() -> None:
    assert scratch_of((1, 65536, 65536), torch.float32, 0) < 0.04


def scratch_of(shape: tuple[int, int, int], dtype: torch.dtype, order: int) -> float:
    """As a share of the cost, of which nothing is allocated here: what the launches are given."""
    cost = torch.empty(1, dtype=dtype).expand(shape)
    launcher = RecordingLauncher()
    task = host.batch(cost, None, torch.ones(shape[:1], dtype=torch.float64), *[None] * 4)
    host.run_lattice(launcher, task, order, {}, False)
    return sum(launcher.storages.values()) / (cost.numel() * cost.element_size())


class RecordingLauncher:
    """An H100 or H200 that notes the storages it is given, and computes nothing."""

    multiprocessors, shared_limit, family = 132, MUCH, None

    def __init__(self) -> None:
        self.storages: dict[int, int] = {}

    def launch(self, *call: Any) -> None:
        for argument in call[-1]:
            if isinstance(argument, torch.Tensor):
                storage = argument.untyped_storage()
                self.storages[storage.data_ptr()] = storage.nbytes()


def test_without_cupy_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    cupy_cuda.import_cupy.cache_clear()
    with pytest.raises(ImportError, match=r"softdtw-kernels\[cuda1[23]\]"):
        cupy_cuda.import_cupy()
    cupy_cuda.import_cupy.cache_clear()


def test_a_scalar_gamma_in_host_memory_is_passed_by_value() -> None:
    """What a 0-d gamma on the CPU becomes beside a cost on a GPU; here the device is pretended."""
    gamma = torch.tensor(0.25, dtype=torch.float64).expand(3, 2)
    fields = host.per_item(gamma, "gamma", torch.device("meta"))
    assert fields == {"gamma": None, "gamma_stride": 0, "gamma_number": 0.25}


def test_every_argument_of_a_launch_is_8_bytes_wide() -> None:
    """CuPy passes Python integers and floats as 8-byte values: the kernels take nothing else."""
    for file, macro in (
        ("problem.cuh", "SOFTDTW_BATCH_FIELDS"),
        ("problem.cuh", "SOFTDTW_LATTICE_FIELDS"),
        ("smoothing.cu", "SOFTDTW_SMOOTHING_FIELDS"),
        ("distances.cu", "SOFTDTW_DISTANCE_FIELDS"),
        ("tiny.cu", "SOFTDTW_TINY_FIELDS"),
        ("tiny_exact.cu", "SOFTDTW_TINY_EXACT_FIELDS"),
    ):
        text = (host.SOURCES / file).read_text()
        body = text[text.index(f"#define {macro}(X)") :].split("\n\n", 1)[0]
        declared = re.findall(r"X\(([^,]+), (\w+)\)", body)
        assert len(declared) == len(host.own_field_names(file, macro)) > 0
        for kind, name in declared:
            assert kind.endswith("*") or kind in ("int64", "double"), (kind, name)
            assert (kind == "double") == (name in host.DOUBLES), name
