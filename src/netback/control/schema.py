# SPDX-License-Identifier: Apache-2.0
"""The messages of the control socket: the parameters and the result of each method, and the events of each topic.

docs/control.md is made from these types (`netback.control.document`), the server checks requests by them, and the
client returns them. All are frozen. A reader ignores fields that it does not know: a minor version adds some.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from netback.abi.xen import DOMID_FIRST_RESERVED
from netback.observe.choice import MAX_FRAME, Direction, RecordMode
from netback.observe.slots import Ring

VERSION = "1.1"
"""Major and minor version of the protocol. The minor one grows when methods, topics, optional parameters or fields are
added, the major one when anything else changes."""

DeviceType = Literal["vif", "qnic"]
Topic = Literal["states", "notices", "statistics", "trace", "frames"]
NoticeName = Literal["ready", "stalled", "network-gone", "broken"]
HotplugBy = Literal["toolstack", "netback"]
Severity = Literal["error", "warning", "note"]
Index = Annotated[int, Meta(ge=-1, lt=(1 << 31) - 1)]
Name = Annotated[str, Meta(max_length=256)]

MIN_INTERVAL = 0.1
"""Seconds between two snapshots of statistics, at least."""
MIN_MTU = 68
"""Bytes: the least of any Ethernet link (linux/if_ether.h, ETH_MIN_MTU)."""
MAX_SAMPLE = 8.0
"""Seconds between the two readings of an explanation, at most: less than a client waits for an answer."""
MAX_CAPTURES = 8
"""Captures of all clients, at most: each takes memory (observe.captures.CAPTURE_BYTES)."""
MAX_POINTS = 64
"""Patterns of a trace subscription, at most."""
MAX_TEXTS = 64
"""Texts of filters in a request, at most; a device takes fewer."""
FilterTexts = Annotated[tuple[Name, ...], Meta(max_length=MAX_TEXTS)]


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The base of all parameters: an unknown one is an error, since it might have mattered."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """The base of all results and events."""


class NoParameters(Request, frozen=True, kw_only=True):
    """None."""


class Info(Result, frozen=True, kw_only=True):
    """Which backend listens."""

    protocol: str
    """The protocol's version, as in "1.0"."""
    netback: str
    """The program's version."""
    domid: int
    """The domain whose devices it serves."""
    platform: str
    """"xen" or "emulated"."""
    pid: int
    """Its process."""
    devices: int
    """How many devices it serves."""
    hotplug: HotplugBy = "toolstack"
    """What runs the devices' hotplug scripts."""


class ListRequest(Request, frozen=True, kw_only=True):
    """Which devices."""

    device: Name | None = None
    """One device by its name, as in "vif3.0"; None for all."""


class PcapStatus(Result, frozen=True, kw_only=True):
    """A file in which the backend keeps a device's frames."""

    file: str
    """Its path."""
    frames: int
    """Frames that were written since it was set, or since the backend started."""
    lost: int
    """Frames that were not, since the disk was too slow or refused them."""
    error: str | None
    """Why nothing is written at present."""


