# SPDX-License-Identifier: Apache-2.0
"""Cuts a GSO frame into segments: see segment.pxd."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy, memset

from netback.dataplane.abi cimport VIRTIO_NET_HDR_GSO_ECN, virtio_net_hdr
from netback.dataplane.checksum cimport checksum, half_t, put_sum, sum_bytes, swap16
from netback.dataplane.headers cimport (
    PROTO_FRAGMENT, PROTO_UDP, TCP_CHECK, UDP_CHECK, get16, get32, headers_t, parse, pseudo_sum, put16, put32,
)

cdef enum:
    FRAGMENT_HEAD = 8
    TCP_FIN_PSH = 0x09
    TCP_CWR = 0x80
    IP_MORE_FRAGMENTS = 0x2000


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
