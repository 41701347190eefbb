# SPDX-License-Identifier: Apache-2.0
"""Ethernet frames for the offload tests: good ones from parts, and hypothesis strategies that break them."""

from __future__ import annotations

import struct

from hypothesis import strategies as st

from tests.offload_oracle import TCP, UDP, folded, inverted, number, words

MACS = bytes.fromhex("00163e00000200163e000001")
SOURCE4, DESTINATION4 = bytes([192, 0, 2, 1]), bytes([192, 0, 2, 2])
SOURCE6 = bytes.fromhex("20010db8000000000000000000000001")
DESTINATION6 = bytes.fromhex("20010db8000000000000000000000002")
ELSEWHERE6 = bytes.fromhex("20010db80000000000000000000000ff")
TIMESTAMPS = bytes.fromhex("0101080a0102030405060708")
C_TAG, S_TAG = bytes.fromhex("81000064"), bytes.fromhex("88a80065")


def tcp(
    payload: bytes = b"", *, options: bytes = b"", flags: int = 0x18, seq: int = 1000, check: int = 0
) -> bytes:
    offset = (20 + len(options)) // 4 << 4
    return struct.pack(">HHIIBBHHH", 4000, 5001, seq, 77, offset, flags, 512, check, 0) + options + payload


def udp(payload: bytes = b"", *, ports: tuple[int, int] = (4000, 5001), check: int = 0) -> bytes:
    return struct.pack(">HHHH", *ports, 8 + len(payload), check) + payload


