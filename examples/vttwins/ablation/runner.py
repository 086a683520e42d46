"""Run rows and seeds in several processes of one thread; one result file each, so a run goes on.

Requirements: torch.

Each process works through its own share of the jobs and writes each result when it has it. Jobs
whose file is there are left out. A process that fails ends the others and the command.
"""

from __future__ import annotations

import json
import multiprocessing
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch

from examples.vttwins.ablation.rows import BY_NAME, Row
from examples.vttwins.checkpoint import remove_leftovers, write_text

Result = dict[str, float]


@dataclass(frozen=True)
class Study:
    """What is run for each row and seed, and where the results go.

    Attributes:
        work: picklable function of a row and a seed.
        settings: all that ``work`` depends on beside them, as plain data.
        folder: of the result files.
    """

    work: Callable[[Row, int], Result]
    settings: dict[str, Any]
    folder: Path

    def file(self, row: str, seed: int) -> Path:
        return self.folder / f"{row}-{seed}.json"

    def load(self, row: str, seed: int) -> Result | None:
        """The result that is there, if any.

        Raises:
            ValueError: the file is damaged or was made with other settings.
        """
        path = self.file(row, seed)
        if not path.exists():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            made_with, result = content["settings"], content["result"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no result of this command ({error!r}); move it") from None
        if made_with != self.settings or content.get("loss") != BY_NAME[row].loss():
            raise ValueError(f"{path} was made with other settings; give another --out")
        return {name: float(value) for name, value in result.items()}


def run_jobs(study: Study, jobs: list[tuple[str, int]], processes: int) -> None:
    """Do the jobs (row, seed) that have no result yet.

    Raises:
        ValueError: a result that is there does not fit.
        RuntimeError: a process failed; why is on stderr.
    """
    study.folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(study.folder)
    left = [job for job in jobs if study.load(*job) is None]
    if len(left) < len(jobs):
        print(f"{study.folder}: {len(jobs) - len(left)} of {len(jobs)} results are there")
    processes = min(processes, len(left))
    if processes <= 1:
        _work_through(study, left, jobs)
        return
    # spawn: a fork of a process whose torch has threads may hang.
    context = multiprocessing.get_context("spawn")
    workers = [
        context.Process(target=_work_alone, args=(study, left[k::processes], jobs), daemon=True)
        for k in range(processes)
    ]
    try:
        for worker in workers:
            worker.start()
        running = list(workers)
        while running:
            wait([worker.sentinel for worker in running])
            for worker in [w for w in running if w.exitcode is not None]:
                running.remove(worker)
                if worker.exitcode:
                    raise RuntimeError(
                        f"a process ended with code {worker.exitcode}; the same command goes on "
                        "with what is left"
                    )
    finally:  # also on Ctrl-C
        for worker in workers:
            if worker.is_alive():
                worker.terminate()
                worker.join()


def _work_alone(study: Study, mine: list[tuple[str, int]], jobs: list[tuple[str, int]]) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this one
    try:
        _work_through(study, mine, jobs)
    except (ValueError, OSError) as error:  # what a user can mend; the rest keeps its traceback
        raise SystemExit(f"{type(error).__name__}: {error}") from error


def _work_through(study: Study, mine: list[tuple[str, int]], jobs: list[tuple[str, int]]) -> None:
    for row, seed in mine:
        began = time.perf_counter()
        result = study.work(BY_NAME[row], seed)
        seconds = time.perf_counter() - began
        content = {
            "row": row,
            "seed": seed,
            "loss": BY_NAME[row].loss(),
            "settings": study.settings,
            "result": result,
            "seconds": round(seconds, 1),
        }
        write_text(study.file(row, seed), json.dumps(content, indent=1) + "\n")
        done = sum(study.file(*job).exists() for job in jobs)
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in result.items())
        print(f"[{done}/{len(jobs)}] {row}, seed {seed}: {numbers} ({seconds:.1f} s)", flush=True)
