# SPDX-License-Identifier: Apache-2.0
"""A lesson on emulated Xen, step by step: a handshake, a TX frame, an RX frame, a stall, a kill -9, and the demo.

The guest is a frontend that follows a script (`netback.frontend.Script`), so each slot is written when its step comes.
The backend is a process of its own, which a step can kill; the network is a datagram socket of this process.
"""

import asyncio
import os
import shutil
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from netback.abi.netif import RX_REQUEST, TX_REQUEST
from netback.abi.xenbus import XenbusState as State
from netback.control import Client, ControlError
from netback.control.schema import AttachRequest
from netback.demo.child import DemoError
from netback.demo.run import first_ping, transfer
from netback.demo.tiers import choose
from netback.demo.topology import DEVICE, Topology, build, end_task, start
from netback.errors import NetbackError
from netback.frontend import Script
from netback.platforms.base import GrantedPage
from netback.platforms.emulated import Emulator
from netback.process import die_with
from netback.web.hub import Hub
from netback.web.server import listen, serve

SECONDS = 10.0
STALL_SECONDS = 1
BUFFERS = 4
TRANSFER_SECONDS = 5.0
GUEST_MAC = bytes.fromhex("00163e000001")
ETHERTYPE = b"\x88\xb5"
"""For local experiments (IEEE 802)."""
NETWORK_MAC = bytes.fromhex("020000000001")
CONFIG = f"rx_drain_seconds = 60\nrx_stall_seconds = {STALL_SECONDS}\n"


@dataclass(frozen=True, slots=True)
class Step:
    """One step: what its button does, and what there is to see afterwards."""

    title: str
    text: str
    act: Callable[["Scene"], Awaitable[None]]


