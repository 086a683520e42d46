"""What the installed package, its metadata and its README promise."""

from __future__ import annotations

import doctest
import inspect
import re
import subprocess
import sys
import tomllib
from importlib.metadata import requires, version
from pathlib import Path

import pytest

import softdtw_kernels

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
VERSION = softdtw_kernels.__version__
ALIASES = {"Backend", "Cost", "Lengths", "Number", "Reduction"}  # of types


def test_the_version_is_stated_once() -> None:
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {
        "attr": "softdtw_kernels._version.__version__"
    }
    stated = [
        path
        for path in (ROOT / "softdtw_kernels").rglob("*.py")
        if re.search(r"^__version__ *=", path.read_text(), re.MULTILINE)
    ]
    assert stated == [ROOT / "softdtw_kernels" / "_version.py"]
    assert version("softdtw-kernels") == VERSION


def test_changelog_and_citation_know_the_version() -> None:
    assert f"## [{VERSION}]" in (ROOT / "CHANGELOG.md").read_text()
    assert f"\nversion: {VERSION}\n" in (ROOT / "CITATION.cff").read_text()


def test_package_data_covers_every_file_that_is_not_python() -> None:
    package = ROOT / "softdtw_kernels"
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["softdtw_kernels"]
    covered = {path for pattern in patterns for path in package.glob(pattern)}
    data = {
        path
        for path in package.rglob("*")
        if path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts
    }
    assert package / "py.typed" in data
    assert data <= covered, f"not in the wheel: {sorted(data - covered)}"


def test_every_folder_of_the_package_with_python_in_it_is_a_package() -> None:
    folders = {path.parent for path in (ROOT / "softdtw_kernels").rglob("*.py")}
    assert all((folder / "__init__.py").is_file() for folder in folders)


@pytest.mark.parametrize("extra", ["cuda12", "cuda13", "plot", "examples", "dev"])
def test_extras_are_declared(extra: str) -> None:
    assert PROJECT["project"]["optional-dependencies"][extra]
    assert any(f'extra == "{extra}"' in line for line in requires("softdtw-kernels") or ())


def test_public_names_exist_and_have_docstrings() -> None:
    public = {name: getattr(softdtw_kernels, name) for name in softdtw_kernels.__all__}
    # A type alias cannot have one; the README's table says what it is for.
    objects = {n: v for n, v in public.items() if inspect.isroutine(v) or inspect.isclass(v)}
    assert set(public) - set(objects) == {*ALIASES, "__version__"}
    assert not [name for name, value in objects.items() if not (value.__doc__ or "").strip()]


def test_plot_without_matplotlib_names_the_extra() -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "try:\n    import softdtw_kernels.plot\n"
        "except ImportError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "softdtw-kernels[plot]" in done.stdout


@pytest.mark.parametrize("page", ["README.md", "docs/recipes.md"])
def test_python_of_a_page_runs_and_prints_what_it_says(page: str) -> None:
    text = (ROOT / page).read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert blocks and all(block.startswith(">>> ") for block in blocks)
    result = doctest.testfile(str(ROOT / page), module_relative=False, encoding="utf-8")
    assert result.attempted >= sum(block.count(">>> ") for block in blocks)
    assert result.failed == 0


def test_readme_names_only_public_names() -> None:
    text = (ROOT / "README.md").read_text()
    table = text.split("## Public interface")[1].split("## ")[0]
    named = set(re.findall(r"`([A-Za-z_0-9]+)[`(]", table))
    missing = set(softdtw_kernels.__all__) - {"Alignment", "__version__"} - named
    # The table writes the names with a suffix `_from_cost` in short.
    assert {name for name in missing if not name.endswith("_from_cost")} == set()


def test_constraints_pin_every_development_dependency() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {normal(line.split("==")[0]) for line in lines if line and not line.startswith("#")}
    assert all("==" in line for line in lines if line and not line.startswith("#"))
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = [*PROJECT["project"]["dependencies"], *extras["dev"], *extras["examples"]]
    names = {normal(re.split(r"[\[<>=~!; ]", line)[0]) for line in wanted} - {"softdtw-kernels"}
    assert names <= pins, f"not pinned: {sorted(names - pins)}"


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
