# SPDX-License-Identifier: Apache-2.0
"""Segments a GSO frame: see segment.pxd."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy, memset

from netback.dataplane.abi cimport GSO_TYPE_TCPV4, GSO_TYPE_TCPV6, VIRTIO_NET_HDR_GSO_ECN, virtio_net_hdr
from netback.dataplane.checksum cimport checksum, fold, half_t, put_sum, sum_bytes, swap16
from netback.dataplane.extras cimport clear_meta, frame_meta, set_gso
from netback.dataplane.headers cimport (
    IPV6_HEAD, PACKET_IN_TUNNEL, PROTO_FRAGMENT, PROTO_UDP, TCP_CHECK, UDP_CHECK, get16, get32, headers_t, parse_gso,
    pseudo_sum, put16, put32,
)

cdef enum:
    FRAGMENT_HEAD = 8
    TCP_FIN_PSH = 0x09
    TCP_CWR = 0x80
    IP_MORE_FRAGMENTS = 0x2000


cdef int segments_begin(segments_t *it, const uint8_t *frame, uint32_t length, const virtio_net_hdr *hdr,
                        bint whole) noexcept nogil:
    cdef headers_t outer, h
    cdef uint8_t gso_type = hdr.gso_type & ~VIRTIO_NET_HDR_GSO_ECN
    cdef int place = parse_gso(frame, length, length, hdr, &outer, &h)
    if place < 0:
        return -1
    memset(it, 0, sizeof(segments_t))
    it.count = segments_of(&outer, &h, gso_type, hdr.gso_size)
    if it.count == 0:
        return -1
    it.kind = <uint8_t>kind_of(&h, gso_type)
    if it.count == 1 and it.kind == KIND_FRAGMENTS:
        it.kind = KIND_UDP              # fits as it is, no fragment needed
    set_positions(it, &h, frame)
    if place == PACKET_IN_TUNNEL:
        set_tunnel(it, &outer, frame)
    set_sizes(it, hdr.gso_size, whole)
    if it.kind == KIND_FRAGMENTS:
        set_fragments(it, frame)
    it.largest = it.head + it.inserted + min(<uint32_t>it.size, it.end - it.at)
    return 0


cdef bint segments_go_on(segments_t *it, uint32_t index) noexcept nogil:
    if index >= it.count:
        return False
    it.at += index * it.size
    it.index = index
    return True


cdef void set_positions(segments_t *it, const headers_t *h, const uint8_t *frame) noexcept nogil:
    it.version = h.version
    it.left_out = h.jumbo
    it.l3 = <uint16_t>h.l3
    it.l4 = <uint16_t>h.l4 - h.jumbo
    it.head = <uint16_t>h.payload - h.jumbo
    it.next_header = <uint16_t>h.next_header
    it.at = h.payload
    it.end = h.end
    it.pseudo = pseudo_sum(frame, h)
    it.id = get16(frame + h.l3 + 4) if h.version == 4 else 0
    it.seq = get32(frame + h.l4 + 4)


cdef void set_tunnel(segments_t *it, const headers_t *outer, const uint8_t *frame) noexcept nogil:
    """Whether the tunnel has a UDP checksum: zero means none; Linux leaves another value if it wants one."""
    it.outer_version = outer.version
    it.outer_l3 = <uint16_t>outer.l3
    it.outer_l4 = <uint16_t>outer.l4
    it.outer_id = get16(frame + outer.l3 + 4) if outer.version == 4 else 0
    it.outer_udp = outer.protocol == PROTO_UDP
    it.outer_summed = it.outer_udp and get16(frame + outer.l4 + UDP_CHECK) != 0
    it.outer_pseudo = pseudo_sum(frame, outer)


cdef void set_sizes(segments_t *it, uint16_t gso_size, bint whole) noexcept nogil:
    """The number of segments that fit into one netif frame, which the receiver then segments itself."""
    cdef uint32_t together = (MAX_NETIF_FRAME - it.head) // gso_size if whole else 0
    it.size = gso_size
    it.id_step = 1
    if together:
        it.gso_size = gso_size
        it.size = <uint16_t>(together * gso_size)
        it.id_step = <uint16_t>together
        it.count = max(<uint32_t>1, (it.end - it.at + it.size - 1) // it.size)


cdef void set_fragments(segments_t *it, const uint8_t *frame) noexcept nogil:
    """Fragments begin with the UDP header; the whole datagram's checksum goes into the first. The identification of
    IPv6 fragments is drawn from the datagram's bytes: equal datagrams share it, so their fragments may be mixed."""
    cdef uint64_t total = sum_bytes(frame + it.l4, it.end - it.l4)
    cdef uint16_t blank = (<const half_t *>(frame + it.l4 + UDP_CHECK))[0]
    it.seq = <uint32_t>((it.pseudo + total) * 0x9E3779B97F4A7C15u >> 32)
    total += it.pseudo + swap16(it.end - it.l4) + (0xFFFF - blank)
    it.datagram_sum = checksum(total, True)
    it.head = it.l4
    it.at = it.l4
    it.size &= ~7u
    it.id_step = 0
    it.inserted = FRAGMENT_HEAD if it.version == 6 else 0


# --- one segment

