# SPDX-License-Identifier: Apache-2.0
"""The backend's end of a control ring: one request at a time, each answered through a file that outlives the process.

A guest sends what it sets once and never again (netif.h, Control ring). So an answer and the state that it leads to
are committed together: they go to the half of a file that is not in use, one store of a word makes that half the
current one, then the response goes to the ring. A process that is killed before that store has answered nothing, and
the next one handles the request again. After it the next one has the state, and completes the response first. No
system call comes between the word and rsp_prod, and a killed thread has executed its instructions in order.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from posix.mman cimport munmap

from netback.errors import GuestError
from netback.dataplane.abi cimport CTRL_SLOT, CTRL_SLOTS, RING_HEADER
from netback.dataplane.clock cimport now_ns
from netback.dataplane.journal cimport kill_point, map_file
from netback.dataplane.link cimport copy_ring
from netback.dataplane.ring cimport (
    back_attach, back_push, back_ring, compiler_fence, full_fence, load_acquire, requests_pending, store_relaxed,
    store_release,
)

cdef enum:
    FILE_HEADER = 64


cdef struct control_file:
    uint64_t ring                # identifies the ring: (gref << 32 | port)
    uint32_t current             # the half with the last commit, 1 or 2; 0: none
    uint32_t size                # bytes of a half's state


cdef struct commit_t:            # the state follows
    uint32_t index               # of the response
    uint32_t zero
    uint8_t response[CTRL_SLOT]


cdef inline uint8_t *ctrl_slot(back_ring *ring, uint32_t index) noexcept:
    return <uint8_t *>ring.shared + RING_HEADER + (index & (CTRL_SLOTS - 1)) * CTRL_SLOT


cdef class ControlRing:
    """A mapped control ring at address `page`; `keep` is kept alive.

    `name` is a 64-bit name of this ring that another process would give it too (gref and remote port). `path` is the
    file of its last commit, whose states have `size` bytes each; without a path it lives as long as this object. The
    commit of another ring is void, and without `adopt` any is: this is a new connection.

    GuestError: req_prod is impossible. OSError: the file cannot be opened. PlatformError: it cannot be mapped.
    """

    cdef back_ring ring
    cdef control_file *file
    cdef size_t file_size
    cdef object keep

    def __cinit__(self, size_t page, uint64_t name, uint32_t size, str path=None, *, bint adopt=False,
                  object keep=None):
        self.keep = keep
        self.file_size = FILE_HEADER + 2 * (sizeof(commit_t) + size)
        self.file = <control_file *>map_file(path, self.file_size)
        if not adopt or self.file.ring != name or self.file.size != size or self.file.current > 2:
            memset(self.file, 0, self.file_size)
            self.file.ring = name
            self.file.size = size
        back_attach(&self.ring, <void *>page)
        if self.pending():
            self.complete()

    def __dealloc__(self):
        if self.file != NULL:
            munmap(self.file, self.file_size)

    cdef commit_t *half(self, uint32_t number) noexcept:
        return <commit_t *>(<uint8_t *>self.file + FILE_HEADER + (number - 1) * (sizeof(commit_t) + self.file.size))

    cdef void complete(self) noexcept:
        """Publish the response that a killed predecessor committed and did not publish."""
        cdef commit_t *last
        if self.file.current == 0:
            return
        last = self.half(self.file.current)
        if last.index == self.ring.rsp_prod:
            memcpy(ctrl_slot(&self.ring, last.index), last.response, CTRL_SLOT)
            self.ring.rsp_prod += 1
            store_release(&self.ring.shared.rsp_prod, self.ring.rsp_prod)
            full_fence()

    @property
    def state(self) -> bytes:
        """The state of the last commit; empty if there is none."""
        cdef commit_t *last
        if self.file.current == 0:
            return b""
        last = self.half(self.file.current)
        return (<char *>last + sizeof(commit_t))[:self.file.size]

    cpdef uint32_t pending(self) except? 0xffffffff:
        """The number of requests that wait. GuestError: req_prod is impossible."""
        cdef int count = requests_pending(&self.ring, CTRL_SLOTS)
        if count < 0:
            raise GuestError("control ring: req_prod is impossible")
        return count

    def arm(self) -> int:
        """Ask for an event at the next request, then look again (io/ring.h's final check): the requests that wait."""
        store_relaxed(&self.ring.shared.req_event, self.ring.rsp_prod + 1)
        full_fence()
        return self.pending()

    def take(self) -> bytes:
        """A private copy of the first request that waits (XSA-155); it is answered by `commit`."""
        cdef bytes slot = (<char *>ctrl_slot(&self.ring, self.ring.rsp_prod))[:CTRL_SLOT]
        compiler_fence()
        return slot

    def commit(self, bytes response, bytes state) -> bool:
        """Answer the first request that waits; returns whether the guest asked for an event. ValueError: a wrong
        length.
        """
        if len(response) != CTRL_SLOT or len(state) != <Py_ssize_t>self.file.size:
            raise ValueError(f"a response has {CTRL_SLOT} bytes, the state {self.file.size}")
        cdef uint32_t number = 2 if self.file.current == 1 else 1
        cdef commit_t *next = self.half(number)
        cdef bint notify
        kill_point()
        next.index = self.ring.rsp_prod
        memcpy(next.response, <char *>response, CTRL_SLOT)
        memcpy(<uint8_t *>next + sizeof(commit_t), <char *>state, self.file.size)
        compiler_fence()
        kill_point()
        self.file.current = number
        compiler_fence()
        kill_point()
        memcpy(ctrl_slot(&self.ring, self.ring.rsp_prod), <char *>response, CTRL_SLOT)
        kill_point()
        notify = back_push(&self.ring, self.ring.rsp_prod + 1)
        kill_point()
        return notify

    @property
    def indices(self) -> dict[str, int]:
        """The indices in the shared page, and the backend's private one."""
        return {
            "req_prod": load_acquire(&self.ring.shared.req_prod),
            "req_event": load_acquire(&self.ring.shared.req_event),
            "rsp_prod": load_acquire(&self.ring.shared.rsp_prod),
            "rsp_event": load_acquire(&self.ring.shared.rsp_event),
            "private": self.ring.rsp_prod,
        }

    def snapshot(self) -> tuple[bytes, bool, int]:
        """A copy of the page, whether no response was published meanwhile, and the ns since the last one was, or since
        the ring was attached.
        """
        cdef uint64_t now = now_ns()
        return *copy_ring(<size_t>self.ring.shared), now - min(now, self.ring.pushed_at)
