# SPDX-License-Identifier: Apache-2.0
"""Builds a guest's initramfs from files of dom0's root, in cpio's newc format (kernel: initramfs-buffer-format)."""

import gzip
import lzma
import re
import stat
import subprocess
from collections.abc import Iterable
from pathlib import Path

_FIELDS = 13
_MODULE_SUFFIX = re.compile(r"\.ko(\.xz)?$")

PROGRAMS = ("iperf3", "ping", "ethtool", "ip", "bridge", "tcpdump")
MODULES = (
    "xen-netfront",
    "8021q",
    "vxlan",
    "xen-evtchn",
    "xen-gntdev",
    "xen-gntalloc",
    "xen-privcmd",
    "xenfs",
    "tun",
)


class Archive:
    """An archive of files by their names in the guest. `data` archives can be concatenated."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._seen: set[str] = set()
        self._inode = 0

    def file(self, name: str, content: bytes, mode: int = 0o644, mtime: int = 0) -> None:
        self._directories(name)
        self._entry(name, stat.S_IFREG | mode, content, mtime)

    def link(self, name: str, target: str) -> None:
        self._directories(name)
        self._entry(name, stat.S_IFLNK | 0o777, target.encode())

    def copy(self, root: Path, name: str) -> None:
        """Add a file of a root by its absolute name; links are followed within that root."""
        if name.lstrip("/") not in self._seen:
            path = inside(root, name)
            found = path.stat()  # Python checks byte code against the source's time
            self.file(name, path.read_bytes(), stat.S_IMODE(found.st_mode), int(found.st_mtime))

    def data(self) -> bytes:
        """The archive, compressed and padded to 4 bytes, where the kernel looks for the next one."""
        self._entry("TRAILER!!!", 0, b"")
        packed = gzip.compress(b"".join(self._parts), 1)
        return packed + bytes(-len(packed) % 4)

    def _directories(self, name: str) -> None:
        parents = Path(name.lstrip("/")).parents
        for parent in reversed(parents):
            if str(parent) not in (".", *self._seen):
                self._entry(str(parent), stat.S_IFDIR | 0o755, b"")

    def _entry(self, name: str, mode: int, content: bytes, mtime: int = 0) -> None:
        name = name.lstrip("/")
        self._seen.add(name)
        self._inode += 1
        path = name.encode() + b"\0"
        fields = [self._inode, mode, 0, 0, 1, mtime, len(content), 0, 0, 0, 0, len(path), 0]
        assert len(fields) == _FIELDS
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + path
        self._parts += [head, bytes(-len(head) % 4), content, bytes(-len(content) % 4)]


def inside(root: Path, name: str) -> Path:
    """Resolve `name` in a root; absolute links stay within the root."""
    path = root / name.lstrip("/")
    for _ in range(16):
        for parent in [*reversed(path.relative_to(root).parents), path.relative_to(root)]:
            at = root / parent
            if at.is_symlink():
                target = at.readlink()
                base = root / str(target).lstrip("/") if target.is_absolute() else at.parent / target
                path = base / path.relative_to(at)
                break
        else:
            return path
    raise OSError(f"{name}: too many links")


def loader(root: Path) -> list[str]:
    """The command that starts a root's ld.so with that root's libraries; options and a program follow."""
    paths = [str(root / "usr/lib/x86_64-linux-gnu"), str(root / "usr/lib")]
    return [str(inside(root, "/lib64/ld-linux-x86-64.so.2")), "--library-path", ":".join(paths)]


def libraries(root: Path, files: Iterable[Path]) -> set[str]:
    """The shared libraries that programs of a root need, as that root's loader resolves them."""
    found: set[str] = set()
    for file in files:
        command = [*loader(root), "--list", str(file)]
        listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        for path in re.findall(r"=> (\S+)", listed):
            if Path(path).is_relative_to(root):
                found.add("/" + str(Path(path).relative_to(root)))
    return found


def programs(archive: Archive, root: Path, names: Iterable[str]) -> None:
    """Add programs by bare or absolute name, with the libraries they load."""
    found = [_which(root, name) for name in names]
    for name in found:
        archive.copy(root, name)
    for name in libraries(root, [inside(root, name) for name in found]):
        archive.copy(root, name)
    archive.file(
        "/lib64/ld-linux-x86-64.so.2", inside(root, "/lib64/ld-linux-x86-64.so.2").read_bytes(), 0o755
    )


