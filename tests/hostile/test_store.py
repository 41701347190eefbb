# SPDX-License-Identifier: Apache-2.0
"""Hostile store contents, end to end: a guest may write anything into its own directory."""

import asyncio
import logging
import random

import pytest

from netback.abi.netif_keys import Key
from netback.abi.xenbus import XenbusState as State
from netback.platforms.emulated.protocol import PortState
from netback.vif.features import KEYS, LIVE
from netback.xenstore.aio import StoreError
from tests.hostile.topology import SECONDS, Topology, holdings

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
"""Empty, padded, signed, hexadecimal, not ASCII, not text, a format string, beyond 32 bits, a path."""


@pytest.mark.parametrize("key", KEYS)
async def test_nonsense_in_a_key(topology: Topology, key: str) -> None:
    """XSA-175, -178: strictly decimal and in range, or this vif closes and names the key; the reason quotes only a few
    words of the value, escaped."""
    await topology.bad.offered()
    may_miss = key not in KEYS[:4]
    beside = {"ctrl_ring_ref": "8"} if key == Key.EVENT_CHANNEL_CTRL else {}  # read only beside a ring
    for text in NONSENSE:
        if may_miss and text == "":
            continue  # counts as absent, which is allowed
        await topology.say(**beside, **{key.replace("-", "_"): text})
        await topology.closes(f"the frontend's {key} is ")
        error = await topology.backend.store.read(f"{topology.name.errors}/error")
        assert len(error) < 200
        assert error.isprintable()
        await topology.bad.set_state(State.CLOSED)
        await topology.state(State.CLOSED)
        await topology.bad.set_state(State.INITIALISING)
        await topology.state(State.INIT_WAIT)
    for name in (key, *(name.replace("_", "-") for name in beside)):
        await topology.bad.remove(name)
    await topology.bad.open_rings()
    async with asyncio.timeout(SECONDS):
        await topology.bad.connect()
    await topology.works()


@pytest.mark.parametrize("key", LIVE)
async def test_nonsense_in_a_key_of_a_connected_guest(topology: Topology, key: str) -> None:
    """The keys that the backend watches: as strict as on connecting, whatever state the guest claims meanwhile."""
    await topology.connect()
    for text in NONSENSE[1:]:  # an empty one counts as absent
        await topology.works()
        await topology.bad.set_state(State.RECONFIGURING)
        await topology.bad.write(key, text)
        await topology.closes(f"the frontend's {key} is ")
        await topology.bad.remove(key)
        await topology.comes_back()


async def test_a_flood_of_changes_to_live_keys(topology: Topology) -> None:
    """XSA-349: as for `state`. Frames go on, and the last value counts."""
    await topology.connect()
    device = topology.backend.devices[topology.name]
    before = device.rounds
    writes = [topology.bad.write(key, str(n % 2)) for n in range(1, 1000) for key in LIVE]
    await asyncio.gather(*writes, topology.others_pass(20))

    def follows() -> bool:
        live = device.config and device.config.live
        return live is not None and (live.multicast_control, live.xdp_headroom) == (True, 1)

    await topology.until(follows)
    await topology.works()
    assert 1 <= device.rounds - before < 1000, f"{device.rounds - before} rounds for 1998 writes"
    assert not topology.warnings


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
async def test_numbers_that_lead_nowhere(topology: Topology, what: str) -> None:
    """Well-formed and wrong: the vif closes, nothing stays mapped or bound, and valid keys connect it."""
    keys = WRONG[what]
    await topology.bad.offered()
    before = holdings()
    await topology.say(**keys)
    await topology.closes("the frontend's ")
    await topology.others_pass()
    assert holdings() == before
    for key in keys:
        await topology.bad.remove(key.replace("_", "-"))
    await topology.comes_back()


async def test_one_of_two_event_channels_leads_nowhere(topology: Topology) -> None:
    """The other one is not kept bound."""
    await topology.bad.offered()
    before = holdings()
    port = topology.bad.rings.tx_port
    for channels in ((str(port), "77"), ("77", str(port))):
        await topology.say(event_channel_tx=channels[0], event_channel_rx=channels[1])
        await topology.closes(("the frontend's event-channel-tx 77", "the frontend's event-channel-rx 77"))
        assert topology.bad.events.status(port) is PortState.UNBOUND
        assert holdings() == before
        for state, answer in ((State.CLOSED, State.CLOSED), (State.INITIALISING, State.INIT_WAIT)):
            await topology.bad.set_state(state)
            await topology.state(answer)
    await topology.others_pass()
    for key in ("event-channel-tx", "event-channel-rx"):
        await topology.bad.remove(key)
    await topology.say()
    await topology.state(State.CONNECTED)
    await topology.works()


async def test_keys_that_nobody_asked_for(topology: Topology) -> None:
    """Queues and channels that were not offered, and directories in place of values, are not read."""
    await topology.bad.offered()
    for key in (
        "queue-0/tx-ring-ref",
        "queue-0/rx-ring-ref",
        "queue-7/event-channel-tx",
        "event-channel-tx",
    ):
        await topology.bad.write(key, "4294967295")
    for key in (*KEYS, "state"):
        await topology.bad.write(f"{key}/below/it", "x" * 1000)
    async with asyncio.timeout(SECONDS):
        await topology.bad.connect()
    await topology.works()


