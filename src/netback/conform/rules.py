# SPDX-License-Identifier: Apache-2.0
"""What a frontend must do, as one table. Each function is a row: its docstring is the rule, its occasions the evidence.

Pure functions over an observation (view.py). docs/conform.md is generated from this table, and tests/conform has a
misbehaving frontend for each row. "xen-netback" and "xen-netfront" are Linux's drivers (drivers/net), of which the
behaviour is described here.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

from netback.abi.grant_table import RESERVED_ENTRIES
from netback.abi.netif import (
    ETH_HLEN,
    FATAL_DATA_SLOTS,
    MAX_XDP_HEADROOM,
    TX_RESPONSE,
    ExtraType,
    GsoType,
    Status,
    TxFlag,
)
from netback.abi.netif_control import CTRL_REQUEST, CTRL_SLOTS, CtrlStatus, CtrlType
from netback.abi.netif_keys import Key
from netback.abi.ring import PAGE_SIZE
from netback.abi.xenbus import XenbusState as State
from netback.conform.chains import WRAP
from netback.conform.frames import TCP, checksum_state
from netback.conform.observation import (
    Changed,
    Control,
    Ended,
    Events,
    Exited,
    Frame,
    Indices,
    Joined,
    Missed,
    Page,
    Remains,
    Requests,
    Responses,
    Ring,
    Step,
    StoreLoad,
    StoreRequest,
)
from netback.conform.profiles import BackendProfile
from netback.conform.rule import Level, Occasions, Rules
from netback.conform.view import BACK, FRONT, RxRequest, Sent, View

RULES: Rules[View] = Rules()
rule = RULES.rule

MAX_STORE_REQUESTS = 2000
"""Store requests in one run: a handshake takes some fifty."""
MAX_EMPTY_EVENTS = 64
"""Events without a new request in one run, if they are also more than half of all."""
MIN_SLOTS = 18
"""XEN_NETIF_NR_SLOTS_MIN: data slots that every backend takes."""
MTU_FRAME = 1518
"""Bytes of a frame at an MTU of 1500, with a VLAN tag."""
MAX_KEY = 40
SIGKILL = 9


def _offers(*keys: str) -> Callable[[BackendProfile], bool]:
    return lambda profile: any(profile.offers(key) for key in keys)


def _has(flag: str) -> Callable[[BackendProfile], bool]:
    return lambda profile: bool(getattr(profile, flag))


def _frames(form: str) -> Callable[[BackendProfile], bool]:
    return lambda profile: form in profile.forms


def _decimal(text: str, below: int) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 11 and int(text) < below


# ---- the domain and its process


@rule("domain.joins", "docs/emulated-xen.md, Domains and handles")
def _(view: View) -> Occasions:
    """The frontend's domain appears within the time limit."""
    joined = [event.domid for _, event in view.all(Joined)]
    yield bool(joined), f"domain {joined[0]}" if joined else "no domain joined"


@rule("domain.once", "docs/emulated-xen.md, Domains and handles")
def _(view: View) -> Occasions:
    """The command is one domain: it does not come twice."""
    joined = [event.domid for _, event in view.all(Joined)]
    if joined:
        yield len(joined) == 1, f"domains {', '.join(map(str, joined))}"


@rule("domain.stays", "xenbus.h: a domain leaves its device by Closing and Closed")
def _(view: View) -> Occasions:
    """The domain does not end while its device is Connected."""
    if not view.is_connected:
        return
    ended = [at for at, event in view.all(Ended) if event.domid == view.seen.domid]
    held = bool(ended) and ended[0] < view.leaving
    yield not held, "the domain ended while it was Connected" if held else "it stayed until Closing"


@rule("process.sound", "a process that ends by a fault leaves its rings as they are")
def _(view: View) -> Occasions:
    """The command does not crash, and if it ends by itself its exit code is 0, unless no backend suits it."""
    for _, event in view.all(Exited):
        if event.code > 0 and not view.offers(Key.RX_COPY):
            continue
        last = event.output.splitlines()[-1][:120] if event.output else "no output"
        if not event.sent or (event.code < 0 and -event.code != event.sent):
            yield event.code == 0, f"exit code {event.code}: {last}"
        else:
            yield True, f"ended by signal {event.sent}"


@rule("process.ends", "signal(7): SIGTERM asks a process to end", level=Level.SHOULD)
def _(view: View) -> Occasions:
    """The command ends within the time limit after its device is gone and SIGTERM was sent."""
    for _, event in view.all(Exited):
        yield event.sent != SIGKILL, f"needed signal {event.sent}" if event.sent else "ended by itself"


# ---- xenstore


@rule("store.valid-requests", "xenstore.txt: EINVAL, ENOSYS")
def _(view: View) -> Occasions:
    """Every store request is one that the store knows, and well formed."""
    for _, event in view.all(StoreRequest):
        if event.domid:
            yield (
                event.error not in ("EINVAL", "ENOSYS"),
                f"{event.op} {event.path[:80]!r}: {event.error or 'OK'}",
            )


@rule("store.permitted", "xenstore-paths: the backend's directory is readable for the frontend, not writable")
def _(view: View) -> Occasions:
    """No store request needs a right that a guest does not have."""
    for _, event in view.all(StoreRequest):
        if event.domid:
            yield (
                event.error not in ("EACCES", "EPERM"),
                f"{event.op} {event.path[:80]}: {event.error or 'OK'}",
            )


@rule("store.transactions-end", "xenstore.txt: a guest has ten transactions", level=Level.SHOULD)
def _(view: View) -> Occasions:
    """Every transaction is ended before the frontend is Connected, and none is left open."""
    begun = {
        e.tx for _, e in view.all(StoreRequest) if e.domid and e.op == "TRANSACTION_START" and not e.error
    }
    ended = {e.tx for _, e in view.all(StoreRequest) if e.domid and e.op == "TRANSACTION_END"}
    for tx in sorted(begun):
        yield tx in ended, f"transaction {tx} {'ended' if tx in ended else 'stays open'}"


@rule("store.repeats", "xenstore.txt: EAGAIN of TRANSACTION_END", when=_has("conflicts"))
def _(view: View) -> Occasions:
    """A transaction that conflicts with another change is made again."""
    requests = [(at, e) for at, e in view.all(StoreRequest) if e.domid]
    for at, event in requests:
        if event.op == "TRANSACTION_END" and event.error == "EAGAIN":
            again = any(
                other.op == "TRANSACTION_END" and not other.error and other.value == "T" and later > at
                for later, other in requests
            )
            yield (
                again,
                f"transaction {event.tx} got EAGAIN, and {'was made again' if again else 'nothing followed'}",
            )


@rule("store.quiet", "XSA-349: watch events and requests cost the whole host")
def _(view: View) -> Occasions:
    """The frontend does not flood the store: at most 2000 requests in a run."""
    for _, event in view.all(StoreLoad):
        yield event.requests <= MAX_STORE_REQUESTS, f"{event.requests} requests"


# ---- xenbus


