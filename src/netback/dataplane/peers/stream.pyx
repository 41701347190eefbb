# SPDX-License-Identifier: Apache-2.0
"""A stream socket: each frame follows its length, 32 bits, big-endian. QEMU (`-netdev stream`), passt, gvproxy,
socket_vmnet and libkrun speak this; the frames are plain.

Control code gives the peer one connection after another; without one, frames are refused as on a cable without a
carrier. The far end is as untrusted as a guest: a length that no frame has ends the connection.

Receive: one read fetches many frames to the connection's input, whole ones are copied from there, and a part of one
stays for the next call. Readable means an edge, so a call that returns fewer frames than wanted has emptied the socket,
or it rings the bell: a far end that sends byte by byte cannot prolong a call.

Send: one system call for many frames. Of a frame that was taken in part the rest is copied to the output, as its ring
may change; it is sent before anything else, and the descriptor is watched for room until it has gone.

One connection serves one worker. Where its vif has several queues, duplicates send through it, a lock is held while
frames are sent, and they learn by time, not by events, that there is room.
"""
import os

from libc.errno cimport EAGAIN, EINTR, EPIPE, errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memmove, memset
from posix.unistd cimport close

from netback.dataplane.epoll cimport (
    EFD_CLOEXEC, EFD_NONBLOCK, EPOLLIN, EPOLLOUT, EPOLL_CLOEXEC, EPOLL_CTL_DEL, epoll_create1, epoll_ctl, epoll_event,
    epoll_wait, eventfd,
)
from netback.dataplane.lock cimport lock_release, lock_take
from netback.dataplane.peers.handover cimport exchange_pointer, load_pointer, ring_bell, watch_edges
from netback.dataplane.peers.peer cimport (
    BURST_FRAMES, FRAME_BYTES, FRAME_HEADROOM, FRAME_STRIDE, PEER_BUSY, PEER_DOWN, PEER_TAKES, PEER_UP,
    VNET_HDR, Peer, frame_t, peer_t, takes_no_more, vnet_header,
)
from netback.dataplane.sockets cimport MSG_DONTWAIT, MSG_NOSIGNAL, iovec, msghdr

cdef extern from "sys/socket.h" nogil:
    enum:
        SHUT_RDWR
    int shutdown(int socket, int how)
    ssize_t recv(int socket, void *buffer, size_t length, int flags)
    ssize_t send_bytes "send"(int socket, const void *buffer, size_t length, int flags)
    ssize_t sendmsg(int socket, const msghdr *message, int flags)

cdef enum:
    LENGTH = 4                   # bytes before each frame
    INPUT_BYTES = 4 * 65536      # more than the largest frame with its length
    COMPACT_BELOW = 65536        # bytes of room behind the input: with less, its unread part is moved to the front
    OUTPUT_BYTES = LENGTH + FRAME_BYTES
    READS = 8                    # of a call
    VECTORS = 512                # of a system call (IOV_MAX is 1024); a frame has 22 at most, with its length
    FRAME_VECTORS = 32

    EVENTS_AT_ONCE = 4
    EVENT_BELL = 0
    EVENT_SOCKET = 1

cdef enum:                       # reason: why this end closed a connection
    REASON_NONE, REASON_LENGTH

REASONS = {REASON_LENGTH: f"it broke the protocol: a frame longer than {FRAME_BYTES} bytes"}


cdef struct stream_t:            # a connection
    uint64_t number              # counts the connections of a peer
    int socket
    int epoll                    # of the peer; -1: it has none yet
    bint ended                   # nothing more can be read ...
    bint refuses                 # ... or sent
    bint watched                 # for room, too
    uint32_t begin               # unread bytes of the input from here ...
    uint32_t end                 # ... to here
    uint32_t sent                # bytes of the output that have gone ...
    uint32_t kept                # ... of so many
    uint8_t input[INPUT_BYTES]
    uint8_t output[OUTPUT_BYTES]


cdef struct stream_peer:         # `peer` is first: a peer_t * of this kind is a stream_peer *
    peer_t peer
    stream_peer *base            # of a duplicate: the one with the connection
    stream_t *stream
    void *next                   # a connection that control code gave
    bint shared                  # there are duplicates:
    int lock                     # held when anything is sent, and when `stream` is exchanged
    int bell                     # by which control code wakes the worker
    uint64_t given               # how many connections it has given
    uint64_t failed              # the number of the last one that failed here:
    int reason                   # why this end closed it, or
    int error                    # errno of the call that failed


# --- connections

