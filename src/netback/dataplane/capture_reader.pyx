# SPDX-License-Identifier: Apache-2.0
"""The reader's side of a capture (capture.pxd): takes records out of the rings, in order of time, as they are or as
pcapng's Enhanced Packet Blocks (draft-ietf-opsawg-pcapng, section 4.3). No Python runs for a frame.

The memory comes from a backend that the reader trusts, but may end in the middle of anything: every size is checked.
"""
import os

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, strlen

from netback.dataplane.abi cimport EXTRA_TYPE_HASH, PAGE_SIZE, RING_SLOTS
from netback.dataplane.capture cimport (
    CAPTURE_MAGIC, CAPTURE_VERSION, FRAME_RX, FRAME_TX, MAX_DEVICES, capture_devices, capture_header_t, capture_map,
    capture_ring, capture_unmap, frame_record_t, mapping_t,
)
from netback.dataplane.ring cimport full_fence, load_acquire, store_relaxed

cdef extern from *:
    """
    #include <stdint.h>
    static inline uint64_t index_load(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
    static inline void index_store(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
    """
    uint64_t index_load(const uint64_t *p) noexcept nogil
    void index_store(uint64_t *p, uint64_t value) noexcept nogil

cdef enum:
    OUT_BYTES = 1 << 20
    MAX_RINGS = 4096
    MAX_FRAME = 65535 + 18
    MAX_COMMENT = 512            # more than the longest text
    MAX_BLOCK = MAX_FRAME + MAX_COMMENT + 128

    ENHANCED_PACKET = 6
    OPT_COMMENT = 1
    EPB_FLAGS = 2
    EPB_DROPCOUNT = 4
    EPB_QUEUE = 6
    INBOUND = 1                  # the lowest bits of epb_flags, as the backend sees a frame
    OUTBOUND = 2

cdef const char **TX_FLAGS = [b"csum_blank", b"data_validated", b"more_data", b"extra_info", NULL]
cdef const char **RX_FLAGS = [b"data_validated", b"csum_blank", b"more_data", b"extra_info", b"gso_prefix", NULL]
cdef const char **GSO_NAMES = [b"NONE", b"TCPV4", b"TCPV6"]
cdef const char **HASH_NAMES = [b"ipv4", b"ipv4_tcp", b"ipv6", b"ipv6_tcp"]


# --- text

cdef inline uint8_t *text(uint8_t *to, const char *words) noexcept nogil:
    cdef size_t length = strlen(words)
    memcpy(to, words, length)
    return to + length


cdef inline uint8_t *number(uint8_t *to, uint32_t value) noexcept nogil:
    cdef uint8_t digits[10]
    cdef int count = 0
    while True:
        digits[count] = <uint8_t>(48 + value % 10)
        value //= 10
        count += 1
        if value == 0:
            break
    while count:
        count -= 1
        to[0] = digits[count]
        to += 1
    return to


cdef inline uint8_t *hexadecimal(uint8_t *to, uint32_t value, int digits) noexcept nogil:
    """`digits` digits at least."""
    cdef int shift = 28
    to = text(to, b"0x")
    while shift >= 0:
        if value >> shift or shift < 4 * digits:
            to[0] = (<const char*> b"0123456789abcdef")[value >> shift & 15]
            to += 1
        shift -= 4
    return to


cdef uint8_t *flag_names(uint8_t *to, const char *prefix, const char **names, uint32_t flags) noexcept nogil:
    """The flags' names in netif.h; bits without a name as a number."""
    cdef uint8_t *begin = to
    cdef int bit = 0
    if not flags:
        return text(to, b"none")
    while names[bit] != NULL:
        if flags >> bit & 1:
            to = text(to, b"|") if to != begin else to
            to = text(text(to, prefix), names[bit])
        bit += 1
    if flags >> bit:
        to = text(to, b"|") if to != begin else to
        to = hexadecimal(to, flags >> bit << bit, 1)
    return to


cdef uint8_t *describe(uint8_t *to, const frame_record_t *record) noexcept nogil:
    """One line on how a frame crossed its ring: slots, flags, grant, GSO, hash, status."""
    cdef bint sent = record.direction == FRAME_TX
    to = number(text(to, b"TX ring slot " if sent else b"RX ring slot "), record.index % RING_SLOTS)
    to = text(number(text(to, b" (index "), record.index), b"), ")
    to = text(number(to, record.slots), b" slots, flags " if record.slots != 1 else b" slot, flags ")
    to = flag_names(to, b"NETTXF_", TX_FLAGS, record.flags) if sent else flag_names(
        to, b"NETRXF_", RX_FLAGS, record.flags)
    to = number(text(number(text(to, b", first gref "), record.gref), b" offset "), record.offset)
    if record.gso_type:
        to = text(to, b", GSO ")
        to = text(to, GSO_NAMES[record.gso_type]) if record.gso_type < 3 else number(to, record.gso_type)
        to = number(text(to, b" size "), record.gso_size)
    if record.extras >> EXTRA_TYPE_HASH & 1:
        to = text(to, b", hash ")
        to = text(to, HASH_NAMES[record.hash_type]) if record.hash_type < 4 else number(to, record.hash_type)
        to = hexadecimal(text(to, b" "), <uint32_t>record.hash[0] << 24 | record.hash[1] << 16 | record.hash[2] << 8
                         | record.hash[3], 8)
    if record.status:
        to = text(to, b", answered ")
        to = text(to, b"ERROR") if record.status == -1 else text(to, b"DROPPED")
    return to


