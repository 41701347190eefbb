# SPDX-License-Identifier: Apache-2.0
"""A backend's queue: what its two directions share."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from netback.dataplane.journal cimport Journal, journal_t
from netback.dataplane.link cimport Link, link_t
from netback.dataplane.segment cimport segments_t
from netback.dataplane.peers.peer cimport frame_t
from netback.dataplane.platform.memory cimport memory_t
from netback.dataplane.ring cimport back_ring

cdef enum:
    HELD_FRAMES = 16             # of one read from a peer that gives many


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
    uint32_t tx_cut              # segments already sent of the frame at the ring's head
    uint32_t rx_most             # the most requests that this guest ever had posted
    uint32_t rx_lone             # bursts in a row that brought one frame
    bint rx_large                # the last read brought frames of several slots
    bint cutting                 # the frame at hand is being cut
    segments_t cut
    frame_t held[HELD_FRAMES]    # frames that wait for slots: what one read brought, no more
    uint32_t held_first
    uint32_t held_count
    uint8_t *hold                # their memory


cdef class BackQueue(Link):
    cdef back_queue queue
    cdef readonly Journal journal
