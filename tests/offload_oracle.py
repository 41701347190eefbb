# SPDX-License-Identifier: Apache-2.0
"""The offload oracle: checksums, verdicts and cuts in plain Python, to hold the native code to, bit by bit.

Written from the RFCs, netif.h and docs/decisions.md alone; imports nothing of netback and is not optimised. All
numbers are big-endian ints and slices of bytes; nothing is shared with the native code's way of counting.

A verdict is one of DROP, PASS, COMPLETE, SEGMENT, SPLIT. A virtio header is six numbers: flags, gso_type, hdr_len,
gso_size, csum_start, csum_offset.
"""

from __future__ import annotations

from dataclasses import dataclass

DROP, PASS, COMPLETE, SEGMENT, SPLIT = -1, 0, 1, 2, 3
CSUM4, CSUM6, TSO4, TSO6 = 1, 2, 4, 8
NEEDS_CSUM, DATA_VALID = 1, 2
GSO_NONE, GSO_TCPV4, GSO_UDP, GSO_TCPV6, GSO_UDP_L4, GSO_ECN = 0, 1, 3, 4, 5, 0x80
NETIF_TO_VIRTIO = {1: GSO_TCPV4, 2: GSO_TCPV6}
MIN_GSO_SIZE, MAX_SEGMENTS = 8, 2048
TCP, UDP, SCTP, IPIP, SIT, GRE = 6, 17, 132, 4, 41, 47
MAX_FRAME, MAX_GSO_FRAME = 65535 + 22, 65535
FIN, PSH, CWR = 0x01, 0x08, 0x80

Header = tuple[int, int, int, int, int, int]
Bytes = bytes | bytearray
NO_HEADER: Header = (0, 0, 0, 0, 0, 0)


def number(data: Bytes, at: int, size: int = 2) -> int:
    return int.from_bytes(data[at : at + size], "big")


def words(data: Bytes) -> int:
    """The sum of all 16-bit words, the last one padded."""
    padded = data + bytes(len(data) % 2)
    return sum(number(padded, at) for at in range(0, len(padded), 2))


def folded(total: int) -> int:
    """One's complement: only nothing but zeros sums up to zero."""
    return 0 if total == 0 else (total % 0xFFFF or 0xFFFF)


def inverted(total: int, *, udp: bool) -> int:
    value = 0xFFFF - folded(total)
    return 0xFFFF if udp and value == 0 else value


def crc32c(data: bytes) -> int:
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Packet:
    """The outermost IP packet of a frame: positions in the frame."""

    version: int
    l3: int
    l4: int
    end: int
    protocol: int
    announced: int
    """Where the byte is that names the transport protocol."""
    addresses: bytes
    """As the pseudo header has them."""
    tagged: bool
    routed: bool
    """The pseudo header's destination is not the IP header's."""
    sized: bool
    jumbo: bool = False
    """An IPv6 hop-by-hop header holds the length, and nothing else."""

    @property
    def check(self) -> int:
        return 16 if self.protocol == TCP else 6

    def payload(self, frame: bytes) -> int:
        return self.l4 + (4 * (frame[self.l4 + 12] >> 4) if self.protocol == TCP else 8)

    def pseudo(self) -> int:
        return words(self.addresses) + self.protocol + self.end - self.l4

    def exact(self, length: int) -> bool:
        return self.sized and self.end == length

    def takes(self, caps: int, *, gso: bool) -> bool:
        wanted = (CSUM4 if self.version == 4 else CSUM6) | gso * (TSO4 if self.version == 4 else TSO6)
        return caps & wanted == wanted


def network(seen: bytes, length: int) -> Packet | None:
    """`seen` is the frame's beginning, `length` the whole."""
    l3 = 14
    while number(seen, l3 - 2) in (0x8100, 0x88A8) and len(seen) >= l3:
        l3 += 4
        if l3 > 22:
            return None
    if len(seen) < l3:
        return None
    match number(seen, l3 - 2):
        case 0x0800:
            return ipv4(seen, length, l3)
        case 0x86DD:
            return ipv6(seen, length, l3)
    return None


def ipv4(seen: bytes, length: int, l3: int) -> Packet | None:
    ip = seen[l3:]
    if len(ip) < 20 or ip[0] >> 4 != 4:
        return None
    size, total = 4 * (ip[0] & 15), number(ip, 2)
    fragment = number(ip, 6) & 0x2000 or number(ip, 6) & 0x1FFF
    if size < 20 or len(ip) < size or fragment or l3 + total > length:
        return None
    final = source_route(ip[20:size])
    return Packet(
        version=4,
        l3=l3,
        l4=l3 + size,
        end=l3 + total if total else length,
        protocol=ip[9],
        announced=l3 + 9,
        addresses=ip[12:16] + (final or ip[16:20]),
        tagged=l3 > 14,
        routed=final is not None,
        sized=total != 0,
    )


