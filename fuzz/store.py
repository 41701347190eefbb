# SPDX-License-Identifier: Apache-2.0
"""The store answers each request of any domain once and in order, never fails, keeps its quotas, and equals the model.

Two kinds of case: arbitrary requests of several domains, checked against the store's invariants; and requests over a
few paths, checked against the plain dict of tests/xenstore/test_model.py.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

from tests.xenstore.test_model import ROOT, Game

from netback.abi.xs_wire import Errno, Op
from netback.lab.inside.store_requests import Draw
from netback.xenstore.quota import Quota
from netback.xenstore.server import Server
from netback.xenstore.wire import Packet, Parser

QUOTA = Quota(
    nodes=20, node_size=220, node_perms=3, path=64, watches=5, transactions=3, transaction_nodes=30, events=20
)
"""Small, so that cases reach every limit."""
DOMAINS = (0, 1, 2, 3)
ERRORS = {errno.encode() + b"\0" for errno in Errno}
SPECIAL = (b"@introduceDomain", b"@releaseDomain")


@dataclass(frozen=True, slots=True)
class Connect:
    domid: int


@dataclass(frozen=True, slots=True)
class Ask:
    """A request of the connection at this place. `tx`: which of its transactions, or a number itself."""

    at: int
    op: int
    tx: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Raw:
    """Bytes that need not be a request."""

    at: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Flow:
    """The transport's part: "pause", "resume" or "close"."""

    at: int
    verb: str


@dataclass(frozen=True, slots=True)
class Domain:
    """The hypervisor's part: "introduce" or "release"."""

    domid: int
    verb: str


Step = Connect | Ask | Raw | Flow | Domain


@dataclass(frozen=True, slots=True)
class Hostile:
    ops: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Modelled:
    """Steps of tests/xenstore/test_model.py: (domid, label of a transaction or None, request)."""

    ops: tuple[tuple[int, str | None, tuple[int | str, ...]], ...]


WORDS = (Ask, Connect, Domain, Flow, Hostile, Modelled, Raw)


# --- drawing


KNOWN = (*DOMAINS, 9, 0x7FF0, 2**32)
HOMES = tuple(b"/local/domain/%d/" % domid for domid in DOMAINS)


def payload(rng: random.Random, op: int) -> bytes:
    whole = b"/local/domain", b"/", *SPECIAL
    return Draw(rng, (b"", b"", b"/", *HOMES), KNOWN, KNOWN, whole=whole).payload(op)


OFTEN = (Op.WRITE, Op.WRITE, Op.WRITE, Op.WATCH, Op.MKDIR, Op.RM, Op.TRANSACTION_START, Op.TRANSACTION_END)


def ask(rng: random.Random) -> Ask:
    op = int(
        rng.choice((rng.choice(OFTEN), rng.choice(list(Op)), rng.choice((20, 23, 255, 2**32 - 1)), Op.READ))
    )
    data = payload(rng, op) if rng.random() < 0.93 else rng.randbytes(rng.choice((0, 3, 40, 4096)))
    tx = rng.choice((-1, -1, -1, 0, 0, 1, 2, 2**32 - 1))
    return Ask(rng.randrange(6), op, tx, data[:4096])


def step(rng: random.Random, privileged: bool) -> Step:
    kind = rng.random()
    if kind < 0.86:
        return ask(rng)
    if kind < 0.92:
        return Flow(rng.randrange(6), rng.choice(("pause", "resume", "resume", "close")))
    if kind < 0.96:
        return Domain(rng.choice(DOMAINS[1:]), rng.choice(("introduce", "introduce", "release")))
    if kind < 0.98:
        return Raw(rng.randrange(6), rng.randbytes(rng.choice((1, 15, 16, 40))))
    return Connect(rng.choice(DOMAINS if privileged else DOMAINS[1:]))


def hostile(rng: random.Random) -> Hostile:
    privileged = rng.random() < 0.5
    beginning = [Domain(domid, "introduce") for domid in (1, 2, 3)]
    joined = [Connect(domid) for domid in ((0, 1, 1, 2, 3) if privileged else (1, 1, 2, 3))]
    return Hostile((*beginning, *joined, *(step(rng, privileged) for _ in range(rng.randint(1, 150)))))


def request(rng: random.Random) -> tuple[int | str, ...]:
    place = ROOT + "/".join(rng.choice("abc") for _ in range(rng.choice((0, 1, 1, 2, 3))))
    kind = rng.randrange(8)
    if kind < 3:
        return int(Op.WRITE), place, rng.choice(("1", "2", ""))
    if kind < 7:
        return int(rng.choice((Op.READ, Op.DIRECTORY, Op.GET_PERMS, Op.MKDIR, Op.RM, Op.RM))), place
    entries = [f"{rng.choice('nrwb')}{rng.choice(DOMAINS[:3])}" for _ in range(rng.randint(1, 3))]
    return int(Op.SET_PERMS), place, *entries


def modelled(rng: random.Random) -> Modelled:
    steps = list[tuple[int, str | None, tuple[int | str, ...]]]()
    for _ in range(rng.randint(1, 60)):
        label = rng.choice((None, None, "s", "t"))
        ending = label is not None and rng.random() < 0.25
        turn = (rng.choice(("commit", "commit", "drop")),) if ending else request(rng)
        steps.append((rng.choice(DOMAINS[:2] if label else DOMAINS[:3]), label, turn))
    return Modelled(tuple(steps))


