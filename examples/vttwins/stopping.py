"""How a run ends before its time: at a signal, or with an error.

Requirements: torch. The ends of worker processes are in loading.py.

SIGINT (Ctrl-C) and SIGTERM let the step under way finish, so that it is saved. A second one, or
``GRACE`` seconds, break it off: then the last whole step is saved. Nothing breaks off a save, or an
update of the weights: they are short, and a part of one is worth nothing. torchrun sends SIGTERM to
all ranks when one of them has died, and kills them 30 seconds later.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
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

    Args:
        grace: seconds from the first signal until it breaks off what is under way.
        busy: whether to wait with that, as what is under way must end whole.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self, grace: int = GRACE, busy: Callable[[], bool] = lambda: False) -> None:
        self.number = 0  # of the signal; 0: none came
        self.impatient = False  # whether to break off at once, as nothing is under way
        self.grace, self.busy = grace, busy
        self._holding = False
        self._broken_off = False
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

    @contextmanager
    def holding(self) -> Iterator[None]:
        """A block that no signal breaks off; one that comes is noted."""
        before, self._holding = self._holding, True
        try:
            yield
        finally:
            self._holding = before

    def hold(self) -> None:
        """Break off nothing any more: what is left to do is to save."""
        self._holding = True

    def _note(self, number: int, frame: FrameType | None) -> None:
        again, self.number = self.requested, number
        if not again:
            self._alarm(self.grace)
        # Only once: a key that is held down must not break off the way to the last save.
        if (again or self.impatient) and not self._broken_off:
            self._break_off()

    def _break_off(self, *_: object) -> None:
        if self._holding or self.busy():
            self._alarm(1)  # until then it may be over
            return
        self._broken_off = True
        raise Stopped

    def _alarm(self, seconds: int) -> None:
        if signal.SIGALRM in self._former:
            signal.alarm(seconds)


@contextmanager
def ending(place: Place) -> Iterator[None]:
    """A block that Ctrl-C outside of training ends in a sentence, and whose errors end the process
    at once where it is one of several.

    Tearing down a process group whose other members are gone, or wait, may never return. The other
    ranks get an error from their collective operation, or torchrun's SIGTERM.
    """
    try:
        yield
    except BaseException as error:
        if place.world == 1:
            if isinstance(error, KeyboardInterrupt):  # no step was under way
                print("Interrupted. The same line goes on with what was saved.", file=sys.stderr)
                raise SystemExit(128 + signal.SIGINT) from None
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
