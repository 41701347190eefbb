# SPDX-License-Identifier: Apache-2.0
"""The queues of one connection as one unit: bound, attached, served and closed together.

This module handles queues and workers; the vif controls the network and interprets reports.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from netback.dataplane import clock
from netback.dataplane.back.queue import BackQueue
from netback.dataplane.credit import Credit
from netback.dataplane.notices import Notice
from netback.dataplane.peers.peer import Peer
from netback.dataplane.staged import Staged
from netback.dataplane.thread import Listener
from netback.dataplane.toeplitz import Toeplitz
from netback.dataplane.worker import Worker
from netback.observe.rings import Ring, decode_queue
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
    share_peer,
)
from netback.vif.rate import Rate, Rates
from netback.vif.workers import QueueWorker, Workers, finished


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
        self._own_peers = 0
        """Queues that take frames; the further ones only send."""
        self._closing = False
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

    def attach(
        self, config: VifConfig, peers: Sequence[Peer], journal: Path, *, adopt: bool, times: WaitTimes
    ) -> None:
        """Map and check the rings of each queue and complete its journal; queue N is joined to peer N.

        Queues without one share the first peer (`share_peer`).

        `adopt`: an earlier connection served these rings, its journals count. GuestError: an index is impossible.
        PlatformError: a ring cannot be mapped, or a journal not be opened.
        """
        settings = open_settings(journal.with_name(settings_name(journal.name)), config, adopt)
        self._own_peers = len(peers)
        shared = share_peer(peers, len(self._bound), self._undo)
        for number, (bound, peer) in enumerate(zip(self._bound, shared, strict=True)):
            queue = attach_queue(
                self._platform,
                bound.worker.events,
                self._domid,
                config,
                bound.config,
                ports=bound.ports,
                peer=peer,
                times=times,
                journal=open_journal(journal.with_name(queue_name(journal.name, number)), adopt),
                settings=settings,
                undo=self._undo,
            )
            self._queues.append((bound.worker, queue))

    def closes(self, end: Callable[[], object]) -> None:
        """Call `end` once the queues have left their workers."""
        self._undo.callback(end)

    async def serve(self, listener: Callable[[int], Listener]) -> None:
        """Have the workers serve the queues: rings are drained and armed, and each frontend port notified once.

        `listener` is called with each queue's number. After `close` nothing happens: the rings are unmapped.
        """
        if self._closing:
            return
        await finished(
            [
                worker.thread.add(queue, listener(number), receives=number < self._own_peers)
                for number, (worker, queue) in enumerate(self._queues)
            ]
        )

    async def refuse_rx(self) -> None:
        """Take no more frames from the network; the guest's frames still pass."""
        await self._each(lambda worker, queue: worker.refuse_rx(queue))

    async def refresh(self) -> None:
        """Make the workers read the peers' descriptors again, which may be joined to another link now."""
        await self._each(lambda worker, queue: worker.refresh(queue))

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

    async def watch(self, *, traced: bool, captured: bool) -> None:
        """Make the queues record each slot, or each frame, from now on."""
        await self._each(lambda _worker, queue: queue.watch(traced=traced, captured=captured))

    async def close(self) -> None:
        """Take the queues from their workers, then release rings and ports. Can be called at any time, any number of
        times.
        """
        self._closing = True
        try:
            await finished([worker.thread.remove(queue) for worker, queue in self._queues])
        finally:
            self._undo.close()

    @property
    def broken(self) -> str | None:
        """How the frontend broke the protocol, from the first queue on which it did."""
        return next((queue.broken for _, queue in self._queues if queue.broken), None)

    @property
    def condition(self) -> Notice:
        """The worst condition of any queue."""
        return max((queue.condition for _, queue in self._queues), key=lambda notice: notice.value)

    @property
    def counters(self) -> list[dict[str, int]]:
        """The counters of each queue."""
        return [queue.counters for _, queue in self._queues]

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

    async def _each(self, call: Callable[[Worker, BackQueue], object]) -> None:
        await finished([_submit(worker, queue, call) for worker, queue in self._queues])


def _credit(rate: Rate | None) -> Credit | None:
    return None if rate is None else Credit(rate.size, rate.interval * 1000, now=clock.now())


def _submit(
    worker: QueueWorker, queue: BackQueue, call: Callable[[Worker, BackQueue], object]
) -> Future[object]:
    return worker.thread.submit(lambda native: call(native, queue))
