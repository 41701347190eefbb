# SPDX-License-Identifier: Apache-2.0
"""What devices announce: changes of their states, and of the condition of their data path."""

from dataclasses import dataclass, field

from netback.abi.xenbus import XenbusState as State
from netback.dataplane.notices import Notice
from netback.observe.announce import Announcements
from netback.xenbus.names import DeviceName


@dataclass(frozen=True, slots=True)
class StateNews:
    """A device's states as it last read or wrote them, and its error."""

    name: DeviceName
    ours: State
    theirs: State
    error: str
    gone: bool = False
    """The device is not served any more."""


@dataclass(frozen=True, slots=True)
class ConditionNews:
    """The worst condition of a device's queues changed."""

    name: DeviceName
    condition: Notice
    reason: str | None
    """How the guest broke the protocol."""


@dataclass(frozen=True, slots=True)
class News:
    """Both, of all devices of a backend."""

    states: Announcements[StateNews] = field(default_factory=Announcements)
    conditions: Announcements[ConditionNews] = field(default_factory=Announcements)
