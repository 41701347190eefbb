# SPDX-License-Identifier: Apache-2.0
"""What a backend tells subscribers: a source for each topic of the control socket (`control.feed`).

States and notices come from the devices and trace points from the tracer, all into feeds. Statistics are taken when
they are due and the client has read the last ones.
"""

import asyncio
import os
from collections.abc import AsyncGenerator, Mapping

from netback.control.feed import Batch, Feed, Topics
from netback.control.schema import (
    MAX_CAPTURES,
    DeviceNotice,
    DeviceState,
    FrameMemory,
    NoticeName,
    SubscribeRequest,
)
from netback.daemon.serving import Serving
from netback.daemon.status import Told, ask_network, count
from netback.daemon.traces import Owned, Traces
from netback.dataplane.notices import Notice
from netback.errors import NetbackError, printable
from netback.observe.choice import Choice
from netback.observe.trace import SLOTS, TRACE_POINTS, matching_points
from netback.xenbus.device import Device
from netback.xenbus.news import ConditionNews, StateNews

_SNAPSHOT = 64
"""Devices in a batch of statistics: between two batches the loop serves others."""
_NETWORK_SECONDS = 5.0
"""Seconds between two looks at the network of each of all devices: of a tap one costs more than all of its counters."""
_NOTICES: Mapping[Notice, NoticeName] = {
    Notice.READY: "ready",
    Notice.STALLED: "stalled",
    Notice.PEER_GONE: "network-gone",
    Notice.BROKEN: "broken",
}


def topics(backend: Serving) -> Topics:
    """The sources, for `serve_control`. ConfigError of the first step: there is no such device or trace point."""
    sources = Sources(backend)
    return {
        "states": sources.states,
        "notices": sources.notices,
        "statistics": sources.statistics,
        "trace": sources.trace,
        "frames": sources.frames,
    }


class Sources:
    """Each first batch is there at once; what happens after it is in a later one."""

    def __init__(self, backend: Serving) -> None:
        self._backend = backend
        self._traces = Traces(backend.tracer)
        self._captures = 0

    async def states(self, request: SubscribeRequest) -> AsyncGenerator[Batch, None]:
        feed, chosen = Feed(), self._chosen(request)

        def hear(news: StateNews) -> None:
            if request.device in (None, str(news.name)):
                feed.post(_state(news))

        with self._backend.news.states.heard_by(hear):
            yield Batch([_state(device.news_now()) for device in chosen])
            while True:
                yield await feed.take()

    async def notices(self, request: SubscribeRequest) -> AsyncGenerator[Batch, None]:
        feed, _ = Feed(), self._chosen(request)

        def hear(news: ConditionNews) -> None:
            if request.device in (None, str(news.name)):
                reason = None if news.reason is None else printable(news.reason)
                name = printable(str(news.name))
                feed.post(DeviceNotice(device=name, notice=_NOTICES[news.condition], reason=reason))

        with self._backend.news.conditions.heard_by(hear):
            yield Batch([])
            while True:
                yield await feed.take()

    async def statistics(self, request: SubscribeRequest) -> AsyncGenerator[Batch, None]:
        """A snapshot that is due while the client still has to read the last one is lost."""
        self._chosen(request)
        loop = asyncio.get_running_loop()
        due, lost = loop.time(), 0
        told: dict[Device, Told] = {}
        asked = -_NETWORK_SECONDS
        while True:
            now, devices = loop.time(), self._present(request)
            if now - asked >= _NETWORK_SECONDS or request.device is not None:
                told, asked = {}, now
            for begin in range(0, max(len(devices), 1), _SNAPSHOT):
                part, end = devices[begin : begin + _SNAPSHOT], begin + _SNAPSHOT
                told |= {device: ask_network(device) for device in part if device not in told}
                events = [count(device, now, told[device], queues=request.queues) for device in part]
                yield Batch(events, lost, more=end < len(devices))
                lost = 0
                await asyncio.sleep(0)
            due += request.interval
            lost = max(0, int((loop.time() - due) // request.interval))
            due += lost * request.interval
            await asyncio.sleep(max(0.0, due - loop.time()))

    async def trace(self, request: SubscribeRequest) -> AsyncGenerator[Batch, None]:
        self._chosen(request)
        points = frozenset[str]().union(*map(matching_points, request.points))
        points = points if request.points else frozenset(TRACE_POINTS) - SLOTS
        feed = Feed()

        def hear(owned: Owned) -> None:
            device, event = owned
            if event.point in points and request.device in (None, device):
                feed.post(event)

        try:
            with self._traces.heard_by(points, hear, feed.lose):
                await self._backend.watch()
                yield Batch([])
                while True:
                    yield await feed.take()
        finally:
            await self._backend.watch()

    async def frames(self, request: SubscribeRequest) -> AsyncGenerator[Batch, None]:
        """The frames go by memory that workers and client share: none of them comes through the loop."""
        devices = frozenset(filter(None, (request.device, *request.devices)))
        for name in devices:
            self._backend.named(name)
        if self._captures >= MAX_CAPTURES:
            raise NetbackError(f"clients have {MAX_CAPTURES} captures, and there are no more")
        choice = Choice(devices, request.direction, request.queue, request.snaplen)
        with self._backend.captures.begun(choice) as capture:
            self._captures += 1
            try:
                await self._backend.watch(devices)
                memory = capture.memory
                event = FrameMemory(bytes=os.fstat(memory.fd).st_size)
                yield Batch([event], descriptors=(memory.fd, memory.pipe))
                raise NetbackError(await capture.failed)
            finally:  # after an error below the memory lasts until no queue has a sink of it
                self._captures -= 1
                capture.ended = True
                await self._backend.watch(devices)
                if not self._backend.ends:  # else the client may still read what there is
                    capture.memory.release()
                capture.memory.close()

    def _chosen(self, request: SubscribeRequest) -> list[Device]:
        """The devices of a subscription. ConfigError: there is none of that name."""
        if request.device is None:
            return [*self._backend.devices.values()]
        return [self._backend.named(request.device)]

    def _present(self, request: SubscribeRequest) -> list[Device]:
        """The same later, when the device may be gone."""
        devices = self._backend.devices.items()
        return [device for name, device in devices if request.device in (None, str(name))]


def _state(news: StateNews) -> DeviceState:
    return DeviceState(
        device=printable(str(news.name)),
        backend=news.ours.title,
        frontend=news.theirs.title,
        error=printable(news.error) or None,
        gone=news.gone,
    )
