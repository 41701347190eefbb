# SPDX-License-Identifier: Apache-2.0
"""For each rule a frontend that breaks just it. Those of the command's process are in test_process.py."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace

from netback.abi.netif import EXTRA_GSO, RX_REQUEST, TX_REQUEST, ExtraType, TxFlag
from netback.abi.netif_control import CtrlType, HashType
from netback.abi.netif_keys import Key
from netback.abi.xenbus import XenbusState as State
from netback.conform.drive import BURST
from netback.errors import PlatformError
from netback.frontend import FrontConfig, HashConfig
from netback.frontend.control import FrontControl
from netback.platforms.emulated import EmulatedDomain
from netback.xenstore.aio import StoreError
from tests.conform.scripted import WRAP, Deed, Honest, Slots

PLAIN = ("echo", "shortest", "longest")
FEW = ("longest",)
SPLIT = FrontConfig(split=True)
BASE = Deed(forms=FEW)
WAITED = replace(BASE, answer=2.0)
"""For what does not come."""
NEVER = 4000
"""A gref that nothing is granted at."""


def keys(profile: str = "strict", **changes: str | None) -> Deed:
    """Other keys; underscores for dashes, None removes one."""

    def change(nodes: dict[str, str]) -> dict[str, str]:
        wanted = nodes | {
            name.replace("_", "-"): value for name, value in changes.items() if value is not None
        }
        gone = {name.replace("_", "-") for name, value in changes.items() if value is None}
        return {key: value for key, value in wanted.items() if key not in gone}

    return replace(BASE, profile=profile, nodes=change)


def tx(
    change: Callable[[Honest, Slots, bytes], Slots],
    profile: str = "strict",
    forms: tuple[str, ...] = FEW,
    **more: object,
) -> Deed:
    """Another TX chain for the first frame of 1514 bytes."""
    return replace(BASE, profile=profile, forms=forms, tx=change, **more)  # type: ignore[arg-type]


def first(slots: Slots, **changes: int) -> Slots:
    """The chain with other fields in its first slot."""
    names = ("gref", "offset", "flags", "id", "size")
    fields = dict(zip(names, TX_REQUEST.unpack(slots[0]), strict=True)) | changes
    return [TX_REQUEST.pack(*(fields[name] for name in names)), *slots[1:]]


def flags_of(slots: Slots) -> int:
    return int.from_bytes(slots[0][6:8], "little")


def extra(slots: Slots, *extras: bytes) -> Slots:
    """The chain with these extras behind its first slot."""
    whole = [each.ljust(12, b"\0") for each in extras]
    return [*first(slots[:1], flags=flags_of(slots) | TxFlag.EXTRA_INFO), *whole, *slots[1:]]


def pieces(count: int, sizes: Callable[[int], list[int]]) -> Callable[[Honest, Slots, bytes], Slots]:
    """A frame in so many slots, all of the page of its first one."""

    def change(guest: Honest, slots: Slots, frame: bytes) -> Slots:
        gref = int.from_bytes(slots[0][:4], "little")
        lengths = sizes(len(frame))
        assert len(lengths) == count
        out = []
        for number, length in enumerate(lengths):
            more = TxFlag.MORE_DATA if number + 1 < count else 0
            out.append(guest.request(gref, int(more), len(frame) if number == 0 else length))
        return out

    return change


def equal(count: int) -> Callable[[int], list[int]]:
    return lambda total: [total - (count - 1) * 10] + [10] * (count - 1)


def gso(change: Callable[[Honest, Slots, bytes], Slots], **more: object) -> Deed:
    """Another chain for the GSO frame over IPv4."""
    return replace(BASE, forms=("gso4",), length=9054, tx=change, **more)  # type: ignore[arg-type]


def regso(slots: Slots, size: int, kind: int) -> Slots:
    return [slots[0], EXTRA_GSO.pack(ExtraType.GSO, 0, size, kind, 0, 0).ljust(12, b"\0"), *slots[2:]]


def blank(change: Callable[[Honest, Slots, bytes], Slots] | None = None, **more: object) -> Deed:
    """The frame of UDP over IPv4 whose checksum is blank."""
    chosen = {} if change is None else {"tx": change}
    return replace(BASE, **{"forms": ("udp-blank",), "length": 142, **chosen, **more})  # type: ignore[arg-type]


def stuck_at(
    wanted: Callable[[Honest, tuple[int, int, int, int]], bool], size: int = 1, **more: object
) -> Deed:
    """Leaves a frame that is `wanted` in the ring until more than `size` slots are answered."""

    def stuck(guest: Honest, first: tuple[int, int, int, int], waiting: int) -> bool:
        return wanted(guest, first) and waiting <= size

    return replace(BASE, stuck=stuck, **more)  # type: ignore[arg-type]


# ---- the domain and the store


async def _twice(guest: Honest) -> None:
    other = EmulatedDomain.join(guest.script.guest.domain._others._directory)  # type: ignore[attr-defined]
    guest.script.closes(other.close)


async def _dies(guest: Honest) -> None:
    await guest.script.guest.close()
    guest.done = True
    await asyncio.Event().wait()


async def _bad_path(guest: Honest) -> None:
    with suppress(StoreError):
        await guest.script.guest.store.write(f"{guest.script.path}/a+b", "1")


async def _writes_backend(guest: Honest) -> None:
    with suppress(StoreError):
        await guest.script.guest.store.write(f"{guest.script.backend_path}/state", "4")


async def _leaves_open(guest: Honest) -> None:
    await guest.script.guest.store._begin()


async def _once_only(guest: Honest) -> None:
    """One try, then without a transaction."""
    store, path = guest.script.guest.store, guest.script.path

    async def write(tx: int) -> None:
        for key, value in guest.script.nodes.items():
            await store.write(f"{path}/{key}", value, tx)

    with suppress(PlatformError):
        await store._try_transaction(write)
    for key, value in guest.script.nodes.items():
        await guest.script.write(key, value)
    await guest.script.set_state(State.CONNECTED)


async def _floods(guest: Honest) -> None:
    for _ in range(50):
        await asyncio.gather(*(guest.script.read("state") for _ in range(50)))


async def _never_connects(_guest: Honest) -> None:
    await asyncio.Event().wait()


async def _early(guest: Honest) -> None:
    """Connects as soon as its directory is there."""
    script = guest.script
    async with await script.guest.store.watch(f"{script.path}/state") as watch:
        async for _ in watch:
            if await script.read("state") == "1":
                break
    script.backend_path = await script.guest.store.read(f"{script.path}/backend")
    await script.open_rings()
    await guest.publish()


async def _already(_guest: Honest) -> None:
    pass


async def _state_first(guest: Honest) -> None:
    """Connected, and the keys right behind it."""
    nodes = guest.script.nodes
    await guest.script.write("request-rx-copy", "1")
    await asyncio.gather(
        guest.script.set_state(State.CONNECTED),
        *(guest.script.write(key, value) for key, value in nodes.items()),
    )


async def _other_ring(guest: Honest) -> None:
    await guest.script.write("tx-ring-ref", str(guest.script.grant().gref))


async def _strange_state(guest: Honest) -> None:
    await guest.script.write("state", "01")
    await guest.publish()


async def _back(guest: Honest) -> None:
    await guest.script.set_state(State.INIT_WAIT)
    await guest.script.set_state(State.CONNECTED)


async def _own_mac(guest: Honest) -> None:
    await guest.script.write("mac", "00:16:3e:5e:00:02")


async def _reconfigures(guest: Honest) -> None:
    await guest.script.set_state(State.RECONFIGURING)
    await guest.script.backend(State.RECONFIGURED)
    await guest.script.set_state(State.CONNECTED)


async def _leaves_at_odd(guest: Honest) -> None:
    async def follow() -> None:
        await guest.script.backend(State.INITIALISED)
        guest.done = True

    task = asyncio.ensure_future(follow())
    guest.script.closes(task.cancel)


async def _closes_in_order(guest: Honest) -> None:
    await guest.script.set_state(State.CLOSING)
    await guest.script.backend(State.CLOSING, State.CLOSED)
    await guest.script.set_state(State.CLOSED)
    guest.script.rings.close()


# ---- rings


async def _low_ref(guest: Honest) -> None:
    """The RX ring's page is granted at a reserved reference, too."""
    domain = guest.script.guest.domain
    assert isinstance(domain, EmulatedDomain)
    frame = (guest.script.rings.rx.address - domain.memory.address) // 4096
    domain.put_entry(2, frame, 0)
    nodes = guest.script.nodes | {"rx-ring-ref": "2"}
    for key, value in nodes.items():
        await guest.script.write(key, value)
    await guest.script.set_state(State.CONNECTED)


