"""How Sphinx builds the documentation: `make docs`."""

from __future__ import annotations

import sys
from pathlib import Path

import paged_stream

sys.path.append(str(Path(__file__).parent / "_extensions"))

project = "paged_stream"
author = copyright = "the paged_stream authors"
version = release = paged_stream.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_parser", "command_options"]
exclude_patterns = ["_extensions"]
default_role = "py:obj"

myst_heading_anchors = 3
myst_enable_extensions = ["deflist"]

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autoclass_content = "class"
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"paged_stream {version}"
