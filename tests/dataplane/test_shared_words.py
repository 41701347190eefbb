# SPDX-License-Identifier: Apache-2.0
"""Words that processes share: each operation computes correctly, and none leaves its buffer."""

import mmap
import struct

import pytest

from netback.dataplane.shared_words import SharedWords


def test_verbs() -> None:
    memory = bytearray(32)
    words = SharedWords(memory)
    words.store64(8, 0xFFFFFFFF_FFFFFFF0)
    assert words.set64(8, 3) == 0xFFFFFFFF_FFFFFFF0
    assert words.clear64(8, 1) == 0xFFFFFFFF_FFFFFFF3
    assert words.load64(8) == 0xFFFFFFFF_FFFFFFF2
    assert not words.exchange64(8, 0, 7)
    assert words.exchange64(8, 0xFFFFFFFF_FFFFFFF2, 7)
    assert words.add32(20, 0xFFFFFFFF) == 0
    assert words.add32(20, 2) == 0xFFFFFFFF
    assert words.load32(20) == 1
    assert memory == struct.pack("<QQIIQ", 0, 7, 0, 1, 0)


@pytest.mark.parametrize("offset", [-8, 4, 12, 25, 32, 1 << 62])
def test_no_word_is_outside_or_across(offset: int) -> None:
    words = SharedWords(bytearray(32))
    for verb in (words.load64, lambda at: words.store64(at, 1), lambda at: words.exchange64(at, 0, 1)):
        with pytest.raises(IndexError):
            verb(offset)
    with pytest.raises(IndexError):
        words.load32(offset + 2)


def test_a_released_buffer_is_its_owner_s_again() -> None:
    memory = mmap.mmap(-1, 4096)
    words = SharedWords(memory)
    with pytest.raises(BufferError):
        memory.close()
    words.release()
    words.release()
    memory.close()
    with pytest.raises(ValueError, match="released"):
        words.load64(0)


def test_what_cannot_be_written_is_refused() -> None:
    with pytest.raises(BufferError):
        SharedWords(memoryview(bytes(8)))
