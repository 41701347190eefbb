# SPDX-License-Identifier: Apache-2.0
"""What the lab boots: dom0's disk, Xen, kernels and a guest's initramfs, built from Debian packages and cached.

Deals with packages and files, not with virtual machines. The Debian mirror is the one that this machine's apt uses.
"""

import errno
import gzip
import hashlib
import lzma
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from netback.errors import ConfigError
from netback.lab import initramfs

SUITE = "trixie"
OLD_SUITE = "bookworm"
"""The suite whose kernel, 6.1, guests may also boot."""
PACKAGES = (
    "linux-image-amd64",
    "xen-hypervisor-4.20-amd64",
    "xen-utils-4.20",
    "xen-utils-common",
    "qemu-system-xen",
    "python3",
    "iproute2",
    "bridge-utils",
    "net-tools",
    "kmod",
    "udev",
    "systemd",
    "systemd-sysv",
    "iperf3",
    "iputils-ping",
    "ethtool",
    "procps",
    "busybox-static",
    "openvswitch-switch",
    "xenstore-utils",
    "socat",
    "tcpdump",
    # What netback's package depends on, and pytest for its contract suites.
    "python3-click",
    "python3-msgspec",
    "python3-prometheus-client",
    "python3-pyroute2",
    "python3-rich",
    "python3-hypothesis",
    "python3-pytest",
    "python3-pytest-asyncio",
    "python3-pytest-timeout",
)
_DISK = "3G"
_NOT_WANTED = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")
_STUB = """#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t ext4 -o ro LABEL=netback /mnt
sh /mnt/init/install || poweroff -f
exec sh "/mnt/init/$1"
"""
"""A domain's first process. Everything of netback is on a second disk, which is cheap to rebuild (install.py)."""

Say = Callable[[str], None]

PROGRAMS = {
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "qemu-system-x86_64": "qemu-system-x86",
}
"""Programs that the lab runs, each with its Debian package."""


@dataclass(frozen=True, slots=True)
class Image:
    """The directory of one built image."""

    directory: Path

    @property
    def root(self) -> Path:
        """dom0's root as a directory: headers, programs, modules."""
        return self.directory / "root"

    @property
    def disk(self) -> Path:
        return self.directory / "disk.img"

    @property
    def xen(self) -> Path:
        return self.directory / "xen"

    @property
    def kernel(self) -> Path:
        return self.directory / "vmlinuz"

    @property
    def guest_kernel(self) -> Path:
        """The same kernel as an ELF file."""
        return self.directory / "vmlinux"

    @property
    def initrd(self) -> Path:
        """dom0's initrd."""
        return self.directory / "initrd"

    @property
    def guest(self) -> Path:
        """The part of a guest's initramfs that all guests share."""
        return self.directory / "guest.cpio.gz"


def cache() -> Path:
    """The directory of cached images: $XDG_CACHE_HOME/netback/lab."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "netback" / "lab"


def check_programs(programs: dict[str, str] = PROGRAMS) -> None:
    """Raise ConfigError naming every missing program's package in one line."""
    missing = sorted({package for program, package in programs.items() if not shutil.which(program)})
    if missing:
        raise ConfigError(f"the lab needs {', '.join(missing)}: apt install {' '.join(missing)}")


def mirror(apt: Path = Path("/etc/apt")) -> str:
    """The Debian mirror of this machine's apt; ConfigError if none is configured."""
    files = [*sorted((apt / "sources.list.d").glob("*.sources")), apt / "sources.list"]
    files += sorted((apt / "sources.list.d").glob("*.list"))
    for path in files:
        if path.exists() and (found := find_mirror(path.read_text())):
            return found
    raise ConfigError(f"no Debian mirror is named in {apt}/sources.list or {apt}/sources.list.d")


def find_mirror(text: str) -> str | None:
    """The first Debian main archive in a sources file, in either of apt's formats (sources.list(5)); None if none."""
    for line in text.splitlines():
        found = re.match(r"(?:URIs:|deb(?:\s+\[.*?\])?)\s*(\S+)", line)
        if found and re.search(r"/debian/?$", found[1]):
            return found[1]
    return None


def key() -> str:
    """A digest of everything that an image is built from: the image's name in the cache."""
    made_of = (SUITE, PACKAGES, _DISK, _NOT_WANTED, _STUB, Path(__file__).read_text())
    inner = Path(initramfs.__file__).read_text()
    return hashlib.sha256(repr((made_of, inner)).encode()).hexdigest()[:16]


def build(say: Say) -> Image:
    """The image of this version, built now if the cache lacks it."""
    check_programs()
    image = Image(cache() / key())
    if not image.directory.exists():
        if os.geteuid() != 0:
            raise ConfigError("the lab's image must be built as root: run this once with sudo -E")
        cache().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache(), prefix="new-") as place:
            made = Image(Path(place) / "image")
            made.directory.mkdir()
            _make(made, say)
            move_into_cache(made.directory, image.directory)
    return image


