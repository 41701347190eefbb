# SPDX-License-Identifier: Apache-2.0
"""The worker: a thread that sleeps on a handle of event channels and on its links' peers, and polls links in rounds.

    sleep     epoll: event channels, peers' descriptors, Python; no longer than until the next deadline
    events    each pending port, ready descriptor or ended timer is an event of a link, which becomes runnable
    poll      each runnable link once: ring to peer, peer to ring, at most one notify; round after round, until none has
              more or a few links were polled and epoll is called again
    unmask    the ports that fired, after the work that they announced (XSA-332)

Two rules keep it from sleeping through work and from spinning. First, a direction is polled at the events that its
state's row names (states.py), and the row is also what the descriptor is watched for and which timer runs: a state
that nothing wakes cannot be entered by a forgotten flag. The ring's own final check after arming (io/ring.h) closes the
gap between the last check and the sleep. Second, a direction returns a state that is polled again at once only if its
budget ended before its work, so each such poll moves something. A busy link gets one burst per round, like any other.

Outside the table: an event before which no producer index moved in a ring of its port (both, or one with split event
channels) is spurious, and from the fifth in a row on the port stays masked for 1 to 16 ms. The first poll of a link
serves what its predecessor or the guest left in the rings. A link whose far side broke the protocol is no longer
polled, and its peer no longer watched.

Python gets the thread only between two rounds, to add, remove or inspect links. No other thread accesses them, so no
locks are needed.
"""
from libc.errno cimport errno
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from posix.unistd cimport close, read, write

from netback.errors import PlatformError
from netback.dataplane.arena cimport Arena
from netback.dataplane.clock cimport now_near, now_ns
from netback.dataplane.credit cimport Credit, credit_leave
from netback.dataplane.epoll cimport (
    EFD_CLOEXEC, EFD_NONBLOCK, EPOLLERR, EPOLLET, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLL_CLOEXEC, EPOLL_CTL_ADD,
    EPOLL_CTL_DEL, EPOLL_CTL_MOD, epoll_create1, epoll_ctl, epoll_event, epoll_wait, eventfd,
)
from netback.dataplane.link cimport (
    EVENT_FRAMES, EVENT_POLL, EVENT_RING, EVENT_ROOM, EVENT_TIMER, EVENTS as COUNT_EVENTS, EVENTS_EMPTY, LINK_READY,
    STATE_BROKEN, STATE_NO_CREDIT, STATE_PEER_CLOSED, STATE_PEER_FULL, STATE_PEER_MORE, STATE_REFUSED, STATE_RING_MORE,
    Link, direction_t, link_condition, row_t, state_rows,
)
from netback.dataplane.notices import Notice
from netback.dataplane.peers.peer cimport BELL_FRAMES, BELL_ROOM, PEER_CLOSED, PEER_UP, Peer, peer_t
from netback.dataplane.platform.events cimport PORTS_END, TAKE_PORTS, events_notify, events_take, events_unmask
from netback.dataplane.ring cimport load_acquire
from netback.dataplane.timers cimport (
    timer_t, timers_cancel, timers_free, timers_init, timers_next, timers_pop, timers_set,
)
from netback.dataplane.workspace cimport workspace_free, workspace_new

cdef enum:
    TAG_EVENTS = 0xffffffff      # epoll tags; below them: a link's index, and which descriptor: the peer's,
    TAG_WAKEUP = 0xfffffffe
    TAG_SOURCE = MAX_LINKS       # that of a source which is not the peer,
    TAG_BELL = 2 * MAX_LINKS     # or the peer's bell
    WAIT_EVENTS = 64
    SETTLE_POLLS = 8             # for frames that a peer holds when its link is removed
    MAX_POLLS = 8                # time between two epoll calls, or one round of all links
    NOT_WATCHED = 0xffffffff     # link.interest of a descriptor that is not in epoll's set
    FREE_EVENTS = 4              # spurious events without a delay
    DELAY_MIN = 1000 * 1000      # ns: back-off of a port that fires without work (XSA-332) ...
    DELAY_DOUBLINGS = 4          # ... and how many times it doubles

    NO_PORT = 0                  # of a direction without a ring (xen/event_channel.h: never a valid port)

    TIMER_RING_TO_PEER = 0       # purpose of a link's timer_t
    TIMER_PEER_TO_RING = 1
    TIMER_UNMASK_RING_TO_PEER = 2
    TIMER_UNMASK_PEER_TO_RING = 3
    TIMER_DUE = 4
    LINK_TIMERS = 5