# --- blocks

cdef inline uint8_t *padded(uint8_t *to, uint32_t length) noexcept nogil:
    """Pad what is before `to`, `length` bytes, to a multiple of four."""
    while length & 3:
        to[0] = 0
        to += 1
        length += 1
    return to


cdef inline uint8_t *word(uint8_t *to, uint32_t value) noexcept nogil:
    memcpy(to, &value, sizeof(value))
    return to + sizeof(value)


cdef inline uint8_t *option(uint8_t *to, uint16_t code, uint16_t length) noexcept nogil:
    return word(to, <uint32_t>length << 16 | code)


cdef uint8_t *packet_block(uint8_t *to, const frame_record_t *record, uint32_t interface) noexcept nogil:
    cdef uint8_t *begin = to
    cdef uint8_t *comment
    cdef uint64_t lost = record.lost
    to = word(word(word(to, ENHANCED_PACKET), 0), interface)
    to = word(word(to, <uint32_t>(record.time >> 32)), <uint32_t>record.time)
    to = word(word(to, record.captured), max(record.length, record.captured))
    memcpy(to, record + 1, record.captured)
    to = padded(to + record.captured, record.captured)
    comment = to + 4
    to = describe(comment, record)
    option(comment - 4, OPT_COMMENT, <uint16_t>(to - comment))
    to = padded(to, <uint32_t>(to - comment))
    to = word(option(to, EPB_FLAGS, 4), INBOUND if record.direction == FRAME_TX else OUTBOUND)
    if lost:
        to = option(to, EPB_DROPCOUNT, 8)
        memcpy(to, &lost, 8)
        to += 8
    to = word(option(to, EPB_QUEUE, 4), record.queue)
    to = word(word(to, 0), <uint32_t>(to + 8 - begin))       # opt_endofopt, and the length once more
    word(begin + 4, <uint32_t>(to - begin))
    return to


# --- the rings

