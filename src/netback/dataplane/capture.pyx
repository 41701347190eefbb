# SPDX-License-Identifier: Apache-2.0
"""The workers' side of a capture: frames go into the rings of capture.pxd, or are lost and counted.

A worker copies the first bytes of a frame and stores one index. It makes a system call only if the reader sleeps, and
waits for nothing.
"""
import fcntl
import os

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy
from posix.mman cimport MAP_ANONYMOUS, MAP_FAILED, MAP_FIXED, MAP_PRIVATE, MAP_SHARED, PROT_NONE, PROT_READ, PROT_WRITE
from posix.mman cimport mmap, munmap
from posix.time cimport CLOCK_REALTIME, clock_gettime, timespec
from posix.unistd cimport write

from netback.dataplane.abi cimport EXTRA_TYPE_HASH, PAGE_SIZE
from netback.dataplane.ring cimport full_fence, load_relaxed, store_relaxed, store_release

cdef extern from *:
    """
    #include <stdint.h>
    static inline uint64_t index_load(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
    static inline void index_store(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
    static inline void count_one(uint64_t *p) { __atomic_fetch_add(p, 1, __ATOMIC_RELAXED); }
    """
    uint64_t index_load(const uint64_t *p) noexcept nogil
    void index_store(uint64_t *p, uint64_t value) noexcept nogil
    void count_one(uint64_t *p) noexcept nogil

cdef enum:
    TABLE_AT = PAGE_SIZE
    CONTROLS_AT = TABLE_AT + MAX_DEVICES * sizeof(capture_device_t)

SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
MIN_RING = 1 << 18
"""Bytes of a ring, at least: it holds some frames of the largest size."""
FALLOC_PUNCH = 0x03
"""FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE of fallocate(2)."""


# --- the producer

cdef void put(sink_t *sink, frame_record_t *entry, const uint8_t *bytes, uint32_t available) noexcept nogil:
    """Append a record, or count it as lost."""
    cdef ring_t *ring = sink.ring
    cdef uint32_t way = entry.direction - 1
    cdef uint32_t captured = min(available, sink.snaplen)
    cdef uint32_t size = (sizeof(frame_record_t) + captured + 7) & ~<uint32_t>7
    cdef uint8_t *to
    cdef char byte = 0
    if ring.head - ring.tail > ring.size - size:
        ring.tail = index_load(&ring.shared.tail)
        if ring.head - ring.tail > ring.size - size:     # full, or no tail of a reader that follows the rules
            sink.lost[way] += 1
            count_one(&sink.counted.lost[way])
            return
    entry.size = size
    entry.captured = captured
    entry.device = sink.device
    entry.queue = sink.queue
    entry.lost = sink.lost[way]
    sink.lost[way] = 0
    to = ring.data + (ring.head & (ring.size - 1))
    memcpy(to, entry, sizeof(frame_record_t))
    if captured:
        memcpy(to + sizeof(frame_record_t), bytes, captured)
    ring.head += size
    index_store(&ring.shared.head, ring.head)
    full_fence()                         # the reader stores `waiting`, then reads the heads once more
    if load_relaxed(&ring.header.waiting):
        store_relaxed(&ring.header.waiting, 0)
        write(ring.wake, &byte, 1)       # a full pipe wakes as well


cdef void capture_frame(
        sink_t *sinks, uint64_t *time, frame_record_t *entry, const frame_meta *meta, const uint8_t *bytes,
        uint32_t available) noexcept nogil:
    """Pass a frame to each of the sinks that take its direction. `bytes` are `available` bytes of it; the caller has
    filled in what it knows of its slots, and zeros. The clock is read once for a burst, since it costs more than the
    rest: a *time of 0 is replaced.
    """
    cdef timespec now
    cdef sink_t *sink = sinks
    if time[0] == 0:
        clock_gettime(CLOCK_REALTIME, &now)
        time[0] = <uint64_t>now.tv_sec * 1000000000 + now.tv_nsec
    entry.time = time[0]
    entry.gso_type = meta.gso_type
    entry.gso_size = meta.gso_size
    entry.extras = meta.extras
    if meta.extras >> EXTRA_TYPE_HASH & 1:
        entry.hash_type = meta.hash_type
        memcpy(entry.hash, meta.hash_value, sizeof(entry.hash))
    while sink != NULL:
        if sink.directions & entry.direction:
            put(sink, entry, bytes, available)
        sink = sink.next


# --- the memory

cdef capture_device_t *capture_devices(mapping_t *mapping) noexcept nogil:
    return <capture_device_t *>(mapping.memory + TABLE_AT)


cdef capture_ring_t *capture_ring(mapping_t *mapping, uint32_t number) noexcept nogil:
    return <capture_ring_t *>(mapping.memory + CONTROLS_AT + <size_t>number * PAGE_SIZE)


cdef size_t controls_end(uint32_t rings) noexcept nogil:
    return CONTROLS_AT + <size_t>rings * PAGE_SIZE


