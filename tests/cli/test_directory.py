# SPDX-License-Identifier: Apache-2.0
"""`--dir` refuses, in one line, a directory that another user owns or may write to, and a symbolic link."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.commands import run, running

COMMANDS = [
    ("run", "--net", "null"),
    ("emulate",),
    ("list",),
    ("attach", "1", "--net", "null"),
    ("detach", "1"),
    ("guest", "--net", "null"),
    ("doctor",),
]


def others_write(path: Path) -> None:
    path.mkdir()
    path.chmod(0o1777)


def another_users(path: Path) -> None:
    path.mkdir()
    os.chown(path, 65534, 65534)


def a_link(path: Path) -> None:
    path.with_name("elsewhere").mkdir(mode=0o700)
    path.symlink_to(path.with_name("elsewhere"))


def a_broken_link(path: Path) -> None:
    path.symlink_to(path.with_name("nothing"))


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
async def test_a_directory_that_others_can_write_to(tmp_path: Path, command: tuple[str, ...]) -> None:
    others_write(tmp_path / "d")
    code, out, err = await run(*command, "--dir", tmp_path / "d")
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith(f"netback: {tmp_path}/d: other users may write to it (mode 1777)")


@pytest.mark.skipif(os.geteuid() != 0, reason="makes another user's directory: needs root")
async def test_another_users_directory(tmp_path: Path) -> None:
    another_users(tmp_path / "d")
    code, _, err = await run("run", "--dir", tmp_path / "d")
    assert (code, err.count("\n")) == (2, 1)
    assert "belongs to user 65534" in err


@pytest.mark.parametrize("make", [a_link, a_broken_link])
async def test_a_link(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "d")
    for command in (("run",), ("list",)):
        code, _, err = await run(*command, "--dir", tmp_path / "d")
        assert (code, err.count("\n")) == (2, 1)
        assert "a symbolic link" in err


@pytest.mark.parametrize("name", ["journal", "backend-0.lock"])
async def test_a_link_inside(xen: Path, name: str) -> None:
    """Behind a link no file is removed, locked or written, even if it has the name of one of netback's files."""
    elsewhere = xen / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "vif-1-0").write_text("a letter")
    (xen / name).symlink_to(elsewhere if name == "journal" else elsewhere / "vif-1-0")
    code, _, err = await run("run", "--platform", "emulated", "--dir", xen)
    assert (code, err.count("\n")) == (2, 1), err
    assert str(xen / name) in err
    assert (elsewhere / "vif-1-0").read_text() == "a letter"


async def test_a_link_among_the_journals_is_removed_and_not_followed(xen: Path) -> None:
    letter = xen / "letter"
    letter.write_text("a letter")
    (xen / "journal").mkdir(mode=0o700)
    (xen / "journal" / "vif-1-0").symlink_to(letter)
    (xen / "journal" / "notes").write_text("not netback's")
    async with running("serving domain 0", "run", "--dir", xen):
        assert not (xen / "journal" / "vif-1-0").is_symlink()
        assert (xen / "journal" / "notes").exists()
    assert letter.read_text() == "a letter"
