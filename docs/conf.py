"""Configuration of the documentation: `make docs` builds it into build/docs, offline."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tomllib
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))

import softdtw_kernels  # noqa: E402  (after the path)

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

project = "softdtw-kernels"
author = copyright = "The softdtw-kernels authors"
version = release = softdtw_kernels.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["figures", "gallery/*.py", "gallery/*.md5", "gallery/*.json", "sg_execution*"]
suppress_warnings = ["config.cache"]  # the configuration of the gallery has functions
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"softdtw-kernels {release}"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#1f5fa8", "color-brand-content": "#1f5fa8"},
    "dark_css_variables": {"color-brand-primary": "#7fb2ea", "color-brand-content": "#7fb2ea"},
}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

autodoc_typehints = "none"  # the text says more than the types, which the signature shows
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_param = False  # arguments that are explained together stay together
napoleon_custom_sections = ["Shape", ("Costs", "Costs")]

# The gallery: scripts examples/plot_*.py, which are executed once, and again where they changed.
# Their pictures and pages stay in docs/gallery, which git ignores.
SCRIPTS = sorted((ROOT / "examples").glob("plot_*.py"))
if SCRIPTS:
    from sphinx_gallery.scrapers import matplotlib_scraper

    extensions.append("sphinx_gallery.gen_gallery")
    STAGE = ROOT / "build" / "gallery-scripts"  # the scripts alone, not the examples beside them
    STAGE.mkdir(parents=True, exist_ok=True)
    if not (STAGE / "build").exists():  # scripts run there, and keep downloads in build/
        (STAGE / "build").symlink_to(ROOT / "build")
    for old in STAGE.glob("plot_*.py"):
        if not (ROOT / "examples" / old.name).exists():
            old.unlink()
    for script in SCRIPTS:
        shutil.copy2(script, STAGE)
    (STAGE / "GALLERY_HEADER.rst").write_text(
        "Gallery\n=======\n\nEach page is a script of the folder ``examples``, run as it stands.\n"
    )

    def whole_figure(*args: Any, **kwargs: Any) -> Any:
        """A picture with what is drawn beside its axes, as the series beside an alignment."""
        return matplotlib_scraper(*args, bbox_inches="tight", **kwargs)

    os.environ["PYTHONPATH"] = str(ROOT)
    sphinx_gallery_conf: dict[str, Any] = {
        "examples_dirs": str(STAGE),
        "gallery_dirs": "gallery",
        "filename_pattern": r"plot_",
        "image_scrapers": (whole_figure,),
        "show_memory": False,
        "write_computation_times": False,  # a page with scripts from elsewhere
        "show_signature": False,
        "min_reported_time": 5,
        "abort_on_example_error": True,
        "download_all_examples": False,
    }


def address(name: str) -> str | None:
    """An address of pyproject.toml, unless it is the placeholder."""
    url: str = PROJECT["urls"][name]
    return None if "example.invalid" in url else url


if address("Source"):
    html_theme_options |= {
        "source_repository": address("Source"),
        "source_branch": "main",
        "source_directory": "docs/",
    }


def readable(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain text for help(): here their formulas become blocks of code, and what
    reStructuredText would take for markup, as the `*` of (*, N, D), becomes text.
    """
    # Napoleon wants the names of arguments that are explained together on one line.
    text = re.sub(r"(\n {4}[\w, ]+,)\n {8}(\w+: )", r"\1 \2", "\n".join(lines))
    out: list[str] = []
    section = formula = doctest = False
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        if line and indent == 0:
            section = bool(re.fullmatch(r"(Args|Returns|Raises|Shape|Attributes|Example):", line))
        doctest = bool(line) and (doctest or line.lstrip().startswith(">>>"))
        if line and not doctest:
            begins = indent >= 4 and not section
            if begins and not formula:
                out += [".. code-block:: text", ""]
            formula = begins
        is_text = not (doctest or formula)
        out.append(re.sub(r"(?<![`\\])([*|])(?!`)", r"\\\1", line) if is_text else line)
    lines[:] = out


def without_private(app: Any, what: str, *found: Any) -> tuple[str, None] | None:
    """A class that only the package makes is shown without the arguments that it is made of."""
    signature = found[-2]
    return ("", None) if what == "class" and ", _" in (signature or "") else None


def of_page(app: Any, docname: str, source: list[str]) -> None:
    """The gallery stands in the table of contents where there is one, and code does not end with
    the blank line that doctest needs there.
    """
    text = source[0].replace("%GALLERY%", "gallery/index" if SCRIPTS else "")
    source[0] = re.sub(r"\n\n```\n", "\n```\n", text)


def with_stops(app: Any, tree: nodes.document, docname: str) -> None:
    """A formula takes the stop that follows it, which would else begin a line."""
    for formula in tree.findall(nodes.math):
        after = formula.next_node(descend=False, siblings=True)
        if isinstance(after, nodes.Text) and (stop := re.match(r"[.,:;]", after.astext())):
            formula["stop"] = stop[0]
            formula.parent.replace(after, nodes.Text(after.astext()[1:]))


def visit_math(self: Any, node: nodes.math) -> None:
    formula = mathml(node, display=False)
    self.body.append(f'<span class="whole">{formula}{node.get("stop", "")}</span>')
    raise nodes.SkipNode


def visit_math_block(self: Any, node: nodes.math_block) -> None:
    self.body.append(f'<div class="math-block">{mathml(node, display=True)}</div>')
    raise nodes.SkipNode


def mathml(node: nodes.Element, display: bool) -> str:
    """A formula in MathML, which browsers draw by themselves: no script comes from elsewhere."""
    return str(tex2mathml(node.astext(), as_block=display))


def setup(app: Any) -> None:
    # Pages are read again when there are other scripts than before.
    app.add_config_value("gallery_scripts", [script.name for script in SCRIPTS], "env")
    app.connect("source-read", of_page)
    app.connect("doctree-resolved", with_stops)
    app.connect("autodoc-process-signature", without_private)
    app.connect("autodoc-process-docstring", readable, priority=100)  # before napoleon
    app.add_html_math_renderer(
        "mathml", inline_renderers=(visit_math, None), block_renderers=(visit_math_block, None)
    )


html_math_renderer = "mathml"
