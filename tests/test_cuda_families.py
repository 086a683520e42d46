"""How the work of the CUDA kernels is shared out: families chosen by shape, strips that wait for
each other, the same bits whatever the family, memory beside the cost.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from cuda_calls import (
    FAMILIES,
    LITTLE,
    MANY,
    MUCH,
    ONE,
    RecordingLauncher,
    check_against_oracle,
    no_limits,
    planted,
    wide_call,
)
from cuda_emulator import COMPILER, NO_COMPILER, SCHEDULES, EmulatorError, EmulatorLauncher

from softdtw_kernels._cuda import lattice, plan, variants, wide
from softdtw_kernels._cuda.fields import SOURCES, Layout, item_buffers, items_of
from softdtw_kernels._problem import Problem

pytestmark = pytest.mark.skipif(COMPILER is None, reason=NO_COMPILER)


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
        found = plan_of(call, family)
        assert found.strips > 1
        assert found.team < found.strips  # a warp of a block has several


LOAD = (
    "load_acquire{}(const int* address) {{ "
    "return emulator_load_as(address, EMULATE_{}, EMULATE_{}); }}"
)
STORE = (
    "store_release{}(int* address, int value) {{ "
    "emulator_store_as(address, value, EMULATE_{}, EMULATE_{}); }}"
)
MISTAKES = {
    "flags that do not acquire": (
        "portability.cuh",
        (
            LOAD.format("_in_block", "ORDERED", "BLOCK"),
            LOAD.format("_in_block", "RELAXED", "BLOCK"),
        ),
    ),
    "no barrier between the sweeps": (
        "lattice.cu",
        ("__syncthreads();  // now the status is known to all", ""),
    ),
    "flags not reset": ("lattice.cu", ("flags[k] = 0", "flags[k] += 0")),
    "rows not awaited": (
        "handoff.cuh",
        ("    while (seen < rows) {\n", "    while (false) {\n"),
    ),
    "flows overwritten while others read them": (
        "strip.cuh",
        ("__syncwarp();  // from here on, flows that other lanes have read may be overwritten", ""),
    ),
    "a flag before what other lanes hand on": (
        "strip.cuh",
        ("__syncwarp();  // before the flag says that all lanes' parts are there", ""),
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_in_what_a_block_shares_are_seen(mistake: str, tmp_path: Path) -> None:
    """Planted in the kernel itself, one at a time."""
    file, change = MISTAKES[mistake]
    directory = planted(tmp_path, file, *change)
    # One block, of three warps, does both items.
    launcher = EmulatorLauncher(
        ONE, "random", True, directory=directory, family="block", shared_limit=LITTLE
    )
    call = wide_call(False, None)
    call["cost"][0, 44, 139] = 1e9  # beyond the fast arithmetic, which only the last strip sees
    ones, zeros = torch.ones(2), torch.zeros(2, dtype=torch.float64)
    problem = Problem(**call)
    with pytest.raises(EmulatorError, match="race|deadlock"):
        lattice.gradient(launcher, problem, ones, True)
        # Without a ring of rows, whose barriers hide some mistakes.
        lattice.hessian_product(launcher, problem, ones, problem.cost, zeros, None)


# Of costs in float64, whose strips tell each other by flags, and in float32: by words that carry
# their flag.
MISTAKES_BETWEEN_BLOCKS = {
    "flags that do not release": (
        "portability.cuh",
        (STORE.format("", "ORDERED", "DEVICE"), STORE.format("", "RELAXED", "DEVICE")),
    ),
    "flags that acquire what their own block has written": (
        "portability.cuh",
        (LOAD.format("", "ORDERED", "DEVICE"), LOAD.format("", "ORDERED", "BLOCK")),
    ),
    "relaxed polls alone": (
        "handoff.cuh",
        ("      do pause_while_polling();", "      do seen = rows, pause_while_polling();"),
    ),
}
MISTAKES_IN_WORDS = {
    "stored where they may be seen in parts": (
        "strip.cuh",
        ("if (right_is_outside) store_relaxed(place, gathered[lane]);", "if (false) {}"),
    ),
    "taken whether they are there or not": (
        "handoff.cuh",
        (
            "ahead = load_relaxed(place);\n      return;",
            "ahead = load_relaxed(place) | THERE;\n      return;",
        ),
    ),
    "sent before they are right": (
        "strip.cuh",
        (
            "if (writes_border) gathered[step - from] = word_of(lane_of.for_border());",
            "if (writes_border && unsigned(row) < unsigned(rows))"
            " store_relaxed((uint64*)border + row, word_of(lane_of.for_border()));",
        ),
    ),
    "gathered after they are sent": (
        "strip.cuh",
        ("__syncwarp();  // lane 31 has gathered it", ""),
    ),
}


def check_of_long(directory: Path, dtype: torch.dtype) -> None:
    call = wide_call(False, None, dtype)
    call["cost"][:, 20:60, 50:150] *= 400  # so that Narrow fails
    check_against_oracle(
        EmulatorLauncher(MANY, "random", True, 5, 1, directory, family="long"), call
    )


@pytest.mark.parametrize("mistake", MISTAKES_BETWEEN_BLOCKS)
def test_mistakes_in_flags_between_blocks_are_seen(mistake: str, tmp_path: Path) -> None:
    file, change = MISTAKES_BETWEEN_BLOCKS[mistake]
    with pytest.raises(EmulatorError, match="race"):
        check_of_long(planted(tmp_path, file, *change), torch.float64)


@pytest.mark.parametrize("mistake", MISTAKES_IN_WORDS)
def test_mistakes_in_words_that_carry_their_flag_are_seen(mistake: str, tmp_path: Path) -> None:
    file, change = MISTAKES_IN_WORDS[mistake]
    with pytest.raises((EmulatorError, AssertionError)):
        check_of_long(planted(tmp_path, file, *change), torch.float32)


MISTAKES_IN_COPIES = {
    "costs not awaited": (
        "        await_copies<1>();\n        __syncwarp();\n        STAMP",
        "        __syncwarp();\n        STAMP",
    ),
    "copies into rows that are still read": (
        "__syncwarp();  // before the next copies overwrite what was read",
        ";",
    ),
    "costs not awaited on the way back": (
        "        await_copies<1>();\n        __syncwarp();\n      }\n    for",
        "        __syncwarp();\n      }\n    for",
    ),
    "the first costs not awaited on the way back": (
        "    await_copies<1>();\n    __syncwarp();\n    pass_steps",
        "    __syncwarp();\n    pass_steps",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES_IN_COPIES)
def test_mistakes_in_asynchronous_copies_are_seen(mistake: str, tmp_path: Path) -> None:
    """By the race detector, or by the NaN that stands where a copy has yet to arrive."""
    directory = planted(tmp_path, "strip.cuh", *MISTAKES_IN_COPIES[mistake])
    # Every other column: elements come one by one, for lanes beside those that use them.
    cost = torch.rand(2, 70, 140, generator=torch.Generator().manual_seed(1))[..., ::2]
    call = no_limits(cost, torch.ones(2, dtype=torch.float64))
    launcher = EmulatorLauncher(ONE, "random", True, directory=directory, family="warp")
    with pytest.raises((EmulatorError, AssertionError)):
        check_against_oracle(launcher, call)


@pytest.mark.slow
@pytest.mark.parametrize("bandwidth", [None, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_strips_in_groups_give_the_same_bits(
    dtype: torch.dtype, bandwidth: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the slow arithmetic does with one very long item: here with eight strips of short
    columns, in groups of three.
    """
    cost = torch.rand(2, 30, 1000, dtype=dtype, generator=torch.Generator().manual_seed(4))
    cost[1, 5, 600] = -1e30
    call = no_limits(cost, torch.tensor([0.0, 0.3], dtype=torch.float64))
    call |= {"bandwidth": bandwidth, "x_lengths": torch.tensor([30, 21])}
    problem = Problem(**call)
    ones, doubles = torch.ones(2, dtype=dtype), torch.ones(2, dtype=torch.float64)

    def results(checked: bool) -> bytes:
        for cached in (wide.wide_plan, lattice.recipe_of):
            cached.cache_clear()
        launcher = EmulatorLauncher(ONE, "random", checked)
        grads = lattice.gradient(launcher, problem, ones, True)
        products = lattice.hessian_product(launcher, problem, ones, cost.clamp(0), doubles, None)
        return as_bytes((*grads[:2], *products[:3]))

    truth = results(False)
    with monkeypatch.context() as few_bytes:
        few_bytes.setattr(wide, "WIDE_ITEM_BYTES", 0)
        assert results(True) == results(False) == truth
        shape = plan.Shape(dtype, 2, 30, 1000, False, -1)
        assert wide.wide_plan(shape, 1, ONE).group == 3
    wide.wide_plan.cache_clear()
    lattice.recipe_of.cache_clear()


