# SPDX-License-Identifier: Apache-2.0
"""The disk that brings netback to dom0 and driver domains: what its Debian package installs, and the lab's own scripts.

dpkg installs the package in dom0's root on this machine, and dom0 unpacks the difference at its start: dpkg and the
package's scripts would take a minute on an emulated processor.

The package is built of the checkout that this netback runs from. An installation elsewhere has no debian/: what is
installed then goes into a plain package, without scripts, manual pages and configuration.
"""

import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import netback
from netback.daemon.systemd.unit import HOTPLUG, KEEP_KERNEL_OUT, UNIT
from netback.errors import ConfigError
from netback.lab import chroot, initramfs, package
from netback.lab.image import Image, Say, run
from netback.lab.inside import agent

_MIB = 1 << 20
_INSTALL = """
export DEBIAN_FRONTEND=noninteractive
dpkg --install "/lab/$1"
tar -C /mnt -cf /lab/installed.tar --exclude=./mnt --exclude=./lab .
"""
_PROGRAM = """#!/usr/bin/python3
import sys
from netback.cli import main
sys.exit(main())
"""
_CONTROL = """Package: netback
Version: {version}
Architecture: amd64
Maintainer: the lab
Description: netback as it is installed on the lab's machine
"""


@dataclass(frozen=True, slots=True)
class Medium:
    """What a lab installs from. Each lab has its own, since labs running at once may be of different checkouts."""

    directory: Path

    @property
    def disk(self) -> Path:
        """An ext4 image, which dom0 mounts by its label."""
        return self.directory / "netback.img"

    @property
    def package(self) -> Path:
        return self.directory / "disk" / "netback.deb"

    @property
    def files(self) -> Path:
        """What the package installs, for guests that have netback in their initramfs."""
        return self.directory / "installed"


def build(image: Image, directory: Path, say: Say) -> Medium:
    """Make everything in a new `directory`."""
    medium = Medium(directory)
    tree = medium.package.parent
    tree.mkdir(parents=True)
    source = package.checkout()
    if source:
        shutil.copyfile(package.package(source, say), medium.package)
    else:
        pack(Path(netback.__file__).parent, _python(image), medium)
    installed = install(image, medium.package)
    shutil.copyfile(installed, tree / "installed.tar")
    medium.files.mkdir()
    unpack = ["tar", "-C", str(medium.files), "-xf", str(installed)]
    run(unpack, directory / "log", "cannot unpack what netback's package installs")
    shutil.copytree(Path(__file__).parent / "init", tree / "init")
    shutil.copyfile(agent.__file__, tree / "agent.py")
    _make_disk(tree, medium.disk)
    return medium


def install(image: Image, file: Path) -> Path:
    """An archive of what changes in dom0's root when dpkg installs a package there, made now if the cache lacks it."""
    kept = image.directory / f"installed-{hashlib.sha256(file.read_bytes()).hexdigest()[:16]}.tar"
    if not kept.exists():
        if os.geteuid() != 0:
            raise ConfigError("netback's package must be installed as root: run this once with sudo -E")
        with tempfile.TemporaryDirectory(dir=image.directory) as scratch:
            place = Path(scratch)
            shutil.copyfile(file, place / file.name)
            command = [
                *chroot.unchanged(image.root, {}, {"lab": place}),
                "sh",
                "-euc",
                _INSTALL,
                "sh",
                file.name,
            ]
            run(command, place / "log", "dom0 cannot install netback's package")
            for old in image.directory.glob("installed-*.tar"):
                old.unlink()
            (place / "installed.tar").replace(kept)
    return kept


def _make_disk(tree: Path, disk: Path) -> None:
    size = sum(path.stat().st_size + 4096 for path in tree.rglob("*") if path.is_file())
    mib = max(64, size * 3 // 2 // _MIB)
    command = ["mke2fs", "-q", "-t", "ext4", "-L", "netback", "-d", str(tree), str(disk), f"{mib}M"]
    run(command, disk.parent / "log", "cannot make netback's disk")


def _python(image: Image) -> str:
    """dom0's Python version, for example "3.13"."""
    found = [path.name for path in (image.root / "usr/bin").glob("python3.*") if path.name[8:].isdecimal()]
    if len(found) != 1:
        raise ConfigError("dom0 has no Python, or more than one")
    return found[0].removeprefix("python")


def pack(installed: Path, python: str, medium: Medium) -> None:
    """Put an installed netback into a package. ConfigError: dom0's Python cannot load its native part."""
    loadable = (".abi3.so", f".cpython-{python.replace('.', '')}-x86_64-linux-gnu.so")
    native = list(installed.rglob("*.so"))
    if not native or not all(path.name.endswith(loadable) for path in native):
        raise ConfigError(
            f"{installed} is compiled for another Python than dom0's {python}: run the lab from a checkout, or from the"
            " wheel of `make wheels`, which is for each Python"
        )
    tree = medium.directory / "plain"
    shutil.copytree(
        installed, tree / initramfs.PACKAGES / "netback", ignore=shutil.ignore_patterns("__pycache__")
    )
    for path, content in {
        "usr/bin/netback": _PROGRAM,
        "usr/lib/systemd/system/netback.service": UNIT.read_text(),
        f"usr/share/netback/{KEEP_KERNEL_OUT.name}": KEEP_KERNEL_OUT.read_text(),
        f"usr/share/netback/{HOTPLUG.name}": HOTPLUG.read_text(),
        "DEBIAN/control": _CONTROL.format(version=netback.__version__),
    }.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text(content)
    (tree / "usr/bin/netback").chmod(0o755)
    command = ["dpkg-deb", "--root-owner-group", "-Znone", "--build", str(tree), str(medium.package)]
    run(command, medium.directory / "log", "cannot pack the installed netback")