@rule("xenbus.connects", "xenbus.h, xen-netfront netback_changed: InitWait asks the frontend for its keys")
def _(view: View) -> Occasions:
    """The frontend writes its keys and Connected within the time limit after the backend's InitWait."""
    if view.seen.domid and view.offers(Key.RX_COPY) and view.reached(BACK, State.INIT_WAIT) is not None:
        step = view.step("connect")
        yield step != "timeout", f"state {(view.states(FRONT) or [(0, 'none')])[-1][1]}"


@rule("xenbus.waits", "xenbus.h: InitWait says that the features can be read", level=Level.SHOULD)
def _(view: View) -> Occasions:
    """Connected is not written before the backend is in InitWait."""
    ready = view.reached(BACK, State.INIT_WAIT)
    if view.connected is not None:
        early = ready is None or view.connected < ready
        yield not early, "Connected before InitWait" if early else "Connected after InitWait"


@rule("xenbus.keys-first", "netif.h: the backend reads the keys when it sees Connected")
def _(view: View) -> Occasions:
    """All keys of the rings exist when Connected appears."""
    if view.connected is None:
        return
    for path in view.queue_paths:
        channels = [path + key in view.keys for key in (Key.EVENT_CHANNEL_TX, Key.EVENT_CHANNEL_RX)]
        missing = [path + key for key in (Key.TX_RING_REF, Key.RX_RING_REF) if path + key not in view.keys]
        if path + Key.EVENT_CHANNEL not in view.keys and not any(channels):
            missing.append(path + Key.EVENT_CHANNEL)
        yield (
            not missing,
            f"{', '.join(missing)} missing" if missing else f"keys of {path or 'the device'} are there",
        )


@rule("xenbus.keys-stay", "netif.h: the backend has mapped what the keys name")
def _(view: View) -> Occasions:
    """The keys of rings and ports do not change while both ends are Connected."""
    if not view.is_connected or view.connected is None:
        return
    rings = {Key.TX_RING_REF, Key.RX_RING_REF, Key.EVENT_CHANNEL, Key.EVENT_CHANNEL_TX, Key.EVENT_CHANNEL_RX}
    yield True, "they stayed"
    for change in view.changes:
        if change.side == FRONT and view.connected < change.at < view.leaving:
            leaf = change.key.rpartition("/")[2]
            if change.key in view.keys:
                yield leaf not in rings and leaf != Key.QUEUES, f"{change.key} became {change.value!r}"


@rule("xenbus.state-values", "xenbus.h, XenbusState: 1 to 8 in decimal")
def _(view: View) -> Occasions:
    """Every state that the frontend writes is one of xenbus.h's numbers."""
    for _, value in view.states(FRONT):
        yield State.parse(value) is not State.UNKNOWN, f"state {value!r}"


_FORBIDDEN = {
    ("4", "2"),
    ("4", "3"),
    ("6", "5"),
    ("5", "4"),
    ("5", "7"),
    ("6", "7"),
    ("1", "7"),
    ("2", "7"),
}
"""Steps of a frontend for which xenbus.h and known frontends have no use."""


@rule("xenbus.state-order", "xenbus.h; xen-netback frontend_changed has no case for such steps")
def _(view: View) -> Occasions:
    """The frontend's states follow each other as xenbus.h has them; it never writes Reconfigured, which is the
    backend's answer."""
    values = [value for _, value in view.states(FRONT)]
    for before, after in pairwise(values):
        yield (before, after) not in _FORBIDDEN and after != "8", f"state {before} to {after}"


@rule("xenbus.toolstack-keys", "xenstore-paths: backend, backend-id, handle and mac are the toolstack's")
def _(view: View) -> Occasions:
    """The frontend leaves the keys of the toolstack as they are."""
    theirs = {"backend", "backend-id", "handle", "mac"}
    requests = [e for _, e in view.all(StoreRequest) if e.domid and e.op in ("WRITE", "RM") and not e.error]
    for event in requests:
        key = event.path.removeprefix(view.seen.frontend + "/")
        yield key not in theirs, f"{event.op} {key}"


@rule(
    "xenbus.reconfigures",
    "Linux's netif.h: Reconfiguring announces a change of xdp-headroom",
    level=Level.SHOULD,
    when=lambda profile: not profile.offers(Key.XDP),
)
def _(view: View) -> Occasions:
    """Reconfiguring is written only to a backend that offers feature-xdp-headroom."""
    if not view.offers(Key.XDP) and view.connected is not None:
        wrote = view.reached(FRONT, State.RECONFIGURING) is not None
        yield not wrote, "state 7 without feature-xdp-headroom" if wrote else "no Reconfiguring"


@rule(
    "xenbus.odd-states", "xen-netfront netback_changed: other states have no effect", when=_has("odd_states")
)
def _(view: View) -> Occasions:
    """States that a backend has no use for while Connected do not move the frontend."""
    outcome = view.step("odd-states")
    if outcome is not None:
        yield outcome != "left", f"after states 3, 2, 8, 4: {outcome}"


# ---- keys


@rule("keys.request-rx-copy", "netif.h: rx-flip is gone; xen-netback read_xenbus_vif_flags refuses without")
def _(view: View) -> Occasions:
    """request-rx-copy is 1."""
    if view.connected is not None:
        value = view.keys.get(Key.REQUEST_RX_COPY)
        yield value == "1", f"request-rx-copy {value!r}"


@rule(
    "keys.needs-rx-copy",
    "xen-netfront talk_to_netback: refuses without feature-rx-copy",
    level=Level.SHOULD,
    when=lambda profile: not profile.offers(Key.RX_COPY),
)
def _(view: View) -> Occasions:
    """The frontend does not connect to a backend without feature-rx-copy."""
    if not view.offers(Key.RX_COPY) and view.seen.domid:
        connects = view.connected is not None
        yield not connects, "Connected without feature-rx-copy" if connects else "stayed away"


@rule("keys.no-rx-flip", "netif.h: page flipping is not supported any more", level=Level.SHOULD)
def _(view: View) -> Occasions:
    """feature-rx-flip is absent or 0."""
    if view.connected is not None:
        value = view.keys.get(Key.RX_FLIP)
        yield value in (None, "0"), f"feature-rx-flip {value!r}"


def _refs(view: View) -> Iterator[tuple[str, str]]:
    for path in view.queue_paths:
        for key in (path + Key.TX_RING_REF, path + Key.RX_RING_REF):
            if key in view.keys:
                yield key, view.keys[key]
    if Key.CTRL_RING_REF in view.keys:
        yield str(Key.CTRL_RING_REF), view.keys[Key.CTRL_RING_REF]


def _channels(view: View) -> Iterator[tuple[str, str]]:
    names = (Key.EVENT_CHANNEL, Key.EVENT_CHANNEL_TX, Key.EVENT_CHANNEL_RX)
    for path in view.queue_paths:
        for key in (path + name for name in names):
            if key in view.keys:
                yield key, view.keys[key]
    if Key.EVENT_CHANNEL_CTRL in view.keys:
        yield str(Key.EVENT_CHANNEL_CTRL), view.keys[Key.EVENT_CHANNEL_CTRL]


@rule("keys.refs-decimal", "netif.h: a grant reference in decimal; xen-netback reads %lu")
def _(view: View) -> Occasions:
    """The grant references of rings are decimal numbers of 32 bits."""
    for key, value in _refs(view):
        yield _decimal(value, WRAP), f"{key} {value!r}"


