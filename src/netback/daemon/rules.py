# SPDX-License-Identifier: Apache-2.0
"""Why a device is not connected, or slow, or loses frames: rules over what was seen of it, as a table.

A rule looks at one frozen picture (daemon/facts.py) and returns the values from which its finding follows, or None
(daemon/evidence.py). It reads nothing else, so the same picture gives the same findings. `netback explain` applies all
of them, `netback doctor` those of the host, and counts the findings of each device. docs/explain.md is made from the
table, and tests/daemon/test_explain.py provokes each rule.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from netback.abi.xenbus import XenbusState as State
from netback.control.schema import DeviceType, RuleFinding, Severity
from netback.daemon import evidence as see
from netback.daemon.evidence import Evidence
from netback.daemon.facts import Facts, Host
from netback.errors import printable
from netback.net.base import ETH_DATA_LEN
from netback.vif.terms import CSUM4, RX_EVENTS, TSO4
from netback.xenbus.nodes import CARRIER_OFF, LINK_DOWN

_VALUE = 160
"""Characters of a value that is shown, at most."""

F = TypeVar("F")


@dataclass(frozen=True, slots=True)
class Rule(Generic[F]):
    """One thing that may be wrong. `finding` and `fix` may name values of the evidence in braces, and the DEVICE."""

    id: str
    severity: Severity
    looks_at: str
    """For the document."""
    judge: Callable[[F], Evidence | None]
    """The values seen; None: it is not wrong."""
    finding: str
    fix: str
    unless: tuple[str, ...] = ()
    """Rules before this one whose findings already say it."""
    types: tuple[DeviceType, ...] = ("vif", "qnic")
    """The devices that it concerns."""


def judge(facts: Facts) -> list[RuleFinding]:
    """The findings of a device, those of its host first."""
    found = judge_host(facts.host, facts.now.type)
    _apply(RULES, facts, found, facts.now.type, facts.now.device)
    return [*found.values()]


def judge_host(host: Host, kind: DeviceType | None = None) -> dict[str, RuleFinding]:
    """The findings of the host alone by their rules; `kind`: those that concern devices of this type."""
    found: dict[str, RuleFinding] = {}
    _apply(HOST_RULES, host, found, kind)
    return found


def _apply(
    rules: Iterable[Rule[F]],
    facts: F,
    found: dict[str, RuleFinding],
    kind: DeviceType | None,
    device: str = "",
) -> None:
    """Add the findings of these rules to `found`."""
    for rule in rules:
        if (kind is not None and kind not in rule.types) or not found.keys().isdisjoint(rule.unless):
            continue
        evidence = rule.judge(facts)
        if evidence is not None:
            values = {name: _show(value) for name, value in evidence.items()}
            words = {"DEVICE": device, **values}
            found[rule.id] = RuleFinding(
                rule=rule.id,
                severity=rule.severity,
                finding=rule.finding.format_map(words),
                fix=rule.fix.format_map(words),
                evidence=values,
            )


def _show(value: object) -> str:
    text = printable(str(value))
    return text if len(text) <= _VALUE else f"{text[: _VALUE - 3]}..."


# ---- the rules

_KEEP_OUT = (
    "modprobe -r xen-netback, and `netback unit --modprobe > /etc/modprobe.d/netback-no-kernel-backend.conf`."
)

HOST_RULES: tuple[Rule[Host], ...] = (
    Rule(
        "no-backend", "error", "the control socket",
        lambda host: None if host.served else {"backend": "none answers"},
        "No netback serves this domain's devices.",
        "Start it: systemctl start netback, or netback run.",
    ),
    Rule(
        "kernel-backend", "error", "/sys/bus/xen-backend/drivers/vif",
        lambda host: None if host.kernel_vifs is None else {"xen-netback's vifs": host.kernel_vifs},
        "The kernel's xen-netback claims every vif (it has {xen-netback's vifs}).",
        _KEEP_OUT,
        types=("vif",),
    ),
    Rule(
        "kernel-backend-loaded", "warning", "/sys/module/xen_netback",
        lambda host: {"xen-netback": "loaded"} if host.kernel_loaded else None,
        "The kernel's xen-netback is loaded and may claim vifs.",
        _KEEP_OUT,
        unless=("kernel-backend",),
        types=("vif",),
    ),
    Rule(
        "qemu-claims", "warning", "the command lines of processes",
        lambda host: None if host.qemu is None else {"process": host.qemu},
        "QEMU (process {process}) may claim qnic devices.",
        "Use type vif, or `netback attach --type qnic`.",
        types=("qnic",),
    ),
)  # fmt: skip
"""What concerns every device of the domain."""

RULES: tuple[Rule[Facts], ...] = (
    # ---- the device and its backend
    Rule(
        "detach-unanswered", "error", "`online` and both states", see.detach_unanswered,
        "The toolstack takes the device away, and the guest does not answer Closing.",
        "Take it by force: netback detach {DEVICE} --seconds 0.",
    ),
    Rule(
        "going", "warning", "`online` and both states",
        lambda facts: {**facts.states, "online": "0"} if facts.going else None,
        "The toolstack takes the device away (online is 0).",
        "Wait for it, or attach the device again.",
        unless=("detach-unanswered",),
    ),
    Rule(
        "other-backend", "error", "the device's error", see.error_says("another process serves this device"),
        "Another process serves this device's rings.",
        "Stop the other backend (netback, QEMU, or a kernel's): one domain needs one.",
    ),
    Rule(
        "store-quota", "error", "the device's error", see.error_says("the quota of"),
        "The store refuses what the device needs, since this domain's quota is used up.",
        "Raise it in domain 0: xenstored --entry-nb (nodes), --watch-nb, --transaction; or oxenstored.conf's quota-*.",
    ),
    Rule(
        "journal", "error", "the device's error", see.error_says("cannot open the journal", "cannot open the settings"),
        "netback cannot write the device's journal, without which it may not answer requests.",
        "Make room and the right to write in the runtime directory, as the error says.",
    ),
    # ---- states
    Rule(
        "frontend-vanished", "error", "the frontend's directory", see.frontend_is(None),
        "The frontend's directory has no state: the guest ended, or removed it.",
        "Detach the device and attach it again while the guest runs.",
    ),
    Rule(
        "frontend-owner", "error", "the owner of the frontend's directory",
        see.foreign_owner,
        "The frontend's directory belongs to domain {owner}, so the guest {guest} cannot write its keys.",
        "Give the directory to the guest, as the toolstack should: xenstore-chmod -r {path} n{guest} b{backend}.",
    ),
    Rule(
        "keys-refused", "error", "the frontend's keys",
        lambda facts: {**facts.states, "keys": facts.details.fault} if facts.details.fault else None,
        "The frontend's keys are wrong: {keys}.",
        "Mend the frontend; netback tries again when it closes and connects again.",
    ),
    Rule(
        "protocol-broken", "error", "both states and the device's error", see.protocol_broken,
        "netback closed the device, since the frontend broke the protocol or gave unusable rings: {error}.",
        "Mend the frontend; reload its driver or reboot the guest to connect again.",
        unless=("keys-refused",),
    ),
    Rule(
        "fault-recorded", "note", "the newest recording of a fault, while the device is not connected",
        see.fault_recorded,
        "What led to the device's last fault was recorded.",
        "netback replay {recording} plays it, step by step.",
    ),
    Rule(
        "hotplug-failed", "error", "`hotplug-status` and `hotplug-error`",
        see.hotplug_failed,
        "The hotplug script failed: {hotplug-error}.",
        "See /var/log/xen/xen-hotplug.log, mend the cause, and detach and attach the device.",
    ),
    Rule(
        "hotplug-waits", "error", "`script` and `hotplug-status`", see.hotplug_waits,
        "The backend waits for the hotplug script {script}, which has not written hotplug-status=connected.",
        "See /var/log/xen/xen-hotplug.log; in a driver domain xl devd must run, since it runs the scripts.",
    ),
    Rule(
        "frontend-never-came", "error", "the frontend's state",
        see.frontend_is(State.INITIALISING, ours=State.INIT_WAIT),
        "The guest's frontend has not started: it is Initialising.",
        "In the guest, load the driver (modprobe xen-netfront) and see its log; a guest that boots may need a moment.",
        unless=("hotplug-waits", "hotplug-failed", "no-backend"),
    ),
    Rule(
        "frontend-half-way", "error", "the frontend's state", see.frontend_is(State.INIT_WAIT, State.INITIALISED),
        "The guest's frontend has begun and stays {frontend}: it has not written its rings and Connected.",
        "See the guest's log of its driver; if it does not go on, reload the driver.",
    ),
    Rule(
        "frontend-left", "error", "the frontend's state", see.frontend_is(State.CLOSING, State.CLOSED),
        "The guest closed the device: its frontend is {frontend}, while the toolstack wants it online.",
        "In the guest, bind the driver again or reload it; or detach and attach the device.",
    ),
    Rule(
        "mac-differs", "warning", "`mac` of both directories", see.mac_differs,
        "The frontend's directory has another MAC address than the backend's.",
        "Make both `mac` nodes the same, and let the guest connect again.",
    ),
    Rule(
        "mac-twice", "error", "`mac` of all devices in the same bridge",
        lambda facts: {"mac": facts.now.mac, "also": ", ".join(facts.twins)} if facts.twins else None,
        "Other devices in the same bridge have this MAC address: {also}.",
        "Give each its own: mac= of xl's vif, or netback attach --mac.",
    ),
    # ---- the network
    Rule(
        "tap-busy", "error", "the device's error", see.error_says("(EBUSY)"),
        "Another process or device holds the tap.",
        "Stop that process, or give the device another tap: net=tap:NAME.",
    ),
    Rule(
        "no-such-bridge", "error", "the device's error", see.error_says("there is no bridge"),
        "The bridge of the device's spec does not exist.",
        "Make it: ip link add NAME type bridge && ip link set NAME up.",
    ),
    Rule(
        "link-gone", "error", "the link",
        lambda facts: see.wrong_link(facts, lambda link: not link.exists, exists=lambda _: "no"),
        "The link {link} does not exist in this network namespace.",
        "Make it again, or move it back; netback joins it by itself.",
        unless=("tap-busy", "no-such-bridge", "no-backend"),
    ),
    Rule(
        "far-end-gone", "error", "`carrier` and the device's error", see.far_end_gone,
        "The other end of the network {network} is not connected.",
        "Start the program behind it; netback connects by itself.",
    ),
    Rule(
        "link-cut", "error", f"`{LINK_DOWN}`",
        lambda facts: {LINK_DOWN: "1"} if facts.node(LINK_DOWN) == "1" else None,
        "An operator took the device's link down, so no frame passes.",
        "netback set {DEVICE} --link up.",
    ),
    Rule(
        "carrier-off", "error", f"`{CARRIER_OFF}`",
        lambda facts: {CARRIER_OFF: "1"} if facts.node(CARRIER_OFF) == "1" else None,
        "An operator turned the carrier off, which the guest may heed.",
        "netback set {DEVICE} --carrier.",
    ),
    Rule(
        "link-down", "error", "the link",
        lambda facts: see.wrong_link(facts, lambda link: link.exists and not link.up, flags=lambda _: "not UP"),
        "The link {link} is set down, so frames in either direction are lost.",
        "ip link set {link} up.",
        unless=("tap-busy", "no-such-bridge"),
    ),
    Rule(
        "no-carrier", "error", "the link",
        lambda facts: see.wrong_link(
            facts, lambda link: link.up and not link.tap and not link.carrier, flags=lambda _: "NO-CARRIER"
        ),
        "The link {link} has no carrier: its cable or its far end is down.",
        "Plug it in, or set its far end up.",
    ),
    Rule(
        "not-in-bridge", "error", "`bridge` and the link", see.not_in_bridge,
        "The link {link} is in no bridge, though the toolstack names {bridge}.",
        "ip link set {link} master {bridge}.",
    ),
    Rule(
        "other-bridge", "warning", "`bridge` and the link", see.other_bridge,
        "The link {link} is a port of {port of}, though the toolstack names {bridge}.",
        "ip link set {link} master {bridge}, unless that was done on purpose.",
    ),
    Rule(
        "bridge-down", "error", "the bridge",
        lambda facts: see.wrong_link(
            facts, lambda link: link.bridge_up is False, bridge=lambda link: link.bridge
        ),
        "The bridge {bridge} is set down.",
        "ip link set {bridge} up.",
    ),
    # ---- sizes
    Rule(
        "bridge-mtu", "warning", "the MTUs of the link and its bridge", see.bridge_mtu,
        "The link {link} and its bridge {bridge} have different MTUs, and longer frames than the smaller one are lost.",
        "Give both the same: netback set {DEVICE} --mtu {bridge MTU}, or ip link set {bridge} mtu {MTU}.",
    ),
    Rule(
        "guest-mtu", "warning", "the MTU of the link and `mtu` of the frontend's directory", see.guest_mtu,
        "The frontend's `mtu` is {frontend's mtu}, and the link here has an MTU of {MTU}.",
        "Make them the same: ip link set {link} mtu {frontend's mtu}, or let the toolstack write `mtu`.",
    ),
    Rule(
        "jumbo-without-sg", "warning", "the MTU of the link and feature-sg", see.jumbo_without_sg,
        "The link's MTU is {MTU}, but this guest takes no frame larger than a page (no feature-sg).",
        f"ip link set {{link}} mtu {ETH_DATA_LEN}, or give the guest a driver with feature-sg.",
    ),
    Rule(
        "too-big", "warning", "`rx_too_big`", see.ever("rx_too_big", "rx_frames"),
        "Frames were larger than this guest takes ({rx_too_big}): ping passes, and TCP with large segments hangs.",
        f"Set the MTU of its network to {ETH_DATA_LEN} and switch off GRO and TSO of what sends to it.",
    ),
    # ---- limits
    Rule(
        "rate-zero", "error", "`rate` and `rx-rate`", lambda facts: see.wrong_rate(facts, see.passes_nothing),
        "The node {node} is {value}, which lets nothing pass; xl writes it for less than a byte in an interval.",
        "netback set {DEVICE} --tx-rate (for `rate`) or --rx-rate, as in 10Mb/s or none.",
        unless=("link-cut",),
    ),
    Rule(
        "rate-unknown", "warning", "`rate` and `rx-rate`", lambda facts: see.wrong_rate(facts, see.is_no_rate),
        "The node {node} is {value}, which is no rate, so it limits nothing.",
        "Write bytes and microseconds, as in 62500,50000, or use netback set {DEVICE} --tx-rate.",
    ),
    Rule(
        "rate-limited", "note", "`tx_throttled`, `rx_throttled` and the limits", see.throttled,
        "Frames wait for the limit of {direction}, {limit}, which makes the device as slow as it is.",
        "Raise it if that is too slow: netback set {DEVICE} --{direction}-rate RATE.",
        unless=("link-cut", "rate-zero"),
    ),
    # ---- filters
    Rule(
        "antispoof-drops", "warning", "the counters of `antispoof`", see.filtered("antispoof"),
        "The guest sends from addresses that are not its own, and the filter `antispoof` drops these frames.",
        "If they are right, write them into the vif's mac= and ip=; else look for what sends them in the guest.",
    ),
    Rule(
        "vlan-drops", "warning", "the counters of `vlan`", see.filtered("vlan"),
        "Frames have a VLAN tag, or none, that the filter `vlan` does not pass.",
        "Compare the VLANs of the guest and of its network with the filter: netback set {DEVICE} --filter vlan,...",
    ),
    Rule(
        "faults-drops", "warning", "the counters of `faults`", see.filtered("faults"),
        "The filter `faults` drops frames, as it was told.",
        "When the test is over: netback set {DEVICE} --no-filters.",
    ),
    # ---- the guest's slots and events
    Rule(
        "stalled", "error", "`stalled`", see.stalled,
        "The guest takes no frames, and its link has had no carrier for {stalled}.",
        "See whether the guest runs and its interface is up; it is served again once it posts slots.",
    ),
    Rule(
        "no-rx-notify", "warning", "feature-rx-notify and `rx_expired`",
        see.both(see.lacks(RX_EVENTS), see.lossy("rx_expired", "rx_frames")),
        "Frames were dropped after 30 ms, the most that a guest without feature-rx-notify is waited for.",
        "Have the guest post more slots sooner, or give it a driver with feature-rx-notify.",
    ),
    Rule(
        "no-rx-slots", "warning", "the RX rings", see.no_rx_slots,
        "Frames wait for RX slots that the guest has not posted ({ring}: {pending}).",
        "See whether the guest is overloaded or paused; a driver that posts more buffers helps.",
        unless=("stalled",),
    ),
    Rule(
        "rx-expired", "warning", "`rx_expired`", see.lossy("rx_expired", "rx_frames"),
        "Frames were dropped since the guest took none for rx_drain_seconds.",
        "See whether the guest is overloaded, paused or has its interface down.",
        unless=("no-rx-notify", "stalled"),
    ),
    Rule(
        "few-rx-slots", "note", "`rx_stalls`", see.share("rx_stalls", "rx_frames", 20, 20),
        "The guest posts so few RX slots that frames often wait for them.",
        "Use a driver that posts more buffers, or give the guest more processor time.",
    ),
    Rule(
        "lost-event", "error", "the TX rings and `events`", see.lost_event,
        "Requests lie in {ring}, and the guest has sent no event for them, which its ring asks for.",
        "The frontend must notify when req_event lies among its new requests (ring.h); any later event ends the wait.",
    ),
    Rule(
        "empty-events", "note", "`events` and `events_empty`", see.share("events_empty", "events", 50, 20),
        "Most of the guest's events bring no work, and are delayed by 1 to 16 ms each.",
        "The frontend should notify only when req_event asks for it (ring.h).",
    ),
    # ---- losses
    Rule(
        "network-full", "warning", "the TX rings", see.network_full,
        "The network {network} takes no frames, so the guest's requests wait in {ring}.",
        "See why its far end does not read: a program that hangs, or a full queue behind the link.",
    ),
    Rule(
        "network-refuses", "warning", "`tx_refused`", see.lossy("tx_refused", "tx_frames"),
        "The network refused frames of the guest: its link was down, or a queue behind it full.",
        "Set the link up; for a packet link see tc -s qdisc and ip -s link.",
    ),
    Rule(
        "network-drops", "warning", "`drops` of the network",
        see.network_drops,
        "The network's own queue overflows: the guest takes frames more slowly than they come.",
        "Give the guest more queues or processor time, or limit the senders.",
    ),
    Rule(
        "tx-errors", "warning", "`tx_errors`", see.ever("tx_errors", "tx_frames"),
        "Frames of the guest were answered ERROR ({tx_errors}): malformed, or in pages that it did not grant.",
        "Mend the frontend: sizes, offsets and grants of its requests (netif.h); see trace xen_netdev_tx.",
    ),
    Rule(
        "rx-copy-errors", "error", "`rx_errors`", see.ever("rx_errors", "rx_frames"),
        "RX slots could not be filled ({rx_errors}): their grant copy failed.",
        "Mend the frontend: the grants of its RX buffers must be writable and kept until the response.",
    ),
    Rule(
        "tx-checksum", "error", "`tx_dropped`", see.ever("tx_dropped", "tx_frames"),
        "Frames of the guest with a blank checksum or GSO behind headers that netback cannot parse were dropped"
        " ({tx_dropped}): ping passes, and TCP hangs.",
        "In the guest switch the offloads off: ethtool -K eth0 tx off tso off.",
    ),
    Rule(
        "rx-checksum", "error", "`rx_dropped`", see.ever("rx_dropped", "rx_frames"),
        "Frames for the guest with a blank checksum or GSO behind headers that netback cannot parse were dropped"
        " ({rx_dropped}): ping passes, and TCP hangs.",
        "Where they come from: ethtool -K LINK gro off lro off, or at a veth's far end tx off tso off gso off.",
    ),
    Rule(
        "rx-truncated", "warning", "`rx_truncated`", see.ever("rx_truncated", "rx_frames"),
        "The network sent more bytes than any frame has ({rx_truncated} times), and they are lost.",
        "Mend what sends them: a frame has 66048 bytes at most.",
    ),
    Rule(
        "inbox-full", "warning", "`rx_inbox_full`", see.lossy("rx_inbox_full", "rx_frames"),
        "Steered frames were dropped, since the guest does not empty the queue that its hash names.",
        "See whether one of the guest's processors is overloaded; netback stats shows its queues.",
    ),
    Rule(
        "multicast-full", "warning", "`tx_multicast_full`", see.ever("tx_multicast_full", "tx_multicast"),
        "The guest's multicast list is full (64 addresses), and further ones were refused ({tx_multicast_full}).",
        "Have the guest leave groups, or ask for all multicast frames (request-multicast-control 0).",
    ),
    Rule(
        "multicast-filtered", "note", "`rx_filtered`", see.multicast_filtered,
        "Multicast frames are dropped, since the guest's list does not have their addresses.",
        "If the guest misses them, it must join their groups.",
    ),
    Rule(
        "control-refused", "warning", "`ctrl_refused`", see.ever("ctrl_refused", "ctrl_requests"),
        "Control messages of the guest were refused ({ctrl_refused}), so its hash or staging is not as it wants.",
        "See netback rings {DEVICE} for their types and statuses.",
    ),
    Rule(
        "nothing-received", "warning", "`tx_frames` and `rx_frames`", see.one_way("tx_frames", "rx_frames"),
        "The guest sends, and nothing was ever given to it.",
        "See its network: bridge and its ports, VLAN, firewall (bridge-nf-call-iptables), and the far end.",
    ),
    Rule(
        "nothing-sent", "warning", "`rx_frames` and `tx_frames`", see.one_way("rx_frames", "tx_frames"),
        "The guest receives frames, and has never sent one.",
        "In the guest, set the interface up and give it an address.",
    ),
    # ---- speed
    Rule(
        "guest-checksums", "note", "`rx_completed` and feature-no-csum-offload",
        see.both(see.lacks(CSUM4), see.share("rx_completed", "rx_frames", 50)),
        "netback computes the checksums of frames for the guest, which takes none without.",
        "Use a driver that takes checksum offload: without feature-no-csum-offload.",
    ),
    Rule(
        "guest-gso", "note", "`rx_segmented`, sizes of frames, and feature-gso-tcpv4",
        see.both(see.lacks(TSO4), see.either(see.share("rx_segmented", "rx_frames", 1, 20), see.single_segments("rx"))),
        "The guest takes no GSO and gets single segments, each of which costs as much as a frame of 64 KiB.",
        "Use a driver with feature-sg and feature-gso-tcpv4, or switch LRO on in the guest.",
    ),
    Rule(
        "network-gso", "note", "`tx_segmented`", see.share("tx_segmented", "tx_frames", 20, 20),
        "netback segments the guest's frames, since the network takes no GSO.",
        "Use a network with offloads, as tap or packet; stream and dgram have none.",
    ),
    Rule(
        "no-gso-from-guest", "note", "sizes of the guest's frames", see.single_segments("tx"),
        "The guest sends single segments of full size, so each costs as much as a frame of 64 KiB.",
        "In the guest: ethtool -K eth0 tx on sg on tso on.",
    ),
    Rule(
        "gso-fixed-up", "note", "`tx_fixed_up`", see.share("tx_fixed_up", "tx_frames", 10, 20),
        "The guest sends GSO frames without csum_blank, whose checksums netback fixes up.",
        "Update the frontend: GSO needs NETTXF_csum_blank (netif.h).",
    ),
    Rule(
        "one-queue", "note", "slots of a burst and multi-queue-num-queues", see.one_queue,
        "The device is busy and has one queue, though {offered} were offered ({reason}).",
        "Give the guest more processors or queues (Linux: xen_netfront.max_queues), and connect again.",
    ),
    Rule(
        "one-busy-queue", "note", "`rx_frames` of each queue", see.one_busy_queue,
        "All frames for the guest come by queue {queue} of {queues}: of one flow, or by its hash mapping.",
        "Use several flows; if the guest selected a hash, see its types and mapping.",
    ),
    Rule(
        "no-vhost-net", "note", "`path`", see.no_vhost_net,
        "Frames go by {path}, not by vhost-net: {reason}.",
        "If it cannot be opened: modprobe vhost_net, and the right to open /dev/vhost-net. After a failure it is tried "
        "again.",
    ),
    Rule(
        "device-error", "error", "the device's error",
        lambda facts: {"error": facts.error} if facts.error else None,
        "The backend has an error with this device: {error}.",
        "Mend what it names; netback tries again by itself.",
        unless=(
            "other-backend", "store-quota", "journal", "keys-refused", "protocol-broken", "hotplug-failed", "tap-busy",
            "no-such-bridge", "link-gone", "far-end-gone",
        ),
    ),
)  # fmt: skip
"""What concerns one device, in the order in which to mend it."""