class DeviceStatus(Result, frozen=True, kw_only=True, rename={"hotplug_status": "hotplug-status"}):
    """A device. None marks a value that does not exist, may not be read, or that only a running backend has."""

    device: str
    """The device's name, as in "vif3.0"; for a stray node, its path below `backend/`."""
    type: DeviceType
    """The device's type."""
    domid: int | None
    """The guest."""
    index: str
    """The device's number in its guest."""
    guest: str | None = None
    """The domain's name."""
    backend: str | None = None
    """The backend's xenbus state by name; an invalid value stands in parentheses."""
    frontend: str | None = None
    """The frontend's state."""
    net: str | None = None
    """The network spec in the device's `net` node."""
    mac: str | None = None
    """The MAC address in the backend's directory."""
    online: str | None = None
    """"0" once the toolstack wants the device to go."""
    hotplug_status: str | None = None
    """"connected" once the hotplug script, if there is one, has done its work."""
    features: dict[str, str] = {}
    """netif.h's keys in the frontend's directory."""
    error: str | None = None
    """Why the device is not served, or served with a limitation."""
    network: str | None = None
    """The current name of the link, or the kind of network, that the running backend uses."""
    path: str | None = None
    """How frames pass the network at present, and why not by a faster way; None if it has one way only."""
    bridge: str | None = None
    """The bridge that the link is a port of."""
    mtu: int | None = None
    """The link's MTU in bytes; None if the network has no link here."""
    counters: dict[str, int] | None = None
    """Counters by name (docs/statistics.md); None without a running backend."""
    queue_counters: list[dict[str, int]] | None = None
    """The counters of each queue that the device has had; None without a running backend."""
    queues: int | None = None
    """Queues that the running backend serves; 0 while no guest is connected."""
    link: bool | None = None
    """False: an operator took the link down, so that no frame passes; None without a running backend."""
    stalled: float | None = None
    """For how many seconds the guest has taken no frames and its link has had no carrier; None if it takes them."""
    drops: dict[str, int] = {}
    """Frames that the network lost on their way to the guest, by cause, if the kernel tells."""
    queued: dict[str, int] = {}
    """What waits in the network's own queue, and its bound, if the kernel tells."""
    tx_rate: str | None = None
    """The limit of what the guest sends, as in "10Mb/s"; None for no limit."""
    rx_rate: str | None = None
    """The limit of what it receives."""
    filters: list[str] | None = None
    """The filters in force, in order (docs/filters.md); None without a running backend."""
    rings: dict[str, dict[str, int]] | None = None
    """All rings' indices, by ring and name; None without a running backend."""
    pcap: PcapStatus | None = None
    """The file in which its frames are kept."""
    record: RecordMode | None = None
    """Whether it is recorded (docs/record.md); None without a running backend."""
    recording: str | None = None
    """The file that has what led to its last fault; None if there is none."""


class Devices(Result, frozen=True, kw_only=True):
    """The devices in the store, each completed by what the backend knows."""

    devices: list[DeviceStatus]


class Feature(Result, frozen=True, kw_only=True):
    """One feature of netif, and what came of it."""

    feature: str
    """In words, as in "TSO of IPv4"."""
    means: str
    """What it gives."""
    offered: str | None
    """The value of the backend's key; None if there is none."""
    asked: str | None
    """The value of the frontend's key."""
    agreed: bool | None
    """Whether it is in force; None before the frontend connects."""
    reason: str | None
    """Why it is not."""


class Details(Result, frozen=True, kw_only=True):
    """Everything of a device but the slots of its rings."""

    device: DeviceStatus
    """As `list` has it."""
    features: list[Feature]
    """What both ends said of each feature."""
    fault: str | None
    """How the frontend's keys are wrong as a whole, so that no feature is agreed."""
    backend_path: str
    """The backend's directory."""
    backend_nodes: dict[str, str]
    """Its nodes; those that may not be read are left out."""
    frontend_path: str
    """The frontend's directory."""
    frontend_nodes: dict[str, str]
    """Its nodes."""


class FindRequest(Request, frozen=True, kw_only=True):
    """Whose device, and which."""

    guest: Name
    """The guest's domid or name."""
    type: DeviceType | None = None
    """The device's type; None for any."""
    index: Index | None = None
    """The device's index; None for any. If several devices match, the request is refused."""


class DeviceRequest(Request, frozen=True, kw_only=True):
    """Which device."""

    device: Name
    """The device's name, as in "vif3.0"."""


class DeviceName(Result, frozen=True, kw_only=True):
    """A device's name."""

    device: str
    """As in "vif3.0"."""


class Rings(Result, frozen=True, kw_only=True):
    """All rings of a device, slot by slot; none while no guest is connected."""

    device: str
    """The device's name."""
    rings: list[Ring]
    """TX and RX of each queue, then the control ring."""


class ExplainRequest(Request, frozen=True, kw_only=True):
    """Which device, and how long its counters are watched."""

    device: Name
    """The device's name."""
    seconds: Annotated[float, Meta(ge=0, le=MAX_SAMPLE)] = 1.0
    """Seconds between the two readings of the counters; 0: only what does not take two is judged."""


class RuleFinding(Result, frozen=True, kw_only=True):
    """What one rule found wrong."""

    rule: str
    """The rule's id (docs/explain.md)."""
    severity: Severity
    """"error": frames do not pass, or some never will; "warning": frames are lost, or may be; "note": they pass, more
    slowly or fewer than could be."""
    finding: str
    """What is wrong, in one sentence."""
    fix: str
    """What to do, in one sentence."""
    evidence: dict[str, str]
    """The values from which it follows, by what they are of."""