@rule("keys.refs-own", "grant_table.h: the toolstack owns the first eight entries")
def _(view: View) -> Occasions:
    """The grant references of rings are none of the reserved ones."""
    for key, value in _refs(view):
        if _decimal(value, WRAP):
            yield int(value) >= RESERVED_ENTRIES, f"{key} {value}"


@rule("keys.refs-differ", "netif.h: each ring has a page of its own")
def _(view: View) -> Occasions:
    """No two rings have the same page."""
    refs = [value for _, value in _refs(view)]
    if refs:
        yield len(set(refs)) == len(refs), f"ring pages {', '.join(refs)}"


@rule("keys.ports-decimal", "netif.h: a port in decimal; event_channel.h: port 0 is never valid")
def _(view: View) -> Occasions:
    """The event channels are decimal numbers, not 0."""
    for key, value in _channels(view):
        yield _decimal(value, WRAP) and int(value) > 0, f"{key} {value!r}"


@rule(
    "keys.split-offered",
    "netif.h: split event channels are the backend's to offer",
    when=lambda profile: not profile.offers(Key.SPLIT_CHANNELS),
)
def _(view: View) -> Occasions:
    """Without feature-split-event-channels there is an event-channel for both rings."""
    if view.offers(Key.SPLIT_CHANNELS) or view.connected is None:
        return
    for path in view.queue_paths:
        has = path + Key.EVENT_CHANNEL in view.keys
        split = path + Key.EVENT_CHANNEL_TX in view.keys
        if has or split:
            yield has, f"{path}event-channel {'exists' if has else 'is missing, event-channel-tx exists'}"


@rule(
    "keys.split-complete",
    "netif.h: event-channel-tx and event-channel-rx come together",
    when=_offers(Key.SPLIT_CHANNELS),
)
def _(view: View) -> Occasions:
    """A queue has event-channel-tx and event-channel-rx, or neither."""
    if view.connected is None:
        return
    for path in view.queue_paths:
        pair = [path + key in view.keys for key in (Key.EVENT_CHANNEL_TX, Key.EVENT_CHANNEL_RX)]
        if any(pair):
            yield all(pair), f"{path}event-channel-tx {pair[0]}, -rx {pair[1]}"


@rule(
    "keys.queues-number",
    "netif.h, multi-queue-num-queues: 1 to multi-queue-max-queues",
    when=_offers(Key.MAX_QUEUES),
)
def _(view: View) -> Occasions:
    """The number of queues is at least 1 and at most what the backend offers."""
    value = view.keys.get(Key.QUEUES)
    if value is not None:
        most = int(view.seen.offer.get(Key.MAX_QUEUES, "1"))
        yield _decimal(value, most + 1) and int(value) > 0, f"multi-queue-num-queues {value!r} of {most}"


@rule(
    "keys.queues-offered",
    "netif.h: the frontend writes it where the backend has multi-queue-max-queues",
    level=Level.SHOULD,
    when=lambda profile: not profile.offers(Key.MAX_QUEUES),
)
def _(view: View) -> Occasions:
    """multi-queue-num-queues is written only where the backend offers queues."""
    if Key.MAX_QUEUES not in view.seen.offer and view.connected is not None:
        value = view.keys.get(Key.QUEUES)
        yield value is None, f"multi-queue-num-queues {value!r} without an offer" if value else "not written"


@rule(
    "keys.queues-places",
    "netif.h: several queues have their keys in queue-N, one has them in the device's directory",
)
def _(view: View) -> Occasions:
    """The keys of rings are in queue-0 and so on for several queues, and in the device's directory for one."""
    if view.connected is None:
        return
    names = (Key.TX_RING_REF, Key.RX_RING_REF)
    several = len(view.queue_paths) > 1
    wrong = [key for key in view.keys if key.rpartition("/")[2] in names and several != ("/" in key)]
    yield not wrong, f"{', '.join(wrong) or 'none'} beside those of {len(view.queue_paths)} queues"


@rule("keys.booleans", "netif.h: features are 0 or 1")
def _(view: View) -> Occasions:
    """Every feature- and request- key is 0 or 1."""
    for key, value in view.keys.items():
        if key.startswith(("feature-", "request-")):
            yield value in ("0", "1"), f"{key} {value!r}"


@rule("keys.gso-needs-sg", "xen-netback xenvif_fix_features: GSO without SG is off", level=Level.SHOULD)
def _(view: View) -> Occasions:
    """feature-gso-tcpv4 and -tcpv6 come with feature-sg: their frames have several slots."""
    for key in (Key.GSO_TCPV4, Key.GSO_TCPV6):
        if view.keys.get(key) == "1":
            sg = view.keys.get(Key.SG)
            yield sg == "1", f"{key} with feature-sg {sg!r}"


@rule("keys.gso4-needs-checksum", "netif.h: a GSO frame's checksum is blank", level=Level.SHOULD)
def _(view: View) -> Occasions:
    """feature-gso-tcpv4 does not come with feature-no-csum-offload."""
    if view.keys.get(Key.GSO_TCPV4) == "1":
        value = view.keys.get(Key.NO_CSUM)
        yield value != "1", f"feature-gso-tcpv4 with feature-no-csum-offload {value!r}"


@rule("keys.gso6-needs-checksum", "netif.h: a GSO frame's checksum is blank", level=Level.SHOULD)
def _(view: View) -> Occasions:
    """feature-gso-tcpv6 comes with feature-ipv6-csum-offload."""
    if view.keys.get(Key.GSO_TCPV6) == "1":
        value = view.keys.get(Key.IPV6_CSUM)
        yield value == "1", f"feature-gso-tcpv6 with feature-ipv6-csum-offload {value!r}"


@rule("keys.multicast-offered", "netif.h, request-multicast-control", level=Level.SHOULD)
def _(view: View) -> Occasions:
    """request-multicast-control is 1 only where the backend offers feature-multicast-control."""
    if view.connected is not None:
        value = view.keys.get(Key.REQUEST_MULTICAST)
        if value is not None or not view.offers(Key.MULTICAST):
            yield value != "1" or view.offers(Key.MULTICAST), f"request-multicast-control {value!r}"


@rule(
    "keys.control-complete",
    "netif.h: ctrl-ring-ref and event-channel-ctrl come together",
    when=_offers(Key.CTRL_RING),
)
def _(view: View) -> Occasions:
    """A control ring has its page and its event channel."""
    pair = [key in view.keys for key in (Key.CTRL_RING_REF, Key.EVENT_CHANNEL_CTRL)]
    if any(pair) and view.offers(Key.CTRL_RING):
        yield all(pair), f"ctrl-ring-ref {pair[0]}, event-channel-ctrl {pair[1]}"


@rule(
    "keys.control-offered",
    "netif.h, feature-ctrl-ring",
    level=Level.SHOULD,
    when=lambda profile: not profile.offers(Key.CTRL_RING),
)
def _(view: View) -> Occasions:
    """ctrl-ring-ref is written only where the backend offers feature-ctrl-ring."""
    if not view.offers(Key.CTRL_RING) and view.connected is not None:
        value = view.keys.get(Key.CTRL_RING_REF)
        yield value is None, f"ctrl-ring-ref {value!r}"


