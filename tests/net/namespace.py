# SPDX-License-Identifier: Apache-2.0
"""A network namespace for a test: it disappears with its contents, and the host's links stay untouched."""

import contextlib
import ctypes
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

CLONE_NEWNET = 0x40000000
LIBC = ctypes.CDLL(None, use_errno=True)
QUIET = Path("/proc/sys/net/ipv6/conf/default/disable_ipv6")


def demand(result: int) -> None:
    """Raise the C library's error."""
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@contextlib.contextmanager
def new_network() -> Iterator[None]:
    """Move this thread, and what it starts, to a new network namespace whose links send nothing on their own."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    demand(LIBC.unshare(CLONE_NEWNET))
    try:
        QUIET.write_text("1")
        yield
    finally:
        demand(LIBC.setns(home, CLONE_NEWNET))
        os.close(home)


@contextlib.contextmanager
def own_sysfs(at: Path) -> Iterator[str]:
    """The sysfs of the present network namespace, mounted at this directory; returns where it shows the links."""
    at.mkdir()
    subprocess.run(["mount", "-t", "sysfs", "sysfs", at], check=True)
    try:
        yield f"{at}/class/net"
    finally:
        subprocess.run(["umount", "--lazy", at], check=True)


@contextlib.contextmanager
def other_network() -> Iterator[int]:
    """Another network namespace, which exists as long as the process with the returned id."""
    with subprocess.Popen(
        ["unshare", "-n", "sh", "-c", f"echo 1 > {QUIET}; echo ready; exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        holder.stdout.readline()
        try:
            yield holder.pid
        finally:
            holder.stdin.close()


def send_to(link: str, pid: int) -> None:
    """Move a link to the namespace of a process."""
    ip(f"link set {link} netns {pid}")


def bring_back(link: str, pid: int) -> None:
    """Move it from there to the present namespace, and take it up."""
    inside(pid, f"ip link set {link} netns {os.getpid()}")
    ip(f"link set {link} up")


def inside(pid: int, words: str) -> str:
    """Run a program in the namespace of a process."""
    return subprocess.run(
        ["nsenter", "-t", str(pid), "-n", *words.split()], check=True, capture_output=True, text=True
    ).stdout


def ip(words: str) -> str:
    """Run ip(8) in the present namespace."""
    return subprocess.run(["ip", *words.split()], check=True, capture_output=True, text=True).stdout


def tc(words: str) -> None:
    """Run tc(8) in the present namespace."""
    subprocess.run(["tc", *words.split()], check=True, capture_output=True)


def veth(near: str, far: str) -> None:
    """Two links joined by a cable, both up."""
    ip(f"link add {near} type veth peer name {far}")
    ip(f"link set {near} up")
    ip(f"link set {far} up")
    await_up(near, far)


def await_up(*links: str) -> None:
    """Wait until frames pass: the kernel passes them only after it noticed the carrier, and loses earlier ones."""
    deadline = time.monotonic() + 10
    while any("state UP" not in ip(f"link show {link}") for link in links):
        assert time.monotonic() < deadline, f"no carrier on {links}"
