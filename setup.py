# SPDX-License-Identifier: Apache-2.0
"""Builds the native part: every .pyx in dataplane/ becomes one extension module.

NETBACK_SANITIZE=1 builds it under AddressSanitizer and UndefinedBehaviorSanitizer instead (`make sanitize`).
NETBACK_ABI3=1 builds it for CPython's stable ABI, so that one wheel serves every Python from 3.11 on (`make wheels`).
CYTHON_CACHE_DIR names a directory where Cython's output is kept for the next build (`make deb`).
"""

import os
import runpy
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

SANITIZE = os.environ.get("NETBACK_SANITIZE") == "1"
ABI3 = os.environ.get("NETBACK_ABI3") == "1"
PLANE = Path("src/netback/dataplane")
compiling = runpy.run_path(str(PLANE / "extensions.py"))
SANITIZERS = [
    *compiling["FLAGS"],
    "-O1",
    "-g",
    "-fno-omit-frame-pointer",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=undefined",
]

extensions = [
    Extension(
        ".".join(source.with_suffix("").parts[1:]),
        [str(source)],
        include_dirs=[str(PLANE)],
        py_limited_api=ABI3,
        define_macros=[("Py_LIMITED_API", "0x030B0000")] if ABI3 else [],
        extra_compile_args=SANITIZERS if SANITIZE else list(compiling["FLAGS"]),
        extra_link_args=["-fsanitize=address,undefined"] if SANITIZE else [],
    )
    for source in compiling["sources"](PLANE)
]

options: dict[str, dict[str, object]] = {"build_ext": {"parallel": os.cpu_count() or 1}}
if ABI3:
    options["bdist_wheel"] = {"py_limited_api": "cp311"}

setup(
    options=options,
    ext_modules=cythonize(
        extensions,
        nthreads=os.cpu_count() or 1,
        compiler_directives=compiling["DIRECTIVES"],
        build_dir="build/cython",  # the C code is the same for both ABIs
        cache=os.environ.get("CYTHON_CACHE_DIR", False),
    ),
)
