# SPDX-License-Identifier: Apache-2.0
"""A binary heap of deadlines: set, cancel and pop cost O(log n), the next deadline O(1).

A timer is a member of its owner's structure and stores its position in the heap, so setting one allocates nothing and
cancelling one searches nothing.
"""
from libc.stdlib cimport calloc, free


cdef int timers_init(timers_t *timers, uint32_t capacity) except -1:
    """Room for `capacity` timers that are set at once."""
    timers.heap = <timer_t **>calloc(capacity + 1, sizeof(timer_t *))
    if timers.heap == NULL:
        raise MemoryError
    timers.count = 0
    timers.capacity = capacity
    return 0


cdef void timers_free(timers_t *timers) noexcept:
    free(timers.heap)
    timers.heap = NULL


cdef inline void put(timers_t *timers, timer_t *timer, uint32_t place) noexcept nogil:
    timers.heap[place] = timer
    timer.place = place


cdef void sift(timers_t *timers, timer_t *timer, uint32_t place) noexcept nogil:
    """Move a timer from a free position up or down to its place in the heap."""
    cdef uint32_t child
    while place > 1 and timer.deadline < timers.heap[place // 2].deadline:
        put(timers, timers.heap[place // 2], place)
        place = place // 2
    while 2 * place <= timers.count:
        child = 2 * place
        if child < timers.count and timers.heap[child + 1].deadline < timers.heap[child].deadline:
            child += 1
        if timer.deadline <= timers.heap[child].deadline:
            break
        put(timers, timers.heap[child], place)
        place = child
    put(timers, timer, place)


cdef void timers_set(timers_t *timers, timer_t *timer, uint64_t deadline) noexcept nogil:
    """Set a timer, or change its deadline. If the queue is full it stays unset: its owner counts timers."""
    if not timer.place:
        if timers.count == timers.capacity:
            return
        timers.count += 1
        timer.place = timers.count
    timer.deadline = deadline
    sift(timers, timer, timer.place)


cdef void timers_cancel(timers_t *timers, timer_t *timer) noexcept nogil:
    """Remove a timer; one that is not set is a normal state."""
    cdef timer_t *last
    cdef uint32_t place = timer.place
    if not place:
        return
    last = timers.heap[timers.count]
    timers.count -= 1
    timer.place = 0
    if last != timer:
        sift(timers, last, place)


cdef timer_t *timers_pop(timers_t *timers, uint64_t now) noexcept nogil:
    """Remove and return the earliest timer whose deadline is not later than `now`, or NULL."""
    cdef timer_t *first
    if timers.count == 0 or timers.heap[1].deadline > now:
        return NULL
    first = timers.heap[1]
    timers_cancel(timers, first)
    return first


cdef class TimerQueue:
    """The same queue for tests: timers are numbered from 0 to `capacity` - 1."""

    cdef timers_t timers
    cdef timer_t *members

    def __cinit__(self, uint32_t capacity):
        cdef uint32_t i
        timers_init(&self.timers, capacity)
        self.members = <timer_t *>calloc(capacity, sizeof(timer_t))
        if self.members == NULL:
            raise MemoryError
        for i in range(capacity):
            self.members[i].kind = i

    def __dealloc__(self):
        timers_free(&self.timers)
        free(self.members)

    def set(self, uint32_t number, uint64_t deadline) -> None:
        timers_set(&self.timers, &self.members[number], deadline)

    def cancel(self, uint32_t number) -> None:
        timers_cancel(&self.timers, &self.members[number])

    def pop(self, uint64_t now) -> int | None:
        cdef timer_t *timer = timers_pop(&self.timers, now)
        return timer.kind if timer != NULL else None

    @property
    def next(self) -> int:
        return timers_next(&self.timers)