cdef void free_stream(stream_t *stream) noexcept nogil:
    cdef epoll_event event
    if stream == NULL:
        return
    if stream.epoll >= 0:
        epoll_ctl(stream.epoll, EPOLL_CTL_DEL, stream.socket, &event)    # control code may have a duplicate
    close(stream.socket)
    free(stream)


cdef inline void hold(stream_peer *own) noexcept nogil:
    if own.shared:
        lock_take(&own.lock)


cdef inline void let_go(stream_peer *own) noexcept nogil:
    if own.shared:
        lock_release(&own.lock)


cdef void take_next(stream_peer *own) noexcept nogil:
    """Use the connection that control code gave last. By the worker of the peer itself: no other frees one."""
    cdef stream_t *next = <stream_t *>exchange_pointer(&own.next, NULL)
    if next == NULL:
        return
    hold(own)
    free_stream(own.stream)
    own.stream = next
    next.epoll = own.peer.fd
    watch_edges(next.epoll, next.socket, EVENT_SOCKET, EPOLLIN)
    own.peer.unsent = False
    let_go(own)


cdef inline stream_t *current(stream_peer *own) noexcept nogil:
    """The connection, NULL without one. As `take_next`."""
    if load_pointer(&own.next) != NULL:
        take_next(own)
    return own.stream


cdef inline void note_failure(stream_peer *own, const stream_t *stream, int reason, int error) noexcept nogil:
    own.reason = reason
    own.error = error
    own.failed = stream.number


cdef inline void set_condition(peer_t *peer, const stream_t *stream) noexcept nogil:
    peer.condition = PEER_DOWN if stream == NULL or stream.ended or stream.refuses else PEER_UP


# --- receive

cdef inline uint32_t load_length(const uint8_t *at) noexcept nogil:
    return <uint32_t>at[0] << 24 | <uint32_t>at[1] << 16 | <uint32_t>at[2] << 8 | at[3]


cdef inline bint find_frame(stream_peer *own, stream_t *stream, uint32_t *length) noexcept nogil:
    """Whether a whole frame is next in the input. A length that no frame has closes the connection."""
    cdef uint32_t unread = stream.end - stream.begin
    if unread < LENGTH:
        return False
    length[0] = load_length(stream.input + stream.begin)
    if length[0] > FRAME_BYTES and not stream.ended:
        note_failure(own, stream, REASON_LENGTH, 0)
        stream.ended = stream.refuses = True
        shutdown(stream.socket, SHUT_RDWR)
    return unread - LENGTH >= length[0] and length[0] <= FRAME_BYTES


cdef bint fill_input(stream_peer *own, stream_t *stream) noexcept nogil:
    """Read what fits; False: the socket is empty or ended. epoll(7): a short read has emptied it."""
    cdef ssize_t got
    cdef size_t room
    if stream.begin == stream.end:
        stream.begin = stream.end = 0
    elif INPUT_BYTES - stream.end < COMPACT_BELOW:
        memmove(stream.input, stream.input + stream.begin, stream.end - stream.begin)
        stream.end -= stream.begin
        stream.begin = 0
    room = INPUT_BYTES - stream.end
    got = recv(stream.socket, stream.input + stream.end, room, MSG_DONTWAIT)
    while got < 0 and errno == EINTR:
        got = recv(stream.socket, stream.input + stream.end, room, MSG_DONTWAIT)
    if got > 0:
        stream.end += got
    elif got == 0:
        stream.ended = True
    elif errno != EAGAIN:
        stream.ended = True
        note_failure(own, stream, REASON_NONE, errno)
    return got == <ssize_t>room


cdef inline void copy_frame(stream_t *stream, uint32_t length, frame_t *frame) noexcept nogil:
    memset(vnet_header(frame), 0, VNET_HDR)
    memcpy(frame.data, stream.input + stream.begin + LENGTH, length)
    frame.length = length
    stream.begin += LENGTH + length


cdef int receive(peer_t *peer, uint8_t *arena, uint32_t largest, frame_t *frames, int count) noexcept nogil:
    cdef stream_peer *own = <stream_peer *>peer
    cdef stream_t *stream = current(own)
    cdef bint more = stream != NULL
    cdef int kept = 0, reads = 0
    cdef uint32_t length = 0
    while stream != NULL and kept < count:
        if find_frame(own, stream, &length):
            frames[kept].data = arena + <size_t>kept * FRAME_STRIDE + FRAME_HEADROOM
            copy_frame(stream, length, &frames[kept])
            peer.short_frames += length == 0
            kept += length != 0
        elif not more or stream.ended:
            break
        elif reads == READS:
            ring_bell(own.bell)
            break
        else:
            reads += 1
            more = fill_input(own, stream)
    set_condition(peer, stream)
    return kept


