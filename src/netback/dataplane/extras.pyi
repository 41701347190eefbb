# SPDX-License-Identifier: Apache-2.0
from typing import Any, Final

OKAY: Final[int]
TRUNCATED: Final[int]
UNKNOWN: Final[int]
BAD_GSO: Final[int]
KNOWN: Final[int]

def read(slots: bytes, slot_size: int, known: int = ...) -> tuple[int, int, dict[str, Any]]: ...
def write(
    *,
    gso: tuple[int, int] | None = None,
    mcast_add: bytes | None = None,
    mcast_del: bytes | None = None,
    hash: tuple[int, int, bytes] | None = None,
    xdp: int | None = None,
) -> list[bytes]: ...
