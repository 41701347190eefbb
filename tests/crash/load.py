# SPDX-License-Identifier: Apache-2.0
"""Numbered frames through one direction of a vif, and their check at the other end.

Each frame's bytes follow from its flow and its number, so a wrong byte, or one of another guest, is found.
"""

import asyncio
import random
import socket
import struct
from collections.abc import Callable
from contextlib import suppress

from netback.dataplane.caps import EVERYTHING
from netback.frontend import FrontConfig
from tests.flow_oracle import flow_number
from tests.frontend import frames
from tests.offload_oracle import TCP

BURST = 64
"""BURST_FRAMES of dataplane/peers/peer.pxd."""
HELD = 1
"""A frame that waits in the backend for slots."""
_NUMBER = struct.Struct(">QQ")
_PLAIN_AT, _TCP4_AT, _TCP6_AT = 10 + 14, 10 + 14 + 40, 10 + 14 + 60
_AT = {b"\x88\xb5": _PLAIN_AT, b"\x08\x00": _TCP4_AT, b"\x86\xdd": _TCP6_AT}
"""The offset of the number in a message, by its EtherType."""
_MOST = 70000
_AGAIN = 0.5
"""Seconds after which the last frame counts as lost."""
_TURN = 16
"""Frames sent or received in one callback of the loop."""


def templates(rng: random.Random, config: FrontConfig) -> list[bytes]:
    """Messages of every kind and size that this guest takes unsegmented: one slot and many, blank checksums, GSO.

    Frames that the backend segments are left out: a kill or a full ring could lose a part of one.
    """
    most = 65535 if config.sg else 4000
    sizes = [
        60,
        61,
        1514,
        4000,
        4095,
        4096,
        4097,
        9014,
        40000,
        65535,
        *(rng.randrange(60, 20000) for _ in range(12)),
    ]
    plain = [frames.plain(frames.ethernet(rng.randrange(1 << 30), size)) for size in sizes if size <= most]
    blank = [frames.blank(version, TCP, rng.randbytes(1000)) for version in (4, 6)]
    gso = [
        frames.blank(version, TCP, rng.randbytes(size), mss=1400)
        for version in (4, 6)
        for size in (3000, 64000)
    ]
    made = plain + blank + gso * (config.caps == EVERYTHING)
    rng.shuffle(made)
    return made


