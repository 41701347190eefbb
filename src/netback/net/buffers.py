# SPDX-License-Identifier: Apache-2.0
"""What every socket behind a peer needs: room for bursts of 64 KiB frames, and an end to what waits in it."""

import socket

BURSTS = 8 << 20
"""Bytes for two bursts of 64 KiB frames, counted as the kernel does, with its own overhead."""

DRAIN_MOST = 65536
"""Frames that a drain throws away at most: a network that never stops must not hold up a connect."""

HEAD = 16
"""Bytes read of a frame that is thrown away: a packet socket refuses to give less than the virtio_net_hdr."""

SIZES = ((socket.SO_RCVBUF, 33), (socket.SO_SNDBUF, 32))
"""asm-generic/socket.h: each option and its *FORCE, which passes net.core.[rw]mem_max but needs CAP_NET_ADMIN."""


def make_room(sock: socket.socket, receive: int, send: int) -> None:
    """As much buffer as wanted, or as we may have."""
    for (plain, forced), wanted in zip(SIZES, (receive, send), strict=True):
        try:
            sock.setsockopt(socket.SOL_SOCKET, forced, wanted)
        except PermissionError:
            sock.setsockopt(socket.SOL_SOCKET, plain, wanted)


def drain(sock: socket.socket) -> int:
    """Throw away what waits in a non-blocking socket: how many messages."""
    count = 0
    for _ in range(DRAIN_MOST):
        try:
            if not sock.recv(HEAD):
                break
            count += 1
        except BlockingIOError:
            break
        except (
            OSError
        ):  # the link went down, or a frame has no virtio_net_hdr: said once each, then come the others
            continue
    return count
