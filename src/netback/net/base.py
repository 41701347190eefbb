# SPDX-License-Identifier: Apache-2.0
"""What a vif needs of the network behind it, as one Protocol that every kind keeps.

Knows neither links nor rings: a network is a native peer (a descriptor with a frame format) and the few things that
control code does to it.
"""

from typing import Protocol

from netback.dataplane.peers.peer import Peer


class Network(Protocol):
    """One vif's network, or one guest's. Everything here is for control code; frames go through `peer`."""

    @property
    def name(self) -> str:
        """The link's present name, or what this is where there is no link."""

    @property
    def mtu(self) -> int | None:
        """The link's; None where there is no link."""

    @property
    def peer(self) -> Peer:
        """What a queue is joined to."""

    def offloads(self, caps: int) -> None:
        """Say what the ring's side takes (Can): a tap then gives no more than that."""

    def carrier(self, on: bool) -> None:
        """Show the link's users whether somebody is at the other end."""

    def drain(self) -> int:
        """Throw away frames that waited since before the guest connected: how many."""

    def drops(self) -> dict[str, int]:
        """Frames that the network itself lost on their way to us, by cause; counts only grow."""

    def close(self) -> None:
        """Close descriptors; any number of times. A link stays as it is."""

    def remove(self) -> None:
        """Close, and remove what netback itself had made."""


class FdStore(Protocol):
    """Where a tap's descriptor outlives this process, so that frames that wait in the tap survive a restart."""

    @property
    def untaken(self) -> set[str]:
        """Names of held descriptors that no device has taken."""

    def take(self, name: str) -> int | None:
        """Hand over the descriptor that an earlier process stored for this device; the caller closes it."""

    def keep(self, name: str, fd: int) -> None:
        """Store a duplicate of `fd` for this device, in place of an earlier one."""

    def forget(self, name: str) -> None:
        """Drop what is stored for this device, and remove its tap."""
