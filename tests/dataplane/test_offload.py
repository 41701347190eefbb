# SPDX-License-Identifier: Apache-2.0
"""offload: the rules by name, on frames built here, and agreement with the oracle on any bytes at all."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netback.dataplane import offload
from tests import offload_oracle as oracle
from tests.dataplane import offload_frames as make
from tests.offload_oracle import (
    COMPLETE,
    CSUM4,
    CSUM6,
    DROP,
    PASS,
    SEGMENT,
    SPLIT,
    TCP,
    TSO4,
    TSO6,
    UDP,
    Header,
    intact,
    number,
)

ALL_CAPS = CSUM4 | CSUM6 | TSO4 | TSO6
GUEST_TAKES_NOTHING = (False, False, 0, 0)
BLANK = (True, True, 0, 0)
CASES = [(4, TCP), (6, TCP), (4, UDP), (6, UDP)]
PAYLOAD = bytes(i * 31 & 255 for i in range(5000))
GSO_OF = {
    (4, TCP): oracle.GSO_TCPV4,
    (6, TCP): oracle.GSO_TCPV6,
    (4, UDP): oracle.GSO_UDP_L4,
    (6, UDP): oracle.GSO_UDP_L4,
}


def l4_of(frame: bytes) -> int:
    packet = oracle.network(frame, len(frame))
    assert packet is not None
    return packet.l4


def asks(frame: bytes, *, gso_type: int = 0, gso_size: int = 0, flags: int = 1) -> Header:
    """The header that a kernel gives with a frame whose checksum is blank."""
    packet = oracle.parse(frame, len(frame))
    assert packet is not None
    return (flags, gso_type, packet.payload(frame) if gso_type else 0, gso_size, packet.l4, packet.check)


def blank(frame: bytes) -> bytes:
    """With the pseudo-header sum in its field, as a kernel leaves it."""
    packet = oracle.parse(frame, len(frame))
    assert packet is not None
    return make.with_pseudo(frame, packet.l4, packet.protocol, packet.addresses, packet.end)


def summed(frame: bytes) -> bool:
    """Check the transport checksum, whatever happened to the rest of a hostile frame."""
    packet = oracle.parse(frame, len(frame))
    assert packet is not None
    return oracle.folded(packet.pseudo() + oracle.words(frame[packet.l4 : packet.end])) == 0xFFFF


def completed(frame: bytes | bytearray, header: Header) -> bytes:
    out = bytearray(frame)
    offload.complete(out, header)
    return bytes(out)


def toward_guest(frame: bytes, header: Header, *, caps: int = 0) -> tuple[int, oracle.Flags]:
    """(verdict, flags) of a frame that is not shortened."""
    verdict, flags, length = offload.to_netif(frame, header, caps=caps)
    assert length == len(frame)
    return verdict, flags


# --- from the guest


def test_plain_frame_is_passed_untouched() -> None:
    frame = bytearray(b"anything")
    assert offload.to_virtio(frame) == (PASS, oracle.NO_HEADER, False)
    assert frame == b"anything"


def test_validated_frame_says_so_to_the_peer() -> None:
    assert offload.to_virtio(bytearray(b"x"), data_validated=True) == (PASS, (2, 0, 0, 0, 0, 0), False)


@pytest.mark.parametrize(("version", "protocol"), CASES)
@pytest.mark.parametrize("tags", [b"", make.C_TAG, make.S_TAG + make.C_TAG])
def test_blank_frame_is_named_for_a_peer_that_can(version: int, protocol: int, tags: bytes) -> None:
    frame = bytearray(make.build(version, protocol, b"hello", tags=tags))
    start = 14 + len(tags) + (20 if version == 4 else 40)
    verdict, header, fixed_up = offload.to_virtio(frame, csum_blank=True, data_validated=True, caps=ALL_CAPS)
    assert (verdict, fixed_up) == (PASS, False)
    assert header == (1, 0, 0, 0, start, 16 if protocol == TCP else 6)
    assert intact(completed(frame, header))


@pytest.mark.parametrize(("version", "protocol"), CASES)
def test_one_bit_of_caps_per_version(version: int, protocol: int) -> None:
    frame = make.build(version, protocol, b"hello")
    other = CSUM6 if version == 4 else CSUM4
    assert offload.to_virtio(bytearray(frame), csum_blank=True, caps=ALL_CAPS & ~other)[0] == PASS
    assert offload.to_virtio(bytearray(frame), csum_blank=True, caps=other | TSO4 | TSO6)[0] == COMPLETE


@pytest.mark.parametrize("junk", [0, 0x1234, 0xFFFF])
def test_whatever_the_guest_left_in_the_field_is_replaced(junk: int) -> None:
    frame = bytearray(make.ethernet(make.ipv4(make.tcp(b"data", check=junk))))
    verdict, header, _ = offload.to_virtio(frame, csum_blank=True)
    assert verdict == COMPLETE
    assert intact(completed(frame, header))


@pytest.mark.parametrize(("version", "gso"), [(4, 1), (6, 2)])
@pytest.mark.parametrize("blanked", [True, False])
def test_gso_passes_or_is_cut_by_caps(version: int, gso: int, blanked: bool) -> None:
    frame = make.build(version, TCP, PAYLOAD)
    own = ALL_CAPS & ~(CSUM6 | TSO6 if version == 4 else CSUM4 | TSO4)
    for caps, wanted in [(own, PASS), (own & ~(TSO4 | TSO6), SEGMENT), (own & ~(CSUM4 | CSUM6), SEGMENT)]:
        work = bytearray(frame)
        verdict, header, fixed_up = offload.to_virtio(
            work, csum_blank=blanked, data_validated=True, gso_type=gso, gso_size=1000, caps=caps
        )
        assert (verdict, fixed_up) == (wanted, not blanked)
        l4 = 34 if version == 4 else 54
        assert header == (1, 1 if version == 4 else 4, l4 + 20, 1000, l4, 16)
        assert work == blank(frame)


@pytest.mark.parametrize("blanked", [True, False])
def test_gso_that_fits_one_segment_is_not_gso(blanked: bool) -> None:
    frame = bytearray(make.build(4, TCP, bytes(1000)))
    verdict, header, fixed_up = offload.to_virtio(
        frame, csum_blank=blanked, gso_type=1, gso_size=1000, caps=ALL_CAPS
    )
    assert (verdict, header, fixed_up) == (PASS, (1, 0, 0, 0, 34, 16), not blanked)


V4, V6 = make.build(4, TCP, PAYLOAD), make.build(6, TCP, PAYLOAD)
LONG = make.build(4, TCP, bytes(60000))
CANNOT_BE_CUT = {
    "no size": (V4, 1, 0),
    "below Linux' least": (V4, 1, oracle.MIN_GSO_SIZE - 1),
    "too many segments": (LONG, 1, 60000 // oracle.MAX_SEGMENTS),
    "IPv6 said to be IPv4": (V6, 1, 1000),
    "IPv4 said to be IPv6": (V4, 2, 1000),
    "UDP said to be TCP": (make.build(4, UDP, PAYLOAD), 1, 1000),
    "unknown type": (V4, 3, 1000),
    "a fragment": (make.ethernet(make.ipv4(make.tcp(PAYLOAD), fragment=0x2000)), 1, 1000),
    "ARP": (make.MACS + b"\x08\x06" + bytes(2000), 1, 1000),
    "headers longer than the frame": (V4[:40], 1, 1000),
    "IP length beyond the frame": (V4[:-1], 1, 1000),
    "TCP header too short": (V4[:46] + b"\x40" + V4[47:], 1, 1000),
    "TCP header beyond the packet": (make.ethernet(make.ipv4(make.tcp()[:12] + b"\xf0" + bytes(9))), 1, 1000),
    "three tags": (make.build(4, TCP, PAYLOAD, tags=make.C_TAG * 3), 1, 1000),
}


@pytest.mark.parametrize(("frame", "gso_type", "gso_size"), CANNOT_BE_CUT.values(), ids=CANNOT_BE_CUT)
@pytest.mark.parametrize("caps", [0, ALL_CAPS])
def test_gso_that_cannot_be_cut_is_dropped(frame: bytes, gso_type: int, gso_size: int, caps: int) -> None:
    work = bytearray(frame)
    got = offload.to_virtio(work, csum_blank=True, gso_type=gso_type, gso_size=gso_size, caps=caps)
    assert got[0] == DROP
    kind = oracle.NETIF_TO_VIRTIO.get(gso_type, 9)
    assert toward_guest(frame, (1, kind, 0, gso_size, 34, 16), caps=caps) == (DROP, GUEST_TAKES_NOTHING)
    assert offload.segment(frame, (1, kind, 0, gso_size, 34, 16)) == []


CANNOT_BE_COMPLETED = {
    "empty": b"",
    "no IP": make.MACS + b"\x88\xcc" + bytes(60),
    "ICMP": make.ethernet(make.ipv4(bytes(40), 1)),
    "later fragment": make.ethernet(make.ipv4(make.udp(b"x"), UDP, fragment=3)),
    "IPv6 fragment": make.ethernet(make.ipv6(make.udp(b"x"), UDP, extensions=(make.FRAGMENT,))),
    "route of unknown kind": make.ethernet(make.ipv6(make.tcp(), extensions=(make.STRANGE_ROUTE,))),
    "extensions without end": make.ethernet(make.ipv6(make.tcp(), extensions=(make.OPTIONS,) * 30)),
    "wrong version": make.MACS + b"\x08\x00" + make.ipv6(make.tcp()),
    "UDP length of another": make.ethernet(make.ipv4(make.udp(b"x" * 9) + b"y", UDP)),
    "no IP length": make.ethernet(make.ipv4(make.tcp())[:2] + bytes(2) + make.ipv4(make.tcp())[4:]),
    "IPv4 header of 16 bytes": make.MACS + b"\x08\x00\x44" + make.ipv4(make.tcp())[1:],
}


@pytest.mark.parametrize("frame", CANNOT_BE_COMPLETED.values(), ids=CANNOT_BE_COMPLETED)
def test_blank_frame_that_cannot_be_parsed_is_dropped(frame: bytes) -> None:
    assert offload.to_virtio(bytearray(frame), csum_blank=True, caps=ALL_CAPS)[0] == DROP


def test_headers_that_are_not_at_hand_count_as_missing() -> None:
    frame = make.build(4, TCP, b"hello")
    assert [offload.to_virtio(bytearray(frame), csum_blank=True, have=n)[0] for n in (53, 54)] == [
        DROP,
        COMPLETE,
    ]


@pytest.mark.parametrize(
    "extensions",
    [(), (make.HOP_BY_HOP,), (make.HOP_BY_HOP, make.USED_ROUTE, make.OPTIONS), (make.OPTIONS,) * 20],
    ids=["none", "hop-by-hop", "all", "many"],
)
def test_extension_headers_are_walked(extensions: tuple[tuple[int, bytes], ...]) -> None:
    frame = bytearray(make.ethernet(make.ipv6(make.tcp(b"data"), extensions=extensions)))
    verdict, header, _ = offload.to_virtio(frame, csum_blank=True, caps=ALL_CAPS)
    assert (verdict, header[4]) == (PASS, 54 + sum(len(data) for _, data in extensions))
    assert intact(completed(frame, header))


@pytest.mark.parametrize(
    "route", [make.OPEN_ROUTE, make.MOBILE_ROUTE, make.SEGMENT_ROUTE], ids=["0", "2", "4"]
)
def test_pseudo_header_means_the_end_of_an_ipv6_route(route: tuple[int, bytes]) -> None:
    frame = bytearray(make.ethernet(make.ipv6(make.tcp(b"data"), extensions=(route,))))
    _, header, _ = offload.to_virtio(frame, csum_blank=True)
    sent = completed(frame, header)
    body = sent[header[4] :]
    assert oracle.folded(oracle.words(make.SOURCE6 + make.ELSEWHERE6 + body) + TCP + len(body)) == 0xFFFF
    assert toward_guest(sent, header, caps=ALL_CAPS)[0] == COMPLETE  # a guest would take the next hop


def test_pseudo_header_means_the_end_of_an_ipv4_route() -> None:
    for options, final in [
        (make.LOOSE_ROUTE, bytes([203, 0, 113, 9])),
        (make.USED_LOOSE_ROUTE, make.DESTINATION4),
    ]:
        frame = bytearray(make.ethernet(make.ipv4(make.tcp(b"data"), options=options)))
        _, header, _ = offload.to_virtio(frame, csum_blank=True)
        body = completed(frame, header)[42:]
        assert oracle.folded(oracle.words(make.SOURCE4 + final + body) + TCP + len(body)) == 0xFFFF


def zero_sum(version: int) -> bytes:
    """A datagram whose checksum comes out as zero."""
    frame = make.build(version, UDP, b"\0\0ab")
    packet = oracle.parse(frame, len(frame))
    assert packet is not None
    missing = 0xFFFF - oracle.folded(packet.pseudo() + oracle.words(frame[packet.l4 :]))
    at = packet.l4 + 8
    return blank(frame[:at] + missing.to_bytes(2, "big") + frame[at + 2 :])


@pytest.mark.parametrize("version", [4, 6])
def test_udp_checksum_of_zero_goes_out_as_ffff(version: int) -> None:
    frame = zero_sum(version)
    assert number(completed(frame, asks(frame)), l4_of(frame) + 6) == 0xFFFF
    (only,) = offload.segment(frame, asks(frame, gso_type=oracle.GSO_UDP_L4, gso_size=1000))
    assert number(only, l4_of(only) + 6) == 0xFFFF


def test_tcp_checksum_of_zero_stays() -> None:
    frame = make.build(4, TCP, b"\0\0")
    packet = oracle.parse(frame, len(frame))
    assert packet is not None
    missing = 0xFFFF - oracle.folded(packet.pseudo() + oracle.words(frame[34:]))
    frame = blank(frame[:54] + missing.to_bytes(2, "big"))
    assert number(completed(frame, asks(frame)), 50) == 0


def test_padding_is_neither_summed_nor_sent_as_payload() -> None:
    frame = make.build(4, TCP, b"data")
    padded = bytearray(frame + b"leak")
    verdict, header, _ = offload.to_virtio(padded, csum_blank=True, caps=ALL_CAPS)
    assert verdict == COMPLETE
    assert completed(padded, header) == completed(blank(frame), header) + b"leak"


@pytest.mark.parametrize("size", [100, 5000])
def test_padding_of_a_gso_frame_is_no_reason_to_cut_it(size: int) -> None:
    """Padding is removed in both directions, whether the frame is one segment or many."""
    for frame, gso, version in [(V4, 1, 4), (V6, 2, 6)]:
        long = bytearray(frame + b"leak")
        plain = bytearray(frame)
        arguments = {"csum_blank": True, "gso_type": gso, "gso_size": size, "caps": ALL_CAPS}
        assert offload.to_virtio(long, **arguments) == offload.to_virtio(plain, **arguments)
        assert long == plain
        header = asks(frame, gso_type=GSO_OF[version, TCP], gso_size=size)
        verdict, flags, length = offload.to_netif(blank(frame) + b"leak", header, caps=ALL_CAPS)
        assert (verdict, length) == (PASS, len(frame))
        assert flags == ((True, True, gso, 100) if size == 100 else BLANK)


def test_gso_without_an_ip_length_gets_one_by_being_cut() -> None:
    for frame, at in [(V4, 16), (V6, 18)]:
        lost = bytearray(frame[:at] + bytes(2) + frame[at + 2 :])
        gso_type = 1 if at == 16 else 2
        verdict, header, _ = offload.to_virtio(
            lost, csum_blank=True, gso_type=gso_type, gso_size=1000, caps=ALL_CAPS
        )
        assert verdict == SEGMENT
        assert offload.segment(bytes(lost), header) == offload.segment(frame, header)


# --- to the guest


@pytest.mark.parametrize(("version", "protocol"), CASES)
def test_guest_gets_a_blank_checksum_that_it_finds_itself(version: int, protocol: int) -> None:
    frame = blank(make.build(version, protocol, b"hello"))
    assert toward_guest(frame, asks(frame), caps=ALL_CAPS) == (PASS, BLANK)
    own, other = (CSUM4, CSUM6) if version == 4 else (CSUM6, CSUM4)
    assert toward_guest(frame, asks(frame), caps=own) == (PASS, BLANK)
    assert toward_guest(frame, asks(frame), caps=other) == (COMPLETE, GUEST_TAKES_NOTHING)
    assert intact(completed(frame, asks(frame)))


def test_data_valid_alone_is_passed_on() -> None:
    frame = make.build(4, TCP, b"")
    assert toward_guest(frame, (2, 0, 0, 0, 0, 0)) == (PASS, (False, True, 0, 0))
    assert toward_guest(frame, oracle.NO_HEADER) == (PASS, GUEST_TAKES_NOTHING)


@pytest.mark.parametrize("tags", [make.C_TAG, make.S_TAG + make.C_TAG])
@pytest.mark.parametrize(("version", "protocol"), CASES)
def test_tagged_frames_are_never_blank(version: int, protocol: int, tags: bytes) -> None:
    frame = blank(make.build(version, protocol, b"hello", tags=tags))
    assert toward_guest(frame, asks(frame), caps=ALL_CAPS) == (COMPLETE, GUEST_TAKES_NOTHING)
    assert intact(completed(frame, asks(frame)))
    frame = blank(make.build(version, protocol, PAYLOAD, tags=tags))
    header = asks(frame, gso_type=GSO_OF[version, protocol], gso_size=1000)
    assert toward_guest(frame, header, caps=ALL_CAPS) == (SEGMENT, GUEST_TAKES_NOTHING)
    cut = offload.segment(frame, header)
    assert all(intact(one) and one[12 : 12 + len(tags)] == tags for one in cut)


INNER = {(version, protocol): make.build(version, protocol, PAYLOAD[:2500]) for version, protocol in CASES}
TUNNELS = {
    "VXLAN": lambda inner, check: (make.vxlan(inner, check=check), UDP),
    "Geneve": lambda inner, check: (make.geneve(inner, check=check), UDP),
    "Geneve of IP": lambda inner, check: (make.geneve(inner[14:], number(inner, 12), check=check), UDP),
    "GRE": lambda inner, check: (make.gre(inner, key=b"key!"), 47),
    "GRE of IP": lambda inner, check: (make.gre(inner[14:], number(inner, 12)), 47),
    "IP in IP": lambda inner, check: (inner[14:], 4 if number(inner, 12) == 0x0800 else 41),
}


def in_tunnel(name: str, version: int, inner: bytes, *, check: int = 0, tags: bytes = b"") -> bytes:
    body, carrier = TUNNELS[name](inner, check)
    return make.tunnelled(body, carrier, version, tags=tags)


def asks_inside(frame: bytes, inner: bytes, *, gso_type: int, gso_size: int) -> Header:
    header = asks(inner, gso_type=gso_type, gso_size=gso_size)
    return (*header[:4], len(frame) - len(inner) + header[4], header[5])


@pytest.mark.parametrize("check", [0, 0x1234])
@pytest.mark.parametrize("outer", [4, 6])
@pytest.mark.parametrize("name", TUNNELS)
@pytest.mark.parametrize(("version", "protocol"), CASES)
def test_gso_in_a_tunnel_is_cut_inside(
    name: str, outer: int, version: int, protocol: int, check: int
) -> None:
    """Each segment has the tunnel's headers, adjusted for it, around a segment of the inner frame alone."""
    inner = blank(INNER[version, protocol])
    frame = in_tunnel(name, outer, inner, check=check)
    header = asks_inside(frame, inner, gso_type=GSO_OF[version, protocol], gso_size=1000)
    assert toward_guest(frame, header, caps=ALL_CAPS) == (SEGMENT, GUEST_TAKES_NOTHING)
    cut = offload.segment(frame, header)
    alone = offload.segment(inner, asks(inner, gso_type=GSO_OF[version, protocol], gso_size=1000))
    expected = [in_tunnel(name, outer, one, check=check) for one in alone]
    assert len(cut) == 3
    for index, (one, whole) in enumerate(zip(cut, expected, strict=True)):
        packet = oracle.network(one, len(one))
        assert packet is not None
        assert packet.exact(len(one))
        if outer == 4:
            assert oracle.folded(oracle.words(one[14:34])) == 0xFFFF
            assert number(one, 18) == 0x1234 + index
        if packet.protocol == UDP:
            assert (number(one, packet.l4 + 6) != 0) == (check != 0)
            assert check == 0 or intact(one)
        start = packet.l4 + (8 if packet.protocol == UDP else 0)
        assert one[start:] == whole[start:]