# --- what a link waits for

cdef inline void activate(worker_t *worker, link_t *link) noexcept nogil:
    if not link.runnable and not link.broken:
        link.runnable = True
        worker.runnable[worker.runnable_count] = link.index
        worker.runnable_count += 1


cdef inline void raise_events(worker_t *worker, link_t *link, uint32_t events) noexcept nogil:
    """The events of both directions: each is polled at those that its state names."""
    link.ring_to_peer.events |= events
    link.peer_to_ring.events |= events
    activate(worker, link)


cdef void watch(worker_t *worker, peer_t *peer, uint64_t tag, uint32_t *interest, uint32_t wanted) noexcept nogil:
    """Make epoll watch a peer's descriptor for these events and for errors; NOT_WATCHED: not even for errors."""
    cdef epoll_event event
    if peer.fd < 0 or wanted == interest[0]:
        return
    event.events = wanted
    event.data.u64 = tag
    if wanted == NOT_WATCHED:
        epoll_ctl(worker.epoll, EPOLL_CTL_DEL, peer.fd, &event)
    else:
        epoll_ctl(worker.epoll, EPOLL_CTL_ADD if interest[0] == NOT_WATCHED else EPOLL_CTL_MOD, peer.fd, &event)
    interest[0] = wanted


cdef inline void watch_peer(worker_t *worker, link_t *link, uint32_t wanted) noexcept nogil:
    """A broken or closed descriptor is always ready, so it is watched only while it has data to read."""
    if link.broken or (link.peer.condition == PEER_CLOSED and not wanted & EPOLLIN):
        wanted = NOT_WATCHED
    watch(worker, link.peer, link.index, &link.interest, wanted)


cdef inline void watch_source(worker_t *worker, link_t *link, uint32_t wanted) noexcept nogil:
    """The same for a source that is not the peer."""
    if link.broken or (link.source.condition == PEER_CLOSED and not wanted):
        wanted = NOT_WATCHED
    watch(worker, link.source, link.index | TAG_SOURCE, &link.source_interest, wanted)


cdef void watch_bell(worker_t *worker, link_t *link, int bell) noexcept nogil:
    """Watch this bell of the peer, 0 for none. It is never read: only a new event counts."""
    cdef epoll_event event
    event.events = EPOLLIN | EPOLLET
    event.data.u64 = link.index | TAG_BELL
    if link.bell:
        epoll_ctl(worker.epoll, EPOLL_CTL_DEL, link.bell, &event)
    if bell:
        epoll_ctl(worker.epoll, EPOLL_CTL_ADD, bell, &event)
    link.bell = bell


cdef inline void watch_for_states(worker_t *worker, link_t *link) noexcept nogil:
    """Watch what the rows of both states name."""
    cdef uint32_t events = worker.rows[link.ring_to_peer.state].watch | worker.rows[link.peer_to_ring.state].watch
    cdef uint32_t room = EPOLLOUT if link.peer.wake == NULL else EPOLLIN
    cdef uint32_t frames = EPOLLIN if events & EVENT_FRAMES else 0
    if link.source != link.peer:
        watch_source(worker, link, frames)
        frames = 0
    if link.peer.bell != link.bell:
        watch_bell(worker, link, link.peer.bell)
    if link.peer.by_bell & BELL_FRAMES:
        frames = 0
    if link.peer.by_bell & BELL_ROOM:
        room = 0
    watch_peer(worker, link, frames | (room if events & EVENT_ROOM or link.peer.unsent else 0))
    if link.peer.due and (not link.due.place or link.peer.due < link.due.deadline):
        timers_set(&worker.timers, &link.due, link.peer.due)