def plan_of(
    call: dict[str, object], family: str | None = None, multiprocessors: int = MANY, order: int = 1
) -> plan.Plan:
    problem = Problem(**call)
    forms, _ = item_buffers(items_of(problem), torch.device("cpu"))
    shape = Layout.of(problem.cost, forms, problem.bandwidth).batch({}).shape
    return plan.fast_plan(shape, order, multiprocessors, MUCH, family)


def as_bytes(tensors: Iterable[torch.Tensor]) -> bytes:
    return b"".join(t.numpy().tobytes() for t in tensors)


@pytest.mark.parametrize("wrong", [False, True])
def test_numbers_beyond_the_range_of_one_exponent_are_seen(wrong: bool, tmp_path: Path) -> None:
    """Costs of many times gamma beside small ones; without the check results would be wrong."""
    right = "return beyond || !(least >= SMALLEST) || !(fabs(all) < infinity<float>());"
    call = wide_call(False, None)
    call["cost"][:, 20:60, 50:150] *= 400
    if not wrong:
        check_against_oracle(EmulatorLauncher(MANY), call)
        return
    directory = planted(tmp_path, "narrow.cuh", right, "return false;")
    with pytest.raises(AssertionError):
        check_against_oracle(EmulatorLauncher(MANY, directory=directory), call)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("weak", "bandwidth"), [(False, None), (False, 7), (True, None)])
