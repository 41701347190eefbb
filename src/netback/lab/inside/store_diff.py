# SPDX-License-Identifier: Apache-2.0
"""Compare two xenstores on one list of requests: netback's own and the one of this host.

    python3 -m netback.lab.inside.store_diff /run/xenstored/socket --seeds 1-8       in dom0, with dom0's privilege
    python3 -m netback.lab.inside.store_diff /dev/xen/xenbus --seeds 1-8             in a guest, with its own

A list follows from its seed. It uses only nodes of its own and domids that no domain has, so it can run on the store of
a live host. Transaction ids and the order of children are not part of the protocol (xenstore.txt) and are not compared.
The order of replies and events is, but not through Linux's device, which hands them over in two ways. Any other
difference is listed in DIFFERENCES or is a fault.
"""

import argparse
import errno
import socket
import stat
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

from netback.abi.xen import DOMID_FIRST_RESERVED
from netback.abi.xs_wire import ABS_PATH_MAX, HEADER, PAYLOAD_MAX, REL_PATH_MAX, Op
from netback.lab.inside.store_requests import Draw
from netback.xenstore.errors import Refused
from netback.xenstore.paths import canonical
from netback.xenstore.server import Server
from netback.xenstore.wire import Packet, Parser, joined, strings

STEPS = 300
"""Requests per list."""
NO_DOMAIN = (9999, 32000)
"""Domids that no domain has."""
CLOSED = "closed"
_MAX_FAULTS = 20
"""Faults that are printed; the first ones cause the others."""
_NO_TRANSACTION = 2**32 - 1
_SETTLED = b"settled"
_REPLY = (b"a", b"reply")
"""Stands between events: their order is compared, and which come before a reply and which behind it."""


# --- a list


@dataclass(frozen=True, slots=True)
class Ask:
    """A request on connection `line`. `tx`: 0 for none, 1 for its latest transaction, else an id to send as it is."""

    line: int
    op: int
    tx: int
    payload: bytes

    def __str__(self) -> str:
        name = Op(self.op).name if self.op in set(Op) else str(self.op)
        return f"connection {self.line}, transaction {self.tx}: {name} {_short(self.payload)}"


@dataclass(frozen=True, slots=True)
class Events:
    """Collect the watch events of each connection since the last collection."""

    def __str__(self) -> str:
        return "watch events"


@dataclass(frozen=True, slots=True)
class Until:
    """Repeat a request with a growing number in its payload until it is refused; the answer is the refusal."""

    op: int
    payload: bytes
    most: int

    def __str__(self) -> str:
        return f"{Op(self.op).name} {_short(self.payload)}, repeatedly"


Step = Ask | Events | Until

_OFTEN = (
    *(Op.WRITE,) * 6,
    *(Op.MKDIR, Op.RM, Op.READ, Op.DIRECTORY, Op.GET_PERMS, Op.SET_PERMS) * 3,
    *(Op.WATCH, Op.UNWATCH, Op.TRANSACTION_START, Op.TRANSACTION_END) * 2,
    *(Op.DIRECTORY_PART, Op.GET_DOMAIN_PATH, Op.IS_DOMAIN_INTRODUCED),
    *(Op.INTRODUCE, Op.RELEASE, Op.RESUME, Op.SET_TARGET, Op.WATCH_EVENT, Op.ERROR, 20, 23, 255, 2**32 - 1),
)
_OF_DOMAINS = (Op.INTRODUCE, Op.RELEASE, Op.RESUME, Op.SET_TARGET)
"""Operations with valid payloads only: xenstored reads a word as domain 0."""


