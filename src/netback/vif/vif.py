# SPDX-License-Identifier: Apache-2.0
"""A vif: a guest's queues joined to a network. It connects, and disconnects at any time.

This module handles the network and the workers' reports, neither states nor the store.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from netback.abi.netif import RxFlag, TxFlag
from netback.dataplane.notices import Notice
from netback.dataplane.records import Record, RecordKind
from netback.dataplane.thread import Listener
from netback.dataplane.toeplitz import Toeplitz
from netback.errors import PeerError
from netback.net.base import Network
from netback.net.filters import Filters
from netback.observe.captures import Captures
from netback.observe.recorder import Recorder
from netback.observe.slots import Ring
from netback.observe.trace import SLOTS, LogBudget, Tracer
from netback.platforms.base import Platform
from netback.vif.control_messages import ControlState
from netback.vif.control_ring import Control
from netback.vif.features import LiveConfig, VifConfig, WaitTimes
from netback.vif.group import Group
from netback.vif.queue import control_name, queue_name
from netback.vif.rate import Rates
from netback.vif.staging import Staging
from netback.vif.steering import FREE, Steering
from netback.vif.workers import Workers

log = logging.getLogger("netback.vif")

_SECOND = 1_000_000_000
"""Nanoseconds."""


class Vif:
    """One device's data path: `connect` acquires, `serve` starts, `disconnect` releases everything.

    One task calls its coroutines, but any may call `limit` and `filter`; each may be cancelled at any time. `on_notice`
    is called in the event loop's thread when the vif's condition changes: the worst of its queues' conditions, READY
    when it connects. For BROKEN, `broken` has the reason.
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
        captures: Captures,
        recorder: Recorder,
        on_notice: Callable[[Notice], object],
        times: Callable[[], WaitTimes] = WaitTimes,
    ) -> None:
        """`times` is asked at each connection. `journal` is the file of queue 0; the files of further queues have the
        queue's number appended (`queue_name`).
        """
        self.name = name
        self.network = network
        self._domid = domid
        self._platform = platform
        self._workers = workers
        self._journal = journal
        self._tracer = tracer
        self._captures = captures
        self._recorder = recorder
        self._on_notice = on_notice
        self._times = times
        self._stalled_at: float | None = None
        self._condition = Notice.READY
        self._loop = asyncio.get_running_loop()
        self._group: Group | None = None
        self._rates = Rates()
        self._filters = self._filters_in_force = Filters()
        self._control: Control | None = None
        self._earlier: list[Counter[str]] = []
        """Of earlier connections, by queue."""
        self._further: Counter[str] = Counter()
        """Of earlier connections' control rings and steering."""
        self._budget = LogBudget()

    @property
    def connected(self) -> bool:
        """Whether this process holds the rings."""
        return self._group is not None

    @property
    def broken(self) -> str | None:
        """How the frontend broke the protocol on the connected rings."""
        parts = (self._group, self._control)
        return next((part.broken for part in parts if part is not None and part.broken), None)

    @property
    def counters(self) -> dict[str, int]:
        """The counters of all queues, of their steering and of the control ring, summed over every connection of this
        vif's life, by the names in dataplane/counters.py; empty before the first.
        """
        group = self._group
        alone = not self._earlier and not self._further and self._control is None
        if group is not None and alone and group.unfiltered and len(counted := group.counters) == 1:
            return counted[0]  # most vifs are so, and adding takes longer than all the rest of a snapshot
        total = self._add_further()
        for queue in self.queue_counters:
            total.update(queue)
        return dict(total)

    @property
    def queue_counters(self) -> list[dict[str, int]]:
        """The counters of each queue that this vif has ever had, over every connection."""
        return [dict(queue) for queue in self._add_up()]

    def _add_further(self) -> Counter[str]:
        total = self._further.copy()
        if self._control is not None:
            total.update(self._control.counters)
        if self._group is not None:
            total.update(self._group.steering_counters)
            total.update(self._group.filter_counters)
        return total

    def _add_up(self) -> list[Counter[str]]:
        present = self._group.counters if self._group is not None else []
        further = len(present) - len(self._earlier)
        total = [*map(Counter, self._earlier), *(Counter[str]() for _ in range(further))]
        for queue, counters in zip(total, present, strict=False):
            queue.update(counters)  # `+` would lose the zeros
        return total

    @property
    def rings(self) -> dict[str, dict[str, int]]:
        """The indices of the connected rings: "tx", "rx" (of queue 0; "tx-q1" of queue 1), "ctrl"; empty otherwise."""
        rings = self._group.rings if self._group else {}
        return rings | ({"ctrl": self._control.indices} if rings and self._control else {})

    def dump(self) -> list[Ring]:
        """The connected rings with their slots; empty without a connection."""
        rings = self._group.dump() if self._group else []
        return [*rings, *([self._control.dump()] if rings and self._control else [])]

    @property
    def stalled(self) -> float | None:
        """For how many seconds the guest has been stalled; None if it takes its frames."""
        return (
            None if self._stalled_at is None or self._group is None else self._loop.time() - self._stalled_at
        )

    @property
    def rates(self) -> Rates:
        """The limits in force."""
        return self._rates

    @property
    def filters(self) -> Filters:
        """The filters in force."""
        return self._filters_in_force

    async def connect(self, config: VifConfig, *, adopt: bool) -> None:
        """Acquire port, rings and journal of each queue of `config`, and set the network's offloads to its `caps`.

        `adopt`: an earlier process or connection served these rings; continue where it ended. Otherwise frames queued
        in the network are discarded. Nothing is answered before `serve`, so that the device can write Connected
        between the two: a process that is killed there leaves rings without a response.

        GuestError: an index in a ring is impossible. BindError: a port cannot be bound within 1.3 s. PlatformError: a
        ring cannot be mapped. NetbackError: a journal cannot be opened. PeerError: the network refuses. After an error
        nothing is held.
        """
        await self.disconnect()
        self._recorder.begin()
        group = Group(self._platform, self._workers, self._domid)
        control = self._make_control(group, config)
        try:
            await group.bind(config)
            self._prepare(config, adopt)
            await group.attach(
                config,
                self.network.peers,
                self._journal,
                adopt=adopt,
                times=self._times(),
                filters=self._filters,
            )
            if control is not None and config.control is not None:
                await control.open(config.control, adopt=adopt)
        except BaseException:
            await _close(control, group)
            raise
        self._group, self._control = group, control
        self._condition, self._stalled_at = Notice.READY, None

    async def serve(self) -> None:
        """Turn the carrier on and have the workers serve the queues.

        Their rings are drained and armed, and the guest is notified once for each queue.
        """
        group = self._group
        assert group is not None
        await self.watch()
        if self._rates != Rates():
            await group.limit(self._rates)
        await group.filter(self._filters)  # they may have changed since `connect`

        def report(_notice: Notice) -> None:
            self._loop.call_soon_threadsafe(self._changed, group)

        self._carrier(True)  # first: the guest may see a response before this coroutine continues
        await group.serve(
            lambda number: Listener(report, partial(self._record, queue_name(self.name, number)))
        )
        if self._control is not None:
            await self._control.start()

    async def refuse_rx(self) -> None:
        """Give the guest no more frames but keep taking its own: this end is Closing, the frontend still Connected."""
        if self._group is not None:
            await self._group.refuse_rx()

    async def change(self, live: LiveConfig) -> None:
        """Apply what the guest changed while it is connected; rings and frames are not touched."""
        if self._group is not None:
            await self._group.change(live)

    async def limit(self, rates: Rates) -> None:
        """Limit what the guest sends and receives from now on, and on every later connection.

        Frames beyond the limit wait where they are: in the guest's ring, and in the network.
        """
        if rates == self._rates:
            return
        self._rates = rates
        if self._group is not None:
            await self._group.limit(rates)

    async def filter(self, filters: Filters) -> None:
        """Pass what the guest sends and receives through these filters from now on, and on every later connection. No
        frame is lost or overtaken by the change. ConfigError, and nothing is changed: an address is unknown.
        """
        if filters == self._filters:
            return
        filters.check()
        self._filters = filters
        if self._group is not None:
            await self._group.filter(filters)
        self._filters_in_force = filters

    async def refresh(self) -> None:
        """Make the workers read the network's descriptors again, which were joined to a new link."""
        if self._group is not None:
            await self._group.refresh()

    async def disconnect(self) -> None:
        """Release rings and ports, and turn the carrier off. Can be called at any time, any number of times."""
        if self._group is not None:
            try:
                await self.release()
            finally:
                self._carrier(False)

    async def release(self) -> None:
        """Release rings and ports and leave the network unchanged: for the end of the process."""
        if (group := self._group) is None:
            return
        control = self._control
        try:
            await _close(control, group)
        finally:
            if self._group is group:
                self._earlier = self._add_up()
                self._further = self._add_further()
                self._group = self._control = None

    async def watch(self) -> None:
        """Make the queues record slots if a trace point is on, pass frames to the captures that want them, and have
        their polls recorded if the vif's recorder is on.
        """
        if self._group is not None:
            await self._group.watch(
                traced=any(map(self._tracer.on, SLOTS)),
                sinks=partial(self._captures.sinks, self.name),
                flights=self._recorder.flight,
            )

    async def recording(self, reason: str | None = None) -> bytes:
        """What its recorder has now, as a file (observe/recording.py); `reason`: how the guest broke the protocol."""
        flights, group = self._recorder.flights, self._group
        polls = [flight.polls() for flight in flights] if group is None else await group.polls(flights)
        return self._recorder.encode(polls, reason)

    def _make_control(self, group: Group, config: VifConfig) -> Control | None:
        """The connection's control ring, not opened yet; None if the frontend has none."""
        if config.control is None:
            return None

        staging = Staging(self._platform, self._domid, group, self._workers.staging)
        group.closes(staging.close)

        async def apply(state: ControlState, restored: bool) -> ControlState:
            staged = await staging.change(state.staged, skip=restored)
            hash = Toeplitz(state.key, int(state.types)) if state.active else None
            await group.steer(Steering(hash, state.mapping) if hash else FREE)
            await group.set_hash(hash)
            return replace(state, staged=staged)

        return Control(
            self._platform,
            self._workers.control_ports,
            self._domid,
            self._journal.with_name(control_name(self._journal.name)),
            queues=len(config.queues),
            apply=apply,
            on_broken=lambda: self._on_notice(Notice.BROKEN),
            note=self._recorder.note,
        )

    def _prepare(self, config: VifConfig, adopt: bool) -> None:
        """Make the network produce what this guest accepts, for as many queues as it has; frames from before a new
        connection are discarded.
        """
        try:
            self.network.set_queues(len(config.queues))
            self.network.offloads(int(config.caps))
            if not adopt:
                self.network.drain()
        except OSError as error:
            raise PeerError(f"network {self.network.name}: {error.strerror or error}") from error

    def _carrier(self, on: bool) -> None:
        try:
            self.network.carrier(on)
        except OSError:  # the link was removed, so it has no users
            return

    def _changed(self, group: Group) -> None:
        """Report the group's condition, unless another group is connected by now. A stalled guest's link has no
        carrier, which makes its users send nothing more.
        """
        if group is not self._group or group.condition is self._condition:
            return
        before, self._condition = self._condition, group.condition
        if self._condition is Notice.STALLED:
            self._stalled_at = self._loop.time()
            self._carrier(False)
            self._budget.warn(log, f"{self.name}: the guest is stalled: it takes no frames; carrier off")
        elif before is Notice.STALLED:
            self._stalled_at = None
            self._carrier(True)
            self._budget.warn(log, f"{self.name}: the guest takes frames again")
        self._on_notice(self._condition)

    def _record(self, queue: str, record: Record) -> None:
        if record.kind == RecordKind.TX_SLOT:
            flags = TxFlag(record.flags).name or "0"
            self._tracer.emit(
                "xen_netdev_tx",
                queue,
                record.gref,
                record.offset,
                record.size,
                flags,
                at=record.time_ns / _SECOND,
            )
        elif record.kind == RecordKind.RX_SLOT:
            flags = RxFlag(record.flags).name or "0"
            self._tracer.emit(
                "xen_netdev_rx", queue, record.index, record.status, flags, at=record.time_ns / _SECOND
            )


async def _close(control: Control | None, group: Group) -> None:
    """Close both, the control ring first: it changes the queues."""
    try:
        if control is not None:
            await control.close()
    finally:
        await group.close()
