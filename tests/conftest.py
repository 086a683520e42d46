"""Hypothesis profiles, rounds of random examples, the order of tests, the backends of the laws.

`fixed`, the default everywhere, draws the same examples every time, `fuzz` those of a seed (see
fuzz.py), `thorough` many of them. HYPOTHESIS_PROFILE or --hypothesis-profile chooses another.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from helpers import Forks

with contextlib.suppress(ImportError):
    from hypothesis.internal.conjecture import providers

    # Hypothesis also draws numbers that stand in the modules which happen to be imported so far:
    # examples would depend on what ran before in the same process.
    providers.is_local_module_file = lambda path: False

_COMMON = {
    "deadline": None,
    "database": None,
    "print_blob": True,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}
settings.register_profile("fixed", max_examples=25, derandomize=True, **_COMMON)
settings.register_profile("fuzz", max_examples=25, derandomize=False, **_COMMON)
settings.register_profile("thorough", max_examples=400, derandomize=False, **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or "fixed")


@pytest.fixture(scope="session")
def fresh() -> Iterator[Forks]:
    """Processes that have imported torch alone."""
    from helpers import Forks  # imports torch, which the tests of fuzz.py have no need of

    with Forks() as started:
        yield started


LONG_SECONDS = 30  # a test that takes longer is to be marked slow


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--backends",
        default="reference,numba",
        help="comma-separated backends that the laws run on (default: reference,numba)",
    )
    parser.addoption(
        "--fuzz",
        choices=("laws", "emulator", "all"),
        help="run the property tests only: those of the CUDA emulator, the others, or all",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", metafunc.config.getoption("--backends").split(","))


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """With --doctest-modules, pytest would import the scripts beside the tests, which run then."""
    script = collection_path.suffix == ".py" and not collection_path.name.startswith("test_")
    return True if script else None


def is_property(item: pytest.Item) -> bool:
    """Whether Hypothesis draws the arguments of this test."""
    return getattr(getattr(item, "obj", None), "is_hypothesis_test", False)


def needs_emulator(item: pytest.Item) -> bool:
    """Whether this test is skipped where the emulator's compiler is missing."""
    reasons = (str(mark.kwargs.get("reason")) for mark in item.iter_markers("skipif"))
    return any(reason.startswith("the CUDA emulator needs") for reason in reasons)


def in_round(item: pytest.Item, which: str) -> bool:
    """Whether a round of fuzz.py runs this test."""
    return is_property(item) and which in ("all", "emulator" if needs_emulator(item) else "laws")


def in_order(items: list[pytest.Item], workers: int) -> list[pytest.Item]:
    """Slow tests first, shared out among the workers.

    xdist's worksteal gives every worker one part of the list, of equal lengths, and a worker that
    has done its part takes from the end of another's. What is marked slow stays together,
    a module or the cases of one test, as they share what takes long, like kernels to be compiled.
    """
    slow: dict[str, list[pytest.Item]] = {}
    rest = []
    for item in items:
        if item.get_closest_marker("slow") is None:
            rest.append(item)
            continue
        module = item.getparent(pytest.Module)
        together = module is not None and any(m.name == "slow" for m in module.own_markers)
        function = item.nodeid.partition("[")[0]
        slow.setdefault(module.nodeid if together else function, []).append(item)
    # The first worker begins with the emulator, whose kernels g++ compiles, the last one with those
    # that Numba compiles: in a fresh checkout two at once would compile the same.
    rest.sort(key=lambda item: not item.path.name.startswith("test_cuda"))
    order: list[pytest.Item] = []
    for k in range(workers):
        mine = [item for unit in list(slow.values())[k::workers] for item in unit]
        length = (len(items) - len(order)) // (workers - k)
        fill = len(rest) if k == workers - 1 else max(0, length - len(mine))
        order += mine + rest[:fill]
        del rest[:fill]
    return order


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    which = config.getoption("--fuzz")
    if which:
        config.hook.pytest_deselected(items=[i for i in items if not in_round(i, which)])
        items[:] = [i for i in items if in_round(i, which)]
    items[:] = in_order(items, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))


def compiled_by_now() -> list[str]:
    """The CPU kernels that this process has compiled, or loaded."""
    modules = [m for name, m in sys.modules.items() if name.startswith("softdtw_kernels._cpu.")]
    functions = [v for module in modules for v in vars(module).values()]
    return [f.__name__ for f in functions if getattr(f, "overloads", None)]


def pytest_collection_finish() -> None:
    """What thousands of tests consist of stays: the garbage collector need not look at it again."""
    if early := compiled_by_now():  # which every worker would do, at the same time
        raise pytest.UsageError(f"a module of tests has compiled {early[0]} by being imported")
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)  # Hypothesis and compilers make many objects, and few cycles


@pytest.hookimpl(wrapper=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    """A round that is interrupted after a failure has failed."""
    if session.testsfailed and session.exitstatus == pytest.ExitCode.INTERRUPTED:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    # xdist ends a worker that takes longer than ten seconds to exit, and what this has measured for
    # `make coverage` would be lost with it.
    if coverage := sys.modules.get("coverage"):
        measurement = coverage.Coverage.current()
        if measurement is not None:
            measurement.save()
    # Garbage is looked for once, for what its finalizers raise: pytest would do so five times, each
    # time among all that thousands of tests leave.
    gc.collect()
    gc.freeze()
    return (yield)


def pytest_terminal_summary(terminalreporter) -> None:
    reports = (r for kind in ("passed", "failed") for r in terminalreporter.getreports(kind))
    late = [r for r in reports if r.duration > LONG_SECONDS and "slow" not in r.keywords]
    if late and not terminalreporter.config.getoption("--fuzz"):
        terminalreporter.section("long tests that start late for lack of the mark `slow`")
        for report in late:
            terminalreporter.line(f"{report.duration:4.0f} s {report.nodeid}")
