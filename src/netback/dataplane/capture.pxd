# SPDX-License-Identifier: Apache-2.0
"""The memory by which captured frames go from workers to one reader, which may be another process (docs/capture.md).

    page 0      capture_header_t
    table       MAX_DEVICES of capture_device_t
    controls    a page for each ring: capture_ring_t
    data        `ring_bytes` for each ring: records, each a frame_record_t and the first bytes of its frame

Each ring has one producer, the worker of its number, so that workers share nothing but the rare count of lost frames.
The producer trusts nothing in this memory: what it needs it keeps in ring_t, and an impossible `tail` is a full ring.
All numbers are little-endian. `head` and `tail` count bytes and never wrap; byte n of a ring is at n modulo ring_bytes.
"""
from libc.stdint cimport int16_t, uint8_t, uint16_t, uint32_t, uint64_t
from netback.dataplane.extras cimport frame_meta

cdef enum:
    CAPTURE_MAGIC = 0x4643424e           # "NBCF"
    CAPTURE_VERSION = 1
    MAX_DEVICES = 4096
    DEVICE_NAME = 48

    FRAME_TX = 1                         # direction of a frame; of a sink the sum of those that it takes
    FRAME_RX = 2


cdef struct capture_header_t:
    uint32_t magic
    uint32_t version
    uint32_t rings
    uint32_t ring_bytes                  # a power of two, and whole pages
    uint32_t devices                     # entries of the table that are filled; published after them
    uint32_t waiting                     # 1: the reader sleeps until a byte comes by its pipe


cdef struct capture_device_t:
    char name[DEVICE_NAME]               # padded with zeros, one at least
    uint64_t lost[2]                     # frames that found no room: TX, RX


cdef struct capture_ring_t:
    uint64_t head                        # the producer's: bytes written
    uint64_t apart[7]                    # the two are on different cache lines
    uint64_t tail                        # the reader's: bytes taken


cdef struct frame_record_t:
    uint32_t size                        # bytes to the next record: a multiple of 8
    uint32_t captured                    # bytes of the frame that follow
    uint64_t time                        # ns, CLOCK_REALTIME; the frames of one burst share it
    uint32_t length                      # bytes of the whole frame
    uint32_t gref                        # of the first slot, as is `offset`
    uint32_t index                       # of the first slot, free-running
    uint32_t lost                        # frames of this queue and direction that were lost since the last record
    uint16_t device                      # in the table
    uint16_t queue
    uint16_t flags                       # NETTXF_* or NETRXF_*
    uint16_t offset
    uint16_t slots                       # with extras
    int16_t status                       # NETIF_RSP_*
    uint16_t gso_size
    uint8_t gso_type
    uint8_t direction                    # FRAME_TX or FRAME_RX
    uint8_t hash[4]                      # if the hash's bit is in `extras`
    uint8_t hash_type
    uint8_t extras                       # 1 << EXTRA_TYPE_* of each extra info
    uint16_t zero


cdef struct ring_t:                      # the producer's side of a ring
    capture_header_t *header
    capture_ring_t *shared
    uint8_t *data                        # mapped twice in a row, so that no record is split
    uint64_t size
    uint64_t head
    uint64_t tail                        # as it was last read
    int wake                             # the writing end of the reader's pipe


cdef struct sink_t:                      # one capture of one queue
    ring_t *ring
    capture_device_t *counted
    sink_t *next
    uint32_t snaplen
    uint32_t directions
    uint16_t device
    uint16_t queue
    uint32_t lost[2]                     # since the last record of a direction


cdef struct mapping_t:
    uint8_t *memory                      # everything before the data
    size_t size
    uint32_t rings
    uint32_t ring_bytes
    uint8_t **data                       # of each ring, mapped twice


cdef void capture_frame(
    sink_t *sinks, uint64_t *time, frame_record_t *entry, const frame_meta *meta, const uint8_t *bytes,
    uint32_t available) noexcept nogil
cdef capture_device_t *capture_devices(mapping_t *mapping) noexcept nogil
cdef capture_ring_t *capture_ring(mapping_t *mapping, uint32_t number) noexcept nogil
cdef int capture_map(mapping_t *mapping, int fd, uint32_t rings, uint32_t ring_bytes) except -1
cdef void capture_unmap(mapping_t *mapping) noexcept


cdef class CaptureMemory:
    cdef mapping_t mapping
    cdef ring_t *rings
    cdef readonly int fd
    cdef readonly int pipe
    cdef int waker
    cdef dict numbers


cdef class Sink:
    cdef sink_t sink
    cdef CaptureMemory memory            # keeps the ring
