# SPDX-License-Identifier: Apache-2.0
"""The emulated hypervisor's core: domains, handles, event channels, grants, and the effect of each request.

The core passes descriptors on but uses neither sockets nor the store: the server calls `join`, `request` and `leave`,
and is called when a domain begins or ends. docs/emulated-xen.md describes the requests.
"""

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from netback.abi.grant_table import GrantFlag, GrantStatus
from netback.abi.xen import DOMID_FIRST_RESERVED
from netback.errors import PlatformError
from netback.platforms.emulated.memory import EventPage, GrantRefused, GrantTable, Mapping, sealed_pages
from netback.platforms.emulated.protocol import (
    DOMID_ANY,
    MAP_READONLY,
    MAX_PORTS,
    MAX_TOTAL_PAGES,
    PAGE_SIZE,
    Hello,
    HelloFlag,
    Op,
    PortState,
    Reply,
    Request,
)

MAX_MAPS = 65536
"""Maximum mappings of a handle; Xen limits those of a domain."""

Answer = tuple[Reply, tuple[int, ...]]
"""A reply and the descriptors to send with it, which stay owned by the hypervisor."""


class Memory:
    """The memfd of a handle. The hypervisor maps the pages that it writes: grant table and event page."""

    def __init__(self, fd: int, grant_pages: int) -> None:
        self.pages = sealed_pages(fd)
        self.grant_pages = grant_pages
        if self.pages <= grant_pages:
            raise PlatformError("the memory has no room for its event page", "EINVAL")
        try:
            self._mapping = Mapping(fd, 0, grant_pages + 1)
        except PlatformError as error:
            raise PlatformError(str(error), "EINVAL") from error
        self.fd = fd
        self.grants = GrantTable.of(self._mapping.words, grant_pages)
        self.events = EventPage(self._mapping.words, grant_pages * PAGE_SIZE)

    def unmap(self) -> None:
        """Undo the mapping; the memfd stays the sender's."""
        self._mapping.close()

    def close(self) -> None:
        """Close the memfd as well."""
        self.unmap()
        os.close(self.fd)


@dataclass(slots=True, eq=False)
class Port:
    """One end of an event channel.

    Unbound and waiting for `remote_domid`, or interdomain if it has a `far` end.
    """

    number: int
    handle: "Handle"
    remote_domid: int
    far: "Port | None" = None

    def mark_pending(self) -> None:
        self.handle.memory.events.set_pending(self.number)
        _ring(self.handle.eventfd)

    def changed(self) -> None:
        """Its far side has changed: a notifier must send PEER again."""
        self.handle.memory.events.bump()


@dataclass(slots=True, eq=False)
class Domain:
    """A domain: the state that its handles share."""

    domid: int
    owner: "Handle | None" = None
    ports: dict[int, Port] = field(default_factory=dict)
    handles: set["Handle"] = field(default_factory=set)
    pins: dict[int, list[int]] = field(default_factory=dict)
    """The number of read and write mappings, by gref."""


@dataclass(slots=True, eq=False)
class Map:
    """A grant that a handle has mapped."""

    domain: Domain
    gref: int
    readonly: bool


@dataclass(slots=True, eq=False)
class Handle:
    """One connection: an event page, an eventfd, and everything opened through it."""

    number: int
    domain: Domain
    memory: Memory
    eventfd: int
    ports: set[Port] = field(default_factory=set)
    maps: dict[int, Map] = field(default_factory=dict)
    last_map: int = 0
    gone: bool = False


