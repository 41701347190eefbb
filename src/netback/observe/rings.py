# SPDX-License-Identifier: Apache-2.0
"""A ring's page as data: its indices, what it waits for, and every slot decoded (io/ring.h, io/netif.h).

The page is a copy of memory that the guest may write anything to, so every value decodes to something.
"""

import struct
from collections.abc import Callable, Iterator

from netback.abi.netif import (
    EXTRA_FLAG_MORE,
    RX_REQUEST,
    RX_RESPONSE,
    RX_SLOT,
    TX_REQUEST,
    TX_RESPONSE,
    TX_SLOT,
    ExtraType,
    GsoType,
    RxFlag,
    Status,
    TxFlag,
)
from netback.abi.netif_control import CTRL_REQUEST, CTRL_RESPONSE, CTRL_SLOT, CtrlStatus, CtrlType
from netback.abi.ring import SRING, slot_offset, slots
from netback.dataplane.states import TABLE, State
from netback.observe.slots import Ring, Slot

_EXTRA = struct.Struct("<BB6s")
"""type, flags, and what the type defines."""
_GSO = struct.Struct("<HBBH")
"""size, type, pad, features."""
_XDP = struct.Struct("<HHH")
"""headroom, pad[2]."""
_HASH = struct.Struct("<BB4s")
"""type, algorithm, value."""
_EXTRA_INFO = "EXTRA_INFO"
"""The flag's name on both rings."""
_SECOND = 1_000_000_000

Copy = tuple[bytes, bool, int]
"""A copy of a ring's page, whether it is of one moment, and the ns since a response was published
(BackQueue.snapshot)."""


def decode_queue(
    suffix: str,
    states: tuple[State, State],
    copies: dict[str, Copy],
    waiting: int,
    waiting_ns: int,
) -> list[Ring]:
    """Both rings of a queue, from `BackQueue.states` and `BackQueue.snapshot`; `suffix` is "" or "-q1"."""
    tx, rx = states
    return [
        _ring("tx" + suffix, copies["tx"], TX_SLOT, _tx_requests, _tx_responses, state=tx),
        _ring(
            "rx" + suffix, copies["rx"], RX_SLOT, _rx_requests, _rx_responses,
            state=rx, waiting=waiting, waiting_for=waiting_ns / _SECOND,
        ),
    ]  # fmt: skip


def decode_control(copy: Copy) -> Ring:
    """A control ring, from `ControlRing.snapshot`."""
    return _ring("ctrl", copy, CTRL_SLOT, _ctrl_requests, _ctrl_responses)


Decode = Callable[[Iterator[tuple[int, bytes]]], Iterator[Slot]]


def _ring(
    name: str,
    copy: Copy,
    size: int,
    requests: Decode,
    responses: Decode,
    *,
    state: State | None = None,
    waiting: int = 0,
    waiting_for: float = 0.0,
) -> Ring:
    page, consistent, quiet = copy
    total = slots(size)
    req_prod, req_event, rsp_prod, rsp_event = SRING.unpack_from(page)
    pending = (req_prod - rsp_prod) % (1 << 32)

    def raw(count: int, first: int) -> Iterator[tuple[int, bytes]]:
        for index in range(first, first + count):
            at = slot_offset(index, size)
            yield index % (1 << 32), page[at : at + size]

    shown: tuple[Slot, ...] = ()
    if pending <= total:
        answered = min(total - pending, rsp_prod)  # a new ring's slots before 0 were never used
        shown = (*responses(raw(answered, rsp_prod - answered)), *requests(raw(pending, rsp_prod)))
    return Ring(
        ring=name,
        indices={"req_prod": req_prod, "req_event": req_event, "rsp_prod": rsp_prod, "rsp_event": rsp_event},
        consistent=consistent,
        slots_total=total,
        pending=pending if pending <= total else None,
        quiet=quiet / _SECOND,
        state=state.name if state is not None else None,
        means=TABLE[state].means if state is not None else None,
        waiting=waiting,
        waiting_for=waiting_for,
        slots=shown,
    )


def _tx_requests(raw: Iterator[tuple[int, bytes]]) -> Iterator[Slot]:
    return _with_extras(raw, _tx_request)


