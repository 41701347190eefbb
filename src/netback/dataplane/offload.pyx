# SPDX-License-Identifier: Apache-2.0
"""Checksum and segmentation work between a netif ring and a virtio_net_hdr peer: see offload.pxd.

The rules (what may be passed on, what is completed here, what is cut):
- A guest may leave anything in the checksum field of a csum_blank frame, so the pseudo-header sum is always written.
- Toward a guest csum_blank is kept only where netfront finds the same header again: the outermost TCP or UDP of an
  untagged frame whose IP length is the frame's. All else is completed here.
- The packet ends where its IP header says; what follows in the frame is padding, never payload, never summed.
- Fragments and packets whose lengths contradict each other have no checksum to complete.

Limits on a cut. MIN_GSO_SIZE is Linux's TCP_MIN_GSO_SIZE: its smallest MSS (48) less the TCP options (40). MAX_SEGMENTS
bounds what one frame of a few slots can cost: 64 KiB at that MSS with timestamps is 1820 segments.

The Python functions at the end are for tests and tools: they copy, and let a sanitizer see every byte read too far.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from netback.dataplane.abi cimport (
    GSO_TYPE_NONE, GSO_TYPE_TCPV4, GSO_TYPE_TCPV6, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_ECN,
    VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6, VIRTIO_NET_HDR_GSO_UDP,
    VIRTIO_NET_HDR_GSO_UDP_L4, virtio_net_hdr,
)

cdef extern from *:
    """
    #if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
    #error "sums are kept in the order of x86-64 and arm64"
    #endif
    typedef uint64_t __attribute__((aligned(1), may_alias)) word_t;   /* a load from any address */
    typedef uint16_t __attribute__((aligned(1), may_alias)) half_t;
    """
    ctypedef uint64_t word_t
    ctypedef uint16_t half_t

cdef enum:
    ETH_TYPE = 12
    ETH_HEAD = 14
    MAX_TAGS = 2
    MAX_IP_HEAD = 256           # where Linux stops looking for the transport header behind IPv6 extensions

    TYPE_IPV4 = 0x0800
    TYPE_IPV6 = 0x86DD
    TYPE_8021Q = 0x8100
    TYPE_8021AD = 0x88A8

    OPTION_END = 0
    OPTION_NOP = 1
    OPTION_LSRR = 131
    OPTION_SSRR = 137

    PROTO_HOP_BY_HOP = 0
    PROTO_TCP = 6
    PROTO_UDP = 17
    PROTO_ROUTING = 43
    PROTO_FRAGMENT = 44
    PROTO_DESTINATION = 60
    PROTO_SCTP = 132

    TCP_HEAD = 20
    TCP_CHECK = 16
    UDP_HEAD = 8
    UDP_CHECK = 6
    SCTP_CHECK = 8
    FRAGMENT_HEAD = 8

    TCP_FIN_PSH = 0x09
    TCP_CWR = 0x80
    IP_MORE_FRAGMENTS = 0x2000

    KIND_TCP = 0
    KIND_UDP = 1
    KIND_FRAGMENTS = 2


cdef struct headers_t:          # what the outermost headers of a frame say, all of it checked against its bounds
    uint32_t l3
    uint32_t l4
    uint32_t payload            # first byte behind the transport header
    uint32_t end                # first byte behind the packet
    uint32_t final              # where the destination stands that the pseudo header means
    uint32_t next_header        # IPv6: the byte that announces the transport header
    uint16_t check              # checksum field, from l4
    uint8_t version
    uint8_t protocol
    uint8_t tags
    uint8_t sized               # the IP header carries a length (Windows' LSO and Linux' big TCP may leave 0)


# --- bytes and sums

cdef inline uint16_t get16(const uint8_t *at) noexcept nogil:
    return <uint16_t>(at[0] << 8 | at[1])


cdef inline uint32_t get32(const uint8_t *at) noexcept nogil:
    return <uint32_t>get16(at) << 16 | get16(at + 2)


cdef inline void put16(uint8_t *at, uint32_t value) noexcept nogil:
    at[0] = <uint8_t>(value >> 8)
    at[1] = <uint8_t>value


cdef inline void put32(uint8_t *at, uint32_t value) noexcept nogil:
    put16(at, value >> 16)
    put16(at + 2, value)


cdef inline uint32_t swap16(uint32_t value) noexcept nogil:
    """A 16-bit number as the memory order of a sum has it."""
    return (value & 0xFF) << 8 | (value >> 8 & 0xFF)


cdef inline uint64_t sum_tail(const uint8_t *at, uint32_t length) noexcept nogil:
    """The last 0 to 7 bytes; an odd one has a zero behind it."""
    cdef uint64_t total = 0
    if length & 4:
        total = (<const half_t *>at)[0] + <uint64_t>(<const half_t *>at)[1]
        at += 4
    if length & 2:
        total += (<const half_t *>at)[0]
        at += 2
    if length & 1:
        total += at[0]
    return total


cdef inline uint64_t sum_bytes(const uint8_t *at, uint32_t length) noexcept nogil:
    """Internet sum in memory order, unfolded. Halves of 64-bit words are added apart, so no carry is lost and the
    compiler may do several at a time."""
    cdef const word_t *words = <const word_t *>at
    cdef uint64_t low = 0
    cdef uint64_t high = 0
    cdef uint32_t i
    for i in range(length // 8):
        low += words[i] & 0xFFFFFFFFu
        high += words[i] >> 32
    return low + high + sum_tail(at + (length & ~7u), length & 7)


cdef inline uint16_t fold(uint64_t total) noexcept nogil:
    total = (total & 0xFFFFFFFFu) + (total >> 32)
    total = (total & 0xFFFFFFFFu) + (total >> 32)
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return <uint16_t>total


cdef inline void put_sum(uint8_t *at, uint16_t value) noexcept nogil:
    (<half_t *>at)[0] = value


cdef inline uint16_t checksum(uint64_t total, bint udp) noexcept nogil:
    """UDP says 0xFFFF for a sum of zero, since 0 means that there is none (RFC 768, RFC 8200 8.1)."""
    cdef uint16_t value = ~fold(total)
    return 0xFFFF if udp and value == 0 else value


# --- headers

cdef inline int parse_link(const uint8_t *frame, uint32_t have, headers_t *h) noexcept nogil:
    """The type behind Ethernet and its tags, or -1."""
    cdef uint16_t kind
    h.l3 = ETH_HEAD
    h.tags = 0
    if have < ETH_HEAD:
        return -1
    kind = get16(frame + ETH_TYPE)
    while kind == TYPE_8021Q or kind == TYPE_8021AD:
        h.tags += 1
        h.l3 += 4
        if h.tags > MAX_TAGS or have < h.l3:
            return -1
        kind = get16(frame + h.l3 - 2)
    return kind


cdef inline int set_end(headers_t *h, uint32_t base, uint32_t said, uint32_t length) noexcept nogil:
    """The packet ends `said` bytes behind `base`, or with the frame where nothing is said."""
    h.sized = said != 0
    h.end = base + said if said else length
    return -1 if h.end > length else 0


cdef void source_route(const uint8_t *frame, headers_t *h) noexcept nogil:
    """While a source route is not used up, its last address is the packet's destination (RFC 791 3.1)."""
    cdef uint32_t at = h.l3 + 20
    cdef uint32_t size
    while at + 3 <= h.l4 and frame[at] != OPTION_END:
        size = 1 if frame[at] == OPTION_NOP else frame[at + 1]
        if size == 0 or at + size > h.l4:
            return
        if (frame[at] == OPTION_LSRR or frame[at] == OPTION_SSRR) and size >= 7 and frame[at + 2] <= size:
            h.final = at + size - 4
        at += size


