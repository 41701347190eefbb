# SPDX-License-Identifier: Apache-2.0
"""The Toeplitz hash: Microsoft's published vectors, and the plain Python oracle on any frame."""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Callable

import pytest
from fuzz import offload
from hypothesis import example, given
from hypothesis import strategies as st

from netback.abi.netif_control import HashType
from netback.dataplane.toeplitz import KEY_BYTES, Toeplitz
from tests.hash_oracle import flow_hash, toeplitz

KEY = bytes.fromhex("6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa")
"""The key of Microsoft's page "Verifying the RSS Hash Calculation", as are the values below."""
IPV4 = [
    ("66.9.149.187", 2794, "161.142.100.80", 1766, 0x323E8FC2, 0x51CCC178),
    ("199.92.111.2", 14230, "65.69.140.83", 4739, 0xD718262A, 0xC626B0EA),
    ("24.19.198.95", 12898, "12.22.207.184", 38024, 0xD2D0A5DE, 0x5C2B394A),
    ("38.27.205.30", 48228, "209.142.163.6", 2217, 0x82989176, 0xAFC7327F),
    ("153.39.163.191", 44251, "202.188.127.2", 1303, 0x5D1809C5, 0x10E828A2),
]
IPV6 = [
    ("3ffe:2501:200:1fff::7", 2794, "3ffe:2501:200:3::1", 1766, 0x2CC18CD5, 0x40207D3D),
    ("3ffe:501:8::260:97ff:fe40:efab", 14230, "ff02::1", 4739, 0x0F0C461C, 0xDDE51BBF),
    (
        "3ffe:1900:4545:3:200:f8ff:fe21:67cf",
        44251,
        "fe80::200:f8ff:fe21:67cf",
        38024,
        0x4B61E985,
        0x02D1FEEF,
    ),
]
TCP, UDP = 6, 17
ALL = 15


def ethernet(kind: int, tags: int = 0) -> bytes:
    return (
        bytes(12) + b"".join(struct.pack(">HH", 0x8100, tag) for tag in range(tags)) + kind.to_bytes(2, "big")
    )


def ipv4(
    source: str, sport: int, to: str, dport: int, *, protocol: int = TCP, fragment: int = 0, words: int = 5
) -> bytes:
    head = struct.pack(">BBHHHBBH", 0x40 | words, 0, 4 * words + 20, 0, fragment, 64, protocol, 0)
    addresses = socket.inet_aton(source) + socket.inet_aton(to)
    return head + addresses + bytes(max(4 * (words - 5), 0)) + struct.pack(">HH", sport, dport) + bytes(16)


def ipv6(source: str, sport: int, to: str, dport: int, *, first: int = TCP, extensions: bytes = b"") -> bytes:
    head = struct.pack(">IHBB", 6 << 28, len(extensions) + 20, first, 64)
    addresses = socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, to)
    return head + addresses + extensions + struct.pack(">HH", sport, dport) + bytes(16)


@pytest.mark.parametrize("tags", [0, 1, 2])
@pytest.mark.parametrize(("source", "sport", "to", "dport", "plain", "tcp"), IPV4)
def test_published_ipv4(
    source: str, sport: int, to: str, dport: int, plain: int, tcp: int, tags: int
) -> None:
    frame = ethernet(0x0800, tags) + ipv4(source, sport, to, dport)
    assert Toeplitz(KEY, ALL).of(frame) == (1, tcp)
    assert Toeplitz(KEY, HashType.IPV4).of(frame) == (0, plain)
    assert Toeplitz(KEY, HashType.IPV6 | HashType.IPV6_TCP).of(frame) is None


@pytest.mark.parametrize(("source", "sport", "to", "dport", "plain", "tcp"), IPV6)
def test_published_ipv6(source: str, sport: int, to: str, dport: int, plain: int, tcp: int) -> None:
    frame = ethernet(0x86DD) + ipv6(source, sport, to, dport)
    assert Toeplitz(KEY, ALL).of(frame) == (3, tcp)
    assert Toeplitz(KEY, HashType.IPV6).of(frame) == (2, plain)
    assert Toeplitz(KEY, HashType.IPV4 | HashType.IPV4_TCP).of(frame) is None


FLOW4 = ("66.9.149.187", 2794, "161.142.100.80", 1766)
FLOW6 = ("3ffe:2501:200:1fff::7", 2794, "3ffe:2501:200:3::1", 1766)
OPTIONS = bytes([TCP, 0]) + bytes(6)


