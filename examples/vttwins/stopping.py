"""How a run ends before its time: at a signal, or with an error.

Requirements: torch. The ends of worker processes are in loading.py.

SIGINT (Ctrl-C) and SIGTERM let the step under way finish, so that it is saved. A second one, or
``GRACE`` seconds, break it off: then the last whole step is saved. torchrun sends SIGTERM to all
ranks when one of them has died, and kills them 30 seconds later.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from examples.vttwins import loading
from examples.vttwins.distributed import Place

GRACE = 20  # seconds; fewer than the 30 of torchrun


class Stopped(BaseException):  # like KeyboardInterrupt, no error that code may handle
    """A signal broke off the step under way."""


class StopRequest:
    """Notes SIGTERM and SIGINT in its block; both signals work as before after it.

    Outside the main thread, which alone receives signals, it notes nothing.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self, grace: int = GRACE) -> None:
        self.number = 0  # of the signal; 0: none came
        self.impatient = False  # whether to break off at once, as nothing is under way
        self.grace = grace
        self._former: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        return self.number != 0

    @property
    def name(self) -> str:
        return signal.Signals(self.number).name if self.number else "no signal"

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in self.SIGNALS:
                self._former[number] = signal.signal(number, self._note)
            if hasattr(signal, "SIGALRM"):
                self._former[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._break_off)
        return self

    def __exit__(self, *error: object) -> None:
        if signal.SIGALRM in self._former:
            signal.alarm(0)
        for number, handler in self._former.items():
            signal.signal(number, handler)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """A block that a signal breaks off at once: nothing is lost by it."""
        self.impatient = True
        try:
            if self.requested:
                raise Stopped
            yield
        finally:
            self.impatient = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        again, self.number = self.requested, number
        if again or self.impatient:
            raise Stopped
        if signal.SIGALRM in self._former:
            signal.alarm(self.grace)

    def _break_off(self, number: int, frame: FrameType | None) -> None:
        raise Stopped


@contextmanager
def ending(place: Place) -> Iterator[None]:
    """A block whose errors end the process at once where it is one of several.

    Tearing down a process group whose other members are gone, or wait, may never return. The other
    ranks get an error from their collective operation, or torchrun's SIGTERM.
    """
    try:
        yield
    except BaseException as error:
        if place.world == 1:
            raise
        code = 1
        if isinstance(error, SystemExit):
            code = error.code if isinstance(error.code, int) else 1
            if isinstance(error.code, str):
                print(error.code, file=sys.stderr)
        else:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        loading.kill_workers()
        os._exit(code)
