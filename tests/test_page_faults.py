"""Calls do not fault the memory of their kernels again and again."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable

import numpy as np
import pytest
from helpers import run_python

from softdtw_kernels._cpu.arrays import FRESH, HUGE, on_huge_pages

PROBE = """
import json
import resource
import torch
from softdtw_kernels import soft_dtw, soft_dtw_from_cost

def of_later_calls(call):
    of_calls = []
    for _ in range(8):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        call()
        of_calls.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return min(of_calls)

x = torch.rand(1, 4096, 2).requires_grad_()
cost = torch.rand(64, 60, 60).requires_grad_()
torch.set_num_threads(1)
faults = {"kept": of_later_calls(
    lambda: torch.autograd.grad(soft_dtw_from_cost(cost).sum(), cost)
)}
for threads in (1, 2):
    torch.set_num_threads(threads)
    faults[threads] = of_later_calls(
        lambda: torch.autograd.grad(soft_dtw(x, x.detach()).sum(), x)
    )
print(json.dumps(faults))
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="other C libraries keep memory in other ways"
)
def test_later_calls_find_the_memory_of_earlier_ones() -> None:
    """Borders of 6 MiB, 1000 to 1500 pages, which arrays of their own faulted in every call. And of
    mid-sized calls the gradient that comes with the value, beside the one that is returned: 418.
    """
    faults = json.loads(run_python(PROBE).stdout)
    assert max(faults.values()) < 300, faults


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("make", [np.empty, np.zeros])
def test_large_gradients_begin_where_huge_pages_do(
    make: Callable[..., np.ndarray], dtype: type
) -> None:
    size = FRESH // np.dtype(dtype).itemsize + 3
    large = on_huge_pages(make, size, dtype)
    assert large.shape == (size,)
    assert large.dtype == dtype
    assert large.ctypes.data % HUGE == 0
    assert make is np.empty or not large[:: HUGE // 8].any()
