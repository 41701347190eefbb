# SPDX-License-Identifier: Apache-2.0
"""The links of a demo's stack, made by rtnetlink in the namespace that we are in.

Knows links and addresses; needs no program installed.
"""

import ctypes
import fcntl
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from netback.errors import PlatformError
from netback.net.tap import DEVICE, rtnetlink

SIOCETHTOOL = 0x8946
ETHTOOL_STSO = 0x1F
"""linux/ethtool.h: set TCP segmentation offload."""

TUN = Path(DEVICE)
PREFIX = 24


@dataclass(frozen=True, slots=True)
class Plug:
    """Where a stack meets Xen: its own link, and the one behind which the ring's end sits (a tap has but one)."""

    link: str
    wire: str
    address: str
    mac: str


def make_veth(plug: Plug) -> None:
    """A pair: the stack's link, and the one whose frames a packet socket moves."""
    _make(plug, kind="veth", peer={"ifname": plug.wire})


def make_tap(plug: Plug) -> None:
    """A tap, which the ring's end adopts by its name."""
    if not TUN.exists():
        raise PlatformError(f"there is no {TUN}")
    _make(plug, kind="tuntap", mode="tap")


def _make(plug: Plug, **what: object) -> None:
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        rtnetlink(lambda ip: _add(ip, plug, what))
    except (NetlinkError, OSError) as error:
        raise PlatformError(f"cannot make a {what['kind']} link ({error})") from error


def _add(ip: Any, plug: Plug, what: dict[str, object]) -> None:
    ip.link("add", ifname=plug.link, **what)
    for name in ("lo", plug.link, plug.wire):
        ip.link("set", index=ip.link_lookup(ifname=name)[0], state="up")
    index = ip.link_lookup(ifname=plug.link)[0]
    ip.link("set", index=index, address=plug.mac)
    ip.addr("add", index=index, address=plug.address, prefixlen=PREFIX)


def set_segmentation(link: str, on: bool) -> None:
    """Have the stack give this link frames that are still to be cut, or none."""
    value = ctypes.create_string_buffer(struct.pack("=II", ETHTOOL_STSO, on))
    request = struct.pack("16sP16x", link.encode(), ctypes.addressof(value))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, SIOCETHTOOL, request)