cdef class CaptureReader:
    """Reads the capture whose memory `fd` names; the descriptor stays the caller's. ValueError: it is no such memory.
    OSError: it cannot be mapped.
    """

    cdef mapping_t mapping
    cdef uint64_t *heads
    cdef uint64_t *tails
    cdef uint64_t *frames        # of each device: TX, RX
    cdef uint8_t *out
    cdef readonly uint64_t taken

    def __cinit__(self, int fd):
        cdef capture_header_t header
        cdef uint32_t i
        begin = os.pread(fd, sizeof(header), 0)
        if len(begin) < <Py_ssize_t>sizeof(header):
            raise ValueError("the memory of the capture is too short")
        memcpy(&header, <const char *>begin, sizeof(header))
        if header.magic != CAPTURE_MAGIC or header.version != CAPTURE_VERSION:
            raise ValueError("the memory of the capture has an unknown form: use the netback of the backend's version")
        cdef uint64_t data = <uint64_t>header.rings * header.ring_bytes
        cdef uint64_t size = os.fstat(fd).st_size
        if (
            not 0 < header.rings <= MAX_RINGS or header.ring_bytes % PAGE_SIZE
            or not header.ring_bytes or header.ring_bytes & (header.ring_bytes - 1)
            or size <= data
        ):
            raise ValueError("the memory of the capture has impossible sizes")
        capture_map(&self.mapping, fd, header.rings, header.ring_bytes)
        if self.mapping.size + data != size:
            raise ValueError("the memory of the capture has impossible sizes")
        self.heads = <uint64_t *>calloc(header.rings, sizeof(uint64_t))
        self.tails = <uint64_t *>calloc(header.rings, sizeof(uint64_t))
        self.frames = <uint64_t *>calloc(2 * MAX_DEVICES, sizeof(uint64_t))
        self.out = <uint8_t *>malloc(OUT_BYTES)
        if self.heads == NULL or self.tails == NULL or self.frames == NULL or self.out == NULL:
            raise MemoryError
        for i in range(header.rings):
            self.tails[i] = capture_ring(&self.mapping, i).tail

    def __dealloc__(self):
        capture_unmap(&self.mapping)
        free(self.heads)
        free(self.tails)
        free(self.frames)
        free(self.out)

    def devices(self, int begin=0) -> list[str]:
        """The names of the devices from number `begin` on."""
        cdef uint32_t i, count = min(<uint32_t>MAX_DEVICES, load_acquire(&self.header().devices))
        cdef list names = []
        for i in range(begin, count):
            name = capture_devices(&self.mapping)[i].name[:sizeof(capture_devices(&self.mapping)[i].name)]
            names.append(name.partition(b"\0")[0].decode(errors="replace"))
        return names

    def counts(self, int device) -> tuple[int, int, int, int]:
        """Of a device's frames: TX and RX frames that were taken, then those that were lost, since the memory's rings
        were full.
        """
        lost = &capture_devices(&self.mapping)[device].lost[0]
        return (self.frames[2 * device], self.frames[2 * device + 1], index_load(lost), index_load(lost + 1))

    def sleep(self) -> bool:
        """Ask for a byte in the pipe when a record comes. False: there are records, so do not sleep."""
        store_relaxed(&self.header().waiting, 1)
        full_fence()             # a worker stores a head, then reads `waiting`
        if not self.look():
            return True
        store_relaxed(&self.header().waiting, 0)
        return False

    def blocks(self, *, uint32_t interfaces=2, uint32_t most=0xffffffff) -> bytes:
        """Take records, `most` at most, and return them as whole Enhanced Packet Blocks, about a megabyte at most, or
        nothing if there is none. ValueError: a record is damaged.

        Interfaces are numbered by device; with `interfaces` 2 each device has two in a row, for TX and for RX.
        """
        cdef uint8_t *to = self.out
        cdef frame_record_t *record
        cdef uint32_t ring = 0
        cdef uint32_t count = 0
        cdef bint damaged = False
        self.look()
        with nogil:
            while count < most and to - self.out <= OUT_BYTES - MAX_BLOCK:
                record = self.next(&ring, &damaged)
                if record == NULL:
                    break
                to = packet_block(to, record, record.device * interfaces + (record.direction - 1) * (interfaces - 1))
                self.take(ring, record)
                count += 1
            self.publish()
        if damaged:
            raise ValueError("a record of the capture is damaged")
        return (<char *>self.out)[:to - self.out]

    def records(self, uint32_t most=0xffffffff) -> bytes:
        """The same, but the records as they are, each with the bytes of its frame."""
        cdef uint8_t *to = self.out
        cdef frame_record_t *record
        cdef uint32_t ring = 0
        cdef uint32_t count = 0
        cdef bint damaged = False
        self.look()
        while count < most and to - self.out <= OUT_BYTES - MAX_BLOCK:
            record = self.next(&ring, &damaged)
            if record == NULL:
                break
            memcpy(to, record, record.size)
            to += record.size
            self.take(ring, record)
            count += 1
        self.publish()
        if damaged:
            raise ValueError("a record of the capture is damaged")
        return (<char *>self.out)[:to - self.out]

    cdef capture_header_t *header(self) noexcept nogil:
        return <capture_header_t *>self.mapping.memory

    cdef bint look(self) noexcept nogil:
        """Read the heads; True if there is a record."""
        cdef uint32_t i
        cdef bint found = False
        for i in range(self.mapping.rings):
            self.heads[i] = index_load(&capture_ring(&self.mapping, i).head)
            found |= self.heads[i] != self.tails[i]
        return found

    cdef frame_record_t *next(self, uint32_t *ring, bint *damaged) noexcept nogil:
        """The oldest of the rings' first records; NULL if there is none. A ring that is empty now may get an older one
        later: then the order is by arrival.
        """
        cdef frame_record_t *found = NULL
        cdef frame_record_t *record
        cdef uint64_t there
        cdef uint32_t i
        for i in range(self.mapping.rings):
            there = self.heads[i] - self.tails[i]
            if there == 0:
                continue
            record = <frame_record_t *>(self.mapping.data[i] + (self.tails[i] & (self.mapping.ring_bytes - 1)))
            if (
                there > self.mapping.ring_bytes or there < sizeof(frame_record_t) or record.size > there
                or record.size & 7 or record.size < sizeof(frame_record_t)
                or record.captured > record.size - sizeof(frame_record_t) or record.captured > MAX_FRAME
                or record.size > sizeof(frame_record_t) + MAX_FRAME + 7
                or record.device >= MAX_DEVICES or not FRAME_TX <= record.direction <= FRAME_RX
            ):
                damaged[0] = True
                return NULL
            if found == NULL or record.time < found.time:
                found = record
                ring[0] = i
        return found

    cdef void take(self, uint32_t ring, frame_record_t *record) noexcept nogil:
        self.frames[2 * record.device + record.direction - 1] += 1
        self.taken += 1
        self.tails[ring] += record.size

    cdef void publish(self) noexcept nogil:
        """Give the space of what was taken back to the workers."""
        cdef uint32_t i
        for i in range(self.mapping.rings):
            index_store(&capture_ring(&self.mapping, i).tail, self.tails[i])
