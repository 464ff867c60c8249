"""Sphinx's settings: `make docs` builds the manual into build/docs, with warnings as errors."""

import fastreg

project = "fastreg"
author = "the authors of fastreg"
release = version = fastreg.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["attrs_inline"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = f"fastreg {release}"
html_copy_source = False

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings have the types, with shapes
napoleon_custom_sections = [("Shape", "notes_style"), ("Yields", "returns_style")]
napoleon_use_rtype = False

# Names of fastreg that lead nowhere are errors. Of torch's and Python's there is no list here: the manual is built
# without a network.
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"(?!fastreg).*")]