class Explanation(Result, frozen=True, kw_only=True):
    """Why a device is not connected, or slow, or loses frames."""

    device: str
    """The device's name."""
    seconds: float
    """Seconds between the two readings; 0 without a running backend."""
    rules: int
    """How many rules were applied."""
    findings: list[RuleFinding]
    """In the order in which to mend them; none if nothing is wrong."""


class SetRequest(Request, frozen=True, kw_only=True):
    """What to change from now on and for the device's life: its nodes keep that over restarts. None: no change."""

    device: Name
    """The device's name."""
    tx_rate: Name | None = None
    """The limit of what the guest sends, as in "10Mb/s" or "none"."""
    rx_rate: Name | None = None
    """The limit of what it receives."""
    carrier: bool | None = None
    """False: the guest sees a link without carrier, whatever its network's state."""
    link: bool | None = None
    """False: no frame passes in either direction, and the guest sees no carrier."""
    mtu: Annotated[int, Meta(ge=MIN_MTU, le=65535)] | None = None
    """The MTU of the device's tap, which must be one that netback made. The tap keeps it."""
    filters: FilterTexts | None = None
    """The filters of the device, in order, as in "antispoof" (docs/filters.md), in place of those that it has."""
    pcap: Annotated[str, Meta(max_length=4096)] | None = None
    """Keep its frames in a file of the backend's, as in "/var/lib/netback/web.pcapng,snaplen=128,size=64M,files=4"
    (docs/capture.md), or "none"."""
    record: RecordMode | None = None
    """Record what its guest does: "on" keeps the first bytes of each frame, "payload" all of them (docs/record.md)."""


class Settings(Result, frozen=True, kw_only=True):
    """What is in force then."""

    device: str
    """The device's name."""
    tx_rate: str
    """The limit of what the guest sends, "none" for no limit."""
    rx_rate: str
    """The limit of what it receives."""
    carrier: bool
    """Whether the guest sees a carrier."""
    link: bool
    """Whether frames may pass."""
    mtu: int | None
    """The link's MTU; None if the network has no link here."""
    filters: list[str] = []
    """The filters, in order."""
    pcap: PcapStatus | None = None
    """The file in which its frames are kept."""
    record: RecordMode = "off"
    """Whether it is recorded."""


class RecordRequest(Request, frozen=True, kw_only=True):
    """Which device's recorder to save, and where."""

    device: Name
    """The device's name."""
    file: Annotated[str, Meta(max_length=4096)]
    """The absolute path of a file that does not exist. The backend makes it, with mode 0600."""


class Recorded(Result, frozen=True, kw_only=True):
    """What was saved."""

    device: str
    """The device's name."""
    file: str
    """The file."""
    bytes: int
    """Its size."""


class AttachRequest(Request, frozen=True, kw_only=True):
    """The device to make."""

    guest: Name
    """The guest's domid or name. A guest that has not joined yet is waited for, 3 seconds at most."""
    net: Name
    """The network's spec, as in "tap:NAME" (docs/networks.md)."""
    type: DeviceType = "vif"
    """The device's type."""
    mac: Name | None = None
    """The MAC address; None: a random one of Xen's range."""
    index: Index = -1
    """The device's index; -1: the first free one."""
    tx_rate: Name | None = None
    """The limit of what the guest sends, as in "10Mb/s"; None: as the configuration says."""
    rx_rate: Name | None = None
    """The limit of what it receives."""
    filters: FilterTexts | None = None
    """The filters of the device, in order (docs/filters.md); None: as the configuration says."""
    force: bool = False
    """Attach even if the domain is the backend's own, whose kernel would take the device."""


class DetachRequest(Request, frozen=True, kw_only=True):
    """The device to remove."""

    device: Name
    """The device's name."""
    seconds: Annotated[float, Meta(ge=0, le=3600)] = 10.0
    """Seconds to wait for the guest before the device is removed by force."""


class Detached(Result, frozen=True, kw_only=True):
    """How it went."""

    device: str
    """The device's name."""
    answered: bool
    """False: the guest did not answer, so the device was removed by force."""


