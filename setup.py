# SPDX-License-Identifier: Apache-2.0
"""Builds the native part: every .pyx in dataplane/ becomes one extension module.

NETBACK_SANITIZE=1 builds it under AddressSanitizer and UndefinedBehaviorSanitizer instead (`make sanitize`).
"""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

SANITIZE = os.environ.get("NETBACK_SANITIZE") == "1"
WARNINGS = [
    "-Wall",
    "-Wextra",
    "-Wno-unused-parameter",
]  # CPython's own calling convention leaves parameters unused
OPTIMISE = ["-O3", "-fno-strict-aliasing", "-fno-semantic-interposition"]
SANITIZERS = [
    "-O1",
    "-g",
    "-fno-omit-frame-pointer",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=undefined",
]

sources = sorted(Path("src/netback/dataplane").glob("*.pyx"))
extensions = [
    Extension(
        ".".join(source.with_suffix("").parts[1:]),
        [str(source)],
        include_dirs=["src/netback/dataplane"],
        extra_compile_args=[*WARNINGS, *(SANITIZERS if SANITIZE else OPTIMISE)],
        extra_link_args=["-fsanitize=address,undefined"] if SANITIZE else [],
    )
    for source in sources
]

setup(
    ext_modules=cythonize(
        extensions,
        nthreads=os.cpu_count() or 1,
        compiler_directives={
            "language_level": 3,
            "boundscheck": False,
            "wraparound": False,
            "cdivision": True,
            "initializedcheck": False,
            "embedsignature": True,
        },
        build_dir="build/cython",
    )
)