async def _revoke_low(guest: Honest) -> None:
    domain = guest.script.guest.domain
    assert isinstance(domain, EmulatedDomain)
    domain._table.clear(2)
    guest.script.rings.close()


def header(change: Callable[[Honest], None]) -> Callable[[Honest], object]:
    async def publish(guest: Honest) -> None:
        change(guest)
        await guest.publish()

    return publish


def _no_req_event(guest: Honest) -> None:
    guest.script.tx.req_event = 0


def _no_rsp_event(guest: Honest) -> None:
    guest.script.tx.rsp_event = 0


def _sends_early(guest: Honest) -> None:
    guest.send(bytes.fromhex("02000 05e0001 00163e5e0002 88b6".replace(" ", "")).ljust(60, b"x"))


def _rewrites_rsp_prod(guest: Honest) -> None:
    guest.script.tx.rsp_prod = (guest.tx_taken + 9) % WRAP
    guest.tx_taken = guest.script.tx.rsp_prod


def _rewrites_req_event(guest: Honest) -> None:
    guest.script.tx.req_event = 77


async def _jumps(guest: Honest) -> None:
    guest.script.tx.req_prod = 1000
    guest.script.notify(guest.script.tx)


async def _storm(guest: Honest) -> None:
    for _ in range(400):
        guest.script.notify(guest.script.tx)
        guest.step()
        await asyncio.sleep(0)


