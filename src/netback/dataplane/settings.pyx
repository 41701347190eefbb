# SPDX-License-Identifier: Apache-2.0
"""The page of settings.pxd in its file, and the changes of the multicast list."""
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memset
from posix.mman cimport munmap

from netback.dataplane.abi cimport MAC_BYTES, PAGE_SIZE
from netback.dataplane.journal cimport map_file


cdef bint multicast_add(settings_t *settings, const uint8_t *address) noexcept nogil:
    """Add an address; False if the list is full. An address that is in the list takes no second entry, so that a change
    may be made twice (settings.pxd). Two queues that add one address at the same time may each make an entry for it.
    """
    cdef uint64_t entry = multicast_entry(address)
    cdef int i
    if multicast_listed(settings, address):
        return True
    for i in range(MULTICAST_MAX):
        if entry_load(&settings.multicast[i]) == 0 and entry_change(&settings.multicast[i], 0, entry):
            return True
    return False


cdef void multicast_remove(settings_t *settings, const uint8_t *address) noexcept nogil:
    """Remove an address; one that is not in the list is a normal state."""
    cdef uint64_t entry = multicast_entry(address)
    cdef int i
    for i in range(MULTICAST_MAX):
        if entry_load(&settings.multicast[i]) == entry:
            entry_change(&settings.multicast[i], entry, 0)


cdef class Settings:
    """A vif's settings in the file at `path`; without a path they exist as long as this object."""

    def __cinit__(self, str path=None):
        self.path = path
        self.settings = <settings_t *>map_file(path, PAGE_SIZE)

    def __dealloc__(self):
        if self.settings != NULL:
            munmap(self.settings, PAGE_SIZE)

    def claim(self, uint64_t rings, *, bint keep) -> None:
        """Begin a connection on these rings. `keep`: a predecessor's settings count if they are of the same rings."""
        if not keep or self.settings.rings != rings:
            memset(self.settings, 0, PAGE_SIZE)
        self.settings.rings = rings

    @property
    def multicast(self) -> list[str]:
        """The addresses in the list, in no particular order."""
        cdef uint64_t entries[MULTICAST_MAX]
        cdef int i
        for i in range(MULTICAST_MAX):
            entries[i] = entry_load(&self.settings.multicast[i])
        return [(<uint8_t *>&entries[i])[:MAC_BYTES].hex(":") for i in range(MULTICAST_MAX) if entries[i]]
