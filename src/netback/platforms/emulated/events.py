# SPDX-License-Identifier: Apache-2.0
"""Event channels of emulated Xen: the control calls of a handle. The operations of a burst are in its `native`."""

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from netback.dataplane.platform.emulated_events import EmulatedEvents
from netback.errors import PlatformError
from netback.platforms.emulated.client import Handle
from netback.platforms.emulated.memory import Mapping
from netback.platforms.emulated.protocol import Op, PortState, Reply


@dataclass(frozen=True, slots=True)
class _Remote:
    """The far side of a port: another handle's event page and eventfd."""

    handle: int
    page: Mapping
    eventfd: int

    def close(self) -> None:
        self.page.close()
        os.close(self.eventfd)


class EmulatedEventChannels:
    """Implements platforms.base.EventChannels on a handle; `close` calls `leave` for the handle."""

    def __init__(self, handle: Handle, leave: Callable[[], object]) -> None:
        self._handle = handle
        self._leave = leave
        self._lock = threading.Lock()
        self._remotes: dict[int, _Remote] = {}
        self.native = EmulatedEvents(handle.eventfd, handle.event_page, self._resolve)

    def bind_interdomain(self, domid: int, port: int) -> int:
        return self._opened(Op.BIND_INTERDOMAIN, domid, port)

    def alloc_unbound(self, domid: int) -> int:
        return self._opened(Op.ALLOC_UNBOUND, domid, 0)

    def status(self, port: int) -> PortState:
        """The state of a port of this domain."""
        return PortState(self._handle.request(Op.STATUS, number=port)[0].status)

    def unbind(self, port: int) -> None:
        self._handle.request(Op.CLOSE, number=port)
        self.native.forget(port)
        with self._lock:
            self._forget(port)

    def close(self) -> None:
        """Close every port. No thread may send events through this afterwards. May be called again."""
        self._leave()
        with self._lock:
            for port in tuple(self._remotes):
                self._forget(port)

    def _opened(self, op: Op, domid: int, number: int) -> int:
        port = self._handle.request(op, domid, number)[0].number
        self.native.forget(port)
        return port

    def _resolve(self, port: int) -> tuple[int, int, int] | None:
        """The far side of a port: address of its event page, eventfd, port; None if there is none.

        The native side calls this in the worker's thread when the generation has changed.
        """
        try:
            reply, fds = self._handle.request(Op.PEER, number=port)
            with self._lock:
                remote = self._learn(port, reply, *fds)
        except PlatformError:
            return None
        return remote.page.address, remote.eventfd, reply.number

    def _learn(self, port: int, reply: Reply, memfd: int, eventfd: int) -> _Remote:
        known = self._remotes.get(port)
        if known is not None and known.handle == reply.handle:
            os.close(memfd)
            os.close(eventfd)
            return known
        self._forget(port)
        try:
            page = Mapping(memfd, reply.page, 1)
        except PlatformError:
            os.close(eventfd)
            raise
        finally:
            os.close(memfd)
        remote = self._remotes[port] = _Remote(reply.handle, page, eventfd)
        return remote

    def _forget(self, port: int) -> None:
        remote = self._remotes.pop(port, None)
        if remote is not None:
            remote.close()


class AttachedHandles:
    """The additional handles of a domain that one object opened; they close with it."""

    def __init__(self, directory: Path, domid: int) -> None:
        self._directory = directory
        self._domid = domid
        self._ends: dict[Handle, Callable[[], None]] = {}

    def attach(self) -> Handle:
        """Register a handle for `close`."""
        handle = Handle.attach(self._directory, self._domid)
        self._ends[handle] = handle.close
        return handle

    def open_events(self) -> EmulatedEventChannels:
        """Event channels on a new handle, closed by `close` or before."""
        handle = self.attach()
        channels = EmulatedEventChannels(handle, lambda: self._leave(handle))
        self._ends[handle] = channels.close
        return channels

    def close(self) -> None:
        """Close all. May be called again."""
        for end in tuple(self._ends.values()):
            end()
        self._ends.clear()

    def _leave(self, handle: Handle) -> None:
        self._ends.pop(handle, None)
        handle.close()
