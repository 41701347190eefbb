# SPDX-License-Identifier: Apache-2.0
"""netback's own backend breaks no rule of backends, and for each rule there are answers that break just it."""

from __future__ import annotations

import asyncio
import runpy
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import pytest

from netback.abi.netif import RX_RESPONSE, TX_RESPONSE
from netback.abi.netif_control import CTRL_REQUEST, CTRL_RESPONSE
from netback.conform import recording
from netback.conform.answers import BackendSeen, Case, Question, Received
from netback.conform.asking import Patience, ask_backend
from netback.conform.backend import Limits, PlayedBackend
from netback.conform.backend_rules import RULES
from netback.conform.frames import Addresses
from netback.conform.profiles import find_profile
from netback.conform.recorder import Recorder
from netback.daemon import Backend, BackendConfig
from netback.errors import PlatformError
from netback.net.python import PythonNetwork
from netback.platforms.emulated import EmulatedDomain, EmulatedPlatform, Emulator
from netback.xenbus.names import DeviceName
from tests.conform.test_rules import broken
from tests.vif.guest import SECONDS

ENDS = Addresses(
    bytes(6), bytes(6), bytes([192, 0, 2, 1]), bytes([192, 0, 2, 2]), bytes(15) + b"\1", bytes(15) + b"\2"
)
PATIENCE = Patience(answer=20, settle=0.5)
EXAMPLE = Path(__file__).parents[2] / "examples" / "python_peer.py"


async def ask(directory: Path) -> BackendSeen:
    """netback's backend, behind which a host answers ARP and ping."""
    host = runpy.run_path(str(EXAMPLE))["Host"](b"\x02\0\0\0\0\x01", bytes([192, 0, 2, 1]))
    network = PythonNetwork("host")
    async with Emulator(directory):
        with EmulatedPlatform(directory) as platform:
            config = BackendConfig(directory / "backend", networks={"python": network})
            async with Backend(platform, config) as backend:
                living = asyncio.ensure_future(host.live(network))
                guest = EmulatedDomain.join(directory, name="conform")
                asking = asyncio.ensure_future(ask_backend(guest, ENDS, PATIENCE))
                await backend.attach(guest.domid, "python")
                seen = await asking
    network.close()
    await living
    network.remove()
    return seen


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> BackendSeen:
    return asyncio.run(asyncio.wait_for(ask(tmp_path_factory.mktemp("xen")), SECONDS))


def test_netback_breaks_no_rule(seen: BackendSeen) -> None:
    verdicts = RULES.judge(seen)
    assert broken(verdicts) == {}
    assert all(verdict.occasions for verdict in verdicts), "a rule had no occasion"
    assert len(seen.received) >= 2, "neither ARP nor ping was answered"


async def test_a_backend_that_answers_no_ring_is_judged(tmp_path: Path) -> None:
    """The backend that netback plays for frontends, with its hands off."""
    recorder = Recorder()
    async with asyncio.timeout(SECONDS), Emulator(tmp_path):
        guest = EmulatedDomain.join(tmp_path, name="conform")
        with EmulatedPlatform(tmp_path) as platform:
            device = DeviceName("vif", 0, guest.domid, "0")
            profile = find_profile("strict")
            async with PlayedBackend(
                platform, device, profile, recorder, Limits(), "00:16:3e:5e:00:02"
            ) as backend:
                backend._held = True
                quick = Patience(answer=0.5, settle=0.05)
                asking = asyncio.ensure_future(ask_backend(guest, ENDS, quick))
                await backend.offer()
                await backend.until(lambda: backend.theirs == 4, 10)
                assert not await backend.connect()
                seen = await asking
    found = broken(RULES.judge(seen))
    assert "tx.answers" in found
    assert "tx.okay" not in found


async def test_no_device_is_one_clear_error(tmp_path: Path) -> None:
    async with Emulator(tmp_path):
        guest = EmulatedDomain.join(tmp_path, name="conform")
        with pytest.raises(TimeoutError):
            await ask_backend(guest, ENDS, Patience(device=0.2))


async def test_an_address_that_is_none_is_one_clear_error(tmp_path: Path) -> None:
    async with asyncio.timeout(SECONDS), Emulator(tmp_path):
        guest = EmulatedDomain.join(tmp_path, name="conform")
        with EmulatedPlatform(tmp_path) as platform:
            device, profile = DeviceName("vif", 0, guest.domid, "0"), find_profile("strict")
            async with PlayedBackend(platform, device, profile, Recorder(), Limits(), "nonsense") as backend:
                asking = asyncio.ensure_future(ask_backend(guest, ENDS, PATIENCE))
                await backend.offer()
                with pytest.raises(PlatformError, match="device/vif/0/mac: failed to parse"):
                    await asking


def test_a_recording_has_the_same_verdicts(seen: BackendSeen, tmp_path: Path) -> None:
    path = tmp_path / "runs"
    recording.save(path, "backend", [seen])
    assert recording.load(path, "backend", BackendSeen) == [seen]


# ---- answers that break one rule

Edit = Callable[[BackendSeen], BackendSeen]


def change(**fields: object) -> Edit:
    return lambda seen: msgspec.structs.replace(seen, **fields)


def offer(**keys: str) -> Edit:
    """Other keys, at both looks."""

    def edit(seen: BackendSeen) -> BackendSeen:
        named = {key.replace("_", "-"): value for key, value in keys.items()}
        return msgspec.structs.replace(seen, offer=seen.offer | named, later=seen.later | named)

    return edit


