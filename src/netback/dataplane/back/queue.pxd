# SPDX-License-Identifier: Apache-2.0
"""A backend's queue: what its two directions share."""
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from netback.dataplane.backlog cimport backlog_t
from netback.dataplane.journal cimport Journal, journal_t
from netback.dataplane.link cimport Link, link_t
from netback.dataplane.platform.memory cimport memory_t
from netback.dataplane.ring cimport back_ring
from netback.dataplane.segment cimport segments_t

cdef enum:
    BACKLOG_FRAMES = 16          # what one read brings at most, so that all of it can wait for slots


cdef struct rx_habits_t:         # what the last bursts were like; a wrong guess costs time, never a frame
    uint32_t most_posted         # requests that this guest had posted at once: a GSO frame that needs more is cut
    uint64_t waited              # ns that the present wait for slots has lasted: in the end, what is posted is the most
    bint large                   # the last read brought a frame of several slots: read few, a backlog costs a copy
    uint32_t lone_bursts         # in a row brought one frame: a tap need not be asked for a second one, epoll tells


cdef struct back_queue:          # `link` is first: a link_t * of a backend queue is a back_queue *
    link_t link
    back_ring tx
    back_ring rx
    journal_t *tx_journal
    journal_t *rx_journal
    memory_t *memory
    uint32_t caps                # CAN_*: what the guest takes
    bint sg
    uint16_t rx_offset           # where a frame begins in its first page: 2 for qnic, 0 for vif
    uint32_t tx_segments_sent    # of the frame at the TX ring's head, which is being cut
    backlog_t backlog            # frames that wait for RX slots
    bint segmenting              # the RX frame at hand is being cut, and `segments` is the place in it
    segments_t segments
    rx_habits_t habits


cdef class BackQueue(Link):
    cdef back_queue queue
    cdef readonly Journal journal
