"""What is drawn: the same for everybody by default, and by seed in a round of fuzz.py, which has
every property test.
"""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import in_order, in_round, is_property
from helpers import TESTS
from hypothesis import settings

# Prints what it draws; SOMETIMES is what fails.
PLANTED = """
import sys
import pytest
from hypothesis import given, strategies as st

@given(x=st.integers(0, 10**6), y=st.lists(st.integers(0, 10**4), min_size=20, max_size=20))
def test_property(x, y):
    print("drawn", x, y, file=sys.__stdout__)
    assert not (SOMETIMES)

def test_plain():
    assert False, "is no property"
"""


def fuzz(
    folder: Path, *options: str, sometimes: str = "False", extra: str = "", **variables: str
) -> subprocess.Popen[str]:
    file = folder / "test_planted.py"
    file.write_text(extra + PLANTED.replace("SOMETIMES", sometimes))
    line = [sys.executable, TESTS / "fuzz.py", "--workers", "0", *options, "--"]
    line += ["-s", "-p", "conftest", "-p", "no:cacheprovider", file]
    environment = {**os.environ, "PYTHONPATH": str(TESTS), **variables}
    pipe = subprocess.PIPE
    return subprocess.Popen(line, env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True)


def output(process: subprocess.Popen[str], status: int) -> str:
    text, _ = process.communicate(timeout=100)
    assert process.returncode == status, text
    return text


def drawn(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("drawn")]


def test_a_seed_repeats_its_round_and_another_draws_others(tmp_path: Path) -> None:
    first = drawn(output(fuzz(tmp_path, "--seed", "5"), 0))
    assert len(first) >= 25
    assert (
        drawn(output(fuzz(tmp_path, "--seed", "5", extra="import math\n", CI="true"), 0)) == first
    )
    assert drawn(output(fuzz(tmp_path, "--seed", "6"), 0)) != first


def test_rounds_have_new_seeds_and_the_first_failure_ends_them(tmp_path: Path) -> None:
    text = output(fuzz(tmp_path, "--rounds", "2"), 0)
    seeds = [line.split()[3] for line in text.splitlines() if line.startswith("round ")]
    assert len(seeds) == len(set(seeds)) == 2 and "2 rounds, nothing failed" in text
    text = output(fuzz(tmp_path, "--rounds", "2", sometimes="x > 100"), 1)
    assert "x=101" in text and text.count("seed ") == 2 and "round 1 failed" in text
    seed = text.split("round 1 failed: seed ")[1].split(";")[0]
    again = output(fuzz(tmp_path, "--seed", seed, sometimes="x > 100"), 1)
    assert drawn(again) == drawn(text)


@pytest.mark.parametrize("how", ["interrupt", "minutes"])
def test_a_round_can_be_ended_at_once(how: str, tmp_path: Path) -> None:
    options = ["--minutes", "0.1"] if how == "minutes" else []
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in the background of a shell
    process = fuzz(tmp_path, *options, sometimes='__import__("time").sleep(100)')
    signal.signal(signal.SIGINT, before)
    assert process.stdout is not None
    lines = [process.stdout.readline()]
    while not lines[-1].startswith("drawn"):
        assert lines[-1], lines
        lines.append(process.stdout.readline())
    began = time.monotonic()
    if how == "interrupt":
        process.send_signal(signal.SIGINT)
    text = output(process, 130 if how == "interrupt" else 0)
    assert time.monotonic() - began < 50 and "seed" in text


def test_examples_do_not_depend_on_what_is_imported(tmp_path: Path) -> None:
    """Nor on the variable CI, nor on a database of earlier failures."""
    (tmp_path / "numbers_of_mine.py").write_text(f"numbers = {list(range(1000, 9000, 40))}")
    file = tmp_path / "test_planted.py"
    results = []
    for ci, extra in (("", ""), ("true", "import numbers_of_mine\n")):
        file.write_text(extra + PLANTED.replace("SOMETIMES", "False"))
        environment = {**os.environ, "PYTHONPATH": f"{TESTS}{os.pathsep}{tmp_path}", "CI": ci}
        environment.pop("HYPOTHESIS_PROFILE", None)
        line = [sys.executable, "-m", "pytest", "-sq", "-p", "conftest", file, "-k", "property"]
        done = subprocess.run(line, env=environment, cwd=tmp_path, capture_output=True, text=True)
        results.append(drawn(done.stdout))
    assert results[0] == results[1] and len(results[0]) >= 25


def test_the_default_profile_is_fixed() -> None:
    assert (
        settings.get_profile("fixed").derandomize and settings.get_profile("fixed").database is None
    )
    assert not settings.get_profile("fuzz").derandomize
    assert settings.get_profile("thorough").max_examples == 400


def test_no_test_draws_as_many_examples_whatever_the_profile() -> None:
    """As `settings(max_examples=...)` beside a test would, over that of the profile."""
    names = {
        file.name for file in TESTS.rglob("*.py") if "settings(max_examples=" in file.read_text()
    }
    assert names == {"helpers.py", "test_fuzz.py"}
    drawn = {}
    for profile in ("fixed", "thorough"):
        line = "import hypothesis, conftest, helpers; print(helpers.examples(40).max_examples)"
        environment = {**os.environ, "HYPOTHESIS_PROFILE": profile, "PYTHONPATH": str(TESTS)}
        done = subprocess.run(
            [sys.executable, "-c", line],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        drawn[profile] = int(done.stdout)
    assert drawn == {"fixed": 40, "thorough": 640}


def given_in(file: Path) -> set[str]:
    """The names of the tests in this file that are decorated by @given."""
    return {
        node.name
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
        and any("given" in ast.unparse(decorator) for decorator in node.decorator_list)
    }


def test_every_property_test_is_in_a_round(request: pytest.FixtureRequest) -> None:
    """Told by their source, of all that this run has collected; and in the laws or the emulator's,
    not in both.
    """
    items = [i for i in request.session.items if isinstance(i, pytest.Function)]
    named = {file: given_in(file) for file in {item.path for item in items}}
    for item in items:
        assert is_property(item) == (item.originalname in named[item.path]), item.nodeid
        which = [in_round(item, w) for w in ("all", "laws", "emulator")]
        assert sum(which) == (2 if which[0] else 0), item.nodeid
        if "emulator" in item.path.name and is_property(item):
            assert which[2]


def test_slow_tests_start_first_in_every_process(request: pytest.FixtureRequest) -> None:
    items = list(request.session.items)
    for workers in (1, 2, 3):
        order = in_order(items, workers)
        assert sorted(i.nodeid for i in order) == sorted(i.nodeid for i in items)
        parts, left = [], order
        for k in range(workers):
            length = len(left) // (workers - k)
            parts.append([i.get_closest_marker("slow") is not None for i in left[:length]])
            left = left[length:]
        if sum(map(sum, parts)) < len(items) // workers:  # a part can hold those of its own
            assert all(part == sorted(part, reverse=True) for part in parts)