cdef void watch_nothing(worker_t *worker, link_t *link) noexcept nogil:
    watch(worker, link.peer, link.index, &link.interest, NOT_WATCHED)
    watch_bell(worker, link, 0)
    if link.source != link.peer:
        watch(worker, link.source, link.index | TAG_SOURCE, &link.source_interest, NOT_WATCHED)


cdef inline uint64_t timer_period(worker_t *worker, direction_t *direction) noexcept nogil:
    """ns that the timer of a direction's state runs; 0: none."""
    cdef row_t *row = &worker.rows[direction.state]
    cdef uint64_t now
    if not row.early or not direction.due:
        return row.timer
    now = now_ns()
    return min(row.timer, direction.due - now) if direction.due > now else 1


cdef inline void set_timer(worker_t *worker, direction_t *direction) noexcept nogil:
    """Set the timer of a direction's state, unless one that ends early enough is set. Leaving the state does not cancel
    it; on_timer then checks the state. So a state that is entered and left at a high rate costs no timer.
    """
    cdef uint64_t period = timer_period(worker, direction)
    if period == 0 or (direction.timer.place and direction.period <= period):
        return
    direction.period = period
    direction.progress_then = direction.progress
    timers_set(&worker.timers, &direction.timer, now_ns() + period)


cdef inline void note_condition(worker_t *worker, link_t *link) noexcept nogil:
    """Report the condition to Python if it differs from the last reported one."""
    if link.noticed or link_condition(link) == link.reported:
        return
    link.noticed = True
    worker.notices[worker.notice_count] = link.index
    worker.notice_count += 1
    worker.stop = True


# --- events

cdef inline bint shares_port(link_t *link) noexcept nogil:
    return link.ring_to_peer.port == link.peer_to_ring.port


cdef inline bint has_published(direction_t *direction) noexcept nogil:
    """Whether the far side's index has moved since this function last saw it."""
    cdef uint32_t before = direction.producer_seen
    direction.producer_seen = load_acquire(direction.producer)
    return direction.producer_seen != before


cdef void on_event(worker_t *worker, link_t *link, direction_t *direction) noexcept nogil:
    """The port of `direction` fired; it is the first direction of a shared port. Back-off applies only to spurious
    events: those before which no index moved in a ring that the port stands for.
    """
    cdef bint published = has_published(direction)
    cdef uint32_t doublings
    if shares_port(link):
        published |= has_published(&link.peer_to_ring)
        link.peer_to_ring.events |= EVENT_RING
    direction.events |= EVENT_RING
    link.counters[COUNT_EVENTS] += 1
    link.counters[EVENTS_EMPTY] += not published
    direction.spurious_events = 0 if published else direction.spurious_events + 1
    if direction.spurious_events > FREE_EVENTS and not direction.unmask.place:
        doublings = min(direction.spurious_events - FREE_EVENTS - 1, <uint32_t>DELAY_DOUBLINGS)
        timers_set(&worker.timers, &direction.unmask, now_ns() + (<uint64_t>DELAY_MIN << doublings))
    activate(worker, link)


cdef void on_peer(worker_t *worker, link_t *link, peer_t *peer, uint32_t happened) noexcept nogil:
    """The descriptor of the link's peer or source is ready, or reports an error, which the directions then find
    themselves.
    """
    cdef uint32_t events = (EVENT_FRAMES if happened & EPOLLIN else 0) | (EVENT_ROOM if happened & EPOLLOUT else 0)
    if happened & EPOLLIN and peer.wake != NULL:
        peer.wake(peer)
        events = EVENT_FRAMES | EVENT_ROOM
    if happened & (EPOLLERR | EPOLLHUP):
        if happened & EPOLLERR and peer.check != NULL:
            peer.check(peer)
        if happened & EPOLLHUP:
            peer.condition = PEER_CLOSED
        events = EVENT_FRAMES | EVENT_ROOM
    raise_events(worker, link, events)


