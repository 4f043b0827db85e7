"""Settings of the documentation's site; CONTRIBUTING.md has the command that builds it."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from solverdistill.version import __version__  # noqa: E402

REPOSITORY = "https://github.com/solverdistill/solverdistill"
README = "manual"  # the page that shows README.md

project = "solverdistill"
release = version = __version__
copyright = "the solverdistill authors, Apache-2.0"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_copybutton"]
exclude_patterns = ["_build"]
default_role = "code"  # docstrings write names in single backticks
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_preserve_defaults = True
copybutton_prompt_text = ">>> "

html_theme = "furo"
html_title = "solverdistill"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {
    "source_repository": REPOSITORY,
    "source_branch": "main",
    "source_directory": "docs/",
    "top_of_page_buttons": ["view"],
}

SHAPE = re.compile(r", \*(\w+)\)")
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)")


def relink(text: str, page: Path) -> str:
    """Make links that are right on GitHub right on the site; GitHub shows notebooks and what lies outside of docs/.

    Args:
        text: Markdown whose links start from the folder of `page`.
        page: The file in the repository.
    """

    def target(found: re.Match[str]) -> str:
        wanted = (page.parent / found[1]).resolve()
        if wanted == ROOT / "README.md":
            return f"/{README}.md"
        on_site = wanted.is_relative_to(ROOT / "docs") and wanted.suffix != ".ipynb"
        if on_site or not wanted.exists():
            return os.path.relpath(wanted, page.parent if page.parent != ROOT else ROOT / "docs")
        return f"{REPOSITORY}/{'tree' if wanted.is_dir() else 'blob'}/main/{wanted.relative_to(ROOT)}"

    return LINK.sub(target, text)


def read_source(app: Any, name: str, source: list[str]) -> None:
    """Correct the links of a page; the manual is README.md itself."""
    page = ROOT / "README.md" if name == README else Path(app.env.doc2path(name))
    app.env.note_dependency(str(page))
    if page.suffix == ".md":
        text = page.read_text(encoding="utf-8")
        source[0] = relink(text.replace(f"# {project}\n", "# Manual\n", 1) if name == README else text, page)


def read_docstring(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Say in reStructuredText what the package's docstrings mean.

    An indented paragraph is code or an equation, and gets the `::` that marks one. A shape (batch, *shape) begins no
    emphasis. Of a property, napoleon would take what stands before a colon in the first line for its type; an empty
    line prevents it.
    """
    for i in range(len(lines) - 1, 1, -1):
        before, gap, line = lines[i - 2 : i + 1]
        if line.startswith("    ") and not gap and before and not before.startswith(" ") and not before.endswith("::"):
            lines[i:i] = ["::", ""]
    lines[:] = [line if "``" in line else SHAPE.sub(r", \\*\1)", line) for line in lines]
    if what in ("property", "attribute"):
        lines.insert(0, "")


def setup(app: Any) -> None:
    app.connect("source-read", read_source)
    app.connect("autodoc-process-docstring", read_docstring, priority=400)  # before napoleon
