# SPDX-License-Identifier: Apache-2.0
"""ARP, ICMP echo and TCP over IPv4 on one link: enough for two such hosts. Frames are led by their virtio_net_hdr.

Like a kernel's stack it leaves TCP checksums and, where `segmentation` allows it, segmentation to the link, and marks
both in the header. It does no I/O: frames and the time are arguments. It has no congestion control, because a ring
loses frames only at a restart: everything that is not acknowledged within RESEND_SECONDS is sent again.
"""

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable
from enum import IntFlag
from itertools import count

from netback.abi import virtio_net

ARP = struct.Struct("!HHBBH6s4s6s4s")
ETHERNET = struct.Struct("!6s6sH")
IPV4 = struct.Struct("!BBHHHBBH4s4s")
TCP = struct.Struct("!HHIIBBHHH")
PSEUDO = struct.Struct("!4s4sBBH")
ECHO = struct.Struct("!BBHHH")

PLAIN = virtio_net.HEADER.pack(0, 0, 0, 0, 0, 0)
TYPE_IPV4, TYPE_ARP = 0x0800, 0x0806
ICMP_PROTOCOL, TCP_PROTOCOL = 1, 6
ARP_REQUEST, ARP_REPLY = 1, 2
ECHO_REPLY, ECHO_REQUEST = 0, 8
BROADCAST = b"\xff" * 6

L2, L3 = ETHERNET.size, IPV4.size
L4 = L2 + L3
TCP_CSUM_AT = 16
MSS = 1500 - L3 - TCP.size
SEGMENTS = 44
"""MSS times this plus the headers stays below 64 KiB."""
WINDOW_SHIFT = 7
IN_FLIGHT = 1 << 19
RESEND_SECONDS = 0.2
SYN_OPTIONS = struct.pack("!BBHBBBB", 2, 4, MSS, 3, 3, WINDOW_SHIFT, 0)
WORD = 1 << 32
HALF = 1 << 31


class Flag(IntFlag):
    """Flags of a TCP header (RFC 9293)."""

    FIN = 1
    SYN = 2
    RST = 4
    PSH = 8
    ACK = 16


def folded(data: bytes) -> int:
    """RFC 1071's sum: 16-bit words added with end-around carry equal the whole number modulo 65535."""
    return int.from_bytes(data + b"\0" * (len(data) & 1), "big") % 0xFFFF


def checksum(data: bytes) -> int:
    return 0xFFFF - folded(data)


def echo(kind: int, number: int, sequence: int, payload: bytes) -> bytes:
    """An ICMP echo request or reply."""
    blank = ECHO.pack(kind, 0, 0, number, sequence) + payload
    return ECHO.pack(kind, 0, checksum(blank), number, sequence) + payload