class Scene:
    """The actors of one run of the lesson, below `directory`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.watched = directory
        """The directory of the backend that there is to see."""
        self._undo = AsyncExitStack()
        self._process: asyncio.subprocess.Process | None = None
        self.device = ""
        self.said = ""
        """What came at the network or the guest in the last step."""
        self._posted = 0
        self._taken = 0
        self._pages: list[GrantedPage] = []

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as undo:
            await undo.enter_async_context(Emulator(self.directory))
            self._near, self._far = self.directory / "network.sock", self.directory / "vif.sock"
            (self.directory / "netback.toml").write_text(CONFIG)
            undo.callback((self.directory / "netback.toml").unlink)
            self._network = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            self._network.setblocking(False)
            self._network.bind(os.fspath(self._near))
            undo.callback(self._near.unlink)
            undo.push_async_callback(self.end_backend, signal.SIGTERM)
            await self.begin_backend()
            self.guest = await undo.enter_async_context(Script(self.directory, name="guest"))
            self._undo = undo.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._undo.aclose()

    async def begin_backend(self) -> None:
        """Start a backend and wait until it answers."""
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "netback", "run", "--platform", "emulated"),
            *("--dir", os.fspath(self.directory), "--config", os.fspath(self.directory / "netback.toml")),
            stdin=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            preexec_fn=die_with(os.getpid()),
        )
        async with asyncio.timeout(SECONDS):
            while not await asyncio.to_thread(self._answers):
                if self._process.returncode is not None:
                    raise NetbackError("the lesson's backend ended")
                await asyncio.sleep(0.05)

    def _answers(self) -> bool:
        with suppress(ControlError), Client(self.directory):
            return True
        return False

    async def end_backend(self, number: signal.Signals) -> None:
        """Send the backend a signal, and wait for its end."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)
            await self._process.wait()

    # ---- what the steps do

    async def attach(self) -> None:
        """As a toolstack does."""
        net = f"dgram:{self._near},local={self._far}"
        request = AttachRequest(guest=str(self.guest.guest.domid), net=net, mac=GUEST_MAC.hex(":"))

        def attach() -> str:
            with Client(self.directory) as client:
                return client.attach(request)

        self.device = await asyncio.to_thread(attach)

    async def connect(self) -> None:
        await self.guest.offered()
        await self.guest.connect()

    async def put_request(self) -> None:
        """A TX request that no event announces."""
        head = b"\xff" * 6 + GUEST_MAC + ETHERTYPE
        frame = head + b"hello from the guest".ljust(46, b".")
        page = self.guest.grant(frame, readonly=True)
        self._posted += 1
        request = TX_REQUEST.pack(page.gref, 0, 0, self._posted, len(frame))
        self.guest.post(self.guest.tx, request, notify=False)

    async def send_event(self) -> None:
        self.guest.notify(self.guest.tx)
        await self.guest.answered(self.guest.tx, self._posted)
        await self.receive_at_network()

    async def receive_at_network(self) -> None:
        """Until the frame of the last request has come."""
        loop = asyncio.get_running_loop()
        frame = await loop.sock_recv(self._network, 2048)
        self.said = f"The network received {len(frame)} bytes: {frame[14:].rstrip(b'.').decode()!r}"

    async def post_buffers(self) -> None:
        rx = self.guest.rx
        for _ in range(BUFFERS):
            page = self.guest.grant()
            self._pages.append(page)
            self.guest.post(rx, RX_REQUEST.pack(len(self._pages) - 1, 0, page.gref), notify=False)
        self.guest.notify(rx)

    async def frames_for_guest(self, count: int) -> None:
        loop, head = asyncio.get_running_loop(), GUEST_MAC + NETWORK_MAC + ETHERTYPE
        for number in range(count):
            frame = head + f"frame {number}".encode().ljust(46, b".")
            await loop.sock_sendto(self._network, frame, os.fspath(self._far))

    async def one_frame(self) -> None:
        await self.frames_for_guest(1)
        self._taken += 1
        await self.guest.answered(self.guest.rx, self._taken)
        self.say_received(1)

    def say_received(self, count: int) -> None:
        last = self.guest.answers(self.guest.rx, self._taken - 1, 1)[0]
        frames = "one frame" if count == 1 else f"{count} frames"
        self.said = f"The guest received {frames}; the last response: id {last[0]}, {last[3]} bytes"

    async def too_many(self) -> None:
        left = BUFFERS - self._taken
        await self.frames_for_guest(left + 3)
        self._taken += left
        await self.guest.answered(self.guest.rx, self._taken)
        await self.until_stalled(True)
        self.say_received(left)

    async def until_stalled(self, wanted: bool) -> None:
        """Wait for the backend's verdict."""

        def follow() -> None:
            with Client(self.directory) as client, client.statistics(0.1, device=self.device) as statistics:
                next(event for event in statistics if (event.stalled is not None) == wanted)

        await asyncio.wait_for(asyncio.to_thread(follow), SECONDS)

    async def buffers_again(self) -> None:
        await self.post_buffers()
        await self.until_stalled(False)
        await self.one_frame()

    async def kill(self) -> None:
        await self.put_request()
        await self.end_backend(signal.SIGKILL)

    async def successor(self) -> None:
        await self.begin_backend()
        await self.guest.answered(self.guest.tx, self._posted)
        await self.receive_at_network()

    async def close(self) -> None:
        await self.guest.set_state(State.CLOSING)
        await self.guest.backend(State.CLOSING, State.CLOSED)
        await self.guest.set_state(State.CLOSED)
        await self.guest.backend(State.CLOSED)

    async def demo(self) -> None:
        """The processes of `netback demo`, with TCP between its stacks, each way in turn, until the scene ends."""
        directory = self.directory / "demo"
        async with AsyncExitStack() as made:
            directory.mkdir()
            made.callback(shutil.rmtree, directory, ignore_errors=True)
            undo = made.enter_context(ExitStack())
            xen = start("xen", directory, undo)
            stage = await choose(None, directory, undo)
            building = build(stage, xen, directory, undo, cable=False, show=lambda _: None)
            topology = await made.enter_async_context(building)
            await first_ping(topology)
            made.push_async_callback(end_task, asyncio.ensure_future(keep_flowing(topology)))
            await self._undo.enter_async_context(made.pop_all())
        self.watched = topology.backend_directory
        self.device = str(DEVICE)
        self.said = f"The stacks are {stage.tier.means}"


async def keep_flowing(topology: Topology) -> None:
    """Transfers from the guest to the host, then back, without an end. In slow motion one may not come to its end."""
    ends = topology.guest, topology.host
    while True:
        try:
            await transfer(*ends, TRANSFER_SECONDS)
        except DemoError:
            await asyncio.sleep(1)
        ends = ends[1], ends[0]


