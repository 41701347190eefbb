# SPDX-License-Identifier: Apache-2.0
"""What a hostile or slow client of the control socket costs: bounded memory, and nothing of clients and guests."""

import asyncio
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from netback.control import rpc, server
from netback.control.feed import BATCH, MAX_EVENTS, Batch, Feed, Source
from netback.control.rpc import Code
from netback.control.schema import DeviceState, Rings, SubscribeRequest
from netback.control.server import MAX_CLIENTS, MAX_SUBSCRIPTIONS, _Shared
from netback.daemon import Backend
from netback.net.python import PythonNetwork
from netback.observe.rings import Ring
from tests.daemon.talk import CALLS, Talk, serving, talking, works
from tests.vif.guest import SECONDS, Guest, exchange

HUGE = Rings(
    device="x" * (8 << 20),
    rings=[Ring(ring="tx", indices={}, consistent=True, slots_total=1, pending=0, quiet=0.0)],
)
"""An answer that no socket's buffer holds."""


def garbage(rng: random.Random) -> bytes:
    """A line: random bytes, half a request, or a request with a random part."""
    request = b'{"jsonrpc":"2.0","id":1,"method":"info","params":{}}'
    cut = rng.randrange(len(request))
    some = rng.randbytes(rng.randrange(1, 200)).replace(b"\n", b" ")
    match rng.randrange(4):
        case 0:
            return some
        case 1:
            return request[:cut]
        case 2:
            return request[:cut] + some + request[cut + len(some) :]
    return b"[" * rng.randrange(1, 3000) + some


async def test_garbage_is_answered_line_by_line(tmp_path: Path) -> None:
    rng = random.Random(12)
    async with serving(tmp_path), talking(tmp_path) as talk:
        for _ in range(500):
            talk.send(garbage(rng) + b"\n")
            answer = await talk.read()
            assert answer["jsonrpc"] == "2.0"
            assert "error" in answer
            assert answer["error"]["message"].isprintable()
        assert (await talk.ask("info"))["netback"] == "9"


async def test_ten_thousand_messages_leave_the_loop_to_others(tmp_path: Path) -> None:
    """All are answered in their order. After each of them everything else in the loop gets its turn."""
    turns, done = 0, False

    async def others() -> None:
        nonlocal turns
        while not done:
            turns += 1
            await asyncio.sleep(0)

    async with serving(tmp_path), talking(tmp_path) as talk:
        running = asyncio.create_task(others())
        for number in range(10_000):
            talk.call("info", ident=number)
        for number in range(10_000):
            assert (await talk.read())["id"] == number
        done = True
        await running
        await works(tmp_path)
    assert turns > 10_000


@pytest.mark.parametrize("start", [b"", b"{", b'{"jsonrpc":"2.0","id":1,"method":"info"}'])
async def test_half_a_message_blocks_nobody(tmp_path: Path, start: bytes) -> None:
    """It is never carried out, and the end of the server does not wait for its other half."""
    async with AsyncExitStack() as stack:
        async with serving(tmp_path):
            talks = [await stack.enter_async_context(talking(tmp_path)) for _ in range(MAX_CLIENTS - 1)]
            for talk in talks:
                talk.send(start)
            await works(tmp_path)
        for talk in talks:
            assert await talk.line() == b""


async def test_a_message_without_its_newline_is_not_carried_out(tmp_path: Path) -> None:
    """It may be cut: `"seconds": 10` may have been 100."""
    called = False

    async def find(_: object) -> None:
        nonlocal called
        called = True

    async with serving(tmp_path, {**CALLS, "find": find}), talking(tmp_path) as talk:
        talk.send(b'{"jsonrpc":"2.0","id":1,"method":"find","params":{"guest":"1"}}')
        talk.writer.write_eof()
        assert await talk.line() == b""
    assert not called


async def test_a_line_without_an_end(tmp_path: Path) -> None:
    async with serving(tmp_path), talking(tmp_path) as talk:
        talk.send(b"x" * (4 * rpc.MAX_LINE))
        answer = await talk.read()
        assert (answer["id"], answer["error"]["code"]) == (None, Code.INVALID_REQUEST)
        assert "a line has at most 65536 bytes" in answer["error"]["message"]
        assert await talk.line() == b""
        await works(tmp_path)


