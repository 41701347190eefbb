# SPDX-License-Identifier: Apache-2.0
"""Of any frame, `antispoof` says what the oracle says, and what it drops is not sent."""

from __future__ import annotations

import random
from dataclasses import dataclass
from ipaddress import ip_network

from tests.antispoof_oracle import Oracle
from tests.dataplane import spoof_frames as parts

from netback.abi import virtio_net
from netback.dataplane.peers.antispoof import AntispoofPeer
from netback.dataplane.peers.null import NullPeer

TURNS = 64
IPS = (None, (), ("192.0.2.1",), ("192.0.2.0/24", "2001:db8::1"), ("2001:db8::/64", "203.0.113.9"))


@dataclass(frozen=True, slots=True)
class Case:
    ips: tuple[str, ...] | None
    ops: tuple[bytes, ...]


WORDS = (Case,)


def frame(rng: random.Random) -> bytes:
    """One of the kinds that are judged, mostly with an own address, and sometimes broken."""
    made = bytearray(rng.choice(parts.MAKERS)(rng))
    for _ in range(rng.choice((0, 0, 0, 1, 2, 5))):
        at = rng.randint(0, len(made) - 1)
        made[at] = rng.choice((rng.getrandbits(8), 0, 1, 43, 44, 51, 58, 60, 0x81, 0xAA, 0xFF))
    if rng.random() < 0.2:
        del made[rng.randint(1, len(made)) :]
    return bytes(made)


def make(rng: random.Random) -> Case:
    return Case(rng.choice(IPS), tuple(frame(rng) for _ in range(TURNS)))


def peer(ips: tuple[str, ...] | None) -> AntispoofPeer:
    """The filter in front of a peer that accepts everything."""
    networks = None if ips is None else [ip_network(ip, strict=False) for ip in ips]
    known = networks and [(each.network_address.packed, each.prefixlen) for each in networks]
    return AntispoofPeer(NullPeer(), mac=parts.MAC, networks=known)


def play(case: Case) -> int:
    filtering, oracle = peer(case.ips), Oracle(parts.MAC, case.ips)
    for each in case.ops:
        before = filtering.counters
        assert filtering.send([virtio_net.HEADER.pack(0, 0, 0, 0, 0, 0) + each]) == (1, 0)
        grown = {name for name, value in filtering.counters.items() if value != before[name]}
        reason = oracle.judge(each)
        assert grown == ({f"tx_antispoof_{reason}"} if reason else set()), (each.hex(), reason, grown)
    return len(case.ops)
