"""Threads of our own over kernels that release the GIL.

Numba's parallel=True is not used: its workqueue layer aborts when two Python threads enter it at
once, and a process forked after use of a threading layer hangs or dies. These helpers start at
their first use in each process, and a forked child starts new ones. A ThreadPoolExecutor would do;
its futures take longer to hand over than a small call takes to compute.
"""

from __future__ import annotations

import itertools
import math
import os
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue

import numpy as np
import torch

from .atomic import SPINS, give_way, look, pause, tell
from .jit import jit

SMALLEST_SHARE = 20_000  # cells that are worth a thread: about 0.1 ms of work
# Where the parts of a share end: several of them, so that pairs of unequal lengths balance out, and
# the last one short, as others wait for it.
ENDS_OF_PARTS = 0.5, 0.8, 0.95, 1.0
LONGEST_PART = 2**29  # cells: about a second, after which Ctrl-C ends a call
AWAKE = 1e-4  # seconds for which the caller looks whether others are done
STEP_BACK = 100  # pauses: some microseconds


@jit
def tell_caller(done):
    """That all is done, and leave the GIL to the caller for a while: a thread that finds it taken
    sleeps, and takes long to wake.
    """
    tell(done, 0, 1)
    for _ in range(STEP_BACK):
        pause()


@jit
def is_told(done):
    """Looks for a while, and leaves the GIL to those who have work to finish."""
    for _ in range(SPINS):
        if look(done, 0) > 0:
            return True
        pause()
    give_way()
    return False


class _Job:
    """A partition of range(chunks) that threads share, each taking what is left part by part.

    longest: the most chunks of a part.
    """

    def __init__(
        self, chunks: int, threads: int, longest: int, work: Callable[[int, int], None]
    ) -> None:
        self.threads, self.work = threads, work
        shares = [chunks * k // threads for k in range(threads + 1)]
        ends = {
            first + math.ceil((end - first) * part)
            for first, end in itertools.pairwise(shares)
            for part in ENDS_OF_PARTS
        }
        self.edges = sorted({*range(0, chunks, longest), *ends})
        self.parts = len(self.edges) - 1
        self.first_parts = [self.edges.index(first) for first in shares[:-1]]
        self.free = [True] * self.parts
        self.unfinished = self.parts
        self.error: BaseException | None = None
        self.lock, self.finished = threading.Lock(), threading.Lock()
        self.finished.acquire()
        self.done = np.zeros(1, np.int64)

    def run(self, index: int) -> None:
        """The own share first, in every call the same: what it reads may be in its cache."""
        start = self.first_parts[index]
        for part in (*range(start, self.parts), *range(start)):
            with self.lock:
                mine, self.free[part] = self.free[part], False
            if not mine:
                continue
            try:
                self.work(self.edges[part], self.edges[part + 1])
            except BaseException as error:  # raised by the caller, who must not wait for ever
                self.error = error
                self.skip_rest()
            with self.lock:
                self.unfinished -= 1
                if self.unfinished:
                    continue
            del self.work  # and the arrays of the call: helpers may be long busy before they look
            self.finished.release()
            if index > 0:
                tell_caller(self.done)
            else:
                self.done[0] = 1

    def skip_rest(self) -> None:
        """Nobody begins another part."""
        with self.lock:
            self.unfinished -= sum(self.free)
            self.free = [False] * self.parts

    def wait(self) -> None:
        """Until all is done: for a while awake, as a thread that sleeps takes long to wake."""
        end = time.perf_counter() + AWAKE
        while not is_told(self.done) and time.perf_counter() < end:
            pass
        self.finished.acquire()


_lock = threading.Lock()
_jobs: SimpleQueue[tuple[_Job, int]] = SimpleQueue()
_helpers = 0


def _forget_helpers() -> None:
    global _lock, _jobs, _helpers
    _lock, _jobs, _helpers = threading.Lock(), SimpleQueue(), 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_helpers)


def _help(jobs: SimpleQueue[tuple[_Job, int]]) -> None:
    while True:
        job, index = jobs.get()
        job.run(index)
        del job  # and with it the arrays of the call, while waiting for the next


def _helpers_up_to(count: int) -> int:
    """How many helpers there are, up to so many: started now, as far as the system lets us."""
    global _helpers
    if _helpers < count:
        for kernel in (tell_caller, is_told):  # compiled, or loaded, before a helper is waited for
            kernel(np.ones(1, np.int64))
        with _lock:
            while _helpers < count:
                name = f"softdtw-{_helpers + 1}"
                try:
                    threading.Thread(target=_help, args=(_jobs,), name=name, daemon=True).start()
                except RuntimeError:  # a limit of the process, or its end
                    break
                _helpers += 1
    return min(_helpers, count)


def threads_for(cells: int) -> int:
    """How many threads work of so many cells is worth."""
    return max(1, min(torch.get_num_threads(), cells // SMALLEST_SHARE))


def run_chunks(chunks: int, cells: int, work: Callable[[int, int], None]) -> None:
    """Call work(first, last) over a partition of range(chunks), on as many threads as torch uses.

    `chunks` are the units that must stay together (what decides which pairs share vector lanes), so
    the partition does not change any result. `cells` is the size of the whole work.
    """
    threads = min(threads_for(cells), chunks)
    longest = chunks if cells <= LONGEST_PART else max(1, chunks * LONGEST_PART // cells)
    if threads > 1:
        _share(_Job(chunks, threads, longest, work))
    elif longest >= chunks:
        work(0, chunks)
    else:
        for first in range(0, chunks, longest):
            work(first, min(chunks, first + longest))


def run_together(threads: int, work: Callable[[], None]) -> None:
    """Call work on so many threads at once. What there is to do they share among themselves: the
    call of a thread that comes late finds nothing left.
    """
    if threads == 1:
        work()
    else:
        _share(_Job(threads, threads, 1, lambda first, last: work()))


def _share(job: _Job) -> None:
    for index in range(1, 1 + _helpers_up_to(job.threads - 1)):
        _jobs.put((job, index))
    job.run(0)
    # For what others have begun, unless the caller was interrupted: they hold what they work on. A
    # helper that comes late, from another caller's work, finds nothing left to do and is not waited
    # for.
    if job.error is None or isinstance(job.error, Exception):
        job.wait()
    error, job.error = job.error, None
    if error is not None:
        try:
            raise error
        finally:
            del error, job  # or these would hold each other, and the arrays
