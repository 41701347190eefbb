# SPDX-License-Identifier: Apache-2.0
"""Prints pyproject.toml's build requirements, dependencies and the named extras, one a line, for pip."""

import sys
import tomllib
from pathlib import Path

pyproject = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
project = pyproject["project"]
extras = [line for extra in sys.argv[1:] for line in project["optional-dependencies"][extra]]
print("\n".join(pyproject["build-system"]["requires"] + project["dependencies"] + extras))
