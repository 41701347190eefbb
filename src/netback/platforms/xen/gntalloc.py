# SPDX-License-Identifier: Apache-2.0
"""Pages that this domain grants: /dev/xen/gntalloc makes pages together with their grants."""

import struct
from pathlib import Path

from netback.errors import PlatformError
from netback.platforms.xen.devices import call

_ALLOC_GREF = 0x00184705
_DEALLOC_GREF = 0x00104706
_WRITABLE = 1
_LIMIT = Path("/sys/module/xen_gntalloc/parameters/limit")


def allocate(gntalloc: int, domid: int, count: int, *, readonly: bool = False) -> tuple[int, list[int]]:
    """Grant `count` zeroed pages to `domid`; returns their offset in the device for mmap, and their grefs.

    They last until `free` or the device's end, and as long as they are mapped. PlatformError ENOSPC: beyond gntalloc's
    limit, which all processes of the domain share.
    """
    # struct ioctl_gntalloc_alloc_gref: domid, flags, count, index (out), gref_ids (out)
    head = struct.pack("=HHIQ", domid, 0 if readonly else _WRITABLE, count, 0)
    argument = bytearray(head + bytes(4 * count))
    try:
        call(gntalloc, _ALLOC_GREF, argument, f"cannot grant {count} pages to domain {domid}")
    except PlatformError as error:
        raise _explained(error) from error
    (index,) = struct.unpack_from("=Q", argument, 8)
    return index, list(struct.unpack_from(f"={count}I", argument, 16))


def free(gntalloc: int, index: int, count: int) -> None:
    """End the grants of one `allocate`. The grant of a page that is still mapped ends with its mapping (XSA-396)."""
    # struct ioctl_gntalloc_dealloc_gref: index, count
    argument = bytearray(struct.pack("=QI4x", index, count))
    call(gntalloc, _DEALLOC_GREF, argument, f"cannot free {count} pages")


def _explained(error: PlatformError) -> PlatformError:
    """The error, with gntalloc's limit in its text if that was the cause. Two queues of a frontend reach it."""
    if error.errno != "ENOSPC":
        return error
    limit = _LIMIT.read_text().strip() if _LIMIT.exists() else "?"
    return PlatformError(
        f"{error}: gntalloc's limit is {limit} pages, and a frontend's vif takes 514: write a larger one to {_LIMIT}",
        error.errno,
    )
