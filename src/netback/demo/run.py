# SPDX-License-Identifier: Apache-2.0
"""One demo: the order of events, and the measurements between the topology's processes."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from netback.demo.child import DemoError
from netback.demo.report import (
    CaptureFile,
    Chosen,
    Crossing,
    Flow,
    LostFlags,
    Ping,
    Report,
    Restart,
    Survivor,
)
from netback.demo.tiers import Side, Tier, choose
from netback.demo.topology import Topology, build, end_task, start
from netback.demo.ui import Progress, Ui

PINGS, PING_GAP = 12, 0.02
TO_HOST, TO_GUEST = "guest to host", "host to guest"
DIRECTIONS = ((TO_HOST, False), (TO_GUEST, True))
"""Each direction, and whether iperf3's client, which is the guest, needs `--reverse` for it."""
OTHER_SECONDS = 5.0
"""Maximum seconds of everything but the transfers, on a slow machine."""
MIN_TRANSFER, MAX_TRANSFER = 0.2, 2.0
MAX_RESTART = 4.0
"""Seconds of a transfer, and of the one during which the backend is killed."""
KILL_AT = 0.3
"""The fraction of that transfer's time before the kill."""
CAPTURED_BYTES, CAPTURED_SECONDS = 1 << 20, 1.0
FIRST_PING_TRIES = 20
SYN_SECONDS = 2.5
"""Long enough for a stack to repeat its SYN."""
CONNECT_SECONDS = 10.0
PROGRESS_SECONDS = 0.25
CAPTURE = "netback-demo.pcapng"


class Break(StrEnum):
    """What `--break` breaks."""

    CSUM = "csum"
    RESTART = "restart"


@dataclass(frozen=True, slots=True)
class Options:
    """The command's options; `seconds` bound the whole demo."""

    tier: Tier | None
    broken: Break | None
    seconds: float


