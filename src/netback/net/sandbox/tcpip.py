# SPDX-License-Identifier: Apache-2.0
"""One host on one link: ARP and neighbour discovery, ICMP echo, UDP and TCP over IPv4 and IPv6.

Like a kernel's stack it leaves checksums of TCP and UDP and, where `segmentation` allows it, segmentation to the link,
and marks both in the header. It does no I/O: frames and the time are arguments. It keeps a bounded
number of neighbours, waiting packets and connections. It takes no fragments and no extension headers.
"""

import socket
from collections.abc import Callable
from itertools import count

from netback.abi import virtio_net
from netback.net.sandbox.packets import (
    ARP,
    ARP_REPLY,
    ARP_REQUEST,
    BROADCAST,
    ECHO,
    ECHO6_REPLY,
    ECHO6_REQUEST,
    ECHO_REPLY,
    ECHO_REQUEST,
    ETHERNET,
    EVERYONE,
    ICMP_PROTOCOL,
    ICMPV6,
    ICMPV6_PROTOCOL,
    IPV4,
    IPV6,
    L2,
    PLAIN,
    TCP,
    TCP_CSUM_AT,
    TCP_PROTOCOL,
    TYPE_ARP,
    TYPE_IPV4,
    TYPE_IPV6,
    UDP,
    UDP_CSUM_AT,
    UDP_PROTOCOL,
    UNASSIGNED,
    Flag,
    echo,
    folded,
    icmpv6,
    ip_size,
    is_right,
    packet,
    pseudo,
)
from netback.net.sandbox.tcp import WORD, Connection

ROUTER_SOLICITATION, ROUTER_ADVERTISEMENT, NEIGHBOUR_SOLICITATION, NEIGHBOUR_ADVERTISEMENT = range(133, 137)
LINK_ADDRESS = 2
"""Option of a neighbour advertisement: the target's link-layer address (RFC 4861, 4.6.1)."""
SOLICITED_OVERRIDE = 0x60000000
ALL_NODES = socket.inet_pton(socket.AF_INET6, "ff02::1")
UNSPECIFIED = bytes(16)
LINK_GROUPS = {EVERYONE: BROADCAST, ALL_NODES: b"\x33\x33" + ALL_NODES[-4:]}
"""The link-layer address of each group that is sent to."""

MAX_NEIGHBOURS = 256
MAX_UNSENT = 64
"""Packets that wait for their neighbours, all together."""
MAX_CONNECTIONS = 64
IN_FLIGHT = 1 << 19
FRAGMENT = 0x3FFF
"""More fragments, or not the first."""
CHECKED = virtio_net.F_NEEDS_CSUM | virtio_net.F_DATA_VALID
"""The sender vouches for the checksum."""

Key = tuple[bytes, bytes, int, int]
"""Of a connection: its own address, the far one and its port, the own port."""
Answer = Callable[[bytes], bytes | None]
"""What a UDP port answers to a datagram's payload; None: nothing."""
Serve = Callable[[Connection], object]
"""Prepares a new connection to a TCP port."""


def blank(source: bytes, to: bytes, protocol: int, segment: bytes, at: int) -> bytes:
    """A segment whose checksum is that of its pseudo header alone: the link completes it."""
    begun = folded(pseudo(source, to, protocol, len(segment)))
    return segment[:at] + begun.to_bytes(2, "big") + segment[at + 2 :]


