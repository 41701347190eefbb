# SPDX-License-Identifier: Apache-2.0
"""A ring's page as data: what the guest wrote decodes to what netif.h says, whatever it wrote."""

import struct

from hypothesis import given
from hypothesis import strategies as st

from netback.abi.netif import (
    RX_REQUEST,
    RX_RESPONSE,
    RX_SLOT,
    TX_REQUEST,
    TX_RESPONSE,
    TX_SLOT,
    RxFlag,
    TxFlag,
)
from netback.abi.netif_control import CTRL_REQUEST, CTRL_RESPONSE, CTRL_SLOT, CtrlStatus, CtrlType
from netback.abi.ring import PAGE_SIZE, SRING, slot_offset, slots
from netback.dataplane.states import TABLE, State
from netback.observe.rings import Ring, Slot, decode_control, decode_queue

WRAP = 0xFFFFFFFE
"""An index before which and after which there are slots: indices are free-running."""


def page(size: int, first: int, answered: list[bytes], pending: list[bytes]) -> bytes:
    """A ring's page: responses from index `first` on, then requests."""
    made = bytearray(PAGE_SIZE)
    rsp_prod = first + len(answered)
    SRING.pack_into(made, 0, (rsp_prod + len(pending)) % 2**32, 7, rsp_prod % 2**32, 9)
    for number, slot in enumerate([*answered, *pending]):
        at = slot_offset(first + number, size)
        made[at : at + len(slot)] = slot
    return bytes(made)


def both(tx: bytes, rx: bytes) -> list[Ring]:
    copies = {"tx": (tx, True, 1_500_000_000), "rx": (rx, False, 0)}
    return decode_queue("-q1", (State.RING_IDLE, State.NO_SLOTS), copies, 3, 2_000_000_000)


def test_tx() -> None:
    """A chain with two extras, then one slot; the first response is no longer a request."""
    gso = struct.pack("<BBHBBH", 1, 1, 1448, 1, 0, 0)
    hashed = struct.pack("<BBBB4s", 4, 0, 1, 1, bytes.fromhex("78563412"))
    flags = TxFlag.CSUM_BLANK | TxFlag.EXTRA_INFO | TxFlag.MORE_DATA | 0x40
    pending = [
        TX_REQUEST.pack(11, 100, flags, 1, 5000), gso, hashed, TX_REQUEST.pack(12, 0, 0, 2, 904),
        TX_REQUEST.pack(13, 8, 0, 3, 60),
    ]  # fmt: skip
    ring, _ = both(page(TX_SLOT, WRAP, [TX_RESPONSE.pack(9, -1)], pending), bytes(PAGE_SIZE))
    assert (ring.ring, ring.pending, ring.slots_total, ring.quiet) == ("tx-q1", 5, slots(TX_SLOT), 1.5)
    assert ring.indices == {"req_prod": 4, "req_event": 7, "rsp_prod": 0xFFFFFFFF, "rsp_event": 9}
    assert (ring.state, ring.means) == ("RING_IDLE", TABLE[State.RING_IDLE].means)
    assert ring.slots[-6:] == (
        Slot(index=WRAP, kind="response", id=9, status="ERROR"),
        Slot(
            index=0xFFFFFFFF, kind="request", id=1, gref=11, offset=100, size=5000,
            flags=("CSUM_BLANK", "MORE_DATA", "EXTRA_INFO", "0x40"),
        ),
        Slot(index=0, kind="extra", type="GSO", flags=("MORE",), value="TCPV4, 1448 bytes"),
        Slot(index=1, kind="extra", type="HASH", value="type 1, algorithm 1, 0x12345678"),
        Slot(index=2, kind="request", id=2, gref=12, offset=0, size=904),
        Slot(index=3, kind="request", id=3, gref=13, offset=8, size=60),
    )  # fmt: skip
    assert len(ring.slots) == slots(TX_SLOT)


def test_rx() -> None:
    """A frame of two slots with an extra, a failed slot, and a request; a new ring has no slots before 0."""
    xdp = struct.pack("<BBH4x", 5, 0, 192)
    first = RX_RESPONSE.pack(1, 192, RxFlag.EXTRA_INFO | RxFlag.MORE_DATA, 3904)
    answered = [first, xdp, RX_RESPONSE.pack(3, 0, 0, 100), RX_RESPONSE.pack(4, 0, 0, -1)]
    _, ring = both(bytes(PAGE_SIZE), page(RX_SLOT, 0, answered, [RX_REQUEST.pack(5, 0, 44)]))
    assert (ring.waiting, ring.waiting_for, ring.consistent) == (3, 2.0, False)
    assert ring.slots == (
        Slot(
            index=0,
            kind="response",
            id=1,
            offset=192,
            size=3904,
            flags=("MORE_DATA", "EXTRA_INFO"),
            status="OKAY",
        ),
        Slot(index=1, kind="extra", type="XDP", value="192 bytes"),
        Slot(index=2, kind="response", id=3, offset=0, size=100, status="OKAY"),
        Slot(index=3, kind="response", id=4, offset=0, size=0, status="ERROR"),
        Slot(index=4, kind="request", id=5, gref=44),
    )


def test_the_control_ring() -> None:
    answered = [CTRL_RESPONSE.pack(1, CtrlType.GET_HASH_FLAGS, CtrlStatus.SUCCESS, 15)]
    ring = decode_control((page(CTRL_SLOT, 0, answered, [CTRL_REQUEST.pack(2, 99, 1, 2, 3)]), True, 0))
    assert (ring.ring, ring.state, ring.pending) == ("ctrl", None, 1)
    assert ring.slots == (
        Slot(index=0, kind="response", id=1, type="GET_HASH_FLAGS", status="SUCCESS", data=(15,)),
        Slot(index=1, kind="request", id=2, type="99", data=(1, 2, 3)),
    )


def test_an_impossible_index() -> None:
    made = bytearray(PAGE_SIZE)
    SRING.pack_into(made, 0, 300, 1, 0, 1)
    ring, _ = both(bytes(made), bytes(PAGE_SIZE))
    assert (ring.pending, ring.slots) == (None, ())


@given(
    st.binary(min_size=PAGE_SIZE - 64, max_size=PAGE_SIZE - 64),
    st.integers(0, 256),
    st.integers(0, 2**32 - 1),
)
def test_any_page(body: bytes, pending: int, rsp_prod: int) -> None:
    """The guest writes what it likes."""
    header = SRING.pack((rsp_prod + pending) % 2**32, 0, rsp_prod, 0).ljust(64, b"\0")
    for ring in (*both(header + body, header + body), decode_control((header + body, True, 0))):
        assert [slot.index for slot in ring.slots] == [
            (rsp_prod + (ring.pending or 0) - number) % 2**32 for number in range(len(ring.slots), 0, -1)
        ]
