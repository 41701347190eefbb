# SPDX-License-Identifier: Apache-2.0
"""Every rule is provoked by a scenario, none fires while a known frontend works, and both clients show the findings."""

from __future__ import annotations

import asyncio
import dataclasses
import re
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from netback.abi.netif_keys import Key
from netback.abi.xenbus import XenbusState as State
from netback.control import Refused
from netback.control.schema import Details, DeviceStatus, Feature
from netback.daemon.control import Methods
from netback.daemon.document import render_document
from netback.daemon.facts import Facts, Host, LinkFacts
from netback.daemon.rules import HOST_RULES, RULES, judge
from netback.dataplane.counters import BACKEND
from netback.frontend import Frontend, Guest
from netback.frontend.profiles import PROFILES, Profile
from netback.net.python import PythonNetwork
from netback.vif.terms import explain
from tests.daemon.scenarios import SCENARIOS, Stage, played
from tests.daemon.talk import client
from tests.frontend.frames import ethernet
from tests.frontend.matrix import Far, exchange, plug
from tests.vif.guest import SECONDS, serving

PAGE = Path(__file__).parents[2] / "docs" / "explain.md"
UNLESS = {rule.id: rule.unless for rule in HOST_RULES} | {rule.id: rule.unless for rule in RULES}
EVERY = [*UNLESS]


def test_each_rule_has_one_scenario() -> None:
    assert len(EVERY) == len(HOST_RULES) + len(RULES)
    assert set(SCENARIOS) == set(EVERY)


def test_a_rule_gives_way_to_earlier_ones_alone() -> None:
    for number, earlier in enumerate(UNLESS.values()):
        assert set(earlier) <= set(EVERY[:number])


def test_the_page_is_the_table_s() -> None:
    assert PAGE.read_text() == render_document()


@pytest.mark.parametrize("rule", EVERY)
async def test_a_rule_is_provoked(xen: Path, rule: str) -> None:
    async with asyncio.timeout(SECONDS):
        findings = {finding.rule: finding for finding in judge(await played(rule, xen))}
    assert rule in findings
    finding = findings[rule]
    assert finding.evidence
    for sentence in (finding.finding, finding.fix):
        assert re.fullmatch(r"[^{}\x00-\x1f]+[.)]", sentence)


async def test_what_is_no_bridge_of_linux_is_not_judged_as_one(xen: Path) -> None:
    """Open vSwitch's ovs-system is down and has an MTU of its own; frames pass all the same."""
    facts = await played("bridge-mtu", xen)
    assert {"bridge-mtu", "bridge-down"} <= {finding.rule for finding in judge(facts)}
    assert facts.link is not None
    link = dataclasses.replace(facts.link, bridge="ovs-system", bridge_up=None, bridge_mtu=0)
    found = {finding.rule for finding in judge(dataclasses.replace(facts, link=link))}
    assert found == {"frontend-never-came", "other-bridge"}


async def test_scripts_of_a_driver_domain_need_xl_devd(xen: Path) -> None:
    """Whether it runs is among the values, there alone."""
    facts = await played("hotplug-waits", xen)
    (here,) = judge(facts)
    assert "xl devd" not in here.evidence
    there = replace(facts.details, backend_path="/local/domain/5/backend/vif/1/0")
    for host, value in ((Host(served=True), "does not run"), (Host(served=True, devd=7), "process 7")):
        (finding,) = judge(dataclasses.replace(facts, details=there, host=host))
        assert finding.evidence["xl devd"] == value


@pytest.mark.parametrize("profile", PROFILES, ids=[profile.word for profile in PROFILES])
async def test_no_rule_fires_while_a_frontend_works(xen: Path, profile: Profile) -> None:
    """Frames of one slot pass both ways between the two readings, of sizes that every link takes."""
    network = PythonNetwork(vnet_hdr=True)
    async with asyncio.timeout(SECONDS), serving(xen, network) as backend, Guest(xen, domid=1) as guest:
        name = await plug(backend, 1)
        async with Frontend(guest, config=profile.config, handshake=profile.handshake) as vif:
            await vif.connected()

            async def act() -> None:
                for _ in range(40):
                    await exchange(Far(vif, network), (60, 590, 1514))

            assert judge(await Methods(backend).picture(str(name), act)) == []
    network.remove()


