# SPDX-License-Identifier: Apache-2.0
"""The order of replies and watch events, and what is removed with a domain, as in C xenstored (4.20).

The expected orders were recorded from C xenstored, which answered the same requests of domain 0.
"""

import pytest

from netback.abi.xs_wire import Op
from netback.xenstore.quota import Quota
from netback.xenstore.server import Server
from netback.xenstore.wire import Packet, Parser, joined

from .talk import OK, Talker

ORDERS = (
    ("a watch fires behind its reply", (), (Op.WATCH, "/o/a", "t"), "WATCH, /o/a t"),
    ("a change fires before its reply", ("/o/a",), (Op.WRITE, "/o/a", "x"), "/o/a /o/a, WRITE"),
    (
        "watches fire in the order of their making, whatever their depth",
        ("/o/a/b", "/o", "/o/a"),
        (Op.WRITE, "/o/a/b", "x"),
        "/o/a/b /o/a/b, /o/a/b /o, /o/a/b /o/a, WRITE",
    ),
    (
        "removed children fire before their parent, in listing order",
        ("/o/r/c", "/o/r/a", "/o/r/b/x", "/o/r"),
        (Op.RM, "/o/r"),
        "/o/r/b/x /o/r/b/x, /o/r/a /o/r/a, /o/r/c /o/r/c, /o/r /o/r, RM",
    ),
)


class Recorder:
    """Domain 0's connection: what it is sent, in order."""

    def __init__(self, server: Server) -> None:
        self._parser = Parser()
        self._said: list[str] = []
        self._connection = server.connect(0, self._take)

    def ask(self, op: Op, *words: str, tx: int = 0) -> str:
        parts = [word.encode() for word in words]
        payload = joined(parts[0]) + parts[1] if op == Op.WRITE else joined(*parts) or b"\0"
        self._said.clear()
        self._connection.receive(Packet(op, 1, tx, payload).encode())
        return ", ".join(self._said)

    def _take(self, data: bytes) -> None:
        self._parser.feed(data)
        while packet := self._parser.next_packet():
            if packet.type == Op.WATCH_EVENT:
                self._said.append(packet.payload.rstrip(b"\0").replace(b"\0", b" ").decode())
            else:
                self._said.append(Op(packet.type).name)


def furnished() -> Recorder:
    recorder = Recorder(Server())
    for path in ("/o/a/b", "/o/r/b/x", "/o/r/a", "/o/r/c"):
        recorder.ask(Op.WRITE, path, "")
    return recorder


@pytest.mark.parametrize(
    ("watched", "request_", "order"), [row[1:] for row in ORDERS], ids=[row[0] for row in ORDERS]
)
def test_order(watched: tuple[str, ...], request_: tuple[Op, str], order: str) -> None:
    recorder = furnished()
    for path in watched:
        recorder.ask(Op.WATCH, path, path)
    assert recorder.ask(*request_) == order


def test_a_transaction_fires_in_the_order_of_its_first_looks() -> None:
    recorder = furnished()
    recorder.ask(Op.WATCH, "/o", "t")
    recorder.ask(Op.TRANSACTION_START)
    for op, *words in (
        (Op.READ, "/o/r/c"),
        (Op.WRITE, "/o/a", "x"),
        (Op.WRITE, "/o/r/c", "x"),
        (Op.RM, "/o/r/b"),
    ):
        recorder.ask(op, *words, tx=1)
    assert recorder.ask(Op.TRANSACTION_END, "T", tx=1) == "/o/r/c t, /o/a t, /o/r/b t, TRANSACTION_END"


# ---- what goes with a domain


def released(*owned: str) -> tuple[Server, Talker]:
    """A server whose domain 1 owned `owned` and has ended, and domain 0, which watches @releaseDomain."""
    server = Server()
    server.introduce(1)
    server.introduce(2)
    dom0 = Talker(server, 0)
    dom0.ask(Op.WRITE, "/other/kept", "x")
    dom0.ask(Op.SET_PERMS, "/other/kept", "r2", "w1", "b2")
    for path in owned:
        dom0.ask(Op.MKDIR, path) if path.startswith("/") else None
        dom0.ask(Op.SET_PERMS, path, "r1", "w2")
    dom0.ask(Op.WATCH, "@releaseDomain", "release")
    dom0.take_events()
    server.release(1)
    return server, dom0


@pytest.mark.parametrize("path", ["/", "@releaseDomain", "@introduceDomain"])
def test_what_cannot_be_removed_goes_to_domain_0(path: str) -> None:
    _, dom0 = released(path)
    assert dom0.take_events() == "@releaseDomain release"
    assert dom0.ask(Op.GET_PERMS, path) == "r0 w2"
    assert dom0.ask(Op.READ, "/other/kept") == "x"


def test_the_permissions_of_a_domain_go_with_it_where_it_owned_the_root() -> None:
    server, dom0 = released("/", "/other")
    assert dom0.take_events() == "@releaseDomain release"
    assert dom0.ask(Op.DIRECTORY, "/") == "tool local"
    assert server.usage(2)["nodes"] == 1, "domain 2 has its home alone"


def test_a_domain_that_owned_local_takes_it_along() -> None:
    """As C xenstored removes it: a toolstack that gives /local away has given everything below it away."""
    server, dom0 = released("/local")
    assert dom0.take_events() == "@releaseDomain release"
    assert dom0.ask(Op.DIRECTORY, "/") == "tool other"
    assert dom0.ask(Op.GET_PERMS, "/other/kept") == "r2 b2"
    assert Talker(server, 2).ask(Op.WRITE, "/other/kept", "y") == OK


def test_a_watch_s_owner_may_die_in_the_middle_of_its_events() -> None:
    """Sending the first watcher's events ends the second one while a change fires; the third one still gets it."""
    server = Server(Quota(events=1))
    server.introduce(1)
    victims: list[Talker] = []
    first = server.connect(1, lambda _data: [victim.connection.close() for victim in victims])
    for token in (
        b"one",
        b"two",
    ):  # the second event exceeds the quota of waiting ones, so the first is sent at once
        first.receive(Packet(Op.WATCH, 1, 0, joined(b"/local/domain/1", token)).encode())
    second, third = Talker(server, 0), Talker(server, 0)
    for talker in (second, third):
        assert talker.ask(Op.WATCH, "/local/domain/1", "t") == OK
        talker.take_events()
    victims.append(second)
    assert Talker(server, 0).ask(Op.WRITE, "/local/domain/1/a", "x") == OK
    assert second.connection.closed
    assert (second.take_events(), third.take_events()) == ("", "/local/domain/1/a t")