async def _unasked(guest: Honest) -> None:
    page = guest.script.grant(
        bytes.fromhex("020000 5e0001 00163e5e0002 88b6".replace(" ", "")).ljust(60, b"x"), True
    )
    for _ in range(400):
        if (guest.script.tx.req_prod - guest.script.tx.rsp_prod) % WRAP < 200:
            guest.script.post(guest.script.tx, guest.request(page.gref, 0, 60), notify=True)
        guest.step()
        await asyncio.sleep(0)


def _changes_pages(guest: Honest) -> None:
    for page in guest.sent:
        page.write(0, b"\xee")
    guest.sent.clear()


def _revokes_pages(guest: Honest) -> None:
    domain = guest.script.guest.domain
    assert isinstance(domain, EmulatedDomain)
    for page in guest.sent:
        domain._table.clear(page.gref)
    guest.sent.clear()


def _other_kind(frame: bytes) -> bytes:
    return frame[:12] + b"\x88\xb6" + frame[14:]


def _longer(frame: bytes) -> bytes:
    return _other_kind(frame) + bytes(1000)


def _sends_from(frame: bytes) -> bytes:
    return frame[:6] + bytes.fromhex("00163e999999") + frame[12:]


def _spoiled(frame: bytes) -> bytes:
    return frame[:-1] + bytes([frame[-1] ^ 0x55])


def _spoiled_sum(frame: bytes) -> bytes:
    return frame[:40] + bytes([frame[40] ^ 0x55]) + frame[41:]


MCAST = bytes([ExtraType.MCAST_ADD, 0]) + bytes.fromhex("01005e000001")
NOT_MCAST = bytes([ExtraType.MCAST_ADD, 0]) + bytes.fromhex("00163e000001")


def hash_extra(kind: int, algorithm: int = 1, more: int = 0) -> bytes:
    return bytes([ExtraType.HASH, more, kind, algorithm, 1, 2, 3, 4])


# ---- RX requests


def rx(number: int, **changes: int) -> Callable[[Honest, int, bytes], bytes]:
    """Another RX request at this place."""

    def change(_guest: Honest, at: int, slot: bytes) -> bytes:
        fields = dict(zip(("id", "pad", "gref"), RX_REQUEST.unpack(slot), strict=True))
        chosen = fields | changes if at == number else fields
        return RX_REQUEST.pack(chosen["id"], chosen["pad"], chosen["gref"])

    return change


def _ring_as_buffer(guest: Honest, at: int, slot: bytes) -> bytes:
    return RX_REQUEST.pack(at % 256, 0, guest.script.rings.tx.gref) if at == 5 else slot


def _same_page(guest: Honest, at: int, slot: bytes) -> bytes:
    return RX_REQUEST.pack(at % 256, 0, guest.pages[4].gref) if at == 5 else slot


# ---- control ring


