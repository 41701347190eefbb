# SPDX-License-Identifier: Apache-2.0
"""Wakes each device when its frontend's state, or a key that a connected frontend may change, may have changed.

xenstored gives an unprivileged domain 128 watches, so there all devices share one on /local/domain: it fires only for
nodes that this domain may read, which are its own and those of its devices' frontends. Domain 0 may read everything and
has no such quota: there the shared watch would wake netback for every write of every guest, so each device has its own.
"""

import asyncio
from collections.abc import Callable, Iterator
from functools import partial

from netback.vif.features import LIVE
from netback.xenstore.aio import Store, Watch

ROOT = "/local/domain"
_NODES = ("state", *LIVE)
"""The nodes of a frontend's directory that wake its device."""

Wake = Callable[[], object]


class Frontends:
    """The watches on the frontends of all devices."""

    def __init__(self, store: Store, *, shared: bool) -> None:
        self._store = store
        self._shared = shared
        self._watch: Watch | None = None
        self._setting = asyncio.Lock()
        self._wakes: dict[str, set[Wake]] = {}

    async def follow(self, frontend: str, wake: Wake) -> Callable[[], None]:
        """Call `wake` at once and after each change of the frontend's nodes; the returned call ends that.

        `frontend` is the frontend's directory. StoreError: it is no path, or this domain has no watch left.
        """
        if not (self._shared and frontend.startswith(f"{ROOT}/")):
            paths = {frontend, *_paths(frontend)}
            watch = await self._store.watch(frontend, lambda path: path in paths and wake())
            return watch.drop
        async with self._setting:
            if self._watch is None:
                self._watch = await self._store.watch(ROOT, self._fired)
        for path in (*_paths(frontend), *_up(frontend)):
            self._wakes.setdefault(path, set()).add(wake)
        wake()
        return partial(self._forget, frontend, wake)

    def _forget(self, frontend: str, wake: Wake) -> None:
        for path in (*_paths(frontend), *_up(frontend)):
            wakes = self._wakes.get(path, set())
            wakes.discard(wake)
            if not wakes:
                self._wakes.pop(path, None)

    def _fired(self, path: str) -> None:
        """Wake on a node or on the removal of a directory above it. The root's own event carries no news."""
        for wake in tuple(self._wakes.get(path, ())):
            wake()


def _paths(frontend: str) -> Iterator[str]:
    return (f"{frontend}/{node}" for node in _NODES)


def _up(path: str) -> Iterator[str]:
    """The path and the directories above it, below ROOT."""
    while path != ROOT:
        yield path
        path = path.rpartition("/")[0]
