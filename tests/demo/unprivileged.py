# SPDX-License-Identifier: Apache-2.0
"""Runs a command as the user nobody, with netback where that user can read it, and perhaps without user namespaces.

Run as root: unprivileged.py STAGE yes|no SOURCE LIBRARY COMMAND... Every user may search the directory STAGE; `no`
forbids user namespaces to the command. Mounts and limits are in namespaces of this process: nothing has to be undone.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

NOBODY = 65534
CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
MS_REC, MS_PRIVATE, MS_BIND = 0x4000, 0x40000, 0x1000
libc = ctypes.CDLL(None, use_errno=True)


def check(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def show(stage: Path, *trees: str) -> str:
    """Mount trees below the stage, because the user may not search the directories above them: their paths."""
    check(libc.unshare(CLONE_NEWNS))
    check(libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None))
    places = []
    for number, tree in enumerate(trees):
        place = stage / f"tree{number}"
        place.mkdir(exist_ok=True)
        check(libc.mount(tree.encode(), bytes(place), None, MS_BIND, None))
        places.append(str(place))
    return os.pathsep.join(places)


def forbid_user_namespaces() -> None:
    """Enter a user namespace with every id unchanged, in which none may be made (max_user_namespaces)."""
    ready, go = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ready[1])
        os.read(ready[0], 1)
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{os.getppid()}/{name}").write_text("0 0 100000")
        os.write(go[1], b"1")
        os._exit(0)
    check(libc.unshare(CLONE_NEWUSER))
    os.write(ready[1], b"1")
    os.read(go[0], 1)
    os.waitpid(child, 0)
    Path("/proc/sys/user/max_user_namespaces").write_text("0")


def main() -> None:
    stage, allowed, source, library, *command = sys.argv[1:]
    os.environ["PYTHONPATH"] = show(Path(stage), source, library)
    if allowed == "no":
        forbid_user_namespaces()
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    os.execv(command[0], command)


main()
