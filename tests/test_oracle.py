# SPDX-License-Identifier: Apache-2.0
"""The oracle itself, checked against netif.h and docs/decisions.md: every byte here was written by hand.

It uses nothing of netback, since the native code is compared with it.
"""

import ast
import random
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.oracle import Burst, Config, Frame, Oracle

PAGE = 4096
PAGES = 32
DATA = 8
"""First of the pages that the guest grants: gref n is page n."""


class Rings:
    """Both rings of a guest, written as bytes."""

    def __init__(self, start: int = 0, **config: Any) -> None:
        self.config = Config(**config)
        self.memory = bytearray(PAGES * PAGE)
        for page in range(DATA, PAGES):
            self.grant(page, f"0100 {self.config.backend_domid:02x}00 {page:02x}000000")
            self.memory[page * PAGE : (page + 1) * PAGE] = random.Random(page).randbytes(PAGE)
        self.tx, self.rx = self.config.tx_page * PAGE, self.config.rx_page * PAGE
        for ring in (self.tx, self.rx):
            for at, index in enumerate((start, start + 1, start, start + 1)):
                self.put(ring + 4 * at, index)
        self.start = start
        self.oracle = Oracle(self.memory, self.config)

    def put(self, at: int, value: int) -> None:
        self.memory[at : at + 4] = (value % 2**32).to_bytes(4, "little")

    def get(self, at: int) -> int:
        return int.from_bytes(self.memory[at : at + 4], "little")

    def grant(self, gref: int, entry: str) -> None:
        self.memory[gref * 8 : gref * 8 + 8] = bytes.fromhex(entry)

    def post(self, ring: int, *slots: str) -> None:
        size = 12 if ring == self.tx else 8
        prod = self.get(ring)
        for i, slot in enumerate(slots):
            at = ring + 64 + (prod + i) % 256 * size
            self.memory[at : at + size] = bytes.fromhex(slot).ljust(size, b"\xee")
        self.put(ring, prod + len(slots))

    def slot(self, ring: int, i: int) -> str:
        size = 12 if ring == self.tx else 8
        at = ring + 64 + (self.start + i) % 256 * size
        return self.memory[at : at + size].hex()

    def answers(self, ring: int) -> list[str]:
        return [self.slot(ring, i) for i in range((self.get(ring + 8) - self.start) % 2**32)]

    def page(self, gref: int, offset: int, length: int) -> bytes:
        return bytes(self.memory[gref * PAGE + offset : gref * PAGE + offset + length])


def tx(gref: int, offset: int, flags: int, id_: int, size: int) -> str:
    fields = ((gref, 4), (offset, 2), (flags, 2), (id_, 2), (size, 2))
    return b"".join(value.to_bytes(width, "little") for value, width in fields).hex()


def statuses(rings: Rings) -> list[int]:
    return [int.from_bytes(bytes.fromhex(a)[2:4], "little", signed=True) for a in rings.answers(rings.tx)]


@pytest.mark.parametrize("file", ["oracle.py", "hash_oracle.py"])
def test_imports_nothing_of_netback(file: str) -> None:
    tree = ast.parse(Path(__file__).with_name(file).read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names - {"tests.hash_oracle"}} <= set(sys.stdlib_module_names)


# --- TX: what the guest sends


def test_tx_one_slot_golden() -> None:
    rings = Rings()
    rings.post(rings.tx, "09000000 1000 0000 3412 3c00")  # gref 9, offset 16, no flags, id 0x1234, 60 bytes
    burst = rings.oracle.tx()
    assert burst == Burst(sent=[Frame(rings.page(9, 16, 60))], wanted=1, notify=True)
    assert rings.answers(rings.tx) == ["34120000" + "00" * 8]
    assert rings.get(rings.tx + 4) == 2


def test_tx_chain_with_gso_golden() -> None:
    """The first size is the total; extras stand between the first and the second data slot and have no id."""
    rings = Rings()
    rings.post(
        rings.tx,
        "08000000 0000 0d00 0100 0820",  # csum_blank, more_data, extra_info; total 0x2008
        "01 00 7805 01 00 0000 deadbeef",  # GSO, 1400, TCPV4; the last four bytes are padding
        "0a000000 0400 0400 0200 0810",  # 0x1008 bytes would cross the page ...
        "0b000000 0000 0000 0300 0800",
    )
    assert rings.oracle.tx().sent == []  # ... so it is refused
    zeros = "00" * 8
    assert rings.answers(rings.tx) == [
        f"0100ffff{zeros}",
        f"00000100{zeros}",
        f"0200ffff{zeros}",
        f"0300ffff{zeros}",
    ]


