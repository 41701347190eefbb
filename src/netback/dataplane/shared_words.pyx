# SPDX-License-Identifier: Apache-2.0
"""Atomic words in memory that processes share: the operations of control code on a grant table or an event page.

Every operation is sequentially consistent and checks its offset; none is on a frame's path.
"""
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint32_t, uint64_t, uint8_t

cdef extern from *:
    """
    #define ORDER __ATOMIC_SEQ_CST
    static inline uint32_t word32_load(void *p) { return __atomic_load_n((uint32_t *)p, ORDER); }
    static inline uint32_t word32_add(void *p, uint32_t n) { return __atomic_fetch_add((uint32_t *)p, n, ORDER); }
    static inline uint64_t word64_load(void *p) { return __atomic_load_n((uint64_t *)p, ORDER); }
    static inline void word64_store(void *p, uint64_t v) { __atomic_store_n((uint64_t *)p, v, ORDER); }
    static inline uint64_t word64_or(void *p, uint64_t bits) { return __atomic_fetch_or((uint64_t *)p, bits, ORDER); }
    static inline uint64_t word64_and(void *p, uint64_t bits) { return __atomic_fetch_and((uint64_t *)p, bits, ORDER); }
    static inline int word64_exchange_if(void *p, uint64_t old, uint64_t v)
    {
        return __atomic_compare_exchange_n((uint64_t *)p, &old, v, 0, ORDER, ORDER);
    }
    """
    uint32_t word32_load(void *p)
    uint32_t word32_add(void *p, uint32_t n)
    uint64_t word64_load(void *p)
    void word64_store(void *p, uint64_t value)
    uint64_t word64_or(void *p, uint64_t bits)
    uint64_t word64_and(void *p, uint64_t bits)
    int word64_exchange_if(void *p, uint64_t old, uint64_t value)


def address_of(object memory) -> int:
    """The address of a buffer, which may be read-only. The buffer's owner keeps it in place."""
    cdef Py_buffer buffer
    PyObject_GetBuffer(memory, &buffer, PyBUF_SIMPLE)
    address = <size_t>buffer.buf
    PyBuffer_Release(&buffer)
    return address


cdef class SharedWords:
    """Words of a writable buffer, which stays exported until `release`."""

    cdef Py_buffer buffer
    cdef bint held

    def __cinit__(self, object memory):
        PyObject_GetBuffer(memory, &self.buffer, PyBUF_WRITABLE)
        self.held = True

    def __dealloc__(self):
        self.release()

    cdef uint8_t *at(self, Py_ssize_t offset, Py_ssize_t size) except NULL:
        if not self.held:
            raise ValueError("the memory was released")
        if offset < 0 or offset % size or offset > self.buffer.len - size:
            raise IndexError(f"no aligned {size}-byte word at {offset} of {self.buffer.len} bytes")
        return <uint8_t *>self.buffer.buf + offset

    cpdef void release(self):
        """Release the buffer, so that its owner can unmap it."""
        if self.held:
            self.held = False
            PyBuffer_Release(&self.buffer)

    @property
    def address(self) -> int:
        """The buffer's address."""
        return <size_t>self.at(0, 1)

    def load32(self, Py_ssize_t offset) -> int:
        return word32_load(self.at(offset, 4))

    def add32(self, Py_ssize_t offset, uint32_t n) -> int:
        """Add, wrapping; returns the previous value."""
        return word32_add(self.at(offset, 4), n)

    def load64(self, Py_ssize_t offset) -> int:
        return word64_load(self.at(offset, 8))

    def store64(self, Py_ssize_t offset, uint64_t value) -> None:
        word64_store(self.at(offset, 8), value)

    def set64(self, Py_ssize_t offset, uint64_t bits) -> int:
        """Set bits; returns the previous value."""
        return word64_or(self.at(offset, 8), bits)

    def clear64(self, Py_ssize_t offset, uint64_t bits) -> int:
        """Clear bits; returns the previous value."""
        return word64_and(self.at(offset, 8), ~bits)

    def exchange64(self, Py_ssize_t offset, uint64_t old, uint64_t value) -> bool:
        """Store `value` if the word equals `old`; returns False, without effect, otherwise."""
        return word64_exchange_if(self.at(offset, 8), old, value) != 0
