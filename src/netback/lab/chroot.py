# SPDX-License-Identifier: Apache-2.0
"""Runs commands in a root directory, in mount and pid namespaces: each process and each mount ends with them. For
root.
"""

import shlex
from collections.abc import Mapping
from pathlib import Path

DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "net/tun")

_ENTER = f"""
set -eu
cd "$1"; shift
mount --bind . . && cd "$PWD"
{{more}}
mount -t proc proc proc
mount -t tmpfs -o mode=755 dev dev
mkdir dev/net dev/pts dev/shm
for node in {" ".join(DEVICES)}; do
  test -e /dev/$node || continue
  touch dev/$node
  mount --bind /dev/$node dev/$node
done
mount -t tmpfs -o mode=1777 shm dev/shm
mount -t devpts -o newinstance,mode=620,ptmxmode=666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
ln -s /proc/self/fd/0 dev/stdin
ln -s /proc/self/fd/1 dev/stdout
ln -s /proc/self/fd/2 dev/stderr
pivot_root . .
umount -l .
exec /usr/sbin/chroot . /usr/bin/env -i "$@"
"""
"""The kernel refuses user namespaces to a process whose root is not its mount namespace's root (user_namespaces(7)):
hence pivot_root, since netback's tests need them."""
_NAMESPACES = ("unshare", "--mount", "--pid", "--fork", "--kill-child")


def writable(root: Path, environment: Mapping[str, str]) -> list[str]:
    """The command, but for the words to run, that runs them in a root which they may change."""
    return _entry(root, "mount -t sysfs sysfs sys", environment)


def read_only(root: Path, environment: Mapping[str, str], shared: Mapping[str, Path]) -> list[str]:
    """The same in a root that they cannot change, with directories of this machine that they can.

    `shared` has them by their places in the root, where a directory must exist.
    """
    binds = [f"mount --bind {shlex.quote(str(path))} ./{place}" for place, path in shared.items()]
    lines = [*binds, 'mount -o remount,bind,ro "$PWD"', "mount -t tmpfs -o mode=1777 tmp tmp"]
    return _entry(root, "\n".join(lines), environment)


def unchanged(root: Path, environment: Mapping[str, str], shared: Mapping[str, Path]) -> list[str]:
    """The same in a root that only seems to change: all changes are in its /mnt, as files, until the command's end."""
    lines = [
        "mount -t tmpfs tmpfs mnt",
        "mkdir mnt/upper mnt/work mnt/merged",
        "mount -t overlay -o lowerdir=.,upperdir=mnt/upper,workdir=mnt/work overlay mnt/merged",
        "mount --bind mnt/upper mnt/merged/mnt",
        *(f"mount --bind {shlex.quote(str(path))} mnt/merged/{place}" for place, path in shared.items()),
        "cd mnt/merged",
    ]
    return _entry(root, "\n".join(lines), environment)


def _entry(root: Path, more: str, environment: Mapping[str, str]) -> list[str]:
    given = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8", **environment}
    script = _ENTER.format(more=more)
    words = [f"{name}={value}" for name, value in given.items()]
    return [*_NAMESPACES, "sh", "-c", script, "sh", str(root), *words]
