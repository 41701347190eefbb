# SPDX-License-Identifier: Apache-2.0
"""scripts/need.sh with the test's own lists: missing packages give one line, before anything runs."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

NEED = Path(__file__).parents[1] / "scripts" / "need.sh"
LIST = """# no command: no-such-package-0
build: no-such-package-1 no-such-package-2=no/such/header.h
demo: +build no-such-package-3=no-such-program
test: +demo
good: coreutils=ls
"""
TOOLS = ("sh", "sed", "sort", "dirname", "id", "mktemp", "rm", "ls", "gcc", "tail")


@pytest.fixture
def need() -> Iterator[Path]:
    """The script beside a list that names packages which do not exist, readable by every user."""
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        directory.chmod(0o755)
        (directory / "packages.txt").write_text(LIST)
        yield Path(shutil.copy(NEED, directory))


def run(need: Path, *commands: str, user: int | None = None, **environment: str) -> tuple[int, str]:
    done = subprocess.run(
        ["/bin/sh", need, *commands],
        env={"PATH": os.environ["PATH"], "PYTHON": sys.executable} | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        user=user,
        cwd="/",
    )
    return done.returncode, done.stdout + done.stderr


def assert_names_all(code: int, output: str) -> None:
    assert (code, output.count("\n")) == (1, 1), output
    for number in range(4):
        assert (f"no-such-package-{number}" in output) is (number != 0), output


def test_all_missing_packages_are_one_line(need: Path) -> None:
    assert_names_all(*run(need, "test", INSTALL="no"))


def test_without_root_nothing_is_installed(need: Path) -> None:
    assert_names_all(*run(need, "test", user=65534 if os.geteuid() == 0 else None))


def test_programs_and_headers_are_looked_for_where_there_is_no_dpkg(need: Path, tmp_path: Path) -> None:
    path = tmp_path / "bin"
    path.mkdir()
    for tool in TOOLS:
        (path / tool).symlink_to(str(shutil.which(tool)))
    assert_names_all(*run(need, "test", PATH=str(path)))
    assert run(need, "good", PATH=str(path)) == (0, "")


def test_nothing_is_said_where_nothing_is_missing(need: Path) -> None:
    assert run(need, "good", INSTALL="no") == (0, "")


def test_an_old_python_is_one_line(need: Path, tmp_path: Path) -> None:
    old = tmp_path / "old-python"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    code, output = run(need, "good", PYTHON=str(old))
    assert (code, output.count("\n")) == (1, 1)
    assert "older than Python 3.11" in output


def test_every_command_of_make_has_its_list() -> None:
    lists = {
        line.partition(":")[0]: line.partition(":")[2].split()
        for line in (NEED.parent / "packages.txt").read_text().splitlines()
        if line and not line.startswith("#")
    }
    assert set(lists) == {"build", "demo", "test", "bench", "lab", "fresh", "deb", "ovn", "wheels"}
    assert {word[1:] for words in lists.values() for word in words if word.startswith("+")} <= set(lists)
