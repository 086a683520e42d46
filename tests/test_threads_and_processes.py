"""Right results from many threads and forked workers."""

from __future__ import annotations

import threading

import pytest
import torch
from helpers import Forks, bits, run_python
from torch import Tensor

from softdtw_kernels import s2dtw_from_cost, soft_dtw_from_cost


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