def make(seed: int, side: "Side", steps: int = STEPS) -> list[Step]:
    """The list of requests of a seed for one side.

    While a transaction is open, it and the other connections use separate paths, except for requests that shall make it
    conflict: stores may differ in what a transaction sees of later changes.
    """
    rng = Random(seed)
    made: list[Step] = []
    opened: int | None = None
    """The connection with an open transaction."""
    watched: list[bytes] = []
    while len(made) < steps:
        line, op = rng.randrange(side.lines), int(rng.choice(_OFTEN))
        inside = line == opened and rng.random() < 0.8
        places = side.places if opened is None else (side.inside if inside else side.outside)
        payload = _payload(rng, op, side, places)
        if op in (Op.WATCH, Op.UNWATCH):
            if (chosen := _watching(rng, op, payload, watched, side)) is None:
                continue
            payload = chosen
            if op == Op.UNWATCH and side.through_linux:
                made.append(Events())  # Linux drops undelivered events of a removed watch
        tx = int(inside) if opened is not None else rng.choice((*(0,) * 20, 1, _NO_TRANSACTION))
        if op == Op.TRANSACTION_START and not inside:
            if opened is not None:
                continue
            opened, tx = line, 0
        if op == Op.TRANSACTION_END and tx == 0 and side.through_linux:
            continue  # Linux sends it on, finds no transaction of its own, and never delivers the answer
        if op == Op.TRANSACTION_END and inside and rng.random() < 0.1:
            made.append(Ask(line, op, 1, b"X\0"))  # neither T nor F: the transaction stays open
            continue
        if op == Op.TRANSACTION_END and inside:
            if rng.random() < 0.4:
                made += _conflict(rng, line, side)
            opened = None
            payload = rng.choice((b"T\0", b"T\0", b"F\0"))
        made.append(Ask(line, op, tx, payload[: side.payload_max]))
        if rng.random() < 0.25:
            made.append(Events())
    return [*made, Events()]


def _payload(rng: Random, op: int, side: "Side", places: tuple[bytes, ...]) -> bytes:
    if rng.random() < 0.05 and op not in _OF_DOMAINS:
        return rng.randbytes(rng.choice((0, 3, 40)))
    whole = (*(place.rstrip(b"/") for place in places), *(side.foreign if places == side.places else ()))
    draw = Draw(rng, places, (0, side.domid, *NO_DOMAIN), ends=(), lengths=side.lengths, whole=whole)
    return draw.payload(op) + (b"more\0" if rng.random() < 0.05 else b"")


def _watching(rng: Random, op: int, payload: bytes, watched: list[bytes], side: "Side") -> bytes | None:
    """A watch to set or remove. Through Linux only well-formed ones, each set once and removed once.

    On /dev/xen/xenbus Linux answers these itself: it accepts two equal watches and the removal of unknown ones.
    """
    if op == Op.UNWATCH and watched and (side.through_linux or rng.random() < 0.6):
        return watched.pop(rng.randrange(len(watched)))
    if not side.through_linux:
        watched += [payload] * (op == Op.WATCH)
        return payload
    home = b"/local/domain/%d" % side.domid
    parts = strings(payload)
    known = {one.removeprefix(home + b"/") for one in watched}
    if op == Op.UNWATCH or len(parts) != 2 or payload != joined(*parts):
        return None
    if payload.removeprefix(home + b"/") in known or not _watchable(parts[0], home):
        return None
    watched.append(payload)
    return payload


def _watchable(path: bytes, home: bytes) -> bool:
    try:
        canonical(path, home, REL_PATH_MAX, special=True)
    except Refused:
        return False
    return True


def _conflict(rng: Random, line: int, side: "Side") -> list[Step]:
    """Another connection changes what the transaction has read."""
    seen = side.inside[0].rstrip(b"/")
    change = rng.choice((Ask(line, Op.WRITE, 0, seen + b"\0new"), Ask(line, Op.RM, 0, seen + b"\0")))
    return [
        Ask(line, Op.MKDIR, 1, seen + b"\0"),
        Ask(line, Op.READ, 1, seen + b"\0"),
        Ask(line, Op.WRITE, 1, seen + b"\0mine"),
        change,
    ]


@dataclass(frozen=True, slots=True)
class Side:
    """One side of the comparison: its connections, its paths, and a final list that follows every seed's."""

    domid: int
    root: bytes
    """An absolute path; a list uses nodes in two places below it."""
    inside: tuple[bytes, ...]
    outside: tuple[bytes, ...]
    """Prefixes of paths: of requests in a transaction, and of other requests meanwhile."""
    foreign: tuple[bytes, ...] = ()
    """Paths that the sender does not own."""
    lengths: tuple[int, ...] = (60, 2040, 2050, 3071, 3073)
    lines: int = 1
    through_linux: bool = False
    """Whether requests pass /dev/xen/xenbus, where Linux handles some itself."""
    payload_max: int = PAYLOAD_MAX
    ending: tuple[Step, ...] = ()

    @property
    def places(self) -> tuple[bytes, ...]:
        return self.inside + self.outside


