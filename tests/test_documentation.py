"""What the pages of docs/ promise."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

import softdtw_kernels

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(path.name for path in (ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("page", PAGES)
def test_code_of_the_documentation_runs(page: str) -> None:
    path = ROOT / "docs" / page
    for block in re.findall(r"^```python\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL):
        if not block.startswith(">>> "):
            exec(compile(block, page, "exec"), {})
    assert doctest.testfile(str(path), module_relative=False, encoding="utf-8").failed == 0


def test_pages_and_public_names_belong_together() -> None:
    text = (ROOT / "docs" / "api.md").read_text()
    listed = set(re.findall(r"auto(?:function|class):: (\w+)|^\| `(\w+)` \|", text, re.MULTILINE))
    names = {name for pair in listed for name in pair if name and not name.startswith("plot_")}
    assert names == set(softdtw_kernels.__all__) - {"__version__"}


@pytest.mark.parametrize(
    "script", sorted((ROOT / "examples").glob("plot_*.py")), ids=lambda s: s.stem
)
def test_a_script_of_the_gallery_is_short_and_says_how_to_run_it(script: Path) -> None:
    text = script.read_text()
    title, line, _, message = text.splitlines()[1:5]
    assert len(text.splitlines()) <= 80
    assert len(title) == len(line) and set(line) == {"="} and message
    assert f"    python -m examples.{script.stem}\n" in text
    assert f'"build/{script.stem}.png"' in text


def test_every_tick_of_the_features_is_a_test_that_there_is() -> None:
    text = (ROOT / "docs" / "features.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 20
    for row in rows:
        _, _, here, *_, shown_by, _ = row.split("|")
        found = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", shown_by)
        assert ("✓" in here) == bool(found), row
        for file, name in found:
            assert re.search(rf"^def {name}\(", (ROOT / file).read_text(), re.MULTILINE), name