def _rx_responses(raw: Iterator[tuple[int, bytes]]) -> Iterator[Slot]:
    """The first one may be an extra whose frame's first slot was used again: nothing tells it from a response."""
    return _with_extras(raw, _rx_response)


def _with_extras(raw: Iterator[tuple[int, bytes]], decode: Callable[[int, bytes], Slot]) -> Iterator[Slot]:
    """The slots of frames whose extra infos follow their first slot."""
    extra_follows = False
    for index, slot in raw:
        if extra_follows:
            yield _extra(index, slot)
            extra_follows = bool(slot[1] & EXTRA_FLAG_MORE)
            continue
        decoded = decode(index, slot)
        yield decoded
        extra_follows = _EXTRA_INFO in decoded.flags


def _tx_request(index: int, slot: bytes) -> Slot:
    gref, offset, flags, ident, size = TX_REQUEST.unpack(slot)
    return Slot(
        index=index,
        kind="request",
        id=ident,
        gref=gref,
        offset=offset,
        size=size,
        flags=_names(TxFlag, flags),
    )


def _tx_responses(raw: Iterator[tuple[int, bytes]]) -> Iterator[Slot]:
    for index, slot in raw:
        ident, status = TX_RESPONSE.unpack(slot)
        yield Slot(index=index, kind="response", id=ident, status=_name(Status, status))


def _rx_requests(raw: Iterator[tuple[int, bytes]]) -> Iterator[Slot]:
    for index, slot in raw:
        ident, _, gref = RX_REQUEST.unpack(slot)
        yield Slot(index=index, kind="request", id=ident, gref=gref)


def _rx_response(index: int, slot: bytes) -> Slot:
    ident, offset, flags, status = RX_RESPONSE.unpack(slot)
    return Slot(
        index=index,
        kind="response",
        id=ident,
        offset=offset,
        flags=_names(RxFlag, flags),
        size=max(status, 0),
        status=_name(Status, min(status, 0)),
    )


def _ctrl_requests(raw: Iterator[tuple[int, bytes]]) -> Iterator[Slot]:
    for index, slot in raw:
        ident, kind, *data = CTRL_REQUEST.unpack(slot)
        yield Slot(index=index, kind="request", id=ident, type=_name(CtrlType, kind), data=tuple(data))


def _ctrl_responses(raw: Iterator[tuple[int, bytes]]) -> Iterator[Slot]:
    for index, slot in raw:
        ident, kind, status, data = CTRL_RESPONSE.unpack(slot)
        yield Slot(
            index=index,
            kind="response",
            id=ident,
            type=_name(CtrlType, kind),
            status=_name(CtrlStatus, status),
            data=(data,),
        )


def _extra(index: int, slot: bytes) -> Slot:
    kind, flags, body = _EXTRA.unpack_from(slot)
    more = ("MORE",) if flags & EXTRA_FLAG_MORE else ()
    return Slot(index=index, kind="extra", type=_name(ExtraType, kind), flags=more, value=_says(kind, body))


def _says(kind: int, body: bytes) -> str:
    match kind:
        case ExtraType.GSO:
            size, gso, _, _ = _GSO.unpack(body)
            return f"{_name(GsoType, gso)}, {size} bytes"
        case ExtraType.MCAST_ADD | ExtraType.MCAST_DEL:
            return body.hex(":")
        case ExtraType.HASH:
            hash_type, algorithm, value = _HASH.unpack(body)
            return f"type {hash_type}, algorithm {algorithm}, {int.from_bytes(value, 'little'):#010x}"
        case ExtraType.XDP:
            headroom, _, _ = _XDP.unpack(body)
            return f"{headroom} bytes"
    return body.hex()


def _name(names: type[Status | ExtraType | GsoType | CtrlType | CtrlStatus], value: int) -> str:
    try:
        return names(value).name
    except ValueError:
        return str(value)


def _names(names: type[TxFlag | RxFlag], value: int) -> tuple[str, ...]:
    rest = value
    found = []
    for flag in names:
        if value & flag:
            found.append(str(flag.name))
            rest &= ~int(flag)
    return (*found, *((hex(rest),) if rest else ()))
