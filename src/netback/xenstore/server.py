# SPDX-License-Identifier: Apache-2.0
"""A xenstore server without I/O: bytes of many connections in, bytes out. It does not know sockets or time.

>>> server, sent = Server(), []
>>> dom0 = server.connect(0, sent.append)
>>> dom0.receive(Packet(Op.WRITE, 1, 0, b"/name\\0value").encode())
>>> dom0.receive(Packet(Op.READ, 2, 0, b"/name\\0").encode())
>>> sent[1][16:]
b'value'
"""

from collections import deque
from collections.abc import Callable

from netback.abi.xs_wire import DOMID_FIRST_RESERVED, HEADER, PAYLOAD_MAX, Errno, Op
from netback.xenstore import paths
from netback.xenstore.errors import Refused
from netback.xenstore.perms import Caller
from netback.xenstore.quota import GUEST, PRIVILEGED, Quota
from netback.xenstore.requests import HANDLERS
from netback.xenstore.tree import INTRODUCE_DOMAIN, RELEASE_DOMAIN, Transaction, Tree, View
from netback.xenstore.watches import Watch, Watches
from netback.xenstore.wire import Packet, Parser, WireError

# Replies are given to the transport together, so that one reading costs one writing; but not more than this
# at a time, because the transport can only say "pause" after it was given some.
_FLUSH_BYTES = 65536


def _nothing() -> None:
    """A connection whose far end needs no telling."""


class Connection:
    """One client. Its transport calls `receive`, `pause`, `resume` and `close`.

    While it is paused its requests wait, so replies cannot pile up; only events can: equal ones once, and no
    more than its quota.
    """

    def __init__(
        self, server: "Server", caller: Caller, send: Callable[[bytes], None], hang_up: Callable[[], None]
    ) -> None:
        self.server = server
        self.caller = caller
        self.closed = False
        self.paused = False
        self.dropped_events = 0
        self._home = paths.home(caller.domid)
        self._send = send
        self._hang_up = hang_up
        self._parser = Parser()
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._events: set[bytes] = set()  # the watch events in _out
        self._event_count = 0
        self.watches: dict[tuple[bytes, bytes], Watch] = {}
        self.transactions: dict[int, Transaction] = {}
        self._last_transaction = 0

    def receive(self, data: bytes) -> None:
        """Serve what these bytes ask for. Bytes that are not the protocol end this connection."""
        if not self.closed:
            self._parser.feed(data)
            self._serve()

    def pause(self) -> None:
        """The transport has enough to send: serve nothing more until `resume`."""
        self.paused = True

    def resume(self) -> None:
        self.paused = False
        self.server.owe(self)
        self._serve()

    def close(self) -> None:
        """The client is gone: its watches and transactions with it. May be called again."""
        if not self.closed:
            self.closed = True
            self.reset()
            self._take_out()
            self.server.connections.discard(self)

    def end_by_server(self) -> None:
        """End the connection from this side, after what is due was given to the transport."""
        if not self.closed:
            self.flush()
            self.close()
            self._hang_up()

    # ---- what requests do to their connection

    def path(self, name: bytes, special: bool = False) -> bytes:
        return paths.canonical(name, self._home, self.caller.quota.path, special)

    def watch(self, path: bytes, token: bytes, relative: bool) -> None:
        if (path, token) in self.watches:
            raise Refused(Errno.EEXIST)
        if len(self.watches) >= self.caller.quota.watches:
            raise Refused(Errno.E2BIG)
        skip = len(self._home) + 1 if relative else 0
        watch = Watch(self.caller, path, token, skip, self._fire)
        self.watches[path, token] = watch
        self.server.watches.add(watch)
        self._fire(watch, path)  # once at once, so that a client need not look first

    def unwatch(self, path: bytes, token: bytes) -> None:
        watch = self.watches.pop((path, token), None)
        if watch is None:
            raise Refused(Errno.ENOENT)
        self.server.watches.remove(watch)

    def reset(self) -> None:
        for watch in self.watches.values():
            self.server.watches.remove(watch)
        self.watches.clear()
        self.transactions.clear()

    def begin(self) -> int:
        if len(self.transactions) >= self.caller.quota.transactions:
            raise Refused(Errno.ENOSPC)
        number = self._last_transaction
        while number == 0 or number == self._last_transaction or number in self.transactions:
            number = (number + 1) & 0xFFFFFFFF
        self._last_transaction = number
        self.transactions[number] = self.server.tree.begin(self.caller)
        return number

    def end(self, view: View, commit: bool) -> None:
        number = next(number for number, transaction in self.transactions.items() if transaction is view)
        transaction = self.transactions.pop(number)
        if commit:
            self.server.tree.commit(transaction, self.caller)

    # ---- streams

    def _serve(self) -> None:
        try:
            while not (self.paused or self.closed) and (packet := self._parser.next_packet()):
                self._answer(packet)
                if self._out_bytes > _FLUSH_BYTES:
                    self.server.flush()
        except WireError:
            self.server.flush()
            self.end_by_server()
        self.server.flush()

    def _answer(self, packet: Packet) -> None:
        try:
            payload = self.server.serve(self, packet)
            type_ = packet.type
        except Refused as refusal:
            payload, type_ = refusal.errno.encode() + b"\0", int(Op.ERROR)
        if not self.closed:
            self._queue(HEADER.pack(type_, packet.req_id, packet.tx_id, len(payload)) + payload)

    def _fire(self, watch: Watch, path: bytes) -> None:
        payload = watch.payload(path)
        # Equal events that still wait are one: the client learns no more from a second. Special ones are all
        # kept (as xenstored does): each may be about another domain.
        special = path.startswith(b"@")
        if (not special and payload in self._events) or len(payload) > PAYLOAD_MAX:
            return
        if self._event_count >= self.caller.quota.events:
            self.flush()  # one request can cause more than the limit: the limit is for those who do not read
        if self._event_count >= self.caller.quota.events:
            self._overrun()
            return
        self._event_count += 1
        self._events.add(payload)
        self._queue(HEADER.pack(Op.WATCH_EVENT, 0, 0, len(payload)) + payload)

    def _overrun(self) -> None:
        self.dropped_events += 1
        if self.caller.privileged:  # a tool that stopped reading must not believe that it has seen everything
            self.server.doom(self)

    def _queue(self, message: bytes) -> None:
        if not self._out:
            self.server.owe(self)
        self._out.append(message)
        self._out_bytes += len(message)

    def flush(self) -> None:
        if self._out and not self.paused:
            self._send(self._take_out())

    def _take_out(self) -> bytes:
        data = b"".join(self._out)
        self._out.clear()
        self._out_bytes = 0
        self._events.clear()
        self._event_count = 0
        return data


