# SPDX-License-Identifier: Apache-2.0
"""Hostile words in the store, end to end: what a guest may write into its own directory, it may write as it likes."""

import asyncio
import logging
import random

import pytest

from netback.abi.xenbus import XenbusState as State
from netback.vif.features import KEYS
from netback.xenstore.aio import StoreError
from tests.hostile.scene import SECONDS, Scene, holdings

NONSENSE = (
    "",
    " 8",
    "8\n",
    "08 ",
    "-1",
    "+8",
    "0x8",
    "1e3",
    "8.0",
    "\u0668",
    "\udcff\udcfe",
    "\x00\x01",
    "%s%n{0}",
    "99999999999",
    "4294967296",
    "9" * 1900,
    "/local/domain/0",
    "../../0/backend",
)
"""Empty, padded, signed, hexadecimal, not ASCII, not even text, for a formatter, beyond 32 bits, a path."""


@pytest.mark.parametrize("key", KEYS)
async def test_nonsense_in_a_key(scene: Scene, key: str) -> None:
    """XSA-175, -178: strictly decimal and in range, or this vif closes and says which key; never more than a few words
    of it come back in the reason, and those escaped."""
    await scene.bad.offered()
    may_miss = key not in KEYS[:4]
    for text in NONSENSE:
        if may_miss and text == "":
            continue  # as good as absent, which is allowed
        await scene.say(**{key.replace("-", "_"): text})
        await scene.closes(f"the frontend's {key} is ")
        error = await scene.backend.store.read(f"{scene.name.errors}/error")
        assert len(error) < 200
        assert error.isprintable()
        await scene.bad.set_state(State.CLOSED)
        await scene.state(State.CLOSED)
        await scene.bad.set_state(State.INITIALISING)
        await scene.state(State.INIT_WAIT)
    await scene.bad.remove(key)
    await scene.bad.open_rings()
    async with asyncio.timeout(SECONDS):
        await scene.bad.connect()
    await scene.works()


WRONG: dict[str, dict[str, str | None]] = {
    "no tx ring": {"tx_ring_ref": None},
    "the same page twice, and not a ring": {"tx_ring_ref": "0", "rx_ring_ref": "0"},
    "a gref of nothing": {"tx_ring_ref": "3000"},
    "a gref beyond the table": {"rx_ring_ref": "4294967295"},
    "a port of nothing": {"event_channel": "77"},
    "no queue": {"multi_queue_num_queues": "0"},
    "two queues": {"multi_queue_num_queues": "2"},
    "all the queues there are": {"multi_queue_num_queues": "4294967295"},
}


@pytest.mark.parametrize("what", WRONG)
async def test_numbers_that_lead_nowhere(scene: Scene, what: str) -> None:
    """Well-written and wrong: the vif closes, nothing stays mapped or bound, and better keys connect it."""
    keys = WRONG[what]
    await scene.bad.offered()
    before = holdings()
    await scene.say(**keys)
    await scene.closes("the frontend's ")
    await scene.others_pass()
    assert holdings() == before
    for key in keys:
        await scene.bad.remove(key.replace("_", "-"))
    await scene.comes_back()


async def test_keys_that_nobody_asked_for(scene: Scene) -> None:
    """Queues and channels that were not offered, and directories where values should be, are not even read."""
    await scene.bad.offered()
    for key in (
        "queue-0/tx-ring-ref",
        "queue-0/rx-ring-ref",
        "queue-7/event-channel-tx",
        "event-channel-tx",
        "ctrl-ring-ref",
    ):
        await scene.bad.write(key, "4294967295")
    for key in (*KEYS, "state"):
        await scene.bad.write(f"{key}/below/it", "x" * 1000)
    async with asyncio.timeout(SECONDS):
        await scene.bad.connect()
    await scene.works()


@pytest.mark.parametrize("text", NONSENSE)
async def test_a_state_that_is_none(scene: Scene, text: str) -> None:
    """As good as a directory that is gone: the rings are down, and an honest start works."""
    await scene.connect()
    await scene.bad.write("state", text)
    await scene.state(State.CLOSED)
    domain = scene.bad.guest.domain
    assert not domain.still_in_use(scene.bad.rings.tx.gref)
    await scene.others_pass()
    await scene.comes_back()


