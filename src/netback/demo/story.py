# SPDX-License-Identifier: Apache-2.0
"""What a demo does, one thing after the other, and what it finds out.

Knows the scene's processes by what they can be asked; how results look is in show.py.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from netback.demo.processes import DemoError
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
from netback.demo.scene import Scene, set_scene, start_xen
from netback.demo.tiers import Side, Tier, choose

PINGS, PING_GAP = 12, 0.02
TO_HOST, TO_GUEST = "guest to host", "host to guest"
RUNS = ((TO_HOST, False), (TO_GUEST, True))
"""Each direction, and whether that is the reverse one for iperf3, whose client is the guest."""
OTHERS_SECONDS = 5.0
"""What everything but the transfers takes, with room to spare."""
RUN_LEAST, RUN_MOST = 0.2, 2.0
CAPTURED_BYTES = 1 << 20
CAPTURED_SECONDS = 1.0
FIRST_PING_TRIES = 20
SYN_SECONDS = 2.5
"""Enough for a stack to send SYN again."""
SURVIVED_MOST = 4.0
KILLED_AFTER = 0.3
"""Of a transfer's time."""
GLANCE = 0.25
PATIENCE = 10.0
CAPTURE = "netback-demo.pcapng"


class Break(StrEnum):
    """What can be broken, to see what holds."""

    CSUM = "csum"
    RESTART = "restart"


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for."""

    tier: Tier | None
    broken: Break | None
    seconds: float


class Progress(Protocol):
    """A phase that is under way."""

    def say(self, text: str) -> None: ...


class Show(Protocol):
    """Whoever looks on."""

    def phase(self, title: str, seconds: float = 0.0) -> AbstractContextManager[Progress]:
        """Something begins that takes time, about so much where it is known."""

    def tell(self, result: object) -> None:
        """Something of report.py is known."""


class Story:
    """One demo."""

    def __init__(self, options: Options, show: Show, directory: Path) -> None:
        self.report = Report()
        self._options = options
        self._show = show
        self._directory = directory
        self._phase = "starting"
        self._begin = time.monotonic()
        self._run_seconds = min(max((options.seconds - OTHERS_SECONDS) / 4, RUN_LEAST), RUN_MOST)

    @property
    def capture_path(self) -> Path:
        """Where the frames are until the runtime directory goes."""
        return self._directory / CAPTURE

    async def tell(self) -> Report:
        """From the beginning to the end; DemoError where something did not happen, or not in time."""
        acts: dict[Break | None, Callable[[Scene], Awaitable[None]]] = {
            None: self._everything,
            Break.CSUM: self._break_csum,
            Break.RESTART: self._break_restart,
        }
        try:
            async with asyncio.timeout(self._options.seconds), self._scene() as scene:
                await acts[self._options.broken](scene)
        except TimeoutError as error:
            raise DemoError(
                f"not done within {self._options.seconds:g} seconds: {self._phase} took too long"
            ) from error
        self.report.seconds = time.monotonic() - self._begin
        return self.report

    def _tell(self, result: object) -> None:
        self._show.tell(result)

    def _under(self, title: str, seconds: float = 0.0) -> AbstractContextManager[Progress]:
        self._phase = title
        return self._show.phase(title, seconds)

    # ---- acts

    @asynccontextmanager
    async def _scene(self) -> AsyncIterator[Scene]:
        with ExitStack() as undo:
            with self._under("starting"):
                xen = start_xen(self._directory, undo)
                stage = await choose(self._options.tier, self._directory, undo)
            self.report.chosen = Chosen(str(stage.tier), stage.tier.means, stage.reason)
            self._tell(self.report.chosen)
            setting = set_scene(
                stage, xen, self._directory, undo, cable=self._options.broken is Break.CSUM, told=self._tell
            )
            async with setting as scene:
                self.report.timeline = scene.timeline.steps
                await self._first_ping(scene)
                yield scene

    async def _everything(self, scene: Scene) -> None:
        self.report.ping = await self._ping(scene)
        self._tell(self.report.ping)
        for segmentation in (True, False):
            if not segmentation:
                await self._set_segmentation(scene, on=False)
            for direction, reverse in RUNS:
                flow = await self._flow(scene, direction, segmentation, reverse)
                self.report.throughput.append(flow)
                self._tell(flow)
        await self._set_segmentation(scene, on=True)
        self.report.capture = await self._capture(scene)

    async def _break_csum(self, scene: Scene) -> None:
        ping, gbit_s = await self._ping(scene), await self._speed(scene)
        errors = await scene.host.stack.call("checksum_errors")
        await scene.netfront.call("lose_flags")
        after = await self._ping(scene)
        tcp = await self._death(scene)
        errors = await scene.host.stack.call("checksum_errors") - errors
        self.report.lost_flags = LostFlags(ping, gbit_s, after, tcp, errors)
        self._tell(self.report.lost_flags)
        if after.received == 0:
            raise DemoError("ping died as well: that is not what lost checksum flags do")

    async def _break_restart(self, scene: Scene) -> None:
        seconds = min(max(self._options.seconds - OTHERS_SECONDS, 1.0), SURVIVED_MOST)
        with self._under("transfers both ways, and a kill -9 of the backend", seconds) as progress:
            going = asyncio.gather(
                transfer(scene.guest, scene.host, seconds, checked=True),
                transfer(scene.host, scene.guest, seconds, checked=True),
            )
            try:
                await asyncio.sleep(seconds * KILLED_AFTER)
                pids, down = await replace_backend(scene, progress)
                survivors = [
                    _survivor(direction, *ends)
                    for (direction, _), ends in zip(RUNS, await going, strict=True)
                ]
            finally:
                await _abandon(going)
        last = scene.timeline.steps[-1]
        self.report.restart = Restart(*pids, down, (last.backend, last.frontend), tuple(survivors))
        self._tell(self.report.restart)
        if not all(survivor.intact for survivor in survivors):
            raise DemoError("a transfer was damaged")

    # ---- parts of them

    async def _first_ping(self, scene: Scene) -> None:
        with self._under("the first ping"):
            await reach(scene)

    async def _ping(self, scene: Scene) -> Ping:
        with self._under("ping", PINGS * PING_GAP):
            trips = await scene.host.stack.call(
                "ping", address=scene.guest.address, times=PINGS, gap=PING_GAP
            )
        return Ping.of(trips)

    async def _set_segmentation(self, scene: Scene, *, on: bool) -> None:
        with self._under(f"the guest connects anew, {'with' if on else 'without'} segmentation offload"):
            await scene.netfront.call("segmentation", on=on)
            await scene.guest.stack.call("segmentation", on=on)  # afterwards: a tap's features begin anew
            await reach(scene)

    async def _flow(self, scene: Scene, direction: str, segmentation: bool, reverse: bool) -> Flow:
        title = f"TCP {direction}, {'with' if segmentation else 'without'} segmentation offload"
        with self._under(title, self._run_seconds) as progress:
            before = await crossing(scene, direction)
            glancing = asyncio.create_task(_glance(scene, direction, progress))
            try:
                tool, gbit_s = await self._measure(scene, reverse)
            finally:
                await _abandon(glancing)
            crossed = Crossing.between(before, await crossing(scene, direction))
        return Flow(direction, segmentation, tool, gbit_s, crossed)

    async def _measure(self, scene: Scene, reverse: bool) -> tuple[str, float]:
        """By iperf3 where it is and there is time for its whole seconds, else by our own bytes."""
        whole = int(self._run_seconds)
        if whole and await scene.host.stack.call("serve_iperf"):
            bits = await scene.guest.stack.call(
                "iperf", address=scene.host.address, seconds=whole, reverse=reverse
            )
            return "iperf3", bits / 1e9
        ends = (scene.host, scene.guest) if reverse else (scene.guest, scene.host)
        _, received = await transfer(*ends, self._run_seconds)
        return "built in", _gbit_s(received)

    async def _capture(self, scene: Scene) -> CaptureFile:
        """A few frames of each kind: this is for looking at, and slower than what was measured."""
        with self._under("writing a pcapng"):
            await scene.backend.call("begin_capture", path=str(self.capture_path))
            await scene.host.stack.call("ping", address=scene.guest.address, times=3, gap=0.01)
            for ends in ((scene.guest, scene.host), (scene.host, scene.guest)):
                await transfer(*ends, CAPTURED_SECONDS, most=CAPTURED_BYTES)
            frames = await scene.backend.call("end_capture")
        return CaptureFile(str(self.capture_path), frames)

    async def _speed(self, scene: Scene) -> float:
        with self._under("TCP", self._run_seconds):
            return _gbit_s((await transfer(scene.guest, scene.host, self._run_seconds))[1])

    async def _death(self, scene: Scene) -> str:
        """What a client is told that tries to connect."""
        with self._under("TCP without checksum flags", SYN_SECONDS):
            try:
                await transfer(scene.guest, scene.host, RUN_LEAST, patience=SYN_SECONDS)
            except DemoError as error:
                return str(error)
        raise DemoError("TCP lives without checksum flags: nothing was broken")


async def reach(scene: Scene) -> None:
    """Until a ping comes back: ARP, and a link that just got its carrier, take their time."""
    for _ in range(FIRST_PING_TRIES):
        if (await scene.host.stack.call("ping", address=scene.guest.address, times=1, gap=0.0))[0]:
            return
    raise DemoError("no ping crosses")


async def crossing(scene: Scene, direction: str) -> dict[str, int]:
    """What crossed the ring so far: as the backend counts it, but notifications as their sender does."""
    ring, teller = ("tx", scene.netfront) if direction == TO_HOST else ("rx", scene.backend)
    counted, sent = await asyncio.gather(scene.backend.call("counters"), teller.call("counters"))
    numbers = {name: counted.get(f"{ring}_{name}", 0) for name in ("frames", "slots", "bytes")}
    return {**numbers, "notifications": sent.get(f"{ring}_notifies", 0)}


async def _abandon(going: asyncio.Future[Any]) -> None:
    """End what nobody waits for any more, and hear what it says: asyncio would tell the user of it with a traceback."""
    going.cancel()
    await asyncio.gather(going, return_exceptions=True)


async def transfer(
    source: Side,
    sink: Side,
    seconds: float,
    *,
    most: int = 1 << 60,
    checked: bool = False,
    patience: float = PATIENCE,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Bytes over TCP, from one stack to the other: what both ends say of it."""
    port = await sink.stack.call("listen", checked=checked)
    receiving = asyncio.ensure_future(sink.stack.call("receive"))
    try:
        sent = await source.stack.call(
            "send",
            address=sink.address,
            port=port,
            seconds=seconds,
            most=most,
            checked=checked,
            patience=patience,
        )
        return sent, await receiving
    finally:
        await _abandon(receiving)


