# SPDX-License-Identifier: Apache-2.0
"""What a vif needs of the network behind it, as one Protocol that every kind keeps.

Knows neither links nor rings: a network is a native peer for each queue (a descriptor with a frame format) and the few
things that control code does to it.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from netback.dataplane.peers.peer import Peer


class Network(Protocol):
    """The network of one vif, or of one guest. Everything here is for control code; frames go through `peers`."""

    @property
    def name(self) -> str:
        """The link's present name, or what this is where there is no link."""

    @property
    def mtu(self) -> int | None:
        """The link's; None where there is no link."""

    @property
    def peers(self) -> tuple[Peer, ...]:
        """One for each queue, in the order of the queues."""

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


NetworkFactory = Callable[[str], Network]
"""Makes the network of one device, which then owns it; the argument is the device's name, as in "vif3.0"."""


class FdStore(Protocol):
    """Where a tap's descriptors outlive this process, so that frames that wait in the tap survive a restart."""

    @property
    def untaken(self) -> set[str]:
        """Names of the devices whose held descriptors no device has taken."""

    def take(self, name: str) -> tuple[int, ...]:
        """Hand over the descriptors that an earlier process stored for this device, in the order of its queues.

        Empty where none are held. The caller closes them.
        """

    def keep(self, name: str, fds: Sequence[int]) -> None:
        """Store duplicates of `fds`, one for each queue of this device, in place of earlier ones."""

    def forget(self, name: str) -> None:
        """Drop what is stored for this device, and remove its tap."""
