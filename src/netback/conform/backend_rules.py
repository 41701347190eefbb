# SPDX-License-Identifier: Apache-2.0
"""What a backend must do, as one table in the form of rules.py, over the answers that it gave (answers.py). Pure."""

from collections.abc import Iterator

from netback.abi.netif import MAX_DATA_SLOTS, RX_REQUEST, RX_RESPONSE, TX_REQUEST, TX_RESPONSE, RxFlag, Status
from netback.abi.netif_control import CTRL_REQUEST, CTRL_RESPONSE, CtrlStatus, CtrlType
from netback.abi.netif_keys import Key
from netback.abi.ring import PAGE_SIZE
from netback.abi.xenbus import XenbusState as State
from netback.conform.answers import BackendSeen, Case
from netback.conform.rule import Level, Occasions, Rules

RULES: Rules[BackendSeen] = Rules()
rule = RULES.rule

_KNOWN = {int(status) for status in Status}


def _cases(seen: BackendSeen, *names: str) -> Iterator[Case]:
    return (case for case in seen.cases if not names or case.name in names)


def _statuses(case: Case) -> list[int]:
    return [TX_RESPONSE.unpack(slot)[1] for slot in case.responses]


# ---- the offer


@rule("offer.rx-copy", "netif.h; xen-netfront refuses a backend without")
def _(seen: BackendSeen) -> Occasions:
    """feature-rx-copy is 1 at InitWait."""
    yield seen.offer.get(Key.RX_COPY) == "1", f"feature-rx-copy {seen.offer.get(Key.RX_COPY)!r}"


@rule("offer.booleans", "netif.h: features are 0 or 1")
def _(seen: BackendSeen) -> Occasions:
    """Every feature key is 0 or 1."""
    for key, value in seen.offer.items():
        if key.startswith("feature-"):
            yield value in ("0", "1"), f"{key} {value!r}"


@rule("offer.queues", "netif.h, multi-queue-max-queues")
def _(seen: BackendSeen) -> Occasions:
    """multi-queue-max-queues, if it exists, is a decimal number from 1 on."""
    value = seen.offer.get(Key.MAX_QUEUES)
    if value is not None:
        yield value.isdecimal() and int(value) > 0, f"multi-queue-max-queues {value!r}"


@rule("offer.first", "xenbus.h: a frontend reads the features once, at InitWait")
def _(seen: BackendSeen) -> Occasions:
    """The features do not change after InitWait."""
    for key, value in seen.offer.items():
        if key.startswith("feature-"):
            yield seen.later.get(key) == value, f"{key} {value!r}, later {seen.later.get(key)!r}"


@rule("offer.gso-needs-sg", "netif.h: segmented frames have several slots", level=Level.SHOULD)
def _(seen: BackendSeen) -> Occasions:
    """GSO is offered together with feature-sg."""
    for key in (Key.GSO_TCPV4, Key.GSO_TCPV6):
        if seen.offer.get(key) == "1":
            yield seen.offer.get(Key.SG) == "1", f"{key} with feature-sg {seen.offer.get(Key.SG)!r}"


# ---- states


@rule("state.connects", "xenbus.h: Connected answers Connected")
def _(seen: BackendSeen) -> Occasions:
    """The backend is Connected within the time limit after the frontend."""
    yield seen.connected, f"states {', '.join(seen.states)}"


@rule("state.values", "xenbus.h, XenbusState")
def _(seen: BackendSeen) -> Occasions:
    """Every state of the backend is one of xenbus.h's numbers."""
    for value in seen.states:
        yield State.parse(value) is not State.UNKNOWN, f"state {value!r}"


@rule(
    "state.by-closing",
    "win-xenvif takes a backend that skips Closing for surprise removal",
    level=Level.SHOULD,
)
def _(seen: BackendSeen) -> Occasions:
    """The backend goes from Connected to Closed by way of Closing."""
    for before, after in zip(seen.states, seen.states[1:], strict=False):
        if after == str(int(State.CLOSED)):
            yield before != str(int(State.CONNECTED)), f"state {before} to {after}"