def dom0() -> Side:
    """Two connections of domain 0 on a socket."""
    root = b"/local/domain/0/netback-diff"
    near = b"netback-diff/in"
    return Side(
        domid=0,
        root=root,
        inside=(root + b"/in/", near + b"/"),
        outside=(root + b"/out/",),
        lengths=(60, 2040, 2050),
        lines=2,
        ending=(
            Ask(0, Op.READ, 0, b"/" + b"x" * ABS_PATH_MAX + b"\0"),
            Ask(0, Op.MKDIR, 0, near + b"\0"),
            Ask(0, Op.SET_PERMS, 0, near + b"\0n%d\0" % DOMID_FIRST_RESERVED),
            Ask(0, Op.INTRODUCE, 0, b"%d\x001\x001\0" % NO_DOMAIN[1]),
            Ask(0, Op.RELEASE, 0, b"%d\0" % NO_DOMAIN[1]),
            *(Ask(0, op, 0, b"%d\0" % NO_DOMAIN[0]) for op in (Op.RELEASE, Op.RESUME)),
            Ask(0, Op.SET_TARGET, 0, b"%d\0%d\0" % NO_DOMAIN),
            Ask(0, Op.CONTROL, 0, b"no-such-command\0"),
            Ask(0, Op.RESET_WATCHES, 0, b"\0"),
        ),
    )


def guest(domid: int) -> Side:
    """A guest's connection through its kernel; the final list uses up its quota."""
    home = b"/local/domain/%d" % domid
    root, near = home + b"/data/diff", b"data/diff"
    full = root + b"/full/"
    return Side(
        domid=domid,
        root=root,
        inside=(near + b"/in/", root + b"/in/"),
        outside=(near + b"/out/", b"/local/domain/0/", b"/"),
        foreign=(b"/local", b"/local/domain"),
        through_linux=True,
        # Linux's limit for one message with its header.
        payload_max=PAYLOAD_MAX - HEADER.size,
        ending=(
            Until(Op.TRANSACTION_START, b"\0", 20),
            Until(Op.WRITE, full + b"%d\0", 1100),
            Ask(0, Op.RM, 0, full[:-1] + b"\0"),
            Ask(0, Op.WRITE, 0, near + b"/again\0and there is room"),
            Ask(0, Op.READ, 0, near + b"/again\0"),
            Until(Op.WATCH, near + b"\0w%d\0", 140),
        ),
    )


# --- running a list


class Line:
    """A connection to a store, one request at a time."""

    def __init__(
        self, send: Callable[[bytes], object], receive: Callable[[], bytes], close: Callable[[], object]
    ) -> None:
        self._send, self._receive, self.close = send, receive, close
        self._parser = Parser()
        self._last = 0
        self.events: list[tuple[bytes, bytes]] = []
        """Path and token of each event since `collect`, in order, and _REPLY for each reply."""
        self.transactions: list[int] = []

    def ask(self, op: int, payload: bytes, tx: int = 0) -> str:
        """Send a request and return its answer in comparable form."""
        self._last += 1
        try:
            self._send(Packet(op, self._last, tx, payload).encode())
            packet = self._next()
            while packet.type == Op.WATCH_EVENT:
                self._take(packet)
                packet = self._next()
        except EOFError:
            return CLOSED
        except OSError as error:  # Linux's refusal on /dev/xen/xenbus of requests that it handles itself
            return errno.errorcode.get(error.errno or 0, str(error))
        self.events.append(_REPLY)
        if packet.type == Op.TRANSACTION_START:
            self.transactions.append(int(packet.payload[:-1]))
        return plain(op, packet)

    def collect(self, place: bytes, ordered: bool = True) -> list[str]:
        """All events and replies so far, or sorted events; an event that this method causes marks their end."""
        mine = place, _SETTLED
        events = [one for one in self.events if one != mine]
        self.events = []
        self.ask(Op.WRITE, place + b"\0")
        while mine not in self.events:
            self._take(self._next())
        events += [one for one in self.events if one not in (mine, _REPLY)]
        self.events = []
        if not ordered:
            events = sorted(set(events) - {_REPLY})
        return [f"{_short(path)} {_short(token)}" for path, token in events if _SETTLED not in path]

    def transaction(self, tx: int) -> int:
        """The transaction id that a step refers to."""
        if tx == 1:
            return self.transactions[-1] if self.transactions else _NO_TRANSACTION
        return tx

    def _next(self) -> Packet:
        while (packet := self._parser.next_packet()) is None:
            data = self._receive()
            if not data:
                raise EOFError
            self._parser.feed(data)
        return packet

    def _take(self, packet: Packet) -> None:
        path, token = strings(packet.payload)[:2]
        self.events.append((path, token))


