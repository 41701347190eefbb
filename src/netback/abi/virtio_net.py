# SPDX-License-Identifier: Apache-2.0
"""linux/virtio_net.h: the header before each frame on a tap or packet socket with vnet_hdr."""

import struct

HEADER = struct.Struct("=BBHHHH")
"""flags, gso type, header length, gso size, csum start, csum offset; host order, without num_buffers."""

F_NEEDS_CSUM = 1
F_DATA_VALID = 2

GSO_NONE = 0
GSO_TCPV4 = 1
GSO_UDP = 3
GSO_TCPV6 = 4
GSO_UDP_L4 = 5
GSO_ECN = 0x80
