# SPDX-License-Identifier: Apache-2.0
from collections.abc import Sequence
from typing import Final

DROP: Final = -1
PASS: Final = 0
COMPLETE: Final = 1
SEGMENT: Final = 2
SPLIT: Final = 3

Flags = tuple[bool, bool, int, int]

def to_virtio(
    frame: bytearray,
    *,
    csum_blank: bool = False,
    data_validated: bool = False,
    gso_type: int = 0,
    gso_size: int = 0,
    caps: int = 0,
    have: int | None = None,
) -> tuple[int, tuple[int, int, int, int, int, int], bool]: ...
def to_netif(
    frame: bytes, header: Sequence[int], *, caps: int = 0, have: int | None = None
) -> tuple[int, Flags, int]: ...
def complete(frame: bytearray, header: Sequence[int]) -> None: ...
def segment(frame: bytes, header: Sequence[int]) -> list[bytes]: ...
def split(frame: bytes, header: Sequence[int], *, whole: bool = True) -> list[tuple[bytes, Flags]]: ...
