"""What `make gpu` does, as far as it can be checked without a GPU."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from cuda_emulator import COMPILER, NO_COMPILER, EmulatorLauncher, load

from benchmarks import gpu_passes, gpu_stamps
from benchmarks.gpu_session import Step, run, steps
from softdtw_kernels._cuda.plan import FAMILIES
from softdtw_kernels._cuda.variants import CHUNK, LANES


def report_of(tmp_path: Path, wanted: list[Step], minutes: float) -> tuple[bool, dict[str, Any]]:
    output = tmp_path / "there" / "gpu.json"
    well = run(wanted, minutes, output, {"device": "none"})
    return well, json.loads(output.read_text())


def test_one_file_says_how_each_step_ended(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    write = f"open({str(result)!r}, 'w').write('[1, 2]')"
    wanted = [
        Step("writes", 60, ("-c", write), result),
        Step("fails", 60, ("-c", "print('why'); raise SystemExit(3)")),
        Step("takes too long", 0.5, ("-c", "import time; time.sleep(60)")),
        Step("follows", 60, ("-c", "print('last')")),
    ]
    well, report = report_of(tmp_path, wanted, 5)
    assert not well and report["device"] == "none"
    found = report["steps"]
    assert [found[s.name]["ended"] for s in wanted] == [0, 3, None, 0]
    assert found["writes"]["result"] == [1, 2]
    assert found["fails"]["printed"] == "why\n" and found["follows"]["printed"] == "last\n"
    assert found["takes too long"]["seconds"] < 30


def test_what_no_time_is_left_for_is_named(tmp_path: Path) -> None:
    well, report = report_of(tmp_path, [Step("late", 60, ("-c", ""))], 0)
    assert not well and report["steps"] == {"late": None}


def test_all_steps_fit_in_ten_minutes(tmp_path: Path) -> None:
    assert sum(step.seconds for step in steps(tmp_path)) <= 600


@pytest.mark.skipif(COMPILER is None, reason=NO_COMPILER)
def test_every_pass_of_every_family_and_cost_is_timed() -> None:
    """On the emulator, where a call takes no time."""
    called = []

    def timed(call: Any, inputs: list[torch.Tensor]) -> float:
        called.append(call(*inputs))
        return 1.0

    shape = (2, 20, 70)
    device = torch.device("cpu")
    found = list(gpu_passes.rows(EmulatorLauncher(), device, [shape], timed, 1e12))
    assert len(found) == len(called)
    assert {(r.cost, r.chosen) for r in found if r.chosen} == {(k, True) for k in gpu_passes.COSTS}
    assert {r.family for r in found} == set(FAMILIES)
    names = {r.name for r in found if r.chosen and r.cost == gpu_passes.UNIFORM}
    assert len(names) == 5 and {r.name for r in found} == names
    for kind, make in gpu_passes.COSTS.items():
        cost = make(shape, device)
        assert cost.shape == shape and cost.dtype == torch.float32, kind
        assert cost.isfinite().all(), kind


class Stamped(EmulatorLauncher):
    """As `gpu_stamps.StampedLauncher`; of its clock each look is a cycle."""

    def launch(self, source: str, options: tuple[str, ...], *rest: Any) -> None:
        super().launch(source, (*options, gpu_stamps.OPTION), *rest)

    def read(self) -> Sequence[int]:
        size = 2 * len(gpu_stamps.PARTS)
        libraries = {load(source, options) for source, options, _ in self.launches}
        array = ctypes.c_uint64 * size
        found = [array.in_dll(library, gpu_stamps.ARRAY) for library in libraries]
        return [sum(numbers) for numbers in zip(*found, strict=True)]


@pytest.mark.skipif(COMPILER is None, reason=NO_COMPILER)
def test_every_part_of_every_chunk_is_timed() -> None:
    launcher, size = Stamped(multiprocessors=2), 128  # whole strips
    cpu = torch.device("cpu")
    found = list(gpu_stamps.rows(launcher, cpu, launcher.read, size, warps=[1, 4]))
    assert {row.family for row in found} == set(FAMILIES)
    assert {row.warps >= 4 for row in found} == {True, False}
    assert all(row.cycles >= 1.0 for row in found)
    chunks = len(range(0, size + LANES - 1, CHUNK))
    for row in found:
        strips = row.pairs * size // (LANES * row.columns)
        times = {r.part: r.times for r in found if r[:4] == row[:4]}
        assert times["rows swept"] == times["border handed on"] == strips * chunks
        assert times.get("border loaded", 0) == (strips - row.pairs) * chunks
