# SPDX-License-Identifier: Apache-2.0
"""Keys and states as netfront writes them, for a device that appears late, and for one that is removed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from netback.abi.xenbus import XenbusState
from netback.dataplane.caps import Can
from netback.errors import PlatformError
from netback.frontend import BackendError, BackFeatures, FrontConfig, Frontend, Guest, run_guest
from netback.frontend.profiles import LINUX
from netback.vif.features import Limits, offer
from tests.frontend import frames
from tests.frontend.backend import HandBackend
from tests.frontend.pair import SECONDS, Pair, connected

CONNECTED, CLOSING, CLOSED = XenbusState.CONNECTED, XenbusState.CLOSING, XenbusState.CLOSED
INIT_WAIT = XenbusState.INIT_WAIT

FEATURES = {
    "request-rx-copy": "1",
    "feature-rx-notify": "1",
    "feature-sg": "1",
    "feature-gso-tcpv4": "1",
    "feature-gso-tcpv6": "1",
    "feature-ipv6-csum-offload": "1",
}


@pytest.mark.parametrize(
    ("config", "without", "more"),
    [
        (FrontConfig(), (), {}),
        (FrontConfig(sg=False), ("feature-sg",), {}),
        (FrontConfig(gso4=False), ("feature-gso-tcpv4",), {}),
        (FrontConfig(gso6=False), ("feature-gso-tcpv6",), {}),
        (FrontConfig(csum4=False), (), {"feature-no-csum-offload": "1"}),
        (FrontConfig(csum6=False), ("feature-ipv6-csum-offload",), {}),
        (FrontConfig(rx_notify=False), ("feature-rx-notify",), {}),
    ],
)
async def test_keys(xen: Path, config: FrontConfig, without: tuple[str, ...], more: dict[str, str]) -> None:
    async with connected(xen, config, serve=False) as pair:
        wanted = {key: value for key, value in FEATURES.items() if key not in without} | more
        keys = pair.back.keys
        assert {key: keys[key] for key in keys if key.startswith(("feature-", "request-"))} == wanted
        assert pair.vif.rings is not None
        assert {key: keys[key] for key in pair.vif.rings.nodes()} == pair.vif.rings.nodes()


@pytest.mark.parametrize(
    ("keys", "sg", "caps"),
    [
        (offer(Limits()), True, Can.CSUM4 | Can.CSUM6 | Can.TSO4 | Can.TSO6),
        ({}, False, Can.CSUM4),
        ({"feature-sg": "1", "feature-gso-tcpv4": "1"}, True, Can.CSUM4 | Can.TSO4),
        ({"feature-gso-tcpv4": "1"}, False, Can.CSUM4),
        ({"feature-sg": "1", "feature-gso-tcpv6": "1"}, True, Can.CSUM4),
        ({"feature-no-csum-offload": "1", "feature-sg": "1", "feature-gso-tcpv4": "1"}, True, Can(0)),
        ({"feature-sg": "yes"}, False, Can.CSUM4),
    ],
)
def test_the_features_of_a_backend(keys: dict[str, str], sg: bool, caps: Can) -> None:
    features = BackFeatures.of(keys)
    assert (features.sg, features.caps) == (sg, caps)


CHANNELS = {"event-channel", "event-channel-tx", "event-channel-rx"}


async def test_an_event_channel_for_each_ring_where_it_is_offered(xen: Path) -> None:
    """The keys of an earlier connection go: a backend that knows both would take the wrong ports."""
    one, two = {"event-channel"}, {"event-channel-tx", "event-channel-rx"}
    plain = offer(Limits(split=False))
    for config, offered, wanted in (
        (FrontConfig(), offer(Limits()), two),
        (FrontConfig(split=False), offer(Limits()), one),
        (FrontConfig(), plain, one),
    ):
        async with connected(xen, config, offer=offered, serve=False) as pair:
            assert set(pair.back.keys) & CHANNELS == wanted
    async with Frontend(xen) as vif, HandBackend(xen, vif.guest.domid) as back:
        await vif.connected()
        for config, wanted in ((FrontConfig(split=False), one), (FrontConfig(), two)):
            vif.config = config
            await vif.reload()
            await back.set_state(INIT_WAIT)
            await vif.connected()
            assert set(back.keys) & CHANNELS == wanted
            await Pair(vif, back).both_ways(frames.ONE_SLOT)
        await vif.close()


async def test_states_go_up_and_down_in_order(xen: Path) -> None:
    seen: list[tuple[str, XenbusState]] = []
    vif = Frontend(xen, on_state=lambda side, state: seen.append((side, state)))
    async with vif, HandBackend(xen, vif.guest.domid):
        await vif.connected()
        await vif.close()
    assert seen == [
        ("backend", INIT_WAIT),
        ("frontend", CONNECTED),
        ("backend", CONNECTED),
        ("frontend", CLOSING),
        ("backend", CLOSING),
        ("frontend", CLOSED),
        ("backend", CLOSED),
    ]


async def test_a_backend_without_rx_copy_is_refused(xen: Path) -> None:
    async with Frontend(xen) as vif, HandBackend(xen, vif.guest.domid, offer={"feature-sg": "1"}):
        with pytest.raises(BackendError, match="feature-rx-copy"):
            await vif.connected()
        assert await vif.store.read("device/vif/0/state") == "1"


async def test_a_backend_that_closes_is_followed_and_connected_to_again(xen: Path) -> None:
    """With pages for one and a half connections: each connection releases all its pages."""
    async with Guest(xen, pages=700) as guest, connected(guest, directory=xen) as pair:
        for _ in range(3):
            await pair.both_ways(frames.ONE_SLOT)
            await pair.back.close_device()
            await pair.vif.disconnected()
            assert await pair.vif.store.read("device/vif/0/state") == str(CLOSED.value)
            await pair.back.set_state(INIT_WAIT)
            await pair.vif.connected()
        await pair.both_ways(frames.ONE_SLOT)


async def test_reload_with_another_agreement(xen: Path) -> None:
    async with Frontend(xen) as vif, HandBackend(xen, vif.guest.domid) as back:
        await vif.connected()
        vif.config = FrontConfig(sg=False, csum4=False)
        await vif.reload()
        await back.set_state(INIT_WAIT)
        await vif.connected()
        assert "feature-sg" not in back.keys
        assert back.keys["feature-no-csum-offload"] == "1"
        await Pair(vif, back).both_ways((*frames.BLANK4, *frames.GSO4))
        await vif.close()


async def test_a_backend_that_is_killed_and_restarted_is_not_noticed(xen: Path) -> None:
    seen: list[tuple[str, XenbusState]] = []
    async with Frontend(xen, on_state=lambda side, state: seen.append((side, state))) as vif:
        async with HandBackend(xen, vif.guest.domid, leave=False) as back:
            await vif.connected()
            await Pair(vif, back).both_ways(frames.ONE_SLOT)
        for _ in range(3):
            waiting = frames.GSO4[2]
            await vif.network.send(waiting)  # no backend runs: it waits in the ring
            async with HandBackend(xen, vif.guest.domid, adopt=True, leave=False) as back:
                pair = Pair(vif, back)
                assert await asyncio.wait_for(pair.host_net.recv(), 10) == waiting
                await pair.both_ways((*frames.ONE_SLOT, *frames.GSO6))
        assert seen[-1] == ("backend", CONNECTED)
        assert vif.queue is not None
        assert vif.broken is None
        async with HandBackend(xen, vif.guest.domid, adopt=True):
            await vif.close()


async def test_a_device_that_is_taken_away_and_given_again(xen: Path) -> None:
    async with Frontend(xen) as vif:
        for _ in range(2):
            async with HandBackend(xen, vif.guest.domid) as back:
                await vif.connected()
                await Pair(vif, back).both_ways(frames.ONE_SLOT)
                await back.remove_device()
                await vif.disconnected()


async def test_two_devices_of_one_guest(xen: Path) -> None:
    async with Guest(xen) as guest:
        one, two = (connected(guest, directory=xen, index=index) for index in range(2))
        async with one as first, two as second:
            await asyncio.gather(first.both_ways(frames.GSO4), second.both_ways(frames.GSO6))


async def test_the_end_of_the_store_ends_a_wait(xen: Path) -> None:
    async with Frontend(xen) as vif:
        waiting = asyncio.create_task(vif.connected())
        await asyncio.sleep(0)
        await vif.store.close()
        with pytest.raises(PlatformError, match="EIO"):
            await asyncio.wait_for(waiting, 10)


async def test_run_guest_is_a_guest_until_it_is_cancelled(xen: Path) -> None:
    joined: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    states: asyncio.Queue[tuple[str, XenbusState]] = asyncio.Queue()
    guest = asyncio.create_task(
        run_guest(
            xen,
            "null",
            name="runner",
            on_joined=joined.set_result,
            on_state=lambda side, state: states.put_nowait((side, state)),
        )
    )
    domid = await asyncio.wait_for(joined, 10)
    async with HandBackend(xen, domid) as back, asyncio.timeout(10):
        assert await back.store.read(f"/local/domain/{domid}/name") == "runner"
        while await states.get() != ("backend", CONNECTED):
            continue
        guest.cancel()
        await asyncio.wait([guest])
        await back.state(CLOSED)
    assert guest.cancelled()


async def test_keys_that_come_before_the_others(xen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux's netfront writes `xdp-headroom` before its transaction, and so once."""
    async with Frontend(xen, handshake=LINUX.handshake) as vif:
        before: list[list[str]] = []
        writes: list[str] = []
        write, transact = vif.store.write, vif.store.transact

        async def recorded_write(path: str, value: str, tx: int | None = None) -> None:
            writes.append(path.rpartition("/")[2])
            await write(path, value, tx)

        async def recorded_transact(body: Callable[[int], Awaitable[None]]) -> None:
            before.append(await vif.store.directory(vif.path))
            await transact(body)

        monkeypatch.setattr(vif.store, "write", recorded_write)
        monkeypatch.setattr(vif.store, "transact", recorded_transact)
        async with HandBackend(xen, vif.guest.domid), asyncio.timeout(SECONDS):
            await vif.connected()
        assert "xdp-headroom" in before[0]
        assert "tx-ring-ref" not in before[0]
        assert writes.count("xdp-headroom") == 1


@pytest.mark.parametrize("turns", range(0, 40, 2))
async def test_a_frontend_that_ends_while_its_device_goes(xen: Path, turns: int) -> None:
    """The fault: a second cancellation came while a task was waited for, and tasks stayed."""
    async with Frontend(xen) as vif, HandBackend(xen, vif.guest.domid) as back:
        await vif.connected()
        await back.remove_device()
        for _ in range(turns):
            await asyncio.sleep(0)
        await vif.close()
        assert not [task for task in asyncio.all_tasks() if "Frontend" in task.get_coro().__qualname__]
