"""The cache of compiled kernels: damaged files are replaced, and no kernel leaves its key."""

from __future__ import annotations

import importlib
import pkgutil
import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import bits, run_python, value_and_gradient
from numba import types
from numba.core.dispatcher import Dispatcher

import softdtw_kernels
from softdtw_kernels import s2dtw_from_cost, soft_dtw_from_cost
from softdtw_kernels._cpu import jit as _jit
from softdtw_kernels._cpu import lanes, smoothing

# The kernel that compiles fastest, for two types.
CALL = """
import torch
from softdtw_kernels import cost_matrix
for dtype in (torch.float32, torch.float64):
    print(cost_matrix(torch.ones(1, 1, dtype=dtype), torch.zeros(2, 1, dtype=dtype)).tolist())
"""
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "half": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "noise": lambda content: random.Random(0).randbytes(len(content)),
    "one bit": lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
}


def _call(folder: Path) -> str:
    """Run the call in a new process; return what it wrote to stderr."""
    done = run_python(CALL, environment={"NUMBA_CACHE_DIR": str(folder)})
    assert done.stdout.split("\n") == ["[[1.0, 1.0]]", "[[1.0, 1.0]]", ""]
    return done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cache")
    assert "Warning" not in _call(path)
    return path


def _damage(folder: Path, ending: str, damage: Callable[[bytes], bytes]) -> list[Path]:
    files = list(folder.rglob(f"*{ending}"))
    assert files, "nothing was cached"
    for file in files:
        file.write_bytes(damage(file.read_bytes()))
    return files


@pytest.mark.parametrize("ending, damage", [(".nbi", "half"), (".nbc", "noise")])
def test_damaged_files_are_replaced_with_one_warning(
    folder: Path, ending: str, damage: str
) -> None:
    files = _damage(folder, ending, DAMAGES[damage])
    told = _call(folder)
    assert told.count("Warning: ") == 1, told
    assert str(files[0].parent) in told
    assert "Warning" not in _call(folder)


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


def test_processes_that_find_the_same_damage_at_once(folder: Path) -> None:
    _damage(folder, ".nbc", DAMAGES["half"])
    told: list[str] = []
    threads = [threading.Thread(target=lambda: told.append(_call(folder))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(told) == 3
    assert all(text.count("Warning: ") <= 1 for text in told)
    assert "Warning" not in _call(folder)


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


def test_all_orders_of_dimensions_but_the_contiguous_share_a_form() -> None:
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
                assert layouts in ({"A"}, {"C"}), signature
            else:  # they take memory and strides
                assert layouts == set(), signature
