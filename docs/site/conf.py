# SPDX-License-Identifier: Apache-2.0
"""The documentation as a site: `make site` builds it from the pages in docs/ and from the project's own.

Sphinx reads the whole tree, so that a link of a page to a file of the project leads to that file in the site, too. -W
makes every link that leads nowhere an error.
"""

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]

project = "netback"
version = release = runpy.run_path(str(ROOT / "src/netback/__init__.py"))["__version__"]
extensions = ["myst_parser", "sphinxcontrib.mermaid"]
myst_fence_as_directive = ["mermaid"]
root_doc = "docs/index"
include_patterns = ["*.md", "bench/*.md", "docs/*.md", "docs/tutorials/*.md"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = f"netback {version}"
html_show_sourcelink = False
html_copy_source = html_show_copyright = False
html_theme_options = {"navigation_with_keys": True}