class Hypervisor:
    """All domains. `began(domid, name)` and `ended(domid)` report them; domain 0 always exists."""

    def __init__(self, began: Callable[[int, str], None], ended: Callable[[int], None]) -> None:
        self.domains = {0: Domain(0)}
        self._began = began
        self._ended = ended
        self._used = {0}
        self._pages = 0
        self._last_handle = 0
        self._serve: dict[int, Callable[[Handle, Request], Answer]] = {
            Op.ALLOC_UNBOUND: self._alloc_unbound,
            Op.BIND_INTERDOMAIN: self._bind_interdomain,
            Op.PEER: self._peer,
            Op.CLOSE: self._close,
            Op.STATUS: self._status,
            Op.MEMORY: self._memory,
            Op.MAP: self._map,
            Op.UNMAP: self._unmap,
        }

    # ---- handles

    def join(self, hello: Hello, memfd: int) -> tuple[Handle, Reply]:
        """Create a handle, and its domain unless it attaches; returns the handle and the reply. Takes over the memfd.

        PlatformError: a field of the hello is out of bounds; the memfd then stays the caller's.
        """
        hello.check()
        attach = bool(hello.flags & HelloFlag.ATTACH)
        domid = self._existing(hello.domid).domid if attach else self._new_domid(hello.domid)
        memory = self._bounded(Memory(memfd, hello.grant_pages))
        handle = self._open(self.domains[domid] if attach else Domain(domid), memory)
        if not attach:
            self._begin(handle, hello.name.decode() or f"guest-{domid}")
        return handle, Reply(
            domid=domid, grant_pages=hello.grant_pages, page=hello.grant_pages, handle=handle.number
        )

    def leave(self, handle: Handle) -> set[Handle]:
        """Release the handle of a closed connection. Returns the other handles that end, if it owned the domain.

        May be called again.
        """
        if handle.gone:
            return set()
        if handle.domain.owner is handle:
            return self._end(handle.domain) - {handle}
        self._release(handle)
        return set()

    def request(self, handle: Handle, request: Request) -> Answer:
        """Serve one request; returns its reply and descriptors. PlatformError: refused."""
        serve = self._serve.get(request.op)
        if serve is None:
            raise PlatformError(f"no request {request.op}", "ENOSYS")
        return serve(handle, request)

    def _bounded(self, memory: Memory) -> Memory:
        """Map the memory. PlatformError ENOMEM: all handles together would have too many pages."""
        if self._pages + memory.pages > MAX_TOTAL_PAGES:
            memory.unmap()
            free = MAX_TOTAL_PAGES - self._pages
            raise PlatformError(
                f"a memory of {memory.pages} pages: {free} are left of {MAX_TOTAL_PAGES} for all domains",
                "ENOMEM",
            )
        return memory

    def _open(self, domain: Domain, memory: Memory) -> Handle:
        try:
            eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        except OSError:
            memory.unmap()
            raise
        self._last_handle += 1
        self._pages += memory.pages
        handle = Handle(self._last_handle, domain, memory, eventfd)
        domain.handles.add(handle)
        return handle

    def _begin(self, handle: Handle, name: str) -> None:
        domain = handle.domain
        domain.owner = handle
        self.domains[domain.domid] = domain
        self._used.add(domain.domid)
        self._began(domain.domid, name)

    def _end(self, domain: Domain) -> set[Handle]:
        """End a domain. Its grants are cleared first, so that no copy reaches it; @releaseDomain fires last."""
        del self.domains[domain.domid]
        _memory_of(domain).grants.wipe()
        handles = set(domain.handles)
        for handle in handles:
            self._release(handle)
        self._ended(domain.domid)
        return handles

    def _release(self, handle: Handle) -> None:
        handle.gone = True
        handle.domain.handles.discard(handle)
        for port in tuple(handle.ports):
            self._free(port)
        for number in tuple(handle.maps):
            self._unpin(handle.maps.pop(number))
        self._pages -= handle.memory.pages
        handle.memory.close()
        os.close(handle.eventfd)

    def _existing(self, domid: int) -> Domain:
        domain = self.domains.get(domid)
        if domain is None:
            raise PlatformError(f"no domain {domid}", "ESRCH")
        return domain

    def _new_domid(self, wanted: int) -> int:
        """A domid for a new domain. A used one is assigned again only if a hello asks for it."""
        if wanted == DOMID_ANY:
            wanted = next(domid for domid in range(1, DOMID_FIRST_RESERVED + 1) if domid not in self._used)
            if wanted == DOMID_FIRST_RESERVED:
                raise PlatformError("every domid was used", "ENOSPC")
        if wanted >= DOMID_FIRST_RESERVED:
            raise PlatformError(f"domid {wanted} is reserved", "EINVAL")
        if wanted in self.domains:
            raise PlatformError(f"domain {wanted} exists", "EEXIST")
        return wanted

    # ---- event channels

    def _alloc_unbound(self, handle: Handle, request: Request) -> Answer:
        if request.domid >= DOMID_FIRST_RESERVED:
            raise PlatformError(f"domid {request.domid} is reserved", "EINVAL")
        return Reply(number=self._new_port(handle, request.domid).number), ()

    def _bind_interdomain(self, handle: Handle, request: Request) -> Answer:
        far = self._existing(request.domid).ports.get(request.number)
        if far is None or far.far is not None or far.remote_domid != handle.domain.domid:
            where = f"port {request.number} of domain {request.domid}"
            raise PlatformError(f"{where} is not unbound for domain {handle.domain.domid}", "EINVAL")
        near = self._new_port(handle, request.domid)
        near.far, far.far = far, near
        # The order matters: an event sent through `far` before the bind then shows as the pending port here.
        far.changed()
        near.mark_pending()
        return Reply(number=near.number), ()

    def _peer(self, handle: Handle, request: Request) -> Answer:
        far = _own(handle, request.number).far
        if far is None:
            raise PlatformError(f"port {request.number} is unbound", "ENOTCONN")
        memory = far.handle.memory
        reply = Reply(
            domid=far.handle.domain.domid,
            number=far.number,
            page=memory.grant_pages,
            handle=far.handle.number,
        )
        return reply, (memory.fd, far.handle.eventfd)

    def _close(self, handle: Handle, request: Request) -> Answer:
        self._free(_own(handle, request.number))
        return Reply(), ()

    def _status(self, handle: Handle, request: Request) -> Answer:
        port = handle.domain.ports.get(request.number)
        if port is None:
            return Reply(status=PortState.CLOSED), ()
        if port.far is None:
            return Reply(status=PortState.UNBOUND, domid=port.remote_domid), ()
        return Reply(status=PortState.INTERDOMAIN, domid=port.remote_domid, number=port.far.number), ()

    def _new_port(self, handle: Handle, remote_domid: int) -> Port:
        ports = handle.domain.ports
        number = next((number for number in range(1, MAX_PORTS) if number not in ports), 0)
        if not number:
            raise PlatformError(f"domain {handle.domain.domid} has no port left", "ENOSPC")
        port = ports[number] = Port(number, handle, remote_domid)
        handle.ports.add(port)
        handle.memory.events.clear(number)
        return port

    def _free(self, port: Port) -> None:
        """Close one end: the other is unbound again, and the same domain may bind to it."""
        del port.handle.domain.ports[port.number]
        port.handle.ports.discard(port)
        if port.far is not None:
            port.far.far = None
            port.far.changed()

    # ---- grants

    def _memory(self, handle: Handle, request: Request) -> Answer:
        memory = _memory_of(self._existing(request.domid))
        return Reply(grant_pages=memory.grant_pages), (memory.fd,)

    def _map(self, handle: Handle, request: Request) -> Answer:
        if request.flags & ~MAP_READONLY:
            raise PlatformError(f"unknown flags {request.flags:#x}", "EINVAL")
        domain = self._existing(request.domid)
        memory = _memory_of(domain)
        if len(handle.maps) >= MAX_MAPS:
            raise GrantRefused(GrantStatus.NO_DEVICE_SPACE, f"this handle has {MAX_MAPS} grants mapped")
        wanted = Map(domain, request.number, request.flags == MAP_READONLY)
        frame = memory.grants.pin(wanted.gref, handle.domain.domid, wanted.readonly)
        self._count(wanted)
        if frame >= memory.pages:
            self._unpin(wanted)
            raise GrantRefused(GrantStatus.BAD_PAGE, f"gref {wanted.gref} names frame {frame}")
        handle.last_map = handle.last_map % 0xFFFFFFFF + 1
        handle.maps[handle.last_map] = wanted
        return Reply(number=handle.last_map, grant_pages=memory.grant_pages, page=frame), (memory.fd,)

    def _unmap(self, handle: Handle, request: Request) -> Answer:
        mapped = handle.maps.pop(request.number, None)
        if mapped is None:
            raise GrantRefused(GrantStatus.BAD_HANDLE, f"grant handle {request.number}")
        self._unpin(mapped)
        return Reply(), ()

    def _count(self, mapped: Map) -> None:
        mapped.domain.pins.setdefault(mapped.gref, [0, 0])[not mapped.readonly] += 1

    def _unpin(self, mapped: Map) -> None:
        """Undo a mapping. The entry's marks go with the last reader and the last writer."""
        domain = mapped.domain
        counts = domain.pins[mapped.gref]
        counts[not mapped.readonly] -= 1
        readers, writers = counts
        if not readers and not writers:
            del domain.pins[mapped.gref]
        if self.domains.get(domain.domid) is domain:
            done = (0 if writers else GrantFlag.WRITING) | (0 if readers or writers else GrantFlag.READING)
            _memory_of(domain).grants.unpin(mapped.gref, GrantFlag(done))


def _ring(eventfd: int) -> None:
    """Wake the process that waits for an eventfd. A process that shares it may have made it blocking: undo that."""
    os.set_blocking(eventfd, False)
    with suppress(BlockingIOError):  # a full counter is readable anyway
        os.eventfd_write(eventfd, 1)


def _own(handle: Handle, number: int) -> Port:
    port = handle.domain.ports.get(number)
    if port is None or port.handle is not handle:
        raise PlatformError(f"port {number} does not belong to this handle", "EINVAL")
    return port


def _memory_of(domain: Domain) -> Memory:
    if domain.owner is None:
        raise PlatformError(f"domain {domain.domid} has no memory here", "ESRCH")
    return domain.owner.memory


def refusal(error: PlatformError) -> Reply:
    """The reply that carries a refusal."""
    status = error.status if isinstance(error, GrantRefused) else 0
    return Reply(result=-getattr(errno, error.errno, errno.EIO), status=int(status))