cdef inline int parse_ipv4(const uint8_t *frame, uint32_t have, uint32_t length, headers_t *h) noexcept nogil:
    cdef const uint8_t *ip = frame + h.l3
    if have < h.l3 + 20 or ip[0] >> 4 != 4 or ip[0] & 15 < 5:
        return -1
    h.version = 4
    h.protocol = ip[9]
    h.final = h.l3 + 16
    h.next_header = h.l3 + 9
    h.l4 = h.l3 + 4 * (ip[0] & 15)
    if have < h.l4 or get16(ip + 6) & 0x3FFF:       # a fragment: more to come, or not the first
        return -1
    if h.l4 > h.l3 + 20:
        source_route(frame, h)
    return set_end(h, h.l3, get16(ip + 2), length)


cdef int final_destination(const uint8_t *routing, uint32_t at, headers_t *h) noexcept nogil:
    """While segments are left, the pseudo header means the route's last address (RFC 8200 8.1). It is the last one of
    the list in types 0 and 2, the first one of a segment routing header (4); others keep it in ways of their own."""
    cdef uint32_t words = routing[1]
    if routing[3] == 0:
        return 0
    if words < 2 or words & 1 or not (routing[2] == 0 or routing[2] == 2 or routing[2] == 4):
        return -1
    h.final = at + 8 if routing[2] == 4 else at + 8 * words - 8
    return 0


