# SPDX-License-Identifier: Apache-2.0
"""A queue whose peer has a `wake`: polled when, and only when, a worker's epoll would return."""

from __future__ import annotations

import select

from netback.abi.netif import TX_RESPONSE
from netback.abi.ring import slot_offset
from netback.dataplane.peers.peer import Peer
from netback.dataplane.states import Event
from tests.dataplane.harness import RING_PAGES
from tests.dataplane.test_limit import Limited
from tests.net.far import await_readable


class Woken(Limited):
    """A guest and its queue; `wake` is what a worker does when its epoll returns."""

    def __init__(self, peer: Peer) -> None:
        super().__init__(peer=peer)
        self.post_rx(100)
        self.wake(Event.RING)

    def wake(self, event: Event = Event.POLL) -> None:
        """Poll after an event, then for what the peer's descriptor reports, until the worker would sleep."""
        more = self.worker.apply(self.queue, event)
        while more or self.is_readable():
            more = self.worker.apply(self.queue, Event.POLL if more else Event.FRAMES)

    def is_readable(self) -> bool:
        """Whether epoll would return for the peer."""
        watched, _ = self.worker.waits(self.queue)
        poll = select.poll()
        poll.register(self.peer.fd, select.POLLIN)
        return bool(watched & {"frames", "room"}) and bool(poll.poll(0))

    def await_wake(self) -> None:
        """Wait for what the peer's descriptor reports next, and serve it."""
        await_readable(self.peer.fd)
        self.wake()

    def answered(self) -> list[int]:
        """The statuses of all TX responses."""
        count = self.queue.rings["tx"]["rsp_prod"]
        return [
            TX_RESPONSE.unpack(self.read(RING_PAGES[0], slot_offset(at, 12), TX_RESPONSE.size))[1]
            for at in range(count)
        ]

    @property
    def counters(self) -> dict[str, int]:
        return self.queue.counters
