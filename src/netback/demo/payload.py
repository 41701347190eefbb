# SPDX-License-Identifier: Apache-2.0
"""What a transfer carries, and what is kept of it at either end: bytes, time, the longest silence, a digest.

Pure but for the clock.
"""

import hashlib
import random
import time
from typing import Any

PIECE = 1 << 18
_SEED = 0x16_3E


class Payload:
    """Bytes for so many seconds, or so many of them. `checked`: no two pieces are alike, and all go into a digest."""

    def __init__(self, seconds: float, most: int, checked: bool) -> None:
        self._end = time.monotonic() + seconds
        self._left = most
        self._checked = checked
        self._piece = random.Random(_SEED).randbytes(PIECE)
        self._sent = 0
        self._digest = hashlib.sha256()

    def next(self) -> bytes:
        """The next piece, empty at the end."""
        if time.monotonic() >= self._end or self._left <= 0:
            return b""
        piece = self._piece
        if self._checked:
            piece = self._sent.to_bytes(8, "big") + piece[8:]
            self._digest.update(piece)
        self._sent += PIECE
        self._left -= PIECE
        return piece

    def report(self) -> dict[str, Any]:
        return {"bytes": self._sent, "digest": self._digest.hexdigest()}


class Tally:
    """What a receiver keeps."""

    def __init__(self, checked: bool) -> None:
        self._checked = checked
        self._bytes = 0
        self._first = self._last = 0.0
        self._silence = 0.0
        self._digest = hashlib.sha256()

    def add(self, piece: memoryview) -> None:
        """Some bytes came."""
        now = time.monotonic()
        self._first = self._first or now
        self._silence = max(self._silence, now - (self._last or now))
        self._last = now
        self._bytes += len(piece)
        if self._checked:
            self._digest.update(piece)

    def report(self) -> dict[str, Any]:
        return {
            "bytes": self._bytes,
            "seconds": self._last - self._first,
            "silence": self._silence,
            "digest": self._digest.hexdigest(),
        }
