"""Peak memory of long pairs, each measured in a process of its own.

These are forked from one that has imported what all need, which takes longer than most pairs. What
they compile, the process of the tests compiles before, as later tests need the same.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
import torch
from helpers import PEAK_MEMORY, run_python

PREPARE = """
import torch
import softdtw_kernels._cpu.operators
from softdtw_kernels import soft_dtw_from_cost
from softdtw_kernels._operators import kernels
from softdtw_kernels._problem import Problem


def differentiate(cost):
    ones = torch.ones(len(cost), dtype=torch.float64)
    problem = Problem(cost.detach(), ones, None, None, None, None)
    of_dtype = ones.to(cost.dtype)
    cost.grad = kernels.hessian_product(problem, of_dtype, cost.detach(), ones, None)[1]


def train(kind, cost):
    if kind == "second":
        return differentiate(cost)
    gamma = 0.0 if kind == "hard" else 0.1
    soft_dtw_from_cost(cost, gamma=gamma).sum().backward()


def make(dtype, kind, batch, length):
    cost = torch.rand(batch, length, length, dtype=getattr(torch, dtype))
    if kind == "large":  # 5e7 gamma a cell
        cost.add_(1.0).mul_(2.5e6)
    elif kind == "closed":  # no path
        cost[:, length // 2] = torch.inf
    elif kind == "wall":  # beyond what float64 with exponents of 64 bits holds
        cost[:, length // 2] = 1e30
    return cost.requires_grad_()


def prepare(dtype, threads, kind, batch, length):  # compiles or loads kernels, starts threads
    torch.set_num_threads(threads)
    for several in (1, batch):
        train(kind, make(dtype, kind, several, 600))
"""
PROBE = """
import json
import os
import sys
import traceback


def in_a_fork(work, *arguments):
    sys.stdout.flush()
    if os.fork() == 0:
        try:
            work(*arguments)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(0)
    os.wait()  # what a case lacks in the output has failed


def measure(dtype, threads, kind, batch, length):
    prepare(dtype, threads, kind, batch, length)
    cost = make(dtype, kind, batch, length)
    size = cost.numel() * cost.element_size()
    before = start_of_peak()
    train(kind, cost)
    peak = peak_since()
    # Pages of zeros that nobody wrote take no memory: at gamma = 0 those that no path goes through,
    # unless the system has huge pages to give.
    is_written = kind != "hard" and cost.grad.any()
    assert peak >= before + 0.9 * size or not is_written, "the gradient was not counted"
    case = dtype, threads, kind, batch, length
    print(json.dumps([case, (peak - before - size) / size]))


for case in json.loads(sys.argv[1]):
    in_a_fork(measure, *case)
"""


pytestmark = [
    pytest.mark.slow,  # the tests share what measures them
    pytest.mark.skipif(
        sys.platform != "linux",
        reason="reads and resets the peak in /proc/self, which only Linux has",
    ),
]


LONG = [(dtype, n, "plain", 1, 4096) for dtype in ("float32", "float64") for n in (1, 2)]
LARGE = [("float32", 2, "large", batch, 2000) for batch in (1, 4)]
OUT_OF_RANGE = [
    ("float32", 2, kind, batch, 2000) for kind in ("closed", "wall", "hard") for batch in (1, 4)
]
SECOND = [(dtype, 1, "second", 1, 4096) for dtype in ("float32", "float64")]

Case = tuple[str, int, str, int, int]


@pytest.fixture(scope="module")
def extra() -> dict[Case, float]:
    """Peak memory beyond the cost and its gradient, as a share of the cost."""
    cases = [*LONG, *LARGE, *OUT_OF_RANGE, *SECOND]
    here: dict[str, Any] = {}
    exec(PREPARE, here)
    threads = torch.get_num_threads()
    with torch.random.fork_rng():
        for case in cases:
            here["prepare"](*case)
    torch.set_num_threads(threads)
    done = run_python(PEAK_MEMORY + PREPARE + PROBE, json.dumps(cases), timeout=600)
    lines = done.stdout.splitlines()
    return {tuple(case): share for case, share in map(json.loads, lines)}


@pytest.mark.parametrize("case", LONG, ids=str)
def test_training_on_a_long_pair_needs_little_beyond_cost_and_gradient(
    case: Case, extra: dict[Case, float]
) -> None:
    """Less than 15 % of the cost matrix, beyond the cost matrix and its gradient."""
    assert extra[case] < 0.15, f"{extra[case]:.1%} of the cost matrix"


@pytest.mark.parametrize("case", LARGE, ids=str)
def test_float32_costs_are_read_as_float64_without_a_copy(
    case: Case, extra: dict[Case, float]
) -> None:
    """At 5e7 gamma a cell float32 is not certified; a copy of cost and gradient were 400 %."""
    assert extra[case] < 0.25, f"{extra[case]:.1%} of the cost matrix"


@pytest.mark.parametrize("case", OUT_OF_RANGE, ids=str)
def test_the_exact_tier_keeps_no_weights_of_all_cells(case: Case, extra: dict[Case, float]) -> None:
    """Each thread keeps the weights of a block of rows, less than half a matrix of float32 costs;
    those of all cells were 800 %.
    """
    assert extra[case] < 0.5, f"{extra[case]:.1%} of the cost matrix"


@pytest.mark.parametrize("case", SECOND, ids=str)
def test_second_derivatives_need_little_beyond_what_is_returned(
    case: Case, extra: dict[Case, float]
) -> None:
    """Borders of about the root of the number of strips; weights and tangents of all cells were
    1800 % of float32 costs.
    """
    assert extra[case] < 0.1, f"{extra[case]:.1%} of the cost matrix"