# --- send

cdef inline void watch_room(stream_t *stream) noexcept nogil:
    """Wake the worker when there is room, which may be now."""
    stream.watched = True
    watch_edges(stream.epoll, stream.socket, EVENT_SOCKET, EPOLLIN | EPOLLOUT)


cdef inline void refuse(stream_peer *own, stream_t *stream) noexcept nogil:
    """A call failed with errno: nothing more is sent. Frames that the far end sent before are still read."""
    stream.refuses = True
    if errno != EPIPE:
        note_failure(own, stream, REASON_NONE, errno)


cdef bint flush(stream_peer *own, stream_t *stream, peer_t *peer) noexcept nogil:
    """Send the rest of the frame that was taken in part; False: there is no room for all of it, or no far end."""
    cdef ssize_t sent
    while stream.sent < stream.kept and not stream.refuses:
        sent = send_bytes(
            stream.socket, stream.output + stream.sent, stream.kept - stream.sent, MSG_DONTWAIT | MSG_NOSIGNAL)
        if sent > 0:
            stream.sent += sent
        elif takes_no_more(peer):
            watch_room(stream)
            return False
        elif errno != EINTR:
            refuse(own, stream)
    own.peer.unsent = False
    return not stream.refuses


cdef inline uint32_t gather(
        const iovec *vectors, uint32_t count, uint8_t *length, iovec *gathered, uint32_t *size) noexcept nogil:
    """Add a frame of `count` vectors, after its length, to those of a system call; returns how many it adds."""
    cdef uint32_t i, total = 0
    for i in range(count):
        gathered[1 + i] = vectors[i]
        total += <uint32_t>vectors[i].iov_len
    length[0] = total >> 24
    length[1] = total >> 16 & 0xff
    length[2] = total >> 8 & 0xff
    length[3] = total & 0xff
    gathered[0].iov_base = length
    gathered[0].iov_len = LENGTH
    size[0] = LENGTH + total
    return count + 1


cdef void keep_rest(stream_peer *own, stream_t *stream, const iovec *gathered, uint32_t sent) noexcept nogil:
    """Keep a frame, with its length, of which `sent` bytes have gone."""
    cdef uint32_t size = 0
    while size < LENGTH or size < LENGTH + load_length(stream.output):
        memcpy(stream.output + size, gathered[0].iov_base, gathered[0].iov_len)
        size += <uint32_t>gathered[0].iov_len
        gathered += 1
    stream.sent = sent
    stream.kept = size
    own.peer.unsent = True


cdef int send_some(
        stream_peer *own, stream_t *stream, iovec *vectors, const uint32_t *first, int count) noexcept nogil:
    """Send frames by one system call; returns how many are done, -1: the call failed with errno."""
    cdef iovec gathered[VECTORS]
    cdef uint8_t lengths[BURST_FRAMES * LENGTH]
    cdef uint32_t sizes[BURST_FRAMES]
    cdef uint32_t begins[BURST_FRAMES]
    cdef uint32_t used = 0
    cdef int i, frames = 0
    cdef ssize_t sent
    cdef msghdr message
    memset(&message, 0, sizeof(message))
    while frames < count and used + FRAME_VECTORS <= VECTORS:
        begins[frames] = used
        used += gather(
            &vectors[first[frames]], first[frames + 1] - first[frames], lengths + frames * LENGTH, gathered + used,
            &sizes[frames])
        frames += 1
    message.msg_iov = gathered
    message.msg_iovlen = used
    sent = sendmsg(stream.socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL)
    if sent < 0:
        return -1
    for i in range(frames):
        if sent < sizes[i]:
            if sent == 0:
                return i
            keep_rest(own, stream, gathered + begins[i], <uint32_t>sent)
            return i + 1
        sent -= sizes[i]
    return frames


cdef inline int sendable(const iovec *vectors, const uint32_t *first, int count) noexcept nogil:
    """How many frames in a row are no longer than FRAME_BYTES."""
    cdef int frames
    cdef uint32_t i
    cdef size_t size
    for frames in range(count):
        size = 0
        for i in range(first[frames], first[frames + 1]):
            size += vectors[i].iov_len
        if size > FRAME_BYTES or first[frames + 1] - first[frames] >= FRAME_VECTORS:
            return frames
    return count