def test_tx_first_length_is_total_less_others() -> None:
    rings = Rings()
    slots = [tx(8, 0, 0b1111, 1, 5000), "01 00 7805 02 00 0000", tx(9, 96, 4, 2, 4000), tx(10, 1, 0, 3, 100)]
    rings.post(rings.tx, *slots)
    data = rings.page(8, 0, 900) + rings.page(9, 96, 4000) + rings.page(10, 1, 100)
    assert rings.oracle.tx().sent == [Frame(data, True, True, 2, 1400)]
    assert statuses(rings) == [0, 1, 0, 0]


@pytest.mark.parametrize(
    ("slots", "expected"),
    [
        pytest.param([tx(8, 0, 0, 1, 14)], [0], id="smallest"),
        pytest.param([tx(8, 0, 0, 1, 13)], [-1], id="below 14"),
        pytest.param([tx(8, 0, 0, 1, 4096)], [0], id="a whole page"),
        pytest.param([tx(8, 1, 0, 1, 4096)], [-1], id="one byte beyond the page"),
        pytest.param([tx(8, 65535, 0, 1, 60)], [-1], id="offset beyond the page"),
        pytest.param([tx(8, 0, 4, 1, 60), tx(9, 0, 0, 2, 61)], [-1, -1], id="less than nothing left"),
        pytest.param([tx(8, 0, 4, 1, 60), tx(9, 0, 0, 2, 60)], [0, 0], id="nothing left for the first"),
        pytest.param([tx(8, 0, 4, 1, 60), tx(500, 4096, 0, 2, 0)], [0, 0], id="zero length, no grant"),
        pytest.param([tx(8, 0, 4, 1, 60), tx(9, 4097, 0, 2, 0)], [-1, -1], id="zero length beyond the page"),
        pytest.param([tx(8, 0, 4, 1, 60), tx(500, 0, 0, 2, 30)], [-1, -1], id="one grant missing"),
        pytest.param([tx(8, 0, 8, 1, 60), "04000000"], [0, 1], id="hash extra ignored"),
        pytest.param([tx(8, 0, 8, 1, 60), "04010000", "04000000"], [0, 1, 1], id="extras chained by MORE"),
        pytest.param([tx(8, 0, 4, 1, 60), tx(9, 0, 8, 2, 30)], [0, 0], id="extra_info on a later slot"),
        pytest.param([tx(8, 0, 0xFFF0, 1, 60)], [0], id="flags without a name"),
    ],
)
def test_tx_answers(slots: list[str], expected: list[int]) -> None:
    rings = Rings(start=2**32 - 1)
    rings.post(rings.tx, *slots)
    burst = rings.oracle.tx()
    assert statuses(rings) == expected
    assert (len(burst.sent), burst.fatal, burst.wanted) == (int(-1 not in expected), "", 1)
    assert rings.get(rings.tx + 4) == (len(slots) + 2**32) % 2**32


def chain(count: int) -> list[str]:
    return [tx(8 + i, 0, 4 * (i + 1 < count), i, 0 if i else 64) for i in range(count)]


@pytest.mark.parametrize(("count", "status"), [(18, 0), (19, 0), (20, 0), (21, -1)])
def test_tx_slots_of_a_frame(count: int, status: int) -> None:
    rings = Rings()
    rings.post(rings.tx, *chain(count))
    assert rings.oracle.tx().fatal == ""
    assert statuses(rings) == [status] * count


ADD, DEL = "02 00 01005e0000", "03 00 01005e0000"