class Run:
    """One demo; its capture is in `capture_path` until the directory is removed."""

    def __init__(self, options: Options, ui: Ui, directory: Path) -> None:
        self.report = Report()
        self.capture_path = directory / CAPTURE
        self._options = options
        self._ui = ui
        self._directory = directory
        self._phase = "starting"
        self._transfer_seconds = _between(MIN_TRANSFER, (options.seconds - OTHER_SECONDS) / 4, MAX_TRANSFER)

    async def run(self) -> Report:
        """Run the demo to its end. DemoError: a step failed or the time is over."""
        scenarios: dict[Break | None, Callable[[Topology], Awaitable[None]]] = {
            None: self._measure_all,
            Break.CSUM: self._break_csum,
            Break.RESTART: self._break_restart,
        }
        begin = time.monotonic()
        try:
            async with asyncio.timeout(self._options.seconds), self._topology() as topology:
                await scenarios[self._options.broken](topology)
        except TimeoutError as error:
            bound = f"{self._options.seconds:g} seconds"
            raise DemoError(f"not done within {bound}: {self._phase} took too long") from error
        self.report.seconds = time.monotonic() - begin
        return self.report

    def _during(self, title: str, seconds: float = 0.0) -> AbstractContextManager[Progress]:
        self._phase = title
        return self._ui.phase(title, seconds)

    @asynccontextmanager
    async def _topology(self) -> AsyncIterator[Topology]:
        with ExitStack() as undo:
            with self._during("starting"):
                xen = start("xen", self._directory, undo)
                stage = await choose(self._options.tier, self._directory, undo)
            self.report.chosen = Chosen(str(stage.tier), stage.tier.means, stage.reason)
            self._ui.show(self.report.chosen)
            cable = self._options.broken is Break.CSUM
            building = build(stage, xen, self._directory, undo, cable=cable, show=self._ui.show)
            async with building as topology:
                self.report.timeline = topology.timeline
                with self._during("the first ping"):
                    await first_ping(topology)
                yield topology

    # ---- scenarios

    async def _measure_all(self, topology: Topology) -> None:
        self.report.ping = await self._ping(topology)
        self._ui.show(self.report.ping)
        for segmentation in (True, False):
            if not segmentation:
                await self._set_segmentation(topology, on=False)
            for direction, reverse in DIRECTIONS:
                flow = await self._flow(topology, direction, segmentation, reverse)
                self.report.throughput.append(flow)
                self._ui.show(flow)
        await self._set_segmentation(topology, on=True)
        self.report.capture = await self._capture(topology)

    async def _break_csum(self, topology: Topology) -> None:
        ping = await self._ping(topology)
        with self._during("TCP", self._transfer_seconds):
            _, received = await transfer(topology.guest, topology.host, self._transfer_seconds)
        errors = await topology.host.stack.call("checksum_errors")
        await topology.netfront.call("lose_flags")
        after = await self._ping(topology)
        tcp = await self._failing_connection(topology)
        errors = await topology.host.stack.call("checksum_errors") - errors
        self.report.lost_flags = LostFlags(ping, _gbit_s(received), after, tcp, errors)
        self._ui.show(self.report.lost_flags)
        if after.received == 0:
            raise DemoError("ping died as well: that is not what lost checksum flags do")

    async def _break_restart(self, topology: Topology) -> None:
        seconds = _between(1.0, self._options.seconds - OTHER_SECONDS, MAX_RESTART)
        with self._during("transfers both ways, and a kill -9 of the backend", seconds) as progress:
            transfers = asyncio.gather(
                transfer(topology.guest, topology.host, seconds, checked=True),
                transfer(topology.host, topology.guest, seconds, checked=True),
            )
            try:
                await asyncio.sleep(seconds * KILL_AT)
                pids, down_ms = await replace_backend(topology, progress)
                reports = await transfers
            finally:
                await end_task(transfers)
        survivors = tuple(map(Survivor.of, (TO_HOST, TO_GUEST), *zip(*reports, strict=True)))
        last = topology.timeline[-1]
        self.report.restart = Restart(*pids, down_ms, (last.backend, last.frontend), survivors)
        self._ui.show(self.report.restart)
        if not all(survivor.intact for survivor in survivors):
            raise DemoError("a transfer was damaged")

    # ---- their steps

    async def _ping(self, topology: Topology) -> Ping:
        with self._during("ping", PINGS * PING_GAP):
            return Ping.of(await ping_guest(topology, PINGS, PING_GAP))

    async def _set_segmentation(self, topology: Topology, *, on: bool) -> None:
        with self._during(f"the guest reconnects, {'with' if on else 'without'} segmentation offload"):
            await topology.netfront.call("segmentation", on=on)
            # The stack comes second: a tap's features are set again when its vif connects.
            await topology.guest.stack.call("segmentation", on=on)
            await first_ping(topology)

    async def _flow(self, topology: Topology, direction: str, segmentation: bool, reverse: bool) -> Flow:
        title = f"TCP {direction}, {'with' if segmentation else 'without'} segmentation offload"
        with self._during(title, self._transfer_seconds) as progress:
            before = await count(topology, direction)
            reporting = asyncio.create_task(_report_speed(topology, direction, progress))
            try:
                tool, gbit_s = await self._throughput(topology, reverse)
            finally:
                await end_task(reporting)
            crossing = Crossing.between(before, await count(topology, direction))
        return Flow(direction, segmentation, tool, gbit_s, crossing)

    async def _throughput(self, topology: Topology, reverse: bool) -> tuple[str, float]:
        """Measure with iperf3 if it is installed and a whole second is left, else with `transfer`; returns the tool and
        its result.
        """
        seconds = int(self._transfer_seconds)
        host, guest = topology.host, topology.guest
        if seconds and await host.stack.call("serve_iperf"):
            bits = await guest.stack.call("iperf", address=host.address, seconds=seconds, reverse=reverse)
            return "iperf3", bits / 1e9
        ends = (host, guest) if reverse else (guest, host)
        _, received = await transfer(*ends, self._transfer_seconds)
        return "built in", _gbit_s(received)

    async def _capture(self, topology: Topology) -> CaptureFile:
        """Capture a few frames of each kind, separately: a capture slows a transfer down."""
        with self._during("writing a pcapng"):
            await topology.backend.call("begin_capture", path=str(self.capture_path))
            await ping_guest(topology, 3, 0.01)
            for ends in ((topology.guest, topology.host), (topology.host, topology.guest)):
                await transfer(*ends, CAPTURED_SECONDS, most=CAPTURED_BYTES)
            frames = await topology.backend.call("end_capture")
        return CaptureFile(str(self.capture_path), frames)

    async def _failing_connection(self, topology: Topology) -> str:
        """The error of a client that connects without checksum flags."""
        with self._during("TCP without checksum flags", SYN_SECONDS):
            try:
                await transfer(topology.guest, topology.host, MIN_TRANSFER, connect_seconds=SYN_SECONDS)
            except DemoError as error:
                return str(error)
        raise DemoError("TCP works without checksum flags: nothing was broken")


