"""Peak memory of one long pair, measured in a process of its own."""

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


def train(cost):
    soft_dtw_from_cost(cost, gamma=0.1).sum().backward()


train(torch.rand(1, 600, 600, dtype=dtype, requires_grad=True))  # compiles, starts threads
cost = torch.rand(1, 4096, 4096, dtype=dtype, requires_grad=True)
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


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/statm, which only Linux has")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_training_on_a_long_pair_needs_little_beyond_cost_and_gradient(
    dtype: str, threads: int
) -> None:
    """Less than 15 % of the cost matrix, beyond the cost matrix and its gradient."""
    extra = float(run_python(PROBE, dtype, str(threads)).stdout)
    assert extra < 0.15, f"{extra:.1%} of the cost matrix"
