# SPDX-License-Identifier: Apache-2.0
"""Runs the native tests and the fuzzers on a build with AddressSanitizer and UndefinedBehaviorSanitizer.

`make sanitize`, or `python scripts/sanitize.py [--fast] [--fuzz SECONDS] [TEST ...]`. It builds in a copy of the tree,
build/sanitize, and leaves the tree's own native code alone.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
COPY = ROOT / "build" / "sanitize"
PARTS = ("src", "tests", "fuzz", "examples", "docs")
SUITES = ("tests/dataplane", "tests/frontend", "tests/net", "tests/hostile", "tests/test_fuzz.py")
FAST = (
    "tests/dataplane/test_offload.py",
    "tests/dataplane/test_ring_cases.py",
    "tests/hostile/test_rings.py",
    "tests/test_fuzz.py",
)
DESELECTED = (
    # These compile programs of their own without sanitizers.
    "test_seeded_faults_are_caught",
    "test_no_fault_no_alarm",
    # Eight slots beside 64 KiB frames: it takes tens of seconds here, longer than its bound for hangs.
    "test_eight_slot_guest_beside_a_64_kib_sender",
    # tshark's androiddump hangs with the sanitizer's library loaded.
    "test_an_access_port_under_linux",
    "test_a_mirror_under_linux",
)
OPTIONS = {
    # LeakSanitizer would report thousands of CPython's interned objects; tests count descriptors and mappings instead.
    # The quarantine of freed memory is 4 MB instead of 256 MB: tests bound how this process grows.
    "ASAN_OPTIONS": "detect_leaks=0:strict_string_checks=1:detect_stack_use_after_return=1:quarantine_size_mb=4",
    "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    # Every object is on the sanitizer's heap, so that an overrun of a bytes object is also found.
    "PYTHONMALLOC": "malloc",
    "PYTHONPATH": "src",
}


def copy() -> None:
    """Copy the tree with its time stamps, so that only changed files are built again."""
    skip = shutil.ignore_patterns("*.so", "__pycache__", "failures", "*.egg-info")
    shutil.rmtree(COPY / "tests", ignore_errors=True)
    for part in filter(lambda part: (ROOT / part).exists(), PARTS):
        shutil.copytree(ROOT / part, COPY / part, dirs_exist_ok=True, ignore=skip)
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy2(ROOT / name, COPY / name)


def run(*command: str, **environment: str) -> None:
    """Run a command in the copy; exit if it fails."""
    began = time.monotonic()
    done = subprocess.run(command, cwd=COPY, env=os.environ | environment, check=False)
    print(f"-- {' '.join(command[1:4])}: {time.monotonic() - began:.0f} s", flush=True)
    if done.returncode:
        sys.exit(done.returncode)


def build() -> None:
    """Build the copy; print the compilers' warnings only."""
    print("building the sanitized copy ...", flush=True)
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    environment = os.environ | {"NETBACK_SANITIZE": "1"}
    done = subprocess.run(command, cwd=COPY, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.stdout)


def runtime() -> str:
    """The path of libasan, which must be preloaded because Python itself is built without it."""
    found = subprocess.run(["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    path = Path(found.stdout.strip())
    if not path.is_absolute():
        sys.exit("gcc has no libasan.so: install libasan8 (or gcc's own package of it)")
    return str(path.resolve())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="the fast part of the tests")
    parser.add_argument(
        "--fuzz", type=float, metavar="SECONDS", help="duration of the fuzzers (20; 5 with --fast)"
    )
    parser.add_argument("tests", nargs="*", help="these tests instead of all native ones")
    options = parser.parse_args()
    seconds = options.fuzz if options.fuzz is not None else 5 if options.fast else 20
    wanted = options.tests or [
        suite for suite in (FAST if options.fast else SUITES) if (ROOT / suite).exists()
    ]

    copy()
    build()
    sanitized = OPTIONS | {"LD_PRELOAD": runtime()}
    deselect = " and ".join(f"not {name}" for name in DESELECTED)
    pytest = (
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-n",
        "2",
        "--dist",
        "loadgroup",
        "-p",
        "no:cacheprovider",
    )
    run(*pytest, "--timeout", "600", "-k", deselect, *wanted, **sanitized)
    run(sys.executable, "-m", "fuzz", "--seconds", str(seconds), **sanitized)


if __name__ == "__main__":
    main()
