# SPDX-License-Identifier: Apache-2.0
"""The worker: waits on one handle of event channels and on its queues' peers, and gives each queue bounded turns.

    sleep     epoll: events, peers, Python
    events    each pending port makes its queue runnable; it is unmasked after the work (XSA-332)
    turns     one burst in each direction for every runnable queue, round after round, until none has more

Python has the thread only to add, remove or look at queues: nothing else touches them, so nothing here is
locked. Knows links (either end of a queue), nothing of what they move.
"""
from libc.errno cimport errno
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from posix.unistd cimport close, read, write

from netback.errors import PlatformError
from netback.dataplane.arena cimport Arena
from netback.dataplane.peers.peer cimport Peer
from netback.dataplane.platform.events cimport PORTS_END, TAKE_PORTS, events_notify, events_take, events_unmask
from netback.dataplane.link cimport EVENTS as COUNT_EVENTS, EVENTS_EMPTY, LINK_BROKEN, LINK_MORE, Link, condition
from netback.dataplane.workspace cimport workspace_free, workspace_new

cdef extern from "sys/epoll.h" nogil:
    enum:
        EPOLLIN
        EPOLLOUT
        EPOLLERR
        EPOLLHUP
        EPOLL_CLOEXEC
        EPOLL_CTL_ADD
        EPOLL_CTL_DEL
        EPOLL_CTL_MOD
    ctypedef union epoll_data_t:
        uint64_t u64
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epoll, int op, int fd, epoll_event *event)
    int epoll_wait(int epoll, epoll_event *events, int count, int timeout)

cdef extern from "sys/eventfd.h" nogil:
    enum:
        EFD_CLOEXEC
        EFD_NONBLOCK
    int eventfd(unsigned int value, int flags)

cdef enum:
    TAG_EVENTS = 0xffffffff      # epoll tags; below them: a link's index
    TAG_WAKEUP = 0xfffffffe
    WAIT_EVENTS = 64
    TURNS = 8                    # between two looks at epoll, or one round of all links; no clock: a system call on Xen
    POLL_MS = 1                  # how often to look for what nobody announces
    EMPTY_FREE = 4               # empty events that cost nothing yet
    DELAY_MIN = 1000 * 1000      # ns: back-off of a port that fires without work (XSA-332) ...
    DELAY_DOUBLINGS = 4          # ... and how often it doubles


cdef inline uint64_t now_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <uint64_t>now.tv_sec * 1000000000 + now.tv_nsec


cdef inline void activate(worker_t *worker, link_t *link) noexcept nogil:
    if not link.active and not link.broken:
        link.active = True
        worker.runnable[worker.runnable_count] = link.index
        worker.runnable_count += 1


cdef void watch_peer(worker_t *worker, link_t *link, uint32_t wanted) noexcept nogil:
    """Have epoll watch the peer's descriptor for these events and no others."""
    cdef epoll_event event
    if link.peer.fd < 0 or wanted == link.interest:
        return
    event.events = wanted
    event.data.u64 = link.index
    if wanted == 0:              # not even errors: a hung-up peer would wake us for ever
        epoll_ctl(worker.epoll, EPOLL_CTL_DEL, link.peer.fd, &event)
    else:
        epoll_ctl(worker.epoll, EPOLL_CTL_MOD if link.interest else EPOLL_CTL_ADD, link.peer.fd, &event)
    link.interest = wanted


cdef void ask_peer(worker_t *worker, link_t *link) noexcept nogil:
    """Watch the peer for what this link can use now: frames where there are slots, room where it was full."""
    cdef uint32_t wanted = 0
    if not link.broken and not link.peer.closed:
        wanted = 0 if link.to_blocked or link.frozen else EPOLLIN
        wanted |= EPOLLOUT if link.peer.blocked and not link.peer.congested else 0
    watch_peer(worker, link, wanted)