def _which(root: Path, name: str) -> str:
    places = [name] if name.startswith("/") else [f"/usr/{where}/{name}" for where in ("bin", "sbin")]
    for place in places:
        if inside(root, place).exists():
            return place
    raise FileNotFoundError(f"dom0's root has no {name}")


def closure(dependencies: str, wanted: Iterable[str]) -> dict[str, list[str]]:
    """The files of the wanted modules and their dependencies, from the text of modules.dep."""
    table = {}
    for line in dependencies.splitlines():
        path, _, needs = line.partition(":")
        table[path] = needs.split()
    by_name = {module_name(path): path for path in table}
    chosen: dict[str, list[str]] = {}
    left = [by_name[name.replace("-", "_")] for name in wanted if name.replace("-", "_") in by_name]
    while left:
        path = left.pop()
        if path not in chosen:
            chosen[path] = table[path]
            left += table[path]
    return chosen


def module_name(path: str) -> str:
    return _MODULE_SUFFIX.sub("", Path(path).name).replace("-", "_")


def modules(archive: Archive, directory: Path, wanted: Iterable[str] = MODULES) -> None:
    """Add kernel modules of lib/modules/RELEASE, unpacked, with a modules.dep for them."""
    place = f"/lib/modules/{directory.name}"
    chosen = closure((directory / "modules.dep").read_text(), wanted)
    lines = []
    for path, needs in chosen.items():
        content = (directory / path).read_bytes()
        archive.file(f"{place}/{_plain(path)}", lzma.decompress(content) if path.endswith(".xz") else content)
        lines.append(f"{_plain(path)}: {' '.join(map(_plain, needs))}".rstrip() + "\n")
    archive.file(f"{place}/modules.dep", "".join(sorted(lines)).encode())


def _plain(path: str) -> str:
    return path.removesuffix(".xz")


def guest_base(root: Path, release: Path) -> bytes:
    """What every Linux guest has besides its first process: a shell, programs and one kernel's modules."""
    archive = Archive()
    archive.file("/bin/busybox", inside(root, "/usr/bin/busybox").read_bytes(), 0o755)
    programs(archive, root, PROGRAMS)
    archive.copy(root, "/usr/lib/x86_64-linux-gnu/libgcc_s.so.1")  # iperf3 loads it when its threads end
    modules(archive, release)
    return archive.data()


PACKAGES = "usr/lib/python3/dist-packages"
"""Where Debian's packages have Python's."""
_NOT_FOR_GUESTS = {
    *("test", "idlelib", "tkinter", "ensurepip", "turtledemo", "pydoc_data"),
    *("pytest", "_pytest", "hypothesis", "pygments"),
}
"""Parts of Python and of packages that `netback guest` does not need. The guest's memory holds the whole archive."""


def guest_python(root: Path, package: Path) -> bytes:
    """The archive that adds Python, what netback imports, and the files of netback's package to a guest's base."""
    archive = Archive()
    interpreter = next(path for path in (root / "usr/bin").glob("python3.*") if path.name[8:].isdecimal())
    library = root / "usr/lib" / interpreter.name
    programs(archive, root, [f"/usr/bin/{interpreter.name}"])
    trees = root / PACKAGES, package / PACKAGES
    native = [path for tree in (library / "lib-dynload", *trees) for path in tree.rglob("*.so")]
    for name in libraries(root, native):
        archive.copy(root, name)
    archive.link("/usr/bin/python3", interpreter.name)
    _copy_tree(archive, library, f"/usr/lib/{interpreter.name}")
    for tree in trees:
        _copy_tree(archive, tree, f"/{PACKAGES}")
    _copy_tree(archive, package / "usr/bin", "/usr/bin")
    return archive.data()


def _copy_tree(archive: Archive, directory: Path, place: str) -> None:
    """The files that Python reads in a directory, and programs."""
    for path in sorted(directory.rglob("*")):
        inner = path.relative_to(directory)
        wanted = path.suffix in (".py", ".pyc", ".so") or directory.name == "bin"
        if wanted and path.is_file() and not _NOT_FOR_GUESTS.intersection(inner.parts):
            found = path.stat()
            mode, mtime = stat.S_IMODE(found.st_mode), int(found.st_mtime)
            archive.file(f"{place}/{inner}", path.read_bytes(), mode, mtime)


def guest_init(script: bytes) -> bytes:
    """The archive of the first process alone, so that a change to it rebuilds nothing else."""
    archive = Archive()
    archive.file("/init", script, 0o755)
    return archive.data()