def test_results_are_the_same_to_the_bit_however_the_work_is_shared_out(
    weak: bool, bandwidth: int | None, dtype: torch.dtype
) -> None:
    """Among families with strips of the same width, which decides what sums have an order of their
    own and which cells share an exponent.
    """
    call = wide_call(weak, bandwidth, dtype)
    ones = torch.ones(2, dtype=dtype)
    results: dict[int, set[bytes]] = {}
    without_sums: set[bytes] = set()
    for family in FAMILIES:
        for multiprocessors in (ONE, MANY):
            columns = plan_of(call, family, multiprocessors).variant.columns
            for schedule in ("ascending", "random"):
                launcher = EmulatorLauncher(multiprocessors, schedule, False, family=family)
                value = lattice.value(launcher, Problem(**call))
                visits, *parts = lattice.gradient(launcher, Problem(**call), ones, True)
                results.setdefault(columns, set()).add(as_bytes((value, visits, *parts)))
                without_sums.add(as_bytes((value, visits)))
    assert all(len(of_width) == 1 for of_width in results.values())
    if dtype == torch.float64:  # every number has an exponent of its own
        assert len(without_sums) == 1


def test_families_are_chosen_by_shape() -> None:
    """On the 132 multiprocessors of an H100 or H200."""

    def family_of(*shape: int) -> str:
        cost = torch.empty(1).expand(shape)
        gamma = torch.ones(shape[:1], dtype=torch.float64)
        return plan_of(no_limits(cost, gamma), None, 132).family

    assert family_of(4096, 256, 256) == "warp"
    assert family_of(1, 64, 32) == family_of(512, 64, 64) == "warp"
    assert family_of(512, 256, 256) == family_of(100, 1024, 1024) == "block"
    assert family_of(1, 512, 512) == "block"
    assert family_of(1, 16384, 16384) == family_of(8, 4096, 4096) == "long"
    assert family_of(100, 2, 40_000) == "long"  # more flags than fit beside the tiles


