# SPDX-License-Identifier: Apache-2.0
"""What `netback explain` knows of a device: one frozen picture of it, and of the domain in which its backend runs.

Nothing here asks for anything: `daemon.explain` fills these in, `daemon.rules` judges them.
"""

from dataclasses import dataclass

from netback.abi.xenbus import XenbusState as State
from netback.control.schema import Details, DeviceStatus
from netback.observe.slots import Ring

USING = {state.title for state in (State.CONNECTED, State.RECONFIGURING, State.RECONFIGURED)}
"""The states of an end that uses the rings; the frontend's keys are complete then."""


@dataclass(frozen=True, slots=True)
class Host:
    """The domain in which the backend runs."""

    served: bool
    """A backend of netback answers."""
    kernel_vifs: int | None = None
    """The vifs that the kernel's xen-netback has; None: it does not serve this domain's vifs."""
    kernel_loaded: bool = False
    """The kernel's xen-netback is loaded."""
    qemu: int | None = None
    """The process of a QEMU that may serve qnics."""
    devd: int | None = None
    """The process of an `xl devd`, which runs the hotplug scripts of a driver domain."""


@dataclass(frozen=True, slots=True)
class LinkFacts:
    """The link of a tap or packet network, as this network namespace has it."""

    name: str
    tap: bool
    """Its carrier is netback's to set."""
    exists: bool
    up: bool = False
    """An operator or script set it up."""
    carrier: bool = False
    mtu: int = 0
    bridge: str = ""
    """The link that it is a port of; empty for none."""
    bridge_up: bool | None = None
    """None: it is no bridge of Linux. Open vSwitch's ovs-system is never up, and its MTU means nothing."""
    bridge_mtu: int = 0
    """0: likewise."""


@dataclass(frozen=True, slots=True)
class Facts:
    """A device at one moment, and its counters some seconds earlier."""

    details: Details
    """As `netback show`; with the counters of the second reading."""
    host: Host
    earlier: DeviceStatus | None = None
    """The first reading; None without a running backend, or if only one was taken."""
    rings: tuple[Ring, ...] = ()
    """As `netback rings`."""
    link: LinkFacts | None = None
    """None: the network has no link here, or it is not known."""
    twins: tuple[str, ...] = ()
    """Other devices in the same bridge with the same MAC address; not looked for if one reading was taken."""
    owner: int | None = None
    """The domain that owns the frontend's directory; None if that does not exist or may not be asked."""

    @property
    def now(self) -> DeviceStatus:
        """The second reading."""
        return self.details.device

    @property
    def error(self) -> str:
        """Why the backend does not serve it; empty if it does."""
        return self.now.error or ""

    @property
    def states(self) -> dict[str, str]:
        """As evidence."""
        return {"backend": self.now.backend or "none", "frontend": self.now.frontend or "none"}

    @property
    def connected(self) -> bool:
        """Both ends use the rings."""
        return {self.now.backend, self.now.frontend} <= USING

    @property
    def going(self) -> bool:
        """The toolstack takes the device away."""
        return self.now.online == "0"

    def node(self, name: str) -> str:
        """A node of the backend's directory; empty if there is none."""
        return self.details.backend_nodes.get(name, "")

    def agreed(self, feature: str) -> bool | None:
        """Whether a feature is in force (vif/terms.py); None before the guest is connected."""
        return next((term.agreed for term in self.details.features if term.feature == feature), None)

    def reason(self, feature: str) -> str:
        """Why a feature is not in force."""
        return next((term.reason or "" for term in self.details.features if term.feature == feature), "")

    def total(self, counter: str) -> int:
        """A counter since the backend started."""
        return (self.now.counters or {}).get(counter, 0)

    def growth(self, counter: str) -> int:
        """How much it grew between the two readings."""
        if self.earlier is None:
            return 0
        return max(0, self.total(counter) - (self.earlier.counters or {}).get(counter, 0))

    def queue_growth(self, counter: str) -> list[int]:
        """The same of each queue."""
        if self.earlier is None:
            return []
        before, after = self.earlier.queue_counters or [], self.now.queue_counters or []
        return [new.get(counter, 0) - old.get(counter, 0) for new, old in zip(after, before, strict=False)]

    @property
    def drops_growth(self) -> dict[str, int]:
        """What the network lost on its way to the guest between the readings, by cause."""
        if self.earlier is None:
            return {}
        before = self.earlier.drops
        return {name: max(0, count - before.get(name, 0)) for name, count in self.now.drops.items()}

    def stuck(self, ring: Ring) -> bool:
        """A ring with requests of which none was answered between the two readings."""
        before = (self.earlier.rings or {}).get(ring.ring) if self.earlier is not None else None
        if before is None or before["req_prod"] == before["rsp_prod"]:
            return False
        return before["rsp_prod"] == ring.indices["rsp_prod"]
