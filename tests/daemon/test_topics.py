# SPDX-License-Identifier: Apache-2.0
"""What subscribers are told of devices: states, notices, trace points, statistics, from the first moment on."""

import asyncio
import selectors
import sys
import time
from collections.abc import Coroutine, Iterable
from pathlib import Path
from typing import Any

import pytest

from netback.abi.xenbus import XenbusState as State
from netback.control import Client, ControlError, Subscription
from netback.control.feed import MAX_EVENTS, Batch
from netback.control.rpc import Code
from netback.control.schema import DeviceStatistics, SubscribeRequest
from netback.daemon import Backend, topics
from netback.daemon.topics import Sources
from netback.net.python import PythonNetwork
from netback.observe.trace import SLOTS, TRACE_POINTS, Tracer
from netback.xenbus.names import DeviceName
from tests.daemon.talk import Talk, client, talking
from tests.vif.guest import FRAME, SECONDS, Guest, exchange, until_state

Event = dict[str, Any]
EXAMPLE = Path(__file__).parents[2] / "examples" / "until_connected.py"


async def events(talk: Talk, last: Event) -> list[Event]:
    """Events up to one that has these values."""
    seen: list[Event] = []
    while True:
        for event in (await talk.read())["params"]["events"]:
            seen.append(event)
            if last.items() <= event.items():
                return seen


def states(seen: Iterable[Event]) -> list[tuple[str, str]]:
    return [(event["backend"], event["frontend"]) for event in seen]


@pytest.fixture
async def name(backend: Backend, guest: Guest) -> DeviceName:
    made = await backend.attach(guest.domid, "python:lan")
    await until_state(guest.store, made.backend, State.INIT_WAIT)
    return made


async def test_the_life_of_a_device(xen: Path, backend: Backend, guest: Guest) -> None:
    """A subscription begins with the present states, and misses none; an error and its end are told, too."""
    async with talking(xen) as talk:
        assert (await talk.subscribe("states"))["events"] == []
        name = await backend.attach(guest.domid, "packet:missing0")
        seen = await events(talk, {"device": str(name), "backend": "InitWait", "error": None})
        while seen[-1]["error"] is None:
            seen += (await talk.read())["params"]["events"]
        assert "missing0" in seen[-1]["error"]
        await backend.store.write(f"{name.backend}/net", "python:lan")
        await events(talk, {"error": None})
        async with talking(xen) as late:
            first = (await late.subscribe("states"))["events"]
            assert [(event["device"], event["gone"]) for event in first] == [(str(name), False)]
        await guest.connect()
        await events(talk, {"backend": "Connected", "frontend": "Connected"})
        await guest.set_state(State.CLOSED)
        seen = await events(talk, {"backend": "Closed"})
        assert states(seen) == [("Connected", "Closed"), ("Closing", "Closed"), ("Closed", "Closed")]
        await backend.store.write(f"{name.backend}/online", "0")
        assert await events(talk, {"gone": True})


async def test_one_device(xen: Path, backend: Backend, guest: Guest, name: DeviceName) -> None:
    other = await backend.attach(guest.domid, "null")
    async with talking(xen) as talk:
        first = await talk.subscribe("states", device=str(other))
        assert [event["device"] for event in first["events"]] == [str(other)]
        await guest.connect()
        await backend.store.write(f"{other.backend}/online", "0")
        assert {event["device"] for event in await events(talk, {"gone": True})} == {str(other)}


@pytest.mark.parametrize("topic", ["states", "notices", "statistics", "trace"])
async def test_a_device_that_does_not_exist(xen: Path, backend: Backend, topic: str) -> None:
    async with talking(xen) as talk:
        talk.call("subscribe", topic=topic, device="vif77.0")
        error = (await talk.read())["error"]
        assert (error["code"], error["message"]) == (Code.REFUSED, "there is no device vif77.0")