async def test_a_client_that_does_not_read_gets_one_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Further requests wait in its socket; in the end it loses its connection, and nobody waits for it."""
    asked = 0

    async def rings(_: object) -> Rings:
        nonlocal asked
        asked += 1
        return HUGE

    monkeypatch.setattr(server, "WRITE_SECONDS", 0.1)
    async with serving(tmp_path, {**CALLS, "rings": rings}), talking(tmp_path, limit=1024) as talk:
        for _ in range(100):
            talk.call("rings", device="d")
        await works(tmp_path)
        async with asyncio.timeout(SECONDS):
            while "did not read its answer within 0.1 s" not in caplog.text:
                await works(tmp_path)
            with suppress(ConnectionResetError):
                while await talk.reader.read(1 << 20):
                    pass
        assert asked == 1


async def test_a_new_client_takes_the_place_of_the_most_silent_one(tmp_path: Path) -> None:
    async with serving(tmp_path), AsyncExitStack() as stack:
        talks = [await stack.enter_async_context(talking(tmp_path)) for _ in range(MAX_CLIENTS)]
        for talk in (*talks[1:], talks[0]):
            await talk.ask("info")
        async with talking(tmp_path) as late:
            assert (await late.ask("info"))["netback"] == "9"
        answer = await talks[1].read()
        assert (answer["id"], answer["error"]["code"]) == (None, Code.BUSY)
        assert "more than 32 clients, and this one was silent for longest" in answer["error"]["message"]
        assert await talks[1].line() == b""
        for talk in (talks[0], *talks[2:]):
            await talk.ask("info")


async def test_many_new_clients_at_once_take_as_many_places(tmp_path: Path) -> None:
    """Whoever reads is told why; the places are never exceeded, however fast the clients come."""
    async with serving(tmp_path), AsyncExitStack() as stack:
        talks: list[Talk] = []
        for _ in range(6):
            some = (stack.enter_async_context(talking(tmp_path)) for _ in range(MAX_CLIENTS // 2))
            talks += await asyncio.gather(*some)
        for talk in talks:
            talk.call("info")
        answers = [await talk.line() for talk in talks]
        assert sum(b'"result"' in answer for answer in answers) == MAX_CLIENTS
        assert sum(b"more than 32 clients" in answer for answer in answers) == 2 * MAX_CLIENTS


@dataclass
class Place:
    """A client as `admit` sees it."""

    uid: int
    heard: float
    feeds: dict[int, None] = field(default_factory=dict)
    gone: bool = False

    def send_away(self, reason: str) -> None:
        self.gone = True


@pytest.mark.parametrize(
    ("special", "victim"),
    [
        ({}, 0),
        ({0: Place(0, 0.0, {1: None})}, 1),
        ({0: Place(7, 0.0)}, 1),
        ({number: Place(7, float(number)) for number in range(20)}, 0),
        ({number: Place(0, float(number), {1: None}) for number in range(MAX_CLIENTS)}, 0),
    ],
)
def test_who_is_sent_away(special: dict[int, Place], victim: int) -> None:
    """One of the user with the most clients, first without subscriptions; never the new one while it has others."""
    shared = _Shared({}, {}, pause=None)  # type: ignore[arg-type]
    places = [special.get(number, Place(0, float(number))) for number in range(MAX_CLIENTS + 1)]
    for place in places:
        assert not any(each.gone for each in places)
        shared.admit(place)  # type: ignore[arg-type]
    assert [number for number, place in enumerate(places) if place.gone] == [victim]


# ---- subscribers


def source(events: int, feeds: list[Feed]) -> Source:
    """A topic whose events were all posted before the client reads the first."""

    async def begin(_: SubscribeRequest) -> AsyncGenerator[Batch, None]:
        feed = Feed()
        feeds.append(feed)
        yield Batch([])
        for number in range(events):
            feed.post(DeviceState(device=str(number), backend="a", frontend="b"))
        while True:
            yield await feed.take()

    return begin


async def test_a_subscriber_that_is_late_is_told_what_it_lost(tmp_path: Path) -> None:
    """It gets the oldest events, in lines of a bounded length, and every event is either there or counted."""
    posted = 3 * MAX_EVENTS
    async with serving(tmp_path, topics={"states": source(posted, [])}), talking(tmp_path) as talk:
        await talk.subscribe("states")
        seen: list[int] = []
        lost = 0
        while len(seen) + lost < posted:
            event = (await talk.read())["params"]
            assert len(event["events"]) <= BATCH
            seen += [int(each["device"]) for each in event["events"]]
            lost += event["lost"]
        assert (seen, lost) == ([*range(MAX_EVENTS)], posted - MAX_EVENTS)


async def test_a_subscriber_that_does_not_read_costs_its_feed(tmp_path: Path) -> None:
    """Events come from a thread, faster than anybody reads; then the client goes."""
    feeds: list[Feed] = []
    text = "x" * 4000
    async with serving(tmp_path, topics={"states": source(0, feeds)}):
        async with talking(tmp_path, limit=1024) as talk:
            talk.call("subscribe", topic="states")
            await talk.line()

            def flood() -> None:
                for _ in range(20 * MAX_EVENTS):
                    feeds[0].post(DeviceState(device=text, backend="a", frontend="b"))

            await asyncio.to_thread(flood)
            waiting = len(
                feeds[0]._events
            )  # without those that the server took for the socket at the last moment
            assert MAX_EVENTS - BATCH <= waiting <= MAX_EVENTS
            await works(tmp_path)
        await works(tmp_path)


async def test_a_connection_has_a_bounded_number_of_subscriptions(tmp_path: Path) -> None:
    async with serving(tmp_path, topics={"states": source(0, [])}), talking(tmp_path) as talk:
        for number in range(1, MAX_SUBSCRIPTIONS + 1):
            talk.call("subscribe", topic="states")
            assert (await talk.read())["result"] == {"subscription": number}
            assert (await talk.read())["params"]["subscription"] == number
        talk.call("subscribe", topic="states")
        assert (await talk.read())["error"]["code"] == Code.BUSY
        assert await talk.ask("unsubscribe", subscription=1) == {"subscription": 1}
        talk.call("subscribe", topic="states")
        assert (await talk.read())["result"] == {"subscription": MAX_SUBSCRIPTIONS + 1}


@pytest.mark.parametrize("leave", [Talk.__init__, lambda talk, *_: talk.writer.write_eof()])
async def test_a_source_ends_with_its_client(tmp_path: Path, leave: Callable[..., object]) -> None:
    """Also if the client leaves before the first event."""
    ended = asyncio.Event()

    async def begin(_: SubscribeRequest) -> AsyncGenerator[Batch, None]:
        try:
            yield Batch([])
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with serving(tmp_path, topics={"states": begin}):
        async with talking(tmp_path) as talk:
            talk.call("subscribe", topic="states")
            await talk.line()
            leave(talk, talk.reader, talk.writer)
        async with asyncio.timeout(SECONDS):
            await ended.wait()


async def test_events_follow_the_answer_to_their_batch(tmp_path: Path) -> None:
    """Even if a later request of it takes long; and a subscription that ends within the batch closes its source."""
    ended = asyncio.Event()

    async def begin(_: SubscribeRequest) -> AsyncGenerator[Batch, None]:
        try:
            while True:
                yield Batch([])
                await asyncio.sleep(0)
        finally:
            ended.set()

    async def slow(_: object) -> Rings:
        for _ in range(100):
            await asyncio.sleep(0)
        return Rings(device="d", rings=[])

    subscribe = b'{"jsonrpc":"2.0","id":1,"method":"subscribe","params":{"topic":"states"}}'
    rings = b'{"jsonrpc":"2.0","id":2,"method":"rings","params":{"device":"d"}}'
    unsubscribe = b'{"jsonrpc":"2.0","id":2,"method":"unsubscribe","params":{"subscription":%d}}'
    async with serving(tmp_path, {**CALLS, "rings": slow}, {"states": begin}), talking(tmp_path) as talk:
        talk.send(b"[" + subscribe + b"," + unsubscribe % 1 + b"]\n")
        assert ["result" in answer for answer in await talk.read()] == [True, True]
        assert ended.is_set()
        talk.send(b"[" + subscribe + b"," + rings + b"]\n")
        assert [answer["id"] for answer in await talk.read()] == [1, 2]
        assert (await talk.read())["params"]["subscription"] == 2


async def test_a_source_that_fails_ends_its_subscription_alone(tmp_path: Path) -> None:
    async def begin(_: SubscribeRequest) -> AsyncGenerator[Batch, None]:
        yield Batch([])
        raise ValueError("a\nbug")

    async with serving(tmp_path, topics={"states": begin}), talking(tmp_path) as talk:
        await talk.subscribe("states")
        ended = await talk.read()
        assert (ended["method"], ended["params"]["subscription"]) == ("ended", 1)
        assert ended["params"]["reason"] == r"unexpected ValueError('a\nbug')"
        assert (await talk.ask("info"))["netback"] == "9"


async def test_clients_that_leave_are_no_lines_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """asyncio logs each further write to a connection that is gone."""
    feeds: list[Feed] = []
    async with serving(tmp_path, topics={"states": source(0, feeds)}):
        async with talking(tmp_path, limit=1024) as talk:
            for _ in range(MAX_SUBSCRIPTIONS):
                talk.call("subscribe", topic="states")
                assert "result" in await talk.read()
                assert "params" in await talk.read()
            for feed in feeds:
                for _ in range(4 * BATCH):
                    feed.post(DeviceState(device="x" * 4000, backend="a", frontend="b"))
            await works(tmp_path)
        await works(tmp_path)
    assert caplog.messages == []


# ---- a guest beside them


@pytest.fixture
async def connected(backend: Backend, guest: Guest) -> Guest:
    await backend.attach(guest.domid, "python:lan")
    await guest.connect()
    return guest


async def test_a_guest_does_not_notice(
    xen: Path, backend: Backend, connected: Guest, network: PythonNetwork
) -> None:
    """Frames pass each way while clients send garbage, floods and subscriptions that they do not read."""
    rng = random.Random(5)
    name = f"vif{connected.domid}.0"
    async with AsyncExitStack() as stack:
        talks = [await stack.enter_async_context(talking(xen, limit=1024)) for _ in range(MAX_CLIENTS)]
        for round_ in range(10):
            for talk in talks:
                talk.send(garbage(rng) + b"\n")
                talk.call("subscribe", topic=rng.choice(["states", "trace", "statistics"]), interval=0.1)
                talk.call(rng.choice(["list", "rings", "nonsense"]), device=name)
                if not round_ % 3:
                    talk.send(garbage(rng))
            await exchange(connected, network)
    await works(xen)
    await exchange(connected, network)
