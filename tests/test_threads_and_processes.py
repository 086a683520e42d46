"""Right results from many threads, forked workers, racing processes, and without a cache."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest
import torch
from helpers import bits, run_python
from torch import Tensor

import softdtw_kernels
from softdtw_kernels import s2dtw_from_cost, soft_dtw_from_cost

# Prints a digest of values and gradients that every process must agree on. To compile the kernels
# of other shapes too takes half a minute.
DIGEST = """
import hashlib
import torch
from softdtw_kernels import soft_dtw_from_cost

cost = torch.randn(300, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
value = soft_dtw_from_cost(cost, gamma=0.1)
value.sum().backward()
print(hashlib.sha256(value.detach().numpy().tobytes() + cost.grad.numpy().tobytes()).hexdigest())
"""


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


def test_first_calls_from_eight_threads_of_a_fresh_process() -> None:
    """The lazy import and compilation happen once, whoever comes first."""
    run_python(
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


def test_forked_workers_after_the_parent_used_the_kernels() -> None:
    """A DataLoader that forks, whose workers train, while the parent goes on doing so."""
    run_python(
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


def test_a_fork_while_other_threads_compute() -> None:
    """No lock that a computing thread holds at the moment of the fork may block the child."""
    run_python(
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


@pytest.mark.slow
def test_processes_that_race_on_a_cold_cache(tmp_path: Path) -> None:
    """Three processes compile into one empty cache at once; a fourth loads what they left.

    The kernel that compiles fastest does for that, in two types: how files are written is the same
    for all.
    """
    code = """
import torch
from softdtw_kernels import cost_matrix
for dtype in (torch.float32, torch.float64):
    x, y = torch.linspace(0, 1, 24, dtype=dtype), torch.linspace(-1, 3, 40, dtype=dtype)
    print(cost_matrix(x.view(-1, 2), y.view(-1, 2)).numpy().tobytes().hex())
"""
    environment = {"NUMBA_CACHE_DIR": str(tmp_path)}
    results: list[str] = []

    def work() -> None:
        results.append(run_python(code, environment=environment, timeout=200).stdout)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(tmp_path.rglob("*.nbi")), "nothing was cached"
    assert len(results) == 3
    work()
    assert len(set(results)) == 1


@pytest.mark.slow
def test_without_any_place_for_a_cache(tmp_path: Path) -> None:
    """Every location that Numba would write to lies below a regular file, even for root."""
    package = tmp_path / "site" / "softdtw_kernels"
    shutil.copytree(
        Path(softdtw_kernels.__file__).parent,
        package,
        ignore=shutil.ignore_patterns("__pycache__", "*.nb?"),
    )
    blocker = tmp_path / "file"
    blocker.write_text("")
    for folder in [package, *(p for p in package.rglob("*") if p.is_dir())]:
        (folder / "__pycache__").write_text("")
    blocked = str(blocker / "below")
    environment = {
        "PYTHONPATH": str(package.parent), "PYTHONDONTWRITEBYTECODE": "1",
        "NUMBA_CACHE_DIR": blocked, "HOME": blocked,
        "XDG_CACHE_HOME": blocked, "IPYTHONDIR": blocked,
    }  # fmt: skip
    code = "import softdtw_kernels; print(softdtw_kernels.__file__)" + DIGEST
    where, result = run_python(code, environment=environment, timeout=200).stdout.split()
    assert Path(where).parent == package, "the blocked copy is not what ran"
    assert not list(tmp_path.rglob("*.nb?")), "something was cached after all"
    assert result == run_python(DIGEST).stdout.strip()
    # With the variable unset, the package's own folder and the home directory are what is blocked.
    del environment["NUMBA_CACHE_DIR"]
    hard = """
import torch
from softdtw_kernels import soft_dtw_from_cost
print(soft_dtw_from_cost(torch.ones(2, 2), gamma=0.0).item())
"""
    done = run_python(hard, environment=environment)
    assert float(done.stdout) == 2.0
    assert done.stderr.count("Warning: ") == 1 and "NUMBA_CACHE_DIR" in done.stderr


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