def test_gso_in_a_tunnel_under_tags() -> None:
    inner = blank(INNER[6, TCP])
    tagged = inner[:12] + make.C_TAG + inner[12:]
    frame = in_tunnel("VXLAN", 6, tagged, tags=make.S_TAG + make.C_TAG)
    header = asks_inside(frame, tagged, gso_type=oracle.GSO_TCPV6, gso_size=1000)
    cut = offload.segment(frame, header)
    assert cut == oracle.segment(frame, header)
    assert len(cut) == 3


@pytest.mark.parametrize("outer", [4, 6])
@pytest.mark.parametrize(("version", "protocol"), CASES)
def test_gso_in_what_is_not_known_is_dropped(outer: int, version: int, protocol: int) -> None:
    """GTP-U has a length of its own; remote checksum offload has positions; a checksum of GRE covers the payload."""
    inner = blank(INNER[version, protocol])
    gso = GSO_OF[version, protocol]
    unknown = [
        (make.gtp(inner[14:]), UDP),
        (make.vxlan(inner, flags=0), UDP),
        (make.vxlan(inner)[:9] + b"\x20" + make.vxlan(inner)[10:], UDP),
        (b"\x80\0\x65\x58\0\0\0\0" + inner, 47),
        (b"\x10\0\x65\x58\0\0\0\1" + inner, 47),
        (make.vxlan(make.ethernet(make.ipv4(make.vxlan(inner), UDP))), UDP),
        (inner[14:], 50),
    ]
    for body, carrier in unknown:
        frame = make.tunnelled(body, carrier, outer)
        header = asks_inside(frame, inner, gso_type=gso, gso_size=1000)
        assert toward_guest(frame, header, caps=ALL_CAPS) == (DROP, GUEST_TAKES_NOTHING)
        assert offload.segment(frame, header) == []


