"""How the documentation is built: Markdown by MyST, the reference from docstrings."""

from stfgan_xr import __version__

project = "stfgan_xr"
author = "The stfgan_xr developers"
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
autodoc_typehints = "description"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
napoleon_use_ivar = True
html_theme = "furo"
html_title = "stfgan_xr"
html_static_path: list[str] = []
