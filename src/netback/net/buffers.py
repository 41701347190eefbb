# SPDX-License-Identifier: Apache-2.0
"""Buffers of the sockets behind peers: room for bursts of 64 KiB frames, and the removal of frames that wait in one."""

import socket

BURSTS = 8 << 20
"""Bytes for two bursts of 64 KiB frames, counted as the kernel counts them, with its overhead."""

MAX_DRAIN = 65536
"""Frames that one drain discards at most: a network that never stops sending must not hold up a connect."""

HEAD = 16
"""Bytes read of a frame that is discarded: a packet socket gives no less than the virtio_net_hdr."""

SIZES = ((socket.SO_RCVBUF, 33), (socket.SO_SNDBUF, 32))
"""asm-generic/socket.h: each option and its *FORCE, which passes net.core.[rw]mem_max but needs CAP_NET_ADMIN."""


def make_room(sock: socket.socket, receive: int, send: int) -> None:
    """Give a socket buffers of these sizes in bytes, or as large as this process may have them."""
    for (plain, forced), wanted in zip(SIZES, (receive, send), strict=True):
        try:
            sock.setsockopt(socket.SOL_SOCKET, forced, wanted)
        except PermissionError:
            sock.setsockopt(socket.SOL_SOCKET, plain, wanted)


def drain(sock: socket.socket) -> int:
    """Discard the messages that wait in a non-blocking socket, MAX_DRAIN at most: how many."""
    count = 0
    for _ in range(MAX_DRAIN):
        try:
            if not sock.recv(HEAD):
                break
            count += 1
        except BlockingIOError:
            break
        except (
            OSError
        ):  # ENETDOWN or EINVAL (GSO without an expression), each reported once; other frames follow
            continue
    return count
