"""Threads of our own over kernels that release the GIL.

Numba's parallel=True is not used: its workqueue layer aborts when two Python threads enter it at
once, and a process forked after use of a threading layer hangs or dies. This pool starts at its
first use in each process, and a forked child starts a new one.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

SMALLEST_SHARE = 20_000  # cells that are worth a thread: about 0.1 ms of work

_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_pool_size = 0


def _forget_pool() -> None:
    global _lock, _pool, _pool_size
    _lock, _pool, _pool_size = threading.Lock(), None, 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def _get_pool(size: int) -> ThreadPoolExecutor:
    global _pool, _pool_size
    with _lock:
        if _pool is None or _pool_size < size:
            # A smaller pool that is being replaced finishes what it was given and ends with its
            # last reference.
            _pool, _pool_size = ThreadPoolExecutor(size, thread_name_prefix="softdtw"), size
        return _pool


def run_chunks(chunks: int, cells: int, work: Callable[[int, int], None]) -> None:
    """Call work(first, last) over a partition of range(chunks), on as many threads as torch uses.

    `chunks` are the units that must stay together (what decides which pairs share vector lanes), so
    the partition does not change any result. `cells` is the size of the whole work.
    """
    threads = max(1, min(torch.get_num_threads(), chunks, cells // SMALLEST_SHARE))
    if threads == 1:
        work(0, chunks)
        return
    parts = min(chunks, threads * 4)  # several each: pairs of unequal lengths balance out
    edges = [chunks * k // parts for k in range(parts + 1)]
    free = [True] * parts
    take = threading.Lock()

    def worker(index: int) -> None:
        """Its own share first, in every call the same, as what it reads may be in its cache."""
        start = index * parts // threads
        for part in (*range(start, parts), *range(start)):
            with take:
                mine, free[part] = free[part], False
            if mine:
                work(edges[part], edges[part + 1])

    futures = [_get_pool(threads - 1).submit(worker, k) for k in range(1, threads)]
    worker(0)
    for future in futures:
        # A helper that has not started finds nothing left to do: no need to wait behind other
        # callers' work.
        if not future.cancel():
            future.result()