cdef int skip_extensions(const uint8_t *frame, uint32_t have, headers_t *h) noexcept nogil:
    """Past hop-by-hop, routing and destination options. Each is at least 8 bytes, so MAX_IP_HEAD bounds the loop."""
    while (h.protocol == PROTO_HOP_BY_HOP or h.protocol == PROTO_ROUTING or h.protocol == PROTO_DESTINATION):
        if have < h.l4 + 8:
            return -1
        if h.protocol == PROTO_ROUTING and final_destination(frame + h.l4, h.l4, h):
            return -1
        h.protocol = frame[h.l4]
        h.next_header = h.l4
        h.l4 += 8 + 8 * <uint32_t>frame[h.l4 + 1]
        if h.l4 > h.l3 + MAX_IP_HEAD or h.l4 > have:
            return -1
    return -1 if h.protocol == PROTO_FRAGMENT else 0


cdef inline int parse_ipv6(const uint8_t *frame, uint32_t have, uint32_t length, headers_t *h) noexcept nogil:
    cdef const uint8_t *ip = frame + h.l3
    if have < h.l3 + 40 or ip[0] >> 4 != 6:
        return -1
    h.version = 6
    h.protocol = ip[6]
    h.next_header = h.l3 + 6
    h.final = h.l3 + 24
    h.l4 = h.l3 + 40
    if set_end(h, h.l4, get16(ip + 4), length):
        return -1
    return skip_extensions(frame, have, h)


cdef inline int parse_network(const uint8_t *frame, uint32_t have, uint32_t length, headers_t *h) noexcept nogil:
    """0, or -1 where there is no whole IP packet with a transport header that we can name."""
    cdef int kind = parse_link(frame, have, h)
    if kind == TYPE_IPV4:
        return parse_ipv4(frame, have, length, h)
    if kind == TYPE_IPV6:
        return parse_ipv6(frame, have, length, h)
    return -1


cdef inline int parse_tcp(const uint8_t *frame, uint32_t limit, headers_t *h) noexcept nogil:
    if limit < h.l4 + TCP_HEAD or frame[h.l4 + 12] >> 4 < 5:
        return -1
    h.check = TCP_CHECK
    h.payload = h.l4 + 4 * (frame[h.l4 + 12] >> 4)
    return -1 if h.payload > limit else 0


cdef inline int parse_udp(const uint8_t *frame, uint32_t limit, headers_t *h) noexcept nogil:
    """A datagram shorter than its packet would be summed with a length that its receiver does not use."""
    if limit < h.l4 + UDP_HEAD or get16(frame + h.l4 + 4) != h.end - h.l4:
        return -1
    h.check = UDP_CHECK
    h.payload = h.l4 + UDP_HEAD
    return 0


