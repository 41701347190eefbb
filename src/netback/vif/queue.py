# SPDX-License-Identifier: Apache-2.0
"""What a queue is made of: an event channel and two mapped rings, acquired in the order of rules 2.

Knows the platform seam and one queue's part of a VifConfig; nothing of the store.
"""

import asyncio
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

from netback.dataplane.back.queue import BackQueue
from netback.dataplane.journal import Journal
from netback.dataplane.peers.peer import Peer
from netback.errors import PlatformError
from netback.platforms.base import EventChannels, MappedPage, Platform
from netback.vif.features import VifConfig

_BIND_DELAYS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64)
"""Seconds between tries: a killed predecessor holds the port until the hypervisor has closed it."""


async def bind_port(events: EventChannels, domid: int, port: int, undo: ExitStack) -> int:
    """Bind the frontend's port: exclusive, so it also keeps out a dying predecessor or a second daemon."""
    for delay in (*_BIND_DELAYS, None):
        try:
            local = events.bind_interdomain(domid, port)
        except PlatformError as error:
            if error.errno != "EINVAL" or delay is None:
                raise PlatformError(f"failed to bind event channel {port}: {error}", error.errno) from error
            await asyncio.sleep(delay)
        else:
            undo.callback(_quietly, events.unbind, local)
            return local
    raise AssertionError("the last try returns or raises")


def map_ring(platform: Platform, domid: int, gref: int, which: str, undo: ExitStack) -> MappedPage:
    """Map a ring's page for reading and writing."""
    try:
        page = platform.map_grant(domid, gref)
    except PlatformError as error:
        raise PlatformError(f"failed to map {which} grant ref: {error}", error.errno) from error
    undo.callback(_quietly, page.unmap)
    return page


def open_journal(path: Path, adopt: bool) -> Journal:
    """The journal that a predecessor left, or an empty one: of new rings it must not know anything."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        journal = Journal(str(path))
    except OSError as error:
        raise PlatformError(f"cannot open the journal {path}: {error.strerror}") from error
    if not adopt:
        journal.clear()
    return journal


def attach_queue(
    platform: Platform,
    events: EventChannels,
    domid: int,
    config: VifConfig,
    *,
    port: int,
    peer: Peer,
    journal: Journal,
    undo: ExitStack,
) -> BackQueue:
    """Map both rings, check them, complete the journal: the queue then stands at rsp_prod and waits for its worker."""
    tx = map_ring(platform, domid, config.tx_ring_ref, "tx", undo)
    rx = map_ring(platform, domid, config.rx_ring_ref, "rx", undo)
    return BackQueue(
        events.native,
        platform.open_memory(domid),
        peer,
        journal,
        tx_page=tx.address,
        rx_page=rx.address,
        tx_name=config.tx_ring_ref << 32 | config.event_channel,
        rx_name=config.rx_ring_ref << 32 | config.event_channel,
        tx_port=port,
        rx_port=port,
        caps=int(config.caps),
        sg=config.sg,
        rx_offset=config.rx_offset,
        polls=config.polls,
    )


def _quietly(undo: Callable[..., object], *arguments: object) -> None:
    """An undo whose domain or hypervisor is gone is done."""
    with suppress(PlatformError):
        undo(*arguments)
