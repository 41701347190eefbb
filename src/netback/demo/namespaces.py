# SPDX-License-Identifier: Apache-2.0
"""Namespaces without names, and processes that do not outlive their parent.

A namespace made here is held by nothing but processes: with the last one it is gone, and its links with it. Knows the
kernel's calls; what is done inside a namespace it does not know.
"""

import ctypes
import errno
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from netback.errors import PlatformError

CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: int) -> None:
    """A call of libc that says 0 or sets errno."""
    if getattr(_libc, name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def die_with(parent: int) -> None:
    """Have the kernel kill us when our parent ends, however it ends; for a child that is single-threaded still."""
    _call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before we asked
        os.kill(os.getpid(), signal.SIGKILL)


def dying_with_us() -> Callable[[], None]:
    """What a child of ours shall do before it becomes another program."""
    parent = os.getpid()
    return lambda: die_with(parent)


def enter_new(user: bool) -> None:
    """A network namespace of our own; in a user namespace of our own, where we are root, if `user`.

    PlatformError says which of them the kernel refused.
    """
    uid, gid = os.geteuid(), os.getegid()
    if user:
        _try("user namespaces are refused here", CLONE_NEWUSER)
        _map(uid, gid)
    _try("network namespaces are refused here", CLONE_NEWNET)


def _try(complaint: str, flags: int) -> None:
    try:
        _call("unshare", flags)
    except OSError as error:
        raise PlatformError(f"{complaint} ({_why(error)})") from error


def _why(error: OSError) -> str:
    """As a person would say it: what is full is no disk."""
    return "their limit is reached" if error.errno == errno.ENOSPC else os.strerror(error.errno or 0)


def _map(uid: int, gid: int) -> None:
    """Our own user and group become root, as far as this namespace goes."""
    try:
        with suppress(FileNotFoundError):  # before Linux 3.19
            Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    except OSError as error:
        raise PlatformError(f"user namespaces are refused here (uid_map: {error.strerror})") from error


def join(pid: int, user: bool) -> None:
    """Enter the namespaces that a process holds."""
    names = ["user", "net"] if user else ["net"]
    for name in names:
        fd = os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _call("setns", fd, 0)
        finally:
            os.close(fd)


def quiet_ipv6() -> None:
    """No autoconfiguration on the links of this namespace: its frames would be counted among ours."""
    for scope in ("default", "all"):
        with suppress(OSError):
            Path(f"/proc/sys/net/ipv6/conf/{scope}/disable_ipv6").write_text("1")