class Rule(Result, frozen=True, kw_only=True):
    """A `[[device]]` of the configuration (docs/running.md). It applies to the devices that match every key it has."""

    name: str | None
    """Its name; null for none."""
    file: str | None
    """The file that it is in."""
    net: str
    """Their network."""
    guest: str | None
    """The guest's name or UUID."""
    domid: int | None
    """The guest's domid."""
    type: DeviceType | None
    """The device's type."""
    index: int | None
    """The device's index."""
    mac: str | None
    """The device's MAC address."""
    attach: bool
    """Whether the device is attached whenever the guest appears."""
    tx_rate: str | None
    """The limit of what the guest sends."""
    rx_rate: str | None
    """The limit of what it receives."""
    filters: list[str] | None
    """The devices' filters, in order; null: the configuration's."""


class Rules(Result, frozen=True, kw_only=True):
    """The rules in force, in their order: the first that fits a device applies to it."""

    rules: list[Rule]
    """Each rule."""


class AddRequest(Request, frozen=True, kw_only=True):
    """The rule to add; a key that is null matches any device."""

    net: Name
    """The network of the devices that match."""
    name: Name | None = None
    """The rule's name, which `remove` takes; null: the first free one of "added-1", "added-2", ..."""
    guest: Name | None = None
    """The guest's name or UUID."""
    domid: Annotated[int, Meta(ge=0, lt=DOMID_FIRST_RESERVED)] | None = None
    """The guest's domid."""
    type: DeviceType | None = None
    """The device's type."""
    index: Annotated[int, Meta(ge=0, lt=(1 << 31) - 1)] | None = None
    """The device's index."""
    mac: Name | None = None
    """The device's MAC address."""
    attach: bool = False
    """Attach the device whenever the guest appears, and now if it runs; needs `guest` and `index`."""
    tx_rate: Name | None = None
    """The limit of what the guest sends, as in "10Mb/s"."""
    rx_rate: Name | None = None
    """The limit of what it receives."""
    filters: FilterTexts | None = None
    """The devices' filters, in order, as in "antispoof" (docs/filters.md); null: the configuration's."""


class Added(Result, frozen=True, kw_only=True):
    """The rule as it is kept, and what came of it at once."""

    rule: Rule
    """With its name and file."""
    attached: list[str]
    """The devices that were attached to guests that run."""
    failed: list[str]
    """Why others were not."""


class RemoveRequest(Request, frozen=True, kw_only=True):
    """The rule to remove."""

    name: Name
    """Its name. A rule of a file that an operator wrote is refused."""
    detach: bool = False
    """Detach the devices that it attached, too."""
    seconds: Annotated[float, Meta(ge=0, le=3600)] = 10.0
    """Seconds to wait for each guest before its device is removed by force."""


class Removed(Result, frozen=True, kw_only=True):
    """What was removed."""

    name: str
    """The rule's name."""
    detached: list[Detached]
    """Each device that was detached."""


class SubscribeRequest(Request, frozen=True, kw_only=True):
    """What to be told."""

    topic: Topic
    """One of the topics below."""
    device: Name | None = None
    """The events of one device alone, by its name; None for all."""
    interval: Annotated[float, Meta(ge=MIN_INTERVAL, le=3600)] = 1.0
    """statistics: seconds between two snapshots."""
    queues: bool = False
    """statistics: also the counters of each queue."""
    points: Annotated[tuple[Name, ...], Meta(max_length=MAX_POINTS)] = ()
    """trace: names or globs of trace points; without one all but those of slots, which slow a device down."""
    devices: Annotated[tuple[Name, ...], Meta(max_length=MAX_POINTS)] = ()
    """frames: the devices, if there are several and not all."""
    direction: Direction = "both"
    """frames: "tx" for what guests send."""
    queue: Annotated[int, Meta(ge=0, le=65535)] | None = None
    """frames: those of one queue of each device; None for all."""
    snaplen: Annotated[int, Meta(ge=0, le=MAX_FRAME)] = MAX_FRAME
    """frames: the bytes that are kept of each."""


class Subscribed(Result, frozen=True, kw_only=True):
    """The subscription."""

    subscription: int
    """Its number on this connection, which its events and `unsubscribe` have."""


class UnsubscribeRequest(Request, frozen=True, kw_only=True):
    """Which subscription ends."""

    subscription: int
    """Its number."""


class Unsubscribed(Result, frozen=True, kw_only=True):
    """It has ended: no event follows."""

    subscription: int
    """Its number."""