def ipv4(
    body: bytes,
    protocol: int = TCP,
    *,
    options: bytes = b"",
    ident: int = 0x1234,
    fragment: int = 0x4000,
    tos: int = 0,
    size: int | None = None,
) -> bytes:
    """`size`: another length than the packet's."""
    head_size = 20 + len(options)
    total = head_size + len(body) if size is None else size
    start = struct.pack(">BBHHHBBH", 0x40 | head_size // 4, tos, total, ident, fragment, 64, protocol, 0)
    head = bytearray(start + SOURCE4 + DESTINATION4 + options)
    head[10:12] = inverted(words(bytes(head)), udp=False).to_bytes(2, "big")
    return bytes(head) + body


def ipv6(
    body: bytes,
    protocol: int = TCP,
    *,
    extensions: tuple[tuple[int, bytes], ...] = (),
    size: int | None = None,
) -> bytes:
    """An extension is its number and its bytes; the first byte is filled in here. `size`: another length."""
    kinds = [number for number, _ in extensions] + [protocol]
    chain = b"".join(bytes([kinds[i + 1]]) + data[1:] for i, (_, data) in enumerate(extensions))
    return (
        struct.pack(
            ">IHBB", 6 << 28 | 0x12345, len(chain) + len(body) if size is None else size, kinds[0], 64
        )
        + SOURCE6
        + DESTINATION6
        + chain
        + body
    )


def ethernet(packet: bytes, *, tags: bytes = b"") -> bytes:
    return MACS + tags + (b"\x08\x00" if packet[0] >> 4 == 4 else b"\x86\xdd") + packet


def build(version: int, protocol: int, payload: bytes, *, tags: bytes = b"", flags: int = 0x18) -> bytes:
    body = tcp(payload, flags=flags) if protocol == TCP else udp(payload)
    return ethernet((ipv4 if version == 4 else ipv6)(body, protocol), tags=tags)


# --- tunnels: headers that lead an inner frame (Ethernet) or packet (IP)

ETHERNET, IPV4, IPV6 = 0x6558, 0x0800, 0x86DD
GENEVE_OPTION = bytes.fromhex("0102000112345678")


def vxlan(inner: bytes, *, flags: int = 8, check: int = 0) -> bytes:
    return udp(bytes([flags, 0, 0, 0, 0, 0, 9, 0]) + inner, ports=(50000, 4789), check=check)


def geneve(inner: bytes, kind: int = ETHERNET, *, options: bytes = GENEVE_OPTION, check: int = 0) -> bytes:
    head = struct.pack(">BBHI", len(options) // 4, 0, kind, 9 << 8)
    return udp(head + options + inner, ports=(50000, 6081), check=check)


def gre(inner: bytes, kind: int = ETHERNET, *, key: bytes = b"") -> bytes:
    return struct.pack(">BBH", 0x20 if key else 0, 0, kind) + key + inner


def gtp(inner: bytes) -> bytes:
    """GTP-U: it has a length of its own, so nothing of it is cut."""
    return udp(struct.pack(">BBHI", 0x30, 0xFF, len(inner), 7) + inner, ports=(2152, 2152))


def tunnelled(body: bytes, protocol: int, version: int = 4, *, tags: bytes = b"") -> bytes:
    """A frame whose outermost packet carries a tunnel."""
    return ethernet((ipv4 if version == 4 else ipv6)(body, protocol), tags=tags)


def with_pseudo(frame: bytes, at: int, protocol: int, addresses: bytes, end: int | None = None) -> bytes:
    """The frame with its pseudo-header sum, as a peer that asks for a checksum leaves it."""
    length = (len(frame) if end is None else end) - at
    field = at + (16 if protocol == TCP else 6)
    value = folded(words(addresses) + protocol + length)
    return frame[:field] + value.to_bytes(2, "big") + frame[field + 2 :]


HOP_BY_HOP = (0, bytes([0, 0, 1, 4, 0, 0, 0, 0]))
OPTIONS = (60, bytes([0, 0, 1, 4, 0, 0, 0, 0]))
USED_ROUTE = (43, bytes([0, 2, 0, 0, 0, 0, 0, 0]) + ELSEWHERE6)
OPEN_ROUTE = (43, bytes([0, 4, 0, 2, 0, 0, 0, 0]) + SOURCE6 + ELSEWHERE6)
MOBILE_ROUTE = (43, bytes([0, 2, 2, 1, 0, 0, 0, 0]) + ELSEWHERE6)
SEGMENT_ROUTE = (43, bytes([0, 4, 4, 1, 1, 0, 0, 0]) + ELSEWHERE6 + SOURCE6)
STRANGE_ROUTE = (43, bytes([0, 2, 3, 1, 0, 0, 0, 0]) + ELSEWHERE6)
FRAGMENT = (44, bytes([0, 0, 0, 1, 0, 0, 0, 9]))
LOOSE_ROUTE = bytes([1, 131, 7, 4, 203, 0, 113, 9])
USED_LOOSE_ROUTE = bytes([1, 131, 7, 8, 203, 0, 113, 9])
RECORD_ROUTE = bytes([7, 7, 4, 0, 0, 0, 0, 0])

tag_stacks = st.sampled_from([b"", b"", b"", C_TAG, S_TAG + C_TAG, S_TAG + C_TAG + C_TAG])
payloads = st.one_of(
    st.binary(max_size=64), st.integers(0, 3000).map(lambda n: bytes(i * 13 & 255 for i in range(n)))
)
extension_chains = st.lists(
    st.sampled_from(
        [HOP_BY_HOP, OPTIONS, USED_ROUTE, OPEN_ROUTE, MOBILE_ROUTE, SEGMENT_ROUTE, STRANGE_ROUTE, FRAGMENT]
    ),
    max_size=3,
).map(tuple)
ip_options = st.sampled_from(
    [b"", b"", LOOSE_ROUTE, USED_LOOSE_ROUTE, RECORD_ROUTE, LOOSE_ROUTE + RECORD_ROUTE]
)
segments = st.builds(
    tcp,
    payloads,
    options=st.sampled_from([b"", TIMESTAMPS, bytes([1]) * 40]),
    flags=st.integers(0, 255),
    seq=st.integers(0, 2**32 - 1),
    check=st.integers(0, 0xFFFF),
).map(lambda body: (TCP, body))
datagrams = st.builds(udp, payloads, check=st.integers(0, 0xFFFF)).map(lambda body: (UDP, body))
others = st.tuples(st.sampled_from([1, 4, 41, 47, 58, 132]), st.binary(max_size=80))


@st.composite
def good_frames(draw: st.DrawFn) -> bytes:
    """TCP and UDP (and a few others) over both IPs, with options, extensions, tags and padding."""
    protocol, body = draw(st.one_of(segments, datagrams, segments, datagrams, others))
    if draw(st.booleans()):
        packet = ipv4(body, protocol, options=draw(ip_options), ident=draw(st.integers(0, 0xFFFF)))
    else:
        packet = ipv6(body, protocol, extensions=draw(extension_chains))
    return ethernet(packet, tags=draw(tag_stacks)) + draw(st.sampled_from([b"", b"", b"", b"padding"]))


@st.composite
def broken_frames(draw: st.DrawFn) -> bytes:
    """A good frame with bytes changed, mostly in its headers, and perhaps cut short."""
    frame = bytearray(draw(good_frames()))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(12, max(12, min(len(frame) - 1, 140))))
        if at < len(frame):
            frame[at] = draw(
                st.one_of(st.integers(0, 255), st.sampled_from([0, 6, 17, 43, 44, 60, 0x45, 0x50, 0xFF]))
            )
    keep = draw(st.one_of(st.just(len(frame)), st.integers(0, len(frame))))
    return bytes(frame[:keep])


frames = st.one_of(good_frames(), broken_frames(), st.binary(max_size=120))


@st.composite
def virtio_headers(draw: st.DrawFn, frame: bytes) -> tuple[int, int, int, int, int, int]:
    """Mostly what a kernel would say of the frame, else anything."""
    any16 = st.integers(0, 0xFFFF)
    l4 = 14 + (40 if number(frame, 12) == 0x86DD else 20)
    return (
        draw(st.sampled_from([0, 1, 1, 1, 2, 3, 0xFF])),
        draw(st.sampled_from([0, 0, 1, 3, 4, 5, 0x81, 0x84, 0x80, 7])),
        draw(any16),
        draw(st.one_of(st.sampled_from([0, 7, 8, 36, 100, 536, 1448, 0xFFFF]), any16)),
        draw(st.one_of(st.just(l4), st.integers(0, len(frame) + 4).map(lambda n: n & 0xFFFF), any16)),
        draw(st.one_of(st.sampled_from([6, 16, 6, 16, 8, 2, 0]), any16)),
    )


@st.composite
def tunnel_cases(draw: st.DrawFn) -> tuple[bytes, tuple[int, int, int, int, int, int]]:
    """A GSO frame in a tunnel, and the header that Linux gives with it; sometimes with bytes changed."""
    protocol, body = draw(st.one_of(segments, datagrams))
    check = draw(st.sampled_from([0, 0x1234]))
    inner_version = draw(st.sampled_from([4, 6]))
    kind = IPV4 if inner_version == 4 else IPV6
    packet = ipv4(body, protocol) if inner_version == 4 else ipv6(body, protocol)
    link = ethernet(packet, tags=draw(st.sampled_from([b"", C_TAG])))
    outer, carrier = draw(
        st.sampled_from(
            [
                (vxlan(link, check=check), UDP),
                (vxlan(link, flags=0x0C), UDP),
                (geneve(link, check=check), UDP),
                (geneve(packet, kind, options=b"", check=check), UDP),
                (gre(link), 47),
                (gre(packet, kind, key=b"key!"), 47),
                (packet, 4 if kind == IPV4 else 41),
                (gtp(packet), UDP),
            ]
        )
    )
    frame = tunnelled(outer, carrier, draw(st.sampled_from([4, 6])), tags=draw(tag_stacks))
    start = len(frame) - len(body)
    frame += draw(st.sampled_from([b"", b"", b"padding"]))
    if draw(st.integers(0, 3)) == 0:
        at = draw(st.integers(12, min(len(frame) - 1, 160)))
        frame = frame[:at] + bytes([draw(st.integers(0, 255))]) + frame[at + 1 :]
    gso = (4 if inner_version == 6 else 1) if protocol == TCP else draw(st.sampled_from([5, 5, 5, 3]))
    flags = draw(st.sampled_from([1, 1, 1, 3, 0]))
    start = draw(st.sampled_from([start, start, start, start + 2, start - 8, 14]))
    size = draw(st.sampled_from([8, 100, 536, 1448]))
    return frame, (flags, gso, 0, size, start, 16 if protocol == TCP else 6)


def cases() -> st.SearchStrategy[tuple[bytes, tuple[int, int, int, int, int, int]]]:
    """A frame and a virtio_net_hdr that speaks of it."""
    plain = frames.flatmap(lambda frame: st.tuples(st.just(frame), virtio_headers(frame)))
    return st.one_of(plain, plain, tunnel_cases())