cdef void on_event(worker_t *worker, link_t *link) noexcept nogil:
    """An event is empty only if neither producer of the far side moved since the last one; back-off is for
    those alone (rules 3).
    """
    cdef uint64_t moved = link.moved(link)
    cdef uint32_t doublings
    link.counters[COUNT_EVENTS] += 1
    if moved != link.seen:
        link.seen = moved
        link.empties = 0
    else:
        link.counters[EVENTS_EMPTY] += 1
        link.empties += 1
    if link.empties > EMPTY_FREE and not link.unmask_at:
        doublings = min(link.empties - EMPTY_FREE - 1, <uint32_t>DELAY_DOUBLINGS)
        link.unmask_at = now_ns() + (<uint64_t>DELAY_MIN << doublings)
        worker.delayed += 1
    link.to_due |= link.to_blocked
    activate(worker, link)


cdef void on_peer(worker_t *worker, link_t *link, uint32_t happened) noexcept nogil:
    if happened & EPOLLOUT:
        link.peer.blocked = False
    if happened & ~<uint32_t>EPOLLOUT:
        link.to_due = True
    if happened & EPOLLHUP and not happened & EPOLLIN:
        link.peer.closed = True          # its far end is gone, and everything that it had sent is read
        ask_peer(worker, link)
    activate(worker, link)


cdef int take_ports(worker_t *worker, uint32_t *ports) noexcept nogil:
    """The ports that fired, each now masked and its link runnable."""
    cdef int i, count = events_take(worker.events, ports)
    for i in range(count):
        if worker.by_port[ports[i] % PORTS_END]:
            on_event(worker, worker.links[worker.by_port[ports[i] % PORTS_END] - 1])
    return count


cdef void unmask_ports(worker_t *worker, uint32_t *ports, int count) noexcept nogil:
    """All but those whose back-off goes on."""
    cdef int i, kept = 0
    cdef uint32_t known
    for i in range(count):
        known = worker.by_port[ports[i] % PORTS_END]
        if not known or not worker.links[known - 1].unmask_at:
            ports[kept] = ports[i]
            kept += 1
    if kept:
        events_unmask(worker.events, ports, kept)


cdef void unmask_delayed(worker_t *worker) noexcept nogil:
    """Ports whose back-off is over."""
    cdef uint32_t i
    cdef link_t *link
    cdef uint64_t now = now_ns()
    for i in range(worker.top):
        link = worker.links[i]
        if link != NULL and link.unmask_at and link.unmask_at <= now:
            link.unmask_at = 0
            worker.delayed -= 1
            events_unmask(worker.events, &link.from_port, 1)
            events_unmask(worker.events, &link.to_port, 1)


cdef inline bint waits_for_slots(link_t *link) noexcept nogil:
    """... that a frontend without feature-rx-notify never announces."""
    return link.polls and link.to_blocked and not link.frozen


cdef void look_again(worker_t *worker) noexcept nogil:
    """At the links that nobody tells when they can go on; those that cannot say so in their turn."""
    cdef uint32_t i
    cdef link_t *link
    worker.waiting = False
    for i in range(worker.top):
        link = worker.links[i]
        if link == NULL or not (waits_for_slots(link) or link.peer.congested):
            continue
        link.to_due |= waits_for_slots(link)
        if link.peer.congested:
            link.peer.blocked = link.peer.congested = False
        activate(worker, link)


cdef inline void notify(link_t *link) noexcept nogil:
    """Tell the far side, once for both rings where they share a port."""
    if link.from_port == link.to_port:
        link.from_notify |= link.to_notify
        link.to_notify = False
    if link.from_notify:
        events_notify(link.events, link.from_port)
    if link.to_notify:
        events_notify(link.events, link.to_port)
    link.from_notify = link.to_notify = False


