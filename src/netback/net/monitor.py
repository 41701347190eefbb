# SPDX-License-Identifier: Apache-2.0
"""Calls the followers of a link when it changes: one rtnetlink socket for the whole backend, read by its event loop.

The monitor finds the link that a message is about. The network looks up what changed (`Network.check`), so a lost
message costs only one check of each network.
"""

import asyncio
import errno
import logging
import socket
from collections.abc import Callable, Iterable
from typing import Final

from netback.net.rtnetlink import GROUP_LINK, RECEIVE, Link, Message, messages

log = logging.getLogger("netback.net")

READS = 64
"""Maximum datagrams per wake-up: a storm of changes must not block the loop."""

Key = int | str
"""A link's index, or one of its names."""
ANY_LINK: Final = ""
"""The key of every link."""


class LinkMonitor:
    """Calls each follower whose link was made, changed, renamed, moved or removed in this network namespace.

    Must be created in a running event loop, in the namespace of its links. Without rtnetlink `works` is False and no
    follower is ever called.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._keys: dict[Callable[[], object], frozenset[Key]] = {}
        self._followers: dict[Key, set[Callable[[], object]]] = {}
        self._socket = self._open()
        if self._socket is not None:
            self._loop.add_reader(self._socket, self._read)

    @staticmethod
    def _open() -> socket.socket | None:
        try:
            sock = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
            )
        except OSError as error:
            log.warning("no rtnetlink (%s): links are polled instead", error.strerror)
            return None
        sock.bind((0, GROUP_LINK))
        return sock

    @property
    def works(self) -> bool:
        """Whether followers are called."""
        return self._socket is not None

    def follow(self, call: Callable[[], object], keys: Iterable[Key]) -> None:
        """Call `call` after every change of a link with one of these indices or names. This replaces its earlier keys.

        Without keys it is no longer called.
        """
        wanted = frozenset(keys)
        earlier = self._keys.pop(call, frozenset())
        for key in earlier - wanted:
            self._followers[key].discard(call)
            if not self._followers[key]:
                del self._followers[key]
        for key in wanted - earlier:
            self._followers.setdefault(key, set()).add(call)
        if wanted:
            self._keys[call] = wanted

    def close(self) -> None:
        """Stop following. May be called again."""
        if self._socket is not None:
            self._loop.remove_reader(self._socket)
            self._socket.close()
            self._socket = None
        self._keys.clear()
        self._followers.clear()

    def _read(self) -> None:
        calls: set[Callable[[], object]] = set()
        for _ in range(READS):
            assert self._socket is not None
            try:
                data, sender = self._socket.recvfrom(RECEIVE)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                calls.update(self._keys)  # messages were lost: every follower checks
                continue
            if sender[0] == 0:  # the message comes from the kernel
                calls.update(*map(self._concerned, messages(data)))
        for call in calls:
            call()

    def _concerned(self, message: tuple[int, bytes]) -> set[Callable[[], object]]:
        kind, body = message
        if kind not in (Message.NEWLINK, Message.DELLINK):
            return set()
        link = Link.parse(body)
        keys: tuple[Key, ...] = (ANY_LINK, link.index, *link.names)
        return {call for key in keys for call in self._followers.get(key, ())}
