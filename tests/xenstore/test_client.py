# SPDX-License-Identifier: Apache-2.0
"""The client core: numbers, matching, events, and malformed input."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netback.abi.xs_wire import PAYLOAD_MAX, Op
from netback.errors import PlatformError
from netback.xenstore.client import (
    Answer,
    Client,
    Entry,
    Event,
    directory_part,
    joined,
    to_bytes,
    to_text,
    transaction_id,
)
from netback.xenstore.errors import StoreProtocolError
from netback.xenstore.wire import Packet, Parser


def test_answers_are_matched_in_any_order_and_events_between_them() -> None:
    client = Client()
    first, message = client.request(Op.WATCH, joined(b"/a", b"tok"))
    second, _ = client.request(Op.READ, joined(b"/b"), tx_id=7)
    assert message == Packet(Op.WATCH, first, 0, b"/a\0tok\0").encode()
    data = (
        Packet(Op.WATCH_EVENT, 0, 0, b"/a\0tok\0").encode()  # before the answer to its WATCH
        + Packet(Op.ERROR, second, 7, b"ENOENT\0").encode()
        + Packet(Op.WATCH, first, 0, b"OK\0").encode()
    )
    expected = [Event("/a", "tok"), Answer(second, b"", "ENOENT"), Answer(first, b"OK\0")]
    assert client.receive(data) == expected
    client = Client()
    client.request(Op.WATCH, joined(b"/a", b"tok"))
    client.request(Op.READ, joined(b"/b"), tx_id=7)
    assert [item for at in range(len(data)) for item in client.receive(data[at : at + 1])] == expected


def test_linux_answers_watches_without_their_number() -> None:
    """drivers/xen/xenbus/xenbus_dev_frontend.c makes up the reply to WATCH and UNWATCH: its req_id is 0."""
    client = Client()
    read, _ = client.request(Op.READ, joined(b"/b"))
    watch, _ = client.request(Op.WATCH, joined(b"/a", b"1"))
    unwatch, _ = client.request(Op.UNWATCH, joined(b"/a", b"1"))
    assert client.receive(Packet(Op.WATCH, 0, 0, b"OK\0").encode()) == [Answer(watch, b"OK\0")]
    assert client.receive(Packet(Op.UNWATCH, 0, 0, b"OK\0").encode()) == [Answer(unwatch, b"OK\0")]
    assert client.receive(Packet(Op.READ, read, 0, b"v").encode()) == [Answer(read, b"v")]


def test_numbers_come_round_without_meeting_and_without_zero() -> None:
    client = Client()
    first, _ = client.request(Op.READ, b"/a\0")
    client._last = 0xFFFFFFFE
    assert [client.request(Op.READ, b"/a\0")[0] for _ in range(3)] == [0xFFFFFFFF, first + 1, first + 2]


NONSENSE = [
    Packet(Op.READ, 99, 0, b"never asked"),
    Packet(Op.WRITE, 1, 0, b"OK\0"),
    Packet(Op.WATCH_EVENT, 0, 0, b"no token\0"),
    Packet(Op.READ, 0, 0, b"no number"),
    Packet(Op.WATCH, 0, 0, b"OK\0"),
]


@pytest.mark.parametrize("packet", NONSENSE[:3] + NONSENSE[4:])
def test_nonsense_is_a_protocol_error(packet: Packet) -> None:
    client = Client()
    client.request(Op.READ, b"/a\0")
    with pytest.raises(StoreProtocolError):
        client.receive(packet.encode())


def test_an_error_without_a_name_is_eio() -> None:
    client = Client()
    client.request(Op.READ, b"/a\0")
    assert client.receive(Packet(Op.ERROR, 1, 0, b"").encode()) == [Answer(1, b"", "EIO")]


@settings(deadline=None)
@given(st.lists(st.binary(max_size=80), max_size=6))
def test_any_bytes_give_results_or_a_protocol_error(chunks: list[bytes]) -> None:
    client = Client()
    client.request(Op.WATCH, b"/a\0t\0")
    try:
        for chunk in chunks:
            client.receive(chunk)
    except StoreProtocolError:
        return


def test_a_request_too_long_is_refused_here() -> None:
    client = Client()
    client.request(Op.WRITE, b"x" * PAYLOAD_MAX)
    with pytest.raises(PlatformError) as caught:
        client.request(Op.WRITE, b"x" * (PAYLOAD_MAX + 1))
    assert caught.value.errno == "E2BIG"


PARTS = [
    (b"7\0a\0b\0", Entry(b"7", b"a\0b\0", False)),
    (b"7\0a\0b\0\0", Entry(b"7", b"a\0b\0", True)),
    (b"7\0\0", Entry(b"7", b"", True)),
]


@pytest.mark.parametrize(("payload", "entry"), PARTS)
def test_parts_of_a_directory(payload: bytes, entry: Entry) -> None:
    assert directory_part(payload) == entry


def test_a_part_without_a_generation_is_a_protocol_error() -> None:
    with pytest.raises(StoreProtocolError):
        directory_part(b"7")


@pytest.mark.parametrize("payload", [b"", b"0\0", b"x\0", b"-1\0", b"4294967296\0", b"9" * 5000, b"\xc2\xb2"])
def test_a_transaction_s_id_that_is_none(payload: bytes) -> None:
    with pytest.raises(StoreProtocolError, match="a transaction with the id"):
        transaction_id(payload)


def test_a_transaction_s_id() -> None:
    assert transaction_id(b"4294967295\0") == 2**32 - 1


@settings(deadline=None)
@given(st.binary())
def test_text_keeps_every_byte(data: bytes) -> None:
    assert to_bytes(to_text(data)) == data


def test_a_parser_reads_what_the_client_sends() -> None:
    parser = Parser()
    client = Client()
    parser.feed(b"".join(client.request(Op.READ, b"/a\0", tx_id=3)[1] for _ in range(3)))
    assert [parser.next_packet() for _ in range(4)] == [
        *(Packet(Op.READ, number, 3, b"/a\0") for number in (1, 2, 3)),
        None,
    ]
