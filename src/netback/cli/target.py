# SPDX-License-Identifier: Apache-2.0
"""Chooses the Xen that a command works on, its store and netback's runtime directory."""

import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Self

from netback.abi.xen import DEVICES
from netback.directory import check_trusted
from netback.errors import ConfigError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from netback.platforms.base import Domain
    from netback.platforms.emulated import EmulatedPlatform
    from netback.platforms.xen import XenPlatform
    from netback.xenstore.aio import Store

SOCKET = "xenstored.sock"
_XEN_RUNTIME = Path("/run/netback")


class PlatformName(StrEnum):
    """The values of `--platform`."""

    XEN = "xen"
    EMULATED = "emulated"


@dataclass(frozen=True, slots=True)
class Target:
    """A Xen and its runtime directory, which holds netback's lock, journals and control socket, and all of an
    emulated Xen.
    """

    platform: PlatformName
    directory: Path

    @classmethod
    def choose(cls, platform: PlatformName | None = None, directory: Path | None = None) -> Self:
        """The platform from the option; else an emulated Xen if XENSTORED_PATH points to one; else real Xen
        if present.

        ConfigError: the directory exists and is not to be trusted (netback.directory). A user who can write to it could
        impersonate the store or the backend.
        """
        chosen = cls._choose(platform, directory)
        check_trusted(chosen.directory)
        return chosen

    @classmethod
    def _choose(cls, platform: PlatformName | None, directory: Path | None) -> Self:
        pointed = directory or _pointed()
        if platform is None:
            emulated = pointed is not None and (pointed / SOCKET).exists()
            here = (
                DEVICES.exists()
            )  # this directory exists only in a Xen domain, even if a device in it is missing
            platform = PlatformName.XEN if here and not emulated else PlatformName.EMULATED
        if platform is PlatformName.XEN:
            return cls(platform, directory or _XEN_RUNTIME)
        return cls(platform, pointed or _own())

    def open_platform(self) -> "AbstractContextManager[XenPlatform | EmulatedPlatform]":
        """The backend's platform. Each platform is imported only when it is used, which shortens a restart."""
        if self.platform is PlatformName.XEN:
            from netback.platforms.xen import XenPlatform

            return XenPlatform()
        from netback.platforms.emulated import EmulatedPlatform

        return EmulatedPlatform(self.directory)

    def open_domain(self, *, domid: int | None = None, name: str = "") -> "Domain":
        """The guest's platform: the domain that this process runs in, or a new domain of an emulated Xen."""
        if self.platform is PlatformName.EMULATED:
            from netback.platforms.emulated import EmulatedDomain

            return EmulatedDomain.join(self.directory, domid=domid, name=name)
        if domid is not None or name:
            raise ConfigError("--domid and --name are for an emulated Xen: on a real one this guest has both")
        from netback.platforms.xen import XenDomain

        return XenDomain()

    async def open_store(self) -> "Store":
        """A store connection with the privilege that this process has there."""
        from netback.platforms.xen import find_store, open_store
        from netback.xenstore.aio import Store

        if self.platform is PlatformName.XEN:
            return await open_store(find_store())
        return await Store.connect(self.directory / SOCKET)


def default_directory() -> Path:
    """The directory of an emulated Xen: the one that `netback emulate --print-env` names, else netback's
    default.
    """
    return _pointed() or _own()


def _pointed() -> Path | None:
    store = Path(os.environ.get("XENSTORED_PATH", ""))
    return store.parent if store.name == SOCKET else None


def _own() -> Path:
    """The user's runtime directory; the system's if there is none."""
    user = os.environ.get("XDG_RUNTIME_DIR")
    return Path(user) / "netback" if user else _XEN_RUNTIME
