# SPDX-License-Identifier: Apache-2.0
"""The parts of a queue: an event channel, two mapped rings and a journal, acquired in the order that a takeover needs
(docs/decisions.md, Resume).

This module uses the platform seam and a queue's keys, not the store.
"""

import asyncio
import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from netback.abi.netif_keys import Key
from netback.dataplane.back.queue import BackQueue
from netback.dataplane.journal import Journal
from netback.dataplane.peers.peer import Peer
from netback.dataplane.settings import Settings
from netback.errors import NetbackError, PlatformError
from netback.platforms.base import EventChannels, MappedPage, Platform
from netback.vif.features import LiveConfig, QueueConfig, VifConfig, WaitTimes

_PART = re.compile(r"-(q[1-9][0-9]*|settings|ctrl)$")

_SECOND = 1_000_000_000
"""Nanoseconds."""

_BIND_DELAYS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64)
"""Seconds between attempts: a killed predecessor holds the port until the hypervisor has closed it."""


class BindError(PlatformError):
    """The frontend's event channel cannot be bound; EINVAL: it does not exist, or another process has it."""


def queue_name(base: str, number: int) -> str:
    """The name of one queue's part of a vif's resource: queue 0 has the resource's plain name."""
    return f"{base}-q{number}" if number else base


def control_name(base: str) -> str:
    """The name of the control ring's part of a vif's resource."""
    return f"{base}-ctrl"


def queue_owner(name: str) -> str:
    """The vif's name, from the name of any of its parts."""
    return _PART.sub("", name)


def settings_name(base: str) -> str:
    """The name of a vif's settings, which all its queues share."""
    return f"{base}-settings"


@dataclass(frozen=True, slots=True)
class Channel:
    """A frontend's port that is to be bound, on a worker's handle; `key` names it in errors."""

    events: EventChannels
    port: int
    key: str


async def bind_ports(channels: Sequence[Channel], domid: int, undo: ExitStack) -> list[int]:
    """Bind all these ports of the frontend or none; `undo` unbinds them. Returns the local ports.

    Binding is exclusive (EINVAL while another process holds the port), so it also keeps out a dying predecessor and a
    second backend. Between two attempts nothing is held, so that two processes cannot each wait for the other's ports.
    BindError, with its errno, after 1.3 s of attempts.
    """
    for delay in (*_BIND_DELAYS, None):
        with ExitStack() as attempt:
            try:
                ports = [_bind(channel, domid, attempt) for channel in channels]
            except BindError as error:
                if error.errno != "EINVAL" or delay is None:
                    raise
            else:
                undo.callback(attempt.pop_all().close)
                return ports
        await asyncio.sleep(delay)
    raise AssertionError("the last try returns or raises")


def _bind(channel: Channel, domid: int, undo: ExitStack) -> int:
    try:
        local = channel.events.bind_interdomain(domid, channel.port)
    except PlatformError as error:
        text = f"the frontend's {channel.key} {channel.port} cannot be bound: {error}"
        raise BindError(text, error.errno) from error
    undo.callback(_quietly, channel.events.unbind, local)
    return local


def map_ring(platform: Platform, domid: int, gref: int, key: str, undo: ExitStack) -> MappedPage:
    """Map a ring's page for reading and writing; `undo` unmaps it. PlatformError names its key."""
    try:
        page = platform.map_grant(domid, gref)
    except PlatformError as error:
        raise PlatformError(f"the frontend's {key} {gref} cannot be mapped: {error}", error.errno) from error
    undo.callback(_quietly, page.unmap)
    return page


def open_journal(path: Path, adopt: bool) -> Journal:
    """Open the journal in this file, creating it if missing; keep a predecessor's contents only if `adopt`.

    The journal of a new connection must not contain other rings' entries. NetbackError names the file.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        journal = Journal(str(path))
    except OSError as error:
        raise NetbackError(f"cannot open the journal {path}: {error.strerror}") from error
    if not adopt:
        journal.clear()
    return journal


def open_settings(path: Path, config: VifConfig, adopt: bool) -> Settings:
    """Open what the guest set through its rings, in this file. NetbackError names the file.

    A predecessor's contents are kept only if `adopt`, and if they are of the same rings.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        settings = Settings(str(path))
    except OSError as error:
        raise NetbackError(f"cannot open the settings {path}: {error.strerror}") from error
    settings.claim(_ring_name(config.queues[0].tx_ring_ref, config.queues[0].tx_channel), keep=adopt)
    return settings


def remove_journals(journal: Path) -> None:
    """Remove the journals of all rings of a vif, and its settings; `journal` is the one of queue 0."""
    if journal.parent.is_dir():
        for path in journal.parent.iterdir():
            if queue_owner(path.name) == journal.name:
                path.unlink(missing_ok=True)


def attach_queue(
    platform: Platform,
    events: EventChannels,
    domid: int,
    config: VifConfig,
    queue: QueueConfig,
    *,
    ports: tuple[int, int],
    peer: Peer,
    journal: Journal,
    settings: Settings,
    times: WaitTimes,
    undo: ExitStack,
) -> BackQueue:
    """Map both rings, check them, complete the journal: the queue then stands at rsp_prod and waits for its worker.

    `ports` are the local ports of TX and RX, the same for one shared event channel.

    GuestError: an index is impossible. PlatformError: a ring cannot be mapped.
    """
    tx = map_ring(platform, domid, queue.tx_ring_ref, queue.path + Key.TX_RING_REF, undo)
    rx = map_ring(platform, domid, queue.rx_ring_ref, queue.path + Key.RX_RING_REF, undo)
    waits = times.for_guest(rx_unannounced=config.rx_unannounced)
    attached = BackQueue(
        events.native,
        platform.open_memory(domid),
        peer,
        journal,
        tx_page=tx.address,
        rx_page=rx.address,
        tx_name=_ring_name(queue.tx_ring_ref, queue.tx_channel),
        rx_name=_ring_name(queue.rx_ring_ref, queue.rx_channel),
        tx_port=ports[0],
        rx_port=ports[1],
        caps=int(config.caps),
        sg=config.sg,
        rx_offset=config.rx_offset,
        rx_unannounced=config.rx_unannounced,
        settings=settings,
        drain=int(waits.drain * _SECOND),
        stall=int(waits.stall * _SECOND),
    )
    change_queue(attached, config.live)
    return attached


def change_queue(queue: BackQueue, live: LiveConfig) -> None:
    """Apply what the guest may change while it is connected; once the queue is served, in its worker's thread."""
    queue.change(multicast_control=live.multicast_control, xdp_headroom=live.xdp_headroom)


def _ring_name(gref: int, channel: int) -> int:
    """A ring's identity in files that outlive this process."""
    return gref << 32 | channel


def _quietly(undo: Callable[..., object], *arguments: object) -> None:
    """Ignore that the domain or the hypervisor is gone: everything was released with it."""
    with suppress(PlatformError):
        undo(*arguments)
