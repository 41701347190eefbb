# SPDX-License-Identifier: Apache-2.0
"""What the rules of daemon/rules.py look at in a picture of a device: each function returns the values from which a
finding follows, or None where nothing is wrong. Others make such a function for a counter, an error or a feature.
"""

from collections.abc import Callable, Mapping

from netback.abi.netif_keys import Key
from netback.abi.xenbus import XenbusState as State
from netback.daemon.facts import USING, Facts, LinkFacts
from netback.dataplane.counters import FILTERS
from netback.dataplane.states import State as Poll
from netback.net.base import ETH_DATA_LEN
from netback.observe.slots import Ring
from netback.vif.rate import parse_node
from netback.vif.terms import QUEUES, SG
from netback.xenbus.names import home
from netback.xenbus.nodes import CARRIER_OFF, LINK_DOWN, RATES

Evidence = Mapping[str, object]
"""Values by what they are of. `NAME now` is what a counter grew by between the two readings."""
Judge = Callable[[Facts], Evidence | None]

FEW = 100
"""Frames between two readings from which on shares of them mean something."""
MANY = 1000
"""Frames between two readings from which on a guest is busy."""
LONG_BURST = 24
"""Slots that a busy queue finds at each look, at least."""


def error_says(*words: str) -> Judge:
    """The device's error has one of these words, which are netback's own."""
    return lambda facts: {"error": facts.error} if any(word in facts.error for word in words) else None


def ever(counter: str, *beside: str) -> Judge:
    """A counter that stays 0 on a healthy device: what it counts may be rare while it does harm."""

    def judge(facts: Facts) -> Evidence | None:
        evidence = {name: facts.total(name) for name in (counter, *beside)}
        return {**evidence, f"{counter} now": facts.growth(counter)} if evidence[counter] else None

    return judge


def filtered(kind: str) -> Judge:
    """What a kind of filter dropped, by its counters."""
    counters = [name for name, counter in FILTERS[kind].items() if counter.lost]

    def judge(facts: Facts) -> Evidence | None:
        lost = {name: facts.total(name) for name in counters if facts.total(name)}
        return {**lost, "filters": "; ".join(facts.now.filters or ()) or "none now"} if lost else None

    return judge


def lossy(counter: str, of: str) -> Judge:
    """A counter of losses that load may cause: they go on, or are a hundredth of all frames."""

    def judge(facts: Facts) -> Evidence | None:
        lost, grown = facts.total(counter), facts.growth(counter)
        if not grown and lost * 100 <= facts.total(of):
            return None
        return {counter: lost, f"{counter} now": grown, of: facts.total(of)}

    return judge


def share(counter: str, of: str, percent: int, least: int = FEW) -> Judge:
    """Between the readings so many percent of at least so many frames."""

    def judge(facts: Facts) -> Evidence | None:
        part, whole = facts.growth(counter), facts.growth(of)
        if not part or whole < least or part * 100 < whole * percent:
            return None
        return {f"{counter} now": part, f"{of} now": whole}

    return judge


def both(first: Judge, second: Judge) -> Judge:
    """Both; the evidence of both."""

    def judge(facts: Facts) -> Evidence | None:
        if (one := first(facts)) is None or (other := second(facts)) is None:
            return None
        return {**one, **other}

    return judge


def either(*judges: Judge) -> Judge:
    """The first that applies."""
    return lambda facts: next(filter(None, (judge(facts) for judge in judges)), None)


def lacks(feature: str) -> Judge:
    """A feature is not in force."""
    return lambda facts: (
        {feature: f"not used: {facts.reason(feature)}"} if facts.agreed(feature) is False else None
    )


def _in_state(direction: str, *states: Poll) -> Callable[[Facts], Ring | None]:
    """The first ring of a direction that waits in one of these states."""
    names = {state.name for state in states}

    def find(facts: Facts) -> Ring | None:
        rings = (ring for ring in facts.rings if ring.ring.partition("-")[0] == direction)
        return next((ring for ring in rings if ring.state in names), None)

    return find