@pytest.mark.parametrize(
    ("slots", "expected", "listed"),
    [
        pytest.param([tx(8, 0, 8, 1, 0), ADD + "01"], [0, 1], {1}, id="added"),
        pytest.param([tx(8, 0, 8, 1, 0), DEL + "01"], [0, 1], set(), id="removed, though not there"),
        pytest.param([tx(500, 9999, 12, 1, 60), ADD + "01"], [0, 1], {1}, id="a dummy's fields mean nothing"),
        pytest.param(
            [tx(8, 0, 8, 1, 0), "03 01 01005e000001", ADD + "02"], [0, 1, 1], {2}, id="ADD wins over DEL"
        ),
        pytest.param(
            [tx(8, 0, 8, 1, 0), "02 01 01005e000001", ADD + "02"], [0, 1, 1], {2}, id="the last ADD counts"
        ),
        pytest.param(
            [tx(8, 0, 8, 1, 0), ADD + "01", tx(8, 0, 8, 2, 0), ADD + "01", tx(8, 0, 8, 3, 0), DEL + "01"],
            [0, 1] * 3,
            set(),
            id="a set, not a count",
        ),
    ],
)
def test_tx_multicast_list(slots: list[str], expected: list[int], listed: set[int]) -> None:
    rings = Rings()
    rings.post(rings.tx, *slots)
    assert rings.oracle.tx().sent == []
    assert statuses(rings) == expected
    assert rings.oracle.multicast == {bytes.fromhex("01005e0000") + bytes([i]) for i in listed}


def test_tx_multicast_list_of_64() -> None:
    rings = Rings()
    for i in (*range(65), 3):
        rings.post(rings.tx, tx(8, 0, 8, i, 0), f"{ADD}{i:02x}")
    rings.oracle.tx()
    assert statuses(rings)[::2] == [0] * 64 + [-1, 0]


def test_rx_multicast_filter() -> None:
    group, broadcast, other = bytes.fromhex("01005e000001"), b"\xff" * 6, bytes.fromhex("333300000001")
    sent = [Frame(to + bytes(54)) for to in (group, other, broadcast, bytes(6))]
    for control, passed in ((False, 4), (True, 3)):
        rings = Rings(multicast_control=control)
        rings.post(rings.tx, tx(8, 0, 8, 1, 0), ADD + "01")
        rings.post(rings.rx, *["0100 0000 08000000"] * 4)
        rings.oracle.tx()
        assert rings.oracle.rx(sent).taken == 4
        assert len(rings.answers(rings.rx)) == passed


def test_tx_extras_do_not_count_as_data_slots() -> None:
    rings = Rings()
    rest = chain(20)[1:]
    rings.post(rings.tx, tx(8, 0, 12, 0, 64), "04010000", "04000000", *rest)
    assert len(rings.oracle.tx().sent) == 1
    assert statuses(rings) == [0, 1, 1] + [0] * 19


def test_tx_last_gso_extra_counts() -> None:
    rings = Rings()
    rings.post(rings.tx, tx(8, 0, 8, 0, 64), "01 01 7805 01", "01 01 0102 02", "04 00")
    assert rings.oracle.tx().sent == [Frame(rings.page(8, 0, 64), gso_type=2, gso_size=0x201)]


@pytest.mark.parametrize(
    ("slots", "reason"),
    [
        (chain(22), "more than 21 data slots"),
        ([tx(8, 0, 4, 1, 60)], "runs past req_prod"),
        ([tx(8, 0, 8, 1, 60)], "runs past req_prod"),
        ([tx(8, 0, 12, 1, 60), "04000000"], "runs past req_prod"),
        ([tx(8, 0, 8, 1, 60), "00000000"], "extra of type 0"),
        ([tx(8, 0, 8, 1, 60), "05000000"], "extra of type 5"),
        ([tx(8, 0, 8, 1, 5), "01 00 0000 01"], "GSO of size 0"),
        ([tx(8, 0, 8, 1, 60), "01 00 7805 00"], "type 0"),
        ([tx(8, 0, 8, 1, 60), "01 00 7805 03"], "type 3"),
        ([tx(8, 0, 8, 1, 60), "01 01 7805 03", "01 00 7805 01"], "type 3"),
    ],
)
def test_tx_fatal(slots: list[str], reason: str) -> None:
    """Frames before the bad chain are sent and answered; then nothing more happens, on neither ring."""
    rings = Rings()
    rings.post(rings.tx, tx(8, 0, 0, 7, 60), *slots)
    before = bytes(rings.memory)
    burst = rings.oracle.tx()
    assert reason in burst.fatal
    assert burst.sent == [Frame(rings.page(8, 0, 60))]
    assert burst.notify
    assert statuses(rings) == [0]
    assert rings.get(rings.tx + 4) == 1
    changed = {i for i, (a, b) in enumerate(zip(before, rings.memory, strict=True)) if a != b}
    assert changed <= {rings.tx + 8, *range(rings.tx + 64, rings.tx + 76)}
    rings.post(rings.rx, "0100 0000 08000000")
    assert rings.oracle.rx([Frame(bytes(60))]) == Burst(fatal=burst.fatal)
    assert rings.answers(rings.rx) == []


