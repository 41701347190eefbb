# SPDX-License-Identifier: Apache-2.0
"""The whole daemon killed while it serves control messages, which a guest sends once and never again (netif.h).

A model of netif.h judges every answer (tests/control_oracle.py): a message is handled once, whichever process ends and
whichever answers, and what was answered is in force in the next one.
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from netback.abi.netif_control import GREF_ENTRY, GREF_READONLY, MAPPING_ENTRY
from netback.abi.ring import PAGE_SIZE
from netback.frontend import FrontConfig
from netback.platforms.base import GrantedPage
from tests import control_oracle as netif
from tests.crash.respawn import SECONDS, until
from tests.crash.topology import GuestVif, Topology, topology
from tests.frontend.pair import counters

pytestmark = pytest.mark.timeout(300)
POINTS = 5
"""The kill points of an answer (dataplane/control_ring.pyx); at the last one it is published, and no event was sent."""
STAGED = 8
"""Buffers of each ring that are staged."""
KILLS = 25
MOST = 0.06
"""Seconds to a random kill: about what a backend takes to adopt a guest and to serve some messages."""
IP = (b"\x08\x00", b"\x86\xdd")
Message = tuple[int, ...]
"""Type and data of a request."""


class Talk:
    """A guest's control ring, with the model of what its backend's answers are."""

    def __init__(self, vif: GuestVif) -> None:
        assert vif.frontend.control is not None
        assert vif.frontend.rings is not None
        self.vif, self.control = vif, vif.frontend.control
        self.model = netif.Control(1, {})
        self.answers = 0
        self._pages: list[GrantedPage] = []
        rings = vif.frontend.rings
        self.buffers = {
            GREF_READONLY: [page.gref for page in rings.tx_buffers[:STAGED]],
            0: [page.gref for page in rings.rx_buffers[:STAGED]],
        }

    def page(self, data: bytes) -> int:
        """Grant a page with these bytes."""
        page = self.control.grant(data)
        self._pages.append(page)
        self.model.pages[page.gref] = data.ljust(PAGE_SIZE, b"\0")
        return page.gref

    def list_of(self, flags: int) -> int:
        """Grant a page that lists buffers."""
        return self.page(b"".join(GREF_ENTRY.pack(gref, flags, 0xFFFF) for gref in self.buffers[flags]))

    async def send(self, kind: int, *data: int) -> None:
        """Send a request; the answer, and what it writes into the guest's pages, is the model's."""
        numbers = (*data, 0, 0, 0)[:3]
        async with asyncio.timeout(SECONDS):
            answer = await self.control.request(kind, *numbers)
        assert answer == self.model.answer(kind, *numbers), (kind, data)
        assert self.control.ring.rsp_prod == self.control.ring.req_prod
        for page in self._pages:
            assert page.read(0, PAGE_SIZE) == self.model.pages[page.gref], (kind, data)
        self.answers += 1

    async def in_force(self) -> None:
        """What the model has is what the backend does with pages and frames."""
        domain = self.vif.frontend.guest.domain
        await until(
            lambda: all(
                domain.still_in_use(gref) is (gref in self.model.staged)
                for grefs in self.buffers.values()
                for gref in grefs
            )
        )
        before = (await counters(self.vif.frontend))["rx_hashed"]
        flow = self.vif.rx
        count = next(n for n in range(100) if flow.message(flow.sent + n)[22:24] in IP)
        flow.send(count + 1)
        await flow.caught_up(SECONDS)
        hashed = (await counters(self.vif.frontend))["rx_hashed"] - before
        assert hashed == bool(self.model.algorithm and self.model.types)


def every_message(talk: Talk) -> list[Message]:
    """Each type of message, so that each finds what the ones before it set; the last ones take everything back."""
    key, mapping = talk.page(bytes(range(1, 41))), talk.page(MAPPING_ENTRY.pack(0) * 4)
    lists = [talk.list_of(flags) for flags in talk.buffers]
    return [
        (netif.SET_HASH_ALGORITHM, netif.TOEPLITZ),
        (netif.GET_HASH_FLAGS,),
        (netif.SET_HASH_KEY, key, 40),
        (netif.GET_HASH_MAPPING_SIZE,),
        (netif.SET_HASH_MAPPING_SIZE, 8),
        (netif.SET_HASH_MAPPING, mapping, 4, 4),
        (netif.SET_HASH_FLAGS, netif.ALL_TYPES),
        (netif.GET_GREF_MAPPING_SIZE, 0),
        *((netif.ADD_GREF_MAPPING, 0, page, STAGED) for page in lists),
        *((netif.DEL_GREF_MAPPING, 0, page, STAGED) for page in lists),
        (netif.SET_HASH_MAPPING_SIZE, 0),
        (netif.SET_HASH_FLAGS, 0),
        (netif.SET_HASH_ALGORITHM, netif.NONE),
    ]


async def dies_in(made: Topology, talk: Talk, point: int, message: Message) -> None:
    """A backend dies at a kill point of this message's answer; the next one serves the guest."""
    made.backends.start(workers=1, after=point)
    sending = asyncio.create_task(talk.send(*message))
    await made.backends.end()
    ring = talk.control.ring
    assert (ring.rsp_prod == ring.req_prod) is (point == POINTS), "another kill point than expected"
    made.backends.start(workers=1)
    await sending
    await talk.in_force()
    await made.backends.kill()


@pytest.mark.parametrize("point", range(1, POINTS + 1))
async def test_any_step_of_any_message(xen: Path, point: int) -> None:
    async with topology(xen, [FrontConfig(control=True)]) as made:
        talk = Talk(made.vifs[0])
        await made.backends.kill()
        for message in every_message(talk):
            await dies_in(made, talk, point, message)
        made.backends.start()
        await made.stop_sending()


async def test_any_moment(xen: Path) -> None:
    """Backends die while the guest sends messages, right and wrong ones, one after the other."""
    rng = random.Random(10)
    async with topology(xen, [FrontConfig(control=True)]) as made:
        talk = Talk(made.vifs[0])
        messages = every_message(talk)
        ended: list[bool] = []

        async def talks() -> None:
            while not ended:
                await talk.send(*rng.choice(messages))

        talking = asyncio.create_task(talks())
        for _ in range(KILLS):
            await asyncio.sleep(rng.uniform(0, MOST))
            await made.backends.kill()
            made.backends.start()
            await answers_more(talk, talking)
        ended.append(True)
        await talking
        await talk.in_force()
        await made.stop_sending()


async def answers_more(talk: Talk, talking: asyncio.Task[None]) -> None:
    """Wait for an answer of the present backend, or for the end of the talk."""
    seen = talk.answers
    await until(lambda: talk.answers > seen or talking.done())
