# SPDX-License-Identifier: Apache-2.0
"""io/xenbus.h: the states of the two ends of a device."""

import enum
from typing import Self


class XenbusState(enum.IntEnum):
    """XenbusState*: the value of a `state` node, in decimal."""

    UNKNOWN = 0
    INITIALISING = 1
    INIT_WAIT = 2
    INITIALISED = 3
    CONNECTED = 4
    CLOSING = 5
    CLOSED = 6
    RECONFIGURING = 7
    RECONFIGURED = 8

    @property
    def title(self) -> str:
        """The header's spelling: `InitWait`."""
        return self.name.title().replace("_", "")

    @classmethod
    def parse(cls, text: str | None) -> Self:
        """The state that a node holds: exactly one of the header's numbers, else UNKNOWN."""
        return next((state for state in cls if text == str(int(state))), cls.UNKNOWN)