class Host:
    """One IPv4 address: its neighbours, its outstanding echo requests and its connections.

    `send` takes a frame. `segmentation` says whether frames may be longer than the link's MTU; `checksum_errors` counts
    TCP segments dropped for a wrong checksum.
    """

    def __init__(self, address: str, mac: str, send: Callable[[bytes], None]) -> None:
        self.segmentation = True
        self.checksum_errors = 0
        self._address = socket.inet_aton(address)
        self._mac = bytes.fromhex(mac.replace(":", ""))
        self._send = send
        self._neighbours: dict[bytes, bytes] = {}
        self._unsent: dict[bytes, list[tuple[bytes, int, bytes]]] = {}
        self._echoes: dict[int, Callable[[], object]] = {}
        self._connections: dict[tuple[bytes, int, int], Connection] = {}
        self._listening: dict[int, Connection] = {}
        self._numbers, self._ports = count(1), count(40000)

    # ---- requests

    def echo(self, address: str, back: Callable[[], object]) -> None:
        """Send an echo request; `back` is called when its reply comes."""
        number = next(self._numbers) & 0xFFFF
        self._echoes[number] = back
        self.send(socket.inet_aton(address), ICMP_PROTOCOL, echo(ECHO_REQUEST, 1, number, bytes(56)))

    def listen(self) -> tuple[int, "Connection"]:
        """A new port, and the connection that its first caller joins."""
        port = next(self._ports)
        self._listening[port] = Connection(self, port)
        return port, self._listening[port]

    def connect(self, address: str, port: int) -> "Connection":
        """A connection whose SYN has been sent."""
        connection = Connection(self, next(self._ports))
        self._join(connection, socket.inet_aton(address), port)
        connection.open()
        return connection

    def tick(self, now: float) -> None:
        """Send again what has not been acknowledged in time; `now` is in seconds."""
        for connection in self._connections.values():
            connection.tick(now)

    def flush(self) -> None:
        """Acknowledge a received burst once per connection."""
        for connection in self._connections.values():
            connection.acknowledge()

    def _join(self, connection: "Connection", address: bytes, port: int) -> None:
        connection.far = (address, port)
        self._connections[address, port, connection.port] = connection

    # ---- out

    def send(self, to: bytes, protocol: int, segment: bytes, header: bytes = PLAIN) -> None:
        """Send a datagram, after ARP if the neighbour is unknown."""
        neighbour = self._neighbours.get(to)
        if neighbour is None:
            self._unsent.setdefault(to, []).append((header, protocol, segment))
            self._send_arp(ARP_REQUEST, BROADCAST, bytes(6), to)
            return
        blank = IPV4.pack(0x45, 0, L3 + len(segment), 0, 0x4000, 64, protocol, 0, self._address, to)
        ip = blank[:10] + checksum(blank).to_bytes(2, "big") + blank[12:]
        self._send(header + ETHERNET.pack(neighbour, self._mac, TYPE_IPV4) + ip + segment)

    def send_tcp(self, to: bytes, head: bytes, payload: bytes) -> None:
        """Send TCP with a blank checksum; a payload above MSS carries GSO."""
        pseudo = folded(PSEUDO.pack(self._address, to, 0, TCP_PROTOCOL, len(head) + len(payload)))
        segment = head[:TCP_CSUM_AT] + pseudo.to_bytes(2, "big") + head[TCP_CSUM_AT + 2 :] + payload
        large = len(payload) > MSS
        gso = (virtio_net.GSO_TCPV4, L4 + len(head), MSS) if large else (virtio_net.GSO_NONE, 0, 0)
        header = virtio_net.HEADER.pack(virtio_net.F_NEEDS_CSUM, *gso, L4, TCP_CSUM_AT)
        self.send(to, TCP_PROTOCOL, segment, header)

    def _send_arp(self, operation: int, to: bytes, target_mac: bytes, target: bytes) -> None:
        arp = ARP.pack(1, TYPE_IPV4, 6, 4, operation, self._mac, self._address, target_mac, target)
        self._send(PLAIN + ETHERNET.pack(to, self._mac, TYPE_ARP) + arp)

    # ---- in

    def receive(self, message: bytes) -> None:
        """Handle a frame; a truncated one, or one for another host, is ignored."""
        header = virtio_net.HEADER.unpack_from(message)
        frame = message[virtio_net.HEADER.size :]
        if len(frame) < L4 or frame[:6] not in (self._mac, BROADCAST):
            return
        kind = int.from_bytes(frame[12:14], "big")
        if kind == TYPE_ARP and len(frame) >= L2 + ARP.size:
            self._receive_arp(frame)
        elif kind == TYPE_IPV4 and frame[L2] == 0x45 and frame[L2 + 16 : L4] == self._address:
            end = L2 + int.from_bytes(frame[L2 + 2 : L2 + 4], "big")
            self._receive_datagram(header[0], frame[L2 + 12 : L2 + 16], frame[L2 + 9], frame[L4:end])

    def _receive_arp(self, frame: bytes) -> None:
        _, _, _, _, operation, mac, address, _, target = ARP.unpack_from(frame, L2)
        if target != self._address:
            return
        self._neighbours[address] = mac
        if operation == ARP_REQUEST:
            self._send_arp(ARP_REPLY, mac, mac, address)
        for header, protocol, segment in self._unsent.pop(address, []):
            self.send(address, protocol, segment, header)

    def _receive_datagram(self, flags: int, source: bytes, protocol: int, segment: bytes) -> None:
        if protocol == ICMP_PROTOCOL and len(segment) >= ECHO.size and checksum(segment) in (0, 0xFFFF):
            self._receive_echo(source, segment)
        elif protocol == TCP_PROTOCOL and len(segment) >= TCP.size:
            if flags & (virtio_net.F_NEEDS_CSUM | virtio_net.F_DATA_VALID) or self._has_right_sum(
                source, segment
            ):
                self._receive_tcp(source, segment)
            else:
                self.checksum_errors += 1

    def _has_right_sum(self, source: bytes, segment: bytes) -> bool:
        pseudo = PSEUDO.pack(source, self._address, 0, TCP_PROTOCOL, len(segment))
        return checksum(pseudo + segment) in (0, 0xFFFF)

    def _receive_echo(self, source: bytes, segment: bytes) -> None:
        kind, _, _, number, sequence = ECHO.unpack_from(segment)
        if kind == ECHO_REQUEST:
            self.send(source, ICMP_PROTOCOL, echo(ECHO_REPLY, number, sequence, segment[ECHO.size :]))
        elif kind == ECHO_REPLY and sequence in self._echoes:
            self._echoes.pop(sequence)()

    def _receive_tcp(self, source: bytes, segment: bytes) -> None:
        far, port, sequence, acknowledged, offset, flags, window, _, _ = TCP.unpack_from(segment)
        connection = self._connections.get((source, far, port))
        if connection is None and flags & Flag.SYN and port in self._listening:
            connection = self._listening.pop(port)
            self._join(connection, source, far)
        if connection is not None:
            connection.receive(Flag(flags), sequence, acknowledged, window, segment[(offset >> 4) * 4 :])