@rule("state.closes", "xenbus.h; libxl waits ten seconds for Closed")
def _(seen: BackendSeen) -> Occasions:
    """After the frontend's Closing and Closed the backend reaches Closed within the time limit."""
    if seen.connected:
        yield seen.closed, f"states {', '.join(seen.states)}"


@rule("state.returns", "xenbus.h: a frontend that is Initialising again wants the device again")
def _(seen: BackendSeen) -> Occasions:
    """After Closed, a frontend that writes Initialising gets InitWait, and can connect again."""
    if seen.closed:
        yield seen.returned, f"states {', '.join(seen.states)}"


@rule("state.unmaps", "grant_table.h: the frontend cannot end a grant that is mapped")
def _(seen: BackendSeen) -> Occasions:
    """At Closed the backend has unmapped the rings."""
    if seen.closed and seen.rings_in_use >= 0:
        yield seen.rings_in_use == 0, f"{seen.rings_in_use} ring pages mapped"


# ---- TX


@rule("tx.answers", "netif.h: a response for each slot, extras included")
def _(seen: BackendSeen) -> Occasions:
    """Every TX slot gets a response within the time limit."""
    for case in _cases(seen):
        yield (
            len(case.responses) == len(case.requests),
            (f"{case.name}: {len(case.responses)} responses to {len(case.requests)} slots"),
        )


@rule("tx.not-more", "ring.h; XSA-376: xen-netfront disables itself")
def _(seen: BackendSeen) -> Occasions:
    """rsp_prod never runs ahead of req_prod."""
    for case in _cases(seen):
        yield case.ahead == 0, f"{case.name}: {case.ahead} responses too many"


@rule("tx.ids", "netif.h; XSA-376: each id once, of a request that waits")
def _(seen: BackendSeen) -> Occasions:
    """The responses' ids are those of the requests, each once."""
    for case in _cases(seen):
        pairs = [TX_RESPONSE.unpack(slot) for slot in case.responses]
        found = sorted(ident for ident, status in pairs if status != Status.NULL)
        extras = case.name in ("segments", "multicast")
        data = case.requests[:1] if extras else case.requests[: len(case.responses)]
        wanted = sorted(TX_REQUEST.unpack(slot)[3] for slot in data)
        if case.responses:
            yield found == wanted, f"{case.name}: ids {found[:4]} for {wanted[:4]}"


@rule("tx.statuses", "netif.h, NETIF_RSP_*")
def _(seen: BackendSeen) -> Occasions:
    """A response's status is one of netif.h's."""
    for case in _cases(seen):
        for status in _statuses(case):
            yield status in _KNOWN, f"{case.name}: status {status}"


def _all(seen: BackendSeen, names: tuple[str, ...], wanted: int) -> Occasions:
    for case in _cases(seen, *names):
        statuses = _statuses(case)
        if statuses:
            yield set(statuses) == {wanted}, f"{case.name}: statuses {statuses[:4]}"


@rule("tx.okay", "netif.h: OKAY for a frame that was taken")
def _(seen: BackendSeen) -> Occasions:
    """A good frame in one slot is answered OKAY."""
    yield from _all(seen, ("frame", "burst", "after all", "one after the other"), Status.OKAY)


@rule("tx.slots", "netif.h, feature-sg and XEN_NETIF_NR_SLOTS_MIN")
def _(seen: BackendSeen) -> Occasions:
    """A backend with feature-sg takes frames of 2 and of 18 slots."""
    yield from _all(seen, ("two slots", "eighteen slots"), Status.OKAY)


@rule("tx.empty-slot", "XSA-448")
def _(seen: BackendSeen) -> Occasions:
    """A slot of no bytes in a good frame is answered, and harms nothing."""
    for case in _cases(seen, "empty slot"):
        yield case.alive and len(case.responses) == len(case.requests), f"statuses {_statuses(case)}"


@rule("tx.short", "xen-netback xenvif_tx_build_gops: ERROR below 14 bytes")
def _(seen: BackendSeen) -> Occasions:
    """A frame of 13 bytes is answered ERROR or DROPPED."""
    for case in _cases(seen, "short"):
        for status in _statuses(case):
            yield status in (Status.ERROR, Status.DROPPED), f"status {status}"


