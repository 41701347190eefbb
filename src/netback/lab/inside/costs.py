# SPDX-License-Identifier: Apache-2.0
"""What system calls and hypercalls cost in this domain; run it in dom0. Prints JSON, in microseconds per call.

A cost is the median of many batches, less Python's own share.
"""

import ctypes
import gc
import json
import mmap
import os
import statistics
import struct
import time
from collections.abc import Callable

from netback.abi.ring import PAGE_SIZE
from netback.platforms.xen import gntalloc
from netback.platforms.xen.devices import call, open_device
from netback.platforms.xen.store import find_store, own_domid

BATCHES = 30
CALLS = 50
PAGES = 16
"""64 KiB: the largest frame."""
BYTES = PAGES * PAGE_SIZE

_GRANT_COPY = 0x00104708
_SOURCE_GREF, _DEST_GREF = 1, 2
_SEGMENT = struct.Struct("=8s8sHHh2x")
"""struct gntdev_grant_copy_segment: source, dest, len, flags, status."""
_STATUS = 20


def price(make: Callable[[], object], besides: Callable[[], object] = gc.isenabled) -> float:
    """Microseconds per call, less the cost of `idle`, a call that does nothing."""
    taken: dict[Callable[[], object], list[float]] = {make: [], besides: []}
    for _ in range(BATCHES):
        for one, times in taken.items():
            start = time.perf_counter_ns()
            for _ in range(CALLS):
                one()
            times.append((time.perf_counter_ns() - start) / CALLS / 1000)
    return statistics.median(taken[make]) - statistics.median(taken[besides])


def granted(device: int, domid: int) -> tuple[mmap.mmap, list[bytes]]:
    """Pages granted to this domain itself: mapped, and each page's grant as a copy segment names it."""
    offset, grefs = gntalloc.allocate(device, domid, PAGES)
    return mmap.mmap(device, BYTES, offset=offset), [struct.pack("=IHH", gref, 0, domid) for gref in grefs]


def grant_copy(gntdev: int, sources: list[bytes], targets: list[bytes], flags: int) -> Callable[[], None]:
    """A call that copies all pages in one GRANT_COPY, as a burst does."""
    segments = bytearray().join(
        _SEGMENT.pack(source, target, PAGE_SIZE, flags, -1)
        for source, target in zip(sources, targets, strict=True)
    )
    held = (ctypes.c_char * len(segments)).from_buffer(segments)
    argument = bytearray(struct.pack("=I4xQ", len(sources), ctypes.addressof(held)))

    def copy(_keep: object = held) -> None:
        call(gntdev, _GRANT_COPY, argument, "cannot copy")

    copy()
    statuses = [
        struct.unpack_from("=h", segments, _STATUS + i * _SEGMENT.size)[0] for i in range(len(sources))
    ]
    if any(statuses):
        raise SystemExit(f"copies were refused: {statuses}")
    return copy


def measure() -> dict[str, float]:
    """Every cost by its name."""
    domid = own_domid(find_store())
    gntdev, device = open_device("gntdev"), open_device("gntalloc")
    plain, other = mmap.mmap(-1, BYTES), mmap.mmap(-1, BYTES)
    plain[:] = os.urandom(BYTES)
    address = ctypes.addressof(ctypes.c_char.from_buffer(plain))
    addresses = [struct.pack("=Q", address + i * PAGE_SIZE) for i in range(PAGES)]
    mapped, ours = granted(device, domid)
    _theirs, targets = granted(device, domid)
    mapped[:] = plain[:]
    to, source = memoryview(other), memoryview(plain)

    def copy() -> None:
        to[:] = source

    return {
        "a system call": price(os.getppid),
        "64 KiB copied in memory": price(copy),
        "64 KiB by grant copy, from an address": price(grant_copy(gntdev, addresses, targets, _DEST_GREF)),
        "64 KiB by grant copy, from own grants": price(
            grant_copy(gntdev, ours, targets, _SOURCE_GREF | _DEST_GREF)
        ),
    }


if __name__ == "__main__":
    print(json.dumps(measure()))