def make(rng: random.Random) -> Hostile | Modelled:
    return rng.choice((hostile, modelled))(rng)


# --- playing


@dataclass
class Client:
    """One connection, and the invariants of what it receives."""

    server: Server
    domid: int
    ended: bool = False
    paused: bool = False
    strange: bool = False
    """It sent bytes that are not a request: its answers can no longer be matched."""
    awaited: list[tuple[int, int, int]] = field(default_factory=list)
    transactions: list[int] = field(default_factory=list)
    last: int = 0

    def __post_init__(self) -> None:
        self.parser = Parser()
        self.connection = self.server.connect(self.domid, self.take, self.hung_up)

    def hung_up(self) -> None:
        self.ended = True

    def take(self, data: bytes) -> None:
        assert data, "nothing was sent"
        assert not self.paused, "sent while the transport had enough"
        self.parser.feed(data)
        while packet := self.parser.next_packet():
            if packet.type == Op.WATCH_EVENT:
                assert (packet.req_id, packet.tx_id, packet.payload.count(b"\0")) == (0, 0, 2)
            elif not self.strange:
                self.answered(packet)

    def answered(self, packet: Packet) -> None:
        op, req_id, tx_id = self.awaited.pop(0)
        assert (packet.req_id, packet.tx_id) == (req_id, tx_id), "answers are in the order of requests"
        assert packet.type == op or (packet.type == Op.ERROR and packet.payload in ERRORS)
        if packet.type == Op.TRANSACTION_START:
            self.transactions.append(int(packet.payload[:-1]))

    def ask(self, step: Ask) -> None:
        self.last += 1
        known = 0 <= step.tx < len(self.transactions)
        tx = self.transactions[step.tx] if known else step.tx % 2**32 if step.tx > 2 else 0
        self.awaited.append((step.op, self.last, tx))
        self.connection.receive(Packet(step.op, self.last, tx, step.payload).encode())

    def check(self) -> None:
        if self.ended or self.connection.closed:
            return
        assert self.paused or self.strange or not self.awaited, "a request has no answer"
        if self.domid:
            assert len(self.connection.watches) <= QUOTA.watches
            assert len(self.connection.transactions) <= QUOTA.transactions
            assert self.connection._event_count <= QUOTA.events
            assert all(
                len(tx.accessed) <= QUOTA.transaction_nodes for tx in self.connection.transactions.values()
            )


class Topology:
    """A server and its clients."""

    def __init__(self) -> None:
        self.server = Server(QUOTA)
        self.clients: list[Client] = []
        self.privileged = False

    def apply(self, step: Step) -> None:
        match step:
            case Connect(domid):
                self.privileged |= domid == 0
                self.clients.append(Client(self.server, domid))
            case Domain(domid, verb):
                self.server.introduce(domid) if verb == "introduce" else self.server.release(domid)
            case _ if self.clients:
                self.talk(self.clients[step.at % len(self.clients)], step)

    def talk(self, client: Client, step: Ask | Raw | Flow) -> None:
        match step:
            case Ask():
                client.ask(step)
            case Raw(_, data):
                client.strange = True
                client.connection.receive(data)
            case Flow(_, verb):
                client.paused = verb == "pause"
                getattr(client.connection, verb)()

    def check(self) -> None:
        for client in self.clients:
            client.check()
        for domid, owned in self.server.tree.owned.items():
            assert self.privileged or domid == 0 or owned <= QUOTA.nodes, f"domain {domid} owns {owned} nodes"

    def check_tree(self) -> None:
        """Every node is below its parent, once; owners are counted correctly; no node of a guest is too large."""
        nodes = self.server.tree.nodes
        for name, node in nodes.items():
            below = [name.rstrip(b"/") + b"/" + leaf for leaf in node.children]
            assert len(set(below)) == len(below), "a child is listed twice"
            assert all(one in nodes for one in below), "a child that is no node"
            above, _, leaf = name.rpartition(b"/")
            assert name in (b"/", *SPECIAL) or leaf in nodes[above or b"/"].children, (
                "a node without a parent"
            )
            assert self.privileged or node.owner == 0 or node.size <= QUOTA.node_size
        owners = Counter(node.owner for node in nodes.values())
        assert {domid: owned for domid, owned in self.server.tree.owned.items() if owned} == owners

    def close(self) -> None:
        """Closed connections leave nothing."""
        for client in self.clients:
            client.connection.close()
        assert not self.server.connections
        assert not self.server.watches._by_path


def play_hostile(case: Hostile) -> int:
    topology = Topology()
    for step in case.ops:
        topology.apply(step)
        topology.check()
    topology.check_tree()
    topology.close()
    return len(case.ops)


def play_modelled(case: Modelled) -> int:
    game = Game()
    game.talkers[0].ask(Op.SET_PERMS, ROOT, "b0")
    game.main[ROOT] = "", ("b0",), ()
    for step in case.ops:
        game.play(step)
    for domid, label in list(game.open):
        game.end(domid, label, commit=True)
    game.compare()
    return len(case.ops)


def play(case: Hostile | Modelled) -> int:
    return play_hostile(case) if isinstance(case, Hostile) else play_modelled(case)
