# SPDX-License-Identifier: Apache-2.0
"""Paths and permissions of a device in the store, and how to remove a device there."""

import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, get_args

from netback.errors import ConfigError
from netback.vif.features import DeviceType
from netback.xenstore.aio import Store, StoreError

DEVICE_TYPES: Final[tuple[DeviceType, ...]] = get_args(DeviceType)

_INDEX_END = (1 << 31) - 1
_DECIMAL = re.compile(r"0|[1-9][0-9]{0,9}")


def decimal(text: str, below: int) -> int | None:
    """The value of a decimal number without leading zeros; None if the text is not one, or is not below the
    bound.
    """
    return int(text) if _DECIMAL.fullmatch(text) and int(text) < below else None


def home(domid: int) -> str:
    """The root of a domain's own nodes (xenstore-paths)."""
    return f"/local/domain/{domid}"


def backends(backend_domid: int, kind: DeviceType) -> str:
    """The directory of a backend domain's devices of a type."""
    return f"{home(backend_domid)}/backend/{kind}"


def errors(backend_domid: int, kind: DeviceType) -> str:
    """The directory of the error nodes of a backend domain's devices of a type."""
    return f"{home(backend_domid)}/error/backend/{kind}"


@dataclass(frozen=True, slots=True)
class DeviceName:
    """A device, named by its backend directory; `number` is that directory's name, which should be a decimal
    number.
    """

    kind: DeviceType
    backend_domid: int
    domid: int
    number: str

    def __str__(self) -> str:
        return f"{self.kind}{self.domid}.{self.number}"

    @property
    def index(self) -> int:
        """The device's number. ConfigError: `number` is not decimal, or is too large."""
        index = decimal(self.number, _INDEX_END)
        if index is None:
            raise ConfigError(f"failed to parse name '{self.number}'")
        return index

    @property
    def link(self) -> str:
        """The name of a link made for the device, by which xentop and the hotplug scripts find it."""
        return f"vif{self.domid}.{self.index}"

    @property
    def backend(self) -> str:
        return f"{backends(self.backend_domid, self.kind)}/{self.domid}/{self.number}"

    @property
    def frontend(self) -> str:
        """The frontend's directory where `attach` puts it; the backend's `frontend` node decides for any
        other device.
        """
        return f"{home(self.domid)}/device/vif/{self.number}"

    @property
    def errors(self) -> str:
        """The directory of its error node."""
        return f"{errors(self.backend_domid, self.kind)}/{self.domid}/{self.number}"

    @property
    def backend_perms(self) -> list[str]:
        """Owned by the backend's domain; the guest may read."""
        return [f"n{self.backend_domid}", f"r{self.domid}"]

    @property
    def frontend_perms(self) -> list[str]:
        """Owned by the guest; the backend's domain may read and write."""
        return [f"n{self.domid}", f"b{self.backend_domid}"]


async def remove_empty(store: Store, path: str, levels: int) -> None:
    """Remove a directory, then its parents as long as they are empty; at most `levels` directories."""
    await store.rm(path, missing_ok=True)
    for _ in range(levels - 1):
        path = path.rpartition("/")[0]
        with suppress(StoreError):
            if await store.directory(path):
                return
            await store.rm(path, missing_ok=True)


async def remove_device(store: Store, name: DeviceName, frontend: str) -> None:
    """Remove both directories of a device, in one transaction."""

    async def body(tx: int) -> None:
        for path in (frontend, name.backend):
            with suppress(StoreError):
                await store.rm(path, tx)

    await store.transact(body)
    await remove_if_empty(store, name.backend.rpartition("/")[0])


async def remove_if_empty(store: Store, path: str) -> None:
    """Remove a directory that has no child; one that cannot be read or removed stays."""
    with suppress(StoreError):
        if not await store.directory(path):
            await store.rm(path, missing_ok=True)
