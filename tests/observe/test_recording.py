# SPDX-License-Identifier: Apache-2.0
"""Files of recordings: what is cut or edited is refused in one line that has the place, and nothing makes it fail."""

import os
import random
import re
import struct
import zlib
from pathlib import Path

import pytest
from fuzz.recording import file, recorded, steps

from netback.abi.netif import TX_REQUEST
from netback.dataplane.flight import Flight
from netback.errors import ConfigError
from netback.observe.recording import MAGIC, MAX_QUEUES, Recording, decode, read
from tests.dataplane.harness import Bench, post

SEED = 3
"""Of rings with both directions and several polls."""
HEAD = 120
"""Bytes of poll_t."""
WHERE = re.compile(r"offset (\d+)|ends at (\d+)|no recording of netback|first line")


@pytest.fixture(scope="module")
def data() -> bytes:
    return file(recorded(SEED))


def refused(data: bytes) -> str:
    """Why a file is refused: one line with a place."""
    with pytest.raises(ValueError, match=WHERE.pattern) as caught:
        decode(data)
    text = str(caught.value)
    assert text.isprintable()
    return text


def test_it_is_what_was_recorded(data: bytes) -> None:
    made = decode(data)
    assert isinstance(made, Recording)
    assert [poll.data for poll in made.queues[0]] == recorded(SEED)
    assert {poll.ring for poll in made.queues[0]} == {"tx", "rx"}
    assert steps(data) == len(made.queues[0])


def test_cut_at_every_offset(data: bytes) -> None:
    ends = set()
    for length in range(len(data)):
        text = refused(data[:length])
        ends.add(text.startswith("it is cut"))
    assert ends == {True}


def test_bytes_that_follow(data: bytes) -> None:
    assert refused(data + b"x") == f"1 bytes follow its end at offset {len(data)}"


def test_a_flipped_bit_of_every_byte(data: bytes) -> None:
    rng = random.Random(1)
    for at in range(len(data)):
        flipped = bytearray(data)
        flipped[at] ^= 1 << rng.randrange(8)
        place = int(next(filter(None, WHERE.search(refused(bytes(flipped))).groups()), 0))  # type: ignore[union-attr]
        assert place <= len(data)


def test_a_poll_that_was_edited_with_its_checksum() -> None:
    """The bytes of polls are checked, too: a checksum is no protection from an author."""
    bench = Bench()
    flight = Flight(1 << 16, 128)
    bench.queue.record(flight)
    post(bench, 1, [TX_REQUEST.pack(8, 0, 0, 1, 200)])
    bench.run()
    bench.close()
    polls = flight.polls()
    last = polls[-1]
    for edited, reason in (
        (last[:3], "shorter than its head"),
        (last[:50], "shorter than its head"),
        (struct.pack("<I", len(last) + 1) + last[4:], "its head is wrong"),
        (last[:4] + b"\x07" + last[5:], "its head is wrong"),
        (last[:5] + b"\xc8" + last[6:], "its head is wrong"),
        (struct.pack("<I", len(last) - 8) + last[4:-8], "its bytes end too early"),
        (struct.pack("<I", len(last) + 8) + last[4:] + bytes(8), "bytes follow its last item"),
        (last[:HEAD] + b"\x63" + last[HEAD + 1 :], "there is no item of kind 99"),
    ):
        text = refused(file([*polls[:-1], edited]))
        assert reason in text
        assert text.startswith(f"poll {len(polls)} of {len(polls)} of queue 0 at offset ")


def test_a_header_that_lies(data: bytes) -> None:
    (length,) = struct.unpack_from("<I", data, len(MAGIC))
    header = data[len(MAGIC) + 8 :][:length]
    rest = data[len(MAGIC) + 8 + length :]

    def with_header(text: bytes) -> bytes:
        return MAGIC + struct.pack("<II", len(text), zlib.crc32(text)) + text + rest

    assert decode(with_header(header))
    assert "checksum" in refused(data[: len(MAGIC) + 20] + b"\0" + data[len(MAGIC) + 21 :])
    assert "damaged" in refused(with_header(b"["))
    assert "damaged" in refused(with_header(b"[" * 100_000))
    many = b'{"polls":0,"recorded":0,"lost":0},' * MAX_QUEUES
    assert "257 queues" in refused(with_header(header.replace(b'"queues":[', b'"queues":[' + many)))
    polls = b'"polls":%d' % len(recorded(SEED))
    assert polls in header
    assert "it is cut: poll" in refused(with_header(header.replace(polls, b'"polls":1000000000')))
    assert "bytes follow its end" in refused(with_header(header.replace(polls, b'"polls":1')))
    assert "damaged" in refused(with_header(header.replace(polls, b'"polls":-1')))
    states = header.replace(b'"RING_IDLE"', b'"RING_LAZY"')
    with pytest.raises(ValueError, match="whose states are not those of this netback"):
        decode(with_header(states))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is cut within its first line: the file ends at 0"),
        (b"netback rec", "it is cut within its first line: the file ends at 11"),
        (b"netback recording 3\r\n\x1a\n", "in another version of the format"),
        (b"\x0a\x0d\x0d\x0a pcapng", "it is no recording of netback"),
    ],
)
def test_other_files(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "some.recording"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"^{re.escape(str(path))}: .*{reason}"):
        read(path)


def test_what_is_no_file(tmp_path: Path) -> None:
    """A pipe does not block."""
    os.mkfifo(tmp_path / "pipe")
    for name, reason in (
        ("pipe", "it is no regular file"),
        ("none", "No such file"),
        (".", "Is a directory"),
    ):
        with pytest.raises(ConfigError, match=reason):
            read(tmp_path / name)
