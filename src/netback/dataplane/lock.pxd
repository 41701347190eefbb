# SPDX-License-Identifier: Apache-2.0
"""A lock between workers: held for a moment, never over a wait or another lock."""

cdef extern from *:
    """
    #include <sched.h>
    static inline void lock_take(int *lock) {
        while (__atomic_exchange_n(lock, 1, __ATOMIC_ACQUIRE)) sched_yield();
    }
    static inline void lock_release(int *lock) { __atomic_store_n(lock, 0, __ATOMIC_RELEASE); }
    """
    void lock_take(int *lock) noexcept nogil
    void lock_release(int *lock) noexcept nogil