class Connection:
    """One end of a TCP connection that carries data one way: it has either `on_data` or `on_room`.

    `changed` is set whenever `established`, `received_all` or `sent_all` may have changed. Sequence numbers are kept
    modulo 2**32, as on the wire.
    """

    def __init__(self, host: Host, port: int) -> None:
        self.port = port
        self.far = (b"", 0)
        self.established = self.received_all = self.sent_all = False
        self.changed = asyncio.Event()
        self.on_data: Callable[[bytes], None] = lambda data: None
        self.on_room: Callable[[], bytes] | None = None
        """Returns the next bytes to send, none at the end."""
        self._host = host
        self._next = self._oldest = 0
        self._expected = 0
        self._window = MSS
        self._unacknowledged: deque[tuple[int, Flag, bytes]] = deque()
        self._rest = b""
        self._synchronised = self._ended = self._owes = False
        self._since: float | None = None

    def open(self) -> None:
        """Send SYN."""
        self._put(Flag.SYN, b"", SYN_OPTIONS)

    # ---- out

    def pump(self) -> None:
        """Send as much as the far end's window allows."""
        while self.on_room and not self._ended and self._in_flight < min(self._window, IN_FLIGHT):
            if not self._rest:
                self._rest = self.on_room()
            if not self._rest:
                self._ended = True
                self._put(Flag.FIN | Flag.ACK)
                return
            most = MSS * (SEGMENTS if self._host.segmentation else 1)
            self._put(Flag.PSH | Flag.ACK, self._rest[:most])
            self._rest = self._rest[most:]

    @property
    def _in_flight(self) -> int:
        return (self._next - self._oldest) % WORD

    def _put(self, flags: Flag, payload: bytes = b"", options: bytes = b"") -> None:
        """Send a segment, and keep it until it is acknowledged."""
        self._unacknowledged.append((self._next, flags, payload or options))
        self._emit(self._next, flags, payload or options)
        self._next = (self._next + len(payload) + bool(flags & (Flag.SYN | Flag.FIN))) % WORD

    def _emit(self, sequence: int, flags: Flag, payload: bytes) -> None:
        options, data = (payload, b"") if flags & Flag.SYN else (b"", payload)
        words = (TCP.size + len(options)) // 4
        window = 0xFFFF
        head = TCP.pack(self.port, self.far[1], sequence, self._expected, words << 4, flags, window, 0, 0)
        self._host.send_tcp(self.far[0], head + options, data)
        self._owes = False

    def acknowledge(self) -> None:
        """Send an ACK if one is owed."""
        if self._owes:
            self._emit(self._next, Flag.ACK, b"")

    def tick(self, now: float) -> None:
        """Send every unacknowledged segment again after RESEND_SECONDS without progress."""
        if not self._unacknowledged:
            self._since = None
        elif self._since is None:
            self._since = now
        elif now - self._since >= RESEND_SECONDS:
            self._since = now
            for sequence, flags, payload in self._unacknowledged:
                self._emit(sequence, flags, payload)

    # ---- in

    def receive(self, flags: Flag, sequence: int, acknowledged: int, window: int, payload: bytes) -> None:
        """Handle a segment of this connection."""
        if flags & Flag.SYN:
            self._receive_syn(flags, sequence)
        if flags & Flag.ACK:
            self._receive_ack(acknowledged, window if flags & Flag.SYN else window << WINDOW_SHIFT)
        if payload or flags & Flag.FIN:
            self._receive_data(flags, sequence, payload)
        self.pump()

    def _receive_syn(self, flags: Flag, sequence: int) -> None:
        self._owes = True
        if self._synchronised:  # a repeated one
            return
        self._synchronised = True
        self._expected = (sequence + 1) % WORD
        if not flags & Flag.ACK and not self._unacknowledged:
            self._put(Flag.SYN | Flag.ACK, b"", SYN_OPTIONS)

    def _receive_ack(self, acknowledged: int, window: int) -> None:
        if (acknowledged - self._oldest) % WORD >= HALF:
            return
        self._window = window
        if acknowledged != self._oldest:
            self._since = None
        self._oldest = acknowledged
        while self._unacknowledged and self._end_of(self._unacknowledged[0]) <= 0:
            self._unacknowledged.popleft()
        self.established = True
        self.sent_all = self._ended and not self._unacknowledged
        self.changed.set()

    def _end_of(self, sent: tuple[int, Flag, bytes]) -> int:
        """Bytes from the oldest unacknowledged sequence number to the segment's end; signed."""
        sequence, flags, payload = sent
        length = 1 if flags & Flag.SYN else len(payload) + bool(flags & Flag.FIN)
        return (sequence + length - self._oldest + HALF) % WORD - HALF

    def _receive_data(self, flags: Flag, sequence: int, payload: bytes) -> None:
        """Deliver data in order, each byte once; the sender repeats what came too early."""
        known = (self._expected - sequence) % WORD
        self._owes = True
        if known >= HALF or known > len(payload) or self.received_all:
            return
        if payload[known:]:
            self.on_data(payload[known:])
        self.received_all = bool(flags & Flag.FIN)
        self._expected = (sequence + len(payload) + self.received_all) % WORD
        self.changed.set()
