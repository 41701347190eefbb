# SPDX-License-Identifier: Apache-2.0
"""The queues of one connection as one unit: bound, attached, served and closed together.

This module handles queues and workers; the vif controls the network and interprets reports.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from netback.dataplane import clock
from netback.dataplane.back.distributor import Distributor
from netback.dataplane.back.queue import BackQueue
from netback.dataplane.capture import Sink
from netback.dataplane.credit import Credit
from netback.dataplane.flight import Flight
from netback.dataplane.link import Link
from netback.dataplane.notices import Notice
from netback.dataplane.peers.peer import Peer
from netback.dataplane.staged import Staged
from netback.dataplane.thread import Listener
from netback.dataplane.toeplitz import Toeplitz
from netback.dataplane.worker import Worker
from netback.net.filters import Filters, count
from netback.observe.rings import decode_queue
from netback.observe.slots import Ring
from netback.platforms.base import Platform
from netback.vif.features import LiveConfig, QueueConfig, VifConfig, WaitTimes
from netback.vif.queue import (
    Channel,
    attach_queue,
    bind_ports,
    change_queue,
    open_journal,
    open_settings,
    queue_name,
    settings_name,
)
from netback.vif.rate import Rate, Rates
from netback.vif.steering import FREE, Distribution, Steering, distribute
from netback.vif.workers import QueueWorker, Workers, finished

L = TypeVar("L", bound=Link)


@dataclass(frozen=True, slots=True)
class BoundQueue:
    """A queue whose ports are bound on its worker's event channels and whose rings are not mapped yet."""

    config: QueueConfig
    worker: QueueWorker
    ports: tuple[int, int]
    """The local ports of TX and RX."""


