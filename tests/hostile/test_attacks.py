# SPDX-License-Identifier: Apache-2.0
"""Attacks by each kind of frontend: the features and the order of its keys are those of docs/frontends.md.

The lab runs the first of them in a guest of a real Xen; here the same backend meets them on an emulated one.
"""

import asyncio

import pytest

from netback.abi.netif import RX_REQUEST, Status
from netback.abi.xenbus import XenbusState as State
from netback.frontend.profiles import PROFILES, Profile
from netback.lab.inside import attacks
from tests.hostile.test_ends import busy
from tests.hostile.topology import SECONDS, Topology, frame

UNLIKE = {(profile.config, profile.handshake): profile for profile in PROFILES}
"""Those that a backend can tell apart."""
each_frontend = pytest.mark.parametrize("profile", UNLIKE.values(), ids=lambda profile: profile.word)


def behave(topology: Topology, profile: Profile) -> None:
    topology.bad.config, topology.bad.handshake = profile.config, profile.handshake


@each_frontend
async def test_the_lab_s_attacks(
    topology: Topology, profile: Profile, capsys: pytest.CaptureFixture[str]
) -> None:
    behave(topology, profile)
    async with asyncio.timeout(60):
        await attacks.run(topology.bad)
    assert len(capsys.readouterr().out.splitlines()) == len(attacks.CASES)
    assert await topology.backend.store.read(f"{topology.name.errors}/error")


@each_frontend
async def test_rx_slots_that_are_none(topology: Topology, profile: Profile) -> None:
    """XSA-39, -361: a grant that is none costs its frame, an index that is none ends the vif; also where the backend
    polls for slots, and where each ring has its own event channel."""
    behave(topology, profile)
    await topology.connect()
    await topology.works()
    into = topology.bad.grant()
    for number, gref in enumerate((0xFFFFFFFF, 511, into.gref)):
        topology.bad.post(topology.bad.rx, RX_REQUEST.pack(number, 0, gref))
        await topology.far.send(frame(number))
        (answer,) = await topology.answers(number, 1, topology.bad.rx)
        assert (answer[0], answer[-1]) == (number, 60 if gref == into.gref else Status.ERROR)
    assert into.read(0, 60) == frame(2)
    topology.bad.rx.push(1000)
    topology.bad.notify(topology.bad.rx)
    await topology.far.send(frame(3))
    await topology.closes("RX req_prod is impossible")
    await topology.others_pass()
    await topology.comes_back()


@each_frontend
async def test_it_leaves_in_a_burst(topology: Topology, profile: Profile) -> None:
    """XSA-371: by the states that it writes, at once and without waiting for an answer. Nothing of it stays mapped."""
    behave(topology, profile)
    await topology.connect()
    await busy(topology.bad, topology.far)
    for state in profile.handshake.leaves or (State.CLOSED,):
        await topology.bad.set_state(state)
    for key in profile.handshake.removes:
        await topology.bad.remove(key)
    domain, rings = topology.bad.guest.domain, topology.bad.rings
    async with asyncio.timeout(SECONDS):
        await topology.bad.backend(State.CLOSED, State.INIT_WAIT)
    await topology.until(lambda: not any(domain.still_in_use(ring.gref) for ring in (rings.tx, rings.rx)))
    await topology.others_pass()