cdef bint turn(worker_t *worker, workspace_t *ws, link_t *link) noexcept nogil:
    """One burst in each direction, at most one notify for both: True where either has more."""
    cdef int sent, came = 0
    cdef bint again
    sent = link.ring_to_peer(link, ws)      # event or not: a look at the ring costs less than one
    again = sent & LINK_MORE
    if link.to_due and not sent & LINK_BROKEN and not link.frozen:
        came = link.peer_to_ring(link, ws)
        link.to_due = came & LINK_MORE and not link.to_blocked
    notify(link)
    worker.stop |= condition(link) != link.reported
    if (sent | came) & LINK_BROKEN:
        again = link.to_due = False
    elif link.peer.closed and link.peer.blocked:
        link.peer.blocked = False        # nobody is left to make room: what comes now is refused, as on a dead wire
        again = True
    worker.waiting |= link.peer.congested or waits_for_slots(link)
    ask_peer(worker, link)
    return again or (link.to_due and not link.frozen)


cdef void turns(worker_t *worker, workspace_t *ws) noexcept nogil:
    """Every runnable link in turn, round after round: a busy one cannot starve its neighbours."""
    cdef uint32_t i, kept
    cdef link_t *link
    cdef uint32_t done = 0
    while True:
        done += worker.runnable_count
        kept = 0
        for i in range(worker.runnable_count):
            link = worker.links[worker.runnable[i]]
            link.looks_again = link.to_due and not link.frozen
            link.active = turn(worker, ws, link)
            if link.active:
                worker.runnable[kept] = link.index
                kept += 1
        worker.runnable_count = kept
        if kept == 0 or worker.stop or done >= TURNS:
            return


cdef int patience(worker_t *worker) noexcept nogil:
    """How long epoll may sleep, in ms."""
    if worker.runnable_count:
        return 0
    return POLL_MS if worker.waiting or worker.delayed else -1


cdef void serve(worker_t *worker, workspace_t *ws) noexcept nogil:
    """Until Python wants the thread, a link breaks, or there are records to read."""
    cdef epoll_event happened[WAIT_EVENTS]
    cdef uint32_t ports[TAKE_PORTS]
    cdef uint64_t drained
    cdef int i, count, fired = 0
    while not worker.stop:
        count = epoll_wait(worker.epoll, happened, WAIT_EVENTS, patience(worker))
        worker.wakes += 1
        for i in range(count):
            if happened[i].data.u64 == TAG_EVENTS:
                fired = take_ports(worker, ports)
            elif happened[i].data.u64 == TAG_WAKEUP:
                read(worker.wakeup, &drained, sizeof(drained))
                worker.stop = True
            elif worker.links[happened[i].data.u64] != NULL:
                on_peer(worker, worker.links[happened[i].data.u64], happened[i].events)
        if worker.waiting:
            look_again(worker)
        turns(worker, ws)
        unmask_ports(worker, ports, fired)
        fired = 0
        if worker.delayed:
            unmask_delayed(worker)
        if ws.records_used:
            return