cdef inline void copy_headers(const segments_t *it, const uint8_t *frame, uint8_t *out) noexcept nogil:
    cdef uint32_t first = it.l3 + IPV6_HEAD if it.left_out else it.head
    memcpy(out, frame, first)
    if it.left_out:
        memcpy(out + first, frame + first + it.left_out, it.head - first)
        out[it.l3 + 6] = frame[first]       # the omitted header announced the next one


cdef inline void write_ip(uint8_t *ip, uint32_t head, uint8_t version, uint32_t length, uint32_t id) noexcept nogil:
    """Set the length of a packet whose IP header has `head` bytes; for IPv4 also identification and checksum."""
    if version == 6:
        put16(ip + 4, length - IPV6_HEAD)
        return
    put16(ip + 2, length)
    put16(ip + 4, id)
    put_sum(ip + 10, 0)
    put_sum(ip + 10, checksum(sum_bytes(ip, head), False))


cdef inline void write_fragment(const segments_t *it, uint8_t *out) noexcept nogil:
    """Set a fragment's position: in the IPv4 header, which loses DF, or in a fragment header."""
    cdef uint32_t offset = it.at - it.l4
    cdef bint more = it.index + 1 < it.count
    if it.version == 4:
        put16(out + it.l3 + 6, offset // 8 | (IP_MORE_FRAGMENTS if more else 0))
        return
    out[it.next_header] = PROTO_FRAGMENT
    out[it.l4] = PROTO_UDP
    out[it.l4 + 1] = 0
    put16(out + it.l4 + 2, offset | more)
    put32(out + it.l4 + 4, it.seq)


cdef inline void write_tcp(const segments_t *it, uint8_t *tcp) noexcept nogil:
    """FIN and PSH belong to the last segment, CWR to the first (RFC 3168 6.1.2: once per reduction)."""
    put32(tcp + 4, it.seq + it.index * it.size)
    if it.index + 1 < it.count:
        tcp[13] &= ~TCP_FIN_PSH
    if it.index:
        tcp[13] &= ~TCP_CWR


cdef inline void write_transport(const segments_t *it, uint8_t *l4, uint32_t length) noexcept nogil:
    """Put the pseudo header's sum into a frame whose checksum stays blank."""
    cdef uint32_t check = TCP_CHECK if it.kind == KIND_TCP else UDP_CHECK
    cdef uint64_t pseudo = it.pseudo + swap16(length)
    if it.kind == KIND_TCP:
        write_tcp(it, l4)
    else:
        put16(l4 + 4, length)
    if it.gso_size:
        put_sum(l4 + check, fold(pseudo))
        return
    put_sum(l4 + check, 0)
    put_sum(l4 + check, checksum(pseudo + sum_bytes(l4, length), it.kind == KIND_UDP))


cdef inline void write_tunnel(const segments_t *it, uint8_t *out, uint32_t length) noexcept nogil:
    """Write the headers outside a tunnel's packet. A packet with a correct checksum sums up to the complement of its
    pseudo header's sum, so the outer checksum need not read the payload again. All positions are even."""
    cdef uint8_t *udp = out + it.outer_l4
    cdef uint32_t size = length - it.outer_l4
    cdef uint64_t total
    write_ip(out + it.outer_l3, it.outer_l4 - it.outer_l3, it.outer_version, length - it.outer_l3,
             it.outer_id + it.index)
    if it.outer_udp:
        put16(udp + 4, size)
    if it.outer_summed:
        put_sum(udp + UDP_CHECK, 0)
        total = it.outer_pseudo + swap16(size) + sum_bytes(udp, it.l4 - it.outer_l4)
        total += 0xFFFF - fold(it.pseudo + swap16(length - it.l4))
        put_sum(udp + UDP_CHECK, checksum(total, True))


cdef inline void describe(const segments_t *it, uint32_t payload, frame_meta *meta) noexcept nogil:
    clear_meta(meta)
    meta.csum_blank = meta.data_validated = it.gso_size != 0
    if it.gso_size and payload > it.gso_size:
        set_gso(meta, GSO_TYPE_TCPV4 if it.version == 4 else GSO_TYPE_TCPV6, it.gso_size)


cdef uint32_t segments_next(segments_t *it, const uint8_t *frame, uint8_t *out, uint32_t capacity,
                            frame_meta *meta) noexcept nogil:
    cdef uint32_t body = it.head + it.inserted
    cdef uint32_t take = min(<uint32_t>it.size, it.end - it.at)
    cdef uint32_t length = body + take
    if it.index >= it.count or capacity < it.largest:
        return 0
    copy_headers(it, frame, out)
    memcpy(out + body, frame + it.at, take)
    if it.kind == KIND_FRAGMENTS:
        write_fragment(it, out)
    write_ip(out + it.l3, it.l4 - it.l3, it.version, length - it.l3, it.id + it.index * it.id_step)
    if it.kind != KIND_FRAGMENTS:
        write_transport(it, out + it.l4, length - it.l4)
    elif it.index == 0:
        put_sum(out + body + UDP_CHECK, it.datagram_sum)
    if it.outer_version:
        write_tunnel(it, out, length)
    describe(it, take, meta)
    it.at += take
    it.index += 1
    return length
