"""The docs as a site: pip install -e ".[docs]" && sphinx-build -W -b html docs build/docs."""

import dcn_ops

project = "dcn-zoo"
copyright = "the authors of dcn-zoo"
release = dcn_ops.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
html_theme = "furo"
html_title = f"dcn-zoo {release}"
html_show_sphinx = False
myst_heading_anchors = 4  # links to headings, as code hosts make them
suppress_warnings = ["myst.header"]
copybutton_prompt_text = "$ "
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