class Flow:
    """One direction of one vif, from a socket to a socket.

    `repeats`: a kill may repeat the frames of one burst and loses none (TX). Otherwise it may lose them
    and repeats none (RX). `spread`: netback spreads the frames over queues by the network flows in it. A full inbox may
    then lose frames at any time, and a kill those in the inboxes; each network flow is in order, and none is repeated.
    """

    def __init__(
        self,
        flow: int,
        config: FrontConfig,
        sender: socket.socket,
        receiver: socket.socket,
        *,
        repeats: bool,
        spread: bool = False,
    ) -> None:
        self.received = 0
        self.lost = self.repeated = self.kills = 0
        self._flow = flow
        self._templates = templates(random.Random(flow), config)
        self._sender, self._receiver = sender, receiver
        self._repeats, self._spread = repeats, spread
        self._last: dict[int, int] = {}
        self._sent = self._next = 0
        self._jumps = 0
        self._rest: list[bytes] = []
        self._news = asyncio.Event()
        self._failure: BaseException | None = None
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(receiver, self._guarded(self._receive))

    # ---- for tests

    def run(self, running: bool = True) -> None:
        """Send as fast as the vif takes frames, or stop."""
        if running:
            self._loop.add_writer(self._sender, self._guarded(self._send_some))
        else:
            self._loop.remove_writer(self._sender)

    def read(self, reading: bool) -> None:
        """Read what arrives, or leave it in the socket."""
        if reading:
            self._loop.add_reader(self._receiver, self._guarded(self._receive))
        else:
            self._loop.remove_reader(self._receiver)

    def send(self, count: int) -> None:
        """Send exactly so many frames; the socket must have room."""
        for _ in range(count):
            self._sender.send(self.message(self._sent))
            self._sent += 1

    @property
    def sent(self) -> int:
        return self._sent

    async def arrived(self, count: int, seconds: float) -> None:
        """Wait until so many have come in total; AssertionError after so many seconds, or for a wrong frame."""
        try:
            async with asyncio.timeout(seconds):
                await self._until(lambda: self.received >= count)
        except TimeoutError:
            raise AssertionError(f"{self}: no progress") from None

    async def caught_up(self, seconds: float) -> None:
        """Wait for the last frame that was sent; one that a full inbox may have lost is sent again, as the next."""
        while self._spread and self._next < self._sent:
            with suppress(TimeoutError):
                async with asyncio.timeout(_AGAIN):
                    await self._until(lambda: self._next == self._sent)
                    return
            self.send(1)
        try:
            async with asyncio.timeout(seconds):
                await self._until(lambda: self._next == self._sent)
        except TimeoutError:
            raise AssertionError(f"{self}: the last frame does not come") from None

    async def _until(self, true: Callable[[], bool]) -> None:
        while not true():
            self._news.clear()
            await self._news.wait()
            self.check()

    def check(self) -> None:
        """AssertionError if a wrong frame has come."""
        if self._failure is not None:
            raise self._failure

    def killed(self) -> None:
        """Allow one more burst to be lost or repeated: a backend is about to be killed."""
        self.kills += 1

    def close(self) -> None:
        self._loop.remove_reader(self._receiver)
        self._loop.remove_writer(self._sender)

    def __str__(self) -> str:
        way = "TX" if self._repeats else "RX"
        numbers = f"{self._sent} sent, {self.received} came, next {self._next}, {self._jumps} jumps"
        return f"flow {self._flow} ({way}): {numbers}, {self.lost} lost, {self.repeated} again, {self.kills} kills"

    # ---- frames

    def message(self, number: int) -> bytes:
        """The frame with that number, led by its virtio_net_hdr."""
        template = self._templates[number % len(self._templates)]
        at = _AT[template[22:24]]
        return template[:at] + _NUMBER.pack(self._flow, number) + template[at + _NUMBER.size :]

    def _guarded(self, call: Callable[[], None]) -> Callable[[], None]:
        """A callback whose error ends the flow and is raised to the waiting test."""

        def guarded() -> None:
            try:
                call()
            except BlockingIOError:
                return
            except BaseException as error:
                self._failure = error
                self.close()
                self._news.set()

        return guarded

    def _send_some(self) -> None:
        for _ in range(_TURN):
            self.send(1)

    def _receive(self) -> None:
        for _ in range(_TURN):
            self._take(self._receiver.recv(_MOST))
        self._news.set()

    def _take(self, message: bytes) -> None:
        self._news.set()
        if self._rest and frames.on_the_wire(message) == self._rest[:1]:
            del self._rest[0]
            return
        at = _AT.get(message[22:24], _PLAIN_AT)
        flow, number = _NUMBER.unpack(message[at : at + _NUMBER.size].ljust(_NUMBER.size, b"\0"))
        assert flow == self._flow, f"{self}: a frame of flow {flow}"
        assert number < self._sent, f"{self}: frame {number} was never sent"
        self._whole(message, number)
        if self._spread:
            self._in_order(number, flow_number(message[10:]))
        else:
            self._in_turn(number)
        self.received += 1

    def _whole(self, message: bytes, number: int) -> None:
        """Check a message against the frame that was sent, or the first of its segments."""
        self._jumps += bool(self._rest)
        self._rest = []
        wanted = self.message(number)
        if message == wanted:
            return
        finished = frames.on_the_wire(wanted)
        assert frames.on_the_wire(message) == finished[:1], f"{self}: frame {number} has wrong bytes"
        self._rest = finished[1:]

    def _in_order(self, number: int, network_flow: int) -> None:
        assert number > self._last.get(network_flow, -1), f"{self}: frame {number} is repeated or late"
        self._last[network_flow] = number
        self._next = max(self._next, number + 1)

    def _in_turn(self, number: int) -> None:
        skipped, self._next = number - self._next, number + 1
        if not skipped:
            return
        self._jumps += 1
        if self._repeats:
            self.repeated -= skipped
            assert skipped < 0, f"{self}: {skipped} frames are lost before frame {number}"
        else:
            self.lost += skipped
            assert skipped > 0, f"{self}: frame {number} is repeated"
        assert self._jumps <= self.kills, f"{self}: frame {number} out of order, without a kill"
        assert abs(skipped) <= BURST + HELD or self.lost + self.repeated <= self.kills * (BURST + HELD), str(
            self
        )