cdef inline int parse(const uint8_t *frame, uint32_t have, uint32_t length, headers_t *h) noexcept nogil:
    """0 where the outermost headers are those of a whole TCP segment or UDP datagram, else -1."""
    cdef uint32_t limit
    have = min(have, length)
    if parse_network(frame, have, length, h):
        return -1
    limit = min(have, h.end)
    if h.protocol == PROTO_TCP:
        return parse_tcp(frame, limit, h)
    if h.protocol == PROTO_UDP:
        return parse_udp(frame, limit, h)
    return -1


cdef inline uint64_t pseudo_sum(const uint8_t *frame, const headers_t *h) noexcept nogil:
    """The pseudo header without its length."""
    cdef uint64_t total = swap16(h.protocol)
    if h.version == 4:
        return total + sum_bytes(frame + h.l3 + 12, 4) + sum_bytes(frame + h.final, 4)
    return total + sum_bytes(frame + h.l3 + 8, 16) + sum_bytes(frame + h.final, 16)


cdef inline bint plain_route(const headers_t *h) noexcept nogil:
    """The pseudo header's destination is the IP header's: what a guest that computes it anew would take."""
    return h.final == h.l3 + (16 if h.version == 4 else 24)


cdef inline bint exact(const headers_t *h, uint32_t length) noexcept nogil:
    """The packet says its length, and the frame has no padding: others may take the frame's length for it."""
    return h.sized and h.end == length


# --- verdicts

cdef inline uint32_t csum_cap(const headers_t *h) noexcept nogil:
    return CAN_CSUM4 if h.version == 4 else CAN_CSUM6


cdef inline uint32_t tso_caps(const headers_t *h) noexcept nogil:
    return CAN_TSO4 | CAN_CSUM4 if h.version == 4 else CAN_TSO6 | CAN_CSUM6


cdef inline int kind_of(const headers_t *h, uint8_t gso_type) noexcept nogil:
    """How a frame of a virtio GSO type is cut; -1 where the type is not the frame's."""
    if gso_type == VIRTIO_NET_HDR_GSO_TCPV4:
        return KIND_TCP if h.protocol == PROTO_TCP and h.version == 4 else -1
    if gso_type == VIRTIO_NET_HDR_GSO_TCPV6:
        return KIND_TCP if h.protocol == PROTO_TCP and h.version == 6 else -1
    if h.protocol != PROTO_UDP:
        return -1
    if gso_type == VIRTIO_NET_HDR_GSO_UDP_L4:
        return KIND_UDP
    return KIND_FRAGMENTS if gso_type == VIRTIO_NET_HDR_GSO_UDP else -1


cdef inline uint32_t segments_of(const headers_t *h, uint8_t gso_type, uint16_t size) noexcept nogil:
    """How many segments a cut makes, 0 where it cannot be made. Fragments are cut from the UDP header on, in eights."""
    cdef int kind = kind_of(h, gso_type)
    cdef uint32_t step = size & ~7u if kind == KIND_FRAGMENTS else size
    cdef uint32_t begin = h.l4 if kind == KIND_FRAGMENTS else h.payload
    cdef uint32_t count
    if kind < 0 or step < MIN_GSO_SIZE:
        return 0
    if begin - h.l3 + min(step, h.end - begin) > 0xFFFF:        # no IP header can say such a length
        return 0
    count = (h.end - begin + step - 1) // step
    if count == 0:
        return 1                        # headers alone
    return count if count <= MAX_SEGMENTS else 0


cdef inline int blank_to_virtio(const headers_t *h, uint32_t length, uint32_t caps) noexcept nogil:
    """Padding is completed here, since a peer would sum it."""
    if not h.sized:
        return OFFLOAD_DROP
    return OFFLOAD_PASS if caps & csum_cap(h) and h.end == length else OFFLOAD_COMPLETE