_starved = _in_state("rx", Poll.NO_SLOTS_LONG)
_blocked = _in_state("tx", Poll.PEER_FULL, Poll.PEER_BUSY)
_asleep = _in_state("tx", Poll.RING_IDLE)


def _show(ring: Ring) -> dict[str, object]:
    return {"ring": ring.ring, "state": ring.state, "pending": f"{ring.pending} of {ring.slots_total}"}


def no_rx_slots(facts: Facts) -> Evidence | None:
    """Frames have waited for 200 ms and more; for a moment they do on any busy device."""
    ring = _starved(facts)
    if ring is None or not ring.waiting:
        return None
    return {**_show(ring), "waiting": ring.waiting, "for": f"{ring.waiting_for:.1f} s"}


def network_full(facts: Facts) -> Evidence | None:
    """Between the readings the network took nothing, although requests wait."""
    ring = _blocked(facts)
    return None if ring is None or not facts.stuck(ring) else {**_show(ring), "network": facts.now.network}


def network_drops(facts: Facts) -> Evidence | None:
    """What the kernel counts for a tap or a packet socket grew."""
    lost = facts.drops_growth
    if not any(lost.values()):
        return None
    return {
        **{f"{name} now": count for name, count in lost.items()},
        "rx_frames now": facts.growth("rx_frames"),
    }


def lost_event(facts: Facts) -> Evidence | None:
    """The ring is armed for one request, so the guest owes an event for the first one (ring.h)."""
    ring = _asleep(facts)
    if ring is None or not facts.stuck(ring):
        return None
    return {**_show(ring), "events now": facts.growth("events")}


def multicast_filtered(facts: Facts) -> Evidence | None:
    """Most of what came between the readings; a few are usual, since a network has groups that a guest is not in."""
    filtered, passed = facts.growth("rx_filtered"), facts.growth("rx_frames")
    if filtered < FEW or filtered < passed:
        return None
    return {"rx_filtered now": filtered, "rx_frames now": passed}


def stalled(facts: Facts) -> Evidence | None:
    """The guest takes no frames (docs/decisions.md, Frames that the guest does not take)."""
    return None if facts.now.stalled is None else {"stalled": f"{facts.now.stalled:.0f} s"}


def _wanted_bridge(facts: Facts) -> str:
    """The bridge that vif-bridge puts the link into; other scripts read the node in another way, or not at all."""
    return facts.node("bridge") if facts.node("script").endswith("/vif-bridge") else ""


def not_in_bridge(facts: Facts) -> Evidence | None:
    """The script says that it is done, and the link is a port of nothing."""
    wanted, link = _wanted_bridge(facts), facts.link
    if (
        not wanted
        or link is None
        or not link.exists
        or link.bridge
        or facts.node("hotplug-status") != "connected"
    ):
        return None
    return {"bridge": wanted, "link": link.name, "port of": "nothing"}


def other_bridge(facts: Facts) -> Evidence | None:
    """The link is a port of another link than the toolstack named."""
    wanted, link = _wanted_bridge(facts), facts.link
    if not wanted or link is None or link.bridge in ("", wanted):
        return None
    return {"bridge": wanted, "link": link.name, "port of": link.bridge}


def bridge_mtu(facts: Facts) -> Evidence | None:
    """A bridge drops frames that are longer than a port's MTU."""
    link = facts.link
    if link is None or link.bridge_mtu in (0, link.mtu):
        return None
    return {"link": link.name, "MTU": link.mtu, "bridge": link.bridge, "bridge MTU": link.bridge_mtu}


def guest_mtu(facts: Facts) -> Evidence | None:
    """netif.h: without the node it is 1500."""
    link, text = facts.link, facts.details.frontend_nodes.get(Key.MTU, str(ETH_DATA_LEN))
    if link is None or not link.exists or not facts.connected or text == str(link.mtu):
        return None
    return {"link": link.name, "MTU": link.mtu, "frontend's mtu": text}