cdef class Worker:
    """Serves queues from the thread that calls `run`; every other method is for that thread too, but `wake`.

    Up to 4096 links; `events` is the handle that their ports are bound on, `arena` where bursts lie: a new one if None.
    """

    def __cinit__(self, Events events, Arena arena=None):
        cdef epoll_event event
        self.members = {}
        self.events = events
        self.arena = arena if arena is not None else Arena()
        self.ws = workspace_new(self.arena)
        self.worker = <worker_t *>calloc(1, sizeof(worker_t))
        if self.worker == NULL:
            raise MemoryError
        self.worker.events = events.events
        self.worker.epoll = epoll_create1(EPOLL_CLOEXEC)
        self.worker.wakeup = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        if self.worker.epoll < 0 or self.worker.wakeup < 0:
            raise OSError(errno, "cannot make the worker's descriptors")
        event.events = EPOLLIN
        event.data.u64 = TAG_EVENTS
        epoll_ctl(self.worker.epoll, EPOLL_CTL_ADD, self.events.fd, &event)
        event.data.u64 = TAG_WAKEUP
        epoll_ctl(self.worker.epoll, EPOLL_CTL_ADD, self.worker.wakeup, &event)

    def __dealloc__(self):
        if self.worker != NULL:
            close(self.worker.epoll)
            close(self.worker.wakeup)
            free(self.worker)
        workspace_free(self.ws)

    def add(self, Link link) -> None:
        """Serve a queue: drain and arm both rings at its first turn, and notify the far side once (rules 2)."""
        cdef uint32_t index = 0
        while index < MAX_LINKS and self.worker.links[index] != NULL:
            index += 1
        if index == MAX_LINKS:
            raise PlatformError(f"a worker serves {MAX_LINKS} queues at most")
        link.link.index = index
        self.members[index] = link
        self.worker.links[index] = link.link
        self.worker.top = max(self.worker.top, index + 1)
        self.worker.by_port[link.link.from_port % PORTS_END] = index + 1
        self.worker.by_port[link.link.to_port % PORTS_END] = index + 1
        link.link.to_due = True
        activate(self.worker, link.link)
        for port in {link.link.from_port, link.link.to_port}:
            events_notify(self.worker.events, port)
            self.events.unmask(port)

    def remove(self, Link link) -> None:
        """Stop serving a queue; one that is not served is a normal state."""
        cdef uint32_t index = link.link.index
        if self.members.get(index) is not link:
            return
        watch_peer(self.worker, link.link, 0)
        # what became of the peer, its next queue finds out for itself
        link.link.peer.blocked = link.link.peer.congested = link.link.peer.closed = False
        self.forget(link.link)
        del self.members[index]

    cdef void forget(self, link_t *link) noexcept:
        cdef uint32_t i, kept = 0
        for i in range(self.worker.runnable_count):
            if self.worker.runnable[i] != link.index:
                self.worker.runnable[kept] = self.worker.runnable[i]
                kept += 1
        self.worker.runnable_count = kept
        self.worker.by_port[link.from_port % PORTS_END] = 0
        self.worker.by_port[link.to_port % PORTS_END] = 0
        self.worker.delayed -= link.unmask_at != 0
        self.worker.links[link.index] = NULL
        link.active = False
        link.unmask_at = 0

    def refresh(self, Link link) -> None:
        """Poll both directions and try the peer again, whatever it was found to be; no effect where the link is not
        served. For callers that changed the link, or joined its peer's descriptor to another network.
        """
        if self.members.get(link.link.index) is not link:
            return
        link.link.peer.blocked = link.link.peer.congested = link.link.peer.closed = False
        link.link.to_due = True
        activate(self.worker, link.link)
        ask_peer(self.worker, link.link)

    def set_peer(self, Link link, Peer peer) -> None:
        """Join a link to another peer between two bursts; rings and frames that wait for slots stay as they are.

        The old peer's descriptor is no longer watched, and may be closed.
        """
        served = self.members.get(link.link.index) is link
        if served:
            watch_peer(self.worker, link.link, 0)
        link.peer = peer
        link.link.peer = &peer.peer
        self.refresh(link)

    def run(self) -> list[tuple[Link, Notice]]:
        """Serve until `wake` is called, a link's condition changes or records wait: the conditions that changed since
        the last call.
        """
        self.worker.stop = False
        with nogil:
            serve(self.worker, self.ws)
        return [(link, link.condition) for link in self.members.values() if self.changed(link)]

    cdef bint changed(self, Link link) noexcept:
        cdef int now = condition(link.link)
        cdef bint new = now != link.link.reported
        link.link.reported = now
        return new

    def wake(self) -> None:
        """Have `run` return; from any thread."""
        cdef uint64_t one = 1
        write(self.worker.wakeup, &one, sizeof(one))

    def step(self, Link link) -> bool:
        """One turn of one link, for tests and benchmarks that drive queues themselves: whether it has more."""
        link.link.to_due = True
        link.link.looks_again = False
        cdef bint more
        with nogil:
            more = turn(self.worker, self.ws, link.link)
        return more

    @property
    def wakes(self) -> int:
        """How often the thread woke: an idle worker's stands still."""
        return self.worker.wakes

    def records(self) -> tuple[bytes, int]:
        """What traced and captured links wrote down since the last call, and how many records were lost for
        want of room.
        """
        data = (<char *>self.ws.records)[:self.ws.records_used]
        lost = self.ws.records_lost
        self.ws.records_used = 0
        self.ws.records_lost = 0
        return data, lost
