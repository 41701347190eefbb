# SPDX-License-Identifier: Apache-2.0
"""Numbered frames that fill one direction of a vif, and the witness at its other end.

Each frame's bytes follow from its flow and its number, so that a wrong byte, or one of another guest, shows.
"""

import asyncio
import random
import socket
import struct
from collections.abc import Callable

from netback.dataplane.caps import EVERYTHING
from netback.frontend import FrontConfig
from tests.frontend import frames
from tests.offload_oracle import TCP

BURST = 64
"""BURST_FRAMES of dataplane/peers/peer.pxd."""
HELD = 1
"""A frame that waits in the backend for slots."""
_NUMBER = struct.Struct(">QQ")
_PLAIN_AT, _TCP4_AT, _TCP6_AT = 10 + 14, 10 + 14 + 40, 10 + 14 + 60
_AT = {b"\x88\xb5": _PLAIN_AT, b"\x08\x00": _TCP4_AT, b"\x86\xdd": _TCP6_AT}
"""Where the number is in a message, by its EtherType."""
_MOST = 70000
_TURN = 16
"""Frames sent or received before others have the loop."""


def templates(rng: random.Random, config: FrontConfig) -> list[bytes]:
    """Messages of every kind and size that this guest takes whole: one slot and many, blank checksums, TCP to segment.

    What has to be cut for it is left out: then a kill, or a full ring, could also cost a part of a frame.
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

    `repeats`: after a kill the frames of one burst may come again, none is lost (TX). Else they may be lost, and none
    comes again (RX).
    """

    def __init__(
        self, flow: int, config: FrontConfig, sender: socket.socket, receiver: socket.socket, *, repeats: bool
    ) -> None:
        self.received = 0
        self.lost = self.repeated = self.kills = 0
        self._flow = flow
        self._templates = templates(random.Random(flow), config)
        self._sender, self._receiver = sender, receiver
        self._repeats = repeats
        self._sent = self._next = 0
        self._jumps = 0
        self._rest: list[bytes] = []
        self._news = asyncio.Event()
        self._failure: BaseException | None = None
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(receiver, self._guarded(self._receive))

    # ---- what a test does

    def run(self, running: bool = True) -> None:
        """Send as fast as the vif takes it, or no more."""
        if running:
            self._loop.add_writer(self._sender, self._guarded(self._send_some))
        else:
            self._loop.remove_writer(self._sender)

    def read(self, reading: bool) -> None:
        """Take what arrives, or leave it where it is."""
        if reading:
            self._loop.add_reader(self._receiver, self._guarded(self._receive))
        else:
            self._loop.remove_reader(self._receiver)

    def send(self, count: int) -> None:
        """Just so many: they must have room."""
        for _ in range(count):
            self._sender.send(self.message(self._sent))
            self._sent += 1

    @property
    def sent(self) -> int:
        return self._sent

    async def arrived(self, count: int, seconds: float) -> None:
        """Until so many came in all; AssertionError where the vif stands still, or gave a wrong one."""
        try:
            async with asyncio.timeout(seconds):
                await self._until(lambda: self.received >= count)
        except TimeoutError:
            raise AssertionError(f"{self}: it stands still") from None

    async def caught_up(self, seconds: float) -> None:
        """Until the last frame that was sent came."""
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
        """AssertionError where something wrong came."""
        if self._failure is not None:
            raise self._failure

    def killed(self) -> None:
        """A backend is about to be killed: a burst more may be lost, or come again."""
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
        """The frame of that number, led by its virtio_net_hdr."""
        template = self._templates[number % len(self._templates)]
        at = _AT[template[22:24]]
        return template[:at] + _NUMBER.pack(self._flow, number) + template[at + _NUMBER.size :]

    def _guarded(self, call: Callable[[], None]) -> Callable[[], None]:
        """What goes wrong in a callback is the flow's end, and whoever waits for it hears of it."""

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
        self._in_turn(number)
        self.received += 1

    def _whole(self, message: bytes, number: int) -> None:
        """As it was sent, or the first of the segments that it was cut to."""
        self._jumps += bool(self._rest)
        self._rest = []
        wanted = self.message(number)
        if message == wanted:
            return
        finished = frames.on_the_wire(wanted)
        assert frames.on_the_wire(message) == finished[:1], f"{self}: frame {number} has wrong bytes"
        self._rest = finished[1:]

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
            assert skipped > 0, f"{self}: frame {number} comes again"
        assert self._jumps <= self.kills, f"{self}: frame {number} out of turn, without a kill"
        assert abs(skipped) <= BURST + HELD or self.lost + self.repeated <= self.kills * (BURST + HELD), str(
            self
        )
