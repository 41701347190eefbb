# SPDX-License-Identifier: Apache-2.0
"""Builds dist/: the Debian package for Debian 13, its source and lintian's verdict; then tries it.

`make deb`, or `python scripts/deb.py [--out DIRECTORY]`, as root. A clone of HEAD is built as the lab builds its
package (netback.lab.package), and a lab of HEAD then uses this one. The package is installed, used, removed and purged
in a minimal chroot of `make fresh` (scripts/deb_check.sh).
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fresh  # the script beside this one; it puts src/ on sys.path

from netback import __version__
from netback.errors import ConfigError
from netback.lab import image, package

CHECK = Path(__file__).parent / "deb_check.sh"
FILES = ("*.deb", "*.dsc", "*.tar.xz", "*.buildinfo", "*.changes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=fresh.ROOT / "dist", help="[default: dist/]")
    options = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _frame: sys.exit(128 + number))
    if os.geteuid() != 0:
        sys.exit("deb: it needs root, for chroots")
    began = time.monotonic()
    try:
        archive = fresh.archive_of(image.SUITE)
        with scratch(archive, "build-") as place, scratch(archive, "root-") as root:
            made = build(Path(place), options.out)
            with judged(Path(place)):
                attempt(archive, Path(root), made)
    except (ConfigError, subprocess.CalledProcessError) as error:
        sys.exit(f"deb: {error}")
    fresh.say(f"{made} works, after {time.monotonic() - began:.0f} s")


def scratch(archive: Path, prefix: str) -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(dir=archive.parent, prefix=prefix)


def build(place: Path, out: Path) -> Path:
    """Build the package and its source in `place`; returns the binary one's path in `out`."""
    tree = place / "netback"
    subprocess.run(["git", "clone", "-q", "--depth", "1", f"file://{fresh.ROOT}", tree], check=True)
    root, kept = package.builder(tree, fresh.say), package.kept(tree)
    fresh.say("the package and its source, from HEAD")
    package.build(root, place, place / "log")
    package.keep(place, kept)
    out.mkdir(parents=True, exist_ok=True)
    for pattern in FILES:
        for made in place.glob(pattern):
            shutil.copy2(made, out)
    (binary,) = place.glob("*.deb")
    return out / binary.name


@contextmanager
def judged(place: Path) -> Iterator[None]:
    """Run lintian beside what is done meanwhile, since it takes a minute. CalledProcessError: it found an error."""
    root, log = package.builder(place / "netback", fresh.say), place / "lintian.log"
    command = f"lintian --allow-root --fail-on error /{package.PLACE}/netback_*.changes"
    with log.open("wb") as file:
        lintian = subprocess.Popen(
            [*package.inside(root, place), "sh", "-c", command], stdout=file, stderr=subprocess.STDOUT
        )
        try:
            yield
            lintian.wait()
        finally:
            lintian.kill()
            lintian.wait()
    fresh.say(f"lintian\n{log.read_text()}".rstrip())
    if lintian.returncode:
        raise subprocess.CalledProcessError(lintian.returncode, "lintian")


def attempt(archive: Path, root: Path, made: Path) -> None:
    """Install, use, remove and purge the package in a new chroot. CalledProcessError: something failed."""
    subprocess.run(["tar", "-C", root, "-xf", archive, "--numeric-owner"], check=True)
    image.install_whole(root)
    for file in (made, CHECK):
        shutil.copy2(file, root / "root")
    done = fresh.inside(root, f"exec sh /root/{CHECK.name} /root/{made.name} {__version__}")
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, CHECK.name)


if __name__ == "__main__":
    main()
