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
extensions = ["reference", "sphinx_copybutton", *(["sphinx.ext.graphviz"] if shutil.which("dot") else [])]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"llamaswap {release}"
html_theme_options = {"navigation_with_keys": True}
copybutton_exclude = ".linenos, .gp, .go"
html_show_sourcelink = False
nitpicky = True