def plain(op: int, packet: Packet) -> str:
    """The answer without parts that xenstore.txt leaves open."""
    payload = packet.payload
    if packet.type == Op.ERROR:
        return payload.rstrip(b"\0").decode()
    match op:
        case Op.TRANSACTION_START:
            return "begun"
        case Op.DIRECTORY:
            return " ".join(sorted(map(_short, strings(payload))))
        case Op.DIRECTORY_PART:
            return " ".join(sorted(map(_short, strings(payload)[1:])))
    return f"{'' if packet.type == op else packet.type}{_short(payload)}"


def _short(data: bytes) -> str:
    text = repr(data)[2:-1]
    return text if len(text) < 100 else f"{text[:40]}...{len(data)} bytes, {hash_of(data)}"


def hash_of(data: bytes) -> str:
    """A short text that still tells long values apart."""
    return f"{sum((at + 1) * byte for at, byte in enumerate(data)) % 2**32:08x}"


def play(steps: Iterable[Step], side: Side, connect: Callable[[], Line]) -> Iterator[str]:
    """Run the steps; returns the answer to each."""
    lines = [connect() for _ in range(side.lines)]
    settling = [side.root + b"-settled-%d" % number for number in range(side.lines)]
    lines[0].ask(Op.RM, side.root + b"\0")
    for name in (b"/in", b"/out"):
        lines[0].ask(Op.MKDIR, side.root + name + b"\0")
    for line, place in zip(lines, settling, strict=True):
        line.ask(Op.WATCH, joined(place, _SETTLED))
        line.collect(place)
    for step in steps:
        match step:
            case Ask(number, op, tx, payload):
                line = lines[number]
                yield line.ask(op, payload, line.transaction(tx))
            case Events():
                ordered = not side.through_linux  # Linux hands over replies and events in two ways
                events = [line.collect(place, ordered) for line, place in zip(lines, settling, strict=True)]
                yield "; ".join(", ".join(one) for one in events)
            case Until(op, payload, most):
                yield _until(lines[0], op, payload, most)
    for name in (*settling, side.root):
        lines[0].ask(Op.RM, name + b"\0")
    for line in lines:
        line.close()


def _until(line: Line, op: int, payload: bytes, most: int) -> str:
    for number in range(most):
        answer = line.ask(op, payload % number if b"%d" in payload else payload)
        if answer not in ("OK\\x00", "begun"):
            return answer
    return f"never refused in {most}"


# --- the two stores


def reach(path: Path) -> Line:
    """Connect to the store behind a socket or a device."""
    if stat.S_ISSOCK(path.stat().st_mode):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(str(path))
        return Line(sock.sendall, lambda: sock.recv(65536), sock.close)
    device = path.open("r+b", buffering=0)
    return Line(device.write, lambda: device.read(65536) or b"", device.close)


def own(side: Side) -> Callable[[], Line]:
    """Connections to a fresh store of netback's."""
    server = Server()
    if side.domid:
        server.introduce(side.domid)
        furnish(_line(server, 0), side.domid)
    return lambda: _line(server, side.domid)


def furnish(line: Line, domid: int) -> None:
    """Create the nodes that libxl makes for a domain, as far as lists use them."""
    home, it = b"/local/domain/%d" % domid, b"%d" % domid
    line.ask(Op.SET_PERMS, joined(home, b"n0", b"r" + it))
    line.ask(Op.MKDIR, joined(b"/local/domain/0"))
    line.ask(Op.MKDIR, joined(home + b"/data"))
    line.ask(Op.SET_PERMS, joined(home + b"/data", b"n" + it))


def _line(server: Server, domid: int) -> Line:
    sent: deque[bytes] = deque()
    connection = server.connect(domid, sent.append)
    return Line(connection.receive, lambda: sent.popleft() if sent else b"", connection.close)


@dataclass(frozen=True, slots=True)
class Difference:
    """A known difference between the stores, and why it stays."""

    what: str
    fits: Callable[[Step, str, str], bool]
    """Whether the difference explains a step's two answers."""


def _asks(step: Step, *ops: Op) -> bool:
    return isinstance(step, Ask) and step.op in ops


def _domid(text: bytes) -> bool:
    return text.isdigit() and int(text) < DOMID_FIRST_RESERVED


