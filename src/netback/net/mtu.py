# SPDX-License-Identifier: Apache-2.0
"""A link's MTU, which whoever owns the link may change at any time."""

import fcntl
import socket
import struct

ETH_DATA_LEN = 1500
"""linux/if_ether.h: what everybody takes for granted."""
SIOCGIFMTU = 0x8921
IFREQ = struct.Struct("16si20x")


def link_mtu(link: str) -> int | None:
    """What the kernel says; None where the link is gone."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        try:
            answer = fcntl.ioctl(sock, SIOCGIFMTU, IFREQ.pack(link.encode(), 0))
        except OSError:
            return None
    mtu: int = IFREQ.unpack(answer)[1]
    return mtu
