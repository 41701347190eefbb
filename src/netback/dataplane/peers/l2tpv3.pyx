# SPDX-License-Identifier: Apache-2.0
"""L2TPv3's header around each frame of a socket's peer: data messages over UDP or IP (RFC 3931, 4.1).

The header is the session's number and cookie, over UDP after a word with the version, and before a word for a sequence
number if both ends have agreed on one. A message of another session, or with another cookie, is no frame of this one.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from netback.dataplane.peers.peer cimport (
    BURST_FRAMES, PEER_TAKES, VNET_HDR, Peer, frame_t, peer_t, vnet_header,
)
from netback.dataplane.sockets cimport iovec

cdef extern from *:
    """static inline uint32_t count_on(uint32_t *p) { return __atomic_add_fetch(p, 1, __ATOMIC_RELAXED); }"""
    uint32_t count_on(uint32_t *p) nogil

cdef enum:
    VECTORS = 512                # of one call of the inner peer's send
    WORD = 4                     # the version of UDP, the session, the counter
    MAX_KEY = WORD + 8           # a session's number and cookie
    MAX_HEADER = WORD + MAX_KEY + WORD
    UDP_TYPE = 0x80              # first byte: set in control messages
    UDP_VERSION = 0x0f           # of the second byte
    VERSION = 3
    IPV4_HEADER = 20             # which a raw IPv4 socket returns (raw(7)); with options the message is no frame


cdef struct l2tpv3_peer:         # `peer` is first: a peer_t * of this kind is an l2tpv3_peer *
    peer_t peer
    peer_t *inner                # of the socket
    bint udp
    uint32_t skipped             # bytes before the header: of IPv4's
    uint8_t takes[MAX_KEY]       # the session and the cookie of a message that is taken
    uint32_t takes_bytes
    uint8_t sends[MAX_HEADER]    # all before the counter
    uint32_t sends_bytes
    bint counter
    uint32_t *count              # of all queues of a network; NULL: the counter is always 0
    uint32_t own_count
    uint64_t strangers           # messages of other sessions, or with other cookies


cdef void from_inner(l2tpv3_peer *own) noexcept nogil:
    """Take over what the inner peer found."""
    own.peer.blocked = own.inner.blocked
    own.peer.condition = own.inner.condition
    own.peer.short_frames += own.inner.short_frames
    own.peer.truncated += own.inner.truncated
    own.inner.short_frames = own.inner.truncated = 0


cdef inline uint32_t header_of(l2tpv3_peer *own, const uint8_t *message, uint32_t length) noexcept nogil:
    """Bytes before the frame; 0 if the message is not this session's."""
    cdef uint32_t at = own.skipped
    cdef uint32_t size = at + WORD * own.udp + own.takes_bytes + WORD * own.counter
    if length < size or (own.skipped and message[0] & 0xf != IPV4_HEADER // 4):
        return 0
    if own.udp:
        if message[at] & UDP_TYPE or message[at + 1] & UDP_VERSION != VERSION:
            return 0
        at += WORD
    return size if memcmp(message + at, own.takes, own.takes_bytes) == 0 else 0


cdef int receive(peer_t *peer, uint8_t *arena, uint32_t largest, frame_t *frames, int count) noexcept nogil:
    cdef l2tpv3_peer *own = <l2tpv3_peer *>peer
    cdef uint32_t size
    cdef int i, got, kept = 0
    own.inner.condition = peer.condition
    got = own.inner.receive(own.inner, arena, largest, frames, count)
    from_inner(own)
    for i in range(got):
        size = header_of(own, frames[i].data, frames[i].length)
        if size == 0:
            own.strangers += 1
        elif size == frames[i].length:
            peer.short_frames += 1
        else:
            frames[kept].data = frames[i].data + size
            frames[kept].length = frames[i].length - size
            memset(vnet_header(&frames[kept]), 0, VNET_HDR)
            kept += 1
    return kept if got >= 0 else got


cdef inline void write_header(l2tpv3_peer *own, uint8_t *header) noexcept nogil:
    cdef uint32_t count = count_on(own.count) if own.count != NULL else 0
    memcpy(header, own.sends, own.sends_bytes)
    header += own.sends_bytes
    header[0] = count >> 24
    header[1] = (count >> 16) & 0xff
    header[2] = (count >> 8) & 0xff
    header[3] = count & 0xff


cdef int send(peer_t *peer, iovec *vectors, const uint32_t *first, int count, int *refused) noexcept nogil:
    """A frame that the socket did not take gets another header when it is sent again: the counter skips."""
    cdef l2tpv3_peer *own = <l2tpv3_peer *>peer
    cdef iovec headed[VECTORS]
    cdef uint32_t starts[BURST_FRAMES + 1]
    cdef uint8_t headers[BURST_FRAMES * MAX_HEADER]
    cdef uint32_t used, pieces
    cdef int done = 0, n, sent
    own.inner.condition = peer.condition
    peer.blocked = PEER_TAKES
    while done < count:
        used = 0
        n = 0
        while done + n < count and n < BURST_FRAMES:
            pieces = first[done + n + 1] - first[done + n]
            if used + 1 + pieces > VECTORS:
                break
            write_header(own, headers + n * MAX_HEADER)
            headed[used].iov_base = headers + n * MAX_HEADER
            headed[used].iov_len = own.sends_bytes + WORD * own.counter
            memcpy(&headed[used + 1], &vectors[first[done + n]], pieces * sizeof(iovec))
            starts[n] = used
            used += 1 + pieces
            n += 1
            starts[n] = used
        sent = own.inner.send(own.inner, headed, starts, n, refused)
        from_inner(own)
        done += sent
        if sent < n:
            break
    return done


cdef void check(peer_t *peer) noexcept nogil:
    cdef l2tpv3_peer *own = <l2tpv3_peer *>peer
    own.inner.condition = peer.condition
    own.inner.check(own.inner)
    from_inner(own)


cdef class L2tpv3Peer(Peer):
    """A session over the socket of `inner`, a SocketPeer of plain frames.

    `udp`: a word with the version comes first. `ipv4_header`: the socket returns it, as raw sockets do. `takes`,
    `sends`: session and cookie, as they are in a message, of those received and sent. `counter`: a word follows, which
    counts frames, or stays 0 if it is `pinned`. ValueError: neither 4, 8 nor 12 bytes.
    """

    cdef l2tpv3_peer own
    cdef Peer inner

    def __cinit__(
            self, Peer inner, *, bytes takes, bytes sends, bint udp=False, bint ipv4_header=False, bint counter=False,
            bint pinned=False):
        if len(takes) not in (4, 8, 12) or len(sends) not in (4, 8, 12):
            raise ValueError("a session and its cookie have 4, 8 or 12 bytes")
        self.peer = &self.own.peer
        self.inner = self.owner = inner
        self.own.inner = inner.peer
        self.own.udp = udp
        self.own.skipped = IPV4_HEADER if ipv4_header else 0
        memcpy(self.own.takes, <const char *>takes, len(takes))
        self.own.takes_bytes = len(takes)
        sends = (b"\0\3\0\0" if udp else b"") + sends
        memcpy(self.own.sends, <const char *>sends, len(sends))
        self.own.sends_bytes = len(sends)
        self.own.counter = counter
        self.own.count = &self.own.own_count if counter and not pinned else NULL
        self.peer.fd = inner.peer.fd
        self.peer.frames_per_read = BURST_FRAMES
        self.peer.receive = receive
        self.peer.send = send
        self.peer.check = check

    @property
    def strangers(self) -> int:
        """Messages that were no frames of the session: another one's, with another cookie, or of no such format."""
        return self.own.strangers

    def duplicate(self, int fd) -> Peer:
        """A peer of the same session on a duplicate of the socket's descriptor, which the caller closes."""
        cdef L2tpv3Peer other = L2tpv3Peer(
            self.inner.duplicate(fd), takes=(<char *>self.own.takes)[:self.own.takes_bytes],
            sends=(<char *>self.own.sends)[WORD * self.own.udp:self.own.sends_bytes], udp=self.own.udp,
            ipv4_header=self.own.skipped != 0, counter=self.own.counter, pinned=self.own.count == NULL)
        other.own.count = self.own.count
        other.owner = self
        return other
