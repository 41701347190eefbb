# SPDX-License-Identifier: Apache-2.0
"""Builds dist/: the Debian package for Debian 13, its source and lintian's verdict; then tries it.

`make deb`, or `python scripts/deb.py [--out DIRECTORY]`, as root. A clone of HEAD is built in a minimal chroot, where
apt installs what debian/control names. The package is then installed, used, removed and purged in a second one
(scripts/deb_check.sh). The chroots are those of `make fresh`.
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
from pathlib import Path

import fresh  # the script beside this one; it puts src/ on sys.path

from netback import __version__
from netback.errors import ConfigError

SUITE = "trixie"
CHECK = Path(__file__).parent / "deb_check.sh"
BUILD = """
set -eu
export DEBIAN_FRONTEND=noninteractive
quietly() { "$@" >/build/log 2>&1 || { tail -n 40 /build/log >&2; exit 1; }; }
cd /build/netback
quietly apt-get update
quietly apt-get install -y --no-install-recommends dpkg-dev lintian
quietly apt-get build-dep -y --no-install-recommends ./
echo "-- building"
DEB_BUILD_OPTIONS="parallel=$(nproc) noautodbgsym" quietly dpkg-buildpackage -us -uc
echo "-- lintian"
lintian --allow-root --fail-on error ../netback_*.changes
"""
"""In the chroot that has the clone in /build/netback; dpkg-buildpackage puts its files beside it."""
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
        archive = fresh.archive_of(SUITE)
        with tempfile.TemporaryDirectory(dir=archive.parent, prefix="root-") as place:
            package = build(chroot(archive, Path(place)), options.out)
        with tempfile.TemporaryDirectory(dir=archive.parent, prefix="root-") as place:
            attempt(chroot(archive, Path(place)), package)
    except (ConfigError, subprocess.CalledProcessError) as error:
        sys.exit(f"deb: {error}")
    fresh.say(f"{package} works, after {time.monotonic() - began:.0f} s")


def chroot(archive: Path, root: Path) -> Path:
    """Unpack a chroot where packages install all of their files, manual pages, too, and dpkg waits for no disk."""
    subprocess.run(["tar", "-C", root, "-xf", archive, "--numeric-owner"], check=True)
    settings = root / "etc" / "dpkg" / "dpkg.cfg.d"
    for excludes in settings.glob("*mmdebstrap"):
        excludes.unlink()
    (settings / "scratch").write_text("force-unsafe-io\n")
    return root


def build(root: Path, out: Path) -> Path:
    """Build and judge the package in the chroot; returns the binary one's path in `out`."""
    fresh.say(f"the packages that build it, on {SUITE}")
    tree = root / "build" / "netback"
    subprocess.run(["git", "clone", "-q", "--depth", "1", f"file://{fresh.ROOT}", tree], check=True)
    inside(root, BUILD)
    out.mkdir(parents=True, exist_ok=True)
    for pattern in FILES:
        for made in tree.parent.glob(pattern):
            shutil.copy2(made, out)
    (package,) = tree.parent.glob("*.deb")
    return out / package.name


def attempt(root: Path, package: Path) -> None:
    """Install, use, remove and purge the package in the chroot."""
    for file in (package, CHECK):
        shutil.copy2(file, root / "root")
    inside(root, f"exec sh /root/{CHECK.name} /root/{package.name} {__version__}")


def inside(root: Path, script: str) -> None:
    """Run a shell script in the chroot. CalledProcessError: it failed."""
    unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
    enter = [*unshare, "sh", "-c", fresh.ENTER, "sh", str(root)]
    done = subprocess.run(
        [*enter, *fresh.network(root), "sh", "-c", script], stdin=subprocess.DEVNULL, check=False
    )
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, "the script in the chroot")


if __name__ == "__main__":
    main()
