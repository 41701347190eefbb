# SPDX-License-Identifier: Apache-2.0
"""The disk from which dom0 and driver domains install netback at their start: its Debian package, the byte code of
its modules, and the lab's own scripts.

The package is built of the checkout that this netback runs from. An installation elsewhere has no debian/: what is
installed then goes into a plain package, without scripts, manual pages and configuration.
"""

import os
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

import netback
from netback.daemon.systemd.unit import HOTPLUG, KEEP_KERNEL_OUT, UNIT
from netback.errors import ConfigError
from netback.lab import initramfs, package
from netback.lab.image import Image, Say, run
from netback.lab.inside import agent

_MIB = 1 << 20
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
        """The package's files, for guests that have netback in their initramfs."""
        return self.directory / "package"


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
    subprocess.run(["dpkg-deb", "--extract", medium.package, medium.files], check=True)
    _precompile(image, medium.files)
    with tarfile.open(tree / "bytecode.tar", "w") as archive:
        for path in medium.files.rglob("__pycache__"):
            archive.add(path, path.relative_to(medium.files))
    shutil.copytree(Path(__file__).parent / "init", tree / "init")
    shutil.copyfile(agent.__file__, tree / "agent.py")
    _make_disk(tree, medium.disk)
    return medium


def _make_disk(tree: Path, disk: Path) -> None:
    size = sum(path.stat().st_size + 4096 for path in tree.rglob("*") if path.is_file())
    mib = max(64, size * 3 // 2 // _MIB)
    command = ["mke2fs", "-q", "-t", "ext4", "-L", "netback", "-d", str(tree), str(disk), f"{mib}M"]
    run(command, disk.parent / "mke2fs.log", "cannot make netback's disk")


def _python(image: Image) -> str:
    """dom0's Python version, for example "3.13"."""
    found = [path.name for path in (image.root / "usr/bin").glob("python3.*") if path.name[8:].isdecimal()]
    if len(found) != 1:
        raise ConfigError("dom0 has no Python, or more than one")
    return found[0].removeprefix("python")


def _precompile(image: Image, files: Path) -> None:
    """Compile byte code with dom0's Python, run on this machine: dom0 takes a minute, under software emulation.

    py3compile, which the package's installation runs, skips modules whose byte code has the source's time.
    """
    usr = image.root / "usr"
    python = [*initramfs.loader(image.root), str(usr / "bin" / f"python{_python(image)}")]
    command = [
        *python,
        "-m",
        "compileall",
        "-q",
        "-s",
        str(files),
        "-p",
        "/",
        str(files / initramfs.PACKAGES),
    ]
    environment = os.environ | {"PYTHONHOME": str(usr), "PYTHONDONTWRITEBYTECODE": "1"}
    for name in ("PYTHONPATH", "SOURCE_DATE_EPOCH"):  # with the latter, byte code has no times
        environment.pop(name, None)
    subprocess.run(command, env=environment, capture_output=True, check=False)  # a failure costs only speed


def pack(installed: Path, python: str, medium: Medium) -> None:
    """Put an installed netback into a package. ConfigError: dom0's Python cannot load its native part."""
    loadable = (".abi3.so", f".cpython-{python.replace('.', '')}-x86_64-linux-gnu.so")
    native = list(installed.rglob("*.so"))
    if not native or not all(path.name.endswith(loadable) for path in native):
        raise ConfigError(
            f"{installed} is compiled for another Python than dom0's {python}: run the lab from a checkout, or from the"
            " wheel of `make wheels`, which is for each Python"
        )
    tree = medium.directory / "installed"
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
    run(command, medium.directory / "dpkg-deb.log", "cannot pack the installed netback")
