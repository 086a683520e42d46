"""Ctrl-C, where it must not come between."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def interrupts_wait() -> Iterator[None]:
    """Ctrl-C counts at the end of this: for imports, which are not done anew where they stopped, so
    that the rest of a process would find half a module.
    """
    handler: Any = signal.getsignal(signal.SIGINT)
    came: list[Any] = []
    waits = callable(handler)  # else Python is not what answers
    if waits:
        try:
            signal.signal(signal.SIGINT, lambda *event: came.append(event))
        except ValueError:  # not the main thread, which alone is interrupted
            waits = False
    try:
        yield
    finally:
        if waits:
            signal.signal(signal.SIGINT, handler)
            if came:
                handler(*came[0])
