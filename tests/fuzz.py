"""Rounds of the property tests with new random examples, until one fails: make fuzz.

A round is every property test once, with one seed, which is printed: the same seed draws the same
examples. Ctrl-C ends it at once.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parent
THOROUGH_SEED = 4242


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run the property tests with random examples.")
    parser.add_argument("--rounds", type=int, help="at most so many; without end by default")
    parser.add_argument("--minutes", type=float, help="at most so long, be a round over or not")
    parser.add_argument("--seed", type=int, help="repeat the one round of this seed")
    parser.add_argument("--which", choices=("laws", "emulator", "all"), default="all")
    parser.add_argument("--thorough", action="store_true", help="one round of 400 examples a test")
    parser.add_argument("--workers", type=int, default=2, help="processes; 0: in one, plainly")
    parser.add_argument("pytest", nargs="*", help="given to pytest (default: all tests)")
    given = parser.parse_args()
    if given.rounds is not None and given.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {given.rounds}")
    if given.minutes is not None and not given.minutes > 0:
        parser.error(f"--minutes must be above 0, got {given.minutes}")
    if given.seed is not None and given.seed < 0:
        parser.error(f"--seed must be at least 0, got {given.seed}")
    return given


def command(given: argparse.Namespace, seed: int) -> list[str]:
    line = [sys.executable, "-m", "pytest", "-q", "-x", f"--fuzz={given.which}"]
    line += [f"--hypothesis-profile={'thorough' if given.thorough else 'fuzz'}"]
    line += [f"--hypothesis-seed={seed}"]
    if given.workers:
        line += ["-n", str(given.workers), "--dist", "worksteal"]
    return [*line, *(given.pytest or [str(TESTS)])]


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill pytest and its workers, which are a group of their own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_round(line: list[str], limit: float | None) -> int | None:
    """Return pytest's exit status, None at the limit (a time of time.monotonic)."""
    process = subprocess.Popen(line, cwd=TESTS.parent, start_new_session=True)
    try:
        return process.wait(None if limit is None else max(0, limit - time.monotonic()))
    except subprocess.TimeoutExpired:
        # A failure that is just being reported counts.
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            if process.wait(10) == 1:
                return 1
        return None
    finally:
        end(process)


def interrupted(number: int, _: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    given = arguments()
    # SIGINT too: what a shell starts in the background is told to ignore it.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupted)
    limit = None if given.minutes is None else time.monotonic() + 60 * given.minutes
    seed = given.seed if given.seed is not None else THOROUGH_SEED if given.thorough else None
    rounds = 1 if seed is not None else given.rounds
    done = 0
    while rounds is None or done < rounds:
        now = secrets.randbits(32) if seed is None else seed
        again = f"make fuzz SEED={now} FUZZ={given.which}" + " THOROUGH=1" * given.thorough
        print(f"round {done + 1}: seed {now}; to repeat it: {again}", flush=True)
        try:
            status = run_round(command(given, now), limit)
        except KeyboardInterrupt:
            print(f"\nended in round {done + 1}, seed {now}", flush=True)
            return 130
        if status is None:
            print(f"time is up in round {done + 1}; nothing failed, seed {now}", flush=True)
            return 0
        if status:
            print(f"round {done + 1} failed: seed {now}; to repeat it: {again}", flush=True)
            return status
        done += 1
        if limit is not None and time.monotonic() >= limit:
            break
    print(f"{done} round{'s' if done > 1 else ''}, nothing failed", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
