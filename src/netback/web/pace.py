# SPDX-License-Identifier: Apache-2.0
"""Slow motion: pages limit a vif's rate on an emulated Xen, and the vif gets back what it had when none does any more.

The calls block, since they ask the backend; any thread may make them.
"""

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from netback.control import Client
from netback.control.schema import Details
from netback.errors import ConfigError, NetbackError
from netback.vif.rate import UNLIMITED, parse_node
from netback.xenbus.nodes import RATES

FULL = "full"
PACES = {"slow": "100kb/s", "slower": "10kb/s"}
"""The limit of each direction, as of `netback set`."""


@dataclass(slots=True)
class _Slowed:
    pace: str
    before: list[str]
    """The limits that the vif had, as `set` takes them: what it sends, what it receives."""
    nodes: list[str | None]
    """What slow motion wrote. Other values are another program's, and stay."""
    pages: set[str] = field(default_factory=set)


class SlowMotion:
    """The vifs that pages have slowed, of the backend in the directory that `directory` returns."""

    def __init__(self, directory: Callable[[], Path]) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._pages: set[str] = set()
        self._slowed: dict[str, _Slowed] = {}

    def begin(self, page: str) -> None:
        """A page was opened."""
        with self._lock:
            self._pages.add(page)

    def end(self, page: str) -> None:
        """A page was closed: restore what it alone had slowed. Without a backend the next page's end does it."""
        with self._lock:
            self._pages.discard(page)
            for device, slowed in [*self._slowed.items()]:
                slowed.pages.discard(page)
                if not slowed.pages:
                    self._try_to_restore(device)

    def end_all(self) -> None:
        """The server ends: restore everything."""
        with self._lock:
            for device in [*self._slowed]:
                self._try_to_restore(device)

    def describe(self, device: str) -> dict[str, Any]:
        """The pace of a vif, and the limits that it has at full speed. ControlError, ConfigError: as of a client."""
        with self._lock, Client(self._directory()) as client:
            details = client.show(device)
            slowed = self._present(details)
            status = details.device
            own = slowed.before if slowed else [status.tx_rate or UNLIMITED, status.rx_rate or UNLIMITED]
            return {"pace": slowed.pace if slowed else FULL, "tx_rate": own[0], "rx_rate": own[1]}

    def set(self, device: str, pace: str, page: str) -> None:
        """Slow a vif for a page, or give it its own limits back for all pages. ConfigError: it cannot be slowed."""
        with self._lock, Client(self._directory()) as client:
            if pace == FULL:
                self._restore(client, device)
                return
            if page not in self._pages:
                raise ConfigError(
                    "the page is not listening: a page that ends could not give the vif its pace back"
                )
            if pace not in PACES:
                raise ConfigError(f"the paces are {', '.join((FULL, *PACES))}")
            if client.backend.platform != "emulated":
                raise ConfigError("slow motion is for an emulated Xen")
            details = client.show(device)
            slowed = self._present(details)
            before, pages = (slowed.before, slowed.pages) if slowed else (_limits(details), set())
            client.set(device, tx_rate=PACES[pace], rx_rate=PACES[pace])
            self._slowed[device] = _Slowed(pace, before, _nodes(client.show(device)), pages | {page})

    def leave(self, device: str, page: str) -> None:
        """A page shows another vif: restore this one unless other pages slowed it, too."""
        with self._lock, Client(self._directory()) as client:
            if (slowed := self._slowed.get(device)) is not None:
                slowed.pages.discard(page)
                if not slowed.pages:
                    self._restore(client, device)

    def _try_to_restore(self, device: str) -> None:
        with suppress(NetbackError, OSError), Client(self._directory()) as client:
            self._restore(client, device)

    def _restore(self, client: Client, device: str) -> None:
        """NoBackend, ControlError: it is still slow, and is still known to be."""
        try:
            slowed = self._present(client.show(device)) if device in self._slowed else None
            if slowed is not None:
                client.set(device, tx_rate=slowed.before[0], rx_rate=slowed.before[1])
        except ConfigError:
            pass  # the device is gone
        self._slowed.pop(device, None)

    def _present(self, details: Details) -> _Slowed | None:
        """How a device is slowed; None if it is not, or if another program has changed its limits since."""
        slowed = self._slowed.get(details.device.device)
        return slowed if slowed is not None and slowed.nodes == _nodes(details) else None


def _nodes(details: Details) -> list[str | None]:
    return [details.backend_nodes.get(node) for node in RATES]


def _limits(details: Details) -> list[str]:
    """A device's limits as `set` takes them: of its nodes exactly, else of the configuration."""
    status = details.device
    effective = [status.tx_rate or UNLIMITED, status.rx_rate or UNLIMITED]
    return [
        rate if node is None else _as_text(node)
        for node, rate in zip(_nodes(details), effective, strict=True)
    ]


def _as_text(node: str) -> str:
    """The limit of a node, "bytes,microseconds", as `set` takes it. ConfigError: a limit of 0 passes nothing anyway."""
    try:
        rate = parse_node(node)
    except ValueError:
        return UNLIMITED  # so the backend takes it
    if rate is None:
        return UNLIMITED
    if not rate.size:
        raise ConfigError("its limit lets nothing pass: there is nothing to slow down")
    nanobytes = -(-rate.size * 10**15 // rate.interval)  # a second, rounded up: `set` rounds a size down
    return f"{nanobytes // 10**9}.{nanobytes % 10**9:09}B/s@{rate.interval}us"