def move_into_cache(made: Path, place: Path) -> None:
    """Move a complete directory into the cache, unless another process put one there first."""
    try:
        made.rename(place)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def bootstrap(
    root: Path, suite: str, packages: tuple[str, ...], log: Path, *, variant: str = "minbase"
) -> None:
    """Make a root directory of Debian packages with mmdebstrap."""
    command = ["mmdebstrap", f"--variant={variant}", f"--include={','.join(packages)}"]
    command += [f"--dpkgopt=path-exclude={pattern}" for pattern in _NOT_WANTED]
    command += ["--aptopt=Acquire::Check-Valid-Until false", suite, str(root), mirror()]
    run(command, log, f"cannot make a root of {suite}'s packages")


def install_whole(root: Path) -> None:
    """Let packages that a root installs from now on bring all of their files, and dpkg wait for no disk."""
    settings = root / "etc" / "dpkg" / "dpkg.cfg.d"
    for excludes in settings.glob("*mmdebstrap"):
        excludes.unlink()
    (settings / "scratch").write_text("force-unsafe-io\n")


def run(command: list[str], log: Path, what: str) -> None:
    """Run a program with its output in `log`; ConfigError with the last lines if it fails."""
    with log.open("ab") as file:
        code = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, check=False
        ).returncode
    if code:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-8:])
        raise ConfigError(f"{what} ({command[0]} ended with {code}):\n{tail}")


def _make(image: Image, say: Say) -> None:
    log = image.directory / "log"
    say(f"dom0: {len(PACKAGES)} packages of Debian {SUITE}, and what they need (about a minute)")
    bootstrap(image.root, SUITE, PACKAGES, log)
    (image.root / "lab").mkdir()
    install_whole(image.root)
    stub = image.root / "lab-init"
    stub.write_text(_STUB)
    stub.chmod(0o755)
    boot = image.root / "boot"
    image.xen.write_bytes(gzip.decompress(_one(boot, "xen-*-amd64.gz").read_bytes()))
    shutil.copyfile(_one(boot, "vmlinuz-*"), image.kernel)
    image.guest_kernel.write_bytes(unpacked_kernel(image.kernel.read_bytes()))
    shutil.copyfile(_one(boot, "initrd.img-*"), image.initrd)
    say("a guest's initramfs")
    image.guest.write_bytes(initramfs.guest_base(image.root, _one(image.root / "usr/lib/modules", "*")))
    say("dom0's disk")
    run(
        ["mke2fs", "-q", "-t", "ext4", "-d", str(image.root), str(image.disk), _DISK],
        log,
        "cannot make the disk",
    )


def _one(directory: Path, pattern: str) -> Path:
    found = sorted(directory.glob(pattern))
    if len(found) != 1:
        raise ConfigError(f"{len(found)} files are called {pattern} in the image's {directory.name}")
    return found[0]


def unpacked_kernel(packed: bytes) -> bytes:
    """The ELF file in an xz-packed bzImage, else the input. libxl unpacks it too, but slowly under emulation."""
    at = packed.find(b"\xfd7zXZ\0")
    if at < 0:
        return packed
    elf = lzma.LZMADecompressor().decompress(packed[at:])
    return elf if elf.startswith(b"\x7fELF") else packed


def old_kernel(say: Say) -> tuple[Path, Path]:
    """The older kernel and a guest base with its modules: (vmlinux, initramfs)."""
    image = build(say)
    place = cache() / f"{key()}-{OLD_SUITE}"
    if not place.exists():
        say(f"the kernel of Debian {OLD_SUITE}")
        with tempfile.TemporaryDirectory(dir=cache(), prefix="new-") as temporary:
            made, root = Path(temporary) / "made", Path(temporary) / "root"
            made.mkdir()
            log = Path(temporary) / "log"
            bootstrap(root, OLD_SUITE, ("linux-image-amd64",), log, variant="extract")
            packed = _one(root / "boot", "vmlinuz-*").read_bytes()
            (made / "vmlinux").write_bytes(unpacked_kernel(packed))
            release = _one(root / "lib/modules", "*")
            kmod = initramfs.inside(
                image.root, "/usr/bin/kmod"
            )  # kmod acts as depmod when it is called by that name
            depmod = [*initramfs.loader(image.root), "--argv0", "depmod", str(kmod)]
            run([*depmod, "-b", str(root), release.name], log, "cannot list the old kernel's modules")
            (made / "guest.cpio.gz").write_bytes(initramfs.guest_base(image.root, release))
            move_into_cache(made, place)
    return place / "vmlinux", place / "guest.cpio.gz"