class Server:
    """The store and everybody connected to it."""

    def __init__(self, quota: Quota = GUEST) -> None:
        self.tree = Tree()
        self.watches = Watches()
        self.connections: set[Connection] = set()
        self.introduced = {0}
        self._quota = quota
        self._targets: dict[int, int] = {}
        self._owing: deque[Connection] = deque()
        self._doomed: deque[Connection] = deque()

    def connect(
        self, domid: int, send: Callable[[bytes], None], hang_up: Callable[[], None] = _nothing
    ) -> Connection:
        """A new client with the rights of `domid`. `hang_up` is called when the server ends it."""
        quota = PRIVILEGED if domid == 0 else self._quota
        caller = Caller(domid, quota, self._targets.get(domid))
        connection = Connection(self, caller, send, hang_up)
        self.connections.add(connection)
        return connection

    def introduce(self, domid: int, home: bool = True) -> None:
        """The domain exists from now on; give it its home, which it owns, and tell who waits for domains."""
        if not 0 < domid < DOMID_FIRST_RESERVED:
            raise ValueError(f"{domid} is no guest's domid")
        if home:
            self._change(lambda: self.tree.make_home(paths.home(domid), domid))
        if domid not in self.introduced:
            self.introduced.add(domid)
            self.watches.fire_special(INTRODUCE_DOMAIN, self.tree.nodes)
        self.flush()

    def release(self, domid: int) -> None:
        """The domain is gone, and its connections, nodes and permissions; then tell who waits for that."""
        if domid not in self.introduced or domid == 0:
            return
        self.introduced.discard(domid)
        for connection in self._of(domid):
            connection.end_by_server()
        self._forget_targets(domid)
        self._change(lambda: self.tree.forget(domid))
        self.watches.fire_special(RELEASE_DOMAIN, self.tree.nodes)
        self.flush()

    def set_target(self, domid: int, target: int) -> None:
        self._targets[domid] = target
        for connection in self._of(domid):
            connection.caller.target = target

    def close(self) -> None:
        """End every connection."""
        for connection in tuple(self.connections):
            connection.end_by_server()

    def usage(self, domid: int) -> dict[str, int]:
        """What the domain takes of its quota, and what it lost."""
        connections = self._of(domid)
        return {
            "nodes": self.tree.owned.get(domid, 0),
            "watches": sum(len(connection.watches) for connection in connections),
            "transactions": sum(len(connection.transactions) for connection in connections),
            "dropped-events": sum(connection.dropped_events for connection in connections),
        }

    # ---- what connections ask of their server

    def serve(self, connection: Connection, packet: Packet) -> bytes:
        """The payload of the reply."""
        handler = HANDLERS.get(packet.type)
        if handler is None:
            raise Refused(Errno.ENOSYS)
        if handler.privileged and not connection.caller.privileged:
            raise Refused(Errno.EACCES)
        view: View = self.tree
        if packet.tx_id and not handler.whole:
            found = connection.transactions.get(packet.tx_id)
            if found is None:
                raise Refused(Errno.ENOENT)
            view = found
        before = self.tree.nodes
        payload = handler.serve(connection, view, packet.payload)
        if self.tree.changed:
            self.watches.fire(self.tree.take_changed(), before, self.tree.nodes)
        if len(payload) > PAYLOAD_MAX:
            raise Refused(Errno.E2BIG)
        return payload

    def owe(self, connection: Connection) -> None:
        """The connection has something to send at the next flush."""
        self._owing.append(connection)

    def doom(self, connection: Connection) -> None:
        """End the connection at the next flush, not in the middle of what goes on now."""
        self._doomed.append(connection)

    def flush(self) -> None:
        while self._doomed:
            self._doomed.popleft().end_by_server()
        while self._owing:
            self._owing.popleft().flush()

    def _change(self, change: Callable[[], None]) -> None:
        before = self.tree.nodes
        change()
        self.watches.fire(self.tree.take_changed(), before, self.tree.nodes)

    def _of(self, domid: int) -> list[Connection]:
        return [connection for connection in self.connections if connection.caller.domid == domid]

    def _forget_targets(self, domid: int) -> None:
        self._targets.pop(domid, None)
        for stub, target in list(self._targets.items()):
            if target == domid:
                del self._targets[stub]
        for connection in self.connections:
            if connection.caller.target == domid:
                connection.caller.target = None
