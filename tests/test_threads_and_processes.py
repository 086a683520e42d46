"""Right results from many threads and forked workers."""

from __future__ import annotations

import contextlib
import gc
import threading
import time
import weakref

import pytest
import torch
from helpers import Forks, bits, run_python
from torch import Tensor

from softdtw_kernels import s2dtw_from_cost, soft_dtw_from_cost
from softdtw_kernels._cpu import threads


def _train(cost: Tensor) -> list[bytes]:
    results = []
    for function in (soft_dtw_from_cost, s2dtw_from_cost):
        leaf = cost.clone().requires_grad_()
        value = function(leaf, gamma=0.1)
        (gradient,) = torch.autograd.grad(value.sum(), leaf, create_graph=True)
        (second,) = torch.autograd.grad(gradient.square().sum(), leaf)
        results += [bits(value), bits(gradient), bits(second)]
    return results


@pytest.mark.parametrize("inner", [1, 2])
def test_eight_threads_at_once(inner: int) -> None:
    """Values, gradients and second derivatives of different problems, to the bit."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(64, 8, 8), (8, 64, 60), (1, 300, 280), (16, 33, 31)]
    costs = [torch.randn(shapes[k % 4], generator=generator) for k in range(8)]
    before = torch.get_num_threads()
    torch.set_num_threads(inner)
    try:
        truth = [_train(cost) for cost in costs]
        start = threading.Barrier(8)
        wrong: list[str] = []

        def work(k: int) -> None:
            try:
                torch.set_num_threads(inner)
                start.wait()
                for _ in range(5):
                    if _train(costs[k]) != truth[k]:
                        wrong.append(f"thread {k} got another result")
            except Exception as error:
                wrong.append(f"thread {k}: {error!r}")

        threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=120)
            assert not thread.is_alive(), "deadlock"
        assert not wrong, wrong
    finally:
        torch.set_num_threads(before)


def test_first_calls_from_eight_threads_of_a_fresh_process(fresh: Forks) -> None:
    """The lazy import and compilation happen once, whoever comes first."""
    fresh.run(
        """
import threading
import torch
from softdtw_kernels import soft_dtw_from_cost

cost = torch.randn(4, 20, 20)
start, results = threading.Barrier(8), []

def work():
    start.wait()
    leaf = cost.clone().requires_grad_()
    value = soft_dtw_from_cost(leaf)
    value.sum().backward()
    results.append((value.detach(), leaf.grad))

threads = [threading.Thread(target=work) for _ in range(8)]
[t.start() for t in threads]
[t.join() for t in threads]
assert len(results) == 8
assert all(torch.equal(v, results[0][0]) and torch.equal(g, results[0][1]) for v, g in results)
"""
    )


def test_forked_workers_after_the_parent_used_the_kernels(fresh: Forks) -> None:
    """A DataLoader that forks, whose workers train, while the parent goes on doing so."""
    fresh.run(
        """
import torch
from torch.utils.data import DataLoader, Dataset
from softdtw_kernels import soft_dtw_from_cost

torch.set_num_threads(2)

def train(k):
    generator = torch.Generator().manual_seed(k)
    cost = torch.randn(64, 40, 40, generator=generator).requires_grad_()
    value = soft_dtw_from_cost(cost, gamma=0.1)
    value.sum().backward()
    return value.detach(), cost.grad

class Pairs(Dataset):
    def __len__(self):
        return 6
    def __getitem__(self, k):
        torch.set_num_threads(2)
        return train(k)

truth = [train(k) for k in range(6)]
for _ in range(2):
    loader = DataLoader(Pairs(), batch_size=None, num_workers=2, multiprocessing_context="fork")
    for k, (value, gradient) in enumerate(loader):
        assert torch.equal(value, truth[k][0]) and torch.equal(gradient, truth[k][1])
        assert torch.equal(train(k)[0], truth[k][0])
""",
        timeout=100,
    )


def test_a_fork_while_other_threads_compute(fresh: Forks) -> None:
    """No lock that a computing thread holds at the moment of the fork may block the child."""
    fresh.run(
        """
import os
import threading
import torch
from softdtw_kernels import soft_dtw_from_cost

torch.set_num_threads(2)
cost = torch.randn(64, 40, 40)
truth = soft_dtw_from_cost(cost)
stop = threading.Event()

def work():
    while not stop.is_set():
        soft_dtw_from_cost(cost)

threads = [threading.Thread(target=work) for _ in range(3)]
[t.start() for t in threads]
for _ in range(10):
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(soft_dtw_from_cost(cost), truth) else 1)
    assert os.waitpid(child, 0)[1] == 0
stop.set()
[t.join() for t in threads]
""",
        timeout=100,
    )


def test_idle_threads_do_not_keep_a_process_alive() -> None:
    """The threads of the pool do not keep a finished process alive."""
    run_python(
        """
import torch
from softdtw_kernels import soft_dtw_from_cost
torch.set_num_threads(2)
soft_dtw_from_cost(torch.rand(64, 64, 64))
""",
        timeout=100,
    )


def test_a_fork_while_another_thread_compiles(fresh: Forks) -> None:
    """The lock of the compiler belongs to a thread that the child does not have."""
    fresh.run(
        """
import os
import threading
import time
import torch
from numba.core.compiler_lock import global_compiler_lock
from softdtw_kernels import soft_dtw_from_cost

soft_dtw_from_cost(torch.rand(2, 5, 5))
begun = threading.Event()

def compile_something():
    with global_compiler_lock:
        begun.set()
        time.sleep(0.3)

thread = threading.Thread(target=compile_something)
thread.start()
begun.wait()
child = os.fork()
if child == 0:
    soft_dtw_from_cost(torch.rand(300, 300))  # another kernel
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
thread.join()
""",
        timeout=100,
    )


def test_where_no_thread_can_be_started_the_caller_works_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_more(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    cost = torch.rand(64, 40, 40, generator=torch.Generator().manual_seed(0))
    truth, before = soft_dtw_from_cost(cost), torch.get_num_threads()
    torch.set_num_threads(40)  # more than there are helpers
    try:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", no_more)
            assert torch.equal(soft_dtw_from_cost(cost), truth)
        end = time.monotonic() + 30
        while not threads._jobs.empty():  # what waits for a helper that is not there stays
            assert time.monotonic() < end
            time.sleep(0.01)
    finally:
        torch.set_num_threads(before)


def test_a_call_that_is_done_holds_nothing() -> None:
    """Neither in the queue of helpers that are busy elsewhere, nor by an error of its own."""
    held = [weakref.ref(torch.zeros(0)) for _ in range(2)]
    busy, go_on = threading.Event(), threading.Event()

    def block(first: int, last: int) -> None:
        busy.set()
        assert go_on.wait(60)

    def fail(first: int, last: int) -> None:
        raise ValueError("a fault of the work")

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    caller = threading.Thread(target=threads.run_chunks, args=(2, 10**6, block))
    gc.disable()
    try:
        caller.start()
        assert busy.wait(60)
        for k, work in enumerate((lambda first, last: None, fail)):
            array = torch.zeros(8)
            held[k] = weakref.ref(array)
            with contextlib.suppress(ValueError):
                threads.run_chunks(
                    8, 10**6, lambda first, last, work=work, array=array: work(first, last)
                )
            del array
            assert held[k]() is None
    finally:
        go_on.set()
        caller.join()
        gc.enable()
        torch.set_num_threads(before)