@rule(
    "keys.xdp-headroom",
    "Linux's netif.h; an Ethernet header must fit behind it (docs/decisions.md, XDP headroom)",
)
def _(view: View) -> Occasions:
    """xdp-headroom is a decimal number up to 4082."""
    value = view.keys.get(Key.XDP_HEADROOM)
    if value is not None:
        yield _decimal(value, MAX_XDP_HEADROOM + 1), f"xdp-headroom {value!r}"


# ---- rings


@rule("ring.usable", "grant_table.h, event_channel.h: the backend maps the page and binds the port")
def _(view: View) -> Occasions:
    """The backend can map every ring for writing, and bind every port."""
    for opened in view.opened("tx", "rx", "ctrl"):
        yield not opened.error, f"{opened.ring} {opened.queue}: {opened.error or f'gref {opened.gref}'}"


@rule("ring.fresh", "ring.h, SHARED_RING_INIT: rsp_prod 0, req_event 1")
def _(view: View) -> Occasions:
    """A new ring has no responses, and asks for the first request's event."""
    for opened in view.opened("tx", "rx", "ctrl"):
        if not opened.error:
            _, req_event, rsp_prod, _ = opened.header
            yield (
                (req_event, rsp_prod) == (1, 0),
                f"{opened.ring} {opened.queue}: req_event {req_event}, rsp_prod {rsp_prod}",
            )


@rule("ring.asks-first", "ring.h, SHARED_RING_INIT: rsp_event 1", level=Level.SHOULD)
def _(view: View) -> Occasions:
    """A new ring asks for an event with its first response."""
    for opened in view.opened("tx", "rx", "ctrl"):
        if not opened.error:
            yield opened.header[3] == 1, f"{opened.ring} {opened.queue}: rsp_event {opened.header[3]}"


@rule("ring.rsp-prod-theirs", "ring.h: rsp_prod is the backend's alone")
def _(view: View) -> Occasions:
    """The frontend does not write rsp_prod."""
    for _, at_rest in view.all(Indices):
        seen = at_rest.header[2]
        yield (
            seen == at_rest.rsp_prod,
            f"{at_rest.ring} {at_rest.queue}: rsp_prod {seen}, written {at_rest.rsp_prod}",
        )


@rule("ring.req-event-theirs", "ring.h: req_event is the backend's alone")
def _(view: View) -> Occasions:
    """The frontend does not write req_event."""
    for _, at_rest in view.all(Indices):
        seen = at_rest.header[1]
        yield (
            seen == at_rest.req_event,
            f"{at_rest.ring} {at_rest.queue}: req_event {seen}, written {at_rest.req_event}",
        )


@rule("ring.bounded", "ring.h; XSA-39: req_prod runs at most a ring's slots ahead of rsp_prod")
def _(view: View) -> Occasions:
    """req_prod never goes back, and never further ahead than the ring has slots."""
    for _, requests in view.all(Requests):
        size = CTRL_SLOTS if requests.ring == "ctrl" else 256
        ahead = (requests.prod - requests.first) % WRAP
        yield (
            bool(requests.slots) and ahead <= size,
            (f"{requests.ring} {requests.queue}: req_prod {requests.prod} after {requests.first}"),
        )


def _notifies(view: View, ring: Ring) -> Occasions:
    taken = sum(requests.ring == ring for _, requests in view.all(Requests))
    for _, missed in view.all(Missed):
        if missed.ring == ring:
            yield (
                False,
                f"queue {missed.queue}: no event for req_prod {missed.prod}, req_event {missed.req_event}",
            )
    if taken:
        yield True, f"{taken} times requests came"


@rule("ring.tx-notifies", "ring.h, RING_PUSH_REQUESTS_AND_CHECK_NOTIFY")
def _(view: View) -> Occasions:
    """A push of TX requests that passes req_event is followed by an event."""
    yield from _notifies(view, "tx")


@rule("ring.rx-notifies", "netif.h, feature-rx-notify: the backend waits for the event")
def _(view: View) -> Occasions:
    """With feature-rx-notify a push of RX buffers that passes req_event is followed by an event."""
    if view.keys.get(Key.RX_NOTIFY) == "1":
        yield from _notifies(view, "rx")


@rule("ring.no-storm", "XSA-331, XSA-332: events without work", level=Level.SHOULD)
def _(view: View) -> Occasions:
    """Events come with new requests: not more than 64 empty ones that are also more than half."""
    for _, events in view.all(Events):
        if events.count:
            storm = events.empty > MAX_EMPTY_EVENTS and events.empty * 2 > events.count
            yield not storm, f"queue {events.queue}: {events.empty} of {events.count} events were empty"


@rule(
    "ring.asked",
    "ring.h, RING_PUSH_REQUESTS_AND_CHECK_NOTIFY: a notification costs both ends",
    level=Level.SHOULD,
)
def _(view: View) -> Occasions:
    """Events are sent when req_event asks for them: not more than 64 others that are also more than half."""
    for _, events in view.all(Events):
        if events.count:
            many = events.unasked > MAX_EMPTY_EVENTS and events.unasked * 2 > events.count
            yield (
                not many,
                f"queue {events.queue}: {events.unasked} of {events.count} events were not asked for",
            )


# ---- TX


@rule(
    "tx.waits",
    "no backend answers then; xen-netfront's queues start with its carrier, before it writes Connected",
    level=Level.SHOULD,
)
def _(view: View) -> Occasions:
    """No TX request is in the ring before the backend is Connected."""
    for opened in view.opened("tx"):
        if not opened.error:
            yield (
                opened.header[0] == opened.header[2],
                f"queue {opened.queue}: req_prod {opened.header[0]} at first sight",
            )


@rule("tx.chain-complete", "netif.h; xen-netback xenvif_count_requests: fatal")
def _(view: View) -> Occasions:
    """A frame's slots and extra infos are all there when req_prod names the first of them."""
    for sent in view.sent:
        yield (
            not sent.chain.missing,
            f"{sent}: a {sent.chain.missing or 'slot'} "
            + ("is missing" if sent.chain.missing else f"of {sent.chain.slots}"),
        )


@rule("tx.flags", "netif.h, NETTXF_*")
def _(view: View) -> Occasions:
    """TX requests have no flags that netif.h does not define."""
    for sent in view.frames:
        for request in sent.chain.requests:
            yield not request.flags & ~0xF, f"{sent}: flags {request.flags:#x}"


@rule("tx.min-size", "netif.h; xen-netback xenvif_tx_build_gops: ERROR below 14")
def _(view: View) -> Occasions:
    """A frame has at least the 14 bytes of an Ethernet header."""
    for sent in view.frames:
        yield sent.chain.total >= ETH_HLEN, f"{sent}: size {sent.chain.total}"


@rule("tx.total", "netif.h: the first slot's size is the frame's, later ones are their own")
def _(view: View) -> Occasions:
    """The first slot's size is the whole frame's: the other slots leave some of it for the first."""
    for sent in view.frames:
        if len(sent.chain.requests) > 1 and not sent.chain.missing:
            yield sent.chain.lengths[0] >= 0, f"{sent}: sizes {[r.size for r in sent.chain.requests]}"


