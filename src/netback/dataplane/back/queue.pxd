# SPDX-License-Identifier: Apache-2.0
"""A backend's queue: the state shared by its two directions."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from netback.dataplane.backlog cimport backlog_t
from netback.dataplane.flight cimport Flight
from netback.dataplane.journal cimport Journal, journal_t
from netback.dataplane.link cimport Link, link_t
from netback.dataplane.platform.memory cimport memory_t
from netback.dataplane.ring cimport back_ring
from netback.dataplane.segment cimport segments_t
from netback.dataplane.settings cimport Settings, settings_t
from netback.dataplane.staged cimport Staged, staged_t
from netback.dataplane.toeplitz cimport Toeplitz, toeplitz_t

cdef enum:
    BACKLOG_FRAMES = 16          # most frames that one read returns, so that all of them can wait for slots


cdef struct rx_habits_t:         # learned from the last bursts; a wrong guess costs time, never a frame
    uint32_t most_posted         # requests that this guest had posted at once: a GSO frame that needs more is segmented
    uint64_t waited  # ns that the current wait for slots has lasted; in the end most_posted becomes what is posted
    uint32_t lone                # bursts in a row that brought one frame
    bint large                   # the last read had a frame of several slots: read few, the backlog costs a copy


cdef struct back_queue:          # `link` is first: a link_t * of a backend queue is a back_queue *
    link_t link
    back_ring tx
    back_ring rx
    journal_t *tx_journal
    journal_t *rx_journal
    settings_t *settings
    bint multicast_control       # the guest wants only those multicast frames whose address is in its list
    memory_t *memory
    uint32_t caps                # CAN_*: offloads that the guest accepts
    bint sg
    uint16_t rx_offset           # where a frame begins in its first page: 2 for qnic, 0 for vif, or the XDP headroom
    uint8_t rx_extras            # extra infos of every RX frame: that of the XDP headroom, or none
    uint32_t tx_segments_sent    # segments already sent of the frame at the TX ring's head
    backlog_t backlog            # frames that wait for RX slots
    uint64_t read_at             # ns: when those were read
    uint64_t waits_since         # ns: when a frame first lacked slots since the guest last took one; 0: none has
    uint64_t drain               # ns that a frame may wait
    uint64_t stall               # ns of waiting after which the guest is stalled; 0: never
    uint32_t stalled_needed      # slots that a stalled guest must post
    bint segmenting              # the current RX frame is being segmented, and `segments` is the position in it
    segments_t segments
    rx_habits_t habits
    const toeplitz_t *hash       # NULL: the guest wants no hash of RX frames
    const staged_t *staged       # NULL: no pages stay mapped


cdef class BackQueue(Link):
    cdef back_queue queue
    cdef uint16_t plain_offset
    cdef readonly Journal journal
    cdef readonly Settings settings
    cdef Toeplitz hash           # keep alive what queue.hash, queue.staged and link.flight point to
    cdef Staged staged
    cdef Flight flight
