# SPDX-License-Identifier: Apache-2.0
"""What the filter `antispoof` must say of a frame, in plain Python; it imports nothing of netback.

The rules are docs/filters.md's. A frame is parsed piece by piece; whatever is missing ends it with a `Dropped`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

NOTHING = IPv4Address(0), IPv6Address(0)
HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION = 0, 43, 44, 51, 60
NO_PROTOCOL = -1
"""Of a later fragment."""
OWNERLESS = {131, 132, 133, 135, 143}
"""ICMPv6 types that may come from no address."""


class Dropped(Exception):
    """Why a frame does not pass."""


@dataclass
class Bytes:
    """The rest of a frame, read from its beginning."""

    data: bytes

    def take(self, count: int) -> bytes:
        if len(self.data) < count:
            raise Dropped("headers")
        taken, self.data = self.data[:count], self.data[count:]
        return taken

    def number(self, count: int) -> int:
        return int.from_bytes(self.take(count), "big")


class Oracle:
    """The judge of one guest's frames; `ips` None: its addresses are unknown."""

    def __init__(self, mac: bytes, ips: Sequence[str] | None) -> None:
        self.mac = mac
        self.networks: list[IPv4Network | IPv6Network] | None = None
        if ips is not None:
            local = b"\xfe\x80" + bytes(6) + bytes([mac[0] ^ 2, *mac[1:3], 0xFF, 0xFE, *mac[3:]])
            self.networks = [*(ip_network(ip, strict=False) for ip in ips), IPv6Network(local)]

    def judge(self, frame: bytes) -> str | None:
        """The reason of its drop; None: it passes."""
        try:
            self._judge(Bytes(frame))
        except Dropped as reason:
            return str(reason)
        return None

    def _own(self, address: IPv4Address | IPv6Address) -> bool:
        return any(
            address in network for network in self.networks or () if network.version == address.version
        )

    def _judge(self, frame: Bytes) -> None:
        _, source = (frame.take(6) for _ in range(2)) if len(frame.data) >= 14 else (frame.take(14), b"")
        if source != self.mac:
            raise Dropped("mac")
        kind = frame.number(2)
        for depth in range(4):
            if kind in (0x8100, 0x88A8):
                inner = frame
                skipped = 2
            elif (
                kind < 0x600 and frame.data[:5] == b"\xaa\xaa\x03\0\0" and frame.data[5:6] in (b"\0", b"\xf8")
            ):
                if len(frame.data) < 8:
                    return
                inner, skipped = frame, 6
            else:
                break
            if depth == 2:
                raise Dropped("headers")
            inner.take(skipped)
            kind = inner.number(2)
        if kind == 0x0800 and self.networks is not None:
            self._ipv4(frame.data)
        elif kind == 0x86DD:
            self._ipv6(frame.data)
        elif kind in (0x0806, 0x8035):
            self._arp(frame, reverse=kind == 0x8035)

    def _arp(self, packet: Bytes, *, reverse: bool) -> None:
        head, operation = packet.take(6) if len(packet.data) >= 28 else packet.take(28), packet.number(2)
        sender, sender_ip = packet.take(6), IPv4Address(packet.take(4))
        target, target_ip = packet.take(6), IPv4Address(packet.take(4))
        if head != bytes.fromhex("000108000604") or sender != self.mac:
            raise Dropped("arp")
        if reverse and operation == 3 and target != self.mac:
            raise Dropped("arp")
        if self.networks is None or self._own(sender_ip):
            return
        probe = operation == 3 if reverse else operation == 1 and self._own(target_ip)
        if sender_ip not in NOTHING or not probe:
            raise Dropped("arp")

    def _ipv4(self, packet: bytes) -> None:
        if len(packet) < 20 or packet[0] >> 4 != 4 or packet[0] % 16 < 5:
            raise Dropped("headers")
        source, target = IPv4Address(packet[12:16]), IPv4Address(packet[16:20])
        if self._own(source):
            return
        datagram = packet[4 * (packet[0] % 16) :]
        whole = packet[6] & 0x3F == 0 and packet[7] == 0
        dhcp = packet[9] == 17 and len(datagram) >= 8 and datagram[:4] == bytes([0, 68, 0, 67])
        if source not in NOTHING or target != IPv4Address("255.255.255.255") or not whole or not dhcp:
            raise Dropped("ipv4")

    def _ipv6(self, packet: bytes) -> None:
        if len(packet) < 40 or packet[0] >> 4 != 6:
            raise Dropped("headers")
        size = int.from_bytes(packet[4:6], "big")
        body = Bytes(packet[40 : 40 + size] if size else packet[40:])
        source, target = IPv6Address(packet[8:24]), IPv6Address(packet[24:40])
        protocol, fragmented = self._chain(packet[6], body)
        kind = None
        if protocol == 58:
            if len(body.data) < 4:
                raise Dropped("headers")
            kind = body.data[0]
        if kind is not None and 133 <= kind <= 137:
            if fragmented:
                raise Dropped("nd")
            self._nd(kind, source, body)
        if self.networks is None or self._own(source):
            return
        if source not in NOTHING or not target.is_multicast or kind not in OWNERLESS:
            raise Dropped("ipv6")

    def _chain(self, protocol: int, body: Bytes) -> tuple[int, bool]:
        fragmented = False
        for _ in range(16):
            if protocol not in (HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION):
                return protocol, fragmented
            if len(body.data) < 8:
                raise Dropped("headers")
            following, length = body.data[:2]
            size = 8 * (length + 1)
            if protocol == AUTHENTICATION:
                size = 4 * (length + 2)
            if protocol == FRAGMENT:
                size, fragmented = 8, True
                if int.from_bytes(body.data[2:4], "big") // 8:
                    return NO_PROTOCOL, True
            body.take(size)
            protocol = following
        raise Dropped("headers")

    def _nd(self, kind: int, source: IPv6Address, message: Bytes) -> None:
        fixed = message.take({133: 8, 134: 16, 135: 24, 136: 24, 137: 40}[kind])
        for number, value in self._options(message):
            if (number == 1 or (number == 2 and kind == 136)) and value != self.mac:
                raise Dropped("nd")
        probed = kind == 136 or (kind == 135 and source in NOTHING)
        if self.networks is not None and probed and not self._own(IPv6Address(fixed[8:24])):
            raise Dropped("nd")

    @staticmethod
    def _options(message: Bytes) -> Iterator[tuple[int, bytes]]:
        count = 0
        while message.data:
            count += 1
            size = 8 * message.data[1] if len(message.data) >= 8 else 0
            if not size or size > len(message.data) or count > 64:
                raise Dropped("nd")
            option = message.take(size)
            yield option[0], option[2:]
