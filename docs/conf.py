"""Sphinx's settings for the course's site. `make site` builds it; see tools/site.py."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path[:0] = [str(DOCS), str(ROOT)]  # mathml, and the course_utils of this very folder

from tools import settings  # noqa: E402

_project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

project = "Fine-tuning language models, hands on"
author = "The course's authors"
copyright = "text CC BY 4.0, code Apache-2.0"
version = release = _project["version"]
language = "en"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "mathml",
]

exclude_patterns = ["_extra"]

# Notebooks are shown as they were saved.
nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
html_math_renderer = "mathml"

# Docstrings.
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_maximum_signature_line_length = 88

html_theme = "sphinx_book_theme"
html_title = project
html_static_path = ["_static"]
html_css_files = ["course.css"]
html_favicon = "_static/favicon.svg"
html_show_sphinx = False
html_last_updated_fmt = None
html_extra_path = [str(ROOT / "build" / "site-source" / "_extra")]
html_copy_source = True
html_sourcelink_suffix = ""
html_theme_options = {
    "use_download_button": True,
    "use_fullscreen_button": False,
    "show_toc_level": 2,
    "show_navbar_depth": 1,
    "pygments_light_style": "a11y-light",
    "pygments_dark_style": "a11y-dark",
}

if _repository := settings.repository():
    html_theme_options |= {
        "repository_url": _repository,
        "repository_branch": "main",
        "path_to_docs": "",
        "use_repository_button": True,
        "use_issues_button": True,
        "launch_buttons": {"colab_url": "https://colab.research.google.com"},
    }

_IDENTIFIER = re.compile(r"[A-Za-z_][\w.]*(\(\))?")
_TICKED = re.compile(r"(?<![`:\\])`([^`]+)`(?![`_])")


def as_rst(docstring: str) -> str:
    """A docstring of the course, which marks code as Markdown does, in reStructuredText.

    What could be a name of the course's becomes a link where there is one; all else is literal.
    """
    escaped = []
    for index, part in enumerate(_TICKED.split(docstring)):
        if index % 2 == 0:
            escaped.append(re.sub(r"([*|])", r"\\\1", part))
        elif _IDENTIFIER.fullmatch(part):
            escaped.append(f":py:obj:`{part}`")
        else:
            escaped.append(f"``{' '.join(part.split())}``")
    return "".join(escaped)


def _docstring(
    app: object, what: str, name: str, member: object, options: object, lines: list[str]
) -> None:
    """Sphinx's hook: change a docstring's lines in place."""
    lines[:] = as_rst("\n".join(lines)).split("\n")
    if what in ("property", "attribute"):
        lines.insert(0, "")  # else napoleon takes what stands before a colon for a type


def _skip(
    app: object, what: str, name: str, member: Any, skip: bool, options: object
) -> bool | None:
    """Sphinx's hook: leave out what Python itself writes under a named tuple's fields."""
    text = getattr(member, "__doc__", None) or ""
    return True if text.startswith("Alias for field number") else None


def setup(app: Any) -> None:
    """Connect the hooks."""
    app.connect("autodoc-process-docstring", _docstring, priority=100)  # before napoleon
    app.connect("autodoc-skip-member", _skip)