cdef inline int gso_to_virtio(const headers_t *h, uint32_t length, uint32_t caps, uint16_t size,
                              virtio_net_hdr *hdr) noexcept nogil:
    hdr.gso_type = VIRTIO_NET_HDR_GSO_TCPV4 if h.version == 4 else VIRTIO_NET_HDR_GSO_TCPV6
    hdr.gso_size = size
    hdr.hdr_len = <uint16_t>h.payload
    return OFFLOAD_PASS if exact(h, length) and caps & tso_caps(h) == tso_caps(h) else OFFLOAD_SEGMENT


cdef inline uint8_t virtio_gso(uint8_t gso_type) noexcept nogil:
    """netif's GSO type as virtio has it; an unknown one as one that cuts nothing."""
    if gso_type == GSO_TYPE_TCPV4:
        return VIRTIO_NET_HDR_GSO_TCPV4
    return VIRTIO_NET_HDR_GSO_TCPV6 if gso_type == GSO_TYPE_TCPV6 else VIRTIO_NET_HDR_GSO_NONE


cdef int netif_work(uint8_t *frame, uint32_t have, uint32_t length, const netif_offload *src, uint32_t caps,
                    virtio_net_hdr *hdr, uint8_t *fixed_up) noexcept nogil:
    cdef headers_t h
    cdef uint32_t count = 1
    if parse(frame, have, length, &h):
        return OFFLOAD_DROP
    if src.gso_type != GSO_TYPE_NONE:
        count = segments_of(&h, virtio_gso(src.gso_type), src.gso_size)
        if count == 0:
            return OFFLOAD_DROP
        fixed_up[0] = not src.csum_blank
    put_sum(frame + h.l4 + h.check, fold(pseudo_sum(frame, &h) + swap16(h.end - h.l4)))
    hdr.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM
    hdr.csum_start = <uint16_t>h.l4
    hdr.csum_offset = h.check
    if count > 1 or (src.gso_type != GSO_TYPE_NONE and not h.sized):
        return gso_to_virtio(&h, length, caps, src.gso_size, hdr)
    return blank_to_virtio(&h, length, caps)


cdef inline bint netfront_finds(const headers_t *h, const virtio_net_hdr *hdr) noexcept nogil:
    """The peer's header asks for the very checksum that a frontend finds by itself."""
    return (hdr.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM and h.tags == 0 and plain_route(h)
            and hdr.csum_start == h.l4 and hdr.csum_offset == h.check)


cdef int gso_to_netif(const headers_t *h, uint32_t length, const virtio_net_hdr *hdr, uint32_t caps,
                      netif_offload *out) noexcept nogil:
    """Windows is slow with RX GSO that does not carry both checksum flags."""
    if (h.protocol != PROTO_TCP or not exact(h, length) or not netfront_finds(h, hdr)
            or caps & tso_caps(h) != tso_caps(h)):
        return OFFLOAD_SEGMENT
    out.csum_blank = out.data_validated = 1
    out.gso_type = GSO_TYPE_TCPV4 if h.version == 4 else GSO_TYPE_TCPV6
    out.gso_size = hdr.gso_size
    return OFFLOAD_PASS


