# SPDX-License-Identifier: Apache-2.0
"""Captures, read back by tshark, an independent implementation of the format."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import netback
from netback.abi.netif import GsoType, RxFlag, TxFlag
from netback.dataplane.capture_reader import CaptureReader
from netback.observe.pcapng import Section
from tests.capture_oracle import HASHED, RX, Frame, Producer

FRAME = b"\xff" * 6 + b"\x02\0\0\0\0\x01" + b"\x88\xb5" + b"payload"
FIELDS = (
    "frame.time_epoch",
    "frame.interface_name",
    "frame.interface_description",
    "frame.interface_queue",
    "frame.packet_flags_direction",
    "frame.drop_count",
    "frame.len",
    "frame.cap_len",
    "frame.comment",
)


def tshark(path: Path, *words: str) -> str:
    """What tshark prints; a warning is a failure."""
    command = ["tshark", "-n", "-r", str(path), *words]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert [line for line in done.stderr.splitlines() if "Running as user" not in line] == []
    return done.stdout


def fields_of(path: Path, *fields: str) -> list[list[str]]:
    """These fields of each packet."""
    shown = tshark(path, "-T", "fields", *[word for field in fields for word in ("-e", field)])
    return [line.split("\t") for line in shown.splitlines()]


@pytest.fixture
def producer() -> Iterator[Producer]:
    producer = Producer(devices=("vif3.0",))
    yield producer
    producer.close()


def section(producer: Producer, path: Path, *frames: Frame) -> Section:
    """Write a section with these frames to a file."""
    made = Section(CaptureReader(producer.fd), "both", 2000)
    with path.open("wb") as file:
        file.write(made.begin())
        for frame in frames:
            producer.put(frame)
            file.write(made.read())
        file.write(made.end())
    return made


def test_a_frame_tells_how_it_crossed_the_ring(tmp_path: Path, producer: Producer) -> None:
    path = tmp_path / "frames.pcapng"
    flags = TxFlag.CSUM_BLANK | TxFlag.DATA_VALIDATED | TxFlag.MORE_DATA | TxFlag.EXTRA_INFO
    tx = Frame(
        index=256 * 7 + 5, slots=4, gref=77, offset=66, length=len(FRAME), flags=int(flags), data=FRAME,
        gso_type=GsoType.TCPV4, gso_size=1448, queue=2,
    )  # fmt: skip
    rx = Frame(
        direction=RX, index=(1 << 32) - 1, gref=8, offset=2, flags=int(RxFlag.DATA_VALIDATED), lost=70_000,
        length=len(FRAME), data=FRAME, extras=HASHED, hash=b"\x01\x23\xcd\xef", hash_type=1,
    )  # fmt: skip
    section(producer, path, tx, rx)
    size = str(len(FRAME))
    when = "1700000000.123456789"
    assert fields_of(path, *FIELDS) == [
        [
            when, "vif3.0 tx", "what the guest of vif3.0 sends", "2", "0x00000001", "", size, size,
            "TX ring slot 5 (index 1797), 4 slots, flags NETTXF_csum_blank|NETTXF_data_validated|NETTXF_more_data"
            "|NETTXF_extra_info, first gref 77 offset 66, GSO TCPV4 size 1448",
        ],
        [
            when, "vif3.0 rx", "what the guest of vif3.0 receives", "0", "0x00000002", "70000", size, size,
            "RX ring slot 255 (index 4294967295), 1 slot, flags NETRXF_data_validated, first gref 8 offset 2, "
            "hash ipv4_tcp 0x0123cdef",
        ],
    ]  # fmt: skip
    shown = tshark(path, "-V")
    assert "Interface queue: 2" in shown
    assert "Direction: Inbound (0x1)" in shown
    assert "Direction: Outbound (0x2)" in shown


def test_a_frame_that_was_answered_error_is_there_without_its_bytes(
    tmp_path: Path, producer: Producer
) -> None:
    path = tmp_path / "error.pcapng"
    section(producer, path, Frame(status=-1, length=1514, flags=0x40))
    (packet,) = fields_of(path, *FIELDS)
    assert packet[6:8] == ["1514", "0"]
    assert packet[8].endswith("flags 0x40, first gref 9 offset 0, answered ERROR")


@pytest.mark.parametrize("size", [14, 15, 16, 17, 65553])
def test_any_length_is_padded_right(tmp_path: Path, producer: Producer, size: int) -> None:
    """A block of the wrong length would garble the next one."""
    path = tmp_path / "padding.pcapng"
    data = FRAME[:14] + bytes(size - 14)
    section(producer, path, *[Frame(index=index, length=size, data=data) for index in (1, 10, 100, 1000)])
    assert fields_of(path, "frame.len") == [[str(size)]] * 4


def test_the_section_says_who_wrote_it_and_what_it_lacks(tmp_path: Path, producer: Producer) -> None:
    """tshark's own dissector of the format prints the blocks that are no packets."""
    path = tmp_path / "blocks.pcapng"
    made = Section(CaptureReader(producer.fd), "both", 2000)
    producer.put(Frame(length=60, data=bytes(60)))
    producer.lose(0, 5, 7)
    with path.open("wb") as file:
        file.write(made.begin() + made.read() + made.end())
    shown = tshark(path, "-X", "read_format:MIME Files Format", "-V")
    assert f"User Application: netback {netback.__version__}" in shown
    for said in ("Name: vif3.0 tx", "Name: vif3.0 rx", "Snap Length: 2000", "Interface Statistics Block"):
        assert said in shown
    received = [
        int(line.split(":")[1]) for line in shown.splitlines() if "Number of Received Packets:" in line
    ]
    dropped = [int(line.split(":")[1]) for line in shown.splitlines() if "Number of Dropped Packets:" in line]
    assert (received, dropped) == ([6, 7], [5, 7])
    assert made.lost == {"vif3.0 tx": 5, "vif3.0 rx": 7}


def test_a_device_that_comes_later(tmp_path: Path, producer: Producer) -> None:
    path = tmp_path / "later.pcapng"
    made = Section(CaptureReader(producer.fd), "rx", 2000)
    with path.open("wb") as file:
        file.write(made.begin())
        producer.name(1, "vif4.0")
        producer.put(Frame(direction=RX, device=1, length=60, data=bytes(60)))
        producer.put(Frame(direction=RX, device=0, length=61, data=bytes(61)))
        file.write(made.read() + made.end())
    assert fields_of(path, "frame.interface_name", "frame.len") == [["vif4.0 rx", "60"], ["vif3.0 rx", "61"]]


def test_sections_follow_one_another(tmp_path: Path, producer: Producer) -> None:
    """As in a file that a second backend continues: each counts its own frames."""
    path = tmp_path / "two.pcapng"
    made = Section(CaptureReader(producer.fd), "tx", 2000)
    with path.open("wb") as file:
        for _ in range(2):
            file.write(made.begin())
            producer.put(Frame(length=60, data=bytes(60)))
            file.write(made.read() + made.end())
    assert fields_of(path, "frame.section_number", "frame.interface_name") == [
        ["1", "vif3.0 tx"], ["2", "vif3.0 tx"],
    ]  # fmt: skip
    shown = tshark(path, "-X", "read_format:MIME Files Format", "-V")
    received = [
        int(line.split(":")[1]) for line in shown.splitlines() if "Number of Received Packets:" in line
    ]
    assert received == [1, 1]