cdef inline void on_descriptor(worker_t *worker, uint64_t tag, uint32_t happened) noexcept nogil:
    cdef link_t *link = worker.links[tag % TAG_SOURCE]
    if link != NULL and tag & TAG_BELL:
        raise_events(worker, link, EVENT_FRAMES | EVENT_ROOM)
    elif link != NULL:
        on_peer(worker, link, link.source if tag & TAG_SOURCE else link.peer, happened)


cdef void on_timer(worker_t *worker, link_t *link, direction_t *direction) noexcept nogil:
    """A direction's timer ended: an event if its state waits for one. A state that may expire does so if nothing moved
    since the timer was set; otherwise its time starts again.
    """
    cdef row_t *row = &worker.rows[direction.state]
    if row.timer == 0:
        return
    if row.expires >= 0 and direction.progress != direction.progress_then:
        set_timer(worker, direction)
        return
    if row.expires >= 0:
        direction.state = row.expires
    direction.events |= EVENT_TIMER
    activate(worker, link)


cdef void run_timers(worker_t *worker, uint64_t now) noexcept nogil:
    cdef timer_t *timer = timers_pop(&worker.timers, now)
    cdef link_t *link
    while timer != NULL:
        link = <link_t *>timer.owner
        if timer.kind == TIMER_RING_TO_PEER:
            on_timer(worker, link, &link.ring_to_peer)
        elif timer.kind == TIMER_PEER_TO_RING:
            on_timer(worker, link, &link.peer_to_ring)
        elif timer.kind == TIMER_UNMASK_RING_TO_PEER:
            events_unmask(worker.events, &link.ring_to_peer.port, 1)
        elif timer.kind == TIMER_DUE:
            if link.peer.tick != NULL:
                link.peer.tick(link.peer)
            raise_events(worker, link, EVENT_FRAMES | EVENT_ROOM)
        else:
            events_unmask(worker.events, &link.peer_to_ring.port, 1)
        timer = timers_pop(&worker.timers, now)


