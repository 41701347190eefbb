# SPDX-License-Identifier: Apache-2.0
"""Verdicts: how a frame must be changed between a netif ring and a virtio_net_hdr peer, in both directions.

Each function is pure: no allocation, no system call, no exception. It sees headers and flags only. Hostile bytes yield
a verdict and nothing else. `frame` must be private memory (never a page that a guest can still write, XSA-155).
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t

from netback.dataplane.abi cimport (
    GSO_TYPE_NONE, VIRTIO_NET_HDR_F_DATA_VALID, VIRTIO_NET_HDR_F_NEEDS_CSUM, virtio_net_hdr,
)
from netback.dataplane.extras cimport clear_meta, frame_meta

cdef enum:                      # verdicts
    OFFLOAD_DROP = -1           # cannot be made valid: count it, answer as for any dropped frame
    OFFLOAD_PASS = 0            # unchanged, with the header or flags that were filled in
    OFFLOAD_COMPLETE = 1        # call complete_checksum, then pass without any flags
    OFFLOAD_SEGMENT = 2         # segment with segments_begin and segments_next; pass each segment without flags
    OFFLOAD_SPLIT = 3           # toward netif: longer than its frames: split into GSO frames (segments_begin's `whole`)

cdef enum:
    MAX_FRAME = 0xFFFF + 22     # toward netif, bytes: the longest IP packet, Ethernet and two tags

cdef enum:                      # caps: offloads that the receiver accepts
    CAN_CSUM4 = 1
    CAN_CSUM6 = 2
    CAN_TSO4 = 4
    CAN_TSO6 = 8


# The two slow halves: for frames that request an offload.
cdef int netif_work(uint8_t *frame, uint32_t have, uint32_t *length, const frame_meta *src, uint32_t caps,
                    virtio_net_hdr *hdr, uint8_t *fixed_up) noexcept nogil
cdef int virtio_work(const uint8_t *frame, uint32_t have, uint32_t *length, const virtio_net_hdr *hdr,
                     uint32_t caps, frame_meta *out) noexcept nogil


# In both: `have` bytes of the frame's beginning are at `frame`, *length is the whole frame's. A GSO frame that passes
# is shortened to its packet: padding is for short frames, and a receiver would segment it as payload.

# netif -> virtio (backend TX, frontend RX). May write the pseudo-header sum into the checksum field. Always sets *hdr
# and *fixed_up.
cdef inline int netif_to_virtio(uint8_t *frame, uint32_t have, uint32_t *length, const frame_meta *src,
                                uint32_t caps, virtio_net_hdr *hdr, uint8_t *fixed_up) noexcept nogil:
    hdr.flags = VIRTIO_NET_HDR_F_DATA_VALID if src.data_validated else 0
    hdr.gso_type = 0
    hdr.hdr_len = hdr.gso_size = hdr.csum_start = hdr.csum_offset = 0
    fixed_up[0] = 0
    if not src.csum_blank and src.gso_type == GSO_TYPE_NONE:
        return OFFLOAD_PASS
    return netif_work(frame, have, length, src, caps, hdr, fixed_up)


# virtio -> netif (backend RX, frontend TX). Always sets *out.
cdef inline int virtio_to_netif(const uint8_t *frame, uint32_t have, uint32_t *length, const virtio_net_hdr *hdr,
                                uint32_t caps, frame_meta *out) noexcept nogil:
    clear_meta(out)
    out.data_validated = (hdr.flags & VIRTIO_NET_HDR_F_DATA_VALID) != 0
    if not hdr.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM and not hdr.gso_type and length[0] <= MAX_FRAME:
        return OFFLOAD_PASS
    return virtio_work(frame, have, length, hdr, caps, out)
