"""The cache of compiled kernels: processes that race, damaged files, no place at all, and keys."""

from __future__ import annotations

import importlib
import pkgutil
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import Forks, bits, value_and_gradient
from numba import types
from numba.core.caching import NullCache
from numba.core.dispatcher import Dispatcher

import softdtw_kernels
from softdtw_kernels import s2dtw_from_cost, soft_dtw_from_cost
from softdtw_kernels._cpu import jit as _jit
from softdtw_kernels._cpu import lanes, smoothing, strips, walls

pytestmark = pytest.mark.slow  # the tests share what their processes are forked from

# What every process must agree on, by the kernel that compiles fastest, in two types: how files are
# written is the same for all.
CALL = """
import numpy as np
from softdtw_kernels._cpu.factors import scaled
for dtype in (np.float32, np.float64):
    mass = np.linspace(0, 1, 24, dtype=dtype).reshape(2, 12)
    scaled(mass, np.arange(1, 3, dtype=dtype), mass)
    print(mass.tobytes().hex())
"""
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "half": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "noise": lambda content: random.Random(0).randbytes(len(content)),
    "one bit": lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
}


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with Forks("numba") as started:
        yield started


def _call(forks: Forks, folder: Path, count: int = 1) -> list[str]:
    """Make the call in new processes; return what each wrote to stderr."""
    done = forks.run(CALL, {"NUMBA_CACHE_DIR": str(folder)}, count)
    assert len({d.stdout for d in done}) == 1 and len(done[0].stdout.splitlines()) == 2
    return [d.stderr for d in done]