async def test_a_broken_guest_is_a_notice(xen: Path, name: DeviceName, guest: Guest) -> None:
    await guest.connect()
    async with talking(xen) as talk:
        await talk.subscribe("notices")
        guest.tx.index(0, guest.tx.index(0) + 1000)
        guest.kick()
        (event,) = await events(talk, {"device": str(name)})
        assert event["notice"] == "broken"
        assert "req_prod is impossible" in event["reason"]


async def test_slots_are_traced_while_somebody_subscribes(
    xen: Path,
    backend: Backend,
    name: DeviceName,
    guest: Guest,
    network: PythonNetwork,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The log shows none of it; after the last subscriber the data plane records nothing."""
    await guest.connect()
    async with talking(xen) as talk:
        await talk.subscribe("trace", points=["xen_netdev_tx", "*_disconnect"])
        before = time.time()
        await exchange(guest, network)
        (event,) = await events(talk, {"point": "xen_netdev_tx"})
        assert event["values"] == {
            "dev": str(name), "gref": guest.grefs[0], "offset": 0, "size": len(FRAME), "flags": "0",
        }  # fmt: skip
        assert before - 1 <= event["time"] <= time.time() + 1
        await guest.set_state(State.CLOSED)
        (event,) = await events(talk, {"point": "xen_netdev_disconnect"})
        assert event["values"] == {"dev": str(name)}
        await guest.set_state(State.INITIALISING)
        await guest.connect()
        await talk.ask("unsubscribe", subscription=1)
        assert not any(backend.tracer.on(point) for point in TRACE_POINTS)
        recorded: list[str] = []
        monkeypatch.setattr(backend.tracer, "emit", lambda point, *_, at=None: recorded.append(point))
        await exchange(guest, network)
        await backend.respond()
        assert recorded == []


async def test_without_points_the_data_plane_is_not_slowed_down(
    xen: Path, backend: Backend, name: DeviceName, guest: Guest
) -> None:
    async with talking(xen) as talk:
        await talk.subscribe("trace", device=str(name))
        assert {point for point in TRACE_POINTS if not backend.tracer.on(point)} == SLOTS
        await guest.connect()
        seen = await events(talk, {"point": "xen_device_backend_state"})
        assert seen[-1]["values"] == {"dev": str(name), "state": "Connected"}


async def test_a_trace_point_that_does_not_exist(xen: Path, backend: Backend) -> None:
    async with talking(xen) as talk:
        talk.call("subscribe", topic="trace", points=["xen_*", "tx"])
        error = (await talk.read())["error"]
        assert error["code"] == Code.REFUSED
        assert error["message"].startswith("no trace point matches 'tx': known are xen_device_backend_state")


async def test_statistics(xen: Path, name: DeviceName, guest: Guest, network: PythonNetwork) -> None:
    await guest.connect()
    await exchange(guest, network)
    async with talking(xen) as talk:
        (event,) = (await talk.subscribe("statistics", queues=True))["events"]
        assert (event["device"], event["queues"]) == (str(name), 1)
        assert (event["counters"]["tx_frames"], event["counters"]["rx_frames"]) == (1, 1)
        assert event["queue_counters"] == [event["counters"]]
        assert 0 not in event["counters"].values()
        assert event["pending"] == {"tx": 0, "rx": 0}


async def test_each_subscriber_has_its_points_and_its_losses(
    xen: Path, backend: Backend, name: DeviceName
) -> None:
    """Whatever the number of subscribers, the caller of a trace point pays for one event; each is seen or counted."""
    count = 5 * MAX_EVENTS
    async with talking(xen) as one, talking(xen) as other:
        await one.subscribe("trace", points=["xen_netdev_unrealize", "xen_netdev_destroy"])
        await other.subscribe("trace", points=["xen_netdev_unrealize"], device=str(name))

        def flood() -> None:
            for number in range(count):
                backend.tracer.emit("xen_netdev_unrealize", f"vif9.{number}")
            backend.tracer.emit("xen_netdev_destroy", name)

        await asyncio.to_thread(flood)
        seen = lost = 0
        while seen + lost < count + 1:
            event = (await one.read())["params"]
            seen += len(event["events"])
            lost += event["lost"]
        assert seen + lost == count + 1
        assert lost > 0
        backend.tracer.emit("xen_netdev_destroy", name)
        backend.tracer.emit("xen_netdev_unrealize", name)
        (event,) = await events(other, {"point": "xen_netdev_unrealize"})
        assert event["values"] == {"dev": str(name)}


# ---- the public client


async def test_the_client_iterates(xen: Path, backend: Backend, name: DeviceName, guest: Guest) -> None:
    def follow(made: Client) -> list[str]:
        with made.states() as found:
            seen = []
            for event in found:
                seen.append(event.backend)
                if event.backend == "Connected":
                    return seen
        return []

    following = asyncio.create_task(client(xen, follow))
    await guest.connect()
    assert (await following)[-1] == "Connected"

    def count(made: Client) -> list[DeviceStatistics]:
        with made.statistics(0.1) as snapshots:
            return next(snapshots.moments())

    (counted,) = await client(xen, count)
    assert (counted.device, counted.pending["tx"]) == (str(name), 0)


async def test_the_client_is_told_of_the_backends_end(xen: Path, backend: Backend) -> None:
    opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    loop = asyncio.get_running_loop()

    def follow(made: Client) -> None:
        with made.notices() as notices:
            loop.call_soon_threadsafe(opened.set_result, None)
            assert isinstance(notices, Subscription)
            for _ in notices:
                pass

    following = asyncio.create_task(client(xen, follow))
    await opened
    await backend.__aexit__(None, None, None)
    with pytest.raises(ControlError, match="the backend ended"):
        await following


async def test_the_example_waits_until_a_device_is_connected(
    xen: Path, backend: Backend, name: DeviceName, guest: Guest
) -> None:
    waiting = await asyncio.create_subprocess_exec(sys.executable, EXAMPLE, str(name), xen)
    await guest.connect()
    async with asyncio.timeout(SECONDS):
        assert await waiting.wait() == 0


# ---- when statistics are due


class Skipping(selectors.DefaultSelector):
    """Time passes at once while nothing happens."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.now += timeout or 0.0
        return super().select(0)


def skipping(run: Coroutine[None, None, None]) -> None:
    selector = Skipping()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now  # type: ignore[method-assign]
    try:
        loop.run_until_complete(run)
    finally:
        loop.close()


class Device:
    """One of a thousand."""

    def __init__(self, name: str) -> None:
        self.name, self.vif = name, None


class Thousand:
    """A backend as the source sees it."""

    def __init__(self, count: int) -> None:
        self.tracer = Tracer()
        self.devices = {f"vif{number}.0": Device(f"vif{number}.0") for number in range(count)}


def test_snapshots_are_taken_when_they_are_due_and_the_client_is_ready() -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        source = Sources(Thousand(2)).statistics(SubscribeRequest(topic="statistics", interval=1))  # type: ignore[arg-type]
        taken: list[tuple[float, int]] = []
        for reads_for in (0.0, 0.5, 3.2, 0.0, 0.0):
            batch = await anext(source)
            assert len(batch.events) == 2
            taken.append((loop.time(), batch.lost))
            await asyncio.sleep(reads_for)
        assert [(round(at, 6), lost) for at, lost in taken] == [(0, 0), (1, 0), (2, 0), (5.2, 2), (6, 0)]
        await source.aclose()

    skipping(run())


def test_a_snapshot_of_many_devices_comes_in_parts() -> None:
    async def run() -> None:
        source = Sources(Thousand(130)).statistics(SubscribeRequest(topic="statistics", interval=1))  # type: ignore[arg-type]
        parts: list[Batch] = [await anext(source) for _ in range(4)]
        assert [(len(part.events), part.more) for part in parts] == [
            (topics._SNAPSHOT, True), (topics._SNAPSHOT, True), (2, False), (topics._SNAPSHOT, True),
        ]  # fmt: skip
        assert len({event.time for part in parts[:3] for event in part.events}) == 1  # type: ignore[attr-defined]
        await source.aclose()

    skipping(run())