async def replace_backend(scene: Scene, progress: Progress) -> tuple[tuple[int, int], float]:
    """kill -9, and a new one: both pids, and the milliseconds without any."""
    old, killed = scene.backend.pid, time.monotonic()
    scene.backend.kill()
    scene.start_backend()
    progress.say("killed; a new one starts")
    await scene.backend.ready()
    progress.say("the new one serves the rings")
    return (old, scene.backend.pid), (time.monotonic() - killed) * 1000


async def _glance(scene: Scene, direction: str, progress: Progress) -> None:
    """Say how fast it is at the moment, until cancelled."""
    last, when = (await crossing(scene, direction))["bytes"], time.monotonic()
    while True:
        await asyncio.sleep(GLANCE)
        now, bytes_now = time.monotonic(), (await crossing(scene, direction))["bytes"]
        progress.say(f"{(bytes_now - last) * 8e-9 / (now - when):.1f} Gbit/s")
        last, when = bytes_now, now


def _gbit_s(received: dict[str, Any]) -> float:
    return float(received["bytes"] * 8e-9 / max(received["seconds"], 1e-3))


def _survivor(direction: str, sent: dict[str, Any], received: dict[str, Any]) -> Survivor:
    intact = sent["bytes"] == received["bytes"] and sent["digest"] == received["digest"]
    return Survivor(direction, received["bytes"], received["silence"] * 1000, received["digest"], intact)