def control(*requests: tuple[int, ...]) -> Deed:
    """Sends these control requests once it is connected."""

    async def publish(guest: Honest) -> None:
        guest.control = FrontControl(guest.script.guest.domain, 0)  # type: ignore[attr-defined]
        guest.script.closes(guest.control.close)  # type: ignore[attr-defined]
        for key, value in (guest.script.nodes | guest.control.nodes()).items():  # type: ignore[attr-defined]
            await guest.script.write(key, value)
        await guest.script.set_state(State.CONNECTED)

    async def connected(guest: Honest) -> None:
        for kind, *data in requests:
            await guest.control.request(kind, *data)  # type: ignore[attr-defined]

    async def ends(guest: Honest) -> None:
        guest.control.close()  # type: ignore[attr-defined]
        guest.script.rings.close()

    return replace(BASE, profile="linux", publish=publish, connected=connected, ends=ends)


def hashed(deed: Deed) -> Deed:
    """It selects the hash of TCP over IPv4."""
    basis = control()

    async def connected(guest: Honest) -> None:
        await guest.control.set_hash(HashType.IPV4_TCP, HashConfig().key)  # type: ignore[attr-defined]

    return replace(deed, profile="linux", publish=basis.publish, connected=connected, ends=basis.ends)


# ---- the end


async def _ignores(_guest: Honest) -> None:
    await asyncio.Event().wait()


async def _done(guest: Honest) -> None:
    await asyncio.sleep(0.05)
    guest.done = True


async def _straight(guest: Honest) -> None:
    await guest.script.set_state(State.CLOSED)
    await guest.script.backend(State.CLOSED)
    guest.script.rings.close()


async def _half(guest: Honest) -> None:
    await guest.script.set_state(State.CLOSING)
    await asyncio.Event().wait()


async def _keeps_grants(guest: Honest) -> None:
    await guest.script.backend(State.CLOSED)
    guest.script.events.unbind(guest.script.rings.tx_port)


async def _keeps_ports(guest: Honest) -> None:
    await guest.script.backend(State.CLOSED)
    guest.script.rings.close()
    guest.script.events.alloc_unbound(0)


def split_half(nodes: dict[str, str]) -> dict[str, str]:
    return nodes | {"event-channel-tx": nodes["event-channel"]}


def split_anyway(nodes: dict[str, str]) -> dict[str, str]:
    port = nodes["event-channel"]
    rest = {key: value for key, value in nodes.items() if key != "event-channel"}
    return rest | {"event-channel-tx": port, "event-channel-rx": port}


def plus(key: str) -> Callable[[dict[str, str]], dict[str, str]]:
    return lambda nodes: nodes | {key: "+" + nodes[key]}


def one_page(nodes: dict[str, str]) -> dict[str, str]:
    """The control ring lies in the TX ring's page."""
    return nodes | {"ctrl-ring-ref": nodes["tx-ring-ref"], "event-channel-ctrl": nodes["event-channel"]}


def _is(*lengths: int) -> Callable[[Honest, tuple[int, int, int, int]], bool]:
    return lambda _guest, response: response[3] in lengths


