"""Peak memory of long pairs, measured in a process of its own."""

from __future__ import annotations

import sys

import pytest
from helpers import run_python

PROBE = """
import sys
import threading
import time
import torch
from softdtw_kernels import soft_dtw_from_cost

torch.set_num_threads(int(sys.argv[2]))
dtype = getattr(torch, sys.argv[1])
page = 4096


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * page


kind, batch, length = sys.argv[3], int(sys.argv[4]), int(sys.argv[5])


def train(cost):
    gamma = 0.0 if kind == "hard" else 0.1
    soft_dtw_from_cost(cost, gamma=gamma).sum().backward()


def make(batch, length):
    cost = torch.rand(batch, length, length, dtype=dtype)
    if kind == "large":  # 5e7 gamma a cell
        cost.add_(1.0).mul_(2.5e6)
    elif kind == "closed":  # no path
        cost[:, length // 2] = torch.inf
    elif kind == "wall":  # beyond what float64 with exponents of 64 bits holds
        cost[:, length // 2] = 1e30
    return cost.requires_grad_()


train(make(batch, 600))  # compiles or loads what the call below needs, starts threads
cost = make(batch, length)
size = cost.numel() * cost.element_size()
peak, done = 0, False


def watch():
    global peak
    while not done:
        peak = max(peak, resident())
        time.sleep(2e-4)


before = resident()
watcher = threading.Thread(target=watch)
watcher.start()
train(cost)
done = True
watcher.join()
assert cost.grad is not None and peak >= before + 0.9 * size, "the watcher saw nothing"
print((peak - before - size) / size)
"""


pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="reads /proc/self/statm, which only Linux has"
)


def _extra(dtype: str, threads: int, kind: str, batch: int, length: int) -> float:
    """Peak memory beyond the cost and its gradient, as a share of the cost."""
    arguments = (dtype, str(threads), kind, str(batch), str(length))
    return float(run_python(PROBE, *arguments).stdout)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_training_on_a_long_pair_needs_little_beyond_cost_and_gradient(
    dtype: str, threads: int
) -> None:
    """Less than 15 % of the cost matrix, beyond the cost matrix and its gradient."""
    extra = _extra(dtype, threads, "plain", 1, 4096)
    assert extra < 0.15, f"{extra:.1%} of the cost matrix"


@pytest.mark.parametrize("batch", [1, 4])
def test_float32_costs_are_read_as_float64_without_a_copy(batch: int) -> None:
    """At 5e7 gamma a cell float32 is not certified; a copy of cost and gradient were 400 %."""
    extra = _extra("float32", 2, "large", batch, 2000)
    assert extra < 0.25, f"{extra:.1%} of the cost matrix"


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("kind", ["closed", "wall", "hard"])
def test_the_exact_tier_keeps_no_weights_of_all_cells(kind: str, batch: int) -> None:
    """Each thread keeps the weights of a block of rows, less than half a matrix of float32 costs;
    those of all cells were 800 %.
    """
    extra = _extra("float32", 2, kind, batch, 2000)
    assert extra < 0.5, f"{extra:.1%} of the cost matrix"
