"""Ctrl-C in the middle of a call: it ends soon, and the next one is right."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import pytest
import torch
from helpers import Forks

from softdtw_kernels._cpu import threads
from softdtw_kernels._interrupts import interrupts_wait

CALL = """
import importlib
import signal
import sys
import torch
from softdtw_kernels import cost_matrix


class Interrupt:
    left = {left}

    def count(self, counts):
        self.left -= counts
        if counts and self.left == 0:
            signal.raise_signal(signal.SIGINT)

    def find_spec(self, name, path, target=None):
        self.count(name.startswith("numba."))

    def profile(self, frame, event, _):
        self.count(event == "call" and frame.f_code.co_name == "{function}")


def call():
    return cost_matrix(torch.tensor([[1.0], [3.0]]), torch.tensor([[0.0], [1.0]])).tolist()


signal.signal(signal.SIGINT, signal.default_int_handler)
for name in {imported}:
    importlib.import_module(name)
if "{function}":
    sys.setprofile(Interrupt().profile)
else:
    sys.meta_path.insert(0, Interrupt())
try:
    call()
except KeyboardInterrupt:
    print("interrupted")
sys.setprofile(None)
print(call(), signal.getsignal(signal.SIGINT) is signal.default_int_handler)
"""


RIGHT = "interrupted\n[[1.0, 0.0], [9.0, 4.0]] True\n"
OPERATORS = ["softdtw_kernels._cpu.operators"]


@pytest.mark.parametrize("left", [20, 60, 120])
def test_while_numba_is_imported(fresh: Forks, left: int) -> None:
    [done] = fresh.run(CALL.format(left=left, function="", imported=[]))
    assert done.stdout == RIGHT


@pytest.mark.parametrize("left", [5, 30])
def test_while_numba_loads_what_it_can_compile(fresh: Forks, tmp_path: Path, left: int) -> None:
    call = CALL.format(left=left, function="", imported=OPERATORS)
    [done] = fresh.run(call, {"NUMBA_CACHE_DIR": str(tmp_path)})
    assert done.stdout == RIGHT


@pytest.mark.parametrize(
    ("function", "left"),
    [("stream_list", 40), ("stream_list", 400), ("_raw_object_cache_notify", 1)],
)
def test_while_numba_compiles(fresh: Forks, tmp_path: Path, function: str, left: int) -> None:
    """In a generator that does not go on, and in what C calls."""
    call = CALL.format(left=left, function=function, imported=OPERATORS)
    [done] = fresh.run(call, {"NUMBA_CACHE_DIR": str(tmp_path)})
    assert done.stdout == RIGHT
    assert done.stderr == ""


def test_nothing_waits_in_another_thread_or_where_python_is_not_asked() -> None:
    before = signal.getsignal(signal.SIGINT)
    done = []

    def in_thread() -> None:
        with interrupts_wait():
            done.append(signal.getsignal(signal.SIGINT))

    try:
        for handler in (signal.default_int_handler, signal.SIG_IGN):
            signal.signal(signal.SIGINT, handler)
            thread = threading.Thread(target=in_thread)
            thread.start()
            thread.join()
            assert done.pop() is handler
        with interrupts_wait():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_interrupt_comes_beside_an_error() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt) as caught, interrupts_wait():
            signal.raise_signal(signal.SIGINT)
            raise ImportError("numba")
        assert isinstance(caught.value.__context__, ImportError)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("count", [1, 2])
def test_a_long_call_ends_after_a_part(count: int) -> None:
    """On one thread as on two. Nobody begins another part, and nobody is waited for."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    caller, parts = threading.current_thread(), []
    begun, go_on = threading.Event(), threading.Event()

    def work(first: int, last: int) -> None:
        parts.append((first, last))
        if threading.current_thread() is not caller:
            begun.set()
            assert go_on.wait(60)
            return
        assert count == 1 or begun.wait(60)
        if len(parts) >= 2:
            raise KeyboardInterrupt

    try:
        with pytest.raises(KeyboardInterrupt):
            threads.run_chunks(100, 100 * threads.LONGEST_PART, work)
        assert len(parts) == 2
        assert all(last - first == 1 for first, last in parts)
    finally:
        go_on.set()
        torch.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("chunks", [1, 7, 100])
@pytest.mark.parametrize("parts", [0.5, 3, 1000])
def test_parts_are_no_longer_than_a_second(count: int, chunks: int, parts: float) -> None:
    before, found = torch.get_num_threads(), []
    torch.set_num_threads(count)
    try:
        cells = int(parts * threads.LONGEST_PART)
        threads.run_chunks(chunks, cells, lambda first, last: found.append((first, last)))
    finally:
        torch.set_num_threads(before)
    assert [k for part in sorted(found) for k in range(*part)] == list(range(chunks))
    longest = max(last - first for first, last in found)
    assert longest == 1 or longest * cells <= chunks * threads.LONGEST_PART


def test_an_error_ends_the_others_too() -> None:
    """Who has begun with a part is waited for, as errors tell of what has been done."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    caller, begun, done = threading.current_thread(), threading.Event(), []

    def work(first: int, last: int) -> None:
        if threading.current_thread() is caller:
            assert begun.wait(60)
            raise MemoryError
        begun.set()
        threading.Event().wait(0.1)
        done.append((first, last))

    try:
        with pytest.raises(MemoryError):
            threads.run_chunks(100, 10**6, work)
        assert len(done) == 1
    finally:
        torch.set_num_threads(before)