cdef inline direction_t *port_direction(worker_t *worker, uint32_t port, link_t **link) noexcept nogil:
    """The direction whose port this is, the first one of a shared port, and its link; NULL if no link has the port."""
    cdef uint32_t known = worker.by_port[port % PORTS_END]
    if not known:
        return NULL
    link[0] = worker.links[known // 2 - 1]
    return &link[0].peer_to_ring if known & 1 else &link[0].ring_to_peer


cdef int take_ports(worker_t *worker, uint32_t *ports) noexcept nogil:
    """Handle the ports that fired: each is masked now, and its link becomes runnable."""
    cdef int i, count = events_take(worker.events, ports)
    cdef direction_t *direction
    cdef link_t *link
    for i in range(count):
        direction = port_direction(worker, ports[i], &link)
        if direction != NULL:
            on_event(worker, link, direction)
    return count


cdef void unmask_ports(worker_t *worker, uint32_t *ports, int count) noexcept nogil:
    """Unmask them, except ports in back-off."""
    cdef int i, kept = 0
    cdef direction_t *direction
    cdef link_t *link
    for i in range(count):
        direction = port_direction(worker, ports[i], &link)
        if direction == NULL or not direction.unmask.place:
            ports[kept] = ports[i]
            kept += 1
    if kept:
        events_unmask(worker.events, ports, kept)


# --- polls

cdef inline bint is_due(worker_t *worker, direction_t *direction) noexcept nogil:
    return (worker.rows[direction.state].polled & (direction.events | EVENT_POLL)) != 0


cdef inline void poll_direction(worker_t *worker, workspace_t *ws, link_t *link, direction_t *direction) noexcept nogil:
    if is_due(worker, direction):
        direction.state = direction.poll(link, ws)
        if direction.allowance.waiting and direction.state != STATE_NO_CREDIT:
            credit_leave(&direction.allowance)       # it waits for something else: others need not wait behind it
        set_timer(worker, direction)
    direction.events = 0


cdef inline void notify(link_t *link) noexcept nogil:
    """Notify the far side, once for both rings if they share a port."""
    cdef direction_t *first = &link.ring_to_peer
    cdef direction_t *second = &link.peer_to_ring
    if first.port == second.port:
        first.notify |= second.notify
        second.notify = False
    if first.notify:
        events_notify(link.events, first.port)
    if second.notify:
        events_notify(link.events, second.port)
    first.notify = second.notify = False


cdef bint poll_link(worker_t *worker, workspace_t *ws, link_t *link) noexcept nogil:
    """Serve one burst in each direction that is due, with at most one notify for both. True: another poll follows at
    once.
    """
    ws.captured_at = 0
    poll_direction(worker, ws, link, &link.ring_to_peer)
    if not link.broken:
        poll_direction(worker, ws, link, &link.peer_to_ring)
    notify(link)
    if link.broken:
        link.ring_to_peer.state = link.peer_to_ring.state = STATE_BROKEN
    elif link.ring_to_peer.state == STATE_PEER_FULL and link.peer.condition == PEER_CLOSED:
        # no room will come: drop further frames, as on a cable without a carrier
        link.ring_to_peer.state = STATE_RING_MORE
    watch_for_states(worker, link)
    note_condition(worker, link)
    return worker.rows[link.ring_to_peer.state].again or worker.rows[link.peer_to_ring.state].again


cdef void settle(worker_t *worker, workspace_t *ws, link_t *link) noexcept nogil:
    """Leave nothing running beside a link that is not served any more, or joined to another peer."""
    cdef int polls = 0
    if link.peer.settle == NULL:
        return
    while link.peer.settle(link.peer, False) and not link.broken and polls < SETTLE_POLLS:
        raise_events(worker, link, EVENT_FRAMES)
        poll_link(worker, ws, link)
        polls += 1
    link.peer.settle(link.peer, True)


cdef void poll_round(worker_t *worker, workspace_t *ws) noexcept nogil:
    """Poll every runnable link, round after round: a busy one cannot starve its neighbours."""
    cdef uint32_t i, kept
    cdef link_t *link
    cdef uint32_t done = 0
    while True:
        done += worker.runnable_count
        kept = 0
        for i in range(worker.runnable_count):
            link = worker.links[worker.runnable[i]]
            link.poll_follows = is_due(worker, &link.peer_to_ring)
            link.runnable = poll_link(worker, ws, link)
            if link.runnable:
                worker.runnable[kept] = link.index
                kept += 1
        worker.runnable_count = kept
        if kept == 0 or worker.stop or done >= MAX_POLLS:
            return


cdef inline int poll_timeout_ms(worker_t *worker) noexcept nogil:
    """How long epoll may sleep: until the next deadline, rounded up."""
    cdef uint64_t now, deadline
    if worker.runnable_count:
        return 0
    deadline = timers_next(&worker.timers)
    if deadline == 0:
        return -1
    now = now_near(deadline)
    return <int>((deadline - now + 999999) // 1000000) if deadline > now else 0


cdef void serve(worker_t *worker, workspace_t *ws) noexcept nogil:
    """Serve until Python requests the thread, a link's condition changes, or there are records to read."""
    cdef epoll_event happened[WAIT_EVENTS]
    cdef uint32_t ports[TAKE_PORTS]
    cdef uint64_t drained
    cdef int i, count, fired = 0
    while not worker.stop:
        count = epoll_wait(worker.epoll, happened, WAIT_EVENTS, poll_timeout_ms(worker))
        worker.wakes += 1
        for i in range(count):
            if happened[i].data.u64 == TAG_EVENTS:
                fired = take_ports(worker, ports)
            elif happened[i].data.u64 == TAG_WAKEUP:
                read(worker.wakeup, &drained, sizeof(drained))
                worker.stop = True
            else:
                on_descriptor(worker, happened[i].data.u64, happened[i].events)
        if timers_next(&worker.timers):
            run_timers(worker, now_near(timers_next(&worker.timers)))
        poll_round(worker, ws)
        unmask_ports(worker, ports, fired)
        fired = 0
        if ws.records_used:
            return


cdef class Worker:
    """Serves links in the thread that calls `run`; every other method except `wake` is for that thread too.

    Up to 4096 links. `events` is the handle on which their ports are bound, `arena` the memory of bursts: a new one if
    None.
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
        timers_init(&self.worker.timers, LINK_TIMERS * MAX_LINKS)
        self.worker.events = events.events
        self.worker.rows = state_rows()
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
            timers_free(&self.worker.timers)
            free(self.worker)
        workspace_free(self.ws)

    def add(self, Link link) -> None:
        """Serve a link: its first poll drains and arms both rings, and its far side is notified once, since a killed
        predecessor's pending notification would be lost. A link without rings has port 0 for both directions.
        PlatformError: 4096 links are served already.
        """
        cdef link_t *native = link.link
        cdef uint32_t index = 0
        while index < MAX_LINKS and self.worker.links[index] != NULL:
            index += 1
        if index == MAX_LINKS:
            raise PlatformError(f"a worker serves {MAX_LINKS} queues at most")
        native.index = index
        native.interest = native.source_interest = NOT_WATCHED
        native.bell = 0
        native.ring_to_peer.state = STATE_RING_MORE
        native.peer_to_ring.state = STATE_PEER_MORE
        native.ring_to_peer.timer.owner = native.peer_to_ring.timer.owner = native
        native.ring_to_peer.unmask.owner = native.peer_to_ring.unmask.owner = native
        native.ring_to_peer.timer.kind = TIMER_RING_TO_PEER
        native.peer_to_ring.timer.kind = TIMER_PEER_TO_RING
        native.ring_to_peer.unmask.kind = TIMER_UNMASK_RING_TO_PEER
        native.peer_to_ring.unmask.kind = TIMER_UNMASK_PEER_TO_RING
        native.due.owner = native
        native.due.kind = TIMER_DUE
        native.peer.condition = native.source.condition = PEER_UP
        native.reported = LINK_READY
        native.noticed = False
        self.members[index] = link
        self.worker.links[index] = native
        self.worker.by_port[native.peer_to_ring.port % PORTS_END] = 2 * (index + 1) + 1
        self.worker.by_port[native.ring_to_peer.port % PORTS_END] = 2 * (index + 1)
        activate(self.worker, native)
        for port in {native.ring_to_peer.port, native.peer_to_ring.port} - {NO_PORT}:
            events_notify(self.worker.events, port)
            self.events.unmask(port)

    def remove(self, Link link) -> None:
        """Stop serving a link, after what its peer holds was delivered; one that is not served is a normal state."""
        if not self.serves(link):
            return
        with nogil:
            settle(self.worker, self.ws, link.link)
        watch_nothing(self.worker, link.link)
        self.forget(link.link)
        del self.members[link.link.index]

    cdef bint serves(self, Link link) noexcept:
        return self.members.get(link.link.index) is link

    cdef void forget(self, link_t *link) noexcept:
        """Remove a link from all of the worker's tables, and from the line for credit."""
        credit_leave(&link.ring_to_peer.allowance)
        credit_leave(&link.peer_to_ring.allowance)
        timers_cancel(&self.worker.timers, &link.ring_to_peer.timer)
        timers_cancel(&self.worker.timers, &link.peer_to_ring.timer)
        timers_cancel(&self.worker.timers, &link.ring_to_peer.unmask)
        timers_cancel(&self.worker.timers, &link.peer_to_ring.unmask)
        timers_cancel(&self.worker.timers, &link.due)
        self.worker.runnable_count = without(self.worker.runnable, self.worker.runnable_count, link.index)
        self.worker.notice_count = without(self.worker.notices, self.worker.notice_count, link.index)
        self.worker.by_port[link.ring_to_peer.port % PORTS_END] = 0
        self.worker.by_port[link.peer_to_ring.port % PORTS_END] = 0
        self.worker.links[link.index] = NULL
        link.runnable = link.noticed = False

    def refresh(self, Link link) -> None:
        """Poll both directions and try the peer again, whatever its last known condition; no effect if the link is not
        served. For callers that changed the link, or joined its peer's descriptor to another network, or put another
        file in its place, which epoll does not know.
        """
        if not self.serves(link):
            return
        watch_nothing(self.worker, link.link)
        link.link.peer.condition = link.link.source.condition = PEER_UP
        if link.link.peer_to_ring.state == STATE_PEER_CLOSED:
            link.link.peer_to_ring.state = STATE_PEER_MORE
        raise_events(self.worker, link.link, EVENT_RING | EVENT_FRAMES | EVENT_ROOM)

    def refuse_rx(self, Link link) -> None:
        """Send the guest no more frames (its vif is Closing) but serve its TX, until the link is added again."""
        if not self.serves(link) or link.link.broken:
            return
        credit_leave(&link.link.peer_to_ring.allowance)
        link.link.peer_to_ring.state = STATE_REFUSED
        watch_for_states(self.worker, link.link)

    def limit(self, Link link, Credit tx, Credit rx) -> None:
        """Give each direction of a backend's queue this credit, None for no limit; it is polled if it waits for credit.

        The queues of a vif share one credit for each direction, on whatever workers they are.
        """
        credit_leave(&link.link.ring_to_peer.allowance)
        credit_leave(&link.link.peer_to_ring.allowance)
        link.link.ring_to_peer.allowance.credit = &tx.credit if tx is not None else NULL
        link.link.peer_to_ring.allowance.credit = &rx.credit if rx is not None else NULL
        link.credits = (tx, rx)
        if self.serves(link):
            raise_events(self.worker, link.link, EVENT_TIMER)

    def set_peer(self, Link link, Peer peer, Peer source: Peer | None = None) -> None:
        """Join a link to another peer between two bursts, and to another source of frames for its ring if that is not
        the peer; rings and frames that wait for slots stay unchanged.

        The old descriptors are no longer watched, and may be closed.
        """
        if self.serves(link):
            with nogil:
                settle(self.worker, self.ws, link.link)
            watch_nothing(self.worker, link.link)
        link.join(peer, source if source is not None else peer)
        self.refresh(link)

    def run(self) -> list[tuple[Link, Notice]]:
        """Serve until `wake` is called, a link's condition changes or records are pending; returns the conditions that
        changed since the last call.
        """
        cdef uint32_t i
        cdef Link link
        cdef int condition
        self.worker.stop = False
        with nogil:
            serve(self.worker, self.ws)
        changed = []
        for i in range(self.worker.notice_count):
            link = self.members[self.worker.notices[i]]
            link.link.noticed = False
            condition = link_condition(link.link)
            if condition != link.link.reported:
                link.link.reported = condition
                changed.append((link, Notice(condition)))
        self.worker.notice_count = 0
        return changed

    def wake(self) -> None:
        """Make `run` return; callable from any thread."""
        cdef uint64_t one = 1
        write(self.worker.wakeup, &one, sizeof(one))

    def step(self, Link link) -> bool:
        """Poll a link once, as if its event channel had fired and its peer had frames; returns whether another poll
        follows at once. For tests and benchmarks that drive links themselves.
        """
        link.link.ring_to_peer.events |= EVENT_RING | EVENT_FRAMES
        link.link.peer_to_ring.events |= EVENT_RING | EVENT_FRAMES
        link.link.poll_follows = False
        cdef bint more
        with nogil:
            more = poll_link(self.worker, self.ws, link.link)
        return more

    def apply(self, Link link, int event, *, bint hang_up=False) -> bool:
        """Raise one event (states.Event), or the peer's hang-up, of a served link as the worker does, and poll the link
        if that makes it runnable; returns whether another poll follows at once. TIMER ends the timers of both
        directions. For tests.
        """
        cdef link_t *native = link.link
        cdef bint more = False
        self.idle(native)
        if hang_up:
            on_peer(self.worker, native, native.peer, EPOLLHUP)
        elif event == EVENT_RING:
            on_event(self.worker, native, &native.ring_to_peer)
            if not shares_port(native):
                on_event(self.worker, native, &native.peer_to_ring)
        elif event == EVENT_FRAMES or event == EVENT_ROOM:
            on_peer(self.worker, native, native.peer, EPOLLIN if event == EVENT_FRAMES else EPOLLOUT)
        elif event == EVENT_TIMER:
            self.end_timer(native, &native.ring_to_peer)
            self.end_timer(native, &native.peer_to_ring)
        if native.runnable or event == EVENT_POLL:
            native.poll_follows = is_due(self.worker, &native.peer_to_ring)
            with nogil:
                more = poll_link(self.worker, self.ws, native)
        self.idle(native)
        return more

    def end_timers(self) -> None:
        """End the timers that are due by the clock, which a test has fixed: the next poll of their links has the event.
        """
        run_timers(self.worker, now_ns())

    cdef void idle(self, link_t *link) noexcept:
        self.worker.runnable_count = without(self.worker.runnable, self.worker.runnable_count, link.index)
        link.runnable = False

    cdef void end_timer(self, link_t *link, direction_t *direction) noexcept:
        if direction.timer.place:
            timers_cancel(&self.worker.timers, &direction.timer)
            on_timer(self.worker, link, direction)

    def waits(self, Link link) -> tuple[set[str], set[str]]:
        """What a served link waits for beside its event channels: events of its peer's descriptor (`frames`, `room`,
        and `error` unless it is not watched at all; `inbox` for the frames of a source that is not the peer), and
        timers (`ring_to_peer`, `peer_to_ring`, and `unmask_` with either, of a port in back-off; a shared port's is
        the first). For tests.
        """
        watched = set()
        if link.link.peer.fd >= 0 and link.link.interest != NOT_WATCHED:
            watched |= {"error"}
            watched |= {"frames"} if link.link.interest & EPOLLIN else set()
            watched |= {"room"} if link.link.interest & EPOLLOUT else set()
        if link.link.source != link.link.peer and link.link.source_interest == EPOLLIN:
            watched |= {"inbox"}
        timers = {
            "ring_to_peer": link.link.ring_to_peer.timer.place,
            "peer_to_ring": link.link.peer_to_ring.timer.place,
            "unmask_ring_to_peer": link.link.ring_to_peer.unmask.place,
            "unmask_peer_to_ring": link.link.peer_to_ring.unmask.place,
        }
        return watched, {name for name, place in timers.items() if place}

    @property
    def wakes(self) -> int:
        """How often the thread woke; the count of an idle worker does not change."""
        return self.worker.wakes

    def records(self) -> tuple[bytes, int]:
        """The records of traced links since the last call, in order of time, and the number of lost ones.

        The bytes are record_t structures (`dataplane/records.py` parses them). A record is lost if RECORD_BYTES are
        full: the caller was too slow.
        """
        data = (<char *>self.ws.records)[:self.ws.records_used]
        lost = self.ws.records_lost
        self.ws.records_used = 0
        self.ws.records_lost = 0
        return data, lost


cdef uint32_t without(uint32_t *list, uint32_t count, uint32_t index) noexcept:
    """Remove an index from a list, keeping the order; returns how many are left."""
    cdef uint32_t i, kept = 0
    for i in range(count):
        if list[i] != index:
            list[kept] = list[i]
            kept += 1
    return kept