cdef int virtio_work(const uint8_t *frame, uint32_t have, uint32_t length, const virtio_net_hdr *hdr, uint32_t caps,
                     netif_offload *out) noexcept nogil:
    cdef headers_t h
    cdef bint parsed
    cdef bint blank = hdr.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM
    cdef uint8_t gso_type = hdr.gso_type & ~VIRTIO_NET_HDR_GSO_ECN
    cdef uint32_t count
    if blank and <uint32_t>hdr.csum_start + hdr.csum_offset + 2 > length:
        out.data_validated = 0
        return OFFLOAD_DROP
    if not blank and gso_type == VIRTIO_NET_HDR_GSO_NONE:
        return OFFLOAD_PASS
    out.data_validated = 0
    parsed = parse(frame, have, length, &h) == 0
    if gso_type != VIRTIO_NET_HDR_GSO_NONE:
        count = segments_of(&h, gso_type, hdr.gso_size) if parsed else 0
        if count == 0:
            return OFFLOAD_DROP
        if count > 1 or not exact(&h, length) or not netfront_finds(&h, hdr):
            return gso_to_netif(&h, length, hdr, caps, out)
    if not (parsed and exact(&h, length) and netfront_finds(&h, hdr) and caps & csum_cap(&h)):
        return OFFLOAD_COMPLETE
    out.csum_blank = out.data_validated = 1
    return OFFLOAD_PASS


# --- completion

cdef uint32_t[256] crc_table


cdef void fill_crc_table() noexcept nogil:
    """CRC-32C, reflected: SCTP's checksum (RFC 9260, appendix A)."""
    cdef uint32_t i, _bit, value
    for i in range(256):
        value = i
        for _bit in range(8):
            value = value >> 1 ^ (0x82F63B78u if value & 1 else 0u)
        crc_table[i] = value


cdef void complete_sctp(uint8_t *sctp, uint32_t length) noexcept nogil:
    cdef uint32_t value = 0xFFFFFFFFu
    cdef uint32_t i
    memset(sctp + SCTP_CHECK, 0, 4)
    for i in range(length):
        value = value >> 8 ^ crc_table[(value ^ sctp[i]) & 0xFF]
    value = ~value
    memcpy(sctp + SCTP_CHECK, &value, 4)        # least significant byte first, unlike all else in a packet


cdef void complete_checksum(uint8_t *frame, uint32_t length, const virtio_net_hdr *hdr) noexcept nogil:
    """As the header names it, tunnels included; only the packet's end is taken from the packet. A tap or link may
    leave SCTP's checksum to its reader with the same flag."""
    cdef headers_t h
    cdef uint32_t start = hdr.csum_start
    cdef uint32_t field = start + hdr.csum_offset
    cdef uint32_t end = length
    if field + 2 > length:
        return
    if parse_network(frame, length, length, &h) == 0 and start >= h.l4 and field + 2 <= h.end:
        end = h.end
        if h.protocol == PROTO_SCTP and start == h.l4 and hdr.csum_offset == SCTP_CHECK and field + 4 <= end:
            complete_sctp(frame + start, end - start)
            return
    put_sum(frame + field, checksum(sum_bytes(frame + start, end - start), hdr.csum_offset == UDP_CHECK))


# --- cuts

cdef int segments_begin(segments_t *it, const uint8_t *frame, uint32_t length,
                        const virtio_net_hdr *hdr) noexcept nogil:
    cdef headers_t h
    cdef uint8_t gso_type = hdr.gso_type & ~VIRTIO_NET_HDR_GSO_ECN
    memset(it, 0, sizeof(segments_t))
    if parse(frame, length, length, &h):
        return -1
    it.count = segments_of(&h, gso_type, hdr.gso_size)
    if it.count == 0:
        return -1
    it.kind = <uint8_t>kind_of(&h, gso_type)
    if it.count == 1 and it.kind == KIND_FRAGMENTS:
        it.kind = KIND_UDP              # fits as it is, no fragment needed
    place(it, &h, frame, hdr.gso_size)
    return 0


cdef void place(segments_t *it, const headers_t *h, const uint8_t *frame, uint16_t size) noexcept nogil:
    it.version = h.version
    it.l3 = <uint16_t>h.l3
    it.l4 = <uint16_t>h.l4
    it.next_header = <uint16_t>h.next_header
    it.end = h.end
    it.pseudo = pseudo_sum(frame, h)
    it.id = get16(frame + h.l3 + 4) if h.version == 4 else 0
    it.seq = get32(frame + h.l4 + 4)
    it.head = <uint16_t>h.payload
    it.size = size
    if it.kind == KIND_FRAGMENTS:
        place_fragments(it, frame)
    it.at = it.head
    it.inserted = FRAGMENT_HEAD if it.kind == KIND_FRAGMENTS and it.version == 6 else 0
    it.largest = it.head + it.inserted + min(<uint32_t>it.size, it.end - it.at)


