# SPDX-License-Identifier: Apache-2.0
from collections.abc import Mapping
from typing import Final

MAX_PAGES: Final[int]
GREFS_END: Final[int]

class Staged:
    """A queue's staged pages."""

    def __init__(self, pages: Mapping[int, tuple[int, bool]], keep: object = None) -> None: ...
    def find(self, gref: int, *, writing: bool) -> int: ...
