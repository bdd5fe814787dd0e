"""The documentation as a site: `sphinx-build -W -b html docs site`."""

import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from llamaswap.version import build  # noqa: E402

project = "llamaswap"
author = "the llamaswap authors"
copyright = author
release = version = build().version
extensions = ["reference", *(["sphinx.ext.graphviz"] if shutil.which("dot") else [])]
exclude_patterns = ["_build"]
html_theme = "alabaster"
html_theme_options = {
    "description": "One HTTP endpoint in front of every local inference server",
    "fixed_sidebar": True,
    "page_width": "70rem",
    "sidebar_width": "17rem",
}
html_sidebars = {"**": ["about.html", "searchfield.html", "navigation.html"]}
html_show_sourcelink = False
nitpicky = True