cdef void place_fragments(segments_t *it, const uint8_t *frame) noexcept nogil:
    """The whole datagram's checksum goes into the first fragment. The identification of IPv6 fragments is drawn from
    the datagram's bytes: other datagrams get other ones, and fragments of equal datagrams may be mixed."""
    cdef uint64_t total = sum_bytes(frame + it.l4, it.end - it.l4)
    cdef uint16_t blank = (<const half_t *>(frame + it.l4 + UDP_CHECK))[0]
    it.seq = <uint32_t>((it.pseudo + total) * 0x9E3779B97F4A7C15u >> 32)
    total += it.pseudo + swap16(it.end - it.l4) + (0xFFFF - blank)
    it.datagram_sum = checksum(total, True)
    it.head = it.l4
    it.size &= ~7u


cdef inline void write_ipv4(const segments_t *it, uint8_t *ip, uint32_t length) noexcept nogil:
    """Identifications count up, as Linux has it; fragments share one, and lose DF."""
    cdef uint32_t offset = it.at - it.l4
    put16(ip + 2, length)
    if it.kind == KIND_FRAGMENTS:
        put16(ip + 6, offset // 8 | (IP_MORE_FRAGMENTS if it.index + 1 < it.count else 0))
    else:
        put16(ip + 4, it.id + it.index)
    put_sum(ip + 10, 0)
    put_sum(ip + 10, checksum(sum_bytes(ip, it.l4 - it.l3), False))


cdef inline void write_fragment_header(const segments_t *it, uint8_t *out) noexcept nogil:
    out[it.next_header] = PROTO_FRAGMENT
    out[it.l4] = PROTO_UDP
    out[it.l4 + 1] = 0
    put16(out + it.l4 + 2, (it.at - it.l4) | (1 if it.index + 1 < it.count else 0))
    put32(out + it.l4 + 4, it.seq)


cdef inline void write_tcp(const segments_t *it, uint8_t *tcp) noexcept nogil:
    """FIN and PSH belong to the last segment, CWR to the first (RFC 3168 6.1.2: once per reduction)."""
    put32(tcp + 4, it.seq + it.index * it.size)
    if it.index + 1 < it.count:
        tcp[13] &= ~TCP_FIN_PSH
    if it.index:
        tcp[13] &= ~TCP_CWR


cdef inline void write_transport(const segments_t *it, uint8_t *l4, uint32_t length) noexcept nogil:
    cdef uint32_t check = TCP_CHECK if it.kind == KIND_TCP else UDP_CHECK
    if it.kind == KIND_TCP:
        write_tcp(it, l4)
    else:
        put16(l4 + 4, length)
    put_sum(l4 + check, 0)
    put_sum(l4 + check, checksum(it.pseudo + swap16(length) + sum_bytes(l4, length), it.kind == KIND_UDP))


cdef uint32_t segments_next(segments_t *it, const uint8_t *frame, uint8_t *out, uint32_t capacity) noexcept nogil:
    cdef uint32_t body = it.head + it.inserted
    cdef uint32_t take = min(<uint32_t>it.size, it.end - it.at)
    if it.index >= it.count or capacity < it.largest:
        return 0
    memcpy(out, frame, it.head)
    memcpy(out + body, frame + it.at, take)
    if it.version == 4:
        write_ipv4(it, out + it.l3, body + take - it.l3)
    else:
        put16(out + it.l3 + 4, body + take - it.l3 - 40)
    if it.inserted:
        write_fragment_header(it, out)
    if it.kind != KIND_FRAGMENTS:
        write_transport(it, out + it.l4, body + take - it.l4)
    elif it.index == 0:
        put_sum(out + body + UDP_CHECK, it.datagram_sum)
    it.at += take
    it.index += 1
    return body + take


fill_crc_table()


# --- for tests and tools

DROP = OFFLOAD_DROP
PASS = OFFLOAD_PASS
COMPLETE = OFFLOAD_COMPLETE
SEGMENT = OFFLOAD_SEGMENT


cdef virtio_net_hdr header_of(header) except *:
    cdef virtio_net_hdr hdr
    hdr.flags, hdr.gso_type, hdr.hdr_len, hdr.gso_size, hdr.csum_start, hdr.csum_offset = header
    return hdr


cdef uint8_t *room(size_t size) except NULL:
    """On the heap and not a byte larger, for a sanitizer to watch its end."""
    cdef uint8_t *bytes_ = <uint8_t *>malloc(size)
    if bytes_ is NULL:
        raise MemoryError
    return bytes_


cdef uint8_t *copy_of(const uint8_t *data, size_t size) except NULL:
    return <uint8_t *>memcpy(room(size), data, size)


def to_virtio(bytearray frame, *, bint csum_blank=False, bint data_validated=False, uint8_t gso_type=0,
              uint16_t gso_size=0, uint32_t caps=0, have=None):
    """netif_to_virtio: (verdict, virtio header's six numbers, fixed up). May write the frame's checksum field."""
    cdef uint32_t length = len(frame)
    cdef uint32_t present = length if have is None else min(<uint32_t>have, length)
    cdef uint8_t *copy = copy_of(frame, present)
    cdef netif_offload src
    cdef virtio_net_hdr hdr
    cdef uint8_t fixed_up
    src.csum_blank, src.data_validated, src.gso_type, src.gso_size = csum_blank, data_validated, gso_type, gso_size
    with nogil:
        verdict = netif_to_virtio(copy, present, length, &src, caps, &hdr, &fixed_up)
    frame[:present] = copy[:present]
    free(copy)
    header = (hdr.flags, hdr.gso_type, hdr.hdr_len, hdr.gso_size, hdr.csum_start, hdr.csum_offset)
    return verdict, header, bool(fixed_up)


def to_netif(bytes frame, header, *, uint32_t caps=0, have=None):
    """virtio_to_netif: (verdict, (csum_blank, data_validated, gso_type, gso_size))."""
    cdef uint32_t length = len(frame)
    cdef uint32_t present = length if have is None else min(<uint32_t>have, length)
    cdef virtio_net_hdr hdr = header_of(header)
    cdef uint8_t *copy = copy_of(frame, present)
    cdef netif_offload out
    with nogil:
        verdict = virtio_to_netif(copy, present, length, &hdr, caps, &out)
    free(copy)
    return verdict, (bool(out.csum_blank), bool(out.data_validated), out.gso_type, out.gso_size)


def complete(bytearray frame, header):
    """complete_checksum, in place."""
    cdef uint32_t length = len(frame)
    cdef virtio_net_hdr hdr = header_of(header)
    cdef uint8_t *copy = copy_of(frame, length)
    with nogil:
        complete_checksum(copy, length, &hdr)
    frame[:] = copy[:length]
    free(copy)


def segment(bytes frame, header):
    """segments_begin and segments_next: the frames that a GSO frame is cut into; none if it cannot be cut."""
    cdef uint32_t length = len(frame)
    cdef uint32_t size
    cdef virtio_net_hdr hdr = header_of(header)
    cdef segments_t it
    cdef uint8_t *copy = copy_of(frame, length)
    cdef uint8_t *out = NULL
    segments = []
    if segments_begin(&it, copy, length, &hdr) == 0:
        out = room(it.largest)
        while size := segments_next(&it, copy, out, it.largest):
            segments.append(out[:size])
    free(out)
    free(copy)
    return segments
