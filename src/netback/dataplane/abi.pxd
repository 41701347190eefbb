# SPDX-License-Identifier: Apache-2.0
"""C layouts and constants of Xen's public headers for the native part; abi/ has the same for Python."""
from libc.stdint cimport int16_t, uint8_t, uint16_t, uint32_t, uint64_t


cdef enum:
    PAGE_SIZE = 4096
    MAC_BYTES = 6
    RING_SLOTS = 256            # both netif rings: the largest power of two that fits (4096 - 64) / 12 and / 8
    RING_HEADER = 64
    TX_SLOT = 12
    RX_SLOT = 8
    CTRL_SLOT = 16
    CTRL_SLOTS = 128
    MIN_FRAME = 14              # a 64 KiB frame with a tag at an offset: 17 data slots, and one for the GSO extra
    FULL_FRAME_SLOTS = 18       # of 64 KiB with a tag at an offset: 17 data slots, and one for the GSO extra

    # io/netif.h: the two directions have their first two bits swapped
    NETTXF_csum_blank = 1
    NETTXF_data_validated = 2
    NETTXF_more_data = 4
    NETTXF_extra_info = 8
    NETRXF_data_validated = 1
    NETRXF_csum_blank = 2
    NETRXF_more_data = 4
    NETRXF_extra_info = 8

    NETIF_RSP_NULL = 1
    NETIF_RSP_OKAY = 0
    NETIF_RSP_ERROR = -1
    NETIF_RSP_DROPPED = -2

    EXTRA_TYPE_NONE = 0
    EXTRA_TYPE_GSO = 1
    EXTRA_TYPE_MCAST_ADD = 2
    EXTRA_TYPE_MCAST_DEL = 3
    EXTRA_TYPE_HASH = 4
    EXTRA_TYPE_XDP = 5
    EXTRA_TYPES_END = 6
    EXTRA_FLAG_MORE = 1
    GSO_TYPE_NONE = 0
    GSO_TYPE_TCPV4 = 1
    GSO_TYPE_TCPV6 = 2

    HASH_ALGORITHM_TOEPLITZ = 1
    HASH_TYPE_IPV4 = 0          # as a hash extra has them; as flags, each is 1 << its number
    HASH_TYPE_IPV4_TCP = 1
    HASH_TYPE_IPV6 = 2
    HASH_TYPE_IPV6_TCP = 3

    GNTCOPY_source_gref = 1
    GNTCOPY_dest_gref = 2
    GNTST_okay = 0
    GNTST_general_error = -1
    GNTST_bad_gntref = -3
    GNTST_permission_denied = -8
    GNTST_bad_page = -9
    GNTST_bad_copy_arg = -10
    GTF_type_mask = 3
    GTF_permit_access = 1
    GTF_readonly = 4

    # linux/virtio_net.h
    VIRTIO_NET_HDR_F_NEEDS_CSUM = 1
    VIRTIO_NET_HDR_F_DATA_VALID = 2
    VIRTIO_NET_HDR_GSO_NONE = 0
    VIRTIO_NET_HDR_GSO_TCPV4 = 1
    VIRTIO_NET_HDR_GSO_UDP = 3
    VIRTIO_NET_HDR_GSO_TCPV6 = 4
    VIRTIO_NET_HDR_GSO_UDP_L4 = 5
    VIRTIO_NET_HDR_GSO_ECN = 0x80


cdef packed struct tx_request:
    uint32_t gref
    uint16_t offset
    uint16_t flags
    uint16_t id
    uint16_t size


# the whole slot: 4 bytes and zeros, so that the guest never sees stale bytes of the backend's memory (XSA-216)
cdef packed struct tx_response:
    uint16_t id
    int16_t status
    uint32_t zero[2]


cdef packed struct rx_request:
    uint16_t id
    uint16_t pad
    uint32_t gref


cdef packed struct rx_response:
    uint16_t id
    uint16_t offset
    uint16_t flags
    int16_t status


cdef packed struct extra_gso:
    uint16_t size
    uint8_t type
    uint8_t pad
    uint16_t features


cdef struct extra_hash:
    uint8_t type
    uint8_t algorithm
    uint8_t value[4]


cdef union extra_body:
    extra_gso gso
    uint8_t mcast[MAC_BYTES]
    extra_hash hash
    uint16_t xdp_headroom


cdef packed struct extra_info:       # 8 bytes, in a slot of either ring
    uint8_t type
    uint8_t flags
    extra_body u


cdef packed struct grant_entry:
    uint16_t flags
    uint16_t domid
    uint32_t frame


cdef struct foreign_buffer:
    uint32_t ref
    uint16_t offset
    uint16_t domid


cdef union copy_end:
    void *virt
    foreign_buffer foreign


cdef struct copy_segment:            # struct gntdev_grant_copy_segment of xen/gntdev.h: 24 bytes
    copy_end source
    copy_end dest
    uint16_t len
    uint16_t flags
    int16_t status


cdef packed struct virtio_net_hdr:   # without num_buffers: 10 bytes, host order
    uint8_t flags
    uint8_t gso_type
    uint16_t hdr_len
    uint16_t gso_size
    uint16_t csum_start
    uint16_t csum_offset