@pytest.mark.parametrize("start", [0, 14, 33, 36, 60, 5000])
def test_gso_whose_checksum_is_nowhere_is_dropped(start: int) -> None:
    frame = blank(V4)
    header = (1, oracle.GSO_TCPV4, 0, 1000, start, 16)
    assert toward_guest(frame, header, caps=ALL_CAPS) == (DROP, GUEST_TAKES_NOTHING)


def big_tcp(version: int, length: int, *, jumbo: bool = False) -> tuple[bytes, Header]:
    """Linux' BIG TCP: an IPv4 length of 0; an IPv6 length of 0, with a jumbo payload option or without."""
    body = make.tcp(
        bytes(i * 7 & 255 for i in range(length)), options=make.TIMESTAMPS, flags=0x99, seq=2**32 - 9
    )
    if version == 4:
        packet = make.ipv4(body, size=0)
    else:
        option = (0, bytes([0, 0, 0xC2, 4]) + (8 + len(body)).to_bytes(4, "big"))
        packet = make.ipv6(body, extensions=(option,) if jumbo else (), size=0)
    frame = make.ethernet(packet)
    gso = oracle.GSO_TCPV4 if version == 4 else oracle.GSO_TCPV6
    start = len(frame) - len(body)
    return frame, (1, gso, start + 32, 1428, start, 16)


