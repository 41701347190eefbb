# SPDX-License-Identifier: Apache-2.0
"""Frames leave a switch whole, in order, at the ports that the oracle names; what does not is counted as lost there."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass

from tests.switch_oracle import SwitchOracle

from netback.dataplane import clock
from netback.dataplane.peers.switch import Port, Switch

PORTS, ADDRESSES, LIMIT, AGEING = 4, 8, 3, 10
SIZES = (14, 60, 64, 1514, 4096, 4097, 9014, 65000, 65535 + 22)
SECOND = 1_000_000_000
BEGIN = 1000
Sent = tuple[int, int, int]
"""To, from, and bytes."""


@dataclass(frozen=True, slots=True)
class Send:
    port: int
    frames: tuple[Sent, ...]


@dataclass(frozen=True, slots=True)
class Take:
    port: int
    count: int


@dataclass(frozen=True, slots=True)
class Open:
    port: int
    on: bool


@dataclass(frozen=True, slots=True)
class Wait:
    seconds: int


@dataclass(frozen=True, slots=True)
class Case:
    learns: bool
    ops: tuple[Send | Take | Open | Wait, ...]


WORDS = (Case, Send, Take, Open, Wait)


def address(number: int) -> bytes:
    return b"\x02\0\0\0\0" + bytes([number]) if number < ADDRESSES else b"\x01\0\x5e\0\0\x01"


def operation(rng: random.Random) -> Send | Take | Open | Wait:
    kind, port = rng.random(), rng.randrange(PORTS)
    if kind < 0.6:
        size = rng.choice(SIZES)
        frames = (
            (rng.randint(0, ADDRESSES), rng.randint(0, ADDRESSES), rng.choice((size, rng.choice(SIZES))))
            for _ in range(rng.choice((1, 3, 64)))
        )
        return Send(port, tuple(frames))
    if kind < 0.9:
        return Take(port, rng.choice((1, 5, 64)))
    return Open(port, rng.random() < 0.7) if kind < 0.96 else Wait(rng.randint(1, AGEING))


def make(rng: random.Random) -> Case:
    return Case(rng.random() < 0.8, tuple(operation(rng) for _ in range(rng.randint(1, 120))))


class Play:
    """A switch beside its oracle, and the frames that each port should give."""

    def __init__(self, learns: bool) -> None:
        self.switch = Switch(learns=learns, ageing=AGEING, secret=12345)
        self.ports = [Port(self.switch, limit=LIMIT) for _ in range(PORTS)]
        self.oracle = SwitchOracle(range(PORTS), ageing=AGEING, limit=LIMIT, learns=learns)
        self.wanted: list[deque[bytes]] = [deque() for _ in range(PORTS)]
        self.lost = [0] * PORTS
        self.frames, self.now = 0, BEGIN
        for port in range(PORTS):
            self.open(port, True)

    def open(self, port: int, on: bool) -> None:
        self.ports[port].open(on)
        self.oracle.open(port, on)

    def send(self, op: Send) -> None:
        messages = []
        for to, sender, size in op.frames:
            self.frames += 1
            head = bytes(10) + address(to) + address(sender)
            messages.append(head + (self.frames.to_bytes(4, "big") * (size // 4 + 1))[: size - 12])
            for port in self.oracle.send(op.port, messages[-1][10:], self.now):
                self.wanted[port].append(messages[-1])
        assert self.ports[op.port].peers[0].send(messages) == (len(messages), 0)

    def take(self, port: int, count: int) -> int:
        got = self.ports[port].peers[0].recv(count)
        for message in got:
            while self.wanted[port] and self.wanted[port][0] != message:
                self.wanted[port].popleft()
                self.lost[port] += 1
            assert self.wanted[port], "a frame is not what was sent, or comes twice"
            self.wanted[port].popleft()
        return len(got)

    def end(self) -> None:
        for port in range(PORTS):
            while self.take(port, 64):
                pass
            assert self.ports[port].lost == self.lost[port] + len(self.wanted[port]), "a loss is not counted"
        assert self.switch.addresses() == self.oracle.addresses(self.now)
        for made in self.ports:
            made.close()


def play(case: Case) -> int:
    clock.fix(BEGIN * SECOND)
    try:
        played = Play(case.learns)
        for op in case.ops:
            if isinstance(op, Send):
                played.send(op)
            elif isinstance(op, Take):
                played.take(op.port, op.count)
            elif isinstance(op, Open):
                played.open(op.port, op.on)
            else:
                played.now += op.seconds
                clock.fix(played.now * SECOND)
        played.end()
    finally:
        clock.fix(0)
    return played.frames + len(case.ops)