STEPS = (
    Step(
        "The toolstack writes a device",
        "netback attach wrote two directories into xenstore, one for each end of the vif, each with a node named "
        "state. The backend offers its features and is in InitWait. The guest's end is Initialising: its driver has "
        "not looked yet.",
        Scene.attach,
    ),
    Step(
        "The guest connects",
        "The guest made two rings, each one page, and granted both to the backend. It wrote their grant references, "
        "the number of an event channel and its features, then Connected. The backend mapped the pages, bound the "
        "channel and wrote Connected, too.",
        Scene.connect,
    ),
    Step(
        "A TX request, without an event",
        "The guest granted a page with a frame, wrote a request into slot 0 of the TX ring and increased req_prod. "
        "The backend does not know: it sleeps until an event comes.",
        Scene.put_request,
    ),
    Step(
        "The event",
        "The guest sent an event. The backend read req_prod, copied the request, then the frame, gave the frame to the "
        "network, and wrote the response into the same slot: OKAY. The guest may use its page again.",
        Scene.send_event,
    ),
    Step(
        "Buffers for frames from the network",
        f"The guest posted {BUFFERS} requests in the RX ring, each with a granted, empty page. They wait there until "
        "frames come.",
        Scene.post_buffers,
    ),
    Step(
        "An RX frame",
        "The network sent a frame. The backend copied it into the page of the first request, and its response says "
        "how many bytes there are.",
        Scene.one_frame,
    ),
    Step(
        "A stall",
        f"The network sent three frames more than there are buffers. The guest took none away for {STALL_SECONDS} s, "
        "so the backend calls it stalled: its link has no carrier, and frames for it are dropped and counted. No other "
        "guest notices.",
        Scene.too_many,
    ),
    Step(
        "Buffers again",
        "The guest posted new requests. The carrier is back, and the next frame was delivered.",
        Scene.buffers_again,
    ),
    Step(
        "kill -9",
        "The guest put another request into its TX ring, and the backend was killed. The rings are pages of the guest: "
        "they are still there, and the states in xenstore are still Connected.",
        Scene.kill,
    ),
    Step(
        "The next backend",
        "A new process found the device Connected. It bound the event channel, mapped the rings, went on where its "
        "predecessor stopped, and delivered the frame. The guest did nothing, and knows nothing.",
        Scene.successor,
    ),
    Step(
        "The end",
        "The guest wrote Closing. The backend unmapped the rings, released the event channel and wrote Closed; only "
        "then did the guest take its grants back.",
        Scene.close,
    ),
    Step(
        "The demo, live",
        "Another emulated Xen runs netback demo: a guest and a host, each with a TCP/IP stack of its own, are joined "
        "by a vif and send bytes to each other over TCP, each way in turn. The rates and rings are theirs.",
        Scene.demo,
    ),
)


class Lesson:
    """The steps, and the scene that they act on; `directory` is the emulated Xen's. `follow` is called with the
    directory of the backend that there is to see, when it is another one.
    """

    def __init__(self, directory: Path, follow: Callable[[Path], object]) -> None:
        self.directory, self._follow = directory, follow
        self._scene: Scene
        self._done = 0
        self._acting = asyncio.Lock()

    async def __aenter__(self) -> Self:
        await self._begin()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._scene.__aexit__(None, None, None)

    def as_data(self) -> dict[str, Any]:
        """The step that was done last, the next one's title, and what came out."""
        step = STEPS[self._done - 1] if self._done else None
        return {
            "done": self._done,
            "steps": [each.title for each in STEPS],
            "title": step.title if step else "An emulated Xen",
            "text": step.text
            if step
            else "A store, a hypervisor, a backend and a guest run on this machine, each "
            "at its work, without Xen. Nothing connects the guest yet.",
            "said": self._scene.said,
            "device": self._scene.device,
        }

    async def next(self) -> None:
        """Do the next step; after the last one, nothing. NetbackError: it did not work out in time."""
        async with self._acting:
            if self._done < len(STEPS):
                self._scene.said = ""
                try:
                    async with asyncio.timeout(2 * SECONDS):
                        await STEPS[self._done].act(self._scene)
                except TimeoutError as error:
                    raise NetbackError(f"{STEPS[self._done].title}: not within {2 * SECONDS:g} s") from error
                self._done += 1
                if self._scene.watched != self.directory:
                    self._follow(self._scene.watched)

    async def restart(self) -> None:
        """Begin again with a new emulated Xen."""
        async with self._acting:
            await self._scene.__aexit__(None, None, None)
            await self._begin()
            self._follow(self.directory)

    async def _begin(self) -> None:
        self._done = 0
        self._scene = Scene(self.directory)
        await self._scene.__aenter__()


async def teach(directory: Path, port: int, ready: Callable[[str], object]) -> None:
    """Serve the page with the lesson, below `directory`, until cancelled; `ready` gets its address."""
    sock, hub = listen(port), Hub(directory)
    async with Lesson(directory, hub.follow) as lesson:
        await serve(sock, hub, ready, lesson)
