# SPDX-License-Identifier: Apache-2.0
"""What the sandbox answers: DHCP, router advertisements, DNS of its own names, and the echo, discard and chargen of
RFC 862 to 864. Functions of bytes: for any input they return an answer or None.
"""

import ipaddress
import struct
from collections.abc import Callable, Iterator, Mapping

from netback.net.sandbox.tcp import Connection

BUFFER = 1 << 16
"""Bytes that an echo keeps of a guest that does not read them."""

# ---- DHCP (RFC 2131, 2132)

DHCP = struct.Struct("!BBBBIHH4s4s4s4s16s192x4s")
"""With the magic cookie at its end."""
COOKIE = bytes((99, 130, 83, 99))
BOOT_REQUEST, BOOT_REPLY = 1, 2
DISCOVER, OFFER, REQUEST, ACK, NAK, INFORM = 1, 2, 3, 5, 6, 8
MASK, ROUTER, SERVERS, DOMAIN, WANTED, LEASE, KIND, SERVER, END = 1, 3, 6, 15, 50, 51, 53, 54, 255
LEASE_SECONDS = 86400


def read_dhcp(options: bytes) -> dict[int, bytes]:
    """Options by their code, up to the first that is cut off."""
    found: dict[int, bytes] = {}
    at = 0
    while at + 1 < len(options) and options[at] != END:
        if options[at] == 0:
            at += 1
            continue
        end = at + 2 + options[at + 1]
        found[options[at]] = options[at + 2 : end]
        at = end
    return found


class Dhcp:
    """Gives every client the one address."""

    def __init__(self, guest: ipaddress.IPv4Interface, own: ipaddress.IPv4Address, domain: str) -> None:
        self._guest, self._own = guest.ip.packed, own.packed
        self._options = b"".join(
            bytes((code, len(value))) + value
            for code, value in (
                (SERVER, self._own),
                (MASK, guest.netmask.packed),
                (ROUTER, self._own),
                (SERVERS, self._own),
                (DOMAIN, domain.encode()),
            )
        )

    def answer(self, request: bytes) -> bytes | None:
        """The reply to a client's message; None if it gets none."""
        if len(request) < DHCP.size:
            return None
        op, htype, hlen, _, xid, _, flags, client, _, _, relay, hardware, cookie = DHCP.unpack_from(request)
        options = read_dhcp(request[DHCP.size :])
        kind = options.get(KIND, b"\0")[0] if options.get(KIND) else 0
        if op != BOOT_REQUEST or cookie != COOKIE or kind not in (DISCOVER, REQUEST, INFORM):
            return None
        if options.get(SERVER, self._own) != self._own:  # it took another server's offer
            return None
        wanted = options.get(WANTED) or client
        answers, lease, given = self._options, LEASE_SECONDS.to_bytes(4, "big"), self._guest
        reply = OFFER if kind == DISCOVER else ACK
        if kind == REQUEST and wanted != self._guest:
            reply, answers, given = NAK, bytes((SERVER, 4)) + self._own, bytes(4)
        elif kind == INFORM:
            given = bytes(4)
        if reply != NAK and kind != INFORM:
            answers += bytes((LEASE, 4)) + lease
        head = DHCP.pack(
            BOOT_REPLY, htype, hlen, 0, xid, 0, flags, client, given, self._own, relay, hardware, COOKIE
        )
        return head + bytes((KIND, 1, reply)) + answers + bytes((END,))


# ---- router advertisements (RFC 4861, 4862, 8106)

PREFIX_OPTION, DNS_OPTION, LINK_OPTION = 3, 25, 1
ON_LINK_AUTONOMOUS = 0xC0
FOR_EVER = 0xFFFFFFFF


def router_advertisement(prefix: ipaddress.IPv6Network, own: ipaddress.IPv6Address, mac: str) -> bytes:
    """The prefix for addresses that clients choose, and the name server; its router lifetime of 0 says that nothing is
    routed.
    """
    head = struct.pack("!BBHII", 64, 0, 0, 0, 0)
    option = struct.pack(
        "!BBBBIII", PREFIX_OPTION, 4, prefix.prefixlen, ON_LINK_AUTONOMOUS, FOR_EVER, FOR_EVER, 0
    )
    dns = struct.pack("!BBHI", DNS_OPTION, 3, 0, FOR_EVER) + own.packed
    link = bytes((LINK_OPTION, 1)) + bytes.fromhex(mac.replace(":", ""))
    return head + option + prefix.network_address.packed + dns + link


# ---- DNS (RFC 1035)