@pytest.mark.parametrize(
    ("packet", "kind", "found"),
    [
        (ipv4(*FLOW4, protocol=UDP), 0x0800, (0, 0x323E8FC2)),
        (ipv4(*FLOW4, fragment=0x2000), 0x0800, (0, 0x323E8FC2)),
        (ipv4(*FLOW4, fragment=7), 0x0800, (0, 0x323E8FC2)),
        (ipv4(*FLOW4, fragment=0x4000), 0x0800, (1, 0x51CCC178)),
        (ipv4(*FLOW4, words=15), 0x0800, (1, 0x51CCC178)),
        (ipv4(*FLOW4)[:23], 0x0800, (0, 0x323E8FC2)),
        (ipv4(*FLOW4)[:19], 0x0800, None),
        (ipv4(*FLOW4), 0x0806, None),
        (ipv6(*FLOW6, first=UDP), 0x86DD, (2, 0x2CC18CD5)),
        (ipv6(*FLOW6, first=0, extensions=OPTIONS), 0x86DD, (3, 0x40207D3D)),
        (ipv6(*FLOW6, first=44, extensions=OPTIONS), 0x86DD, (2, 0x2CC18CD5)),
        (ipv6(*FLOW6)[:43], 0x86DD, (2, 0x2CC18CD5)),
        (ipv6(*FLOW6)[:39], 0x86DD, None),
    ],
)
def test_the_maximal_type_that_a_frame_has(packet: bytes, kind: int, found: tuple[int, int] | None) -> None:
    frame = ethernet(kind) + packet
    assert Toeplitz(KEY, ALL).of(frame) == found
    assert flow_hash(frame, ALL, KEY) == found


@given(st.binary(max_size=KEY_BYTES), st.integers(0, ALL), st.integers(0, 2**32))
@example(b"", ALL, 0)
def test_any_frame_is_hashed_as_the_oracle_does(key: bytes, types: int, seed: int) -> None:
    """Real packets with any byte changed, cut anywhere, under any key; missing key octets are zero."""
    rng = random.Random(seed)
    packets = (
        ethernet(0x0800, rng.randrange(4)) + ipv4(*FLOW4, words=rng.randrange(4, 16)),
        ethernet(0x86DD, rng.randrange(4)) + ipv6(*FLOW6),
        ethernet(0x86DD)
        + ipv6(*FLOW6, first=rng.choice((0, 43, 44, 60)), extensions=OPTIONS * rng.randrange(1, 34)),
    )
    frame = bytearray(rng.choice(packets))
    for _ in range(rng.randrange(4)):
        frame[rng.randrange(len(frame))] = rng.randrange(256)
    frame = frame[: rng.randrange(len(frame) + 1)] if rng.random() < 0.3 else frame
    assert Toeplitz(key, types).of(bytes(frame)) == flow_hash(bytes(frame), types, key)


@pytest.mark.parametrize("make", [offload.whole, offload.broken, lambda rng: offload.tunnel(rng)[0]])
def test_the_headers_suffice(make: Callable[[random.Random], bytes]) -> None:
    """netback's frontend compares the hash of a frame by a private copy of its first 338 bytes (headers.pxd)."""
    hashing = Toeplitz(KEY, ALL)
    found = [(frame, hashing.of(frame)) for frame in (make(random.Random(seed)) for seed in range(300))]
    assert any(value for _, value in found)
    assert all(hashing.of(frame[:338]) == value for frame, value in found)


def test_a_key_of_zeros_hashes_to_zero() -> None:
    """netif.h: a cleared key ensures that the hash is always zero."""
    assert Toeplitz(b"", ALL).of(ethernet(0x0800) + ipv4(*FLOW4)) == (1, 0)


def test_a_key_that_is_too_long() -> None:
    with pytest.raises(ValueError, match="at most 40"):
        Toeplitz(bytes(41), ALL)


def test_the_oracle_knows_the_published_values() -> None:
    data = socket.inet_aton(FLOW4[0]) + socket.inet_aton(FLOW4[2]) + struct.pack(">HH", FLOW4[1], FLOW4[3])
    assert (toeplitz(KEY, data[:8]), toeplitz(KEY, data)) == (0x323E8FC2, 0x51CCC178)