@rule("tx.empty-slots", "XSA-448: zero-length slots", level=Level.SHOULD)
def _(view: View) -> Occasions:
    """No slot of a frame is empty."""
    for sent in view.frames:
        if sent.chain.total >= ETH_HLEN and sent.chain.lengths[0] >= 0 and not sent.chain.missing:
            yield 0 not in sent.chain.lengths, f"{sent}: slots of {list(sent.chain.lengths)} bytes"


@rule("tx.within-page", "netif.h; xen-netback: fatal where a slot crosses its page")
def _(view: View) -> Occasions:
    """Each slot's bytes lie in its page."""
    for sent in view.frames:
        for request, length in zip(sent.chain.requests, sent.chain.lengths, strict=True):
            if length >= 0:
                yield request.offset + length <= PAGE_SIZE, f"{sent}: offset {request.offset}, {length} bytes"


@rule("tx.slots", "netif.h, XEN_NETIF_NR_SLOTS_MIN: every backend takes 18", level=Level.SHOULD)
def _(view: View) -> Occasions:
    """A frame has at most 18 data slots."""
    for sent in view.frames:
        yield len(sent.chain.requests) <= MIN_SLOTS, f"{sent}: {len(sent.chain.requests)} data slots"


@rule("tx.slots-fatal", "XSA-39; xen-netback fatal_skb_slots: the backend disables the vif")
def _(view: View) -> Occasions:
    """A frame has not so many data slots that backends disable the vif: 20 in xen-netback, 22 in netback."""
    for sent in view.frames:
        yield len(sent.chain.requests) < FATAL_DATA_SLOTS, f"{sent}: {len(sent.chain.requests)} data slots"


@rule("tx.sg-offered", "netif.h, feature-sg", when=lambda profile: not profile.offers(Key.SG))
def _(view: View) -> Occasions:
    """Frames have several slots only where the backend offers feature-sg."""
    if not view.offers(Key.SG):
        for sent in view.frames:
            yield len(sent.chain.requests) == 1, f"{sent}: {len(sent.chain.requests)} data slots"


@rule("tx.ids", "netif.h: a response names its request by id")
def _(view: View) -> Occasions:
    """The ids of requests that wait for their responses differ."""
    waiting: dict[int, Counter[int]] = {}
    seen: dict[int, int] = {}
    for sent, responses in _tx_life(view):
        if sent is not None:
            for request in sent.chain.requests:
                mine = waiting.setdefault(sent.chain.queue, Counter())
                yield not mine[request.id], f"TX {sent.chain.queue}:{request.slot}: id {request.id}"
                mine[request.id] += 1
                seen[sent.chain.queue] = request.slot
        if responses is not None:
            for slot in responses.slots:
                ident, status = TX_RESPONSE.unpack(slot)
                if status != Status.NULL:
                    waiting.setdefault(responses.queue, Counter())[ident] -= 1


def _tx_life(view: View) -> Iterator[tuple[Sent | None, Responses | None]]:
    """TX frames and responses in their order."""
    life: list[tuple[int, Sent | None, Responses | None]] = [(sent.at, sent, None) for sent in view.sent]
    life += [(at, None, responses) for at, responses in view.all(Responses) if responses.ring == "tx"]
    for _, sent, responses in sorted(life, key=lambda entry: entry[0]):
        yield sent, responses


def _pages(view: View, ring: Ring) -> Iterator[Page]:
    return (page for _, page in view.all(Page) if page.ring == ring)


@rule("tx.granted", "grant_table.h: the backend copies from granted pages")
def _(view: View) -> Occasions:
    """The backend may read the page of every TX request."""
    for page in _pages(view, "tx"):
        yield page.status == 0, f"TX {page.queue}:{page.index}: gref {page.gref}, GNTST {page.status}"


@rule(
    "tx.granted-readonly",
    "xen-netfront grants TX pages read-only: a backend could change them",
    level=Level.SHOULD,
)
def _(view: View) -> Occasions:
    """The backend may not write to the page of a TX request."""
    for page in _pages(view, "tx"):
        if page.status == 0 and page.writable is not None:
            word = "writable" if page.writable else "read-only"
            yield not page.writable, f"TX {page.queue}:{page.index}: gref {page.gref} is {word}"


def _unchanged(view: View, what: str) -> Occasions:
    answered = any(responses.ring == "tx" for _, responses in view.all(Responses))
    for _, changed in view.all(Changed):
        if changed.what == what:
            yield False, f"TX {changed.queue}:{changed.index}: the {what} changed before the response"
    if answered:
        yield True, f"the {what} stayed until the response"


@rule("tx.buffer-stays", "netif.h: the backend may read a page until it responds")
def _(view: View) -> Occasions:
    """A frame's bytes do not change before its response."""
    yield from _unchanged(view, "data")


@rule("tx.grant-stays", "netif.h: the backend may read a page until it responds")
def _(view: View) -> Occasions:
    """A frame's grants do not end before its response."""
    yield from _unchanged(view, "grant")


@rule("tx.extra-types", "netif.h, XEN_NETIF_EXTRA_TYPE_*; xen-netback xenvif_get_extras: fatal")
def _(view: View) -> Occasions:
    """Extra infos have a type that netif.h defines for TX."""
    known = {int(kind) for kind in ExtraType} - {ExtraType.NONE, ExtraType.XDP}
    for sent in view.sent:
        for extra in sent.chain.extras:
            yield extra[0] in known, f"{sent}: extra of type {extra[0]}"


@rule("tx.extra-once", "netif.h: an extra info per type", level=Level.SHOULD)
def _(view: View) -> Occasions:
    """A frame has at most one extra info of each type."""
    for sent in view.sent:
        if sent.chain.extras:
            kinds = [extra[0] for extra in sent.chain.extras]
            yield len(set(kinds)) == len(kinds), f"{sent}: extras of types {kinds}"


@rule(
    "tx.multicast-offered",
    "netif.h, feature-multicast-control",
    when=lambda profile: not profile.offers(Key.MULTICAST),
)
def _(view: View) -> Occasions:
    """Changes of the multicast list are sent only where the backend offers feature-multicast-control."""
    if not view.offers(Key.MULTICAST):
        for sent in view.sent:
            yield not sent.chain.multicast, f"{sent}: {'MCAST extra' if sent.chain.multicast else 'a frame'}"


@rule(
    "tx.multicast-address",
    "netif.h: the extra carries a multicast address",
    level=Level.SHOULD,
    when=_offers(Key.MULTICAST),
)
def _(view: View) -> Occasions:
    """The address of a change of the multicast list is a multicast address."""
    for sent in view.sent:
        for extra in sent.chain.extras:
            if extra[0] in (ExtraType.MCAST_ADD, ExtraType.MCAST_DEL):
                yield bool(extra[2] & 1), f"{sent}: {extra[2:8].hex(':')}"


