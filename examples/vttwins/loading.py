"""Batches for a run: which samples each step takes, and the processes that read them.

Requirements: torch, NumPy.

Three rules. Batches depend on the seed and the step alone: not on the number of workers or ranks,
nor on where a run was resumed. Workers leave signals to their parent, which may want to finish a
step and save. And no worker outlives the block that reads from it, whatever ends that block:
    with loading.stream(loader(dataset, batches, workers=2)) as stream:
        for batch in stream: ...
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import multiprocessing
import multiprocessing.connection
import multiprocessing.util  # registers its own exit handler, which must run after ours
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

PATIENCE = 3.0  # seconds that workers get to finish what they do before they are killed
_PATH_BYTES = 1024


class LoadingError(RuntimeError):
    """No batch came: a worker died, a file could not be read in time, or no video can be used."""


def epoch_order(seed: int, epoch: int, videos: int) -> np.ndarray:
    """The order of the videos in an epoch; batches are consecutive parts of it: int64 (videos,)."""
    return np.random.default_rng([seed, epoch]).permutation(videos)


class StepBatches(Sampler[list[tuple[int, int]]]):
    """Addresses of the batches of one rank, from any step on.

    Step s takes the global batch s mod (videos // batch) of a permutation that depends on the seed
    and the epoch; rank r takes its r-th part. W ranks together see the batches of one process, a
    resumed run those of an uninterrupted one. The incomplete last batch of an epoch is dropped.
    """

    def __init__(
        self,
        videos: int,
        batch: int,
        steps: int,
        start: int = 0,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if batch % world:
            raise ValueError(f"a batch of {batch} cannot be divided among {world} processes")
        if videos < batch:
            raise ValueError(f"{videos} videos do not fill a batch of {batch}")
        self.videos, self.batch, self.steps, self.start = videos, batch, steps, start
        self.seed, self.rank, self.world = seed, rank, world

    def __len__(self) -> int:
        return max(self.steps - self.start, 0)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        per_epoch, mine = self.videos // self.batch, self.batch // self.world
        known, order = -1, np.zeros(0, dtype=np.int64)
        for step in range(self.start, self.steps):
            epoch, place = divmod(step, per_epoch)
            if epoch != known:
                known = epoch
                order = epoch_order(self.seed, epoch, self.videos)
            begin = place * self.batch + self.rank * mine
            yield [(epoch, int(i)) for i in order[begin : begin + mine]]


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack the tensors of samples, chain their lists of skipped videos."""
    return {
        "video": torch.stack([s["video"] for s in samples]),
        "words": torch.stack([s["words"] for s in samples]),
        "decode_seconds": sum(s["decode_seconds"] for s in samples),
        "skipped": [entry for s in samples for entry in s["skipped"]],
    }


class Notes:
    """What each worker reads and since when, in memory that it shares with its parent.

    No locks: a worker that is killed while it holds one would stop the others.
    """

    def __init__(self, workers: int) -> None:
        self.paths = torch.zeros(workers, _PATH_BYTES, dtype=torch.uint8).share_memory_()
        self.since = torch.zeros(workers, dtype=torch.float64).share_memory_()  # 0: nothing
        self.leaving = torch.zeros(1, dtype=torch.uint8).share_memory_()

    def write(self, worker: int, path: str) -> None:
        text = path.encode("utf-8", "replace")[-_PATH_BYTES:]
        self.since[worker] = 0
        self.paths[worker] = torch.from_numpy(
            np.frombuffer(text.ljust(_PATH_BYTES, b"\0"), dtype=np.uint8).copy()
        )
        self.since[worker] = time.time()

    def clear(self, worker: int) -> None:
        self.since[worker] = 0

    def report(self) -> str:
        """One clause a busy worker: what it reads, the one that has waited longest first."""
        busy = sorted((t, k) for k, t in enumerate(self.since.tolist()) if t)
        clauses = [
            f"worker {k} has been reading {self.path(k)} for {time.time() - t:.0f} s"
            for t, k in busy
        ]
        return "; ".join(clauses) or "no worker is reading a file"

    def path(self, worker: int) -> str:
        return bytes(self.paths[worker].tolist()).rstrip(b"\0").decode("utf-8", "replace")


_note: tuple[Notes, int] | None = None  # in a worker: where it writes, and its number


@contextlib.contextmanager
def reading(path: object) -> Iterator[None]:
    """Tell the process that waits for this worker which file is being read. Elsewhere: nothing."""
    if _note is None:
        yield
        return
    notes, worker = _note
    if notes.leaving[0]:
        raise LoadingError("the run ends")  # nobody waits for this sample any more
    notes.write(worker, str(path))
    try:
        yield
    finally:
        notes.clear(worker)


def prepare_worker(worker: int, notes: Notes | None = None) -> None:
    """Start of a worker process: one thread, and signals left to the parent.

    A signal sent to the whole process group would otherwise kill the workers while the parent still
    wants to finish its step and save.
    """
    global _note
    _note = None if notes is None else (notes, worker)
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def loader(
    dataset: Dataset[dict[str, Any]],
    batches: Sampler[Any],
    workers: int,
    pin: bool = False,
    timeout: float = 0,
) -> DataLoader[dict[str, Any]]:
    """A loader whose batches do not depend on the number of workers.

    Args:
        timeout: seconds to wait for a batch of the workers; 0: for ever.
    """
    notes = Notes(workers)
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=functools.partial(prepare_worker, notes=notes),
        pin_memory=pin,
        prefetch_factor=2 if workers else None,
        timeout=timeout if workers else 0,
    )


