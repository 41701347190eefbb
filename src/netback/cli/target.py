# SPDX-License-Identifier: Apache-2.0
"""Which Xen a command is for, and where its store and netback's runtime directory are."""

import os
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Self

from netback.directory import Directory
from netback.errors import ConfigError
from netback.platforms.base import Domain
from netback.platforms.xen import XenDomain, XenPlatform, find_store, open_store
from netback.platforms.xen.devices import DEVICES
from netback.xenstore.aio import Store

if TYPE_CHECKING:
    from netback.platforms.emulated import EmulatedPlatform

SOCKET = "xenstored.sock"
_XEN_RUNTIME = Path("/run/netback")


class PlatformName(StrEnum):
    """The words of `--platform`."""

    XEN = "xen"
    EMULATED = "emulated"


@dataclass(frozen=True, slots=True)
class Target:
    """A Xen, and the runtime directory: netback's lock, journals and control socket, and all of an emulated Xen."""

    platform: PlatformName
    directory: Path

    @classmethod
    def choose(cls, platform: PlatformName | None = None, directory: Path | None = None) -> Self:
        """What was asked for; else an emulated Xen that XENSTORED_PATH points to, else the real one that is here.

        ConfigError where the directory exists and is not private (netback.directory): a user who can write to it could
        answer in the place of the store or the backend.
        """
        chosen = cls._choose(platform, directory)
        if os.path.lexists(chosen.directory):
            Directory.open(chosen.directory).close()
        return chosen

    @classmethod
    def _choose(cls, platform: PlatformName | None, directory: Path | None) -> Self:
        pointed = directory or _pointed()
        if platform is None:
            emulated = pointed is not None and (pointed / SOCKET).exists()
            here = (
                DEVICES.exists()
            )  # only a Xen domain has the directory, even where a device in it is missing
            platform = PlatformName.XEN if here and not emulated else PlatformName.EMULATED
        if platform is PlatformName.XEN:
            return cls(platform, directory or _XEN_RUNTIME)
        return cls(platform, pointed or _own())

    def open_platform(self) -> "AbstractContextManager[XenPlatform | EmulatedPlatform]":
        """A backend's side of that Xen. Each platform is imported when it is needed: guests wait during a restart."""
        if self.platform is PlatformName.XEN:
            return XenPlatform()
        from netback.platforms.emulated import EmulatedPlatform

        return EmulatedPlatform(self.directory)

    def open_domain(self, *, domid: int | None = None, name: str = "") -> Domain:
        """A guest's side: the domain that this process is in, or a new one of an emulated Xen."""
        if self.platform is PlatformName.EMULATED:
            from netback.platforms.emulated import EmulatedDomain

            return EmulatedDomain.join(self.directory, domid=domid, name=name)
        if domid is not None or name:
            raise ConfigError("--domid and --name are for an emulated Xen: on a real one this guest has both")
        return XenDomain()

    async def open_store(self) -> Store:
        """A connection to its store, with the privilege that this process has there."""
        if self.platform is PlatformName.XEN:
            return await open_store(find_store())
        return await Store.connect(self.directory / SOCKET)


def default_directory() -> Path:
    """An emulated Xen's: where `netback emulate --print-env` points to, else netback's own."""
    return _pointed() or _own()


def _pointed() -> Path | None:
    store = Path(os.environ.get("XENSTORED_PATH", ""))
    return store.parent if store.name == SOCKET else None


def _own() -> Path:
    """The user's runtime directory, else the system's."""
    user = os.environ.get("XDG_RUNTIME_DIR")
    return Path(user) / "netback" if user else _XEN_RUNTIME