@pytest.mark.parametrize(
    "net",
    [
        "stream:{}/s.sock",
        "stream:{}/s.sock,server",
        "vhost-user:{}/s.sock",
        "dgram:{0}/s.sock,local={0}/n.sock",
    ],
)
async def test_a_program_that_is_not_there(xen: Path, net: str) -> None:
    async with AsyncExitStack() as undo, asyncio.timeout(SECONDS):
        stage = Stage(xen, undo)
        await stage.fails(net=net.format(xen))
        found = {finding.rule: finding for finding in judge(await stage.see())}
        assert found.keys() <= {"far-end-gone", "frontend-never-came"}
        assert found["far-end-gone"].evidence["network"].startswith(net.partition(":")[0])


async def test_a_kernel_that_segments_for_a_guest_without_gso(xen: Path) -> None:
    """Then netback's counter stays 0, and the sizes of frames tell."""
    async with AsyncExitStack() as undo, asyncio.timeout(SECONDS):
        stage = Stage(xen, undo)
        await stage.connect()

        async def act() -> None:
            for number in range(1, 11):
                await stage.receive(100, ethernet(1, 1514))
                await stage.counted("rx_frames", 100 * number)

        findings = {finding.rule: finding for finding in judge(await stage.see(act))}
        assert findings["guest-gso"].evidence["bytes a frame"] == "1514"


async def test_a_client_is_told(xen: Path) -> None:
    async with AsyncExitStack() as undo:
        stage = Stage(xen, undo)
        await stage.offer()
        answer = await client(xen, lambda made: made.explain("vif1.0", seconds=0))
        (finding,) = answer.findings
        assert (answer.device, answer.seconds, answer.rules) == ("vif1.0", 0, len(EVERY))
        assert (finding.rule, finding.severity) == ("frontend-never-came", "error")
        assert finding.evidence == {"backend": "InitWait", "frontend": "Initialising"}
        await stage.guest.connect()
        assert (await client(xen, lambda made: made.explain("vif1.0", seconds=0.01))).findings == []
        with pytest.raises(Refused, match=r"there is no device vif9\.0"):
            await client(xen, lambda made: made.explain("vif9.0"))
        with pytest.raises(Refused, match="explain: Expected `float` <= 8"):
            await client(xen, lambda made: made.explain("vif1.0", seconds=9))


async def test_what_a_guest_writes_is_bounded_and_printable(xen: Path) -> None:
    async with AsyncExitStack() as undo:
        stage = Stage(xen, undo)
        await stage.offer()
        await stage.guest.store.write(f"{stage.guest.path}/mac", "{owner}\x1b[2J\n" + "x" * 1000)
        (finding,) = [each for each in judge(await stage.see()) if each.rule == "mac-differs"]
        value = finding.evidence["frontend's mac"]
        assert value.startswith(r"{owner}\x1b[2J\nxx")
        assert len(value) <= 160


NAMES = [
    *map(str, Key),
    "state",
    "online",
    "script",
    "hotplug-status",
    "bridge",
    "rate",
    "rx-rate",
    "mac",
    "link-down",
]
NODES = st.dictionaries(st.sampled_from(NAMES), st.text(max_size=40), max_size=8)
TEXT = st.none() | st.text(max_size=40) | st.sampled_from([state.title for state in State])


@given(
    NODES,
    NODES,
    TEXT,
    TEXT,
    TEXT,
    TEXT,
    TEXT,
    st.dictionaries(st.sampled_from([*BACKEND]), st.integers(0, 2**64)),
)
def test_whatever_the_store_has(
    ours: dict[str, str],
    theirs: dict[str, str],
    backend: str | None,
    frontend: str | None,
    error: str | None,
    online: str | None,
    mac: str | None,
    counters: dict[str, int],
) -> None:
    """No picture makes a rule fail, and each finding is a printable line."""
    status = DeviceStatus(
        device="vif1.0", type="vif", domid=1, index="0", backend=backend, frontend=frontend, error=error, online=online,
        mac=mac, counters=counters, network=error, path=error,
    )  # fmt: skip
    terms, fault = explain(ours, theirs, "vif", connected=frontend == "Connected")
    details = Details(
        device=status, features=[Feature(**dataclasses.asdict(term)) for term in terms], fault=fault,
        backend_path="/local/domain/0/backend/vif/1/0", backend_nodes=ours,
        frontend_path="/local/domain/1/device/vif/0", frontend_nodes=theirs,
    )  # fmt: skip
    link = LinkFacts("t0", tap=True, exists=True, mtu=9000, bridge="br0")
    facts = Facts(details, Host(served=True), earlier=replace(status, counters={}), link=link, owner=7)
    for finding in judge(facts):
        assert (finding.finding + finding.fix).isprintable()
        assert all(value.isprintable() for value in finding.evidence.values())