async def test_a_directory_that_comes_and_goes(scene: Scene) -> None:
    """The guest's own directory: removed while frames flow, written anew, again and again."""
    frontend = f"/local/domain/{scene.bad.guest.domid}/{scene.bad.path}"
    await scene.connect()
    for _ in range(10):
        await scene.works()
        await scene.bad.guest.store.rm(frontend)
        await scene.state(State.CLOSED)
        await scene.others_pass(1)
        await scene.bad.write("backend", scene.name.backend)
        await scene.bad.write("backend-id", "0")
        await scene.comes_back()


async def test_states_that_flap(scene: Scene) -> None:
    """XSA-157, -180: a guest that breaks its vif for ever fills no log; the last lines say how often it did."""
    await scene.bad.offered()
    for _ in range(60):
        await scene.say(tx_ring_ref="nonsense")
        await scene.state(State.CLOSING)
        await scene.bad.set_state(State.CLOSED)
        await scene.state(State.CLOSED)
        await scene.bad.set_state(State.INITIALISING)
        await scene.state(State.INIT_WAIT)
    assert 1 <= len(scene.warnings) <= 20
    await scene.others_pass()


@pytest.mark.parametrize("seed", range(8))
async def test_states_in_any_order(scene: Scene, seed: int) -> None:
    """Faster than the backend looks, and not waiting for it when it begins anew: it is answered all the same."""
    chance = random.Random(seed)
    await scene.connect()
    for _ in range(6):
        await scene.works()
        for number in range(chance.randrange(1, 60)):
            await scene.bad.set_state(number % 10)
            for _ in range(chance.choice((0, 0, 0, 3, 10))):
                await asyncio.sleep(0)
        await scene.comes_back()


async def test_a_flood_of_changes(scene: Scene) -> None:
    """XSA-349: thousands of writes to a watched node are one piece of news each time that the backend looks."""
    await scene.connect()
    device = scene.backend.devices[scene.name]
    before = device.rounds
    writes = [scene.bad.set_state(State.CONNECTED) for _ in range(5000)]
    await asyncio.gather(*writes, scene.others_pass(20))
    await scene.works()
    assert 1 <= device.rounds - before < 2500, f"{device.rounds - before} rounds for 5000 writes"


async def test_a_guest_that_never_rests(scene: Scene) -> None:
    """XSA-206: transactions of the backend are short, tried again with a bound, and hold up nobody; so the device ends
    where its facts lead, however its guest writes meanwhile."""
    await scene.connect()
    stop = asyncio.Event()

    async def hammer() -> None:
        store = scene.bad.guest.store
        while not stop.is_set():
            await store.transact(lambda tx: store.write(f"{scene.bad.path}/junk", "1", tx))

    hammering = [asyncio.create_task(hammer()) for _ in range(4)]
    try:
        for _ in range(5):
            await scene.bad.set_state(State.CLOSED)
            await scene.state(State.CLOSED)
            await scene.bad.set_state(State.INITIALISING)
            await scene.state(State.INIT_WAIT)
            await scene.say()
            await scene.state(State.CONNECTED)
            await scene.others_pass(2)
    finally:
        stop.set()
        await asyncio.gather(*hammering)
    await scene.works()


async def test_a_port_that_is_taken(scene: Scene) -> None:
    """Somebody of the backend's domain has it bound: tried again for a moment, then the vif closes."""
    await scene.bad.offered()
    port = scene.bad.events.alloc_unbound(0)
    events = scene.backend.platform.open_events()
    try:
        events.bind_interdomain(scene.bad.guest.domid, port)
        await scene.say(event_channel=str(port))
        await scene.closes(f"the frontend's event-channel {port} cannot be bound: ")
    finally:
        events.close()
    await scene.comes_back()


async def test_the_store_is_full_for_the_guest_alone(scene: Scene) -> None:
    """XSA-115, -354: who takes all that its quotas give is refused more; backend and others work."""
    await scene.connect()
    store, refused = scene.bad.guest.store, set[str]()
    for number in range(1200):
        try:
            await store.write(f"data/{number}", "x" * 1500)
        except StoreError as error:
            refused.add(error.errno)
    assert refused == {"ENOSPC"}
    with pytest.raises(StoreError, match="EACCES"):
        await store.write(f"{scene.name.backend}/state", "4")
    with pytest.raises(StoreError, match="EACCES"):
        await store.read("/local/domain/0/name")
    with pytest.raises(StoreError, match="EACCES"):
        await store.read(f"/local/domain/{scene.good.guest.domid}/device/vif/0/state")
    await scene.works()
    await scene.bad.set_state(State.CLOSED)
    await scene.state(State.CLOSED)
    assert logging.WARNING not in {record.levelno for record in scene.caplog.records}
