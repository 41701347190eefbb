# SPDX-License-Identifier: Apache-2.0
"""Any requests in any order leave the hypervisor's tables correct: each port and pin is where a small model has it."""

from collections import Counter
from typing import NamedTuple

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from netback.abi.grant_table import ENTRY
from netback.errors import PlatformError
from netback.platforms.emulated.hypervisor import Handle, Hypervisor
from netback.platforms.emulated.memory import Mapping, create_memfd
from netback.platforms.emulated.protocol import DOMID_ANY, Hello, HelloFlag, Op, PortState, Reply, Request

GREFS = (8, 9, 10)


class End(NamedTuple):
    """A port as both sides number it."""

    domid: int
    number: int


class Client(NamedTuple):
    """A handle and, for an owner, the memory as the guest has it mapped."""

    handle: Handle
    memory: Mapping | None


class HypervisorMachine(RuleBasedStateMachine):
    """Joins, binds, closes, maps, unmaps and leaves at random."""

    clients = Bundle("clients")

    def __init__(self) -> None:
        super().__init__()
        self.alive: set[int] = {0}
        self.seen: set[int] = {0}
        self.hypervisor = Hypervisor(lambda domid, _name: self.alive.add(domid), self.alive.discard)
        self.ports: dict[End, End | None] = {}
        self.owner_of: dict[End, Handle] = {}
        self.meant_for: dict[End, int] = {}
        self.maps: dict[tuple[Handle, int], tuple[int, int, bool]] = {}
        self.memories: dict[int, Mapping] = {}

    def teardown(self) -> None:
        for domain in list(self.hypervisor.domains.values()):
            for handle in list(domain.handles):
                self.hypervisor.leave(handle)

    @rule(target=clients, attach=st.booleans())
    def join(self, attach: bool) -> Client:
        memfd = create_memfd("model", 6)
        memory = None if attach else Mapping(memfd, 0, 6)
        flags, domid = (HelloFlag.ATTACH, 0) if attach else (HelloFlag.MAKE, DOMID_ANY)
        handle, reply = self.hypervisor.join(Hello(flags=flags, domid=domid, grant_pages=1), memfd)
        if memory is not None:
            assert reply.domid not in self.seen
            self.seen.add(reply.domid)
            self.memories[reply.domid] = memory
            for frame, gref in enumerate(GREFS, 2):
                self.grant(memory, gref, frame)
        return Client(handle, memory)

    @staticmethod
    def grant(memory: Mapping, gref: int, frame: int) -> None:
        """To domain 0; the last one read-only."""
        flags = 5 if gref == GREFS[-1] else 1
        memory.words.store64(gref * 8, int.from_bytes(ENTRY.pack(flags, 0, frame), "little"))

    @rule(client=clients, domid=st.integers(0, 4))
    def alloc(self, client: Client, domid: int) -> None:
        reply = self.ask(client, Op.ALLOC_UNBOUND, domid)
        if reply is not None:
            self.add(client, reply.number, domid, None)

    @rule(client=clients, data=st.data())
    def bind(self, client: Client, data: st.DataObject) -> None:
        far = data.draw(st.sampled_from(sorted(self.ports) or [End(1, 1)]))
        mine = client.handle.domain.domid
        may = self.ports.get(far, far) is None and self.meant_for.get(far) == mine and far.domid in self.alive
        reply = self.ask(client, Op.BIND_INTERDOMAIN, far.domid, far.number)
        assert (reply is not None) == (may and not client.handle.gone)
        if reply is not None:
            self.ports[far] = End(mine, reply.number)
            self.add(client, reply.number, far.domid, far)

    @rule(client=clients, number=st.integers(0, 6))
    def close(self, client: Client, number: int) -> None:
        end = End(client.handle.domain.domid, number)
        mine = self.owner_of.get(end) is client.handle
        assert (self.ask(client, Op.CLOSE, number=number) is not None) == mine
        if mine:
            self.drop(end)

    @rule(
        client=clients,
        data=st.data(),
        gref=st.sampled_from((*GREFS, 11, 600)),
        readonly=st.booleans(),
    )
    def map(self, client: Client, data: st.DataObject, gref: int, readonly: bool) -> None:
        domid = data.draw(st.sampled_from([*sorted(self.alive), 77]))
        handle = client.handle
        may = domid in self.alive - {0} and gref in GREFS and handle.domain.domid == 0 and not handle.gone
        may = may and (readonly or gref != GREFS[-1])
        reply = self.ask(client, Op.MAP, domid, gref, int(readonly))
        assert (reply is not None) == may
        if reply is not None:
            self.maps[handle, reply.number] = (domid, gref, readonly)

    @rule(client=clients, number=st.integers(0, 6))
    def unmap(self, client: Client, number: int) -> None:
        mine = (client.handle, number) in self.maps
        assert (self.ask(client, Op.UNMAP, number=number) is not None) == mine
        self.maps.pop((client.handle, number), None)

    @rule(client=consumes(clients))
    def leave(self, client: Client) -> None:
        domain = client.handle.domain
        gone = {client.handle} | self.hypervisor.leave(client.handle)
        for handle in gone:
            for end in [end for end, owner in self.owner_of.items() if owner is handle]:
                self.drop(end)
            for key in [key for key in self.maps if key[0] is handle]:
                del self.maps[key]
        assert (domain.domid in self.alive) == (domain.domid in self.hypervisor.domains)

    def ask(self, client: Client, op: Op, domid: int = 0, number: int = 0, flags: int = 0) -> Reply | None:
        if client.handle.gone:  # its connection is closed
            return None
        try:
            return self.hypervisor.request(client.handle, Request(op, domid, number, flags))[0]
        except PlatformError:
            return None

    def add(self, client: Client, number: int, remote: int, far: End | None) -> None:
        end = End(client.handle.domain.domid, number)
        assert end not in self.ports
        self.ports[end], self.owner_of[end], self.meant_for[end] = far, client.handle, remote

    def drop(self, end: End) -> None:
        far = self.ports.pop(end)
        del self.owner_of[end], self.meant_for[end]
        if far in self.ports:
            self.ports[far] = None

    @invariant()
    def ports_are_where_the_model_has_them(self) -> None:
        found = {
            End(domain.domid, port.number): port.far and End(port.far.handle.domain.domid, port.far.number)
            for domain in self.hypervisor.domains.values()
            for port in domain.ports.values()
        }
        assert found == self.ports
        for end, handle in self.owner_of.items():
            reply, _ = self.hypervisor.request(handle, Request(Op.STATUS, number=end.number))
            far = self.ports[end]
            assert reply.status == (PortState.UNBOUND if far is None else PortState.INTERDOMAIN)
            assert far is None or (reply.domid, reply.number) == far

    @invariant()
    def pins_are_those_of_the_maps(self) -> None:
        pins = Counter((domid, gref) for domid, gref, _ in self.maps.values())
        writers = Counter((domid, gref) for domid, gref, readonly in self.maps.values() if not readonly)
        for domid in self.alive - {0}:
            for gref in GREFS:
                expected = (8 if pins[domid, gref] else 0) | (16 if writers[domid, gref] else 0)
                assert self.memories[domid].words.load64(gref * 8) & 24 == expected

    @invariant()
    def the_dead_grant_nothing(self) -> None:
        for domid in set(self.memories) - self.alive:
            assert all(self.memories[domid].words.load64(gref * 8) == 0 for gref in GREFS)


TestHypervisorModel = HypervisorMachine.TestCase
TestHypervisorModel.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
