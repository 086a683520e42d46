"""The emulator sees what it is for: every kind of mistake, planted in a small kernel, is caught.

And the same kernel without the mistake passes, under every scheduler.
"""

from __future__ import annotations

import cuda_emulator
import pytest
import torch
from cuda_emulator import COMPILER, NO_COMPILER, SCHEDULES, EmulatorError, EmulatorLauncher

pytestmark = pytest.mark.skipif(COMPILER is None, reason=NO_COMPILER)

PLANTED = cuda_emulator.HERE / "planted"
REVERSE, WARP_SUM, RING, TWO_BLOCKS, BARRIERS, TWO_WARPS, FENCES, CARRIED = KERNELS = range(8)
THREADS = dict.fromkeys(KERNELS, 64) | {WARP_SUM: 32}
BLOCKS = dict.fromkeys((REVERSE, TWO_BLOCKS, FENCES, CARRIED), 2)
DOUBLES = {REVERSE: 64, RING: 192, TWO_WARPS: 33}
ALL = list(SCHEDULES)


def run(kernel: int, bug: int, schedule: str, checked: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the input and output of one launch of a planted kernel."""
    threads, blocks = THREADS[kernel], BLOCKS.get(kernel, 1)
    x = torch.arange(1, threads * blocks + 1, dtype=torch.float64)
    out = torch.full((threads * blocks,), torch.nan, dtype=torch.float64)
    flag = torch.zeros(1, dtype=torch.int32)
    launcher = EmulatorLauncher(schedule=schedule, checked=checked, directory=PLANTED)
    options = (f"-DKERNEL={kernel}", f"-DBUG={bug}")
    # One more for the bug that reads it: nobody writes it.
    shared_bytes = 8 * (DOUBLES.get(kernel, 0) + ((kernel, bug) == (REVERSE, 3)))
    launcher.launch("planted", options, blocks, threads, shared_bytes, [x, out, flag, x.numel()])
    return x, out


def expected(kernel: int, x: torch.Tensor) -> torch.Tensor:
    threads = THREADS[kernel]
    if kernel == REVERSE:
        return x.view(-1, threads).flip(1).flatten()
    if kernel == WARP_SUM:
        return x.sum().expand(threads)
    if kernel == RING:
        return (sum(range(1, 8)) + sum(range(1, 7))) * x.roll(-1)
    if kernel in (TWO_BLOCKS, FENCES, CARRIED):
        first = 2 * x[:threads]
        return torch.cat((first, first.flip(0) + 1))
    if kernel == TWO_WARPS:
        return torch.cat((x[:32], 2 * x[:32].flip(0) + 1))
    return x


def is_caught(kernel: int, bug: int, schedule: str, checked: bool) -> str | None:
    """What was seen: an error of the emulator, or a wrong result."""
    try:
        x, out = run(kernel, bug, schedule, checked)
    except EmulatorError as error:
        return str(error)
    return None if torch.equal(out, expected(kernel, x)) else "a wrong result"


@pytest.mark.parametrize("checked", [False, True])
@pytest.mark.parametrize("kernel", KERNELS)
def test_right_kernels_pass_under_every_schedule(kernel: int, checked: bool) -> None:
    for schedule in ALL:
        x, out = run(kernel, 0, schedule, checked)
        assert torch.equal(out, expected(kernel, x)), schedule


@pytest.mark.parametrize(
    ("kernel", "bug", "message"),
    [
        (REVERSE, 1, "race"),
        (REVERSE, 2, "outside every buffer"),
        (REVERSE, 4, "outside every buffer"),
        (RING, 1, "race"),
        (TWO_BLOCKS, 1, "race"),
        (TWO_BLOCKS, 2, "race"),
        (TWO_BLOCKS, 4, "race"),
        (FENCES, 1, "race"),
        (FENCES, 2, "race"),
        (FENCES, 3, "race"),
        (FENCES, 4, "race"),
        (CARRIED, 2, "race"),
        (CARRIED, 3, "race"),
        (TWO_WARPS, 1, "race"),
        (TWO_WARPS, 2, "race"),
        (TWO_WARPS, 4, "race"),
        (TWO_WARPS, 5, "race"),
    ],
)
@pytest.mark.parametrize("schedule", ALL)
def test_a_checked_launch_sees_memory_mistakes_whatever_the_schedule(
    kernel: int, bug: int, message: str, schedule: str
) -> None:
    with pytest.raises(EmulatorError, match=message):
        run(kernel, bug, schedule, True)


@pytest.mark.parametrize("schedule", ALL)
def test_relaxed_stores_are_seen_in_any_order(schedule: str) -> None:
    """By a wrong result: atomic accesses do not race."""
    assert is_caught(CARRIED, 1, schedule, True) == "a wrong result"


@pytest.mark.parametrize(
    ("kernel", "bug", "message"),
    [
        (WARP_SUM, 1, "exited|divergent"),
        (WARP_SUM, 2, "without itself"),
        (WARP_SUM, 3, "outside the mask"),
        (WARP_SUM, 4, "divergent"),
        (TWO_BLOCKS, 3, "deadlock"),
        (TWO_WARPS, 3, "deadlock"),
        (BARRIERS, 1, "exited"),
        (BARRIERS, 2, "deadlock"),
    ],
)
@pytest.mark.parametrize("schedule", ALL)
def test_every_launch_sees_what_warps_and_barriers_forbid(
    kernel: int, bug: int, message: str, schedule: str
) -> None:
    with pytest.raises(EmulatorError, match=message):
        run(kernel, bug, schedule, False)


@pytest.mark.parametrize(("kernel", "bug"), [(REVERSE, 1), (REVERSE, 3), (RING, 1)])
def test_some_schedule_turns_a_missing_barrier_or_a_wrong_index_into_a_wrong_result(
    kernel: int, bug: int
) -> None:
    caught = [is_caught(kernel, bug, schedule, False) for schedule in ALL]
    assert any(caught), caught


def test_every_launch_guards_the_ends_of_shared_memory() -> None:
    with pytest.raises(EmulatorError, match="shared memory was written outside"):
        run(REVERSE, 2, "ascending", False)


def test_shared_memory_starts_as_not_a_number() -> None:
    _, out = run(REVERSE, 3, "ascending", False)
    assert out.isnan().any()
