# SPDX-License-Identifier: Apache-2.0
"""One client of the store without I/O: its stream, watches and transactions.

`Host` is what a connection and its requests need of the server.
"""

from collections.abc import Callable
from typing import Protocol

from netback.abi.xs_wire import HEADER, PAYLOAD_MAX, Errno, Op
from netback.xenstore import paths
from netback.xenstore.errors import Refused
from netback.xenstore.perms import Caller
from netback.xenstore.tree import Transaction, Tree, View
from netback.xenstore.watches import Watch, Watches
from netback.xenstore.wire import Packet, Parser, WireError

_FLUSH_BYTES = 65536
"""Replies go to the transport together, one write for each read; but no more than this at once, because the transport
can only pause after it was given some bytes."""


class Host(Protocol):
    """The parts of the server that a connection needs."""

    tree: Tree
    watches: Watches
    introduced: set[int]
    """Domids that exist."""

    def serve(self, connection: "Connection", packet: Packet) -> bytes:
        """Serve a request; returns the reply's payload. Refused: the reply is an ERROR."""

    def introduce(self, domid: int, home: bool = True) -> None:
        """A domain begins (INTRODUCE)."""

    def release(self, domid: int) -> None:
        """A domain ends (RELEASE)."""

    def set_target(self, domid: int, target: int) -> None:
        """Give a stub domain the rights of the guest that it serves (SET_TARGET)."""

    def usage(self, domid: int) -> dict[str, int]:
        """How much of its quotas a domain uses."""

    def owe(self, connection: "Connection") -> None:
        """The connection has bytes for its transport at the next flush."""

    def doom(self, connection: "Connection") -> None:
        """End the connection at the next flush, not within the current request."""

    def flush(self) -> None:
        """Give every connection's bytes to its transport."""

    def leave(self, connection: "Connection") -> None:
        """The connection has ended."""


class Connection:
    """One client. Its transport calls `receive`, `pause`, `resume` and `close`.

    While it is paused its requests wait, so replies cannot pile up (XSA-416). Only events can: equal ones are queued
    once, and at most as many as its quota (XSA-326).
    """

    def __init__(
        self, host: Host, caller: Caller, send: Callable[[bytes], None], hang_up: Callable[[], None]
    ) -> None:
        self.server = host
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
        """By path and token, as WATCH named them."""
        self._new_watches: list[Watch] = []
        self.transactions: dict[int, Transaction] = {}
        self._last_transaction = 0

    def receive(self, data: bytes) -> None:
        """Serve the requests that these bytes complete. Bytes that violate the protocol end this connection."""
        if not self.closed:
            self._parser.feed(data)
            self._serve()

    def pause(self) -> None:
        """The transport's buffer is full: serve no request until `resume`."""
        self.paused = True

    def resume(self) -> None:
        """The transport accepts bytes again."""
        self.paused = False
        self.server.owe(self)
        self._serve()

    def close(self) -> None:
        """The client is gone: remove its watches and transactions. May be called again."""
        if not self.closed:
            self.closed = True
            self.reset()
            self._take_out()
            self.server.leave(self)

    def end_by_server(self) -> None:
        """End the connection from this side, after its pending bytes went to the transport."""
        if not self.closed:
            self.flush()
            self.close()
            self._hang_up()

    # ---- for requests

    def path(self, name: bytes, special: bool = False) -> bytes:
        """The absolute path of `name`. EINVAL: not a valid path, or a special one (`@...`) if that is not
        allowed.
        """
        return paths.canonical(name, self._home, self.caller.quota.path, special)

    def watch(self, path: bytes, token: bytes, relative: bool) -> None:
        """Set a watch; it fires once after the reply. EEXIST: already set. E2BIG: beyond the quota."""
        if (path, token) in self.watches:
            raise Refused(Errno.EEXIST)
        if len(self.watches) >= self.caller.quota.watches:
            raise Refused(Errno.E2BIG)
        skip = len(self._home) + 1 if relative else 0
        watch = self.server.watches.add(self.caller, path, token, skip, self._fire)
        self.watches[path, token] = watch
        self._new_watches.append(watch)

    def unwatch(self, path: bytes, token: bytes) -> None:
        """Remove a watch. ENOENT: it is not set."""
        watch = self.watches.pop((path, token), None)
        if watch is None:
            raise Refused(Errno.ENOENT)
        self.server.watches.remove(watch)

    def reset(self) -> None:
        """Remove every watch and transaction (RESET_WATCHES)."""
        for watch in self.watches.values():
            self.server.watches.remove(watch)
        self.watches.clear()
        self.transactions.clear()

    def begin(self) -> int:
        """Open a transaction; returns its id, which is not 0. ENOSPC: beyond the quota."""
        if len(self.transactions) >= self.caller.quota.transactions:
            raise Refused(Errno.ENOSPC)
        number = self._last_transaction
        while number == 0 or number == self._last_transaction or number in self.transactions:
            number = (number + 1) & 0xFFFFFFFF
        self._last_transaction = number
        self.transactions[number] = self.server.tree.begin(self.caller)
        return number

    def end(self, view: View, commit: bool) -> None:
        """End a transaction, which is gone whatever the outcome. Refused as in `Tree.commit`."""
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
            if self._new_watches:
                self._fire_new()

    def _fire_new(self) -> None:
        """Each new watch fires once, after the reply to its WATCH, as in xenstored."""
        while self._new_watches:
            watch = self._new_watches.pop()
            self._fire(watch, watch.path)

    def _fire(self, watch: Watch, path: bytes) -> None:
        if self.closed:  # by an earlier watch of the same change
            return
        payload = watch.payload(path)
        # Equal events that wait are sent once: a second tells the client nothing. Special ones are all kept, as in
        # xenstored: each may be about another domain.
        special = path.startswith(b"@")
        if (not special and payload in self._events) or len(payload) > PAYLOAD_MAX:
            return
        if self._event_count >= self.caller.quota.events:
            self.flush()  # one request can fire more than the quota, which is for clients that do not read
        if self._event_count >= self.caller.quota.events:
            self._overrun()
            return
        self._event_count += 1
        self._events.add(payload)
        self._queue(HEADER.pack(Op.WATCH_EVENT, 0, 0, len(payload)) + payload)

    def _overrun(self) -> None:
        self.dropped_events += 1
        if self.caller.privileged:  # a tool that stopped reading must not miss events silently
            self.server.doom(self)

    def _queue(self, message: bytes) -> None:
        if not self._out:
            self.server.owe(self)
        self._out.append(message)
        self._out_bytes += len(message)

    def flush(self) -> None:
        """Give the transport the queued bytes, unless it is paused."""
        if self._out and not self.paused:
            self._send(self._take_out())

    def _take_out(self) -> bytes:
        data = b"".join(self._out)
        self._out.clear()
        self._out_bytes = 0
        self._events.clear()
        self._event_count = 0
        return data
