# SPDX-License-Identifier: Apache-2.0
"""Pages that this domain grants to itself, for memory that comes and goes with a stream.

On real Xen a copy between two grants costs Linux less than one with an address (arena.pyx). gntalloc makes such pages,
as many as its limit has for all processes of the domain.
"""
import os

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    #include <sys/ioctl.h>
    #include <sys/mman.h>

    #define MOST_PAGES 32
    /* xen/gntalloc.h: struct ioctl_gntalloc_alloc_gref, ioctl_gntalloc_dealloc_gref */
    struct own_alloc { uint16_t domid, flags; uint32_t count; uint64_t index; uint32_t grefs[MOST_PAGES]; };
    struct own_dealloc { uint64_t index; uint32_t count; };
    enum { ALLOC_GREF = 0x00184705, DEALLOC_GREF = 0x00104706, WRITABLE = 1 };

    /* Only the mapping keeps the pages and their grants afterwards. */
    static int map_own(int device, uint16_t domid, void *at, uint32_t count, uint32_t *grefs)
    {
        struct own_alloc made = {domid, WRITABLE, count, 0, {0}};
        struct own_dealloc given;
        void *mapped;
        if (count > MOST_PAGES || ioctl(device, ALLOC_GREF, &made))
            return 0;
        mapped = mmap(at, 4096UL * count, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, device, made.index);
        given.index = made.index;
        given.count = count;
        ioctl(device, DEALLOC_GREF, &given);
        if (mapped == MAP_FAILED) {      /* Linux may have unmapped what was there */
            mmap(at, 4096UL * count, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
            return 0;
        }
        memcpy(grefs, made.grefs, 4UL * count);
        return 1;
    }
    """
    bint map_own(int device, uint16_t domid, void *at, uint32_t count, uint32_t *grefs) noexcept nogil


cdef bint own_pages(const own_grants_t *own, uint8_t *at, uint32_t count, uint32_t *grefs) noexcept nogil:
    """Replace up to 32 pages of anonymous memory by granted ones, until they are unmapped; False if there are none, and
    then the memory is as before.
    """
    return map_own(own.device, own.domid, at, count, grefs)


cdef class OwnGrants:
    """Grants of the domain `domid`, this one, to itself, from an open /dev/xen/gntalloc, which it duplicates."""

    def __cinit__(self, int device, uint16_t domid):
        self.own.domid = domid
        self.own.device = -1
        self.own.device = os.dup(device)

    def __dealloc__(self):
        if self.own.device >= 0:
            os.close(self.own.device)
