# SPDX-License-Identifier: Apache-2.0
"""What a device tells of its link in the store: the MTU and the carrier (netif.h)."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

from netback.abi.netif_keys import Key
from netback.errors import printable
from netback.net.base import ETH_DATA_LEN, Network
from netback.observe.trace import LogBudget
from netback.xenbus.context import Context
from netback.xenbus.facts import read_backend
from netback.xenbus.names import DeviceName
from netback.xenbus.nodes import CARRIER_OFF, LINK_DOWN
from netback.xenstore.aio import StoreError

log = logging.getLogger("netback.xenbus")


class Published:
    """Of the network that `network` returns, if the device has one."""

    def __init__(
        self, name: DeviceName, context: Context, budget: LogBudget, network: Callable[[], Network | None]
    ) -> None:
        self._name, self._store, self._budget, self._network = name, context.store, budget, network
        self._carrier: str | None = None  # the value of `carrier`, once this process has read or written it
        self._mtus: tuple[object, ...] = ()
        """The MTUs that were last compared."""

    # ---- MTU

    def limit_mtu(self, limited: bool) -> None:
        """Keep a tap's MTU at 1500 or less for a guest without feature-sg; warn if it cannot be changed."""
        if (network := self._network()) is None:
            return
        network.limit_mtu(limited)
        mtu = network.mtu or 0
        if limited and mtu > ETH_DATA_LEN:
            text = f"{self._name}: {network.name}: its MTU is {mtu}, but this guest accepts no frame larger than a page"
            self._budget.warn(
                log, f"{text} (no feature-sg): set it to {ETH_DATA_LEN}, or longer frames are dropped"
            )

    async def publish_mtu(self, frontend: str) -> None:
        """Write the link's MTU to the frontend's `mtu` when it changed. Report a bridge or frontend that has another.

        The link's MTU is the one that counts: longer frames are lost there. The stock script writes `mtu` only for
        links that it made; with `vifname` it writes to a path that does not exist.
        """
        if (network := self._network()) is None or (mtu := network.mtu) is None:
            return
        bridge = network.bridge
        beside = (bridge.name, bridge.mtu) if bridge else None
        if (found := (frontend, mtu, beside)) == self._mtus:
            return
        self._mtus = found
        told = await self._tell_mtu(frontend, mtu)
        if told is not None and told != mtu:
            self._warn_mtu(network.name, mtu, f"the frontend was told {told}")
        if bridge and bridge.mtu not in (None, mtu):
            self._warn_mtu(network.name, mtu, f"its bridge {printable(bridge.name)} has {bridge.mtu}")

    async def _tell_mtu(self, frontend: str, mtu: int) -> int | None:
        """Write the frontend's `mtu`; returns what the node says then, None if it says no number.

        netif.h: without the node it is 1500. In a driver domain only the toolstack may write there.
        """
        store, path = self._store, f"{frontend}/{Key.MTU}"

        async def body(tx: int) -> None:
            if await store.read_or(f"{frontend}/state", tx=tx) is not None:
                await store.write(path, str(mtu), tx)

        with suppress(StoreError):
            if await store.read_or(path, str(ETH_DATA_LEN)) != str(mtu):
                await store.transact(body)
        with suppress(StoreError):
            text = await store.read_or(path) or str(ETH_DATA_LEN)
            return int(text) if len(text) < 10 and text.isdecimal() else None
        return None

    def _warn_mtu(self, link: str, mtu: int, other: str) -> None:
        text = f"{self._name}: {link}: its MTU is {mtu}, but {other}"
        self._budget.warn(log, f"{text}: frames longer than the smaller one are lost")

    # ---- carrier

    async def carrier(self) -> str:
        """The value of the backend's `carrier` (netif.h): "1" while the network is up and no operator turned it off or
        took the link down.
        """
        nodes = (CARRIER_OFF, LINK_DOWN)
        off = "1" in await asyncio.gather(*(read_backend(self._store, self._name, node) for node in nodes))
        network = self._network()
        return "1" if network is not None and network.up and not off else "0"

    async def publish_carrier(self) -> None:
        """Write the backend's `carrier` when it changed. A device that was never opened has no node."""
        if self._network() is None and self._carrier is None:
            return
        store, value, path = self._store, await self.carrier(), f"{self._name.backend}/{Key.CARRIER}"
        if self._carrier is None:
            self._carrier = await store.read_or(path)

        async def body(tx: int) -> None:
            # without a state the directory is gone, and must not reappear
            if await store.read_or(f"{self._name.backend}/state", tx=tx) is not None:
                await store.write(path, value, tx)

        if value != self._carrier:
            await store.transact(body)
            self._carrier = value
