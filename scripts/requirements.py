# SPDX-License-Identifier: Apache-2.0
"""Prints the project's dependencies and those of the named extras, one a line: pyproject.toml is the only list."""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
print(
    "\n".join(
        project["dependencies"]
        + [line for extra in sys.argv[1:] for line in project["optional-dependencies"][extra]]
    )
)
