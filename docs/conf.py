"""How Sphinx builds the documentation: ``make docs``."""

from __future__ import annotations

from sphinx.application import Sphinx

import paged_stream
from paged_stream.commands.reference import command_reference

project = "paged_stream"
author = copyright = "the authors of paged_stream"
version = release = paged_stream.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_parser"]
default_role = "py:obj"  # single backticks in docstrings
highlight_language = "text"
smartquotes = False  # names of options keep their two dashes

myst_heading_anchors = 3
myst_enable_extensions = ["deflist"]

autodoc_member_order = "bysource"
autodoc_typehints = "both"
autodoc_typehints_description_target = "documented"
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False

html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["pages.css"]
html_title = f"paged_stream {version}"
html_show_sphinx = False
html_copy_source = False


def insert_command_reference(app: Sphinx, name: str, source: list[str]) -> None:
    """Put the options of every command where the page asks for them."""
    source[0] = source[0].replace("<!-- command reference -->", "\n".join(command_reference()))


def setup(app: Sphinx) -> None:
    app.connect("source-read", insert_command_reference)