@rule("tx.no-grant", "grant_table.h; XSA-367: never a byte whose copy failed")
def _(seen: BackendSeen) -> Occasions:
    """A frame whose page is not granted is answered ERROR or DROPPED."""
    for case in _cases(seen, "no grant"):
        for status in _statuses(case):
            yield status in (Status.ERROR, Status.DROPPED), f"status {status}"


@rule("tx.stays", "netif.h: ERROR is a frame's fate, not the connection's")
def _(seen: BackendSeen) -> Occasions:
    """The backend stays Connected through frames that it refuses."""
    for case in _cases(seen):
        yield case.alive, f"{case.name}: {'Connected' if case.alive else 'left'}"


@rule("tx.extras-null", "netif.h: the slot of an extra info is answered NULL")
def _(seen: BackendSeen) -> Occasions:
    """The slot of an extra info is answered NULL."""
    for case in _cases(seen, "segments", "multicast"):
        statuses = _statuses(case)
        if len(statuses) == 2:
            yield statuses[1] == Status.NULL, f"{case.name}: statuses {statuses}"


@rule("tx.multicast", "netif.h, feature-multicast-control")
def _(seen: BackendSeen) -> Occasions:
    """A backend with feature-multicast-control answers MCAST_ADD with OKAY."""
    for case in _cases(seen, "multicast"):
        yield _statuses(case)[:1] == [Status.OKAY], f"statuses {_statuses(case)}"


@rule("tx.zeroed", "XSA-216: a response has no stale bytes", level=Level.SHOULD)
def _(seen: BackendSeen) -> Occasions:
    """The bytes of a TX slot behind its response hold nothing but zeros or the request's own."""
    for case in _cases(seen):
        for request, response in zip(case.requests, case.responses, strict=False):
            rest = response[4:]
            yield not any(rest) or rest == request[4:], f"{case.name}: {rest.hex()}"


@rule("tx.notifies", "ring.h, RING_PUSH_RESPONSES_AND_CHECK_NOTIFY")
def _(seen: BackendSeen) -> Occasions:
    """A push of responses that passes rsp_event is followed by an event."""
    for case in _cases(seen):
        if case.asked and len(case.responses) == len(case.requests):
            yield case.notified, f"{case.name}: {'an event' if case.notified else 'no event'}"


@rule("tx.silent", "ring.h; XSA-391: events that nothing asked for", level=Level.SHOULD)
def _(seen: BackendSeen) -> Occasions:
    """A push of responses that does not pass rsp_event is followed by no event."""
    for case in _cases(seen, "unasked"):
        yield not case.notified, "an event came" if case.notified else "no event"


@rule("tx.unmaps", "XSA-396: xen-netfront checks that a grant is free when the response comes")
def _(seen: BackendSeen) -> Occasions:
    """The backend has unmapped a frame's pages when the response is there."""
    for case in _cases(seen):
        if case.in_use >= 0:
            yield case.in_use == 0, f"{case.name}: {case.in_use} pages mapped"


@rule("tx.arms", "ring.h, RING_FINAL_CHECK_FOR_REQUESTS")
def _(seen: BackendSeen) -> Occasions:
    """At rest req_event asks for an event with the next TX request."""
    for case in _cases(seen):
        if case.alive and len(case.responses) == len(case.requests):
            yield case.armed == 1, f"{case.name}: req_event {case.armed:+d} from req_prod"


# ---- RX


@rule("rx.same-slot", "netif.h: an RX response lies in its request's slot, with its id")
def _(seen: BackendSeen) -> Occasions:
    """An RX response has the id of the request in its slot."""
    for frame in seen.received:
        extras = bool(RX_RESPONSE.unpack(frame.responses[0])[2] & RxFlag.EXTRA_INFO)
        for number, (request, response) in enumerate(zip(frame.requests, frame.responses, strict=True)):
            if not (extras and number == 1):
                wanted, found = RX_REQUEST.unpack(request)[0], RX_RESPONSE.unpack(response)[0]
                yield wanted == found, f"slot {number}: id {found} for {wanted}"


