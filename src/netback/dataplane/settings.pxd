# SPDX-License-Identifier: Apache-2.0
"""What a guest set through its rings and never sends again: its list of multicast addresses.

The list is in a page that outlives the process and that all queues of a vif share, each in its worker's thread. So an
entry is one word, and every change of the list is one atomic store: a kill leaves the list as it was before a change or
after it, and no reader needs a lock. A change that a killed process made without answering it is made again by its
successor, which changes nothing: an address is in the list or not, it is not counted.
"""
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy

from netback.dataplane.abi cimport MAC_BYTES

cdef extern from *:
    """
    static inline uint64_t entry_load(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
    static inline int entry_change(uint64_t *p, uint64_t from, uint64_t to) {
        return __atomic_compare_exchange_n(p, &from, to, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    }
    """
    uint64_t entry_load(const uint64_t *entry) noexcept nogil
    bint entry_change(uint64_t *entry, uint64_t old, uint64_t new) noexcept nogil

cdef enum:
    MULTICAST_MAX = 64           # addresses of a vif, as Linux's backend has it


cdef struct settings_t:
    uint64_t rings               # identifies the connection (gref << 32 | port of queue 0's TX ring)
    uint64_t multicast[MULTICAST_MAX]    # multicast_entry of each address; 0: free


cdef inline uint64_t multicast_entry(const uint8_t *address) noexcept nogil:
    """An address as its entry, which is never 0."""
    cdef uint64_t entry = 0
    memcpy(&entry, address, MAC_BYTES)
    return entry | <uint64_t>1 << 8 * MAC_BYTES


cdef inline bint multicast_listed(const settings_t *settings, const uint8_t *address) noexcept nogil:
    """Whether the guest's list has this address."""
    cdef uint64_t entry = multicast_entry(address)
    cdef int i
    for i in range(MULTICAST_MAX):
        if entry_load(&settings.multicast[i]) == entry:
            return True
    return False


cdef bint multicast_add(settings_t *settings, const uint8_t *address) noexcept nogil
cdef void multicast_remove(settings_t *settings, const uint8_t *address) noexcept nogil


cdef class Settings:
    cdef settings_t *settings
    cdef readonly str path
