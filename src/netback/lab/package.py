# SPDX-License-Identifier: Apache-2.0
"""Builds netback's Debian package of a checkout, for dom0 and for `make deb`, in a root that has what the build needs.

The root, C code, objects and packages are cached: a build compiles changed modules alone, and a checkout without
changes is not built again.
"""

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import netback
from netback.errors import ConfigError
from netback.lab import chroot
from netback.lab.image import SUITE, Say, bootstrap, cache, check_programs, move_into_cache, run

SOURCES = (
    *("ARCHITECTURE.md", "CHANGELOG.md", "LICENSE", "README.md", "SECURITY.md"),
    *("debian", "docs", "examples", "pyproject.toml", "scripts/manual.py", "setup.py", "src"),
)
"""What of a checkout the package is made of."""
TOOLS = ("build-essential", "ccache", "lintian")
"""What the root has beside debian/control's Build-Depends."""
PLACE = "build"
"""The directory in the root that a build may write to: the sources are below it, and what is built comes there."""
_CACHE = "var/cache/netback"
_BUILT = ("__pycache__", ".egg-info")
_KEPT = 8
"""Packages in the cache."""
_BUILD = """
PATH=/usr/lib/ccache:$PATH
export DEB_BUILD_OPTIONS="parallel=$(nproc) noautodbgsym" DEB_CFLAGS_APPEND=-g0
cd "$1"; shift
exec dpkg-buildpackage -us -uc "$@"
"""


def checkout() -> Path | None:
    """The checkout that this netback runs from; None if it was installed elsewhere, without debian/."""
    root = Path(netback.__file__).parents[2]
    return root if (root / "debian" / "control").exists() else None


def package(source: Path, say: Say) -> Path:
    """The package of a checkout with its changes. ConfigError with the build's last lines: it failed."""
    place = kept(source)
    if not place.exists():
        if os.geteuid() != 0:
            raise ConfigError("netback's package must be built as root: run this once with sudo -E")
        root = builder(source, say)
        say("netback's Debian package")
        with tempfile.TemporaryDirectory(dir=cache(), prefix="new-") as scratch:
            made = Path(scratch)
            _copy(source, made / "netback")
            build(root, made, made / "log", "--build=binary")
            keep(made, place)
    return next(place.glob("*.deb"))


def build(root: Path, place: Path, log: Path, *options: str) -> None:
    """Run dpkg-buildpackage on `place`/netback, which leaves its files in `place`."""
    command = [*inside(root, place), "sh", "-euc", _BUILD, "sh", f"/{PLACE}/netback", *options]
    run(command, log, "cannot build netback's package")


def inside(root: Path, place: Path) -> list[str]:
    """The command, but for the words to run, that runs them in the builder's root with `place` as /build."""
    made = cache() / "compiled"
    made.mkdir(exist_ok=True)
    environment = {
        "CCACHE_DIR": f"/{_CACHE}/ccache",
        "CCACHE_MAXSIZE": "200M",
        "CYTHON_CACHE_DIR": f"/{_CACHE}/cython",
        "HOME": "/tmp",
    }
    return chroot.read_only(root, environment, {PLACE: place, _CACHE: made})


def keep(made: Path, place: Path) -> None:
    """Put the package among the files in `made` into the cache as `place`, and remove the oldest ones there."""
    place.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache(), prefix="new-") as scratch:
        only = Path(scratch) / "package"
        only.mkdir()
        (file,) = made.glob("*.deb")
        shutil.copy2(file, only)
        move_into_cache(only, place)
    for old in sorted(place.parent.iterdir(), key=lambda path: -path.stat().st_mtime)[_KEPT:]:
        shutil.rmtree(old, ignore_errors=True)


def kept(source: Path) -> Path:
    """The place in the cache of the package of a checkout. A digest of everything that it is made of names it."""
    found = hashlib.sha256(repr((_root_key(source), _BUILD)).encode())
    for path in _files(source):
        executable = path.stat().st_mode & 0o111
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        found.update(f"{path.relative_to(source)} {executable} {content}\n".encode())
    return cache() / "packages" / found.hexdigest()[:16]


def _files(source: Path) -> Iterator[Path]:
    """The files of the checkout that the package is made of, without what a build in the checkout leaves there."""
    for name in SOURCES:
        top = source / name
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            built = path.suffix == ".so" or any(part.endswith(_BUILT) for part in path.parts)
            if path.is_file() and not built:
                yield path


def _copy(source: Path, tree: Path) -> None:
    for path in _files(source):
        target = tree / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)


def build_depends(control: str) -> list[str]:
    """The names in Build-Depends of debian/control."""
    (field,) = re.findall(r"^Build-Depends:(.*\n(?: .*\n)*)", control, re.MULTILINE)
    return sorted(set(re.findall(r"(?:^|,)\s*([a-z0-9][a-z0-9+.-]+)", field)))


def _root_key(source: Path) -> str:
    made_of = (SUITE, TOOLS, _CACHE, build_depends((source / "debian" / "control").read_text()))
    return hashlib.sha256(repr(made_of).encode()).hexdigest()[:16]


def builder(source: Path, say: Say) -> Path:
    """A root with all that builds the package of a checkout, made now if the cache lacks it; for root."""
    check_programs()
    root = cache() / f"builder-{_root_key(source)}"
    if not root.exists():
        if os.geteuid() != 0:
            raise ConfigError(
                "what builds netback's package must be installed as root: run this once with sudo -E"
            )
        say(f"what builds netback's package on Debian {SUITE} (about a minute)")
        cache().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache(), prefix="new-") as scratch:
            made = Path(scratch) / "root"
            packages = (*build_depends((source / "debian" / "control").read_text()), *TOOLS)
            bootstrap(made, SUITE, packages, Path(scratch) / "log")
            for name in (PLACE, _CACHE):
                (made / name).mkdir()
            move_into_cache(made, root)
    return root


def with_version(file: Path, version: str, made: Path) -> None:
    """Write the same package as another version."""
    with tempfile.TemporaryDirectory() as scratch:
        tree, log = Path(scratch) / "tree", Path(scratch) / "log"
        what = f"cannot make {version} of {file.name}"
        run(["dpkg-deb", "--raw-extract", str(file), str(tree)], log, what)
        control = tree / "DEBIAN" / "control"
        lines = re.sub(r"^Version: .*", f"Version: {version}", control.read_text(), flags=re.MULTILINE)
        control.write_text(lines)
        run(["dpkg-deb", "-Znone", "--root-owner-group", "--build", str(tree), str(made)], log, what)
