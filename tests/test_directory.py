# SPDX-License-Identifier: Apache-2.0
"""Trust in directories: a directory that another user owns or may write to is refused, and no link is followed."""

import os
import socket
import stat
import threading
from pathlib import Path

import pytest

from netback.directory import MAX_SOCKET_PATH, Directory, check_socket_path
from netback.errors import ConfigError

NOBODY = 65534


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run"


def test_a_missing_directory_is_made_private_and_removed_again(path: Path) -> None:
    before = os.umask(0)
    try:
        with Directory.open(path / "deep"):
            assert stat.S_IMODE((path / "deep").stat().st_mode) == 0o700
            assert stat.S_IMODE(path.stat().st_mode) == 0o755, "not even with this umask may others write"
    finally:
        os.umask(before)
    assert not (path / "deep").exists()


def test_a_directory_that_was_there_stays(path: Path) -> None:
    path.mkdir(0o755)
    with Directory.open(path) as directory:
        assert directory.names() == []
    assert path.is_dir()


def test_what_others_put_there_stays(path: Path) -> None:
    with Directory.open(path):
        (path / "journal").touch()
    assert (path / "journal").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_another_user_s_directory_is_refused(path: Path) -> None:
    path.mkdir(0o700)
    os.chown(path, NOBODY, NOBODY)
    with pytest.raises(ConfigError, match=f"{path}: belongs to user {NOBODY}, not to user 0"):
        Directory.open(path)


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777, 0o1777])
def test_a_directory_that_others_may_write_to_is_refused(path: Path, mode: int) -> None:
    path.mkdir()
    path.chmod(mode)
    with pytest.raises(ConfigError, match=f"other users may write to it .mode {mode:04o}"):
        Directory.open(path)


def test_a_link_to_a_directory_is_refused(path: Path, tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir(0o700)
    path.symlink_to(real)
    with pytest.raises(ConfigError, match="a symbolic link"):
        Directory.open(path)
    with Directory.open(real) as directory:
        (real / "journal").symlink_to(tmp_path)
        with pytest.raises(ConfigError, match="a symbolic link"):
            directory.subdirectory("journal")


@pytest.mark.parametrize("below", ["", "more"])
def test_a_file_is_refused(path: Path, below: str) -> None:
    path.touch()
    with pytest.raises(ConfigError, match=r"ENOTDIR"):
        Directory.open(path / below)


def test_a_subdirectory_is_private_too(path: Path) -> None:
    with Directory.open(path) as directory:
        directory.subdirectory("journal").close()
        directory.subdirectory("journal").close()
        assert stat.S_IMODE((path / "journal").stat().st_mode) == 0o700
        (path / "journal").chmod(0o770)
        with pytest.raises(ConfigError, match="other users may write"):
            directory.subdirectory("journal")


def test_links_in_it_are_not_followed(path: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("kept")
    with Directory.open(path) as directory:
        for name in ("lock", "control.sock"):
            (path / name).symlink_to(victim)
        with pytest.raises(ConfigError, match="symbolic link"):
            directory.try_lock("lock")
        with directory.listen("control.sock"):
            assert victim.read_text() == "kept"
            assert (path / "control.sock").is_socket()
        directory.unlink("control.sock")
        directory.unlink("control.sock")
    assert victim.read_text() == "kept"


def test_what_is_no_file_is_not_opened(path: Path) -> None:
    with Directory.open(path) as directory:
        os.mkfifo(path / "lock")
        with pytest.raises(ConfigError, match="not a regular file"):
            directory.try_lock("lock")


def test_a_lock_has_one_holder(path: Path) -> None:
    with Directory.open(path) as one, Directory.open(path) as two:
        held = one.try_lock("lock")
        assert held is not None
        assert two.try_lock("lock") is None
        one.unlink("lock")
        os.close(held)
        again = two.try_lock("lock")
        assert again is not None
        os.close(again)


def test_a_socket_is_never_open_to_others(path: Path) -> None:
    """Another thread keeps checking the mode, with a umask that would not restrict it."""
    seen: set[int] = set()
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            try:
                seen.add(stat.S_IMODE((path / "x.sock").lstat().st_mode))
            except FileNotFoundError:
                continue

    before = os.umask(0)
    try:
        with Directory.open(path) as directory:
            looking = threading.Thread(target=look)
            looking.start()
            for _ in range(200):
                directory.listen("x.sock", socket.SOCK_SEQPACKET).close()
            done.set()
            looking.join()
            directory.listen("x.sock").close()
            assert stat.S_IMODE((path / "x.sock").lstat().st_mode) == 0o600
    finally:
        done.set()
        os.umask(before)
    assert seen <= {0o600}


def test_a_directory_that_was_replaced_is_noticed(path: Path) -> None:
    with Directory.open(path) as directory:
        path.rename(path.with_name("elsewhere"))
        path.mkdir()
        with pytest.raises(ConfigError, match=r"x\.sock"):
            directory.listen("x.sock")
    assert path.is_dir(), "it is not the one that was made here"


def test_a_path_too_long_for_a_socket_is_one_clear_error(path: Path) -> None:
    fits = path / ("x" * (MAX_SOCKET_PATH - len(os.fsencode(path)) - 1))
    assert check_socket_path(fits) == fits
    with pytest.raises(ConfigError, match=r"108 bytes, and a UNIX socket's path has at most 107"):
        check_socket_path(fits.with_name(fits.name + "x"))