@rule("tx.hash", "netif.h, XEN_NETIF_EXTRA_TYPE_HASH", level=Level.SHOULD, when=_offers(Key.CTRL_RING))
def _(view: View) -> Occasions:
    """A hash extra has a type that netif.h defines, and Toeplitz as its algorithm."""
    for sent in view.sent:
        for extra in sent.chain.extras:
            if extra[0] == ExtraType.HASH:
                yield extra[2] < 4 and extra[3] == 1, f"{sent}: hash type {extra[2]}, algorithm {extra[3]}"


# ---- TX offloads


def _segmented(view: View) -> Iterator[tuple[Sent, int, int]]:
    for sent in view.frames:
        if sent.chain.gso is not None:
            yield sent, sent.chain.gso.size, sent.chain.gso.type


@rule("tx.gso-known", "netif.h; xen-netback xenvif_set_skb_gso: fatal")
def _(view: View) -> Occasions:
    """A GSO extra has type TCPv4 or TCPv6 and a size that is not 0."""
    for sent, size, kind in _segmented(view):
        yield size > 0 and kind in (GsoType.TCPV4, GsoType.TCPV6), f"{sent}: GSO type {kind}, size {size}"


@rule("tx.gso-offered", "netif.h, feature-gso-tcpv4 and feature-gso-tcpv6")
def _(view: View) -> Occasions:
    """GSO frames are of types that the backend offers."""
    keys = {int(GsoType.TCPV4): Key.GSO_TCPV4, int(GsoType.TCPV6): Key.GSO_TCPV6}
    for sent, _, kind in _segmented(view):
        if kind in keys:
            yield view.offers(keys[kind]), f"{sent}: GSO type {kind}, {keys[kind]} {view.offers(keys[kind])}"


@rule("tx.gso-blank", "xen-netback xenvif_tx_submit counts rx_gso_checksum_fixup", level=Level.SHOULD)
def _(view: View) -> Occasions:
    """A GSO frame has csum_blank."""
    for sent, _, _ in _segmented(view):
        yield bool(sent.chain.flags & TxFlag.CSUM_BLANK), f"{sent}: flags {sent.chain.flags!r}"


@rule("tx.gso-protocol", "netif.h: GSO of TCP over IPv4 or IPv6")
def _(view: View) -> Occasions:
    """A GSO frame is TCP, over the IP version of its type."""
    for sent, _, kind in _segmented(view):
        if sent.frame is not None and kind in (GsoType.TCPV4, GsoType.TCPV6):
            found = sent.transport
            wanted = (4 if kind == GsoType.TCPV4 else 6, TCP)
            seen = None if found is None else (found.version, found.protocol)
            yield seen == wanted, f"{sent}: GSO type {kind}, (IP version, protocol) {seen}"


@rule("tx.gso-longer", "netif.h: the size is that of a segment's payload", level=Level.SHOULD)
def _(view: View) -> Occasions:
    """A GSO frame is longer than one segment."""
    for sent, size, _ in _segmented(view):
        yield sent.chain.total > size, f"{sent}: {sent.chain.total} bytes, segments of {size}"


def _blank(view: View, version: int) -> Iterator[Sent]:
    for sent in view.frames:
        found = sent.transport
        if sent.chain.flags & TxFlag.CSUM_BLANK and found is not None and found.version == version:
            yield sent


@rule("tx.blank4-offered", "netif.h, feature-no-csum-offload")
def _(view: View) -> Occasions:
    """Frames over IPv4 have csum_blank only if the backend has no feature-no-csum-offload."""
    for sent in _blank(view, 4):
        yield (
            not view.offers(Key.NO_CSUM),
            f"{sent}: csum_blank, feature-no-csum-offload {view.offers(Key.NO_CSUM)}",
        )


@rule("tx.blank6-offered", "netif.h, feature-ipv6-csum-offload", when=lambda p: not p.offers(Key.IPV6_CSUM))
def _(view: View) -> Occasions:
    """Frames over IPv6 have csum_blank only if the backend offers feature-ipv6-csum-offload."""
    for sent in _blank(view, 6):
        offered = view.offers(Key.IPV6_CSUM)
        yield offered, f"{sent}: csum_blank, feature-ipv6-csum-offload {offered}"


@rule("tx.blank-protocol", "netif.h: the checksum of TCP or UDP")
def _(view: View) -> Occasions:
    """A frame with csum_blank is TCP or UDP."""
    for sent in view.frames:
        if sent.chain.flags & TxFlag.CSUM_BLANK and sent.frame is not None:
            kind = f"ethertype {sent.frame[12:14].hex()}"
            yield sent.transport is not None, f"{sent}: {kind}"


@rule("tx.blank-pseudo", "netif.h; xen-netback checksum_setup: the field holds the pseudo-header's sum")
def _(view: View) -> Occasions:
    """The checksum field of a frame with csum_blank holds the sum of its pseudo-header."""
    for sent in view.frames:
        found = sent.transport
        if sent.chain.flags & TxFlag.CSUM_BLANK and found is not None and sent.frame is not None:
            state = checksum_state(sent.frame, found)
            yield state == "pseudo", f"{sent}: the checksum field is {state}"


@rule(
    "tx.blank-validated",
    "netif.h: csum_blank with data_validated, as xen-netfront sends it",
    level=Level.SHOULD,
)
def _(view: View) -> Occasions:
    """A frame with csum_blank has data_validated, too."""
    for sent in view.frames:
        if sent.chain.flags & TxFlag.CSUM_BLANK:
            yield bool(sent.chain.flags & TxFlag.DATA_VALIDATED), f"{sent}: flags {sent.chain.flags!r}"


@rule("tx.checksum", "RFC 9293, RFC 768: no other part completes it", level=Level.SHOULD)
def _(view: View) -> Occasions:
    """A TCP or UDP frame without csum_blank and GSO has its checksum."""
    for sent in view.frames:
        found = sent.transport
        whole = sent.chain.gso is None and not sent.chain.flags & TxFlag.CSUM_BLANK
        if whole and found is not None and sent.frame is not None:
            state = checksum_state(sent.frame, found)
            yield state in ("right", "none"), f"{sent}: the checksum is {state}"


@rule("tx.mtu", "the backend's link has an MTU of 1500 (no key mtu)", level=Level.SHOULD)
def _(view: View) -> Occasions:
    """A frame without GSO has at most 1518 bytes."""
    for sent in view.frames:
        if sent.chain.gso is None:
            yield sent.chain.total <= MTU_FRAME, f"{sent}: {sent.chain.total} bytes"


@rule("tx.source", "the toolstack's key mac", level=Level.SHOULD)
def _(view: View) -> Occasions:
    """The source of a frame is the device's address."""
    for sent in view.frames:
        if sent.frame is not None and len(sent.frame) >= ETH_HLEN:
            source = sent.frame[6:12].hex(":")
            yield source == view.seen.mac, f"{sent}: from {source}"


@rule("tx.goes-on", "netif.h: ERROR and DROPPED are the frame's fate, not the ring's", when=_has("late"))
def _(view: View) -> Occasions:
    """After responses ERROR and DROPPED, out of order and late, the frontend goes on sending."""
    failed = [
        at
        for at, responses in view.all(Responses)
        if responses.ring == "tx" and any(TX_RESPONSE.unpack(slot)[1] < 0 for slot in responses.slots)
    ]
    asked = [at for at, frame in view.all(Frame) if frame.form == "echo" and frame.posted]
    if failed and any(at > failed[0] for at in asked):
        later = sum(sent.at > failed[0] for sent in view.sent)
        yield later > 0, f"{later} frames after the first refusal"


