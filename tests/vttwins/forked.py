"""Processes forked from that of the tests, which has imported what they need: to start an
interpreter and import torch and the example takes four seconds each time.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from helpers import Forks


class Forked:
    """A process that does `work` and ends as a script would; with the methods of a Popen.

    It leads a group of its own. What it and its children write to stdout and stderr is kept. For
    scripts that stand alone: gloo, in the destructor of its group, may wait forever in a fork.
    """

    def __init__(self, work: Callable[[], object]) -> None:
        self._output = tempfile.TemporaryFile()
        context = multiprocessing.get_context("fork")
        self._process = context.Process(target=self._run, args=(work,))
        self._process.start()
        self.pid: int = self._process.pid

    def _run(self, work: Callable[[], object]) -> None:
        os.setsid()
        for number in (1, 2):
            os.dup2(self._output.fileno(), number)
        sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        work()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    poll = returncode.fget

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(str(self._process), timeout or 0.0)
        self._output.seek(0)
        return self._output.read().decode(), None

    def kill(self) -> None:
        self._process.kill()


def run_script(path: Path, *arguments: str) -> None:
    sys.argv = [str(path), *arguments]
    runpy.run_path(str(path), run_name="__main__")


def run_ranks(ranks: Forks, path: Path, *arguments: str) -> list[str]:
    """The script in two processes, which find each other as those that torchrun starts; what they
    have written.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = f"""if True:
        import os, runpy, sys
        os.environ["RANK"] = os.environ["LOCAL_RANK"] = os.environ["FORK"]
        sys.argv = {[str(path), *arguments]!r}
        sys.path.insert(0, os.path.dirname(sys.argv[0]))
        runpy.run_path(sys.argv[0], run_name="__main__")
    """
    environment = {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2",
        "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    done = ranks.run(code, environment, count=2, timeout=900)
    return [process.stdout + process.stderr for process in done]