def source_route(options: bytes) -> bytes | None:
    """The last address of a loose or strict source route that is not used up."""
    final = None
    while len(options) >= 3 and options[0] != 0:
        size = 1 if options[0] == 1 else options[1]
        if not 0 < size <= len(options):
            break
        if options[0] in (131, 137) and size >= 7 and options[2] <= size:
            final = options[size - 4 : size]
        options = options[size:]
    return final


def ipv6(seen: bytes, length: int, l3: int) -> Packet | None:
    ip = seen[l3:]
    if len(ip) < 40 or ip[0] >> 4 != 6:
        return None
    total = number(ip, 4)
    jumbo = not total and ip[6] == 0 and ip[41:44] == b"\0\xc2\4" and 0xFFFF < number(ip, 44, 4) <= 1 << 24
    if jumbo and len(ip) >= 48:
        total = number(ip, 44, 4)
    if l3 + 40 + total > length:
        return None
    protocol, at, announced, final = ip[6], 40, 6, None
    while protocol in (0, 43, 60):
        if len(ip) < at + 8:
            return None
        size = 8 * (ip[at + 1] + 1)
        if protocol == 43 and ip[at + 3]:
            count, odd = divmod(ip[at + 1], 2)
            if odd or not count or ip[at + 2] not in (0, 2, 4):
                return None
            start = at + 8 if ip[at + 2] == 4 else at + 8 + 16 * (count - 1)
            final = slice(start, start + 16)
        protocol, announced, at = ip[at], at, at + size
        if at > 256 or at > len(ip):
            return None
    if protocol == 44:
        return None
    return Packet(
        version=6,
        l3=l3,
        l4=l3 + at,
        end=l3 + 40 + total if total else length,
        protocol=protocol,
        announced=l3 + announced,
        addresses=ip[8:24] + (ip[24:40] if final is None else ip[final]),
        tagged=l3 > 14,
        routed=final is not None,
        sized=total != 0,
        jumbo=total > 0xFFFF,
    )


@dataclass(frozen=True, slots=True)
class Tunnel:
    """A frame inside a frame: its own Ethernet header, or `prefix` in place of one, leads it."""

    outer: Packet
    start: int
    """Where it begins in the outer frame."""
    prefix: bytes
    packet: Packet
    """Positions in the inner frame."""

    def inner(self, frame: bytes) -> bytes:
        return self.prefix + frame[self.start : self.outer.end]

    @property
    def headers(self) -> int:
        """Bytes from the outer IP header to the inner one."""
        return self.start - self.outer.l3 + self.packet.l3 - len(self.prefix)


def tunnels(seen: bytes, outer: Packet) -> list[tuple[int, int]]:
    """What may be inside: where it begins, and its EtherType; 0x6558 is Ethernet."""
    at = outer.l4
    if outer.protocol in (IPIP, SIT):
        return [(at, 0x0800 if outer.protocol == IPIP else 0x86DD)]
    if outer.protocol == GRE:
        plain = len(seen) >= at + 4 and seen[at] in (0, 0x20) and seen[at + 1] == 0
        return [(at + (8 if seen[at] else 4), number(seen, at + 2))] if plain else []
    if outer.protocol != UDP or len(seen) < at + 16:
        return []
    size = number(seen, at + 4)
    if size != outer.end - at and (size or outer.sized):
        return []
    found, head = [], seen[at + 8 : at + 16]
    if head[0] & 8 and not head[1] & 0x20:
        found.append((at + 16, 0x6558))
    if head[0] < 0x40:
        found.append((at + 16 + 4 * head[0], number(head, 2)))
    return found


def tunnel(seen: bytes, outer: Packet, l4: int) -> Tunnel | None:
    """The one whose packet has its transport header at `l4`."""
    for start, kind in tunnels(seen, outer):
        if kind not in (0x6558, 0x0800, 0x86DD):
            continue
        prefix = b"" if kind == 0x6558 else bytes(12) + kind.to_bytes(2, "big")
        length = len(prefix) + outer.end - start
        packet = parse(prefix + seen[start : outer.end], length)
        if packet and packet.end == length and packet.l4 == l4 - start + len(prefix):
            return Tunnel(outer, start, prefix, packet)
    return None


