# SPDX-License-Identifier: Apache-2.0
"""The frames of the drive, and what is said of a checksum, agree with the oracles, which import nothing of netback."""

from __future__ import annotations

import random

import pytest

from netback.conform.chains import read_chains
from netback.conform.frames import (
    TCP,
    UDP,
    Addresses,
    arp_reply,
    arp_request,
    checksum_state,
    find_transport,
    toeplitz,
    transport,
)
from netback.frontend import HashConfig
from tests import hash_oracle
from tests.dataplane.offload_frames import C_TAG
from tests.frontend.frames import blank, on_the_wire

ENDS = Addresses(
    bytes.fromhex("00163e5e0002"),
    bytes.fromhex("020000 5e0001".replace(" ", "")),
    bytes([192, 0, 2, 2]),
    bytes([192, 0, 2, 1]),
    bytes.fromhex("20010db8") + bytes(11) + b"\2",
    bytes.fromhex("20010db8") + bytes(11) + b"\1",
)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize("size", [0, 1, 2, 99, 1000])
def test_checksums(version: int, protocol: int, size: int) -> None:
    payload = random.Random(size).randbytes(size)
    for partial, wanted in ((False, "right"), (True, "pseudo")):
        frame = transport(ENDS, version, protocol, payload, blank=partial)
        found = find_transport(frame)
        assert found is not None
        assert (found.version, found.protocol, found.end) == (version, protocol, len(frame))
        assert checksum_state(frame, found) == wanted
        spoiled = frame[:-1] + bytes([frame[-1] ^ 0x10])
        if size and not partial:
            assert checksum_state(spoiled, found) == "wrong"


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize("tags", [b"", C_TAG, C_TAG + C_TAG])
def test_frames_of_another_builder_are_right(version: int, protocol: int, tags: bytes) -> None:
    (frame,) = on_the_wire(blank(version, protocol, b"some payload", tags=tags))
    found = find_transport(frame)
    assert found is not None
    assert checksum_state(frame, found) == "right"


@pytest.mark.parametrize("length", range(0, 60, 7))
def test_a_frame_that_is_cut_has_no_transport(length: int) -> None:
    frame = transport(ENDS, 4, TCP, b"x" * 40, blank=False)
    assert find_transport(frame[:length]) is None


def test_the_hash_is_toeplitz() -> None:
    key = HashConfig().key
    rng = random.Random(1)
    for _ in range(20):
        data = rng.randbytes(12)
        assert toeplitz(key, data) == hash_oracle.toeplitz(key, data)


def test_arp_is_answered_for_the_host_alone() -> None:
    asked = arp_request(ENDS._replace(guest4=ENDS.host4, host4=ENDS.guest4, host_mac=ENDS.guest_mac))
    reply = arp_reply(asked, ENDS)
    assert reply is not None
    assert reply[6:12] == ENDS.host_mac
    assert arp_reply(arp_request(ENDS), ENDS) is None
    assert arp_reply(asked[:30], ENDS) is None


def test_any_slots_are_chains_that_fill_them() -> None:
    rng = random.Random(2)
    for _ in range(200):
        slots = [rng.randbytes(12) for _ in range(rng.randrange(1, 40))]
        first = rng.choice((0, 250, (1 << 32) - 5))
        chains = [*read_chains(0, first, slots)]
        assert sum(chain.slots for chain in chains) == len(slots)
        assert all(not chain.missing for chain in chains[:-1])