DNS = struct.Struct("!HHHHHH")
QUESTION = struct.Struct("!HH")
RECORD = struct.Struct("!HHHIH")
A, PTR, AAAA, ANY, IN = 1, 12, 28, 255, 1
RESPONSE, AUTHORITATIVE, RECURSION = 0x8000, 0x0400, 0x0100
OPCODE = 0x7800
NO_NAME, NOT_IMPLEMENTED = 3, 4
TTL = 60
NAME_POINTER = 0xC000 | DNS.size
MAX_NAME = 255


def read_name(message: bytes) -> tuple[str, int] | None:
    """The first question's name in lower case, and where it ends; None if it is none. A question's is never
    compressed.
    """
    labels: list[bytes] = []
    at = DNS.size
    while at < len(message) and at <= DNS.size + MAX_NAME:
        length = message[at]
        if length == 0:
            return b".".join(labels).decode("latin-1").lower(), at + 1
        if length > 63 or at + 1 + length > len(message):
            return None
        labels.append(message[at + 1 : at + 1 + length])
        at += 1 + length
    return None


def write_name(name: str) -> bytes:
    return b"".join(bytes((len(label),)) + label.encode() for label in name.split(".")) + b"\0"


Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Dns:
    """Knows these names and the names of these addresses, and no other."""

    def __init__(self, names: Mapping[str, tuple[Address, ...]]) -> None:
        self._records: dict[str, list[tuple[int, bytes]]] = {}
        for name, addresses in names.items():
            self._records[name] = []
            for address in addresses:
                self._records[name].append((A if address.version == 4 else AAAA, address.packed))
                self._records.setdefault(address.reverse_pointer, []).append((PTR, write_name(name)))

    def answer(self, query: bytes) -> bytes | None:
        """The response; None for what is no query."""
        if len(query) < DNS.size:
            return None
        number, flags, questions, _, _, _ = DNS.unpack_from(query)
        if flags & RESPONSE or questions != 1:
            return None
        heading = RESPONSE | AUTHORITATIVE | flags & (OPCODE | RECURSION)
        named = read_name(query)
        if named is None or len(query) < named[1] + QUESTION.size:
            return None
        name, end = named
        question = query[DNS.size : end + QUESTION.size]
        kind, klass = QUESTION.unpack_from(query, end)
        if flags & OPCODE:
            return DNS.pack(number, heading | NOT_IMPLEMENTED, 1, 0, 0, 0) + question
        known = self._records.get(name)
        found = [record for record in known or () if kind in (record[0], ANY) and klass == IN]
        code = 0 if known is not None else NO_NAME
        records = b"".join(
            RECORD.pack(NAME_POINTER, own, IN, TTL, len(value)) + value for own, value in found
        )
        return DNS.pack(number, heading | code, 1, len(found), 0, 0) + question + records

    def serve(self, connection: Connection) -> None:
        """Answer queries over TCP, each after its length (RFC 7766, 8)."""
        asked = bytearray()

        def answers(data: bytes) -> bytes:
            asked.extend(data)
            made = b""
            while len(asked) >= 2 and len(asked) >= (end := 2 + int.from_bytes(asked[:2], "big")):
                answer = self.answer(bytes(asked[2:end]))
                del asked[:end]
                made += len(answer).to_bytes(2, "big") + answer if answer is not None else b""
            return made

        serve_answers(connection, answers)


# ---- echo, discard, chargen


def echo_datagram(payload: bytes) -> bytes:
    return payload


def serve_answers(connection: Connection, answer: Callable[[bytes], bytes]) -> None:
    """Send what answers the bytes that come, and end when the far end does. What it does not read fills the buffer, and
    then its window closes.
    """
    waiting = bytearray()

    def take() -> bytes | None:
        if not waiting and connection.received_all:
            return None
        piece = bytes(waiting)
        waiting.clear()
        return piece

    connection.on_data = lambda data: waiting.extend(answer(data))
    connection.on_room = take
    connection.room = lambda: max(0, BUFFER - len(waiting) - connection.unsent)


def serve_echo(connection: Connection) -> None:
    """Send back what comes."""
    serve_answers(connection, bytes)


def serve_discard(connection: Connection) -> None:
    """Take everything, and end when the far end does."""
    connection.on_room = lambda: None if connection.received_all else b""


def serve_chargen(connection: Connection) -> None:
    """Send lines of the pattern until the far end ends."""
    lines = pattern()
    connection.on_room = lambda: None if connection.received_all else next(lines)


def pattern() -> Iterator[bytes]:
    """RFC 864's lines of 72 characters, each a character further, many at a time."""
    characters = bytes(range(32, 127)) * 2
    lines = [characters[at : at + 72] + b"\r\n" for at in range(95)]
    while True:
        yield b"".join(lines)