def case(name: str, edit: Callable[[Case], Mapping[str, object]]) -> Edit:
    """Other answers in one case."""

    def apply(seen: BackendSeen) -> BackendSeen:
        cases = [msgspec.structs.replace(c, **edit(c)) if c.name == name else c for c in seen.cases]
        return msgspec.structs.replace(seen, cases=cases)

    return apply


def status(name: str, value: int, at: int = 0) -> Edit:
    def edit(case: Case) -> dict[str, object]:
        ident = TX_RESPONSE.unpack(case.responses[at])[0]
        return {
            "responses": [*case.responses[:at], TX_RESPONSE.pack(ident, value), *case.responses[at + 1 :]]
        }

    return case(name, edit)


def frame(edit: Callable[[Received], Mapping[str, object]]) -> Edit:
    def apply(seen: BackendSeen) -> BackendSeen:
        first = msgspec.structs.replace(seen.received[0], **edit(seen.received[0]))
        return msgspec.structs.replace(seen, received=[first, *seen.received[1:]])

    return apply


def rx(**fields: int) -> Edit:
    """Another first RX response."""

    def edit(received: Received) -> dict[str, object]:
        names = ("id", "offset", "flags", "status")
        found = dict(zip(names, RX_RESPONSE.unpack(received.responses[0]), strict=True)) | fields
        return {"responses": [RX_RESPONSE.pack(*found.values()), *received.responses[1:]]}

    return frame(edit)


def question(kind: int, answer: Callable[[Question], bytes]) -> Edit:
    def apply(seen: BackendSeen) -> BackendSeen:
        found = [
            msgspec.structs.replace(q, response=answer(q)) if CTRL_REQUEST.unpack(q.request)[1] == kind else q
            for q in seen.questions
        ]
        return msgspec.structs.replace(seen, questions=found)

    return apply


def _extra_okay(seen: BackendSeen) -> BackendSeen:
    """The extra's slot with OKAY and the first slot's id in place of NULL: the first slot has NULL."""
    cases = []
    for each in seen.cases:
        if each.name == "segments":
            ident = TX_RESPONSE.unpack(each.responses[0])[0]
            each = msgspec.structs.replace(
                each, responses=[TX_RESPONSE.pack(0, 1), TX_RESPONSE.pack(ident, -1)]
            )
        cases.append(each)
    return msgspec.structs.replace(seen, cases=cases)


EDITS: Mapping[str, Edit] = {
    "offer.rx-copy": offer(feature_rx_copy="0"),
    "offer.booleans": offer(feature_test="yes"),
    "offer.queues": offer(multi_queue_max_queues="0"),
    "offer.first": lambda seen: msgspec.structs.replace(seen, later=seen.later | {"feature-sg": "0"}),
    "offer.gso-needs-sg": offer(feature_sg="0"),
    "state.connects": change(connected=False),
    "state.values": change(states=["1", "2", "04"]),
    "state.by-closing": change(states=["2", "4", "6"]),
    "state.closes": change(closed=False),
    "state.returns": change(returned=False),
    "state.unmaps": change(rings_in_use=1),
    "tx.answers": case("frame", lambda c: {"responses": []}),
    "tx.not-more": case("frame", lambda c: {"ahead": 3}),
    "tx.ids": case("frame", lambda c: {"responses": [TX_RESPONSE.pack(4711, 0)]}),
    "tx.statuses": status("question", 17),
    "tx.okay": status("frame", -1),
    "tx.slots": status("two slots", -1),
    "tx.empty-slot": case("empty slot", lambda c: {"alive": False}),
    "tx.short": status("short", 0),
    "tx.no-grant": status("no grant", 0),
    "tx.stays": case("short", lambda c: {"alive": False}),
    "tx.extras-null": _extra_okay,
    "tx.multicast": status("multicast", -1),
    "tx.zeroed": case("frame", lambda c: {"responses": [c.responses[0][:4] + b"leftover"]}),
    "tx.notifies": case("frame", lambda c: {"notified": False}),
    "tx.silent": case("unasked", lambda c: {"notified": True}),
    "tx.unmaps": case("frame", lambda c: {"in_use": 1}),
    "tx.arms": case("frame", lambda c: {"armed": 0}),
    "rx.same-slot": rx(id=4711),
    "rx.in-page": rx(offset=4090),
    "rx.flags": rx(flags=0x40),
    "rx.slots": frame(
        lambda r: {"requests": r.requests * 30, "responses": r.responses * 30},
    ),
    "rx.not-more": change(rx_ahead=2),
    "rx.notifies": frame(lambda r: {"asked": True, "notified": False}),
    "rx.unmaps": frame(lambda r: {"in_use": 1}),
    "ctrl.answers": question(4, lambda q: b""),
    "ctrl.unknown": question(99, lambda q: CTRL_RESPONSE.pack(*CTRL_REQUEST.unpack(q.request)[:2], 2, 0)),
    "fatal.one-device": lambda seen: msgspec.structs.replace(
        seen, fatal=["40 slots: closed, and did not return", *seen.fatal]
    ),
    "fatal.closes": lambda seen: msgspec.structs.replace(seen, fatal=["req_prod 1000 ahead: alive"]),
}
ALSO = {"tx.empty-slot": {"tx.stays"}}


@pytest.mark.parametrize("rule", EDITS)
def test_answers_that_break_one_rule_fail_it(seen: BackendSeen, rule: str) -> None:
    found = broken(RULES.judge(EDITS[rule](seen)))
    assert {*found} - ALSO.get(rule, set()) == {rule}, found


def test_every_rule_has_answers_that_break_it() -> None:
    assert {*EDITS} == {row.id for row in RULES.rows}
    for row in RULES.rows:
        assert row.text.endswith(".")
        assert row.source
