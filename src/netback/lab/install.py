# SPDX-License-Identifier: Apache-2.0
"""Installs this checkout of netback for dom0's Python: native part compiled against dom0's headers, and dependencies.

The layout is what dom0 sees under /opt/netback: lib/ for Python, bin/netback.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import netback
from netback.dataplane import extensions
from netback.errors import ConfigError
from netback.lab import initramfs
from netback.lab.image import Image, Say, cache, move_into_cache, run

DEPENDENCIES = ("msgspec", "click", "rich", "pyroute2", "prometheus-client")
FOR_TESTS = ("pytest", "pytest-asyncio", "pytest-timeout", "hypothesis")
_MIB = 1 << 20
_WRAPPER = """#!/bin/sh
export PYTHONPATH=/opt/netback/lib PYTHONDONTWRITEBYTECODE=1
exec python3 -P -m netback "$@"
"""
_GENERATED = ("*.so", "*.c", "__pycache__")


def build(image: Image, directory: Path, say: Say) -> None:
    """Install into `directory`. Each lab has its own, since labs running at once may be of different checkouts."""
    package = Path(netback.__file__).parent
    python = _python(image)
    lib = directory / "lib"
    shutil.copytree(_dependencies(image, python, say), lib, copy_function=_link, dirs_exist_ok=True)
    shutil.copytree(package, lib / "netback", ignore=shutil.ignore_patterns(*_GENERATED))
    _native(image, package, lib / "netback" / "dataplane", python, say)
    _precompile(image, lib / "netback", python)
    wrapper = directory / "bin" / "netback"
    wrapper.parent.mkdir()
    wrapper.write_text(_WRAPPER)
    wrapper.chmod(0o755)


def _link(source: str, target: str) -> None:
    """Hard-link a file where possible; nothing writes to these files."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def make_disk(tree: Path, disk: Path) -> None:
    """Make an ext4 image of the tree."""
    size = sum(path.stat().st_size + 4096 for path in tree.rglob("*") if path.is_file())
    mib = max(64, size * 3 // 2 // _MIB)
    command = ["mke2fs", "-q", "-t", "ext4", "-L", "netback", "-d", str(tree), str(disk), f"{mib}M"]
    run(command, disk.parent / "mke2fs.log", "cannot make netback's disk")


def _python(image: Image) -> str:
    """dom0's Python version, for example "3.13"."""
    found = [path.name.removeprefix("python") for path in (image.root / "usr/include").glob("python3.*")]
    if len(found) != 1:
        raise ConfigError("dom0 has no Python headers")
    return found[0]


def _dependencies(image: Image, python: str, say: Say) -> Path:
    """The directory of the packages that netback and its tests need, fetched once per image and list."""
    wanted = (*DEPENDENCIES, *FOR_TESTS)
    made = image.directory / f"packages-{hashlib.sha256(repr(wanted).encode()).hexdigest()[:8]}"
    if made.exists():
        return made
    say(f"Python packages for dom0's Python {python}")
    with tempfile.TemporaryDirectory(dir=image.directory) as place:
        packages = Path(place) / "packages"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        command += [
            "--target",
            str(packages),
            "--only-binary=:all:",
            "--implementation",
            "cp",
            "--python-version",
            python,
        ]
        run([*command, *wanted], image.directory / "log", "cannot fetch Python packages")
        _precompile(image, packages, python)
        move_into_cache(packages, made)
    return made


def _precompile(image: Image, directory: Path, python: str) -> None:
    """Compile byte code with dom0's Python, run on this machine: dom0 would compile at each start, slowly."""
    usr = image.root / "usr"
    loader = initramfs.inside(image.root, "/lib64/ld-linux-x86-64.so.2")
    command = [
        str(loader),
        "--library-path",
        str(usr / "lib/x86_64-linux-gnu"),
        str(usr / "bin" / f"python{python}"),
    ]
    command += [
        "-m",
        "compileall",
        "-q",
        "--invalidation-mode",
        "unchecked-hash",
        "-s",
        str(directory.parent),
    ]
    command += [str(directory)]
    environment = os.environ | {"PYTHONHOME": str(usr), "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("PYTHONPATH", None)
    subprocess.run(command, env=environment, capture_output=True, check=False)  # a failure costs only speed


def _native(image: Image, package: Path, plane: Path, python: str, say: Say) -> None:
    """Translate and compile each changed module. A digest of its sources names the cached result."""
    headers = sorted(package.glob("dataplane/**/*.pxd"))
    common = b"".join(path.read_bytes() for path in [*headers, Path(extensions.__file__)])
    kept = cache() / "native" / python
    kept.mkdir(parents=True, exist_ok=True)
    wanted = {
        source: kept / f"{hashlib.sha256(common + source.read_bytes()).hexdigest()[:20]}.so"
        for source in extensions.sources(package / "dataplane")
    }
    missing = {source: made for source, made in wanted.items() if not made.exists()}
    if missing:
        say(f"netback's native part for Python {python}: {len(missing)} modules")
        with tempfile.TemporaryDirectory(dir=kept) as place, ThreadPoolExecutor(os.cpu_count()) as pool:
            jobs = [
                pool.submit(_compile, image, package, source, made, python, Path(place))
                for source, made in missing.items()
            ]
            for job in jobs:
                job.result()
    tag = f"cpython-{python.replace('.', '')}-x86_64-linux-gnu.so"
    for source, made in wanted.items():
        shutil.copyfile(made, plane / source.relative_to(package / "dataplane").with_suffix(f".{tag}"))


def _compile(image: Image, package: Path, source: Path, made: Path, python: str, place: Path) -> None:
    plane = package / "dataplane"
    name = "-".join(source.relative_to(plane).with_suffix("").parts)  # two modules may be called queue
    translated, compiled = place / f"{name}.c", place / f"{name}.so"
    directives = ",".join(
        f"{name}={value}" for name, value in extensions.DIRECTIVES.items() if name != "language_level"
    )
    cython = [sys.executable, "-m", "cython", "-3", "-X", directives, "-o", str(translated), str(source)]
    _checked(cython, package.parent, f"cannot translate {source.name}: is Cython installed?")
    include = image.root / "usr/include"
    multiarch = (
        place / "include" / "x86_64-linux-gnu"
    )  # Python's headers alone: the C library's are this machine's
    multiarch.mkdir(parents=True, exist_ok=True)
    link = multiarch / f"python{python}"
    with suppress(FileExistsError):
        link.symlink_to(include / "x86_64-linux-gnu" / f"python{python}")
    gcc = ["gcc", "-shared", "-fPIC", *extensions.FLAGS, "-I", str(plane), "-I", str(place / "include")]
    gcc += ["-I", str(include / f"python{python}"), str(translated), "-o", str(compiled)]
    _checked(gcc, package.parent, f"cannot compile {source.name}")
    compiled.replace(made)


def _checked(command: list[str], directory: Path, what: str) -> None:
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigError(f"{what}\n{(done.stdout + done.stderr)[-2000:]}")