def jumbo_without_sg(facts: Facts) -> Evidence | None:
    """Frames of more than a page need feature-sg; 1500 is what such a frontend takes of its link (netif.h)."""
    link = facts.link
    if link is None or link.mtu <= ETH_DATA_LEN or facts.agreed(SG) is not False:
        return None
    return {"link": link.name, "MTU": link.mtu, "feature-sg": facts.reason(SG)}


def wrong_rate(facts: Facts, wrong: Callable[[str], bool]) -> Evidence | None:
    """The first rate node that is `wrong`."""
    return next(
        ({"node": node, "value": facts.node(node)} for node in RATES if wrong(facts.node(node))), None
    )


def is_no_rate(text: str) -> bool:
    """Whether a node limits nothing, since it is no rate."""
    try:
        parse_node(text)
    except ValueError:
        return bool(text)
    return False


def passes_nothing(text: str) -> bool:
    """Whether a node is a rate of no bytes."""
    try:
        rate = parse_node(text)
    except ValueError:
        return False
    return rate is not None and not rate.size


def throttled(facts: Facts) -> Evidence | None:
    """Frames lacked credit between the readings."""
    for way, limit in (("tx", facts.now.tx_rate), ("rx", facts.now.rx_rate)):
        if (waits := facts.growth(f"{way}_throttled")) and facts.now.link is not False:
            return {"direction": way, "limit": limit or "none", f"{way}_throttled now": waits}
    return None


def one_way(sent: str, got: str) -> Judge:
    """Frames pass in one direction alone since the backend started."""

    def judge(facts: Facts) -> Evidence | None:
        if not facts.connected or facts.total(sent) < FEW or facts.total(got):
            return None
        return {sent: facts.total(sent), got: 0}

    return judge