@pytest.mark.parametrize("ahead", [257, 1000, 2**31, 2**32 - 1])
def test_impossible_req_prod_is_fatal(ahead: int) -> None:
    for ring in (1, 2):
        rings = Rings(start=2**31 - 2)
        rings.put(ring * PAGE, rings.start + ahead)
        burst = rings.oracle.tx() if ring == 1 else rings.oracle.rx([])
        assert "req_prod" in burst.fatal


@pytest.mark.parametrize("start", [0, 2**31 - 3, 2**32 - 3, 2**32 - 256])
def test_tx_full_ring_over_a_wrap(start: int) -> None:
    rings = Rings(start=start)
    for _ in range(2):
        rings.post(rings.tx, *(tx(8 + i % 24, i, 0, i, 14 + i) for i in range(256)))
        assert [len(f.data) for f in rings.oracle.tx().sent] == list(range(14, 270))
    assert rings.get(rings.tx + 8) == (start + 512) % 2**32


@pytest.mark.parametrize(
    ("entry", "reads", "writes"),
    [
        ("0100 0000 09000000", True, True),
        ("0500 0000 09000000", True, False),  # read-only
        ("1900 0000 09000000", True, True),  # in use by another mapping, which is no hindrance
        ("0000 0000 09000000", False, False),  # revoked
        ("0200 0000 09000000", False, False),  # a transfer
        ("0300 0000 09000000", False, False),  # transitive: version 2 only
        ("0100 0100 09000000", False, False),  # for another domain
        ("0100 0000 20000000", False, False),  # beyond the guest's memory
    ],
)
def test_grants(entry: str, reads: bool, writes: bool) -> None:
    rings = Rings()
    rings.grant(40, entry)
    rings.post(rings.tx, tx(40, 0, 0, 1, 60))
    rings.post(rings.rx, "0500 0000 28000000")
    assert bool(rings.oracle.tx().sent) == reads
    burst = rings.oracle.rx([Frame(b"x" * 60)])
    assert (burst.damaged == 0) == writes
    assert rings.answers(rings.rx) == ["050000000000" + ("3c00" if writes else "ffff")]


@pytest.mark.parametrize("gref", [512, 2**31, 2**32 - 1])
def test_grefs_beyond_the_table(gref: int) -> None:
    rings = Rings(tx_page=4)
    rings.grant(512, "0100 0000 09000000")  # what follows the table looks like an entry
    rings.post(rings.tx, tx(gref, 0, 0, 1, 60))
    rings.oracle.tx()
    assert statuses(rings) == [-1]


# --- RX: what the guest receives


def posted(count: int) -> list[str]:
    """Requests of ids 0x0100 and up for grefs from DATA on, with junk where the header says pad."""
    return [f"{i:02x}01 beef {DATA + i:02x}000000" for i in range(count)]


def test_rx_one_slot_golden() -> None:
    rings = Rings(rx_offset=2)
    rings.post(rings.rx, "3412 beef 09000000")
    before = rings.page(9, 0, PAGE)
    frame = Frame(bytes(range(60)), data_validated=True)
    burst = rings.oracle.rx([frame])
    assert (burst.taken, burst.notify, burst.damaged) == (1, True, 0)
    assert rings.answers(rings.rx) == ["3412020001003c00"]  # id, offset 2, data_validated, 60 bytes
    assert rings.page(9, 0, PAGE) == before[:2] + frame.data + before[62:]
    assert rings.get(rings.rx + 4) == 2  # no slot left: the next one is asked for


def test_rx_chain_with_gso_golden() -> None:
    """The extra stands behind the first data slot; each status is the bytes of its own slot."""
    rings = Rings(start=2**32 - 2, rx_offset=2)
    rings.post(rings.rx, *posted(5))
    frame = Frame(random.Random(1).randbytes(2 * PAGE), True, True, 2, 1400)
    assert rings.oracle.rx([frame]).taken == 1
    assert rings.answers(rings.rx) == [
        "000102000f00fe0f",  # more_data, extra_info, csum_blank 2 and data_validated 1; 4094 bytes
        "0100780502000000",  # GSO, 1400, TCPV6
        "0201000004000010",
        "0301000000000200",
    ]
    delivered = rings.page(8, 2, 4094) + rings.page(10, 0, PAGE) + rings.page(11, 0, 2)
    assert delivered == frame.data
    assert (
        rings.get(rings.rx + 4) == 2**32 - 1
    )  # a slot is left and nothing waits: as the guest initialised it


