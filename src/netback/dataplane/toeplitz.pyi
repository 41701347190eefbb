# SPDX-License-Identifier: Apache-2.0
from typing import Final

KEY_BYTES: Final[int]

class Toeplitz:
    """The hash of one key, for the selected types of frames."""

    def __init__(self, key: bytes, types: int) -> None: ...
    def of(self, frame: bytes) -> tuple[int, int] | None: ...
    def cost(self, frame: bytes, times: int) -> int: ...
