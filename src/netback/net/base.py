# SPDX-License-Identifier: Apache-2.0
"""What a vif needs from the network behind it: one Protocol that every kind of network implements.

A network is a native peer for each queue (a descriptor with a frame format) and the few operations that control code
performs on it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from netback.dataplane.own_grants import OwnGrants
from netback.dataplane.peers.peer import Peer

ETH_DATA_LEN = 1500
"""linux/if_ether.h: the default MTU of a link, in bytes."""


@dataclass(frozen=True, slots=True)
class Bridge:
    """The link, such as a bridge, that another link is a port of."""

    index: int
    """0 if there is no link of its name."""
    name: str
    mtu: int | None
    """None if it limits no frame: a bridge of Open vSwitch."""


@dataclass(frozen=True, slots=True)
class Owner:
    """The device that a network is opened for."""

    facts: Mapping[str, str] = field(default_factory=dict)
    """What its nodes and its guest's say: "domid", "devid", "mac", "name", "uuid"; what is not known is missing."""
    wake: Callable[[], object] = bool
    """Has the device check its network soon. Any thread may call it."""
    grants: OwnGrants | None = None
    """Pages that this domain grants to itself, for a peer's memory; None: none."""


class Network(Protocol):
    """The network of one vif, or of one guest. All methods are for control code; frames go through `peers`.

    A network remembers what its methods set on the link, and sets it again on a link that returns. No method blocks for
    longer than a few requests to the kernel.
    """

    @property
    def name(self) -> str:
        """The link's current name, printable ASCII; a description for a network without a link."""

    @property
    def mtu(self) -> int | None:
        """The link's MTU in bytes; None if there is no link in this network namespace."""

    @property
    def bridge(self) -> Bridge | None:
        """The bridge that this network's link is a port of; None if it is of none."""

    @property
    def up(self) -> bool:
        """Whether frames can pass the network, as far as this host shows: the link exists, is set up, and its own far
        end has carrier. The carrier that `carrier` sets is not meant.
        """

    @property
    def path(self) -> str | None:
        """How frames pass at present, and why not by a faster way, printable ASCII; None if there is one way only."""

    @property
    def peers(self) -> tuple[Peer, ...]:
        """A peer for each queue that takes frames, at least one; they change only in `set_queues`."""

    @property
    def follows(self) -> frozenset[int | str]:
        """The links whose changes concern this network: indices, names or `monitor.ANY_LINK`; empty if none do."""

    def set_queues(self, count: int) -> None:
        """Have `peers` for so many queues, if the network can have several: a multi-queue tap. No queue is served now.

        Frames for the guest are spread over the peers by flow. PeerError: a queue cannot be made.
        """

    def check(self) -> bool:
        """Check the link, and join it again if it was removed and is back.

        Returns True if the peers were joined again: their workers must then read the descriptors again. GoneError names
        the missing link; any other PeerError, ConfigError or OSError says why an existing link cannot be used now.
        """

    def offloads(self, caps: int) -> None:
        """Set the offloads that the ring's side accepts, as bits of dataplane.caps.Can; a tap then uses no others.

        Does nothing for a network that always uses all of them (a packet socket, a Python object): the native side then
        completes checksums and segments frames as this guest needs. Never raises: for a missing link the setting is
        applied when the link returns.
        """

    def carrier(self, on: bool) -> None:
        """Set the link's carrier, which shows whether a guest is connected. Taps only; never raises."""

    def limit_mtu(self, limited: bool) -> None:
        """Keep a tap's MTU at 1500 bytes or less while its guest has no feature-sg, as Linux's backend does.

        False restores the earlier MTU, unless it was changed since. Links that netback does not own (packet) stay
        unchanged, as does a tap that this process may not change: compare `mtu` afterwards. Never raises.
        """

    def set_address(self, address: str) -> None:
        """Set the address of a tap that netback made, as "00:16:3e:12:34:56": at the guest's end it is the vif's
        address.
        """

    def set_mtu(self, mtu: int) -> None:
        """Set the MTU of a tap that netback made: at the guest's end it is the vif's. Never raises."""

    def drain(self) -> int:
        """Discard frames that arrived before the guest connected, at most 65536; return their number."""

    def drops(self) -> dict[str, int]:
        """Frames that the network lost on their way to the guest, by cause ("rx_overflow"). Counts only grow."""

    def queued(self) -> dict[str, int]:
        """What waits in the network's own queue ("bytes") and its bound ("bytes_max"); empty if the kernel does not
        tell, as for a tap.
        """

    def close(self) -> None:
        """Close the descriptors; may be called again. The link stays unchanged."""

    def remove(self) -> None:
        """Close, and remove what netback made. A tap that stays gets its earlier MTU back."""


class Linkless:
    """The answers of every network that is not a link of this host."""

    @property
    def mtu(self) -> int | None:
        """No link has an MTU."""
        return None

    @property
    def path(self) -> str | None:
        """There is one way."""
        return None

    @property
    def bridge(self) -> Bridge | None:
        """No link is a port."""
        return None

    @property
    def follows(self) -> frozenset[int | str]:
        """No link's changes concern it."""
        return frozenset()

    @property
    def up(self) -> bool:
        """No link can be down."""
        return True

    def set_queues(self, count: int) -> None:
        """There is one descriptor: further queues of a vif send through it."""

    def check(self) -> bool:
        """No link can be removed and return."""
        return False

    def queued(self) -> dict[str, int]:
        """The kernel does not tell."""
        return {}

    def carrier(self, on: bool) -> None:
        """No link has a carrier."""

    def limit_mtu(self, limited: bool) -> None:
        """No link has an MTU."""

    def set_address(self, address: str) -> None:
        """No link has an address."""

    def set_mtu(self, mtu: int) -> None:
        """No link has an MTU."""


NetworkFactory = Callable[[str], Network]
"""Makes the network of one device, which then owns it. The argument is the device's name, as in "vif3.0"."""


class FdStore(Protocol):
    """Stores a tap's descriptors beyond this process, so that frames queued in the tap survive a restart."""

    @property
    def untaken(self) -> set[str]:
        """The devices whose stored descriptors no device has taken."""

    def take(self, name: str) -> tuple[int, ...]:
        """Return the descriptors that an earlier process stored for this device, in the order of its queues.

        Empty if none are stored. The caller closes them.
        """

    def keep(self, name: str, fds: Sequence[int]) -> None:
        """Store duplicates of `fds`, one for each queue of this device, replacing earlier ones."""

    def forget(self, name: str) -> None:
        """Drop what is stored for this device, and remove its tap."""