def test_rx_flag_bits_are_swapped_against_tx() -> None:
    rings = Rings()
    rings.post(rings.rx, *posted(2))
    rings.oracle.rx([Frame(bytes(60), csum_blank=True), Frame(bytes(60), data_validated=True)])
    assert [answer[8:12] for answer in rings.answers(rings.rx)] == ["0200", "0100"]


@pytest.mark.parametrize(
    ("offset", "length", "slots"),
    [(0, 4096, 1), (0, 4097, 2), (2, 4094, 1), (2, 4095, 2), (2, 8190, 2), (0, 65535, 16), (2, 65535, 17)],
)
def test_rx_waits_for_exactly_the_slots_it_needs(offset: int, length: int, slots: int) -> None:
    rings = Rings(rx_offset=offset)
    small, large = Frame(bytes(60)), Frame(random.Random(2).randbytes(length))
    rings.post(rings.rx, *posted(slots))
    if slots > 1:
        assert rings.oracle.rx([small, large, small]).taken == 1
        assert rings.get(rings.rx + 4) == 1 + slots  # one request more than are posted
        rings.post(rings.rx, f"0001 0000 {DATA + slots:02x}000000")
    assert rings.oracle.rx([large]).taken == 1
    assert (
        sum(int.from_bytes(bytes.fromhex(a)[6:], "little") for a in rings.answers(rings.rx)[slots > 1 :])
        == length
    )


def test_rx_eight_slot_guest_takes_small_frames() -> None:
    rings = Rings()
    rings.post(rings.rx, *posted(8))
    assert rings.oracle.rx([Frame(bytes(1514))] * 9).taken == 8


def test_rx_what_never_fits_is_dropped() -> None:
    rings = Rings(sg=False)
    rings.post(rings.rx, *posted(3))
    burst = rings.oracle.rx([Frame(bytes(4097)), Frame(bytes(4096)), Frame(bytes(60))])
    assert (burst.taken, burst.dropped, len(rings.answers(rings.rx))) == (3, 1, 2)
    rings = Rings()
    rings.post(rings.rx, *posted(1))
    assert rings.oracle.rx([Frame(bytes(256 * PAGE + 1)), Frame(bytes(60))]).dropped == 1


def test_rx_bad_grant_in_a_chain() -> None:
    """The bad slot says ERROR and still leads to the next; the others carry their bytes."""
    rings = Rings()
    rings.post(rings.rx, "0100 0000 08000000", "0200 0000 f4010000", "0300 0000 0a000000")
    frame = Frame(random.Random(3).randbytes(2 * PAGE + 5))
    assert rings.oracle.rx([frame]).damaged == 1
    assert rings.answers(rings.rx) == ["0100000004000010", "020000000400ffff", "0300000000000500"]
    assert rings.page(10, 0, 5) == frame.data[-5:]


# --- when the frontend is notified


@pytest.mark.parametrize(
    ("rsp_event", "answered", "notified"),
    [
        (1, 1, True),
        (2, 1, False),
        (2, 2, True),
        (3, 5, True),
        (6, 5, False),
        (0, 5, False),
        (2**31, 5, False),
    ],
)
def test_notify(rsp_event: int, answered: int, notified: bool) -> None:
    """Iff rsp_prod passes rsp_event, the first response after `rsp_event - 1` responses."""
    for start in (0, 2**32 - 2, 2**31 - 2):
        rings = Rings(start=start)
        rings.put(rings.tx + 12, start + rsp_event)
        rings.post(rings.tx, *[tx(8, 0, 0, i, 60) for i in range(answered)])
        assert rings.oracle.tx().notify == notified


def test_attach_takes_up_at_rsp_prod() -> None:
    rings = Rings(start=100)
    rings.post(rings.tx, tx(8, 0, 0, 1, 60), tx(9, 0, 0, 2, 61))
    rings.put(rings.tx + 8, 101)  # a predecessor answered the first
    assert [len(frame.data) for frame in Oracle(rings.memory, rings.config).tx().sent] == [61]


def test_the_guest_cannot_move_our_index() -> None:
    rings = Rings()
    rings.post(rings.tx, tx(8, 0, 0, 1, 60))
    rings.put(rings.tx + 8, 77)
    rings.oracle.tx()
    assert rings.get(rings.tx + 8) == 1
