# SPDX-License-Identifier: Apache-2.0
"""Unnamed network and user namespaces: the kernel removes one, and its links, with its last process."""

import ctypes
import errno
import os
from contextlib import suppress
from pathlib import Path

from netback.errors import PlatformError

CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)


def enter(new: bool = False, of: int = 0, user: bool = False) -> None:
    """Enter a `new` network namespace, or that of the process `of`, or stay in the current one.

    With `user` it belongs to a user namespace of the same kind, in which this process is root. PlatformError names the
    namespace that the kernel refuses to create.
    """
    if new:
        if user:
            _make_user_namespace()
        _unshare("network", CLONE_NEWNET)
        _disable_ipv6()
    elif of:
        for name in ("user", "net") if user else ("net",):
            with Path(f"/proc/{of}/ns/{name}").open() as file:
                _call("setns", file.fileno(), 0)


def _make_user_namespace() -> None:
    """Map this user and group to root in it (user_namespaces(7))."""
    uid, gid = os.geteuid(), os.getegid()
    _unshare("user", CLONE_NEWUSER)
    try:
        with suppress(FileNotFoundError):  # before Linux 3.19
            Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    except OSError as error:
        raise PlatformError(f"user namespaces are refused here (uid_map: {error.strerror})") from error


def _unshare(kind: str, flags: int) -> None:
    try:
        _call("unshare", flags)
    except OSError as error:
        full = error.errno == errno.ENOSPC  # the limit on namespaces, not a full disk
        why = "their limit is reached" if full else os.strerror(error.errno or 0)
        raise PlatformError(f"{kind} namespaces are refused here ({why})") from error


def _call(name: str, *arguments: int) -> None:
    if getattr(_libc, name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def _disable_ipv6() -> None:
    """Turn IPv6 off: otherwise the kernel's neighbour discovery adds to the frames that the demo counts."""
    for scope in ("default", "all"):
        with suppress(OSError):
            Path(f"/proc/sys/net/ipv6/conf/{scope}/disable_ipv6").write_text("1")
