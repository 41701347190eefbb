# SPDX-License-Identifier: Apache-2.0
"""The addresses that a switch has learned: which port each was last seen at.

Many threads look addresses up and refresh them without a lock: an entry is one word, an address and its port. Only a
change of an entry takes the lock.

A guest may send from any number of addresses. Three bounds keep that from harming others (docs/decisions.md, Switch):
the table has a fixed size, a port has a limit, and a set that is full loses an entry of the port that has most of it.
Which addresses share a set depends on a secret, so a guest cannot choose those of another one's.
"""
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

cdef enum:
    MAX_PORTS = 4096
    SETS = 1024
    WAYS = 8
    NOWHERE = -1


cdef struct set_t:
    uint64_t entries[WAYS]       # address << 16 | port + 1; 0: free
    uint32_t seen[WAYS]          # s: when a frame last came from it
    uint32_t padding[WAYS]       # to two cache lines


cdef struct addresses_t:
    int lock
    uint32_t ageing              # s for which an address that is not seen is known
    uint64_t secret
    uint32_t limits[MAX_PORTS]   # most addresses of each port; 0: none is learned
    uint32_t counts[MAX_PORTS]   # entries of each port, with those that have aged
    uint32_t purged[MAX_PORTS]   # s: when those that had aged were last freed
    set_t sets[SETS]


cdef extern from *:
    """
    static inline uint64_t load_word(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
    static inline void store_word(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
    static inline uint32_t load_seconds(const uint32_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
    static inline void store_seconds(uint32_t *p, uint32_t v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }
    /* Six bytes, which two more may follow or not: the lowest bit of the first one is bit 40. */
    static inline uint64_t load_address(const uint8_t *p)
    {
        uint32_t high; uint16_t low;
        __builtin_memcpy(&high, p, 4);
        __builtin_memcpy(&low, p + 4, 2);
        return (uint64_t)__builtin_bswap32(high) << 16 | __builtin_bswap16(low);
    }
    """
    uint64_t load_word(const uint64_t *p) noexcept nogil
    void store_word(uint64_t *p, uint64_t value) noexcept nogil
    uint32_t load_seconds(const uint32_t *p) noexcept nogil
    void store_seconds(uint32_t *p, uint32_t value) noexcept nogil
    uint64_t load_address(const uint8_t *p) noexcept nogil


cdef inline bint is_multicast(uint64_t address) noexcept nogil:
    return address >> 40 & 1


cdef inline bint has_aged(const addresses_t *table, const set_t *places, int way, uint32_t now) noexcept nogil:
    """Threads may bring their times out of order: one that is ahead has seen the address."""
    return <int32_t>(now - load_seconds(&places.seen[way])) >= <int32_t>table.ageing


cdef inline set_t *set_of(addresses_t *table, uint64_t address) noexcept nogil:
    cdef uint64_t number = (address ^ table.secret) * <uint64_t>0x9E3779B97F4A7C15
    number = (number ^ number >> 32) * (table.secret | 1)
    return &table.sets[number >> 54]


cdef inline int find_way(set_t *places, uint64_t address) noexcept nogil:
    """Where the set has the address; -1 if it has not."""
    cdef int way
    for way in range(WAYS):
        if load_word(&places.entries[way]) >> 16 == address and load_word(&places.entries[way]):
            return way
    return -1


cdef inline int addresses_find(addresses_t *table, uint64_t address, uint32_t now) noexcept nogil:
    """The port of an address, NOWHERE if it is not known; `now` in seconds."""
    cdef set_t *places = set_of(table, address)
    cdef int way = find_way(places, address)
    cdef uint64_t entry
    if way < 0 or has_aged(table, places, way, now):
        return NOWHERE
    entry = load_word(&places.entries[way])
    return <int>(entry & 0xFFFF) - 1 if entry >> 16 == address else NOWHERE


cdef inline void addresses_see(addresses_t *table, uint64_t address, uint32_t port, uint32_t now) noexcept nogil:
    """A frame came from this address at this port."""
    cdef set_t *places = set_of(table, address)
    cdef int way = find_way(places, address)
    if way < 0 or load_word(&places.entries[way]) != (address << 16 | (port + 1)):
        addresses_learn(table, address, port, now)
    elif load_seconds(&places.seen[way]) != now:
        store_seconds(&places.seen[way], now)


cdef void addresses_learn(addresses_t *table, uint64_t address, uint32_t port, uint32_t now) noexcept nogil
cdef void addresses_open(addresses_t *table, uint32_t port, uint32_t limit) noexcept nogil
cdef void addresses_forget(addresses_t *table, uint32_t port) noexcept nogil