def test_the_host_counts_in_the_chunks_of_the_kernels() -> None:
    text = (SOURCES / "cells.cuh").read_text()
    assert f"constexpr int CHUNK = {variants.CHUNK};" in text
    assert variants.REACH == -(-(variants.LANES - 1) // variants.CHUNK)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_a_gradient_keeps_beside_the_cost(dtype: torch.dtype) -> None:
    """On the 132 multiprocessors of an H100 or H200: all memory but cost and gradient.

    For many items, checkpoints lie close together: shorter tiles let more warps run.
    """
    assert scratch_of((1, 16384, 16384), dtype, 1) < 0.1
    most = 0.25 if dtype == torch.float32 else 0.35
    for shape in ((8, 4096, 4096), (64, 1024, 1024), (100, 1024, 1024)):
        assert scratch_of(shape, dtype, 1) < most
    assert scratch_of((4096, 256, 256), dtype, 1) < 0.1


def test_a_value_of_65536_by_65536_needs_little_beside_its_cost() -> None:
    assert scratch_of((1, 65536, 65536), torch.float32, 0) < 0.04


def scratch_of(shape: tuple[int, int, int], dtype: torch.dtype, order: int) -> float:
    """As a share of the cost, of which nothing is allocated here: what the launches are given."""
    cost = torch.empty(1, dtype=dtype).expand(shape)
    launcher = RecordingLauncher()
    problem = Problem(**no_limits(cost, torch.ones(shape[:1], dtype=torch.float64)))
    items = items_of(problem, *[torch.ones(1)] * (order > 0))
    lattice.run(launcher, order, problem, items, {})
    return sum(launcher.storages.values()) / (cost.numel() * cost.element_size())


@pytest.mark.parametrize("weak", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_no_result_depends_on_what_memory_held_before(family: str, weak: bool) -> None:
    """Items of the fast arithmetic, of the wide one, and such that are NaN: all are written."""
    call = wide_call(weak, bandwidth=None)
    call["cost"][1, 3, 4] = 1e30
    cost, ones = call["cost"], torch.ones(2)
    single = no_limits(cost[:, :20, :20], call["gamma"])
    single["gamma"] = torch.tensor([0.1, -1.0], dtype=torch.float64)

    def results() -> list[torch.Tensor]:
        launcher = EmulatorLauncher(family=family)
        found = []
        for problem in (Problem(**call), Problem(**single)):
            found.append(lattice.value(launcher, problem))
            for with_parameters in (False, True):
                grads = lattice.gradient(launcher, problem, ones, with_parameters)
                found += grads if with_parameters else grads[:1]
        return found

    plain = results()
    torch.use_deterministic_algorithms(True)  # torch.empty fills what it allocates
    try:
        filled = results()
    finally:
        torch.use_deterministic_algorithms(False)
    for one, other in zip(plain, filled, strict=True):
        assert torch.equal(one.nan_to_num(nan=-7), other.nan_to_num(nan=-7))


# Multiprocessors and the largest block's shared memory: of an A100, an H100 and an RTX 5090.
DEVICES = {"sm_80": (108, 163 << 10), "sm_90": (132, 227 << 10), "sm_120": (170, 99 << 10)}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_blocks_run_at_once(device: str, dtype: torch.dtype) -> None:
    """Where items are shared out beforehand; the shapes are those of the benchmark, and others."""
    multiprocessors, limit = DEVICES[device]
    for pairs in (64, 100, 300, 512, 1000, 2048, 4096, 50_000):
        for n in (33, 64, 128, 256, 1024, 4096):
            for order in (0, 1, 2):
                shape = variants.Shape(dtype, pairs, n, n, False, -1)
                found = [plan.fast_plan(shape, order, multiprocessors, limit, None)]
                kept = plan.state_plans(shape, multiprocessors, limit, None) if order == 1 else None
                for p in (*found, *(kept or ())):
                    if p.family == "long":
                        continue
                    shared = p.shared_bytes() + (1 << 10)  # a block's own
                    fit = min(plan.MOST_WARPS // p.warps_in_block, (limit + (1 << 10)) // shared)
                    assert p.warps // p.warps_in_block <= multiprocessors * max(1, fit), p
