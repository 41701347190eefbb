# SPDX-License-Identifier: Apache-2.0
"""netback's package in the lab: which files it is made of, and what is made of an installation."""

import subprocess
from pathlib import Path

import pytest

from netback.errors import ConfigError
from netback.lab import initramfs, install, package


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "checkout"
    for name in package.SOURCES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    for name in ("src", "debian"):
        (root / name).unlink()
    for name, text in {
        "debian/control": "Source: x\nBuild-Depends:\n a,\n b-c (>= 1),\n b-c (<< 2),\n\nPackage: x\n",
        "src/x/module.py": "1",
        "tests/test.py": "",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("src/x/module.py", False),
        ("src/x/new.py", False),
        ("README.md", False),
        ("tests/test.py", True),
        ("src/x/module.cpython-311-x86_64-linux-gnu.so", True),
        ("src/x/__pycache__/module.pyc", True),
        ("src/netback.egg-info/PKG-INFO", True),
    ],
)
def test_what_a_package_is_made_of_names_it(checkout: Path, name: str, same: bool) -> None:
    before = package.kept(checkout)
    assert package.kept(checkout) == before
    (checkout / name).parent.mkdir(exist_ok=True)
    (checkout / name).write_text("changed")
    assert (package.kept(checkout) == before) is same


def test_a_program_that_becomes_executable_is_a_change(checkout: Path) -> None:
    before = package.kept(checkout)
    (checkout / "src/x/module.py").chmod(0o755)
    assert package.kept(checkout) != before


def installed(tmp_path: Path, native: str) -> Path:
    """An installation with one module of the native part."""
    root = tmp_path / "site" / "netback"
    (root / "__pycache__").mkdir(parents=True)
    for name in ("__init__.py", native, "__pycache__/__init__.cpython-311.pyc"):
        (root / name).write_bytes(b"")
    return root


def test_a_wheel_becomes_a_package_and_a_higher_version_of_it(tmp_path: Path) -> None:
    medium = install.Medium(tmp_path)
    medium.package.parent.mkdir()
    install.pack(installed(tmp_path, "ring.abi3.so"), "3.13", medium)
    made = tmp_path / "higher.deb"
    package.with_version(medium.package, "9+lab1", made)
    shown = subprocess.run(
        ["dpkg-deb", "--field", made, "Version"], capture_output=True, text=True, check=True
    )
    assert shown.stdout == "9+lab1\n"
    listed = subprocess.run(
        ["dpkg-deb", "--contents", made], capture_output=True, text=True, check=True
    ).stdout
    files = {line.split()[5]: line.split()[:2] for line in listed.splitlines()}
    assert files["./usr/bin/netback"] == ["-rwxr-xr-x", "root/root"]
    assert f"./{initramfs.PACKAGES}/netback/ring.abi3.so" in files
    assert "./usr/lib/systemd/system/netback.service" in files
    assert not any("__pycache__" in name for name in files)


def test_an_installation_for_another_python_is_one_line(tmp_path: Path) -> None:
    root = installed(tmp_path, "ring.cpython-311-x86_64-linux-gnu.so")
    with pytest.raises(ConfigError, match=r"another Python than dom0's 3\.13: run the lab from a checkout"):
        install.pack(root, "3.13", install.Medium(tmp_path))
