#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# sh scripts/need.sh COMMAND...: installs the missing packages of packages.txt that these commands of make need.
# It installs as root on a Debian only, and not with INSTALL=no: else it names all of them in one line and fails.
# PYTHON is the interpreter that make uses.
set -eu
list=$(dirname "$0")/packages.txt
python=${PYTHON:-python3}

fail() { echo "netback: $*" >&2; exit 1; }

# The words of one command's list, with those of the lists that it includes.
words() {
    for word in $(sed -n "s/^$1: //p" "$list"); do
        case $word in
            +*) words "${word#+}" ;;
            *) echo "$word" ;;
        esac
    done
}

# installed PACKAGE SIGN: whether dpkg has the package. An interpreter other than Debian's own does not need Debian's packages for it.
installed() {
    case $1 in python3*) test "$(command -v "$python")" = /usr/bin/python3 || { shown "$@"; return; } ;; esac
    dpkg-query -W -f='${Status}' "$1" 2>/dev/null | grep -q 'ok installed'
}

# shown PACKAGE SIGN: whether the package's contents exist: a header, a Python module or a program.
shown() {
    case $2 in
        Python.h) "$python" -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")' ;;
        *.h) echo "#include <$2>" | gcc -E - ;;
        venv) "$python" -c 'import venv, ensurepip' ;;
        python3) command -v "$python" ;;
        *) command -v "$2" ;;
    esac >/dev/null 2>&1
}

if command -v dpkg-query >/dev/null && command -v apt-get >/dev/null; then has=installed; else has=shown; fi
missing=
for word in $(for command; do words "$command"; done | sort -u); do
    $has "${word%%=*}" "${word#*=}" || missing="$missing ${word%%=*}"
done
if [ -n "$missing" ]; then
    if [ $has = shown ]; then fail "make $* needs these packages (by their names in Debian):$missing"; fi
    if [ "${INSTALL:-}" = no ] || [ "$(id -u)" != 0 ]; then fail "make $* needs these packages: apt install$missing"; fi
    echo "netback: make $* installs$missing (INSTALL=no: only name them)"
    log=$(mktemp)
    export DEBIAN_FRONTEND=noninteractive
    # shellcheck disable=SC2086 # a list of words
    { apt-get update -q && apt-get install -q -y --no-install-recommends -o DPkg::Lock::Timeout=120 $missing; } </dev/null >"$log" 2>&1 ||
        { tail -n 20 "$log" >&2; fail "apt cannot install$missing: its last lines are above, all of them in $log"; }
    rm -f "$log"
fi
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "$python is older than Python 3.11, which netback needs; name a later one: make PYTHON=..."
