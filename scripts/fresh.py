# SPDX-License-Identifier: Apache-2.0
"""Runs `make demo` and `make test` on fresh machines: minimal chroots of Debian 12, 13 and testing.

`make fresh`, or `python scripts/fresh.py [--suite SUITE ...] [--only demo|test]`, as root. A chroot holds Debian's
essential packages, make, and a clone of the project at HEAD; make has to install the rest. From this machine it gets
the network, /dev/net/tun, the addresses of apt's archive and pip's index, and the certificates for them.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))

from netback.errors import ConfigError  # noqa: E402
from netback.lab import chroot, image  # noqa: E402

SUITES = ("bookworm", "trixie", "testing")
COMMANDS = ("demo", "test")
PACKAGES = ("make",)
KEPT_DAYS = 7
"""An older archive of a chroot is made again, so that its packages fit those which apt installs later."""
CERTIFICATES = "run/certificates.pem"
PIP_SETTINGS = ("index-url", "extra-index-url", "trusted-host", "proxy", "default-timeout")
PROXIES = ("http_proxy", "https_proxy", "no_proxy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", action="append", choices=SUITES, help="these alone  [default: all]")
    parser.add_argument("--only", choices=COMMANDS, help="this command alone")
    options = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _frame: sys.exit(128 + number))
    if os.geteuid() != 0:
        sys.exit("fresh: it needs root, for chroots and for the tests in them")
    failed = []
    try:
        for suite in options.suite or SUITES:
            archive = archive_of(suite)
            for command in COMMANDS:
                if options.only in (None, command) and not passes(archive, suite, command):
                    failed.append(f"{suite}: make {command}")
    except (ConfigError, subprocess.CalledProcessError) as error:
        sys.exit(f"fresh: {error}")
    if failed:
        sys.exit(f"fresh: failed: {', '.join(failed)}")


def archive_of(suite: str) -> Path:
    """A tar file of the suite's chroot, made now if the kept one is too old."""
    kept = image.cache().parent / "fresh" / f"{suite}.tar"
    if not kept.exists() or time.time() - kept.stat().st_mtime > KEPT_DAYS * 86400:
        say(f"{suite}: making the chroot")
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent, prefix="new-") as place:
            made = Path(place) / kept.name
            image.bootstrap(made, suite, PACKAGES, Path(place) / "log")
            made.replace(kept)
    return kept


def passes(archive: Path, suite: str, command: str) -> bool:
    """Run one command in a new chroot, which is removed afterwards."""
    say(f"{suite}: make {command}")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=archive.parent, prefix="root-") as place:
        root = Path(place)
        subprocess.run(["tar", "-C", root, "-xf", archive, "--numeric-owner"], check=True)
        clone = ["git", "clone", "-q", "--depth", "1", f"file://{ROOT}", root / "netback"]
        subprocess.run(clone, check=True)
        done = inside(root, f"cd /netback && exec make {command}")
    say(
        f"{suite}: make {command} {'failed' if done.returncode else 'passed'} after {time.monotonic() - began:.0f} s"
    )
    return done.returncode == 0


def inside(root: Path, script: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run a shell script in a chroot, with the network."""
    command = [*chroot.writable(root, network(root)), "sh", "-euc", script, "sh", *arguments]
    return subprocess.run(command, stdin=subprocess.DEVNULL, check=False)


def network(root: Path) -> dict[str, str]:
    """Give the chroot this machine's name resolution, proxies and pip settings; return its environment."""
    for name in ("resolv.conf", "hosts"):
        shutil.copyfile(f"/etc/{name}", root / "etc" / name)
    settings = pip_settings()
    given = {name: os.environ[name] for name in PROXIES if name in os.environ}
    given |= {
        f"PIP_{name.upper().replace('-', '_')}": settings[name] for name in PIP_SETTINGS if name in settings
    }
    if certificates := settings.get("cert") or os.environ.get("SSL_CERT_FILE"):
        shutil.copyfile(certificates, root / CERTIFICATES)
        given |= dict.fromkeys(("PIP_CERT", "SSL_CERT_FILE"), f"/{CERTIFICATES}")
    return given


def pip_settings() -> dict[str, str]:
    """pip's settings on this machine, from its files and environment, except paths on this machine's disk."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    settings = {}
    for line in sorted(listed.splitlines(), key=lambda line: line.startswith(":env:")):
        name, value = line.split("=", 1)
        words = [word for word in shlex.split(value)[0].split() if not word.startswith("file:")]
        if words:
            settings[name.rpartition(".")[2]] = " ".join(words)
    return settings


def say(line: str) -> None:
    print(f"-- {line}", flush=True)


if __name__ == "__main__":
    main()