@contextlib.contextmanager
def stream(batches: DataLoader[dict[str, Any]]) -> Iterator[Iterator[dict[str, Any]]]:
    """The batches of a loader; its workers are gone when the block is left, within seconds.

    Raises:
        LoadingError: no batch within the loader's timeout, or a worker died: the message says what
            the workers were reading; or what the data set raised.
    """
    start = batches.worker_init_fn
    notes = start.keywords["notes"] if isinstance(start, functools.partial) else Notes(0)
    before = set(multiprocessing.active_children())
    iterator = iter(batches)
    workers = [child for child in multiprocessing.active_children() if child not in before]
    try:
        yield iterator
    except LoadingError as error:
        # Of a worker, torch makes it one whose text is the whole traceback.
        raise LoadingError(
            str(error).rpartition(f"{LoadingError.__name__}: ")[2].strip()
        ) from error
    except RuntimeError as error:
        # torch raises these in the main thread, wherever that is: a dead child is told by SIGCHLD.
        if str(error).startswith("DataLoader timed out"):
            reason = f"no batch came within {batches.timeout:g} s"
        elif str(error).startswith("DataLoader worker (pid"):
            reason = str(error).split(". ")[0].rstrip(".")
        else:
            raise
        raise LoadingError(f"{reason}; {notes.report()}") from error
    except (ConnectionError, EOFError) as error:
        # A worker died while it handed over a batch, which is seen before its death is.
        if not multiprocessing.connection.wait([worker.sentinel for worker in workers], PATIENCE):
            raise
        raise LoadingError(f"DataLoader worker died; {notes.report()}") from error
    finally:
        notes.leaving.fill_(1)
        _end(iterator, workers)


def _end(iterator: Any, workers: list[Any]) -> None:
    """End the workers of an iterator: in peace if they can, within ``PATIENCE`` if they cannot."""
    if not workers:
        return
    with _without_handler():
        # From a thread, which only sends the signal: waiting for a child is for one thread alone.
        late = threading.Timer(PATIENCE, lambda: [worker.kill() for worker in workers])
        late.daemon = True
        late.start()
        try:
            # Private, but dropping the last reference is no way here: the exception that ends the
            # block often holds one.
            iterator._shutdown_workers()
        except RuntimeError:
            pass  # torch's complaint about workers that were killed
        finally:
            late.cancel()
            _kill(workers)


def _kill(children: list[Any]) -> None:
    """Kill processes, by the only signal that workers do not ignore, and wait for their end."""
    with _without_handler():
        for child in children:
            child.kill()
        for child in children:
            child.join(PATIENCE)


@contextlib.contextmanager
def _without_handler() -> Iterator[None]:
    """Without torch's handler of SIGCHLD, which raises wherever the main thread is."""
    main = threading.current_thread() is threading.main_thread()
    former = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if main else None
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGCHLD, former)


def kill_workers() -> None:
    """Kill the daemonic children of this process, such as the workers of any loader.

    At exit multiprocessing sends them SIGTERM and waits, without end where they ignore it; so this
    comes before.
    """
    _kill([child for child in multiprocessing.active_children() if child.daemon])


atexit.register(kill_workers)
