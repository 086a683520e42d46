"""What a release must pass: release_check.py [--only NAME ...]. Run by `make release-check`.

Every check runs, whatever the others found; the last lines name those that failed. Nothing is
uploaded. What to do then is in CONTRIBUTING.md.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
PLACEHOLDER = "example.invalid"  # for an address that is not decided
REMARKS = ("author-email",)  # of pyroma: no person stands for the project


def run(*command: str | Path) -> str:
    """The output of a command, which is an error of the check if it fails."""
    done = subprocess.run([str(part) for part in command], cwd=ROOT, text=True, capture_output=True)
    if done.returncode:
        lines = (done.stdout + done.stderr).strip().splitlines()
        raise AssertionError("\n".join([f"{command[0]} failed:", *lines[-30:]]))
    return done.stdout + done.stderr


def clean_tree() -> None:
    """Nothing is uncommitted."""
    changed = run("git", "status", "--porcelain").strip()
    assert not changed, f"commit or remove:\n{changed}"


def versions() -> None:
    """Package, changelog and citation name one version, and the changelog its day."""
    code = (ROOT / "softdtw_kernels" / "_version.py").read_text()
    version = re.search(r'__version__ = "([^"]+)"', code)
    assert version, "no version in softdtw_kernels/_version.py"
    heading = f"## [{re.escape(version[1])}] - "
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(heading + r"\d{4}-\d\d-\d\d$", changelog, re.MULTILINE), (
        f"CHANGELOG.md has no heading `## [{version[1]}] - YYYY-MM-DD`"
    )
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {version[1]}\n" in citation, f"CITATION.cff is not of {version[1]}"


def address() -> None:
    """The project's address is a real one."""
    found = [
        f"{path}:{number}"
        for path in run("git", "ls-files").split()
        if (ROOT / path).suffix in (".cff", ".md", ".toml", ".json", ".yml")
        for number, line in enumerate((ROOT / path).read_text().splitlines(), 1)
        if f"//{PLACEHOLDER}" in line
    ]
    assert not found, "a placeholder stands for the address in " + ", ".join(found)


def published() -> None:
    """No page says that there is nothing to install from an index yet."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    found = [
        f"{page.relative_to(ROOT)}:{number}"
        for page in pages
        for number, line in enumerate(page.read_text().splitlines(), 1)
        if "not published yet" in line
    ]
    assert not found, 'remove the sentence "not published yet" from ' + ", ".join(found)


def links() -> None:
    """README links work on an index page, where there are no files beside it."""
    text = (ROOT / "README.md").read_text()
    targets = re.findall(r"\]\(([^)]+)\)|^\[[^]]+\]: (\S+)$", text, re.MULTILINE)
    targets = [inline or named for inline, named in targets]
    local = [t for t in targets if not re.match(r"https://|#", t)]
    assert not local, f"README.md links to files: {', '.join(local)}"


def lint() -> None:
    """`make lint`."""
    run("make", "lint")


def docs() -> None:
    """`make docs`, its gallery included."""
    run("make", "docs")


def tests() -> None:
    """`make test`."""
    run("make", "test")


def package() -> None:
    """Sdist and wheel are built without a warning; the tests of one pass with the other."""
    run(ROOT / ".ci" / "package")


def metadata() -> None:
    """twine, check-wheel-contents and pyroma have nothing to say about dist/."""
    files = sorted((ROOT / "dist").glob("softdtw_kernels-*"))
    assert len(files) == 2, "build first: make package"
    run(BIN / "twine", "check", "--strict", *files)
    run(BIN / "check-wheel-contents", *(f for f in files if f.suffix == ".whl"))
    done = subprocess.run(
        [BIN / "pyroma", "--min=1", *(f for f in files if f.name.endswith(".tar.gz"))],
        text=True,
        capture_output=True,
    )
    output = done.stdout + done.stderr
    assert "Final rating" in output, output
    remarks = output.split("Found softdtw-kernels")[1].split("Final rating")[0].splitlines()
    new = [r for r in remarks if r.strip("- ") and not any(known in r for known in REMARKS)]
    assert not new, "\n".join(["pyroma:", *new])


CHECKS: tuple[Callable[[], None], ...] = (
    clean_tree,
    versions,
    address,
    published,
    links,
    lint,
    docs,
    package,
    metadata,
    tests,
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    names = [check.__name__ for check in CHECKS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME")
    only = parser.parse_args().only
    failed = []
    for check in CHECKS:
        if check.__name__ not in only:
            continue
        print(f"{check.__name__}: {check.__doc__}", flush=True)
        try:
            check()
        except AssertionError as error:
            failed.append(check.__name__)
            print(f"  FAILED: {error}")
    print(f"{len(only) - len(failed)} of {len(only)} checks passed")
    if failed:
        print(f"to be done before a release: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