@pytest.mark.parametrize("text", NONSENSE)
async def test_a_state_that_is_none(topology: Topology, text: str) -> None:
    """Counts as a missing directory: the rings are disconnected, and an honest start works."""
    await topology.connect()
    await topology.bad.write("state", text)
    await topology.state(State.CLOSED)
    domain = topology.bad.guest.domain
    assert not domain.still_in_use(topology.bad.rings.tx.gref)
    await topology.others_pass()
    await topology.comes_back()


async def test_a_directory_that_comes_and_goes(topology: Topology) -> None:
    """The guest removes its own directory while frames flow and writes it again, many times."""
    frontend = f"/local/domain/{topology.bad.guest.domid}/{topology.bad.path}"
    await topology.connect()
    for _ in range(10):
        await topology.works()
        await topology.bad.guest.store.rm(frontend)
        await topology.state(State.CLOSED)
        await topology.others_pass(1)
        await topology.bad.write("backend", topology.name.backend)
        await topology.bad.write("backend-id", "0")
        await topology.comes_back()


async def test_states_that_flap(topology: Topology) -> None:
    """XSA-157, -180: a guest that breaks its vif for ever does not fill the log; its last lines count repetitions."""
    await topology.bad.offered()
    for _ in range(60):
        await topology.say(tx_ring_ref="nonsense")
        await topology.state(State.CLOSING)
        await topology.bad.set_state(State.CLOSED)
        await topology.state(State.CLOSED)
        await topology.bad.set_state(State.INITIALISING)
        await topology.state(State.INIT_WAIT)
    assert 1 <= len(topology.warnings) <= 20
    await topology.others_pass()


@pytest.mark.parametrize("seed", range(8))
async def test_states_in_any_order(topology: Topology, seed: int) -> None:
    """States that change faster than the backend reads, with a restart before its answer: it is still answered."""
    chance = random.Random(seed)
    await topology.connect()
    for _ in range(6):
        await topology.works()
        for number in range(chance.randrange(1, 60)):
            await topology.bad.set_state(number % 10)
            for _ in range(chance.choice((0, 0, 0, 3, 10))):
                await asyncio.sleep(0)
        await topology.comes_back()


async def test_a_flood_of_changes(topology: Topology) -> None:
    """XSA-349: thousands of writes to a watched node wake the backend once per read."""
    await topology.connect()
    device = topology.backend.devices[topology.name]
    before = device.rounds
    writes = [topology.bad.set_state(State.CONNECTED) for _ in range(5000)]
    await asyncio.gather(*writes, topology.others_pass(20))
    await topology.works()
    assert 1 <= device.rounds - before < 2500, f"{device.rounds - before} rounds for 5000 writes"


async def test_a_guest_that_never_rests(topology: Topology) -> None:
    """XSA-206: the backend's transactions are short, and retried with a bound; no other guest waits for them.

    The device ends where its facts lead, whatever its guest writes meanwhile.
    """
    await topology.connect()
    stop = asyncio.Event()

    async def hammer() -> None:
        store = topology.bad.guest.store
        while not stop.is_set():
            await store.transact(lambda tx: store.write(f"{topology.bad.path}/junk", "1", tx))

    hammering = [asyncio.create_task(hammer()) for _ in range(4)]
    try:
        for _ in range(5):
            await topology.bad.set_state(State.CLOSED)
            await topology.state(State.CLOSED)
            await topology.bad.set_state(State.INITIALISING)
            await topology.state(State.INIT_WAIT)
            await topology.say()
            await topology.state(State.CONNECTED)
            await topology.others_pass(2)
    finally:
        stop.set()
        await asyncio.gather(*hammering)
    await topology.works()


async def test_a_port_that_is_taken(topology: Topology) -> None:
    """Another process of the backend's domain has it bound: tried again for 1.3 s, then the vif closes."""
    await topology.bad.offered()
    port = topology.bad.events.alloc_unbound(0)
    events = topology.backend.platform.open_events()
    try:
        events.bind_interdomain(topology.bad.guest.domid, port)
        await topology.say(event_channel=str(port))
        await topology.closes(f"the frontend's event-channel {port} cannot be bound: ")
    finally:
        events.close()
    await topology.comes_back()


async def test_the_store_is_full_for_the_guest_alone(topology: Topology) -> None:
    """XSA-115, -354: a guest that uses up its quotas is refused more; the backend and the other guests work."""
    await topology.connect()
    store, refused = topology.bad.guest.store, set[str]()
    for number in range(1200):
        try:
            await store.write(f"data/{number}", "x" * 1500)
        except StoreError as error:
            refused.add(error.errno)
    assert refused == {"ENOSPC"}
    with pytest.raises(StoreError, match="EACCES"):
        await store.write(f"{topology.name.backend}/state", "4")
    with pytest.raises(StoreError, match="EACCES"):
        await store.read("/local/domain/0/name")
    with pytest.raises(StoreError, match="EACCES"):
        await store.read(f"/local/domain/{topology.good.guest.domid}/device/vif/0/state")
    await topology.works()
    await topology.bad.set_state(State.CLOSED)
    await topology.state(State.CLOSED)
    assert logging.WARNING not in {record.levelno for record in topology.caplog.records}
