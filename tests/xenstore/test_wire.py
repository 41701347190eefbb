# SPDX-License-Identifier: Apache-2.0
"""Messages and their bytes, both directions, in every chunking."""

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netback.abi.xs_wire import Errno, Op
from netback.xenstore.wire import Packet, Parser, WireError, joined, strings

TABLE = [
    (Packet(Op.READ, 1, 0, b"/a\0"), "02000000 01000000 00000000 03000000 2f6100"),
    (Packet(Op.WRITE, 0xFFFFFFFF, 7, b"/a\0v"), "0b000000 ffffffff 07000000 04000000 2f610076"),
    (Packet(Op.TRANSACTION_START, 2, 0, b"\0"), "06000000 02000000 00000000 01000000 00"),
    (Packet(Op.TRANSACTION_END, 3, 0x01020304, b"T\0"), "07000000 03000000 04030201 02000000 5400"),
    (Packet(Op.WATCH_EVENT, 0, 0, b"a\0t\0"), "0f000000 00000000 00000000 04000000 61007400"),
    (Packet(Op.ERROR, 9, 0, b"ENOENT\0"), "10000000 09000000 00000000 07000000 454e4f454e5400"),
    (Packet(Op.RESET_WATCHES, 4, 0, b"\0"), "15000000 04000000 00000000 01000000 00"),
    (Packet(Op.DIRECTORY_PART, 5, 0, b"/\x000\0"), "16000000 05000000 00000000 04000000 2f003000"),
    (Packet(0xFFFF, 6, 0, b""), "ffff0000 06000000 00000000 00000000"),
]


def parse(*chunks: bytes) -> list[Packet]:
    parser = Parser()
    found: list[Packet] = []
    for chunk in chunks:
        parser.feed(chunk)
        while packet := parser.next_packet():
            found.append(packet)
    return found


@pytest.mark.parametrize(("packet", "text"), TABLE)
def test_a_message_is_these_bytes_and_back(packet: Packet, text: str) -> None:
    data = bytes.fromhex(text)
    assert packet.encode() == data
    assert parse(data) == [packet]
    assert parse(*(data[at : at + 1] for at in range(len(data)))) == [packet]
    assert parse(data + data[:-1]) == [packet]
    assert parse(data[:17], data[17:] + data) == [packet, packet]


def test_the_longest_message_passes_and_one_byte_more_does_not() -> None:
    longest = Packet(Op.WRITE, 1, 0, b"x" * 4096)
    assert parse(longest.encode()) == [longest]
    parser = Parser()
    parser.feed(longest.encode() + Packet(Op.WRITE, 2, 0, b"x" * 4097).encode()[:16])
    assert parser.next_packet() == longest
    with pytest.raises(WireError, match="4097"):
        parser.next_packet()


@st.composite
def chunked(draw: st.DrawFn) -> tuple[list[Packet], list[bytes]]:
    number = st.integers(0, 0xFFFFFFFF)
    packets = draw(st.lists(st.builds(Packet, number, number, number, st.binary(max_size=40))))
    data = b"".join(packet.encode() for packet in packets)
    cuts = sorted(draw(st.lists(st.integers(0, len(data)))))
    return packets, [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


@settings(deadline=None)
@given(chunked())
def test_chunks_do_not_matter(case: tuple[list[Packet], list[bytes]]) -> None:
    packets, chunks = case
    assert parse(*chunks) == packets


def bytewise(data: bytes) -> Iterator[bytes]:
    return (data[at : at + 1] for at in range(len(data)))


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_give_messages_or_a_wire_error(data: bytes) -> None:
    def outcome(*chunks: bytes) -> list[Packet] | str:
        try:
            return parse(*chunks)
        except WireError as error:
            return str(error)

    assert outcome(data) == outcome(*bytewise(data))


@settings(deadline=None)
@given(st.lists(st.binary().filter(lambda part: b"\0" not in part)))
def test_strings_come_back(parts: list[bytes]) -> None:
    assert strings(joined(*parts)) == parts
    assert strings(joined(*parts) + b"no end") == parts


def test_the_numbers_are_those_of_the_header() -> None:
    """xs_wire.h: the order is the wire, with a hole where RESTRICT was, and so is the order of the errors."""
    assert [op.value for op in Op] == [*range(20), 21, 22]
    assert (Op.CONTROL, Op.WATCH, Op.RM, Op.ERROR, Op.SET_TARGET) == (0, 4, 13, 16, 19)
    assert [*Errno][:3] == ["EINVAL", "EACCES", "EEXIST"]
    assert [*Errno][-3:] == ["EISCONN", "E2BIG", "EPERM"]
