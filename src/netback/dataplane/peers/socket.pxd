# SPDX-License-Identifier: Apache-2.0
"""A socket with one frame per message, and what a peer that has one as its part needs of it: socket.pyx."""
from libc.stdint cimport uint8_t, uint32_t
from netback.dataplane.peers.peer cimport Peer, peer_t

cdef enum:
    MAX_ADDRESS = 128            # sockaddr_storage


cdef struct socket_peer:         # `peer` is first: a peer_t * of a socket is a socket_peer *
    peer_t peer
    bint auxdata                 # AF_PACKET: VLAN tags come separately
    bint ends                    # SEQPACKET: an empty message is the end
    bint reports                 # UDP, L2TP: an error is that of an earlier frame, which the network lost
    int send_fd
    uint8_t address[MAX_ADDRESS]     # where it sends to; empty: where the socket is connected to
    unsigned int address_bytes
    uint32_t large_reads         # this many more reads return one frame each, of up to LARGE_BYTES


cdef class SocketPeer(Peer):
    cdef socket_peer own
