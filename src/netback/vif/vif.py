# SPDX-License-Identifier: Apache-2.0
"""A vif: a guest's rings joined to a network. It connects, and disconnects at any time.

Knows the platform and the network; nothing of states or the store.
"""

import logging
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from netback.abi.netif import RxFlag, TxFlag
from netback.dataplane.back.queue import BackQueue
from netback.dataplane.records import Record, RecordKind
from netback.errors import PeerError
from netback.net.base import Network
from netback.observe.trace import Tracer
from netback.platforms.base import Platform
from netback.vif.features import VifConfig
from netback.vif.queue import attach_queue, bind_port, open_journal
from netback.vif.workers import Listener, QueueWorker, Workers

log = logging.getLogger("netback.vif")

CaptureSink = Callable[[Record], None]


class Vif:
    """One device's data path: `connect` acquires, `serve` begins, `disconnect` gives everything back.

    `on_broken` is called in a worker's thread when the frontend broke the protocol; `broken` then says how.
    """

    def __init__(
        self,
        name: str,
        domid: int,
        network: Network,
        *,
        platform: Platform,
        workers: Workers,
        journal: Path,
        tracer: Tracer,
        on_broken: Callable[[], object],
    ) -> None:
        self.name = name
        self.network = network
        self._domid = domid
        self._platform = platform
        self._workers = workers
        self._journal = journal
        self._tracer = tracer
        self._on_broken = on_broken
        self._capture: CaptureSink | None = None
        self._worker: QueueWorker | None = None
        self._queue: BackQueue | None = None
        self._undo = ExitStack()

    @property
    def connected(self) -> bool:
        """Whether the rings are ours."""
        return self._queue is not None

    @property
    def broken(self) -> str | None:
        """How the frontend broke the protocol on the rings that we hold."""
        return self._queue.broken if self._queue else None

    @property
    def counters(self) -> dict[str, int]:
        """What the connected queue counted; nothing while there is none."""
        return self._queue.counters if self._queue else {}

    @property
    def rings(self) -> dict[str, dict[str, int]]:
        """The indices of both rings; nothing while they are not ours."""
        return self._queue.rings if self._queue else {}

    async def connect(self, config: VifConfig, *, adopt: bool) -> None:
        """Acquire port, rings and journal; `adopt`: they were served before us, go on where that ended.

        Nothing is answered before `serve`: a state can say Connected first, so that who comes after a kill knows.
        """
        self.disconnect()
        worker = self._workers.least_busy()
        with ExitStack() as undo:
            worker.reserve(undo)
            port = await bind_port(worker.events, self._domid, config.event_channel, undo)
            journal = open_journal(self._journal, adopt)
            self._prepare(config, adopt)
            queue = attach_queue(
                self._platform,
                worker.events,
                self._domid,
                config,
                port=port,
                peer=self.network.peers[0],
                journal=journal,
                undo=undo,
            )
            self._undo = undo.pop_all()
        self._worker, self._queue = worker, queue

    def serve(self) -> None:
        """Have the worker take up the queue: it drains and arms both rings and notifies the guest once."""
        assert self._worker is not None
        assert self._queue is not None
        self.watch()
        self._worker.add(self._queue, Listener(self._on_broken, self._record))
        self._undo.callback(self._worker.remove, self._queue)
        self._carrier(True)

    def refuse_rx(self) -> None:
        """We are Closing and the guest has not moved yet: nothing more for it, everything still from it."""
        if self._worker and self._queue:
            self._worker.refuse_rx(self._queue)

    def disconnect(self) -> None:
        """Give rings and port back; at any time, any number of times."""
        if self.connected:
            self.release()
            self._carrier(False)

    def release(self) -> None:
        """What the end of our process does: rings and port go back, the network is left alone."""
        self._worker = self._queue = None
        self._undo.close()

    def capture(self, sink: CaptureSink | None) -> None:
        """Give each frame to `sink`, called in the worker's thread, until told otherwise or until it raises."""
        self._capture = sink
        self.watch()

    def watch(self) -> None:
        """Have slots and frames written down where somebody wants to know of them."""
        if self._worker and self._queue:
            traced = self._tracer.on("xen_netdev_tx") or self._tracer.on("xen_netdev_rx")
            self._worker.watch(self._queue, traced=traced, captured=self._capture is not None)

    def _prepare(self, config: VifConfig, adopt: bool) -> None:
        """What the network gives must be what this guest takes; frames from before it connected are stale."""
        try:
            self.network.offloads(int(config.caps))
            if not adopt:
                self.network.drain()
        except OSError as error:
            raise PeerError(f"network {self.network.name}: {error.strerror or error}") from error

    def _carrier(self, on: bool) -> None:
        try:
            self.network.carrier(on)
        except OSError:  # the link was removed: it has nobody to show a carrier to
            return

    def _record(self, record: Record) -> None:
        if record.kind == RecordKind.TX_SLOT:
            flags = TxFlag(record.flags).name or "0"
            self._tracer.hit("xen_netdev_tx", self.name, record.gref, record.offset, record.size, flags)
        elif record.kind == RecordKind.RX_SLOT:
            flags = RxFlag(record.flags).name or "0"
            self._tracer.hit("xen_netdev_rx", self.name, record.index, record.status, flags)
        elif self._capture is not None:
            self._captured(self._capture, record)

    def _captured(self, sink: CaptureSink, record: Record) -> None:
        """A sink's fault must not end the thread that serves this guest and others."""
        try:
            sink(record)
        except Exception:
            log.exception("%s: a capture failed and is ended", self.name)
            self._capture = None