@rule("rx.in-page", "netif.h: offset and status lie in the page")
def _(seen: BackendSeen) -> Occasions:
    """A slot's bytes lie in its page."""
    for frame in seen.received:
        _, offset, _, status = RX_RESPONSE.unpack(frame.responses[0])
        yield offset + max(status, 0) <= PAGE_SIZE, f"offset {offset}, {status} bytes"


@rule("rx.flags", "netif.h, NETRXF_*")
def _(seen: BackendSeen) -> Occasions:
    """RX responses have no flags that netif.h does not define."""
    for frame in seen.received:
        flags = RX_RESPONSE.unpack(frame.responses[0])[2]
        yield not flags & ~0x1F, f"flags {flags:#x}"


@rule(
    "rx.slots", "netif.h, XEN_NETIF_NR_SLOTS_MIN; xen-netfront drops frames of more slots", level=Level.SHOULD
)
def _(seen: BackendSeen) -> Occasions:
    """A frame for the guest has at most 20 slots."""
    for frame in seen.received:
        yield len(frame.responses) <= MAX_DATA_SLOTS, f"{len(frame.responses)} slots"


@rule("rx.not-more", "ring.h; XSA-376: xen-netfront disables itself")
def _(seen: BackendSeen) -> Occasions:
    """The RX ring's rsp_prod never runs ahead of its req_prod."""
    if seen.received or seen.rx_ahead:
        yield seen.rx_ahead == 0, f"{seen.rx_ahead} responses too many"


@rule("rx.notifies", "ring.h, RING_PUSH_RESPONSES_AND_CHECK_NOTIFY")
def _(seen: BackendSeen) -> Occasions:
    """A push of RX responses that passes rsp_event is followed by an event."""
    for frame in seen.received:
        if frame.asked:
            yield frame.notified, "an event" if frame.notified else "no event"


@rule("rx.unmaps", "XSA-396: a grant is free when the response comes")
def _(seen: BackendSeen) -> Occasions:
    """The backend has unmapped a frame's pages when the response is there."""
    for frame in seen.received:
        if frame.in_use >= 0:
            yield frame.in_use == 0, f"{frame.in_use} pages mapped"


# ---- control ring


@rule("ctrl.answers", "netif.h, Control messages")
def _(seen: BackendSeen) -> Occasions:
    """A control request gets a response with its id and type."""
    for question in seen.questions:
        ident, kind, *_ = CTRL_REQUEST.unpack(question.request)
        found = CTRL_RESPONSE.unpack(question.response)[:2] if question.response else None
        yield found == (ident, kind), f"type {kind}: {found} for {(ident, kind)}"


@rule("ctrl.unknown", "netif.h, XEN_NETIF_CTRL_STATUS_NOT_SUPPORTED")
def _(seen: BackendSeen) -> Occasions:
    """A control request of an undefined type is answered NOT_SUPPORTED."""
    for question in seen.questions:
        kind = CTRL_REQUEST.unpack(question.request)[1]
        if kind not in set(CtrlType) and question.response:
            status = CTRL_RESPONSE.unpack(question.response)[2]
            yield status == CtrlStatus.NOT_SUPPORTED, f"type {kind}: status {status}"


# ---- what no backend can serve


@rule("fatal.one-device", "XSA-39, XSA-155: a hostile frontend harms its own device alone")
def _(seen: BackendSeen) -> Occasions:
    """After each chain that no backend can serve, the device can be connected again."""
    for outcome in seen.fatal:
        yield outcome.rpartition(": ")[2] in ("closed", "alive"), outcome


@rule(
    "fatal.closes", "XSA-39; xen-netback takes such a vif's carrier and leaves its state", level=Level.SHOULD
)
def _(seen: BackendSeen) -> Occasions:
    """At a req_prod that cannot be the backend ends the connection."""
    for outcome in seen.fatal:
        if outcome.startswith("req_prod"):
            yield not outcome.endswith("alive"), outcome
