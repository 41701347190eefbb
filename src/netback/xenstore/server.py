# SPDX-License-Identifier: Apache-2.0
"""A xenstore server without I/O: bytes of many connections in, bytes out.

>>> from netback.abi.xs_wire import Op
>>> server, sent = Server(), []
>>> dom0 = server.connect(0, sent.append)
>>> dom0.receive(Packet(Op.WRITE, 1, 0, b"/name\\0value").encode())
>>> dom0.receive(Packet(Op.READ, 2, 0, b"/name\\0").encode())
>>> sent[1][16:]
b'value'
"""

from collections import deque
from collections.abc import Callable

from netback.abi.xen import DOMID_FIRST_RESERVED
from netback.abi.xs_wire import PAYLOAD_MAX, Errno
from netback.xenstore import paths
from netback.xenstore.connection import Connection
from netback.xenstore.errors import Refused
from netback.xenstore.perms import Caller
from netback.xenstore.quota import GUEST, PRIVILEGED, Quota
from netback.xenstore.requests import HANDLERS
from netback.xenstore.tree import INTRODUCE_DOMAIN, RELEASE_DOMAIN, Tree, View
from netback.xenstore.watches import Watches
from netback.xenstore.wire import Packet


def _nothing() -> None:
    """For a transport that need not learn that the server ended its connection."""


class Server:
    """The store and its connections."""

    def __init__(self, quota: Quota = GUEST) -> None:
        """`quota` applies to every domain but domain 0, which has none."""
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
        """A new client with the privilege of `domid`.

        `send` takes bytes for the client and must not block; `hang_up` is called when the server ends the connection.
        """
        quota = PRIVILEGED if domid == 0 else self._quota
        caller = Caller(domid, quota, self._targets.get(domid))
        connection = Connection(self, caller, send, hang_up)
        self.connections.add(connection)
        return connection

    def introduce(self, domid: int, home: bool = True) -> None:
        """Add a domain: make its home, which it owns, and fire @introduceDomain.

        ValueError: `domid` is 0 or reserved (xen.h).
        """
        if not 0 < domid < DOMID_FIRST_RESERVED:
            raise ValueError(f"{domid} is no guest's domid")
        if home:
            self.tree.make_home(paths.home(domid), domid)
            self._announce()
        if domid not in self.introduced:
            self.introduced.add(domid)
            self._fire_special(INTRODUCE_DOMAIN)
        self.flush()

    def release(self, domid: int) -> None:
        """Remove a domain: end its connections, remove its nodes and permissions, then fire @releaseDomain."""
        if domid not in self.introduced or domid == 0:
            return
        self.introduced.discard(domid)
        for connection in self._of(domid):
            connection.end_by_server()
        self._forget_targets(domid)
        self.tree.forget(domid)
        self._announce()
        self._fire_special(RELEASE_DOMAIN)
        self.flush()

    def set_target(self, domid: int, target: int) -> None:
        """Give `domid`, a stub domain, the rights of the guest `target` as well."""
        self._targets[domid] = target
        for connection in self._of(domid):
            connection.caller.target = target

    def close(self) -> None:
        """End every connection."""
        for connection in tuple(self.connections):
            connection.end_by_server()

    def usage(self, domid: int) -> dict[str, int]:
        """The domain's use of its quotas, and the number of its dropped events."""
        connections = self._of(domid)
        return {
            "nodes": self.tree.owned.get(domid, 0),
            "watches": sum(len(connection.watches) for connection in connections),
            "transactions": sum(len(connection.transactions) for connection in connections),
            "dropped-events": sum(connection.dropped_events for connection in connections),
        }

    # ---- for connections (connection.Host)

    def serve(self, connection: Connection, packet: Packet) -> bytes:
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
        payload = handler.serve(connection, view, packet.payload)
        if self.tree.replaced or self.tree.changed:
            self._announce()
        if len(payload) > PAYLOAD_MAX:
            raise Refused(Errno.E2BIG)
        return payload

    def owe(self, connection: Connection) -> None:
        self._owing.append(connection)

    def doom(self, connection: Connection) -> None:
        self._doomed.append(connection)

    def flush(self) -> None:
        while self._doomed:
            self._doomed.popleft().end_by_server()
        while self._owing:
            self._owing.popleft().flush()

    def leave(self, connection: Connection) -> None:
        self.connections.discard(connection)

    def _announce(self) -> None:
        """Fire the watches of what the last request changed."""
        self.watches.fire(self.tree.changed, self.tree.may_see)
        self.tree.forget_changes()

    def _fire_special(self, path: bytes) -> None:
        self.watches.fire({path: False}, self.tree.may_see)

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