@pytest.fixture(scope="module")
def folder(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What three processes have left that compiled into an empty cache at once."""
    path = tmp_path_factory.mktemp("cache")
    assert "Warning" not in "".join(_call(forks, path, 3))
    return path


def test_processes_that_race_on_a_cold_cache(forks: Forks, folder: Path) -> None:
    """A fourth loads what the three have left."""
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*.nb?")}
    assert before, "nothing was cached"
    assert _call(forks, folder) == [""]
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*.nb?")} == before


def test_kernels_are_compiled_where_numba_is_told_not_to(
    forks: Forks, folder: Path, tmp_path: Path
) -> None:
    """NUMBA_DISABLE_JIT, as those set it who measure the coverage of their own kernels."""
    disabled = "import numba\nnumba.config.DISABLE_JIT = 1\n"
    still = "plain = lambda: 0\nassert numba.config.DISABLE_JIT and numba.njit(plain) is plain\n"
    [truth] = forks.run(CALL, {"NUMBA_CACHE_DIR": str(folder)})
    for cache in (folder, tmp_path):
        [done] = forks.run(disabled + CALL + still, {"NUMBA_CACHE_DIR": str(cache)})
        assert done.stdout == truth.stdout


def _damage(folder: Path, ending: str, damage: Callable[[bytes], bytes]) -> list[Path]:
    files = list(folder.rglob(f"*{ending}"))
    assert files, "nothing was cached"
    for file in files:
        file.write_bytes(damage(file.read_bytes()))
    return files


@pytest.mark.parametrize("ending, damage", [(".nbi", "half"), (".nbc", "noise")])
def test_damaged_files_are_replaced_with_one_warning(
    forks: Forks, folder: Path, ending: str, damage: str
) -> None:
    files = _damage(folder, ending, DAMAGES[damage])
    [told] = _call(forks, folder)
    assert told.count("Warning: ") == 1, told
    assert str(files[0].parent) in told
    assert _call(forks, folder) == [""]


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("ending", [".nbi", ".nbc"])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=list(DAMAGES))
def test_a_damaged_file_counts_as_absent(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[bytes], bytes],
    ending: str,
) -> None:
    monkeypatch.setattr(_jit, "_told", set())
    files = _jit._Files(str(tmp_path), "name", "stamp")
    files.save("key", "code" * 10)
    files.save("other", "text" * 10)
    assert files.load("key") == "code" * 10
    _damage(tmp_path, ending, damage)
    with pytest.warns(RuntimeWarning, match=str(tmp_path)):
        assert files.load("key") is None
    assert files.load("other") is None  # told once
    files.save("key", "code" * 10)
    files.save("other", "text" * 10)
    assert (files.load("key"), files.load("other")) == ("code" * 10, "text" * 10)


def test_data_of_another_key_is_not_taken(tmp_path: Path) -> None:
    """Two processes may both find the cache empty, and choose the same name for their data."""
    first, second = (_jit._Files(str(tmp_path), "name", "stamp") for _ in range(2))
    first.save("key", "code")
    (tmp_path / "name.nbi").unlink()
    second.save("other", "text")
    first._save_index({"key": "name.1.nbc"})
    assert first.load("key") is None


def test_processes_that_find_the_same_damage_at_once(forks: Forks, folder: Path) -> None:
    _damage(folder, ".nbc", DAMAGES["half"])
    told = _call(forks, folder, 3)
    assert all(text.count("Warning: ") <= 1 for text in told)
    assert _call(forks, folder) == [""]


def test_without_any_place_for_a_cache(forks: Forks, folder: Path, tmp_path: Path) -> None:
    """Every location that Numba would write to lies below a regular file, even for root."""
    package = tmp_path / "site" / "softdtw_kernels"
    shutil.copytree(
        Path(softdtw_kernels.__file__).parent,
        package,
        ignore=shutil.ignore_patterns("__pycache__", "*.nb?"),
    )
    blocker = tmp_path / "file"
    blocker.write_text("")
    for part in [package, *(p for p in package.rglob("*") if p.is_dir())]:
        (part / "__pycache__").write_text("")
    blocked = str(blocker / "below")
    environment = {
        "PYTHONPATH": str(package.parent), "NUMBA_CACHE_DIR": blocked, "HOME": blocked,
        "XDG_CACHE_HOME": blocked, "IPYTHONDIR": blocked,
    }  # fmt: skip
    where = "import softdtw_kernels; print(softdtw_kernels.__file__)\n"
    [done] = forks.run(where + CALL, environment)
    imported, *result = done.stdout.splitlines()
    assert Path(imported).parent == package, "the blocked copy is not what ran"
    assert not list(tmp_path.rglob("*.nb?")), "something was cached after all"
    [cached] = forks.run(CALL, {"NUMBA_CACHE_DIR": str(folder)})
    assert result == cached.stdout.splitlines()
    # With the variable unset, the package's own folder and the home directory are what is blocked.
    public = """
import torch
from softdtw_kernels import cost_matrix
print(cost_matrix(torch.tensor([[1.0], [3.0]]), torch.tensor([[0.0], [1.0]])).tolist())
"""
    [done] = forks.run(public, environment | {"NUMBA_CACHE_DIR": ""})
    assert done.stdout == "[[1.0, 0.0], [9.0, 4.0]]\n"
    assert done.stderr.count("Warning: ") == 1 and "NUMBA_CACHE_DIR" in done.stderr


def test_every_module_with_a_compiled_function_is_in_the_digest() -> None:
    """A change of a module that is not would run kernels compiled from its old text."""
    found = set()
    for module in pkgutil.walk_packages(softdtw_kernels.__path__, "softdtw_kernels."):
        try:
            loaded = importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            assert error.name not in (None, "numba"), error  # CuPy need not be installed
            continue
        if any(isinstance(value, Dispatcher) for value in vars(loaded).values()):
            found.add(Path(loaded.__file__ or ""))
    assert found, "no compiled function was found"
    assert found <= set(_jit.sources())


def test_all_orders_of_dimensions_share_a_form() -> None:
    cost = torch.randn(3, 5, 4, 6, dtype=torch.float64)
    functions = soft_dtw_from_cost, s2dtw_from_cost
    truth = {f: [bits(t) for t in value_and_gradient(f, cost)] for f in functions}
    for order in ((0, 1, 2, 3), (0, 1, 3, 2), (3, 2, 1, 0), (1, 0, 2, 3), (2, 0, 1, 3)):
        memory = cost.permute(order).contiguous()
        strided = memory.permute(tuple(torch.tensor(order).argsort()))
        for _ in range(2):  # the first call chooses the form, the second one knows it
            for function in functions:
                found = value_and_gradient(function, strided)
                assert [bits(t) for t in found] == truth[function]
    for kernel in (lanes.solve, smoothing.smooth, smoothing.smooth_vjp):
        assert kernel.overloads
        for signature in kernel.overloads:
            layouts = {t.layout for t in signature if isinstance(t, types.Array) and t.ndim > 2}
            if kernel is lanes.solve:
                assert layouts == {"A"}, signature
            else:  # they take memory and strides
                assert layouts == set(), signature


def test_all_orders_of_dimensions_share_the_form_that_reads_bars(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(walls, "LONG", 0)
    cost = torch.randn(2, 2, 12, 12, dtype=torch.float64)
    cost[..., 5, :] = 1e30
    found = {
        bits(soft_dtw_from_cost(strided))
        for strided in (
            cost,
            cost.mT.contiguous().mT,
            cost.transpose(0, 2).contiguous().transpose(0, 2),
        )
    }
    assert len(found) == 1
    tuples = [signature[2] for signature in strips.solve.overloads]
    barred = [t for t in tuples if isinstance(t, types.BaseTuple) and t[0].ndim == 4]
    assert barred
    assert {t[0].layout for t in barred} == {"A"}


def test_threads_that_choose_a_form_at_once_leave_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numba takes two of the same types for none: every later call would look for its form anew,
    which takes a hundred times as long as a call.
    """

    @_jit.jit
    def rows(matrices):
        return matrices.shape[2]

    monkeypatch.setattr(rows, "_cache", NullCache())
    together = threading.Barrier(2)
    choose, chosen = rows._compile_for_args, []

    def choose_together(*arguments):
        chosen.append(1)
        together.wait()
        return choose(*arguments)

    monkeypatch.setattr(rows, "_compile_for_args", choose_together)
    x = np.zeros((1, 1, 2, 3))
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(rows, [x, x])) == [2, 2]
    monkeypatch.setattr(rows, "_compile_for_args", lambda *_: pytest.fail("chosen anew"))
    assert len(chosen) == 2 and rows(x) == 2


def test_a_numba_with_other_names_compiles_the_same(
    forks: Forks, folder: Path, tmp_path: Path
) -> None:
    """Helpers are parts of entry points by names that Numba need not keep."""
    newer = "import numba.core.codegen\ndel numba.core.codegen.JITCodeLibrary\n"
    asked = "from softdtw_kernels._cpu.parts import part_options\nprint(bool(part_options()))\n"
    results = []
    for change, is_part, cache in (("", "True", folder), (newer, "False", tmp_path)):
        [done] = forks.run(change + asked + CALL, {"NUMBA_CACHE_DIR": str(cache)})
        answer, *result = done.stdout.splitlines()
        assert answer == is_part and done.stderr == "" and len(result) == 2
        results.append(result)
    assert results[0] == results[1]
