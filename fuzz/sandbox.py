# SPDX-License-Identifier: Apache-2.0
"""No frame from the guest raises an error in the sandbox or has many answers, and every connection ends."""

from __future__ import annotations

import random
from dataclasses import dataclass

from tests.net.sandbox_frames import GOOD

from netback.net.sandbox.network import IPV6, MAC, PATIENCE, addresses, furnish
from netback.net.sandbox.tcp import MAX_SENT
from netback.net.sandbox.tcpip import Host
from netback.net.user import IPV4

MAX_ANSWERS = MAX_SENT + 2


@dataclass(frozen=True, slots=True)
class Case:
    ops: tuple[bytes, ...]
    """Frames, each led by its virtio_net_hdr."""


WORDS = (Case,)


def frame(rng: random.Random) -> bytes:
    """A good frame with some bytes changed, cut or longer; seldom none of it."""
    if rng.random() < 0.05:
        return rng.randbytes(rng.randint(0, 100))
    made = bytearray(rng.choice(GOOD))
    for _ in range(rng.choice((0, 0, 1, 1, 2, 5))):
        made[rng.randrange(len(made))] = rng.choice((0, 1, 0xFF, rng.randrange(256)))
    end = rng.choice((len(made), len(made), rng.randint(0, len(made))))
    return bytes(made[:end]) + rng.randbytes(rng.choice((0, 0, rng.randint(0, 1500))))


def make(rng: random.Random) -> Case:
    return Case(tuple(frame(rng) for _ in range(rng.randint(1, 40))))


def play(case: Case) -> int:
    sent: list[bytes] = []
    host = Host(addresses(IPV4, IPV6), MAC, sent.append)
    furnish(host, IPV4, IPV6)
    for now, message in enumerate(case.ops):
        before = len(sent)
        host.receive(message)
        host.flush()
        assert len(sent) - before <= MAX_ANSWERS, "a frame has too many answers"
        host.tick(now / 100)
    for tick in range(4):
        host.tick(1 + tick * (PATIENCE + 1))
    assert not host.busy, "a connection stays"
    return len(case.ops)