cdef int capture_map(mapping_t *mapping, int fd, uint32_t rings, uint32_t ring_bytes) except -1:
    """Map everything, each ring's data twice in a row. OSError; capture_unmap undoes what was mapped then, too."""
    cdef uint32_t i, half
    cdef void *place
    mapping.rings, mapping.ring_bytes, mapping.size = rings, ring_bytes, controls_end(rings)
    mapping.data = <uint8_t **>calloc(rings, sizeof(uint8_t *))
    if mapping.data == NULL:
        raise MemoryError
    place = mmap(NULL, mapping.size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
    if place == MAP_FAILED:
        raise OSError("the capture's memory cannot be mapped")
    mapping.memory = <uint8_t *>place
    for i in range(rings):
        place = mmap(NULL, 2 * <size_t>ring_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        if place == MAP_FAILED:
            raise OSError("the capture's memory cannot be mapped")
        mapping.data[i] = <uint8_t *>place
        for half in range(2):
            place = mmap(mapping.data[i] + half * <size_t>ring_bytes, ring_bytes, PROT_READ | PROT_WRITE,
                         MAP_SHARED | MAP_FIXED, fd, mapping.size + i * <size_t>ring_bytes)
            if place == MAP_FAILED:
                raise OSError("the capture's memory cannot be mapped")
    return 0


cdef void capture_unmap(mapping_t *mapping) noexcept:
    cdef uint32_t i
    if mapping.data != NULL:
        for i in range(mapping.rings):
            if mapping.data[i] != NULL:
                munmap(mapping.data[i], 2 * <size_t>mapping.ring_bytes)
        free(mapping.data)
    if mapping.memory != NULL:
        munmap(mapping.memory, mapping.size)
    mapping.data, mapping.memory = NULL, NULL


cdef class CaptureMemory:
    """The memory of one capture, sealed so that no reader can shorten it: `rings` rings of `ring_bytes`, a power of two
    and MIN_RING at least. OSError: the kernel gives none.

    `fd` is its descriptor and `pipe` the end by which the reader is woken: both are for the reader. The mapping lasts
    as long as this object, which the sinks keep.
    """

    def __cinit__(self, uint32_t rings, uint32_t ring_bytes):
        cdef uint32_t i
        cdef capture_header_t *header
        self.fd = self.pipe = self.waker = -1
        if ring_bytes < MIN_RING or ring_bytes & (ring_bytes - 1):
            raise ValueError("ring_bytes is no power of two, or too small")
        self.numbers = {}
        self.rings = <ring_t *>calloc(rings, sizeof(ring_t))
        if self.rings == NULL:
            raise MemoryError
        self.fd = os.memfd_create("netback-capture", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, controls_end(rings) + rings * <size_t>ring_bytes)
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, SEALS)
        # A pipe, not an eventfd: its ends are two descriptions, so the reader cannot make the worker's end block.
        self.pipe, self.waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        capture_map(&self.mapping, self.fd, rings, ring_bytes)
        header = <capture_header_t *>self.mapping.memory
        header.version, header.rings, header.ring_bytes = CAPTURE_VERSION, rings, ring_bytes
        header.magic = CAPTURE_MAGIC
        for i in range(rings):
            self.rings[i].wake = self.waker
            self.rings[i].header = header
            self.rings[i].shared = capture_ring(&self.mapping, i)
            self.rings[i].data = self.mapping.data[i]
            self.rings[i].size = ring_bytes

    def __dealloc__(self):
        self.close()
        if self.waker >= 0:
            os.close(self.waker)
        capture_unmap(&self.mapping)
        free(self.rings)

    def device(self, str name) -> int:
        """The number of a device, which gets one if it has none. For one thread. KeyError: the table is full."""
        cdef capture_header_t *header = <capture_header_t *>self.mapping.memory
        cdef capture_device_t *entry
        number = self.numbers.get(name)
        if number is not None:
            return number
        number = len(self.numbers)
        if number == MAX_DEVICES:
            raise KeyError(name)
        text = name.encode()[:DEVICE_NAME - 1]
        entry = &capture_devices(&self.mapping)[<int>number]
        memcpy(entry.name, <const char *>text, len(text))
        self.numbers[name] = number
        store_release(&header.devices, number + 1)
        return number

    def release(self) -> None:
        """Give the memory back to the kernel, even if the reader keeps its descriptor: for a reader that is gone."""
        cdef size_t size = self.mapping.rings * <size_t>self.mapping.ring_bytes
        if fallocate(self.fd, FALLOC_PUNCH, self.mapping.size, size) < 0:
            raise OSError("the capture's memory cannot be given back")

    def close(self) -> None:
        """Close the reader's descriptors; may be called again. The workers' end of the pipe lasts as long as a sink
        does: a queue that is on its way out may still use it.
        """
        for fd in (self.fd, self.pipe):
            if fd >= 0:
                os.close(fd)
        self.fd = self.pipe = -1


cdef extern from "<fcntl.h>" nogil:
    int fallocate(int fd, int mode, long offset, long length)


cdef class Sink:
    """Takes the frames of one queue, by the ring of the queue's worker: of `directions` (1 TX, 2 RX, 3 both), the first
    `snaplen` bytes of each.
    """

    def __cinit__(self, CaptureMemory memory, str device, uint16_t queue, *, uint32_t ring, uint32_t directions,
                  uint32_t snaplen):
        if ring >= memory.mapping.rings:
            raise IndexError("the capture has no such ring")
        number = memory.device(device)
        self.memory = memory
        self.sink.ring = &memory.rings[ring]
        self.sink.counted = &capture_devices(&memory.mapping)[<int>number]
        self.sink.device = number
        self.sink.queue = queue
        self.sink.directions = directions
        self.sink.snaplen = min(snaplen, <uint32_t>65535 + 18)
