# SPDX-License-Identifier: Apache-2.0
"""Captures, read back by tshark, an independent implementation of the format."""

import io
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from netback.abi.netif import GsoType, RxFlag, TxFlag
from netback.dataplane.records import Record, RecordKind
from netback.observe.pcapng import Capture, Direction, PcapngWriter

FRAME = b"\xff" * 6 + b"\x02\0\0\0\0\x01" + b"\x88\xb5" + b"payload"
FIELDS = (
    "frame.time_epoch",
    "frame.interface_name",
    "frame.interface_description",
    "frame.packet_flags_direction",
)
FIELDS += ("frame.len", "frame.cap_len", "frame.comment")


def fields_of(path: Path, *fields: str) -> list[list[str]]:
    """These fields of each packet, as tshark reads them; a warning is a failure."""
    command = [
        "tshark",
        "-n",
        "-r",
        str(path),
        "-T",
        "fields",
        *[word for field in fields for word in ("-e", field)],
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert [line for line in done.stderr.splitlines() if "Running as user" not in line] == []
    return [line.split("\t") for line in done.stdout.splitlines()]


def record(kind: RecordKind, **changes: int | bytes) -> Record:
    values = {
        "time_ns": 1_700_000_000_123_456_789,
        "link": 0,
        "flags": 0,
        "gref": 9,
        "index": 0,
        "offset": 0,
        "size": 0,
        "slots": 1,
        "status": 0,
        "gso_size": 0,
        "gso_type": 0,
        "frame": FRAME,
    }
    return Record(kind=kind, **(values | changes))


def test_a_frame_tells_how_it_crossed_the_ring(tmp_path: Path) -> None:
    path = tmp_path / "demo.pcapng"
    tx = record(
        RecordKind.TX_FRAME,
        index=256 * 7 + 5,
        slots=4,
        gref=77,
        offset=66,
        size=len(FRAME),
        flags=TxFlag.CSUM_BLANK | TxFlag.DATA_VALIDATED | TxFlag.MORE_DATA | TxFlag.EXTRA_INFO,
        gso_type=GsoType.TCPV4,
        gso_size=1448,
    )
    rx = record(RecordKind.RX_FRAME, index=(1 << 32) - 1, gref=8, offset=2, flags=RxFlag.DATA_VALIDATED)
    with path.open("wb") as stream:
        take = Capture(stream).sink("vif3.0")
        take(tx)
        take(rx)
    size = str(len(FRAME))
    assert fields_of(path, *FIELDS) == [
        [
            "1700000000.123456789",
            "vif3.0-q0-tx",
            "TX ring of vif3.0, queue 0",
            "0x00000001",
            size,
            size,
            "TX ring slot 5 (index 1797), 4 slots, flags NETTXF_csum_blank|NETTXF_data_validated|NETTXF_more_data"
            "|NETTXF_extra_info, first gref 77 offset 66, GSO TCPV4 size 1448",
        ],
        [
            "1700000000.123456789",
            "vif3.0-q0-rx",
            "RX ring of vif3.0, queue 0",
            "0x00000002",
            size,
            size,
            "RX ring slot 255 (index 4294967295), 1 slots, flags NETRXF_data_validated, first gref 8 offset 2",
        ],
    ]


def test_a_frame_that_was_answered_error_is_there_without_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "error.pcapng"
    with path.open("wb") as stream:
        Capture(stream).sink("vif3.0")(
            record(RecordKind.TX_FRAME, status=-1, size=1514, frame=b"", flags=0x40)
        )
    (packet,) = fields_of(path, *FIELDS)
    assert packet[4:6] == ["1514", "0"]
    assert packet[6].endswith("flags 0x40, first gref 9 offset 0, answered ERROR")


@pytest.mark.parametrize("size", [14, 15, 16, 17, 65549])
def test_any_length_is_padded_right(tmp_path: Path, size: int) -> None:
    """A block of the wrong length would garble the next one."""
    path = tmp_path / "padding.pcapng"
    with path.open("wb") as stream:
        writer = PcapngWriter(stream)
        number = writer.interface("a", "b")
        for comment in ("", "one", "four"):
            writer.packet(
                number,
                1,
                FRAME[:14] + bytes(size - 14),
                length=size,
                direction=Direction.INBOUND,
                comment=comment,
            )
    assert fields_of(path, "frame.len", "frame.comment") == [
        [str(size), ""],
        [str(size), "one"],
        [str(size), "four"],
    ]


def test_queues_of_many_threads_share_a_file(tmp_path: Path) -> None:
    """Each interface has its own name, including those that are added after the first frame."""
    path = tmp_path / "many.pcapng"
    with path.open("wb") as stream, ThreadPoolExecutor(4) as threads:
        capture = Capture(stream)

        def queue(number: int) -> None:
            take = capture.sink(f"vif{number}.0", number)
            for index in range(50):
                take(record(RecordKind.RX_FRAME, index=index))

        list(threads.map(queue, range(8)))
    assert capture.frames == 400
    names = [name for (name,) in fields_of(path, "frame.interface_name")]
    assert {name: names.count(name) for name in names} == {f"vif{n}.0-q{n}-rx": 50 for n in range(8)}


def test_slots_are_no_frames() -> None:
    stream = io.BytesIO()
    capture = Capture(stream)
    take = capture.sink("vif1.0")
    before = stream.tell()
    take(record(RecordKind.TX_SLOT))
    take(record(RecordKind.RX_SLOT))
    assert (capture.frames, stream.tell()) == (0, before)


class FullDisk(io.BytesIO):
    """A file with room for the first blocks only."""

    refused = 0

    def write(self, data: bytes, /) -> int:
        if self.tell() > 400:
            self.refused += 1
            raise OSError(28, "No space left on device")
        return super().write(data)


def test_a_full_disk_ends_the_capture_and_nothing_else() -> None:
    disk = FullDisk()
    capture = Capture(disk)
    take = capture.sink("vif1.0")
    for _ in range(10):
        take(record(RecordKind.TX_FRAME))
    assert 0 < capture.frames < 10
    assert capture.error is not None
    assert capture.error.errno == 28
    assert disk.refused == 1