def single_segments(way: str) -> Judge:
    """Slots of full size, one a frame: what TCP without segmentation offload sends."""

    def judge(facts: Facts) -> Evidence | None:
        frames, size = facts.growth(f"{way}_frames"), facts.growth(f"{way}_bytes")
        if frames < MANY or facts.growth(f"{way}_slots") != frames or not 1400 <= size / frames <= 1514:
            return None
        return {f"{way}_frames now": frames, "bytes a frame": size // frames}

    return judge


def one_queue(facts: Facts) -> Evidence | None:
    """Long bursts: the worker finds more work at each look than it finished meanwhile."""
    offered, busy = facts.node(Key.MAX_QUEUES), []
    for way in ("tx", "rx"):
        slots, bursts = facts.growth(f"{way}_slots"), facts.growth(f"{way}_bursts")
        if slots >= MANY and slots >= LONG_BURST * bursts > 0:
            busy.append(f"{slots // bursts} slots a burst of {way}")
    if not busy or facts.agreed(QUEUES) is not False or not offered.isdecimal() or int(offered) < 2:
        return None
    return {"queues": 1, "offered": offered, "load": ", ".join(busy), "reason": facts.reason(QUEUES)}


def one_busy_queue(facts: Facts) -> Evidence | None:
    """All of the frames for a guest by one of its queues."""
    frames = facts.queue_growth("rx_frames")
    if len(frames) < 2 or facts.now.queues in (None, 0, 1) or sum(frames) < MANY or max(frames) < sum(frames):
        return None
    return {"queues": facts.now.queues, "queue": frames.index(max(frames)), "rx_frames now": sum(frames)}


def mac_differs(facts: Facts) -> Evidence | None:
    """The toolstack gave both ends the same address; a bridge or a filter goes by the backend's."""
    ours, theirs = facts.now.mac, facts.details.frontend_nodes.get("mac")
    if not ours or not theirs or ours.lower() == theirs.lower():
        return None
    return {"backend's mac": ours, "frontend's mac": theirs}


def far_end_gone(facts: Facts) -> Evidence | None:
    """A network without a link is down, or could not be opened since no program listens."""
    network, carrier = facts.now.network or facts.now.net, facts.node(Key.CARRIER)
    kept = "1" in (facts.node(CARRIER_OFF), facts.node(LINK_DOWN))
    down = facts.now.network is not None and carrier == "0" and not kept
    if facts.link is not None or not network or not (down or "cannot connect" in facts.error):
        return None
    return {"network": network, "carrier": carrier or "none", "error": facts.error or "none"}


def foreign_owner(facts: Facts) -> Evidence | None:
    """xenstore-paths: the frontend owns its directory."""
    if facts.owner is None or facts.owner == facts.now.domid:
        return None
    backend = facts.details.backend_path.split("/")[3]
    return {
        "path": facts.details.frontend_path,
        "owner": facts.owner,
        "guest": facts.now.domid,
        "backend": backend,
    }


def hotplug_failed(facts: Facts) -> Evidence | None:
    """What xen-hotplug-common.sh writes when it fails."""
    if facts.node("hotplug-status") != "error":
        return None
    return {"script": facts.node("script"), "hotplug-error": facts.node("hotplug-error") or "no reason given"}


def hotplug_waits(facts: Facts) -> Evidence | None:
    """libxl writes an empty hotplug-status, and the script "connected" (docs/decisions.md, Lifecycle)."""
    script, status = facts.node("script"), facts.node("hotplug-status")
    if not script or status in ("connected", "error") or facts.going:
        return None
    evidence: dict[str, object] = {"script": script, "hotplug-status": status or "none"}
    if not facts.details.backend_path.startswith(f"{home(0)}/"):
        evidence["xl devd"] = f"process {facts.host.devd}" if facts.host.devd else "does not run"
    return evidence


def frontend_is(*theirs: State | None, ours: State | None = None) -> Judge:
    """The frontend stays in one of these states (None: it has none), and the toolstack wants the device. `ours`: the
    backend's state meanwhile.
    """
    titles = {state and state.title for state in theirs}

    def judge(facts: Facts) -> Evidence | None:
        fits = facts.now.frontend in titles and (ours is None or facts.now.backend == ours.title)
        return facts.states if fits and not facts.going else None

    return judge


def protocol_broken(facts: Facts) -> Evidence | None:
    """netback closed the device, and its frontend has not answered (docs/states.md)."""
    if (
        facts.now.backend != State.CLOSING.title
        or facts.now.frontend not in USING
        or facts.going
        or not facts.error
    ):
        return None
    return {**facts.states, "error": facts.error}


def fault_recorded(facts: Facts) -> Evidence | None:
    """The last recording of a fault, as long as the guest has not connected again."""
    recording = facts.now.recording
    if recording is None or facts.now.backend == State.CONNECTED.title:
        return None
    return {**facts.states, "recording": recording}


def detach_unanswered(facts: Facts) -> Evidence | None:
    """libxl wrote online=0, netback is Closing, and the frontend goes on."""
    closing = facts.going and facts.now.backend == State.CLOSING.title and facts.now.frontend in USING
    return {**facts.states, "online": "0"} if closing else None


def no_vhost_net(facts: Facts) -> Evidence | None:
    """A tap's path when vhost-net was wanted and could not be used (net/tap.py)."""
    words, _, reason = (facts.now.path or "").partition(": ")
    return {"path": words, "reason": reason} if words == "system calls" and reason else None


def wrong_link(
    facts: Facts, wrong: Callable[[LinkFacts], bool], **evidence: Callable[[LinkFacts], object]
) -> Evidence | None:
    """A link of this host that is `wrong`; `evidence` shows it."""
    link = facts.link
    if link is None or not wrong(link):
        return None
    return {"link": link.name, **{name: show(link) for name, show in evidence.items()}}