class Group:
    """The queues of one connection: `bind`, `attach`, `serve`, each once and in this order; `close` at any time.

    While the group is attached its queues belong to their workers' threads.
    """

    def __init__(self, platform: Platform, workers: Workers, domid: int) -> None:
        self._platform = platform
        self._workers = workers
        self._domid = domid
        self._bound: list[BoundQueue] = []
        self._queues: list[tuple[QueueWorker, BackQueue]] = []
        self._peers: tuple[Peer, ...] = ()
        self._filters = Filters()
        self._filtered: Counter[str] = Counter()
        """What filters counted that are not in use any more."""
        self._leaving: set[Peer] = set()
        """Peers that are being replaced."""
        self._distribution: Distribution | None = None
        """What steers frames to the queues; None: each queue takes those of its own peer."""
        self._distributors: list[tuple[QueueWorker, Distributor]] = []
        self._listener: Callable[[int], Listener] | None = None
        """Of the served queues."""
        self._refuses_rx = self._closing = False
        self._undo = ExitStack()

    async def bind(self, config: VifConfig) -> None:
        """Bind every queue's ports or none, each on the worker with the fewest queues. PlatformError names the port.

        Binding is exclusive: from here on no predecessor and no second backend serves these rings.
        """
        workers = [self._workers.reserve(self._undo) for _ in config.queues]
        channels = [
            Channel(worker.events, port, key)
            for worker, queue in zip(workers, config.queues, strict=True)
            for port, key in queue.channels.items()
        ]
        local = iter(await bind_ports(channels, self._domid, self._undo))
        for worker, queue in zip(workers, config.queues, strict=True):
            bound = dict(zip(queue.channels, local, strict=False))
            ports = bound[queue.tx_channel], bound[queue.rx_channel]
            self._bound.append(BoundQueue(queue, worker, ports))

    async def attach(
        self,
        config: VifConfig,
        peers: Sequence[Peer],
        journal: Path,
        *,
        adopt: bool,
        times: WaitTimes,
        filters: Filters,
    ) -> None:
        """Map and check the rings of each queue and complete its journal; queue N is joined to peer N.

        Of a network with fewer peers the frames are steered (`steer`).

        `adopt`: an earlier connection served these rings, its journals count. GuestError: an index is impossible.
        PlatformError: a ring cannot be mapped, a journal not be opened, or there are too many descriptors.
        """
        settings = open_settings(journal.with_name(settings_name(journal.name)), config, adopt)
        self._peers, self._filters = tuple(peers), filters
        for number, bound in enumerate(self._bound):
            queue = attach_queue(
                self._platform,
                bound.worker.events,
                self._domid,
                config,
                bound.config,
                ports=bound.ports,
                peer=filters.wrap(peers[min(number, len(peers) - 1)], first=number == 0),
                times=times,
                journal=open_journal(journal.with_name(queue_name(journal.name, number)), adopt),
                settings=settings,
                undo=self._undo,
            )
            self._queues.append((bound.worker, queue))
        await self.steer(FREE)

    def closes(self, end: Callable[[], object]) -> None:
        """Call `end` once the queues have left their workers."""
        self._undo.callback(end)

    async def serve(self, listener: Callable[[int], Listener]) -> None:
        """Have the workers serve the queues: rings are drained and armed, and each frontend port notified once.

        `listener` is called with each queue's number. After `close` nothing happens: the rings are unmapped.
        """
        if self._closing:
            return
        self._listener = listener
        await finished(
            [
                worker.thread.add(queue, listener(number))
                for number, (worker, queue) in enumerate(self._queues)
            ]
        )
        await self._serve_distributors(listener)

    async def steer(self, steering: Steering) -> None:
        """Spread the frames for the guest over its queues so from now on. Frames that were read before stay with the
        queue for which they were read, ahead of later ones: a flow whose queue does not change is not reordered.

        PlatformError, and nothing is changed: there are too many descriptors.
        """
        spread = steering == FREE and len(self._peers) >= len(self._queues)
        if self._closing or len(self._queues) == 1 or (spread and self._distribution is None):
            return
        begins = self._distribution is None
        distribution = self._distribution = self._distribution or await self._distribute()
        await finished(
            [
                _submit(worker, each, partial(_steer, distribution.table(number, steering), steering.hash))
                for number, (worker, each) in enumerate(self._distributors)
            ]
        )
        if begins and self._listener is not None:
            await self._serve_distributors(self._listener)

    async def _distribute(self) -> Distribution:
        """Make each queue take its frames from an inbox; the distributors are not served yet. What the queues have read
        from their peers stays ahead of what will come through the inboxes.
        """
        made = distribute(self._peers, len(self._queues), self._undo, self._filters)
        self._distributors = [(self._workers.reserve(self._undo), each) for each in made.distributors]
        await self._join_queues(made.peers, made.inboxes, reads=False)
        return made

    async def _join_queues(
        self, peers: Sequence[Peer], inboxes: Sequence[Peer | None], *, reads: bool
    ) -> None:
        """Join each queue to its peer, with the filters around that, and to its inbox. `reads`: there is none."""
        await self._join(list(zip(self._queues, peers, inboxes, strict=True)), reads=reads)

    async def _join(
        self, ends: Sequence[tuple[tuple[QueueWorker, Link], Peer, Peer | None]], *, reads: bool
    ) -> None:
        before = {link.peer for (_, link), _, _ in ends}
        self._leaving |= before
        await finished(
            [
                _submit(
                    worker,
                    link,
                    partial(_set_peer, self._filters.wrap(peer, first=reads and number == 0), inbox),
                )
                for number, ((worker, link), peer, inbox) in enumerate(ends)
            ]
        )
        for peer in before & self._leaving:
            self._filtered.update(count(peer))
        self._leaving -= before

    async def filter(self, filters: Filters) -> None:
        """Put these filters around the peers, in place of the present ones, between two bursts: no frame is lost or
        overtaken. ConfigError, and nothing is changed: an address that a filter needs is unknown.
        """
        if filters == self._filters or self._closing:
            return
        filters.check()
        self._filters = filters
        peers, inboxes = self._ends()
        await self._join_queues(peers, inboxes, reads=self._distribution is None)
        await self._join(
            [(link, peer, None) for link, peer in zip(self._distributors, self._peers, strict=False)],
            reads=True,
        )

    def _ends(self) -> tuple[Sequence[Peer], Sequence[Peer | None]]:
        """The peer of each queue, and its inbox, without filters."""
        if self._distribution is not None:
            return self._distribution.peers, self._distribution.inboxes
        last = len(self._peers) - 1
        return [self._peers[min(n, last)] for n in range(len(self._queues))], [None] * len(self._queues)

    async def _serve_distributors(self, listener: Callable[[int], Listener]) -> None:
        """Their reports are as queue 0's: they record nothing."""
        if self._closing:
            return
        receives = not self._refuses_rx
        await finished(
            [worker.thread.add(each, listener(0), receives=receives) for worker, each in self._distributors]
        )

    async def refuse_rx(self) -> None:
        """Take no more frames from the network; the guest's frames still pass."""
        self._refuses_rx = True
        await self._each_link(lambda worker, link: worker.refuse_rx(link))

    async def refresh(self) -> None:
        """Make the workers read the peers' descriptors again, which may be joined to another link now."""
        await self._each_link(lambda worker, link: worker.refresh(link))

    async def change(self, live: LiveConfig) -> None:
        """Apply what the guest changed while it is connected."""
        await self._each(lambda _worker, queue: change_queue(queue, live))

    async def limit(self, rates: Rates) -> None:
        """Limit the queues together from now on, each direction by one credit that they share."""
        tx, rx = _credit(rates.tx), _credit(rates.rx)
        await self._each(lambda worker, queue: worker.limit(queue, tx, rx))

    async def set_hash(self, hash: Toeplitz | None) -> None:
        """Make the queues send the hash of each RX frame with it, or none."""
        await self._each(lambda _worker, queue: queue.set_hash(hash))

    async def set_staged(self, number: int, staged: Staged | None) -> None:
        """Make a queue use these staged pages, or none; those of before are not used any more on return."""
        worker, queue = self._queues[number]
        await finished([_submit(worker, queue, lambda _worker, queue: queue.set_staged(staged))])

    async def watch(
        self,
        *,
        traced: bool,
        sinks: Callable[[int, int], Sequence[Sink]],
        flights: Callable[[int], Flight | None],
    ) -> None:
        """Make the queues record each slot, pass each frame to what `sinks` gives for a queue and its worker, and have
        its polls recorded by what `flights` gives for it.
        """
        await finished(
            [
                _submit(worker, queue, partial(_watch, traced, sinks(number, worker.number), flights(number)))
                for number, (worker, queue) in enumerate(self._queues)
            ]
        )

    async def polls(self, flights: Sequence[Flight]) -> list[list[bytes]]:
        """What these have recorded of the queues, each as of one moment between two bursts."""
        found: list[list[bytes]] = [[] for _ in flights]
        await finished(
            [
                _submit(worker, queue, partial(_read_polls, flight, polls))
                for (worker, queue), flight, polls in zip(self._queues, flights, found, strict=False)
            ]
        )
        return found

    async def close(self) -> None:
        """Take the queues from their workers, then release rings and ports. Can be called at any time, any number of
        times.
        """
        self._closing = True
        self._listener = None  # it refers to this group, whose memory a cycle would keep mapped
        try:
            await finished([worker.thread.remove(link) for worker, link in self._links])
        finally:
            self._undo.close()

    @property
    def broken(self) -> str | None:
        """How the frontend broke the protocol, from the first queue on which it did."""
        return next((queue.broken for _, queue in self._queues if queue.broken), None)

    @property
    def condition(self) -> Notice:
        """The worst condition of any queue, and of what steers their frames."""
        return max((link.condition for _, link in self._links), key=lambda notice: notice.value)

    @property
    def counters(self) -> list[dict[str, int]]:
        """The counters of each queue."""
        return [queue.counters for _, queue in self._queues]

    @property
    def steering_counters(self) -> Counter[str]:
        """The counters of what steers the queues' frames, summed."""
        total: Counter[str] = Counter()
        for _, distributor in self._distributors:
            total.update(distributor.counters)
        return total

    @property
    def unfiltered(self) -> bool:
        """Whether this connection has had no filter."""
        return not self._filters.specs and not self._filtered

    @property
    def filter_counters(self) -> Counter[str]:
        """The counters of all filters that this connection has had, summed."""
        total = self._filtered.copy()
        for peer in {link.peer for _, link in self._links} | self._leaving:
            total.update(count(peer))
        return total

    @property
    def rings(self) -> dict[str, dict[str, int]]:
        """The indices of all rings, by "tx" and "rx" of queue 0, "tx-q1" of queue 1; empty while closing."""
        return {
            queue_name(ring, number): indices
            for number, (_, queue) in enumerate(() if self._closing else self._queues)
            for ring, indices in queue.rings.items()
        }

    def dump(self) -> list[Ring]:
        """All rings with their slots, read while the workers serve them; empty while closing."""
        return [
            ring
            for number, (_, queue) in enumerate(() if self._closing else self._queues)
            for ring in decode_queue(queue_name("", number), queue.states, *queue.snapshot())
        ]

    @property
    def _links(self) -> list[tuple[QueueWorker, Link]]:
        return [*self._queues, *self._distributors]

    async def _each(self, call: Callable[[Worker, BackQueue], object]) -> None:
        await finished([_submit(worker, queue, call) for worker, queue in self._queues])

    async def _each_link(self, call: Callable[[Worker, Link], object]) -> None:
        await finished([_submit(worker, link, call) for worker, link in self._links])


def _credit(rate: Rate | None) -> Credit | None:
    return None if rate is None else Credit(rate.size, rate.interval * 1000, now=clock.now())


def _submit(worker: QueueWorker, link: L, call: Callable[[Worker, L], object]) -> Future[object]:
    return worker.thread.submit(lambda native: call(native, link))


def _watch(
    traced: bool, sinks: Sequence[Sink], flight: Flight | None, _worker: Worker, queue: BackQueue
) -> None:
    queue.watch(traced=traced, sinks=sinks)
    queue.record(flight)


def _read_polls(flight: Flight, polls: list[bytes], _worker: Worker, _queue: BackQueue) -> None:
    polls.extend(flight.polls())


def _set_peer(peer: Peer, inbox: Peer | None, worker: Worker, link: Link) -> None:
    worker.set_peer(link, peer, inbox)


def _steer(table: Sequence[int], hash: Toeplitz | None, _worker: Worker, distributor: Distributor) -> None:
    distributor.steer(table, hash)
