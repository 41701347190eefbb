# SPDX-License-Identifier: Apache-2.0
"""Talks to a server core in short words, and runs transcripts."""

from collections.abc import Callable, Iterable

from netback.abi.xs_wire import Errno, Op
from netback.xenstore.server import Server
from netback.xenstore.wire import Packet, Parser, joined

OK = "OK"
BEGIN = "BEGIN"
EVENTS = "EVENTS"
NONE = ""

Request = tuple[Op | int | str, ...]
Answer = str | Errno | None
Row = tuple["int | str", str, "Request | str", Answer]


def payload_of(op: int, words: tuple[str, ...]) -> bytes:
    """The request's payload: NUL-terminated strings, but a written value has no NUL."""
    parts = [word.encode() for word in words]
    if op == Op.WRITE:
        return joined(*parts[:1]) + b"".join(parts[1:])
    return joined(*parts) if parts else b"\0"


class Talker:
    """A client that keeps what it receives. `chunk` is how many bytes it sends at once."""

    def __init__(self, server: Server, domid: int, chunk: int = 1 << 20) -> None:
        self.hung_up = False
        self.events: list[tuple[str, str]] = []
        self.replies: dict[int, Packet] = {}
        self.transactions = {NONE: 0}
        self.sends = 0
        self._chunk = chunk
        self._parser = Parser()
        self._last = 0
        self.connection = server.connect(domid, self._take, self._hung_up)

    def _hung_up(self) -> None:
        self.hung_up = True

    def _take(self, data: bytes) -> None:
        self.sends += 1
        self._parser.feed(data)
        while packet := self._parser.next_packet():
            if packet.type == Op.WATCH_EVENT:
                assert (packet.req_id, packet.tx_id) == (0, 0)
                path, token, rest = packet.payload.split(b"\0")
                assert rest == b""
                self.events.append((path.decode(), token.decode()))
            else:
                self.replies[packet.req_id] = packet

    def send(self, data: bytes) -> None:
        for at in range(0, len(data), self._chunk):
            self.connection.receive(data[at : at + self._chunk])

    def ask(self, op: int, *words: str, tx: int = 0, payload: bytes | None = None) -> str | Errno | None:
        """The reply as text, its strings separated by blanks; None: no reply came."""
        reply = self.ask_raw(op, payload_of(op, words) if payload is None else payload, tx)
        if reply is None:
            return None
        if reply.type == Op.ERROR:
            return Errno(reply.payload.rstrip(b"\0").decode())
        assert reply.type == op
        return reply.payload.rstrip(b"\0").replace(b"\0", b" ").decode()

    def ask_raw(self, op: int, payload: bytes, tx: int = 0) -> Packet | None:
        self._last += 1
        self.send(Packet(op, self._last, tx, payload).encode())
        reply = self.replies.pop(self._last, None)
        assert reply is None or reply.tx_id == tx
        return reply

    def begin(self, label: str) -> str | Errno | None:
        answer = self.ask(Op.TRANSACTION_START)
        if isinstance(answer, Errno) or answer is None:
            return answer
        self.transactions[label] = int(answer)
        return OK

    def take_events(self) -> str:
        events, self.events = self.events, []
        return ", ".join(f"{path} {token}" for path, token in events)


def run(rows: Iterable[Row], chunk: int = 1 << 20, introduced: Iterable[int] = (1, 2, 3)) -> Server:
    """Play a transcript: each row is the asker (a domid, or any name that begins with one), in which
    transaction, for what, and the answer. BEGIN opens the transaction of that label; EVENTS is what came."""
    server = Server()
    for domid in introduced:
        server.introduce(domid)
    talkers: dict[int | str, Talker] = {}
    for number, (asker, tx, request, expected) in enumerate(rows):
        if asker not in talkers:
            talkers[asker] = Talker(server, int(str(asker)[0]), chunk)
        answer = _play(talkers[asker], tx, request)
        assert answer == expected, f"row {number}: {asker} {tx} {request}: {answer!r}, not {expected!r}"
        assert type(answer) is type(expected), f"row {number}: {answer!r} is an error or a value"
    return server


def _play(talker: Talker, tx: str, request: Request | str) -> Answer:
    if isinstance(request, str):
        plays: dict[str, Callable[[], Answer]] = {
            BEGIN: lambda: talker.begin(tx),
            EVENTS: talker.take_events,
        }
        return plays[request]()
    op, *words = request
    return talker.ask(int(op), *map(str, words), tx=talker.transactions[tx])