class DeviceState(Result, frozen=True, kw_only=True):
    """A device's states changed, or its error. A subscription begins with one event for each device."""

    device: str
    """The device's name."""
    backend: str
    """The backend's xenbus state by name."""
    frontend: str
    """The frontend's state."""
    error: str | None = None
    """Why the device is not served, or served with a limitation."""
    gone: bool = False
    """The device is not served any more: it was removed."""


class DeviceNotice(Result, frozen=True, kw_only=True):
    """The data path's condition changed."""

    device: str
    """The device's name."""
    notice: NoticeName
    """"stalled": the guest takes no frames; "network-gone": the network failed; "broken": the guest broke the protocol;
    "ready": none of these any more."""
    reason: str | None = None
    """How the guest broke the protocol."""


class DeviceStatistics(Result, frozen=True, kw_only=True, omit_defaults=True):
    """What was counted for a device since the backend started, at one moment. Fields that are 0, empty or null are left
    out. Events with the same time are one snapshot; a notification whose `more` is true is not its last one.
    """

    device: str
    """The device's name."""
    time: float
    """Seconds of the backend's monotonic clock."""
    queues: int = 0
    """Queues that are connected."""
    counters: dict[str, int] = {}
    """The counters that are not 0, by name (docs/statistics.md)."""
    queue_counters: list[dict[str, int]] = []
    """The same of each queue, if they were asked for."""
    pending: dict[str, int] = {}
    """Requests without a response in each ring, by the ring's name."""
    drops: dict[str, int] = {}
    """Frames that the network lost on their way to the guest, by cause; of all devices, as of 5 seconds ago at most."""
    queued: dict[str, int] = {}
    """What waits in the network's own queue, and its bound; likewise."""
    stalled: float | None = None
    """For how many seconds the guest has taken no frames."""


class TraceEvent(Result, frozen=True, kw_only=True):
    """A trace point was passed."""

    time: float
    """Seconds since 1970."""
    point: str
    """The trace point's name."""
    values: dict[str, int | str]
    """Its values by name."""


class FrameMemory(Result, frozen=True, kw_only=True):
    """The only event: the memory in which frames come from now on (docs/capture.md). Two descriptors come with its line
    by SCM_RIGHTS: the memory, and the reading end of a pipe.
    """

    bytes: int
    """The memory's size."""


@dataclass(frozen=True, slots=True)
class Method:
    """A method of the control socket: what it does, its parameters, and its result."""

    does: str
    params: type[Request]
    result: type[Result]


METHODS: Mapping[str, Method] = {
    "info": Method("Which backend listens, and the protocol's version.", NoParameters, Info),
    "list": Method("The devices in the store and what the backend knows of them.", ListRequest, Devices),
    "show": Method("Everything of a device: features, nodes, counters.", DeviceRequest, Details),
    "find": Method("The name of a guest's device.", FindRequest, DeviceName),
    "rings": Method("All rings of a device, slot by slot. Frames flow on meanwhile.", DeviceRequest, Rings),
    "explain": Method("Why a device is not connected, or slow, or loses frames.", ExplainRequest, Explanation),
    "set": Method("Change a device while it works.", SetRequest, Settings),
    "record": Method("Save what a device's recorder has now.", RecordRequest, Recorded),
    "attach": Method("Give a guest a device. Needs domain 0's rights in the store.", AttachRequest, DeviceName),
    "detach": Method("Take a device from its guest, which is asked first.", DetachRequest, Detached),
    "rules": Method("The configuration's rules in force.", NoParameters, Rules),
    "add": Method("Add a rule, apply it at once and keep it in the drop-in of added rules.", AddRequest, Added),
    "remove": Method("Remove a rule that was added.", RemoveRequest, Removed),
    "subscribe": Method("Be told of events from now on, until the connection's end.", SubscribeRequest, Subscribed),
    "unsubscribe": Method("End a subscription.", UnsubscribeRequest, Unsubscribed),
}  # fmt: skip
"""Every method by its name."""

TOPICS: Mapping[Topic, type[Result]] = {
    "states": DeviceState,
    "notices": DeviceNotice,
    "statistics": DeviceStatistics,
    "trace": TraceEvent,
    "frames": FrameMemory,
}
"""The type of each topic's events."""
