# SPDX-License-Identifier: Apache-2.0
from collections.abc import Sequence

ARENA_PAGES: int

class Arena:
    """Pages for a burst: BURST_FRAMES of the largest frames, and one for the headroom of the first."""

    def name(self, fd: int, offset: int, domid: int, grefs: Sequence[int]) -> None: ...
    def end_of(self, at: int, length: int) -> tuple[int, int, int] | None: ...