def pack_address(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


class Host:
    """A few addresses: its neighbours, its outstanding echo requests and its connections.

    `send` takes a frame. `segmentation` says whether frames may be longer than the link's MTU; `checksum_errors` counts
    segments and datagrams dropped for a wrong checksum. `patience`: seconds without a segment after which a connection
    is dropped; None: never. `udp` and `tcp`: what answers at each port. `router`: the body of the router advertisement
    that answers a solicitation, from the last address, which is then the link-local one.
    """

    def __init__(self, addresses: str | tuple[str, ...], mac: str, send: Callable[[bytes], None]) -> None:
        self.segmentation = True
        self.checksum_errors = 0
        self.in_flight = IN_FLIGHT
        self.patience: float | None = None
        self.udp: dict[int, Answer] = {}
        self.tcp: dict[int, Serve] = {}
        self.router: bytes | None = None
        self._addresses = tuple(map(pack_address, (addresses,) if isinstance(addresses, str) else addresses))
        self._mac = bytes.fromhex(mac.replace(":", ""))
        self._send = send
        self._neighbours: dict[bytes, bytes] = {}
        self._unsent: list[tuple[bytes, bytes, int, bytes, bytes]] = []
        self._echoes: dict[int, Callable[[], object]] = {}
        self._connections: dict[Key, Connection] = {}
        self._numbers, self._ports = count(1), count(40000)

    # ---- requests

    def echo(self, address: str, back: Callable[[], object]) -> None:
        """Send an echo request over IPv4; `back` is called when its reply comes."""
        number = next(self._numbers) & 0xFFFF
        self._echoes[number] = back
        request = echo(ECHO_REQUEST, 1, number, bytes(56))
        self.send(self._own(4), pack_address(address), ICMP_PROTOCOL, request)

    def listen(self) -> tuple[int, Connection]:
        """A new port, and the connection that its first caller joins."""
        port = next(self._ports)
        connection = Connection(self, port)

        def join(made: Connection) -> None:
            del self.tcp[port]
            connection.near, connection.far = made.near, made.far
            self._connections[made.near, *made.far, port] = connection

        self.tcp[port] = join
        return port, connection

    def connect(self, address: str, port: int) -> Connection:
        """A connection whose SYN has been sent."""
        connection = Connection(self, next(self._ports))
        connection.far = pack_address(address), port
        connection.near = self._own(6 if ":" in address else 4)
        self._connections[connection.near, *connection.far, connection.port] = connection
        connection.open()
        return connection

    @property
    def busy(self) -> bool:
        """Whether `tick` has something to do."""
        return bool(self._connections)

    def tick(self, now: float) -> None:
        """Send again what has not been acknowledged in time; `now` is in seconds."""
        for key, connection in list(self._connections.items()):
            connection.tick(now)
            if connection.dropped:
                del self._connections[key]

    def flush(self) -> None:
        """Acknowledge a received burst once per connection."""
        for connection in self._connections.values():
            connection.acknowledge()

    # ---- out

    def send(self, source: bytes, to: bytes, protocol: int, segment: bytes, header: bytes = PLAIN) -> None:
        """Send a packet, after ARP if the neighbour is unknown; neighbours with IPv6 are those that sent something."""
        neighbour = LINK_GROUPS.get(to) or self._neighbours.get(to)
        if neighbour is not None:
            kind = TYPE_IPV4 if len(to) == len(EVERYONE) else TYPE_IPV6
            whole = packet(source, to, protocol, segment)
            self._send(header + ETHERNET.pack(neighbour, self._mac, kind) + whole)
        elif len(to) == len(EVERYONE):
            self._unsent = [*self._unsent[1 - MAX_UNSENT :], (source, to, protocol, segment, header)]
            arp = ARP.pack(1, TYPE_IPV4, 6, 4, ARP_REQUEST, self._mac, source, bytes(6), to)
            self._send(PLAIN + ETHERNET.pack(BROADCAST, self._mac, TYPE_ARP) + arp)

    def send_tcp(self, source: bytes, to: bytes, head: bytes, payload: bytes, mss: int) -> None:
        """Send TCP with a blank checksum; a payload above `mss` carries GSO."""
        l4 = L2 + ip_size(to)
        segment = blank(source, to, TCP_PROTOCOL, head + payload, TCP_CSUM_AT)
        kind = virtio_net.GSO_TCPV4 if len(to) == len(EVERYONE) else virtio_net.GSO_TCPV6
        gso = (kind, l4 + len(head), mss) if len(payload) > mss else (virtio_net.GSO_NONE, 0, 0)
        header = virtio_net.HEADER.pack(virtio_net.F_NEEDS_CSUM, *gso, l4, TCP_CSUM_AT)
        self.send(source, to, TCP_PROTOCOL, segment, header)

    def _send_udp(self, source: bytes, to: bytes, ports: tuple[int, int], payload: bytes) -> None:
        l4 = L2 + ip_size(to)
        datagram = UDP.pack(*ports, UDP.size + len(payload), 0) + payload
        header = virtio_net.HEADER.pack(virtio_net.F_NEEDS_CSUM, 0, 0, 0, l4, UDP_CSUM_AT)
        self.send(source, to, UDP_PROTOCOL, blank(source, to, UDP_PROTOCOL, datagram, UDP_CSUM_AT), header)

    def _own(self, version: int) -> bytes:
        """The first own address of a version of IP."""
        return next(address for address in self._addresses if len(address) == (4 if version == 4 else 16))

    def _know(self, address: bytes, mac: bytes) -> None:
        """A neighbour; the one that was heard of first goes if there are too many."""
        if address not in self._neighbours and len(self._neighbours) >= MAX_NEIGHBOURS:
            del self._neighbours[next(iter(self._neighbours))]
        self._neighbours[address] = mac
        if self._unsent:
            waiting = [each for each in self._unsent if each[1] == address]
            self._unsent = [each for each in self._unsent if each[1] != address]
            for each in waiting:
                self.send(*each)

    # ---- in

    def receive(self, message: bytes) -> None:
        """Handle a frame; a truncated one, or one for another host, is ignored."""
        if len(message) < len(PLAIN) + L2:
            return
        flags = message[0]
        frame = message[len(PLAIN) :]
        to, mac, kind = ETHERNET.unpack_from(frame)
        if (to != self._mac and not to[0] & 1) or mac[0] & 1:
            return
        if kind == TYPE_ARP and len(frame) >= L2 + ARP.size:
            self._receive_arp(frame)
        elif kind == TYPE_IPV4 and len(frame) >= L2 + IPV4.size:
            self._receive_ipv4(flags, mac, frame[L2:])
        elif kind == TYPE_IPV6 and len(frame) >= L2 + IPV6.size:
            self._receive_ipv6(flags, mac, frame[L2:])

    def _receive_arp(self, frame: bytes) -> None:
        _, _, _, _, operation, mac, address, _, target = ARP.unpack_from(frame, L2)
        if target not in self._addresses:
            return
        if address != UNASSIGNED:
            self._know(address, mac)
        if operation == ARP_REQUEST:
            own = ARP.pack(1, TYPE_IPV4, 6, 4, ARP_REPLY, self._mac, target, mac, address)
            self._send(PLAIN + ETHERNET.pack(mac, self._mac, TYPE_ARP) + own)

    def _receive_ipv4(self, flags: int, mac: bytes, whole: bytes) -> None:
        version, _, length, _, fragment, _, protocol, _, source, to = IPV4.unpack_from(whole)
        if version != 0x45 or fragment & FRAGMENT or not IPV4.size <= length <= len(whole):
            return
        if (
            to == EVERYONE and protocol == UDP_PROTOCOL and source == UNASSIGNED
        ):  # of a host that has no address yet
            self._receive_udp(flags, source, to, whole[IPV4.size : length])
        elif to in self._addresses and source not in (UNASSIGNED, EVERYONE):
            self._know(source, mac)
            self._receive_packet(flags, source, to, protocol, whole[IPV4.size : length])

    def _receive_ipv6(self, flags: int, mac: bytes, whole: bytes) -> None:
        version, length, protocol, _, source, to = IPV6.unpack_from(whole)
        if version >> 28 != 6 or length > len(whole) - IPV6.size or source[0] == 0xFF:
            return
        if source != UNSPECIFIED:
            self._know(source, mac)
        if to in self._addresses or to[0] == 0xFF:
            self._receive_packet(flags, source, to, protocol, whole[IPV6.size : IPV6.size + length])

    def _receive_packet(self, flags: int, source: bytes, to: bytes, protocol: int, segment: bytes) -> None:
        alone = to in self._addresses
        if protocol == ICMP_PROTOCOL and len(segment) >= ECHO.size and is_right(segment) and alone:
            self._receive_echo(source, to, segment)
        elif protocol == ICMPV6_PROTOCOL and len(segment) >= ECHO.size and len(to) == len(UNSPECIFIED):
            self._receive_icmpv6(source, to, segment)
        elif protocol == UDP_PROTOCOL and alone:
            self._receive_udp(flags, source, to, segment)
        elif protocol == TCP_PROTOCOL and alone:
            self._receive_tcp(flags, source, to, segment)

    def _is_whole(self, flags: int, source: bytes, to: bytes, protocol: int, segment: bytes) -> bool:
        if flags & CHECKED or is_right(pseudo(source, to, protocol, len(segment)) + segment):
            return True
        self.checksum_errors += 1
        return False

    def _receive_echo(self, source: bytes, to: bytes, segment: bytes) -> None:
        kind, _, _, number, sequence = ECHO.unpack_from(segment)
        if kind == ECHO_REQUEST:
            self.send(to, source, ICMP_PROTOCOL, echo(ECHO_REPLY, number, sequence, segment[ECHO.size :]))
        elif kind == ECHO_REPLY and sequence in self._echoes:
            self._echoes.pop(sequence)()

    def _receive_icmpv6(self, source: bytes, to: bytes, segment: bytes) -> None:
        kind, _, _ = ICMPV6.unpack_from(segment)
        body = segment[ICMPV6.size :]
        if not is_right(pseudo(source, to, ICMPV6_PROTOCOL, len(segment)) + segment):
            return
        if kind == ECHO6_REQUEST and to in self._addresses and source != UNSPECIFIED:
            self.send(to, source, ICMPV6_PROTOCOL, icmpv6(to, source, ECHO6_REPLY, body))
        elif kind == NEIGHBOUR_SOLICITATION and body[4:20] in self._addresses:
            self._advertise(source, body[4:20])
        elif kind == ROUTER_SOLICITATION and self.router is not None:
            own = self._addresses[-1]
            self.send(
                own, ALL_NODES, ICMPV6_PROTOCOL, icmpv6(own, ALL_NODES, ROUTER_ADVERTISEMENT, self.router)
            )

    def _advertise(self, source: bytes, own: bytes) -> None:
        """Answer a solicitation; one without a source is of a host that looks for another one with its address."""
        to = ALL_NODES if source == UNSPECIFIED else source
        link = bytes((LINK_ADDRESS, 1)) + self._mac
        body = SOLICITED_OVERRIDE.to_bytes(4, "big") + own + link
        self.send(own, to, ICMPV6_PROTOCOL, icmpv6(own, to, NEIGHBOUR_ADVERTISEMENT, body))

    def _receive_udp(self, flags: int, source: bytes, to: bytes, segment: bytes) -> None:
        if len(segment) < UDP.size:
            return
        far, port, length, sum_ = UDP.unpack_from(segment)
        if port not in self.udp or not UDP.size <= length <= len(segment):
            return
        segment = segment[:length]
        if (sum_ or len(to) == len(UNSPECIFIED)) and not self._is_whole(
            flags, source, to, UDP_PROTOCOL, segment
        ):
            return
        answer = self.udp[port](segment[UDP.size :])
        if answer is not None and far:
            own = to if to in self._addresses else self._own(4)
            self._send_udp(own, EVERYONE if source == UNASSIGNED else source, (port, far), answer)

    def _receive_tcp(self, vouched: int, source: bytes, to: bytes, segment: bytes) -> None:
        if len(segment) < TCP.size or not self._is_whole(vouched, source, to, TCP_PROTOCOL, segment):
            return
        far, port, sequence, acknowledged, offset, bits, window, _, _ = TCP.unpack_from(segment)
        flags, head = Flag(bits & 0x1F), (offset >> 4) * 4
        if not TCP.size <= head <= len(segment):
            return
        key = (to, source, far, port)
        connection = self._connections.get(key)
        if connection is None and flags & (Flag.SYN | Flag.ACK | Flag.RST) == Flag.SYN and port in self.tcp:
            connection = self._accept(key)
        if connection is None:
            if not flags & Flag.RST:
                self._reset(to, source, segment)
            return
        options, payload = segment[TCP.size : head], segment[head:]
        connection.receive(flags, sequence, acknowledged, window, payload, options)
        if connection.dropped:
            del self._connections[key]

    def _accept(self, key: Key) -> Connection | None:
        """A new connection; None if there are too many."""
        near, source, far, port = key
        if len(self._connections) >= MAX_CONNECTIONS:
            return None
        made = Connection(self, port)
        made.near, made.far = near, (source, far)
        self._connections[key] = made
        self.tcp[port](made)
        return self._connections[key]

    def _reset(self, near: bytes, source: bytes, segment: bytes) -> None:
        """Answer a segment of no connection (RFC 9293, 3.10.7.1)."""
        far, port, sequence, acknowledged, offset, bits, _, _, _ = TCP.unpack_from(segment)
        flags = Flag(bits & 0x1F)
        length = len(segment) - (offset >> 4) * 4 + bool(flags & Flag.SYN) + bool(flags & Flag.FIN)
        if flags & Flag.ACK:
            head = TCP.pack(port, far, acknowledged, 0, 5 << 4, Flag.RST, 0, 0, 0)
        else:
            head = TCP.pack(port, far, 0, (sequence + length) % WORD, 5 << 4, Flag.RST | Flag.ACK, 0, 0, 0)
        self.send_tcp(near, source, head, b"", 1)