# ---- RX


@rule("rx.posts", "netif.h: the backend can give a frame only to a posted buffer")
def _(view: View) -> Occasions:
    """Every queue posts RX buffers within the time limit."""
    outcome = view.step("post")
    if outcome is not None and outcome != "left":
        yield outcome == "done", f"{len(view.posted)} buffers"


@rule("rx.enough", "netif.h: a frame may take 18 slots and its extra infos", level=Level.SHOULD)
def _(view: View) -> Occasions:
    """With feature-sg a queue posts at least 18 buffers before its first frame."""
    if view.keys.get(Key.SG) == "1" and view.step("post") == "done":
        first = next((at for at, _ in view.all(Frame)), len(view.seen.events))
        for opened in view.opened("rx"):
            count = sum(request.queue == opened.queue and request.at < first for request in view.posted)
            yield count >= MIN_SLOTS, f"queue {opened.queue}: {count} buffers"


def _rx_life(view: View) -> Iterator[tuple[RxRequest, list[RxRequest]]]:
    """Each posted buffer, with those that wait in its queue then."""
    waiting: dict[int, dict[int, RxRequest]] = {}
    for request in view.posted:
        mine = waiting.setdefault(request.queue, {})
        for index in [i for i in mine if view.answered.get(("rx", request.queue, i), WRAP) < request.at]:
            del mine[index]
        yield request, [*mine.values()]
        mine[request.slot] = request


@rule("rx.ids", "netif.h: a response names its request by id")
def _(view: View) -> Occasions:
    """The ids of posted buffers differ."""
    for request, others in _rx_life(view):
        yield all(request.id != other.id for other in others), f"{request}: id {request.id}"


@rule("rx.pages-differ", "netif.h: each buffer is a page that the backend fills")
def _(view: View) -> Occasions:
    """No page is posted twice."""
    for request, others in _rx_life(view):
        yield all(request.gref != other.gref for other in others), f"{request}: gref {request.gref}"


@rule("rx.not-a-ring", "grant_table.h: the backend would overwrite the ring")
def _(view: View) -> Occasions:
    """No posted buffer is a ring's page."""
    rings = {opened.gref for opened in view.opened("tx", "rx", "ctrl")}
    for request in view.posted:
        yield request.gref not in rings, f"{request}: gref {request.gref}"


@rule("rx.granted", "grant_table.h: the backend writes into posted pages")
def _(view: View) -> Occasions:
    """The backend may write to every posted page."""
    for page in _pages(view, "rx"):
        yield page.status == 0, f"RX {page.queue}:{page.index}: gref {page.gref}, GNTST {page.status}"


@rule("rx.padding", "netif.h, netif_rx_request: pad", level=Level.SHOULD)
def _(view: View) -> Occasions:
    """The unused half-word of an RX request is 0."""
    for request in view.posted:
        yield request.pad == 0, f"{request}: pad {request.pad:#x}"


@rule("rx.posts-again", "netif.h: frames go on as buffers come back")
def _(view: View) -> Occasions:
    """Buffers are posted again: more frames pass than the ring has slots."""
    outcome = view.step("burst")
    if outcome is not None and outcome != "left":
        yield outcome == "done", f"{len(view.posted)} buffers posted in all, then {outcome}"


@rule("rx.asks", "ring.h, RING_FINAL_CHECK_FOR_RESPONSES: rsp_event is behind the last response")
def _(view: View) -> Occasions:
    """At rest the RX ring asks for an event with the next response."""
    used = {responses.queue for _, responses in view.all(Responses) if responses.ring == "rx"}
    for _, at_rest in view.all(Indices):
        if at_rest.ring == "rx" and at_rest.queue in used and at_rest.quiet:
            _, _, rsp_prod, rsp_event = at_rest.header
            ahead = (rsp_event - rsp_prod) % WRAP
            yield 0 < ahead <= 256, f"queue {at_rest.queue}: rsp_event {rsp_event}, rsp_prod {rsp_prod}"


def _consumes(view: View, forms: tuple[str, ...]) -> Occasions:
    for at, frame in view.all(Frame):
        if frame.form in forms and frame.posted and at < view.begin("burst"):
            yield (
                frame.consumed,
                f"{frame.form} of {frame.slots} slots {'' if frame.consumed else 'not '}consumed",
            )


@rule("rx.consumes", "ring.h: the frontend looks at responses when an event comes")
def _(view: View) -> Occasions:
    """The frontend takes plain frames, from 14 to 1514 bytes."""
    yield from _consumes(
        view, ("arp", "neighbour", "echo", "shortest", "longest", "tcp", "broadcast", "validated")
    )


@rule("rx.takes-slots", "netif.h, feature-sg of the frontend", when=_frames("two-slots"))
def _(view: View) -> Occasions:
    """A frontend with feature-sg takes frames of several slots."""
    yield from _consumes(view, ("two-slots", "many-slots"))


@rule(
    "rx.takes-blank",
    "netif.h, feature-no-csum-offload and feature-ipv6-csum-offload",
    when=_frames("udp-blank"),
)
def _(view: View) -> Occasions:
    """The frontend takes frames with csum_blank of the IP versions for which its keys allow them."""
    yield from _consumes(view, ("udp-blank", "tcp-blank", "udp6-blank"))


@rule(
    "rx.takes-gso", "netif.h, feature-gso-tcpv4 and feature-gso-tcpv6 of the frontend", when=_frames("gso4")
)
def _(view: View) -> Occasions:
    """The frontend takes GSO frames, with an extra info, of the types that it asks for."""
    yield from _consumes(view, ("gso4", "gso6"))


@rule("rx.takes-hash", "netif.h, XEN_NETIF_EXTRA_TYPE_HASH of RX", when=_offers(Key.CTRL_RING))
def _(view: View) -> Occasions:
    """A frontend that selected a hash takes frames with an extra info that carries it."""
    yield from _consumes(view, ("hashed",))


@rule("rx.content", "netif.h: offset and status bound a slot's bytes")
def _(view: View) -> Occasions:
    """A frame of the test's own ethertype that the guest returns carries what was sent to it."""
    local = bytes.fromhex("88b5")
    before = {frame.data[14:] for _, frame in view.all(Frame) if frame.data[12:14] == local}
    for sent in view.frames:
        frame = sent.frame
        if frame is not None and frame[12:14] == local and len(frame) > 60 and before:
            yield frame[14:] in before, f"{sent}: {len(frame)} bytes"


@rule("rx.survives-error", "netif.h: a negative status is the buffer's fate", when=_has("rx_errors"))
def _(view: View) -> Occasions:
    """After an RX response ERROR the frontend takes further frames."""
    outcome = view.step("rx-error")
    if outcome is not None:
        end = next((at for at, frame in view.all(Frame) if at > view.begin("rx-error")), None)
        taken = [frame.consumed for at, frame in view.all(Frame) if at == end]
        yield outcome == "done" and all(taken), f"after ERROR: {outcome}, next frame taken {taken}"


