"""What the installed package, its metadata and its README promise."""

from __future__ import annotations

import doctest
import inspect
import json
import re
import subprocess
import sys
from importlib.metadata import requires, version
from pathlib import Path

import pytest

import softdtw_kernels

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

pytestmark = pytest.mark.quick

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(softdtw_kernels.__file__).resolve().parent  # of a wheel, where one is tested
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
VERSION = softdtw_kernels.__version__
ALIASES = {"Backend", "Cost", "Lengths", "Number", "Reduction", "Sides"}  # of types


def test_the_version_is_stated_once() -> None:
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {
        "attr": "softdtw_kernels._version.__version__"
    }
    stated = [
        path
        for path in PACKAGE.rglob("*.py")
        if re.search(r"^__version__ *=", path.read_text(), re.MULTILINE)
    ]
    assert stated == [PACKAGE / "_version.py"]
    assert version("softdtw-kernels") == VERSION


def test_changelog_and_citation_know_the_version() -> None:
    assert f"## [{VERSION}]" in (ROOT / "CHANGELOG.md").read_text()
    assert f"\nversion: {VERSION}\n" in (ROOT / "CITATION.cff").read_text()


def test_package_data_covers_every_file_that_is_not_python() -> None:
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["softdtw_kernels"]
    covered = {path for pattern in patterns for path in PACKAGE.glob(pattern)}
    data = {
        path
        for path in PACKAGE.rglob("*")
        if path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts
    }
    assert PACKAGE / "py.typed" in data
    assert data <= covered, f"not in the wheel: {sorted(data - covered)}"


def test_every_folder_of_the_package_with_python_in_it_is_a_package() -> None:
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    assert all((folder / "__init__.py").is_file() for folder in folders)


@pytest.mark.parametrize("extra", ["cuda12", "cuda13", "plot", "examples"])
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


def test_readme_python_runs_and_prints_what_it_says() -> None:
    page = "README.md"  # test_documentation.py has the others
    text = (ROOT / page).read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    scripts = [block for block in blocks if not block.startswith(">>> ")]
    assert len(scripts) == 1 < len(blocks)
    for block in scripts:
        exec(compile(block, page, "exec"), {})
    result = doctest.testfile(str(ROOT / page), module_relative=False, encoding="utf-8")
    assert result.attempted >= sum(block.count(">>> ") for block in blocks)
    assert result.failed == 0


def test_links_of_the_readme_work_where_there_are_no_files_beside_it() -> None:
    """They begin with an address of pyproject.toml, and each page is in the checkout."""
    text = (ROOT / "README.md").read_text()
    links = dict(re.findall(r"^\[([\w-]+)\]: (\S+)$", text, re.MULTILINE))
    assert set(re.findall(r"\]\[([\w-]+)\]", text)) == set(links)
    assert not re.findall(r"\]\((?!https://|#)", text), "a link to a file"
    urls = PROJECT["project"]["urls"]
    for link in links.values():
        if link.startswith(urls["Documentation"]):
            page = link.removeprefix(urls["Documentation"]).strip("/") or "index.html"
            assert (ROOT / "docs" / page).with_suffix(".md").is_file(), link
        else:
            kind, branch, path = link.removeprefix(urls["Source"] + "/").split("/", 2)
            assert (kind in ("raw", "blob"), branch) == (True, "main"), link
            assert (ROOT / path).is_file(), link


def test_the_benchmark_suite_has_the_address_of_the_project() -> None:
    settings = json.loads((ROOT / "benchmarks" / "asv.conf.json").read_text())
    source = PROJECT["project"]["urls"]["Source"]
    assert settings["project_url"] == source
    assert settings["show_commit_url"] == f"{source}/commit/"


def test_readme_names_only_public_names() -> None:
    text = (ROOT / "README.md").read_text()
    table = text.split("## Public interface")[1].split("## ")[0]
    named = set(re.findall(r"`([A-Za-z_0-9]+)[`(]", table))
    missing = set(softdtw_kernels.__all__) - {"Alignment", "__version__"} - named
    # The table writes the names with a suffix `_from_cost` in short.
    assert {name for name in missing if not name.endswith("_from_cost")} == set()


def pinned(name: str) -> dict[str, str]:
    """The versions of a file of constraints."""
    lines = (ROOT / name).read_text().splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    assert all(len(pin) == 2 for pin in pins), f"{name} has a line that is no pin"
    return {normal(package): version for package, version in pins}


def requirement(line: str) -> tuple[str, str]:
    """The name of a required package, and its oldest version."""
    name, _, oldest = line.split(";")[0].partition(">=")
    return normal(name.split("[")[0]), oldest.strip()


def test_constraints_pin_every_development_dependency() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = [*PROJECT["project"]["dependencies"], *extras["examples"], *extras["plot"]]
    for group in PROJECT["dependency-groups"].values():
        wanted += [line for line in group if isinstance(line, str)]
    names = {requirement(line)[0] for line in wanted} - {"softdtw-kernels"}
    pins = pinned("constraints.txt")
    assert names <= set(pins), f"not pinned: {sorted(names - set(pins))}"


def test_the_floor_is_the_oldest_version_of_every_dependency() -> None:
    floor = pinned("constraints-floor.txt")
    oldest = dict(map(requirement, PROJECT["project"]["dependencies"]))
    tested = dict(map(requirement, PROJECT["dependency-groups"]["test"]))
    for name, least in (oldest | tested).items():
        assert f"{floor[name]}.".startswith(f"{least}."), f"{name}: {floor[name]} and {least}"


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