def _names_a_domain(step: Step) -> bool:
    return isinstance(step, Ask) and _domid(step.payload[:-1])


def _permits_domains(step: Step) -> bool:
    return isinstance(step, Ask) and all(_domid(text[1:]) for text in strings(step.payload)[1:])


def _offset(step: Step) -> bytes:
    return strings(step.payload)[1] if isinstance(step, Ask) and step.payload.count(b"\0") > 1 else b"0"


def _long(step: Step) -> bool:
    return isinstance(step, Ask) and len(step.payload.partition(b"\0")[0]) > ABS_PATH_MAX


DIFFERENCES = (
    Difference(
        "what is refused anyway, in a transaction that there is not: Linux misses the transaction, by itself",
        lambda step, mine, other: (
            isinstance(step, Ask) and step.tx != 0 and mine in ("ENOSYS", "EACCES") and other == "ENOENT"
        ),
    ),
    Difference(
        "a path of domain 0 beyond XENSTORE_ABS_PATH_MAX: netback refuses it, as xs_wire.h says; xenstored looks",
        lambda step, mine, other: _long(step) and mine == "EINVAL" != other,
    ),
    Difference(
        "permissions for what can be no domid: netback refuses the string, xenstored misses the domain",
        lambda step, mine, other: (
            _asks(step, Op.SET_PERMS) and not _permits_domains(step) and (mine, other) == ("EINVAL", "ENOENT")
        ),
    ),
    Difference(
        "a domid that is none, or no number: xenstored reads what digits there are and takes DOMID_SELF for a domain",
        lambda step, mine, other: (
            _asks(step, Op.GET_DOMAIN_PATH, Op.IS_DOMAIN_INTRODUCED) and not _names_a_domain(step)
        ),
    ),
    Difference(
        "an offset of DIRECTORY_PART that is no number: netback refuses it, xenstored reads it as C does",
        lambda step, mine, other: (
            _asks(step, Op.DIRECTORY_PART) and mine == "EINVAL" and not _offset(step).isdigit()
        ),
    ),
    Difference(
        "INTRODUCE and RELEASE of a domain that is not there: netback believes the caller, xenstored asks Xen",
        lambda step, mine, other: _asks(step, Op.INTRODUCE, Op.RELEASE) and mine == "OK\\x00" != other,
    ),
)


def compare(side: Side, asked: list[Step], here: Callable[[], Line]) -> tuple[Counter[str], list[str]]:
    """Counts of known differences, and the unexplained ones."""
    known: Counter[str] = Counter()
    faults = []
    answers = zip(asked, play(asked, side, own(side)), play(asked, side, here), strict=True)
    for number, (step, mine, other) in enumerate(answers):
        if mine == other:
            continue
        reason = next((one.what for one in DIFFERENCES if one.fits(step, mine, other)), None)
        if reason is None:
            faults.append(f"step {number}, {step}:\n  netback: {mine}\n  other:   {other}")
        else:
            known[reason] += 1
    return known, faults


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0 if every difference is known."""
    parser = argparse.ArgumentParser(
        prog="netback.lab.inside.store_diff", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("store", type=Path, help="xenstored's socket, or /dev/xen/xenbus")
    parser.add_argument("--seeds", default="1-4", help="A-B")
    asked = parser.parse_args(arguments)
    first, _, last = asked.seeds.partition("-")
    here = partial(reach, asked.store)
    side = _side(here)
    seeds = range(int(first), int(last or first) + 1)
    lists = {f"seed {seed}": make(seed, side) for seed in seeds} | {"the ending": list(side.ending)}
    known: Counter[str] = Counter()
    faults: list[str] = []
    for name, steps in lists.items():
        more, new = compare(side, steps, here)
        known += more
        faults += [f"{name}, {fault}" for fault in new]
    for what, times in known.items():
        print(f"{times:4} times: {what}")
    print(*faults[:_MAX_FAULTS], sep="\n")
    total = sum(map(len, lists.values()))
    print(f"{total} steps of domain {side.domid}: {len(faults)} differences that nothing explains")
    return 1 if faults else 0


def _side(connect: Callable[[], Line]) -> Side:
    line = connect()
    domid = line.ask(Op.READ, b"domid\0")
    line.close()
    return guest(int(domid)) if domid.isdigit() and domid != "0" else dom0()


if __name__ == "__main__":
    sys.exit(main())
