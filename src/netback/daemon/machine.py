# SPDX-License-Identifier: Apache-2.0
"""The machine as files: what `doctor` checks, and what `explain` must know of the backend's domain.

Every file is looked up below a root directory, which tests replace. Nothing is changed.
"""

import fcntl
import queue
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from netback.control.client import DEFAULT_DIRECTORY
from netback.daemon.facts import Host
from netback.errors import ConfigError, NetbackError
from netback.platforms.xen.store import find_store, own_domid

_TUNGETFEATURES = 0x800454CF
_STORE_SECONDS = 3.0
"""Seconds to wait for the store."""
_DRIVER = "sys/bus/xen-backend/drivers/vif"


def ask_store() -> int:
    """This domain's domid. Called in a thread: a store whose daemon has not started never answers."""
    answer: queue.SimpleQueue[int | Exception] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answer.put(own_domid(find_store()))
        except (NetbackError, OSError) as error:
            answer.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        found = answer.get(timeout=_STORE_SECONDS)
    except queue.Empty:
        raise ConfigError("the store does not answer") from None
    if isinstance(found, Exception):
        raise found
    return found


def tun_features(fd: int) -> int:
    """The IFF_* flags that this kernel's tun driver supports (TUNGETFEATURES)."""
    return int(struct.unpack("I", fcntl.ioctl(fd, _TUNGETFEATURES, bytes(4)))[0])


@dataclass(frozen=True, slots=True)
class Machine:
    """The places that the checks examine."""

    runtime: Path = DEFAULT_DIRECTORY
    """netback's runtime directory."""
    root: Path = Path("/")
    domid: Callable[[], int] = ask_store
    features: Callable[[int], int] = tun_features
    memory: dict[str, int] = field(default_factory=dict)
    """Answers shared by several checks."""

    def path(self, name: str) -> Path:
        return self.root / name.lstrip("/")

    def read(self, name: str) -> str:
        """A file's text; empty if the file does not exist."""
        try:
            return self.path(name).read_text(errors="replace").strip("\0\n ")
        except OSError:
            return ""

    def children(self, name: str) -> list[str]:
        """The names in a directory; none if it does not exist."""
        try:
            return sorted(child.name for child in self.path(name).iterdir())
        except OSError:
            return []

    def own_domid(self) -> int:
        """The domid, read once. NetbackError or OSError: the store does not answer."""
        if "domid" not in self.memory:
            self.memory["domid"] = self.domid()
        return self.memory["domid"]

    def processes(self) -> Iterator[tuple[int, list[str]]]:
        """Each process's id and command line."""
        for name in self.children("proc"):
            if name.isdecimal() and (line := self.read(f"proc/{name}/cmdline")):
                yield int(name), line.split("\0")

    def limit(self, name: str) -> int | None:
        """A hard limit of this process; None if unlimited, or if /proc does not show it."""
        for line in self.read("proc/self/limits").splitlines():
            if line.startswith(name):
                hard = line.removeprefix(name).split()[1]
                return int(hard) if hard.isdecimal() else None
        return None

    def host(self, *, served: bool) -> Host:
        """What concerns every device of this domain; `served`: a backend answers."""
        driver = self.path(_DRIVER).exists()
        qemu = devd = None
        for pid, words in self.processes():
            if "-xen-attach" in words:
                qemu = pid
            elif Path(words[0]).name == "xl" and "devd" in words[1:]:
                devd = pid
        return Host(
            served=served,
            kernel_vifs=len([name for name in self.children(_DRIVER) if name.startswith("vif-")])
            if driver
            else None,
            kernel_loaded=self.path("sys/module/xen_netback").exists(),
            qemu=qemu,
            devd=devd,
        )
