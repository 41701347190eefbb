# SPDX-License-Identifier: Apache-2.0
"""Collects the events of a run, with a bound for each kind, and watches the requests of an emulated Xen's store."""

from collections import Counter
from collections.abc import Callable

from netback.abi.xs_wire import Errno, Op
from netback.conform.observation import AnyEvent, Cut, Ended, Joined, StoreLoad, StoreRequest
from netback.xenstore.connection import Connection
from netback.xenstore.errors import Refused
from netback.xenstore.perms import Caller
from netback.xenstore.server import Server
from netback.xenstore.wire import Packet

MAX_EVENTS = 4000
"""Events of one kind that a run keeps."""
_CHANGES = {Op.WRITE, Op.RM, Op.MKDIR, Op.SET_PERMS, Op.TRANSACTION_START, Op.TRANSACTION_END}
_LOOKS = {Op.READ, Op.DIRECTORY, Op.GET_PERMS, Op.DIRECTORY_PART}
_BACKENDS = "/local/domain/0/backend/"


class Recorder:
    """The events of one run, in their order. Any thread may add one."""

    def __init__(self) -> None:
        self.events: list[AnyEvent] = []
        self._counts: Counter[type] = Counter()

    def add(self, event: AnyEvent) -> None:
        """Keep an event, or the fact that its kind's bound is reached."""
        kind = type(event)
        self._counts[kind] += 1
        if self._counts[kind] <= MAX_EVENTS:
            self.events.append(event)
        elif self._counts[kind] == MAX_EVENTS + 1:
            self.events.append(Cut(kind.__name__))


class RecordingStore(Server):
    """The store of an emulated Xen whose guests are watched. The emulator's thread alone calls it.

    `on_join(domid)` is called for each domain that begins. With `conflict` the first transaction of a guest that
    changes something is made to fail.
    """

    def __init__(self, recorder: Recorder, on_join: Callable[[int], None], *, conflict: bool = False) -> None:
        super().__init__()
        self._recorder, self._on_join, self._conflict = recorder, on_join, conflict
        self._requests: Counter[int] = Counter()

    def introduce(self, domid: int, home: bool = True) -> None:
        if home:
            self._recorder.add(Joined(domid))
        super().introduce(domid, home)
        if home:
            self._on_join(domid)

    def release(self, domid: int) -> None:
        if domid in self.introduced:
            self._recorder.add(Ended(domid))
        super().release(domid)

    def load(self, domid: int) -> StoreLoad:
        """The number of a domain's requests up to now."""
        return StoreLoad(self._requests[domid])

    def serve(self, connection: Connection, packet: Packet) -> bytes:
        domid = connection.caller.domid
        self._requests[domid] += 1
        if domid and self._conflict and packet.type == Op.TRANSACTION_END and packet.payload == b"T\0":
            self._disturb(connection, packet.tx_id)
        try:
            reply = super().serve(connection, packet)
        except Refused as refused:
            self._record(connection, packet, packet.tx_id, refused.errno)
            raise
        started = packet.type == Op.TRANSACTION_START
        self._record(connection, packet, int(reply.rstrip(b"\0")) if started else packet.tx_id, "")
        return reply

    def _record(self, connection: Connection, packet: Packet, tx: int, error: str) -> None:
        domid = connection.caller.domid
        missing = packet.type in _LOOKS and error == Errno.ENOENT
        if packet.type not in _CHANGES and (not error or missing):
            return
        name, _, value = packet.payload.partition(b"\0")
        if packet.type == Op.TRANSACTION_END:
            path, value = "", name
        else:
            path = self._path(connection, name)
        if domid == 0 and not (path.startswith(_BACKENDS) and path.endswith("/state")):
            return
        known = {int(op): op.name for op in Op}
        op = known.get(packet.type, str(packet.type))
        self._recorder.add(StoreRequest(domid, op, path, _text(value), tx, str(error)))

    @staticmethod
    def _path(connection: Connection, name: bytes) -> str:
        try:
            return _text(connection.path(name, special=True))
        except Refused:
            return _text(name)

    def _disturb(self, connection: Connection, tx: int) -> None:
        """Change a node that the transaction has seen, so that the commit answers EAGAIN (xenstore.txt)."""
        transaction = connection.transactions.get(tx)
        if transaction is None or not transaction.written:
            return
        for path in transaction.accessed:
            node = self.tree.nodes.get(path)
            if node is not None:
                self._conflict = False
                self.tree.write(path, node.value, Caller(0))
                return


def _text(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace")
