# SPDX-License-Identifier: Apache-2.0
"""A worker's arena whose first pages a device gave: they are that device's, and the rest of the arena is not."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from netback.abi.ring import PAGE_SIZE
from netback.dataplane.arena import ARENA_PAGES, Arena

GREFS = [1000 + page for page in range(80)]


@pytest.fixture
def device() -> Iterator[int]:
    """As gntalloc's pages come: somewhere in a file."""
    fd = os.memfd_create("pages")
    os.truncate(fd, (8 + len(GREFS)) * PAGE_SIZE)
    yield fd
    os.close(fd)


def test_the_first_pages_are_the_device_s_and_go_with_the_arena(device: int) -> None:
    arena = Arena()
    arena.name(device, 8 * PAGE_SIZE, 5, GREFS)
    assert mapped() == [f"{len(GREFS) * PAGE_SIZE:#x} at {8 * PAGE_SIZE:#x}"]
    del arena
    assert mapped() == []
    for _ in range(4):  # the allocator may hand out that memory again
        Arena()


def test_a_copy_s_end_is_named_only_where_it_lies_in_one_named_page(device: int) -> None:
    arena = Arena()
    assert arena.end_of(0, 100) is None
    arena.name(device, 8 * PAGE_SIZE, 5, GREFS)
    assert arena.end_of(0, PAGE_SIZE) == (1000, 0, 5)
    assert arena.end_of(3 * PAGE_SIZE + 100, PAGE_SIZE - 100) == (1003, 100, 5)
    assert arena.end_of(3 * PAGE_SIZE + 100, PAGE_SIZE - 99) is None
    assert arena.end_of(80 * PAGE_SIZE - 1, 1) == (1079, PAGE_SIZE - 1, 5)
    assert arena.end_of(80 * PAGE_SIZE, 1) is None
    assert arena.end_of(-1, 1) is None
    assert arena.end_of(-PAGE_SIZE, 1) is None


@pytest.mark.parametrize("grefs", [[], [1] * (ARENA_PAGES + 1)])
def test_pages_that_it_has_not_are_refused(device: int, grefs: list[int]) -> None:
    arena = Arena()
    with pytest.raises(ValueError, match="1089 pages"):
        arena.name(device, 0, 5, grefs)
    assert arena.end_of(0, 1) is None


def test_a_device_that_gives_none_leaves_the_arena_as_it_was(device: int) -> None:
    arena = Arena()
    with pytest.raises(OSError, match="cannot map"):
        arena.name(device, 123, 5, GREFS)
    assert arena.end_of(0, 1) is None
    assert mapped() == []


def mapped() -> list[str]:
    """How much of the device is mapped here, and from where."""
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        words = line.split()
        if len(words) > 5 and words[5].startswith("/memfd:pages"):
            first, last = (int(end, 16) for end in words[0].split("-"))
            found.append(f"{last - first:#x} at {int(words[2], 16):#x}")
    return found