def meant(seen: bytes, length: int, header: Header) -> Packet | Tunnel | None:
    """What a GSO header means: the outermost packet, or one in a tunnel."""
    outer = network(seen, length)
    if outer and header[0] & NEEDS_CSUM and header[4] != outer.l4:
        return tunnel(seen, outer, header[4])
    return parse(seen, length)


def parse(seen: bytes, length: int) -> Packet | None:
    """The same, for a whole TCP segment or UDP datagram only."""
    packet = network(seen, length)
    if packet is None or packet.protocol not in (TCP, UDP):
        return None
    limit = min(len(seen), packet.end)
    if packet.protocol == UDP:
        whole = packet.l4 + 8 <= limit and number(seen, packet.l4 + 4) == packet.end - packet.l4
        return packet if whole else None
    if packet.l4 + 20 > limit or seen[packet.l4 + 12] >> 4 < 5 or packet.payload(seen) > limit:
        return None
    return packet


def count(packet: Packet, frame: bytes, gso_type: int, size: int, outside: int = 0) -> int:
    """How many segments; 0 where it cannot be cut. `outside`: bytes of a tunnel's headers."""
    whose = {
        GSO_TCPV4: (TCP, 4),
        GSO_TCPV6: (TCP, 6),
        GSO_UDP: (UDP, packet.version),
        GSO_UDP_L4: (UDP, packet.version),
    }
    if whose.get(gso_type) != (packet.protocol, packet.version):
        return 0
    begin, step = (packet.l4, size - size % 8) if gso_type == GSO_UDP else (packet.payload(frame), size)
    if step < MIN_GSO_SIZE or outside + begin - packet.l3 + min(step, packet.end - begin) > 0xFFFF:
        return 0
    if outside and gso_type == GSO_UDP:
        return 0
    pieces = max(1, -(-(packet.end - begin) // step))
    return pieces if pieces <= MAX_SEGMENTS else 0


def to_virtio(
    frame: bytes,
    have: int,
    *,
    csum_blank: bool,
    data_validated: bool,
    gso_type: int,
    gso_size: int,
    caps: int,
) -> tuple[int, Header, bool, bytes]:
    """(verdict, header, fixed up, the frame with its pseudo-header sum); DROP makes the rest mean nothing."""
    if not csum_blank and not gso_type:
        return PASS, (DATA_VALID * data_validated, 0, 0, 0, 0, 0), False, frame
    packet = parse(frame[:have], len(frame))
    if packet is None:
        return DROP, NO_HEADER, False, frame
    kind = NETIF_TO_VIRTIO.get(gso_type, GSO_NONE)
    pieces = count(packet, frame, kind, gso_size) if gso_type else 1
    if pieces == 0:
        return DROP, NO_HEADER, False, frame
    fixed_up = bool(gso_type) and not csum_blank
    if gso_type:
        frame = frame[: packet.end]
    at = packet.l4 + packet.check
    frame = frame[:at] + folded(packet.pseudo()).to_bytes(2, "big") + frame[at + 2 :]
    if pieces == 1 and (packet.sized or not gso_type):
        header = (NEEDS_CSUM, 0, 0, 0, packet.l4, packet.check)
        if not packet.sized:
            return DROP, NO_HEADER, False, frame
        passes = packet.exact(len(frame)) and packet.takes(caps, gso=False)
        return PASS if passes else COMPLETE, header, fixed_up, frame
    header = (NEEDS_CSUM, kind, packet.payload(frame), gso_size, packet.l4, packet.check)
    passes = packet.sized and packet.takes(caps, gso=True)
    return PASS if passes else SEGMENT, header, fixed_up, frame


Flags = tuple[bool, bool, int, int]
"""csum_blank, data_validated, gso_type, gso_size."""
NOTHING: Flags = (False, False, 0, 0)


def found(packet: Packet | None, header: Header) -> bool:
    """Netfront looks where the header points."""
    if packet is None or not header[0] & NEEDS_CSUM:
        return False
    return not packet.tagged and not packet.routed and header[4:] == (packet.l4, packet.check)


def to_netif(frame: bytes, have: int, header: Header, caps: int) -> tuple[int, Flags, int]:
    """(verdict, flags, bytes that pass)."""
    flags, gso_type, _, _, start, offset = header
    blank, length = bool(flags & NEEDS_CSUM), len(frame)
    if blank and start + offset + 2 > length:
        return DROP, NOTHING, length
    if gso_type & ~GSO_ECN:
        return gso_to_netif(frame, have, header, caps)
    if length > MAX_FRAME:
        return DROP, NOTHING, length
    if not blank:
        return PASS, (False, bool(flags & DATA_VALID), 0, 0), length
    packet = parse(frame[:have], length)
    if packet is None or not packet.exact(length) or not found(packet, header):
        return COMPLETE, NOTHING, length
    return blank_to_netif(packet, caps, length)


def blank_to_netif(packet: Packet, caps: int, length: int) -> tuple[int, Flags, int]:
    passes = packet.takes(caps, gso=False)
    return (PASS, (True, True, 0, 0), length) if passes else (COMPLETE, NOTHING, length)


def gso_to_netif(frame: bytes, have: int, header: Header, caps: int) -> tuple[int, Flags, int]:
    kind, size, length = header[1] & ~GSO_ECN, header[3], len(frame)
    match meant(frame[:have], length, header):
        case None:
            return DROP, NOTHING, length
        case Tunnel() as inside:
            pieces = count(inside.packet, inside.inner(frame), kind, size, inside.headers)
            return SEGMENT if pieces else DROP, NOTHING, length
        case Packet() as packet:
            pieces = count(packet, frame, kind, size)
            if not pieces:
                return DROP, NOTHING, length
            if not found(packet, header) or (pieces == 1 and not packet.sized):
                return SEGMENT, NOTHING, length
            if pieces > 1 and not (packet.protocol == TCP and packet.takes(caps, gso=True)):
                return SEGMENT, NOTHING, length
            if not packet.sized or packet.jumbo:
                return SPLIT, NOTHING, length
            if pieces == 1:
                return blank_to_netif(packet, caps, packet.end)
            return PASS, (True, True, 1 if packet.version == 4 else 2, size), packet.end
    raise AssertionError


def complete(frame: bytes, header: Header) -> bytes:
    start, offset = header[4:]
    field, end = start + offset, len(frame)
    if field + 2 > end:
        return frame
    packet = network(frame, end)
    if packet and start >= packet.l4 and field + 2 <= packet.end:
        end = packet.end
        if packet.protocol == SCTP and start == packet.l4 and offset == 8 and field + 4 <= end:
            blank = frame[start:field] + bytes(4) + frame[field + 4 : end]
            return frame[:field] + crc32c(blank).to_bytes(4, "little") + frame[field + 4 :]
    value = inverted(words(frame[start:end]), udp=offset == 6)
    return frame[:field] + value.to_bytes(2, "big") + frame[field + 2 :]


def segment(frame: bytes, header: Header, identification: int = 0) -> list[bytes]:
    """`identification` is what IPv6 fragments carry: any number does, as long as a datagram has but one."""
    gso_type, size = header[1] & ~GSO_ECN, header[3]
    match meant(frame, len(frame), header):
        case None:
            return []
        case Tunnel() as inside:
            inner = inside.inner(frame)
            pieces = count(inside.packet, inner, gso_type, size, inside.headers)
            cut = pieces_of(inside.packet, inner, pieces, size) if pieces else []
            return [wrapped(inside, frame, piece, i) for i, piece in enumerate(cut)]
        case Packet() as packet:
            pieces = count(packet, frame, gso_type, size)
            if gso_type == GSO_UDP and pieces > 1:
                return fragments(packet, frame, size - size % 8, identification)
            return pieces_of(packet, frame, pieces, size) if pieces else []
    raise AssertionError


def pieces_of(packet: Packet, frame: bytes, pieces: int, size: int) -> list[bytes]:
    payload = frame[packet.payload(frame) : packet.end]
    cuts = [payload[i * size : (i + 1) * size] for i in range(pieces)]
    return [one(packet, frame, piece, i, i == pieces - 1, size) for i, piece in enumerate(cuts)]


def wrapped(inside: Tunnel, frame: bytes, piece: bytes, index: int) -> bytes:
    """The tunnel's headers around one segment."""
    outer = inside.outer
    body = bytearray(frame[outer.l4 : inside.start] + piece[len(inside.prefix) :])
    if outer.protocol == UDP:
        body[4:6] = len(body).to_bytes(2, "big")
        if number(body, 6):
            body[6:8] = bytes(2)
            total = words(outer.addresses) + UDP + len(body) + words(bytes(body))
            body[6:8] = inverted(total, udp=True).to_bytes(2, "big")
    return link_and_ip(outer, frame, len(body), index) + bytes(body)


def split(frame: bytes, header: Header) -> list[tuple[bytes, Flags]]:
    """A frame that is too long for netif in GSO frames as long as netif's are, with their flags."""
    packet, size = parse(frame, len(frame)), header[3]
    assert packet is not None
    together = (MAX_GSO_FRAME - packet.payload(frame) + 8 * packet.jumbo) // size
    step = together * size
    payload = frame[packet.payload(frame) : packet.end]
    starts = range(0, max(1, len(payload)), step)
    made = []
    for index, at in enumerate(starts):
        piece = payload[at : at + step]
        whole = bytearray(one(packet, frame, piece, index, at + step >= len(payload), step, together))
        l4 = packet.l4 - 8 * packet.jumbo
        total = words(packet.addresses) + packet.protocol + len(whole) - l4
        whole[l4 + packet.check : l4 + packet.check + 2] = folded(total).to_bytes(2, "big")
        gso = (1 if packet.version == 4 else 2, size) if len(piece) > size else (0, 0)
        made.append((bytes(whole), (True, True, *gso)))
    return made


def one(
    packet: Packet, frame: bytes, payload: bytes, index: int, last: bool, size: int, together: int = 1
) -> bytes:
    """`together`: of how many segments on the wire it consists."""
    head = bytearray(frame[packet.l4 : packet.payload(frame)])
    head[packet.check : packet.check + 2] = bytes(2)
    length = len(head) + len(payload)
    if packet.protocol == TCP:
        seq = (number(head, 4, 4) + index * size) % 2**32
        head[4:8] = seq.to_bytes(4, "big")
        head[13] &= 0xFF & ~((0 if last else FIN | PSH) | (CWR if index else 0))
    else:
        head[4:6] = length.to_bytes(2, "big")
    total = words(packet.addresses) + packet.protocol + length + words(bytes(head) + payload)
    value = inverted(total, udp=packet.protocol == UDP)
    head[packet.check : packet.check + 2] = value.to_bytes(2, "big")
    return link_and_ip(packet, frame, length, index * together) + bytes(head) + payload


def link_and_ip(
    packet: Packet, frame: bytes, length: int, index: int = 0, fragment: int | None = None
) -> bytes:
    """Everything before the transport header, for `length` bytes behind it."""
    ip = bytearray(frame[packet.l3 : packet.l4])
    if packet.jumbo:
        ip[6] = ip[40]
        del ip[40:48]
    if packet.version == 6:
        ip[4:6] = (len(ip) - 40 + length).to_bytes(2, "big")
        return frame[: packet.l3] + bytes(ip)
    ip[2:4] = (len(ip) + length).to_bytes(2, "big")
    ip[4:6] = ((number(ip, 4) + index) % 2**16).to_bytes(2, "big")
    if fragment is not None:
        ip[6:8] = fragment.to_bytes(2, "big")
    ip[10:12] = bytes(2)
    ip[10:12] = inverted(words(bytes(ip)), udp=False).to_bytes(2, "big")
    return frame[: packet.l3] + bytes(ip)


def fragments(packet: Packet, frame: bytes, size: int, identification: int) -> list[bytes]:
    datagram = bytearray(frame[packet.l4 : packet.end])
    datagram[6:8] = bytes(2)
    datagram[6:8] = inverted(packet.pseudo() + words(bytes(datagram)), udp=True).to_bytes(2, "big")
    cuts = range(0, len(datagram), size)
    return [fragment(packet, frame, bytes(datagram), at, size, identification) for at in cuts]


def fragment(packet: Packet, frame: bytes, datagram: bytes, at: int, size: int, identification: int) -> bytes:
    piece, more = datagram[at : at + size], at + size < len(datagram)
    if packet.version == 4:
        return link_and_ip(packet, frame, len(piece), fragment=at // 8 | more << 13) + piece
    head = bytearray(link_and_ip(packet, frame, 8 + len(piece)))
    head[packet.announced] = 44
    extension = bytes([UDP, 0]) + (at | more).to_bytes(2, "big") + identification.to_bytes(4, "big")
    return bytes(head) + extension + piece


def intact(frame: bytes) -> bool:
    """What a receiver checks: lengths, the IPv4 header's sum, the transport checksum (there must be one)."""
    packet = parse(frame, len(frame))
    if packet is None or not packet.sized:
        return False
    if packet.version == 4 and folded(words(frame[packet.l3 : packet.l4])) != 0xFFFF:
        return False
    given = packet.protocol == TCP or number(frame, packet.l4 + 6) != 0
    return given and folded(packet.pseudo() + words(frame[packet.l4 : packet.end])) == 0xFFFF
