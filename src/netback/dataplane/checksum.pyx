# SPDX-License-Identifier: Apache-2.0
"""Completes the checksum that a virtio_net_hdr requests: see checksum.pxd."""
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy, memset

from netback.dataplane.abi cimport virtio_net_hdr
from netback.dataplane.headers cimport PROTO_SCTP, SCTP_CHECK, UDP_CHECK, headers_t, parse_network

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
    memcpy(sctp + SCTP_CHECK, &value, 4)        # least significant byte first, unlike everything else in a packet


cdef void complete_checksum(uint8_t *frame, uint32_t length, const virtio_net_hdr *hdr) noexcept nogil:
    """Complete the checksum that the header names, tunnels included; only the packet's end is read from the packet. A
    tap or link may leave SCTP's checksum to its reader with the same flag."""
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


fill_crc_table()
