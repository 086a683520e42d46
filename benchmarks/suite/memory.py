"""Peak memory of a call, as the operating system counts it (Linux)."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

STATUS = Path("/proc/self/status")
RESET_PEAK = Path("/proc/self/clear_refs")


def status_bytes(key: str) -> int:
    lines = (line for line in STATUS.read_text().splitlines() if line.startswith(key))
    return int(next(lines).split()[1]) * 1024


def peak_bytes(call: Callable[[], object]) -> int:
    """How far the resident memory rises above where it stands now while `call` runs.

    The result of `call` is kept alive until the peak is read. Call it in a fresh process where
    small amounts matter: memory that the allocator still holds from earlier calls does not count.
    """
    gc.collect()
    try:
        RESET_PEAK.write_text("5")
    except OSError as error:
        raise NotImplementedError("the kernel does not let the peak be reset") from error
    before = status_bytes("VmRSS")
    result = call()
    peak = status_bytes("VmHWM") - before
    del result
    return peak