@rule(
    "life.returns",
    "docs/decisions.md, Resume: a backend may be replaced while the rings stay",
    when=_has("restarts"),
)
def _(view: View) -> Occasions:
    """A backend that unbinds and unmaps, and returns to the same rings, finds the frontend as it was."""
    outcome = view.step("return")
    if outcome is not None:
        began = view.begin("return")
        taken = [frame.consumed for at, frame in view.all(Frame) if began < at < view.begin("again")]
        yield outcome == "done" and all(taken), f"after the return: {outcome}, next frame taken {taken}"


@rule("life.stays", "xenbus.h: the frontend leaves by Closing")
def _(view: View) -> Occasions:
    """Until an end closes, the frontend takes frames: the last one of the drive, too."""
    if view.step("again") is not None:
        began = view.begin("again")
        taken = [frame.consumed for at, frame in view.all(Frame) if at > began]
        yield view.step("again") == "left" or (bool(taken) and all(taken)), f"the last frame taken {taken}"


# ---- control ring


class _Asked(NamedTuple):
    """A control request, with what the frontend had selected before it."""

    ident: int
    kind: int
    data: tuple[int, int, int]
    status: int
    algorithm: int
    mapping: int
    """Entries."""

    @property
    def needs_algorithm(self) -> bool:
        return self.kind in (CtrlType.GET_HASH_FLAGS, CtrlType.SET_HASH_FLAGS)

    @property
    def invalid(self) -> bool:
        """Whether a backend has to refuse it, for which there are rules of their own."""
        long_key = self.kind == CtrlType.SET_HASH_KEY and self.data[1] > MAX_KEY
        outside = self.kind == CtrlType.SET_HASH_MAPPING and self.data[1] + self.data[2] > self.mapping
        return long_key or outside or (self.needs_algorithm and not self.algorithm)


def _controls(view: View) -> Iterator[_Asked]:
    algorithm = mapping = 0
    for _, event in view.all(Control):
        ident, kind, *data = CTRL_REQUEST.unpack(event.request)
        yield _Asked(ident, kind, (data[0], data[1], data[2]), event.status, algorithm, mapping)
        if kind == CtrlType.SET_HASH_ALGORITHM and event.status == CtrlStatus.SUCCESS:
            algorithm = data[0]
        if kind == CtrlType.SET_HASH_MAPPING_SIZE and event.status == CtrlStatus.SUCCESS:
            mapping = data[0]


_CONTROL = _offers(Key.CTRL_RING)


@rule("ctrl.types", "netif.h, XEN_NETIF_CTRL_TYPE_*", when=_CONTROL)
def _(view: View) -> Occasions:
    """Control requests have a type that netif.h defines."""
    known = {int(kind) for kind in CtrlType} - {CtrlType.INVALID}
    for asked in _controls(view):
        yield asked.kind in known, f"request {asked.ident}: type {asked.kind}"


@rule("ctrl.algorithm-first", "netif.h: flags depend on the algorithm", when=_CONTROL)
def _(view: View) -> Occasions:
    """An algorithm is selected before the types of hashes are asked for or set."""
    for asked in _controls(view):
        if asked.needs_algorithm:
            what = f"type {asked.kind} with algorithm {asked.algorithm}"
            yield asked.algorithm != 0, f"request {asked.ident}: {what}"


@rule("ctrl.key-size", "netif.h, SET_HASH_KEY: 40 octets are enough for Toeplitz", when=_CONTROL)
def _(view: View) -> Occasions:
    """A hash key has at most 40 octets."""
    for asked in _controls(view):
        if asked.kind == CtrlType.SET_HASH_KEY:
            yield asked.data[1] <= MAX_KEY, f"request {asked.ident}: {asked.data[1]} octets"


@rule("ctrl.mapping-bounds", "XSA-270; netif.h, SET_HASH_MAPPING", when=_CONTROL)
def _(view: View) -> Occasions:
    """A part of the mapping lies in the mapping's size."""
    for asked in _controls(view):
        if asked.kind == CtrlType.SET_HASH_MAPPING:
            _, count, offset = asked.data
            what = f"{count} entries at {offset} of {asked.mapping}"
            yield count + offset <= asked.mapping, f"request {asked.ident}: {what}"


@rule("ctrl.accepted", "netif.h, Control messages", level=Level.SHOULD, when=_CONTROL)
def _(view: View) -> Occasions:
    """A backend that knows every request accepts each one that breaks no other rule."""
    for asked in _controls(view):
        if asked.kind in set(CtrlType) - {CtrlType.INVALID} and not asked.invalid:
            what = f"type {asked.kind}, {list(asked.data)}: status {asked.status}"
            yield asked.status == CtrlStatus.SUCCESS, f"request {asked.ident}: {what}"


# ---- the end


@rule("close.follows", "xenbus.h; xen-netfront netback_changed: Closing is answered")
def _(view: View) -> Occasions:
    """The frontend reaches Closed within the time limit after the backend's Closing."""
    outcome = view.step("close")
    if outcome is not None:
        end = [at for at, step in view.all(Step) if step.name == "close"][-1]
        before = [value for at, value in view.states(FRONT) if at < end]
        yield outcome == "done", f"state {before[-1] if before else 'none'} at the time limit or before"


@rule("close.by-closing", "xenbus.h: Closing, then Closed", level=Level.SHOULD)
def _(view: View) -> Occasions:
    """A frontend that closes by itself goes through Closing."""
    back = view.reached(BACK, State.CLOSING)
    own = view.reached(FRONT, State.CLOSING, State.CLOSED)
    if view.is_connected and own is not None and (back is None or own < back):
        first = next(value for at, value in view.states(FRONT) if at == own)
        yield first == str(int(State.CLOSING)), f"state {first} after Connected"


@rule("close.finishes", "xenbus.h: Closing leads to Closed")
def _(view: View) -> Occasions:
    """A frontend that begins to close reaches Closed."""
    if view.is_connected and view.step("leave") is not None:
        closed = view.reached(FRONT, State.CLOSED) is not None
        gone = any(event.domid == view.seen.domid for _, event in view.all(Ended))
        began = view.reached(FRONT, State.CLOSING) is not None
        if began:
            yield closed, "Closed" if closed else f"Closing at the end{', the domain ended' if gone else ''}"


@rule("close.grants", "grant_table.h: a leak of grants ends with none left", level=Level.SHOULD)
def _(view: View) -> Occasions:
    """After both ends are Closed the frontend grants nothing any more."""
    closed = view.reached(FRONT, State.CLOSED)
    for at, event in view.all(Remains):
        if closed is not None and closed < at:
            yield event.grants == 0, f"{event.grants} grants"


@rule("close.ports", "event_channel.h: a leak of ports ends with none left", level=Level.SHOULD)
def _(view: View) -> Occasions:
    """After both ends are Closed the frontend has closed the event channels of its rings."""
    closed = view.reached(FRONT, State.CLOSED)
    for at, event in view.all(Remains):
        if closed is not None and closed < at:
            yield not event.ports, f"ports {event.ports}"
