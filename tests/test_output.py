# SPDX-License-Identifier: Apache-2.0
"""Files for the results of long work: found wanting before the work, and nothing of them left without a result."""

from __future__ import annotations

import os
import stat
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import pytest

from netback.errors import ConfigError
from netback.output import Write, private_output, public_output


class Output(Protocol):
    def __call__(self, path: Path, option: str) -> AbstractContextManager[Write]: ...


BOTH = pytest.mark.parametrize("output", [private_output, public_output])


@BOTH
def test_a_file_is_filled(output: Output, tmp_path: Path) -> None:
    path = tmp_path / "results"
    for data in (b"the first, which is longer", b"the second"):
        with output(path, "--out") as write:
            write(data)
        assert path.read_bytes() == data
    assert [*tmp_path.iterdir()] == [path]


@BOTH
def test_work_without_a_result_changes_nothing(output: Output, tmp_path: Path) -> None:
    older = tmp_path / "older"
    older.write_bytes(b"results")
    for path in (tmp_path / "new", older):
        with pytest.raises(KeyboardInterrupt), output(path, "--out"):
            raise KeyboardInterrupt
    assert [*tmp_path.iterdir()] == [older]
    assert older.read_bytes() == b"results"


@BOTH
@pytest.mark.parametrize(
    ("name", "reason"), [("none/results", "No such file or directory"), ("file/results", "Not a directory")]
)
def test_a_path_that_cannot_be_written_is_found_before_the_work(
    output: Output, tmp_path: Path, name: str, reason: str
) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / name
    with pytest.raises(ConfigError) as refused, output(path, "--out"):
        pytest.fail("the work began")
    assert str(refused.value) == f"--out {path}: cannot be written: {reason}"


def test_a_private_file_replaces_a_readable_one(tmp_path: Path) -> None:
    """A process that has the older file open reads nothing of the new one."""
    path = tmp_path / "results"
    path.write_bytes(b"older")
    path.chmod(0o644)
    with path.open("rb") as older, private_output(path, "--out") as write:
        write(b"secret")
        assert older.read() == b"older"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_bytes() == b"secret"


@pytest.mark.parametrize("target", ["other", "nowhere", "directory"])
def test_a_private_file_follows_no_link(tmp_path: Path, target: str) -> None:
    other, path = tmp_path / "other", tmp_path / "results"
    other.write_bytes(b"other")
    (tmp_path / "directory").mkdir()
    path.symlink_to(tmp_path / target)
    with (
        pytest.raises(ConfigError, match=r"--out .*results: is no regular file"),
        private_output(path, "--out"),
    ):
        pytest.fail("the work began")
    assert other.read_bytes() == b"other"
    assert path.is_symlink()


def test_a_public_file_may_be_a_pipe(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with public_output(path, "--out") as write:
            write(b"results")
        assert os.read(reader, 100) == b"results"
    finally:
        os.close(reader)


def test_a_file_that_cannot_be_filled_is_named() -> None:
    with (
        public_output(Path("/dev/full"), "--out") as write,
        pytest.raises(ConfigError, match=r"^--out /dev/full: cannot be written: No space left on device$"),
    ):
        write(b"results")
