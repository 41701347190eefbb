# SPDX-License-Identifier: Apache-2.0
"""What a vif needs of the network behind it: one Protocol that every kind of network keeps.

Knows neither links nor rings: a network is a native peer for each queue (a descriptor with a frame format) and the few
things that control code does to it.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from netback.dataplane.peers.peer import Peer

ETH_DATA_LEN = 1500
"""linux/if_ether.h: the MTU, in bytes, of a link by default."""


class Network(Protocol):
    """The network of one vif, or of one guest. Everything here is for control code; frames go through `peers`.

    A network remembers what its methods set on the link, and sets it on a link that comes back. No method blocks for
    longer than a few requests to the kernel.
    """

    @property
    def name(self) -> str:
        """The link's present name, printable ASCII; what this is where there is no link."""

    @property
    def mtu(self) -> int | None:
        """The link's, in bytes; None where there is no link in this network namespace."""

    @property
    def peers(self) -> tuple[Peer, ...]:
        """One for each queue, in the order of the queues; the same objects for the network's whole life."""

    @property
    def follows(self) -> frozenset[int | str]:
        """The links whose changes concern this network, by index or name; empty where none does."""

    def check(self) -> bool:
        """Look at the link, and join it again where it was removed and is back.

        True: the peers were joined again, so the workers that serve them must look at their descriptors. GoneError says
        what is missing; any other PeerError, ConfigError or OSError says why the link that is there cannot be used now.
        """

    def offloads(self, caps: int) -> None:
        """Say which offloads the ring's side takes, as bits of dataplane.caps.Can: a tap then gives no others.

        A network that cannot be asked for less (a packet socket, a Python object) does nothing: the native side
        completes checksums, and cuts what is to be segmented, wherever this guest needs it. Never raises: they are
        set on a link that is gone when it is back.
        """

    def carrier(self, on: bool) -> None:
        """Show the link's users whether a guest is connected. Taps only; never raises."""

    def limit_mtu(self, limited: bool) -> None:
        """Keep a tap's MTU at 1500 bytes or less while its guest has no feature-sg, as Linux's backend does.

        False sets the earlier MTU again, unless it was changed meanwhile. Links of others (packet) stay as they are, as
        does a tap that this process may not change: compare `mtu` afterwards. Never raises.
        """

    def set_address(self, address: str) -> None:
        """Give a tap that netback made this address, as "00:16:3e:12:34:56": the guest's end has its vif's address."""

    def drain(self) -> int:
        """Discard the frames that came before the guest connected, 65536 at most: how many."""

    def drops(self) -> dict[str, int]:
        """Frames that the network lost on their way to the guest, by cause ("rx_overflow"); counts only grow."""

    def close(self) -> None:
        """Close descriptors; any number of times. A link stays as it is."""

    def remove(self) -> None:
        """Close, and remove what netback itself had made; the MTU of a tap that stays is set back."""


class Linkless:
    """What every network answers that is no link of this host."""

    mtu: int | None = None
    follows: frozenset[int | str] = frozenset()

    def check(self) -> bool:
        """Nothing can go and come back."""
        return False

    def carrier(self, on: bool) -> None:
        """There is no link to show it."""

    def limit_mtu(self, limited: bool) -> None:
        """There is no link to change."""

    def set_address(self, address: str) -> None:
        """There is no link to change."""


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