cdef int send_held(
        stream_peer *own, stream_t *stream, peer_t *peer, iovec *vectors, const uint32_t *first, int count,
        int *refused) noexcept nogil:
    """`send` over a connection, which is held."""
    cdef int done = 0, got, run
    while done < count and not stream.refuses:
        if stream.kept != stream.sent and not flush(own, stream, peer):
            break
        run = sendable(vectors, first + done, count - done)
        if run == 0:
            refused[0] += 1
            done += 1
            continue
        got = send_some(own, stream, vectors, first + done, run)
        if got >= 0:
            done += got
        elif takes_no_more(peer):
            watch_room(stream)
            break
        elif errno != EINTR:
            refuse(own, stream)
    if stream.refuses:
        refused[0] += count - done
        done = count
    elif done == count and stream.kept != stream.sent:
        flush(own, stream, &own.peer)
    return done


cdef int send(peer_t *peer, iovec *vectors, const uint32_t *first, int count, int *refused) noexcept nogil:
    cdef stream_peer *base = (<stream_peer *>peer).base
    cdef stream_t *stream
    cdef int done = count
    peer.blocked = PEER_TAKES
    if peer == &base.peer:
        current(base)
    hold(base)
    stream = base.stream
    if stream == NULL:
        refused[0] += count
    else:
        done = send_held(base, stream, peer, vectors, first, count, refused)
    set_condition(peer, stream)
    let_go(base)
    if done == count:
        peer.blocked = PEER_TAKES
    elif peer != &base.peer:
        peer.blocked = PEER_BUSY
    return done


# --- wake

cdef void wake(peer_t *peer) noexcept nogil:
    cdef stream_peer *own = <stream_peer *>peer
    cdef epoll_event events[EVENTS_AT_ONCE]
    cdef stream_t *stream
    epoll_wait(peer.fd, events, EVENTS_AT_ONCE, 0)
    stream = current(own)
    if stream != NULL and stream.watched:
        hold(own)
        if stream.kept == stream.sent or flush(own, stream, peer):
            stream.watched = False
            watch_edges(stream.epoll, stream.socket, EVENT_SOCKET, EPOLLIN)
        let_go(own)
    set_condition(peer, stream)


# --- Python's side

cdef class StreamPeer(Peer):
    """A queue's frames go through the connection that `join` gave last; without one they are refused."""

    cdef stream_peer own

    def __cinit__(self, *, object owner=None, bint duplicate=False):
        self.peer = &self.own.peer
        self.owner = owner
        self.own.base = &self.own
        self.own.bell = self.peer.fd = -1
        self.peer.frames_per_read = BURST_FRAMES
        self.peer.receive = receive
        self.peer.send = send
        self.peer.wake = wake
        if duplicate:
            return
        self.peer.fd = epoll_create1(EPOLL_CLOEXEC)
        self.own.bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        if self.peer.fd < 0 or self.own.bell < 0:
            raise OSError(errno, "cannot make a peer's descriptors")
        watch_edges(self.peer.fd, self.own.bell, EVENT_BELL, EPOLLIN)

    def __dealloc__(self):
        cdef int fd
        free_stream(<stream_t *>exchange_pointer(&self.own.next, NULL))
        free_stream(self.own.stream)
        for fd in (self.peer.fd, self.own.bell):
            if fd >= 0:
                close(fd)

    def join(self, int socket) -> None:
        """Use this connected, non-blocking socket from now on, by a duplicate of the descriptor. What an earlier one
        has not sent or read is lost. Callable from any thread, but from one at a time. OSError: no descriptor is left.
        """
        cdef stream_t *stream
        cdef int fd = os.dup(socket)
        stream = <stream_t *>malloc(sizeof(stream_t))
        if stream == NULL:
            close(fd)
            raise MemoryError
        memset(stream, 0, <size_t>(<uint8_t *>stream.input - <uint8_t *>stream))
        stream.socket = fd
        stream.epoll = -1
        self.own.given += 1
        stream.number = self.own.given
        free_stream(<stream_t *>exchange_pointer(&self.own.next, stream))
        ring_bell(self.own.bell)

    def leave(self) -> str | None:
        """The last connection has ended; returns why, if this end knows. What was received before is still read. As
        `join`.
        """
        if self.own.failed == 0 or self.own.failed != self.own.given:
            return None
        return REASONS[self.own.reason] if self.own.reason else os.strerror(self.own.error)

    def duplicate(self, int fd) -> Peer:
        """A peer that sends through the connection of this one, and takes no frames; it needs no descriptor."""
        cdef StreamPeer copy = StreamPeer(duplicate=True, owner=self)
        self.own.shared = True
        copy.own.base = self.own.base
        return copy
