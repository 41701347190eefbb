# SPDX-License-Identifier: Apache-2.0
"""Writes both directories of a device, for `netback attach` and for tests that act as a toolstack."""

from collections.abc import Mapping
from typing import Final

from netback.xenbus.names import DeviceName
from netback.xenstore.aio import Store

_NONE: Final[Mapping[str, list[str]]] = {}

MADE_BY: Final = "made-by"
"""The backend node that marks a device whose nodes `netback attach` wrote; netback removes these."""
MAKER: Final = "netback"
CARRIER_OFF: Final = "carrier-off"
"""The backend node in which "1" keeps the guest's link without carrier, whatever the network's state."""
LINK_DOWN: Final = "link-down"
"""The backend node in which "1" lets no frame pass, and keeps the guest's link without carrier."""

TX_RATE: Final = "rate"
"""The backend node with the limit of what the guest sends; libxl writes it for `rate=` in a vif."""
RX_RATE: Final = "rx-rate"
"""The same for what the guest receives; only netback's own commands write it."""
RATES: Final = (TX_RATE, RX_RATE)
PCAP: Final = "pcap"
"""The backend node that names the file in which the device's frames are kept (observe.pcap.parse_pcap); empty: none.
The guest may not read it."""
RECORD: Final = "record"
"""The backend node that says whether the device is recorded (observe.choice.RecordMode). The guest may not read it."""
FILTERS: Final = "filters"
"""The backend node with the device's filters (`net.filters.as_node`); only netback's own commands write it."""
IP: Final = "ip"
"""The backend node with the guest's IP addresses; libxl writes it for `ip=` in a vif."""
SETTINGS: Final = (*RATES, FILTERS, IP, "mac", LINK_DOWN, PCAP, RECORD)
"""The backend nodes that limit and filter what passes a device."""


async def write_nodes(
    store: Store, directory: str, nodes: Mapping[str, str], private: Mapping[str, list[str]] = _NONE
) -> None:
    """Write nodes of a device's directory; `private` has the permissions of those that differ from the directory's.
    StoreError ENOENT: the device has none.
    """

    async def body(tx: int) -> None:
        await store.read(f"{directory}/state", tx)  # a removed directory must not reappear
        for node, value in nodes.items():
            await store.write(f"{directory}/{node}", value, tx)
            if node in private:
                await store.set_perms(f"{directory}/{node}", private[node], tx)

    await store.transact(body)


async def write_device(
    store: Store, name: DeviceName, frontend: Mapping[str, str], backend: Mapping[str, str], tx: int
) -> None:
    """Write both directories in the order given, so the last key of `backend` is the last write.

    Each key is owned as its directory: the frontend's by the guest, the backend's by the backend's domain
    (xenstore-paths: a child takes its parent's permissions).
    """
    for path, perms, keys in (
        (name.frontend, name.frontend_perms, frontend),
        (name.backend, name.backend_perms, backend),
    ):
        await store.mkdir(path, tx)
        await store.set_perms(path, perms, tx)
        for key, value in keys.items():
            await store.write(f"{path}/{key}", value, tx)
