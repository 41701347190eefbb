# SPDX-License-Identifier: Apache-2.0
"""Extra infos: each type's layout by netif.h, chains of all of them, and what the rings' oracle says of every chain."""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netback.dataplane import extras
from tests import oracle

MORE = 1
MAC, OTHER_MAC = bytes.fromhex("00163e000001"), bytes.fromhex("33330000000a")
VALUES: dict[str, Any] = {
    "gso": (1448, 2),
    "mcast_add": MAC,
    "mcast_del": OTHER_MAC,
    "hash": (3, 1, bytes.fromhex("deadbeef")),
    "xdp": 256,
}
"""By netif.h's numbers: 1 to 5."""
LAYOUTS = {
    "gso": struct.pack("<BBHBBH", 1, 0, 1448, 2, 0, 0),
    "mcast_add": struct.pack("<BB6s", 2, 0, MAC),
    "mcast_del": struct.pack("<BB6s", 3, 0, OTHER_MAC),
    "hash": struct.pack("<BBBB4s", 4, 0, 3, 1, bytes.fromhex("deadbeef")),
    "xdp": struct.pack("<BBHHH", 5, 0, 256, 0, 0),
}
ALL = 0b111110


def chain(infos: list[bytes], slot_size: int) -> bytes:
    """The slots of one frame's extra infos; the rest of a slot is not read."""
    linked = [bytes([info[0], MORE]) + info[2:] for info in infos[:-1]] + infos[-1:]
    return b"".join(info.ljust(slot_size, b"\xee") for info in linked)


@pytest.mark.parametrize("slot_size", [8, 12])
@pytest.mark.parametrize("name", VALUES)
def test_each_type_has_its_layout(name: str, slot_size: int) -> None:
    assert extras.write(**{name: VALUES[name]}) == [LAYOUTS[name]]
    slots = chain([LAYOUTS[name]], slot_size)
    assert extras.read(slots, slot_size, ALL) == (extras.OKAY, 1, {name: VALUES[name]})


@pytest.mark.parametrize("slot_size", [8, 12])
def test_all_types_in_one_chain(slot_size: int) -> None:
    written = extras.write(**VALUES)
    assert b"".join(info.ljust(slot_size, b"\xee") for info in written) == chain(
        list(LAYOUTS.values()), slot_size
    )
    assert [a[0] < b[0] for a, b in pairwise(written)] == [True] * 4
    backwards = chain(list(LAYOUTS.values())[::-1], slot_size)
    assert extras.read(backwards, slot_size, ALL) == (extras.OKAY, 5, VALUES)


def test_a_type_that_the_reader_does_not_know() -> None:
    for name, kind in (("xdp", 5), ("hash", 4)):
        slots = chain([LAYOUTS["gso"], LAYOUTS[name]], 12)
        assert extras.read(slots, 12, ALL & ~(1 << kind))[:2] == (extras.UNKNOWN, 2)
    for kind in (0, 6, 255):
        assert extras.read(bytes([kind]) + bytes(7), 8, ALL)[0] == extras.UNKNOWN


def test_a_chain_that_ends_before_its_last_says_so() -> None:
    slots = chain([LAYOUTS["hash"], LAYOUTS["gso"]], 8)
    assert extras.read(slots[:8], 8)[:2] == (extras.TRUNCATED, 1)
    assert extras.read(b"", 8)[:2] == (extras.TRUNCATED, 0)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(
    st.lists(
        st.one_of(
            st.sampled_from(list(LAYOUTS.values())),
            st.tuples(st.integers(0, 7), st.sampled_from([0, MORE]), st.binary(min_size=6, max_size=6)).map(
                lambda parts: bytes(parts[:2]) + parts[2]
            ),
        ),
        min_size=1,
        max_size=6,
    ),
    st.booleans(),
)
def test_agrees_with_the_oracle(infos: list[bytes], linked: bool) -> None:
    """What the oracle of the rings says of each extra info is what the codec says, for the types that netback knows."""
    slots = chain(infos, 12) if linked else b"".join(info.ljust(12, b"\xee") for info in infos)
    wanted: list[oracle.Extra] = []
    fatal = more = False
    for at in range(0, len(slots), 12):
        try:
            wanted.append(oracle.checked(oracle.Extra(*oracle.EXTRA.unpack_from(slots, at))))
        except oracle.Fatal:
            fatal = True
            break
        more = bool(wanted[-1].flags & MORE)
        if not more:
            break
    outcome, count, found = extras.read(slots, 12)
    if fatal:
        assert outcome in (extras.UNKNOWN, extras.BAD_GSO)
        return
    assert outcome == (extras.TRUNCATED if more else extras.OKAY)
    assert count == len(wanted)
    sizes = [(extra.size, extra.gso_type) for extra in wanted if extra.type == 1]
    assert found.get("gso") == (sizes[-1] if sizes else None)
    assert len(found) == len({extra.type for extra in wanted})
