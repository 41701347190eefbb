# SPDX-License-Identifier: Apache-2.0
"""Changes of a switch's table of addresses: see addresses.pxd."""
from libc.stdint cimport int32_t, uint32_t, uint64_t

from netback.dataplane.lock cimport lock_release, lock_take


cdef inline uint32_t port_of(uint64_t entry) noexcept nogil:
    return <uint32_t>(entry & 0xFFFF) - 1


cdef inline void put(
        addresses_t *table, set_t *places, int way, uint64_t entry, uint32_t now) noexcept nogil:
    """Replace an entry; 0 frees it. The time is stored first: a reader that finds the new word finds its time too."""
    cdef uint64_t old = places.entries[way]
    if old:
        table.counts[port_of(old)] -= 1
    if entry:
        table.counts[port_of(entry)] += 1
    store_seconds(&places.seen[way], now)
    store_word(&places.entries[way], entry)


cdef void forget_entries(addresses_t *table, uint32_t port, bint aged, uint32_t now) noexcept nogil:
    """Free the entries of a port, or only those of them that have aged."""
    cdef int i, way
    cdef set_t *places
    for i in range(SETS):
        places = &table.sets[i]
        for way in range(WAYS):
            if places.entries[way] and port_of(places.entries[way]) == port:
                if not aged or has_aged(table, places, way, now):
                    put(table, places, way, 0, 0)


cdef bint has_room(addresses_t *table, uint32_t port, uint32_t now) noexcept nogil:
    """Whether the port may have one more. If it is full, its aged entries are freed, at most once a second."""
    if table.counts[port] < table.limits[port]:
        return True
    if table.limits[port] == 0 or table.purged[port] == now:
        return False
    table.purged[port] = now
    forget_entries(table, port, True, now)
    return table.counts[port] < table.limits[port]


cdef int choose_way(addresses_t *table, set_t *places, uint32_t port, uint32_t now) noexcept nogil:
    """Where a new entry of this port goes: a free place, an aged one, else the oldest of the port that has most of the
    set, the new one counted.
    """
    cdef int way, other, share, most = 0, chosen = 0
    for way in range(WAYS):
        if places.entries[way] == 0 or has_aged(table, places, way, now):
            return way
    for way in range(WAYS):
        share = port_of(places.entries[way]) == port
        for other in range(WAYS):
            share += port_of(places.entries[other]) == port_of(places.entries[way])
        if share > most or (share == most and <int32_t>(places.seen[chosen] - places.seen[way]) > 0):
            most = share
            chosen = way
    return chosen


cdef void addresses_learn(addresses_t *table, uint64_t address, uint32_t port, uint32_t now) noexcept nogil:
    """Add an address to a port, or move it there from another one; not beyond the port's limit."""
    cdef set_t *places = set_of(table, address)
    cdef uint64_t entry = address << 16 | (port + 1)
    cdef int way
    lock_take(&table.lock)
    way = find_way(places, address)
    if way < 0 or places.entries[way] != entry:
        if has_room(table, port, now):
            if way < 0:
                way = choose_way(table, places, port, now)
            put(table, places, way, entry, now)
    lock_release(&table.lock)


cdef void addresses_open(addresses_t *table, uint32_t port, uint32_t limit) noexcept nogil:
    """Learn addresses at this port, up to `limit`."""
    lock_take(&table.lock)
    table.limits[port] = limit
    lock_release(&table.lock)


cdef void addresses_forget(addresses_t *table, uint32_t port) noexcept nogil:
    """Forget the addresses of this port, and learn no more there."""
    lock_take(&table.lock)
    table.limits[port] = 0
    forget_entries(table, port, False, 0)
    lock_release(&table.lock)