DEEDS: Mapping[str, Deed] = {
    "domain.once": replace(BASE, connected=_twice),
    "domain.stays": replace(BASE, connected=_dies),
    "store.valid-requests": replace(BASE, connected=_bad_path),
    "store.permitted": replace(BASE, connected=_writes_backend),
    "store.transactions-end": replace(BASE, connected=_leaves_open),
    "store.repeats": replace(BASE, profile="adversarial", publish=_once_only),
    "store.quiet": replace(BASE, connected=_floods),
    "xenbus.connects": replace(WAITED, publish=_never_connects),
    "xenbus.waits": replace(BASE, event=1.0, offered=_early, publish=_already),
    "xenbus.keys-first": replace(BASE, publish=_state_first),
    "xenbus.keys-stay": replace(BASE, connected=_other_ring),
    "xenbus.state-values": replace(BASE, publish=_strange_state),
    "xenbus.state-order": replace(BASE, connected=_back),
    "xenbus.toolstack-keys": replace(BASE, connected=_own_mac),
    "xenbus.reconfigures": replace(BASE, connected=_reconfigures),
    "xenbus.odd-states": replace(
        BASE, profile="adversarial", connected=_leaves_at_odd, closes=_closes_in_order
    ),
    "keys.request-rx-copy": keys(request_rx_copy="0"),
    "keys.needs-rx-copy": replace(BASE, profile="nothing", everything=True),
    "keys.no-rx-flip": keys(feature_rx_flip="1"),
    "keys.refs-decimal": replace(BASE, nodes=plus("tx-ring-ref")),
    "keys.refs-own": replace(BASE, publish=_low_ref, ends=_revoke_low),
    # Two rings that are used would destroy each other: here neither the TX nor the control ring has a request.
    "keys.refs-differ": replace(BASE, profile="linux", nodes=one_page, reflects=False),
    "keys.ports-decimal": replace(BASE, nodes=plus("event-channel")),
    "keys.split-offered": replace(BASE, nodes=split_anyway),
    "keys.split-complete": replace(BASE, profile="linux", nodes=split_half),
    "keys.queues-number": keys("queues", multi_queue_num_queues="0"),
    "keys.queues-offered": keys(multi_queue_num_queues="1"),
    "keys.queues-places": replace(
        BASE, nodes=lambda nodes: nodes | {"queue-0/tx-ring-ref": nodes["tx-ring-ref"]}
    ),
    "keys.booleans": keys(feature_test="yes"),
    "keys.gso-needs-sg": keys(feature_sg=None),
    "keys.gso4-needs-checksum": keys(feature_no_csum_offload="1"),
    "keys.gso6-needs-checksum": keys(feature_ipv6_csum_offload=None),
    "keys.multicast-offered": keys(request_multicast_control="1"),
    "keys.control-complete": replace(
        BASE, profile="linux", nodes=lambda nodes: nodes | {"ctrl-ring-ref": "4000"}
    ),
    "keys.control-offered": keys(ctrl_ring_ref="4000"),
    "keys.xdp-headroom": keys(xdp_headroom="5000"),
    "ring.usable": keys(rx_ring_ref="4000"),
    "ring.fresh": replace(BASE, publish=header(_no_req_event)),  # type: ignore[arg-type]
    "ring.asks-first": replace(BASE, publish=header(_no_rsp_event)),  # type: ignore[arg-type]
    "ring.rsp-prod-theirs": replace(BASE, tick=_rewrites_rsp_prod, reflects=False),
    "ring.req-event-theirs": replace(BASE, tick=_rewrites_req_event),
    "ring.bounded": replace(BASE, connected=_jumps, reflects=False),
    "ring.tx-notifies": replace(BASE, profile="everything", config=SPLIT, tx_notify=False),
    "ring.rx-notifies": replace(BASE, profile="everything", config=SPLIT, rx_notify=False),
    "ring.no-storm": replace(BASE, connected=_storm),
    "ring.asked": replace(BASE, profile="linux", config=SPLIT, connected=_unasked),
    "tx.waits": replace(BASE, publish=header(_sends_early)),  # type: ignore[arg-type]
    "tx.chain-complete": tx(lambda _g, slots, _f: first(slots, flags=TxFlag.MORE_DATA)),
    "tx.flags": tx(lambda _g, slots, _f: first(slots, flags=0x80)),
    "tx.min-size": tx(lambda _g, slots, _f: first(slots, size=10)),
    "tx.total": tx(pieces(2, lambda _total: [0, 2000])),
    "tx.empty-slots": tx(pieces(3, lambda total: [total - 10, 0, 10])),
    "tx.within-page": tx(lambda _g, slots, _f: first(slots, offset=4000)),
    "tx.slots": tx(pieces(19, equal(19)), frame=_other_kind),
    # What is too much for every backend is too much for some: no frame breaks it without tx.slots.
    "tx.slots-fatal": tx(pieces(22, equal(22)), frame=_other_kind, also=frozenset({"tx.slots"})),
    "tx.sg-offered": tx(pieces(2, equal(2)), "qnic", frame=_other_kind),
    "tx.ids": tx(
        lambda guest, slots, frame: [
            slot[:8] + b"\x07\x00" + slot[10:] for slot in pieces(2, equal(2))(guest, slots, frame)
        ],
        frame=_other_kind,
    ),
    "tx.granted": tx(lambda _g, slots, _f: first(slots, gref=NEVER)),
    "tx.granted-readonly": replace(BASE, readonly=False),
    "tx.buffer-stays": replace(BASE, profile="adversarial", tick=_changes_pages),
    "tx.grant-stays": replace(BASE, profile="adversarial", tick=_revokes_pages),
    "tx.extra-types": tx(lambda _g, slots, _f: extra(slots, bytes([9, 0]).ljust(8, b"\0"))),
    "tx.extra-once": tx(lambda _g, slots, _f: extra(slots, hash_extra(1, more=1), hash_extra(1))),
    "tx.multicast-offered": tx(lambda _g, slots, _f: extra(slots, MCAST)),
    "tx.multicast-address": tx(lambda _g, slots, _f: extra(slots, NOT_MCAST), "linux"),
    "tx.hash": tx(lambda _g, slots, _f: extra(slots, hash_extra(9)), "linux"),
    "tx.gso-known": gso(lambda _g, slots, _f: regso(slots, 0, 1)),
    "tx.gso-offered": gso(lambda _g, slots, _f: slots, offer={Key.GSO_TCPV4: "0"}, everything=True),
    "tx.gso-blank": gso(lambda _g, slots, _f: first(slots, flags=flags_of(slots) & ~TxFlag.CSUM_BLANK)),
    "tx.gso-protocol": gso(lambda _g, slots, _f: regso(slots, 1400, 2)),
    "tx.gso-longer": gso(lambda _g, slots, _f: regso(slots, 60000, 1)),
    "tx.blank4-offered": blank(profile="plain", everything=True),
    "tx.blank6-offered": blank(profile="plain", forms=("udp6-blank",), length=162, everything=True),
    "tx.blank-protocol": tx(
        lambda _g, slots, _f: first(slots, flags=TxFlag.CSUM_BLANK | TxFlag.DATA_VALIDATED)
    ),
    "tx.blank-pseudo": blank(frame=_spoiled_sum),
    "tx.blank-validated": blank(lambda _g, slots, _f: first(slots, flags=TxFlag.CSUM_BLANK)),
    "tx.checksum": blank(forms=("validated",), frame=_spoiled),
    "tx.mtu": replace(BASE, frame=_longer),
    "tx.source": replace(BASE, frame=_sends_from),
    "tx.goes-on": replace(BASE, profile="adversarial", stops=True),
    "rx.posts": replace(WAITED, buffers=0),
    "rx.enough": replace(BASE, buffers=8),
    "rx.ids": replace(BASE, rx=rx(5, id=4)),
    "rx.pages-differ": replace(BASE, rx=_same_page),
    "rx.not-a-ring": replace(BASE, rx=_ring_as_buffer),
    "rx.granted": replace(BASE, rx=rx(5, gref=NEVER)),
    "rx.padding": replace(BASE, rx=rx(5, pad=7)),
    "rx.posts-again": replace(WAITED, most=100),
    "rx.asks": replace(BASE, asks=False),
    "rx.consumes": stuck_at(_is(14), forms=("shortest", "longest")),
    "rx.takes-slots": stuck_at(_is(600), 2, forms=("two-slots", "longest")),
    "rx.takes-blank": stuck_at(lambda _g, response: bool(response[2] & 2), forms=("udp-blank", "longest")),
    "rx.takes-gso": stuck_at(lambda _g, response: bool(response[2] & 8), 4, forms=("gso4", "longest")),
    "rx.takes-hash": hashed(
        stuck_at(lambda _g, response: bool(response[2] & 8), 2, forms=("hashed", "longest"))
    ),
    "rx.content": replace(BASE, frame=_spoiled),
    "rx.survives-error": stuck_at(lambda _g, response: response[3] < 0, 2, profile="adversarial"),
    "life.returns": stuck_at(
        lambda guest, response: guest.echoes == 4 and response[3] == 98, profile="adversarial"
    ),
    # Its last buffer goes with the burst's last frame: it would take the drive's last frame, and asks for its event.
    "life.stays": replace(WAITED, most=1 + BURST),
    "ctrl.types": control((99,)),
    "ctrl.algorithm-first": control((CtrlType.SET_HASH_FLAGS, 1)),
    "ctrl.key-size": control((CtrlType.SET_HASH_KEY, 4000, 41)),
    "ctrl.mapping-bounds": control((CtrlType.SET_HASH_MAPPING, 4000, 1, 0)),
    "ctrl.accepted": control((CtrlType.GET_GREF_MAPPING_SIZE, 9)),
    "close.follows": replace(WAITED, closes=_ignores),
    "close.by-closing": replace(BASE, connected=_done, closes=_straight),
    "close.finishes": replace(WAITED, connected=_done, closes=_half),
    "close.grants": replace(BASE, ends=_keeps_grants),
    "close.ports": replace(BASE, ends=_keeps_ports),
}