BIG = [(4, False), (6, False), (6, True)]


@pytest.mark.parametrize(("version", "jumbo"), BIG)
@pytest.mark.parametrize("length", [65600, 150000])
def test_big_tcp_becomes_gso_frames_that_netif_can_express(version: int, jumbo: bool, length: int) -> None:
    frame, header = big_tcp(version, length, jumbo=jumbo)
    assert toward_guest(frame, header, caps=ALL_CAPS) == (SPLIT, GUEST_TAKES_NOTHING)
    pieces = offload.split(frame, header)
    assert pieces == oracle.split(frame, header)
    assert len(pieces) == -(-length // (1428 * 45))
    for piece, flags in pieces:
        gso = GSO_OF[version, TCP] if flags[2] else 0
        again = asks(piece, gso_type=gso, gso_size=flags[3])
        assert toward_guest(piece, again, caps=ALL_CAPS) == (PASS, flags)
    segments = [
        one
        for piece, flags in pieces
        for one in offload.segment(piece, asks(piece, gso_type=GSO_OF[version, TCP], gso_size=1428))
    ]
    assert segments == offload.segment(frame, header)
    assert all(intact(one) for one in segments)


@pytest.mark.parametrize(("version", "jumbo"), BIG)
def test_big_tcp_is_cut_for_who_takes_no_gso(version: int, jumbo: bool) -> None:
    frame, header = big_tcp(version, 100000, jumbo=jumbo)
    tso = TSO4 if version == 4 else TSO6
    assert toward_guest(frame, header, caps=ALL_CAPS & ~tso) == (SEGMENT, GUEST_TAKES_NOTHING)
    assert offload.segment(frame, header) == oracle.segment(frame, header)


def test_frames_that_netif_cannot_express_are_dropped() -> None:
    for flags in (0, 1, 2):
        assert toward_guest(bytes(oracle.MAX_FRAME), (flags, 0, 0, 0, 0, 0))[0] != DROP
        assert toward_guest(bytes(oracle.MAX_FRAME + 1), (flags, 0, 0, 0, 0, 0))[0] == DROP


def test_tunnel_is_completed_where_the_header_says() -> None:
    inner = blank(make.build(4, TCP, b"inner"))
    vxlan = bytes([8, 0, 0, 0, 0, 0, 7, 0])
    outer = make.udp(vxlan + inner, ports=(50000, 4789), check=0)
    frame = make.ethernet(make.ipv4(outer, UDP))
    start = len(frame) - len(inner) + 34
    header = (1, 0, 0, 0, start, 16)
    assert toward_guest(frame, header, caps=ALL_CAPS) == (COMPLETE, GUEST_TAKES_NOTHING)
    done = completed(frame, header)
    assert intact(done[-len(inner) :])
    assert done[: start + 16] == frame[: start + 16]
    assert done[start + 18 :] == frame[start + 18 :]


@pytest.mark.parametrize("header", [(1, 0, 0, 0, 20, 16), (1, 0, 0, 0, 34, 6), (1, 0, 0, 0, 0, 0)])
def test_other_places_are_completed_not_passed(header: Header) -> None:
    frame = make.build(4, TCP, b"hello")
    assert toward_guest(frame, header, caps=ALL_CAPS) == (COMPLETE, GUEST_TAKES_NOTHING)


@pytest.mark.parametrize(("start", "offset"), [(58, 0), (57, 1), (0xFFFF, 0xFFFF), (34, 24)])
def test_places_beyond_the_frame_are_dropped(start: int, offset: int) -> None:
    frame = make.build(4, TCP, b"data!")
    assert len(frame) == 59
    assert toward_guest(frame, (3, 0, 0, 0, start, offset), caps=ALL_CAPS) == (DROP, GUEST_TAKES_NOTHING)
    assert completed(frame, (1, 0, 0, 0, start, offset)) == frame
    assert toward_guest(frame, (1, 0, 0, 0, 57, 0), caps=ALL_CAPS)[0] == COMPLETE


@pytest.mark.parametrize("ecn", [0, oracle.GSO_ECN])
@pytest.mark.parametrize(("version", "gso"), [(4, 1), (6, 2)])
def test_gso_toward_the_guest_carries_both_flags(version: int, gso: int, ecn: int) -> None:
    frame = blank(make.build(version, TCP, PAYLOAD))
    header = asks(frame, gso_type=GSO_OF[version, TCP] | ecn, gso_size=1000)
    assert toward_guest(frame, header, caps=ALL_CAPS) == (PASS, (True, True, gso, 1000))
    for missing in (CSUM4, TSO4) if version == 4 else (CSUM6, TSO6):
        assert toward_guest(frame, header, caps=ALL_CAPS & ~missing) == (SEGMENT, GUEST_TAKES_NOTHING)
    not_blank = (0, *header[1:])
    assert toward_guest(frame, not_blank, caps=ALL_CAPS) == (SEGMENT, GUEST_TAKES_NOTHING)
    assert offload.segment(frame, not_blank) == offload.segment(frame, header)


def test_ecn_bit_alone_means_nothing() -> None:
    frame = blank(make.build(4, TCP, b"hello"))
    assert toward_guest(frame, (1, 0x80, 0, 0, 34, 16), caps=ALL_CAPS) == (PASS, BLANK)
    assert toward_guest(frame, (2, 0x80, 0, 0, 0, 0)) == (PASS, (False, True, 0, 0))


@pytest.mark.parametrize("gso_type", [oracle.GSO_UDP, oracle.GSO_UDP_L4])
@pytest.mark.parametrize("version", [4, 6])
def test_udp_gso_is_cut_for_the_guest(version: int, gso_type: int) -> None:
    frame = blank(make.build(version, UDP, PAYLOAD))
    header = asks(frame, gso_type=gso_type, gso_size=1000)
    assert toward_guest(frame, header, caps=ALL_CAPS) == (SEGMENT, GUEST_TAKES_NOTHING)
    assert len(offload.segment(frame, header)) == (5 if gso_type == oracle.GSO_UDP_L4 else 6)


# --- segments


def test_tcp_flags_sequence_and_identification_of_segments() -> None:
    body = make.tcp(bytes(2500), options=make.TIMESTAMPS, flags=0x80 | 0x40 | 0x18 | 1, seq=2**32 - 1000)
    frame = blank(make.ethernet(make.ipv4(body, ident=0xFFFF)))
    cut = offload.segment(frame, asks(frame, gso_type=oracle.GSO_TCPV4 | oracle.GSO_ECN, gso_size=1000))
    assert [len(one) - 66 for one in cut] == [1000, 1000, 500]
    assert [number(one, 38, 4) for one in cut] == [2**32 - 1000, 0, 1000]
    assert [number(one, 18) for one in cut] == [0xFFFF, 0, 1]
    assert [one[47] for one in cut] == [0x80 | 0x40 | 0x10, 0x40 | 0x10, 0x40 | 0x19]
    assert all(intact(one) for one in cut)


def test_datagrams_of_udp_gso_have_lengths_of_their_own() -> None:
    frame = blank(make.build(6, UDP, PAYLOAD[:2100]))
    cut = offload.segment(frame, asks(frame, gso_type=oracle.GSO_UDP_L4, gso_size=1000))
    assert [number(one, 54 + 4) for one in cut] == [1008, 1008, 108]
    assert b"".join(one[62:] for one in cut) == PAYLOAD[:2100]
    assert all(intact(one) for one in cut)


def test_ipv4_fragments_reassemble_to_the_whole_datagram() -> None:
    frame = blank(make.ethernet(make.ipv4(make.udp(PAYLOAD), UDP, ident=77, options=make.RECORD_ROUTE)))
    cut = offload.segment(frame, asks(frame, gso_type=oracle.GSO_UDP, gso_size=1007))  # cut in eights: 1000
    starts = [8 * (number(one, 20) & 0x1FFF) for one in cut]
    assert starts == [0, 1000, 2000, 3000, 4000, 5000]
    assert [number(one, 20) >> 13 for one in cut] == [1, 1, 1, 1, 1, 0]
    assert {number(one, 18) for one in cut} == {77}
    assert all(oracle.folded(oracle.words(one[14:42])) == 0xFFFF for one in cut)
    assert b"".join(one[42:] for one in cut) == completed(frame, asks(frame))[42:]


def test_ipv6_fragments_reassemble_to_the_whole_datagram() -> None:
    chain = (make.HOP_BY_HOP, make.USED_ROUTE)
    frame = blank(make.ethernet(make.ipv6(make.udp(PAYLOAD), UDP, extensions=chain)))
    l4 = l4_of(frame)
    header = asks(frame, gso_type=oracle.GSO_UDP, gso_size=1400)
    cut = offload.segment(frame, header)
    heads = [one[l4 : l4 + 8] for one in cut]
    assert [(head[0], number(head, 2)) for head in heads] == [(UDP, 1), (UDP, 1401), (UDP, 2801), (UDP, 4200)]
    assert len({head[4:] for head in heads}) == 1
    assert b"".join(one[l4 + 8 :] for one in cut) == completed(frame, asks(frame))[l4:]
    assert all(number(one, 18) == len(one) - 54 and one[l4 - 24] == 44 for one in cut)
    other = blank(make.ethernet(make.ipv6(make.udp(PAYLOAD[::-1]), UDP, extensions=chain)))
    assert offload.segment(other, header)[0][l4 + 4 : l4 + 8] != heads[0][4:]


def test_datagram_that_fits_is_not_fragmented() -> None:
    for version in (4, 6):
        frame = blank(make.build(version, UDP, b"small"))
        (only,) = offload.segment(frame, asks(frame, gso_type=oracle.GSO_UDP, gso_size=1000))
        assert only == completed(frame, asks(frame))


def test_segments_are_bounded() -> None:
    size = 40000 // oracle.MAX_SEGMENTS + 1
    frame = make.build(4, TCP, bytes(size * oracle.MAX_SEGMENTS))
    header = asks(frame, gso_type=1, gso_size=size)
    assert len(offload.segment(frame, header)) == oracle.MAX_SEGMENTS
    longer = make.build(4, TCP, bytes(size * oracle.MAX_SEGMENTS + 1))
    assert offload.segment(longer, header) == []


def test_segments_longer_than_ip_can_say_are_refused() -> None:
    frame = make.build(6, TCP, bytes(0xFFFF - 20))
    huge = frame[:18] + bytes(2) + frame[20:] + bytes(9000)
    assert offload.segment(huge, (1, 4, 0, 0xFFFF, 54, 16)) == []
    assert len(offload.segment(huge, (1, 4, 0, 0xFFFF - 60, 54, 16))) == 2


def test_sctp_checksum_is_a_crc() -> None:
    body = bytes.fromhex("0fa01389000000010000000001000014") + bytes(16)
    for frame in (make.ethernet(make.ipv4(body, 132)), make.ethernet(make.ipv6(body, 132))):
        l4 = l4_of(frame)
        header = (1, 0, 0, 0, l4, 8)
        assert toward_guest(frame, header, caps=ALL_CAPS) == (COMPLETE, GUEST_TAKES_NOTHING)
        done = completed(frame, header)
        assert int.from_bytes(done[l4 + 8 : l4 + 12], "little") == oracle.crc32c(body)
    assert oracle.crc32c(b"123456789") == 0xE3069283  # the check value of CRC-32C


@pytest.mark.parametrize("size", range(40))
def test_sums_of_every_length_and_alignment(size: int) -> None:
    data = PAYLOAD[100 : 100 + size + 30]
    for start in range(9):
        header = (1, 0, 0, 0, start, 10)
        frame = bytes(14) + data  # no IP in it: summed to its end
        assert completed(frame, header) == oracle.complete(frame, header)


def test_long_sums_carry_everywhere() -> None:
    for size in (65535, 65534, 65521):
        for fill in (b"\xff", b"\xff\x00", b"\x80\x00\x00\x01", b"\xff\xff\xff\xfe"):
            frame = bytes(14) + (fill * size)[:size]
            assert completed(frame, (1, 0, 0, 0, 14, 2)) == oracle.complete(frame, (1, 0, 0, 0, 14, 2))


# --- agreement with the oracle


@settings(max_examples=700, deadline=None, derandomize=True)
@given(st.data())
def test_agrees_with_the_oracle_from_the_guest(data: st.DataObject) -> None:
    frame = data.draw(make.frames)
    have = data.draw(st.one_of(st.just(len(frame)), st.integers(0, len(frame))))
    wanted: dict[str, Any] = {
        "csum_blank": data.draw(st.booleans()),
        "data_validated": data.draw(st.booleans()),
        "gso_type": data.draw(st.sampled_from([0, 1, 2, 1, 2, 3])),
        "gso_size": data.draw(st.sampled_from([0, 7, 8, 36, 100, 536, 1448, 0xFFFF])),
        "caps": data.draw(st.integers(0, 15)),
    }
    verdict, header, fixed_up, after = oracle.to_virtio(frame, have, **wanted)
    work = bytearray(frame)
    got = offload.to_virtio(work, have=have, **wanted)
    assert got[0] == verdict
    if verdict == DROP:
        return
    assert (got[1], got[2], bytes(work)) == (header, fixed_up, after)
    if verdict == COMPLETE:
        assert summed(completed(after, header))
    if verdict == SEGMENT:
        assert offload.segment(after, header) == oracle.segment(after, header) != []


@settings(max_examples=700, deadline=None, derandomize=True)
@given(st.data())
def test_agrees_with_the_oracle_toward_the_guest(data: st.DataObject) -> None:
    frame, header = data.draw(make.cases())
    have = data.draw(st.one_of(st.just(len(frame)), st.integers(0, len(frame))))
    caps = data.draw(st.integers(0, 15))
    assert offload.to_netif(frame, header, caps=caps, have=have) == oracle.to_netif(frame, have, header, caps)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(make.cases())
def test_agrees_with_the_oracle_on_completion(case: tuple[bytes, Header]) -> None:
    frame, header = case
    assert completed(frame, header) == oracle.complete(frame, header)


@settings(max_examples=700, deadline=None, derandomize=True)
@given(make.cases())
def test_agrees_with_the_oracle_on_cuts(case: tuple[bytes, Header]) -> None:
    frame, header = case
    cut = offload.segment(frame, header)
    packet = oracle.parse(frame, len(frame))
    fragmented = packet and packet.version == 6 and header[1] & 0x7F == oracle.GSO_UDP and len(cut) > 1
    identification = number(cut[0], packet.l4 + 4, 4) if packet and fragmented else 0
    assert cut == oracle.segment(frame, header, identification)
    if offload.to_netif(frame, header, caps=ALL_CAPS)[0] == SPLIT:
        assert offload.split(frame, header) == oracle.split(frame, header) != []


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.binary(min_size=1, max_size=4000), st.integers(8, 1500), st.sampled_from(CASES))
def test_segments_carry_the_payload_once_and_in_order(
    payload: bytes, size: int, case: tuple[int, int]
) -> None:
    frame = blank(make.build(*case, payload))
    header = asks(frame, gso_type=GSO_OF[case], gso_size=size)
    cut = offload.segment(frame, header)
    assert b"".join(one[header[2] :] for one in cut) == payload
    assert all(len(one) - header[2] == size for one in cut[:-1])
    assert all(intact(one) for one in cut)
    if case[1] == TCP:
        sequence = [number(one, header[4] + 4, 4) for one in cut]
        assert all(b - a == size for a, b in pairwise(sequence))
