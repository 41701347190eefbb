# SPDX-License-Identifier: Apache-2.0
"""Lists of requests that two stores answer: our store equals itself over a socket, and a different one is detected."""

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from netback.abi.xs_wire import Errno, Op
from netback.lab.inside import store_diff
from netback.lab.inside.store_diff import Ask, Line, Until
from netback.platforms.emulated.store_socket import attach_store
from netback.xenstore import requests
from netback.xenstore.connection import Connection
from netback.xenstore.server import Server
from netback.xenstore.wire import joined

from .serving import serving

SIDES = pytest.mark.parametrize("side", [store_diff.dom0(), store_diff.guest(3)], ids=["dom0", "guest"])


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with serving(tmp_path / "s") as server:
        server.introduce(3)
        yield server


async def test_our_store_is_like_itself_over_its_socket(server: Server, tmp_path: Path) -> None:
    side = store_diff.dom0()
    steps = [*store_diff.make(1, side), *side.ending]
    known, faults = await asyncio.to_thread(
        store_diff.compare, side, steps, lambda: store_diff.reach(tmp_path / "s")
    )
    assert (dict(known), faults) == ({}, [])


async def test_our_store_is_like_itself_for_a_guest(server: Server, tmp_path: Path) -> None:
    dom0 = store_diff.reach(tmp_path / "s")
    ours, theirs = socket.socketpair()
    await attach_store(server, theirs, 3)
    guest = Line(ours.sendall, lambda: ours.recv(65536), ours.close)

    def ask() -> list[str]:
        store_diff.furnish(dom0, 3)
        dom0.close()
        side = store_diff.guest(3)
        return store_diff.compare(side, [*store_diff.make(1, side), *side.ending], lambda: guest)[1]

    assert await asyncio.to_thread(ask) == []


@SIDES
def test_a_list_follows_from_its_seed(side: store_diff.Side) -> None:
    assert store_diff.make(7, side) == store_diff.make(7, side) != store_diff.make(8, side)


@SIDES
def test_a_list_asks_for_everything_and_is_answered_both_ways(side: store_diff.Side) -> None:
    """Each request that a side may make succeeds somewhere and fails somewhere; transactions commit and conflict."""
    seen: dict[int, set[str]] = {}
    for seed in range(1, 9):
        steps = [*store_diff.make(seed, side), *side.ending]
        for step, answer in zip(steps, store_diff.play(steps, side, store_diff.own(side)), strict=True):
            if isinstance(step, Ask | Until):
                seen.setdefault(step.op, set()).add(answer if answer in Errno.__members__ else "answered")
    both = {Op.READ, Op.WRITE, Op.MKDIR, Op.RM, Op.DIRECTORY, Op.DIRECTORY_PART, Op.GET_PERMS, Op.SET_PERMS}
    for op in both | {Op.WATCH, Op.UNWATCH, Op.TRANSACTION_START, Op.TRANSACTION_END}:
        assert "answered" in seen[op], op.name
        # Linux says OK itself, whatever there was to remove
        linux_says = op == Op.UNWATCH and side.through_linux
        assert (len(seen[op]) == 1) if linux_says else (len(seen[op]) > 1), op.name
    assert seen[Op.TRANSACTION_END] >= {"EAGAIN", "ENOENT", "EINVAL"}
    if side.domid:
        assert {"ENOSPC"} <= seen[Op.WRITE]
        assert {"E2BIG"} <= seen[Op.WATCH]
        assert {"ENOSPC"} <= seen[Op.TRANSACTION_START]


@SIDES
@pytest.mark.parametrize("op", [Op.RM, Op.SET_PERMS, Op.TRANSACTION_END])
def test_a_store_that_says_more_than_it_does_is_found_out(
    side: store_diff.Side, op: Op, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers OK and changes nothing."""
    steps = store_diff.make(1, side)
    honest = list(store_diff.play(steps, side, store_diff.own(side)))
    handler = requests.HANDLERS[op]
    monkeypatch.setitem(requests.HANDLERS, op, handler._replace(serve=lambda *_: requests.OK))
    assert list(store_diff.play(steps, side, store_diff.own(side))) != honest


def test_a_lost_event_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    side = store_diff.dom0()
    steps = store_diff.make(1, side)
    honest = list(store_diff.play(steps, side, store_diff.own(side)))
    take = Line._take

    def lose(line: Line, packet: object) -> None:
        take(line, packet)  # type: ignore[arg-type]
        line.events = [one for one in line.events if b"/out" not in one[0]]

    monkeypatch.setattr(Line, "_take", lose)
    assert list(store_diff.play(steps, side, store_diff.own(side))) != honest


def test_another_order_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that sends a watch's first event before the reply to WATCH."""
    side = store_diff.dom0()
    steps = store_diff.make(1, side)
    honest = list(store_diff.play(steps, side, store_diff.own(side)))
    watch = Connection.watch

    def hasty(connection: Connection, path: bytes, token: bytes, relative: bool) -> None:
        watch(connection, path, token, relative)
        connection._fire_new()

    monkeypatch.setattr(Connection, "watch", hasty)
    assert list(store_diff.play(steps, side, store_diff.own(side))) != honest


def test_what_the_table_knows_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that takes long paths, as xenstored does, differs in what the table says and in nothing else."""

    def reading(ask: Line) -> Line:
        plain = ask.ask

        def other(op: int, payload: bytes, tx: int = 0) -> str:
            answer = plain(op, payload, tx)
            return "ENOENT" if op == Op.READ and payload == joined(b"/" + b"x" * 3072) else answer

        monkeypatch.setattr(ask, "ask", other)
        return ask

    side = store_diff.dom0()
    theirs = store_diff.own(side)
    known, faults = store_diff.compare(side, list(side.ending), lambda: reading(theirs()))
    assert faults == []
    assert list(known.values()) == [1]
