#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Names, in one line each, what a fresh machine lacks and the Debian package that has it.
python=${1:-python3}
missing() { echo "netback: $1 is missing; install the package $2 (apt install $2)" >&2; exit 1; }
command -v "$python" >/dev/null 2>&1 || missing "Python 3.11 or later" python3
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "netback: $python is older than Python 3.11" >&2; exit 1; }
"$python" -c 'import venv, ensurepip' 2>/dev/null || missing "Python's venv module" python3-venv
command -v gcc >/dev/null 2>&1 || missing "a C compiler" gcc
include=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
test -f "$include/Python.h" || missing "Python.h" python3-dev
echo '#include <stdlib.h>' | gcc -E - >/dev/null 2>&1 || missing "the C library's headers" libc6-dev