async def ping_guest(topology: Topology, times: int, gap: float) -> list[float | None]:
    """Round trips from the host's stack to the guest's, in microseconds; None for a lost one."""
    address = topology.guest.address
    trips: list[float | None] = await topology.host.stack.call("ping", address=address, times=times, gap=gap)
    return trips


async def first_ping(topology: Topology) -> None:
    """Ping until a reply comes: ARP and a new carrier take some time."""
    for _ in range(FIRST_PING_TRIES):
        if (await ping_guest(topology, 1, 0.0))[0]:
            return
    raise DemoError("no ping crosses")


async def count(topology: Topology, direction: str) -> dict[str, int]:
    """What crossed the ring so far: frames from the backend's counters, notifications from their sender's."""
    ring, notifier = ("tx", topology.netfront) if direction == TO_HOST else ("rx", topology.backend)
    counters, sent = await asyncio.gather(topology.backend.call("counters"), notifier.call("counters"))
    numbers = {name: counters.get(f"{ring}_{name}", 0) for name in ("frames", "slots", "bytes")}
    return {**numbers, "notifications": sent.get(f"{ring}_notifies", 0)}


async def transfer(
    source: Side,
    sink: Side,
    seconds: float,
    *,
    most: int = 1 << 60,
    checked: bool = False,
    connect_seconds: float = CONNECT_SECONDS,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Send bytes over TCP from one stack to the other; returns both ends' reports (stacks.py, Payload and Tally)."""
    port = await sink.stack.call("listen", checked=checked)
    receiving = asyncio.ensure_future(sink.stack.call("receive"))
    words = {"seconds": seconds, "most": most, "checked": checked, "connect_seconds": connect_seconds}
    try:
        sent = await source.stack.call("send", address=sink.address, port=port, **words)
        return sent, await receiving
    finally:
        await end_task(receiving)


async def replace_backend(topology: Topology, progress: Progress) -> tuple[tuple[int, int], float]:
    """Kill the backend with SIGKILL and start another; returns both process ids, and the milliseconds between."""
    old, killed = topology.backend.pid, time.monotonic()
    topology.backend.kill()
    topology.start_backend()
    progress.say("killed; a new one starts")
    await topology.backend.ready()
    progress.say("the new one serves the rings")
    return (old, topology.backend.pid), (time.monotonic() - killed) * 1000


async def _report_speed(topology: Topology, direction: str, progress: Progress) -> None:
    """Show the current throughput until cancelled."""
    last, when = (await count(topology, direction))["bytes"], time.monotonic()
    while True:
        await asyncio.sleep(PROGRESS_SECONDS)
        now, size = time.monotonic(), (await count(topology, direction))["bytes"]
        progress.say(f"{(size - last) * 8e-9 / (now - when):.1f} Gbit/s")
        last, when = size, now


def _gbit_s(received: dict[str, Any]) -> float:
    return float(received["bytes"] * 8e-9 / max(received["seconds"], 1e-3))


def _between(least: float, value: float, most: float) -> float:
    return min(max(value, least), most)
