# SPDX-License-Identifier: Apache-2.0
"""The server core's limits: quotas of guests, slow readers, garbage, deep trees, long lists, ends."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netback.abi.xs_wire import HEADER, Errno, Op
from netback.xenstore.client import directory_part
from netback.xenstore.quota import Quota
from netback.xenstore.server import Server
from netback.xenstore.wire import Packet, joined

from .talk import OK, Talker


def pair(quota: Quota | None = None) -> tuple[Server, Talker, Talker]:
    """A server, domain 0, and domain 1 with its home."""
    server = Server(quota) if quota else Server()
    server.introduce(1)
    return server, Talker(server, 0), Talker(server, 1)


# ---- quotas of guests; domain 0 has none


def test_a_guest_owns_so_many_nodes() -> None:
    server, dom0, guest = pair(Quota(nodes=5))
    for name in ("a", "b/c", "d"):  # with its home, five
        assert guest.ask(Op.WRITE, name, "x") == OK
    assert guest.ask(Op.WRITE, "e", "x") == Errno.ENOSPC
    assert guest.ask(Op.MKDIR, "e") == Errno.ENOSPC
    assert guest.ask(Op.WRITE, "d", "y") == OK  # no new node
    assert guest.ask(Op.DIRECTORY, "/local/domain/1") == "a b d"
    assert guest.ask(Op.RM, "b/c") == OK
    assert guest.ask(Op.WRITE, "f/g", "needs two") == Errno.ENOSPC
    assert guest.ask(Op.WRITE, "e", "x") == OK
    # What domain 0 makes there is its own, until it gives it away.
    assert dom0.ask(Op.WRITE, "/local/domain/1/z", "x") == OK
    assert server.usage(1)["nodes"] == 6  # the permissions of the home name domain 1 as owner
    assert dom0.ask(Op.SET_PERMS, "/local/domain/1/z", "n0") == OK
    assert server.usage(1)["nodes"] == 5


def test_a_transaction_gives_no_more_nodes() -> None:
    server, _, guest = pair(Quota(nodes=3))
    assert guest.begin("t") == OK
    tx = guest.transactions["t"]
    assert guest.ask(Op.WRITE, "a", "x", tx=tx) == OK
    assert guest.ask(Op.WRITE, "b", "x", tx=tx) == OK
    assert guest.ask(Op.WRITE, "c", "x", tx=tx) == Errno.ENOSPC
    assert guest.ask(Op.TRANSACTION_END, "T", tx=tx) == OK
    assert server.usage(1)["nodes"] == 3


def test_two_transactions_together_give_no_more_nodes() -> None:
    server, dom0, guest = pair(Quota(nodes=5))
    dom0.ask(Op.MKDIR, "/local/domain/1/p")
    dom0.ask(Op.MKDIR, "/local/domain/1/q")
    for label, name in (("s", "p/1"), ("t", "q/1")):
        assert guest.begin(label) == OK
        assert guest.ask(Op.WRITE, name, "x", tx=guest.transactions[label]) == OK
        assert guest.ask(Op.WRITE, name + "/2", "x", tx=guest.transactions[label]) == OK
    assert guest.ask(Op.TRANSACTION_END, "T", tx=guest.transactions["s"]) == OK
    assert guest.ask(Op.TRANSACTION_END, "T", tx=guest.transactions["t"]) == Errno.ENOSPC
    assert server.usage(1)["nodes"] == 5
    assert guest.ask(Op.DIRECTORY, "q") == ""


def test_a_guest_writes_nodes_of_limited_size() -> None:
    _, dom0, guest = pair()
    room = 2048 - 16 - 8  # of xenstored's node header and one permission
    assert guest.ask(Op.WRITE, "a", "x" * room) == OK
    assert guest.ask(Op.WRITE, "a", "x" * (room + 1)) == Errno.ENOSPC
    assert guest.ask(Op.READ, "a") == "x" * room
    assert guest.ask(Op.MKDIR, "a/b") == Errno.ENOSPC  # names of children count as well
    assert guest.ask(Op.SET_PERMS, "a", "n1", "r2") == Errno.ENOSPC
    assert dom0.ask(Op.WRITE, "/local/domain/1/a", "x" * 4000) == OK


def test_a_guest_lists_so_many_permissions() -> None:
    _, dom0, guest = pair()
    guest.ask(Op.MKDIR, "a")
    assert guest.ask(Op.SET_PERMS, "a", "n1", "r2", "r3", "r4", "r5") == OK
    assert guest.ask(Op.SET_PERMS, "a", "n1", "r2", "r3", "r4", "r5", "r6") == Errno.ENOSPC
    assert dom0.ask(Op.SET_PERMS, "/tool", *[f"r{domid}" for domid in [0, *range(100)]]) == OK


def test_a_guest_has_so_many_watches() -> None:
    _, dom0, guest = pair()
    for number in range(128):
        assert guest.ask(Op.WATCH, "a", f"{number}") == OK
        assert dom0.ask(Op.WATCH, "a", f"{number}") == OK
    assert guest.ask(Op.WATCH, "a", "one more") == Errno.E2BIG
    assert dom0.ask(Op.WATCH, "a", "one more") == OK
    assert guest.ask(Op.UNWATCH, "a", "5") == OK
    assert guest.ask(Op.WATCH, "a", "one more") == OK
    assert guest.ask(Op.RESET_WATCHES) == OK
    assert guest.ask(Op.WATCH, "a", "5") == OK


def test_a_guest_has_so_many_transactions() -> None:
    _, dom0, guest = pair()
    for number in range(10):
        assert guest.begin(f"{number}") == OK
        assert dom0.begin(f"{number}") == OK
    assert len(set(guest.transactions.values())) == 11
    assert guest.begin("more") == Errno.ENOSPC
    assert dom0.begin("more") == OK
    assert guest.ask(Op.TRANSACTION_END, "F", tx=guest.transactions["3"]) == OK
    assert guest.begin("more") == OK


def test_a_transaction_looks_at_so_many_nodes() -> None:
    _, _, guest = pair(Quota(transaction_nodes=3))
    guest.begin("t")
    tx = guest.transactions["t"]
    for name in "abc":
        assert guest.ask(Op.READ, name, tx=tx) in (Errno.ENOENT, Errno.ENOSPC)
    assert guest.ask(Op.READ, "d", tx=tx) == Errno.ENOSPC
    assert guest.ask(Op.TRANSACTION_END, "T", tx=tx) == Errno.ENOMEM  # as xenstored says


def test_transaction_numbers_come_round_without_meeting() -> None:
    _, dom0, _ = pair()
    dom0.begin("one")
    dom0.connection._last_transaction = 0xFFFFFFFE
    assert [dom0.begin(label) and dom0.transactions[label] for label in "abc"] == [0xFFFFFFFF, 2, 3]


# ---- slow readers


def test_equal_events_wait_once_and_others_to_the_limit() -> None:
    server, dom0, guest = pair(Quota(events=10))
    guest.ask(Op.WATCH, "/local/domain/1", "t")
    guest.take_events()
    guest.connection.pause()
    for _ in range(5):
        dom0.ask(Op.WRITE, "/local/domain/1/a", "x")
    for number in range(20):
        dom0.ask(Op.WRITE, f"/local/domain/1/n{number}", "x")
    assert guest.events == []
    assert server.usage(1)["dropped-events"] == 11
    guest.connection.resume()
    home = "/local/domain/1"
    assert guest.take_events() == ", ".join(
        f"{home}/{name} t" for name in ["a", *(f"n{n}" for n in range(9))]
    )
    dom0.ask(Op.WRITE, "/local/domain/1/a", "x")
    assert guest.take_events() == f"{home}/a t"
    assert not guest.hung_up


def test_one_request_may_cause_more_events_than_may_wait() -> None:
    server, dom0, guest = pair(Quota(events=10))
    guest.ask(Op.WATCH, "/local/domain/1", "t")
    dom0.begin("t")
    for number in range(50):
        dom0.ask(Op.WRITE, f"/local/domain/1/n{number}", "x", tx=dom0.transactions["t"])
    guest.take_events()
    assert dom0.ask(Op.TRANSACTION_END, "T", tx=dom0.transactions["t"]) == OK
    assert len(guest.events) == 50
    assert server.usage(1)["dropped-events"] == 0


def test_special_events_are_all_kept() -> None:
    server, dom0, _ = pair()
    dom0.ask(Op.WATCH, "@releaseDomain", "t")
    dom0.take_events()
    dom0.connection.pause()
    for domid in (4, 5, 6):
        server.introduce(domid)
        server.release(domid)
    dom0.connection.resume()
    assert dom0.take_events() == ", ".join(["@releaseDomain t"] * 3)


def test_a_privileged_reader_that_stopped_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("netback.xenstore.server.PRIVILEGED", Quota(events=10))
    server, dom0, guest = pair()
    dom0.ask(Op.WATCH, "/local", "t")
    dom0.connection.pause()
    for number in range(11):
        assert not dom0.hung_up
        assert guest.ask(Op.WRITE, f"n{number}", "x") == OK
    assert dom0.hung_up
    assert dom0.connection not in server.connections


def test_a_paused_client_is_not_served_until_it_reads() -> None:
    _, dom0, _ = pair()
    dom0.ask(Op.WRITE, "/a", "x" * 4000)
    read = joined(b"/a")
    dom0.connection.pause()
    dom0.send(b"".join(Packet(Op.READ, number, 0, read).encode() for number in range(100, 200)))
    assert dom0.replies == {}
    assert dom0.connection._out_bytes == 0
    dom0.connection.resume()
    assert sorted(dom0.replies) == [*range(100, 200)]


def test_a_client_that_pauses_while_it_is_answered_stops_being_served() -> None:
    server = Server()
    sent: list[bytes] = []

    def send(data: bytes) -> None:
        sent.append(data)
        connection.pause()

    connection = server.connect(0, send)
    connection.receive(Packet(Op.WRITE, 1, 0, b"/a\0" + b"x" * 4000).encode())
    connection.resume()
    read = Packet(Op.READ, 2, 0, b"/a\0").encode()
    sent.clear()
    connection.receive(read * 1000)
    assert sum(map(len, sent)) < 70000  # of four megabytes
    answered = 0
    while sent:
        answered += sum(map(len, sent)) // 4016
        sent.clear()
        connection.resume()
    assert answered == 1000


def test_replies_to_what_came_together_go_together() -> None:
    _, dom0, _ = pair()
    dom0.sends = 0
    dom0.send(Packet(Op.READ, 1, 0, joined(b"/tool")).encode() * 500)
    assert dom0.sends == 1


# ---- garbage and ends


def test_an_oversize_message_ends_its_connection_after_what_came_before() -> None:
    server, dom0, guest = pair()
    guest.ask(Op.WATCH, "a", "t")
    guest.send(Packet(Op.WRITE, 77, 0, b"a\0x").encode() + HEADER.pack(Op.READ, 1, 0, 4097) + b"x" * 5000)
    assert guest.replies[77].payload == b"OK\0"
    assert guest.hung_up
    assert guest.connection not in server.connections
    guest.send(Packet(Op.WRITE, 78, 0, b"a\0y").encode())
    assert dom0.ask(Op.READ, "/local/domain/1/a") == "x"
    guest.take_events()
    dom0.ask(Op.WRITE, "/local/domain/1/a", "z")
    assert guest.events == []


@settings(deadline=None)
@given(
    st.lists(
        st.one_of(st.binary(max_size=60), st.sampled_from(Op).map(lambda op: HEADER.pack(op, 1, 0, 3))),
        max_size=8,
    )
)
def test_any_bytes_of_a_guest_hurt_no_other_client(chunks: list[bytes]) -> None:
    server, dom0, guest = pair()
    for chunk in chunks:
        guest.connection.receive(chunk)
    assert dom0.ask(Op.DIRECTORY, "/") == "tool local"
    assert dom0.ask(Op.WRITE, "/local/domain/1/x", "v") == OK
    guest.connection.close()
    guest.connection.close()
    assert server.connections == {dom0.connection}


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([*Op, 20, 99]), st.binary(max_size=20), st.sampled_from([0, 1, 2])),
        max_size=20,
    )
)
def test_any_request_gets_exactly_one_answer(requests: list[tuple[int, bytes, int]]) -> None:
    _, dom0, guest = pair()
    for op, payload, tx in requests:
        reply = guest.ask_raw(op, payload, tx)
        assert reply is not None
        assert reply.type == op or Errno(reply.payload.rstrip(b"\0").decode())
    assert dom0.ask(Op.DIRECTORY, "/") == "tool local"


ODD = [
    (Op.READ, b""),
    (Op.READ, b"/tool"),
    (Op.READ, b"/tool\0\0"),
    (Op.READ, b"/tool\0more"),
    (Op.WRITE, b"/tool"),
    (Op.MKDIR, b"/x\0y\0"),
    (Op.RM, b""),
    (Op.DIRECTORY_PART, b"/tool\0"),
    (Op.DIRECTORY_PART, b"/tool\0-1\0"),
    (Op.DIRECTORY_PART, b"/tool\0x\0"),
    (Op.SET_PERMS, b"/tool\0"),
    (Op.WATCH, b"/tool\0"),
    (Op.WATCH, b"/tool\0t\0more\0"),
    (Op.UNWATCH, b"/tool\0"),
    (Op.TRANSACTION_END, b"T"),
    (Op.INTRODUCE, b"1\0"),
    (Op.SET_TARGET, b"1\0"),
    (Op.CONTROL, b""),
    (Op.GET_DOMAIN_PATH, b"1"),
    (Op.GET_DOMAIN_PATH, b"9" * 30 + b"\0"),
]


@pytest.mark.parametrize(("op", "payload"), ODD)
def test_an_odd_payload_is_einval(op: Op, payload: bytes) -> None:
    _, dom0, _ = pair()
    assert dom0.ask(op, payload=payload) == Errno.EINVAL


def test_a_value_is_any_bytes() -> None:
    _, dom0, _ = pair()
    dom0.ask(Op.WRITE, payload=b"/a\0\0\xff\0")
    reply = dom0.ask_raw(Op.READ, b"/a\0")
    assert reply is not None
    assert reply.payload == b"\0\xff\0"


def test_closing_drops_watches_and_transactions_and_closing_the_server_ends_all() -> None:
    server, dom0, guest = pair()
    guest.ask(Op.WATCH, "a", "t")
    guest.begin("t")
    guest.connection.close()
    assert (guest.connection.watches, guest.connection.transactions) == ({}, {})
    assert server.watches._by_path == {}
    assert not guest.hung_up  # it was the client that ended it
    server.close()
    assert dom0.hung_up
    assert server.connections == set()


def test_release_ends_the_domains_connections_and_a_client_may_go_in_the_middle() -> None:
    server, dom0, guest = pair()
    other = Talker(server, 1)
    assert dom0.ask(Op.RELEASE, "1") == OK
    assert guest.hung_up
    assert other.hung_up
    server.release(1)  # again: nothing
    server.release(0)  # domain 0 never goes
    with pytest.raises(ValueError, match="0 is no guest"):
        server.introduce(0)


def test_a_domain_comes_back_to_an_empty_home() -> None:
    server, dom0, guest = pair()
    guest.ask(Op.WRITE, "a", "x")
    server.release(1)
    server.introduce(1)
    assert Talker(server, 1).ask(Op.DIRECTORY, "/local/domain/1") == ""
    assert dom0.ask(Op.GET_PERMS, "/local/domain/1") == "n1"
    assert server.usage(1)["nodes"] == 1


def test_introduction_leaves_a_home_that_the_toolstack_made() -> None:
    server = Server()
    dom0 = Talker(server, 0)
    dom0.ask(Op.WRITE, "/local/domain/7/name", "x")
    dom0.ask(Op.SET_PERMS, "/local/domain/7", "n0", "r7")
    server.introduce(7)
    assert dom0.ask(Op.GET_PERMS, "/local/domain/7") == "n0 r7"


def test_a_released_owner_of_a_special_node_gives_it_back() -> None:
    server, dom0, _ = pair()
    dom0.ask(Op.SET_PERMS, "@releaseDomain", "n1", "r2")
    server.release(1)
    assert dom0.ask(Op.GET_PERMS, "@releaseDomain") == "n0 r2"


# ---- deep and long


def test_a_guest_may_nest_as_deep_as_a_path_is_long() -> None:
    _, dom0, guest = pair(Quota(nodes=2000))
    deep = "/".join("d" * 1024)
    assert guest.ask(Op.WRITE, deep, "x") == OK
    assert guest.ask(Op.READ, deep) == "x"
    assert dom0.ask(Op.RM, "/local/domain/1") == OK
    assert dom0.ask(Op.DIRECTORY, "/local/domain") == ""


def list_in_parts(talker: Talker, path: str) -> tuple[list[str], int]:
    names, parts = b"", 0
    while True:
        reply = talker.ask_raw(Op.DIRECTORY_PART, joined(path.encode(), b"%d" % len(names)))
        assert reply is not None
        assert len(reply.payload) <= 4096
        part = directory_part(reply.payload)
        names, parts = names + part.names, parts + 1
        if part.complete:
            return [name.decode() for name in names.split(b"\0")[:-1]], parts


@pytest.mark.parametrize("count", [0, 1, 371, 372, 373, 1000])
def test_a_long_directory_comes_in_parts(count: int) -> None:
    _, dom0, _ = pair()
    names = [f"child{number:05}" for number in range(count)]
    dom0.ask(Op.MKDIR, "/long")
    for name in names:
        dom0.ask(Op.MKDIR, f"/long/{name}")
    assert list_in_parts(dom0, "/long") == (names, max(1, -(-count // 371)))
    whole = dom0.ask(Op.DIRECTORY, "/long")
    assert whole == (" ".join(names) if count <= 372 else Errno.E2BIG)


def test_a_part_tells_whether_the_directory_changed() -> None:
    _, dom0, _ = pair()

    def generation() -> bytes:
        reply = dom0.ask_raw(Op.DIRECTORY_PART, b"/tool\0" + b"0\0")
        assert reply is not None
        return reply.payload.split(b"\0")[0]

    first = generation()
    dom0.ask(Op.WRITE, "/other", "x")
    assert generation() == first
    dom0.ask(Op.WRITE, "/tool/new", "x")
    second = generation()
    assert second != first
    dom0.ask(Op.WRITE, "/tool/new", "y")
    assert generation() == second
    reply = dom0.ask_raw(Op.DIRECTORY_PART, b"/tool\x009999\0")
    assert reply is not None
    assert reply.payload == second + b"\0\0"


def test_an_event_too_long_for_a_message_is_not_sent() -> None:
    _, dom0, _ = pair()
    dom0.ask(Op.WATCH, "/a", "t" * 3000)
    dom0.take_events()
    dom0.ask(Op.WRITE, "/a/" + "b" * 2000, "x")
    assert dom0.events == []
    dom0.ask(Op.WRITE, "/a", "x")
    assert len(dom0.events) == 1


def test_a_thousand_watches_on_a_path_all_fire() -> None:
    _, dom0, guest = pair()
    for number in range(1000):
        dom0.ask(Op.WATCH, "/local/domain/1/a", str(number))
    dom0.take_events()
    guest.ask(Op.WRITE, "a", "x")
    assert sorted(int(token) for _, token in dom0.events) == [*range(1000)]
