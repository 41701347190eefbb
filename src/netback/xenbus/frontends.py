# SPDX-License-Identifier: Apache-2.0
"""Wakes each device when its frontend's state may have changed.

xenstored gives an unprivileged domain 128 watches, so there all devices share one on /local/domain: it fires only for
nodes that this domain may read, which are its own and those of its devices' frontends. Domain 0 may read everything and
has no such quota: there the shared watch would wake netback for every write of every guest, so each device has its own.
"""

import asyncio
from collections.abc import Callable, Iterator
from functools import partial

from netback.xenstore.aio import Store, Watch

ROOT = "/local/domain"

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
        """Call `wake` at once and after each change of the frontend's state; the returned call ends that.

        `frontend` is the frontend's directory. StoreError: it is no path, or this domain has no watch left.
        """
        path = f"{frontend}/state"
        if not (self._shared and path.startswith(f"{ROOT}/")):
            watch = await self._store.watch(path, lambda _: wake())
            return watch.drop
        async with self._setting:
            if self._watch is None:
                self._watch = await self._store.watch(ROOT, self._fired)
        for above in _up(path):
            self._wakes.setdefault(above, set()).add(wake)
        wake()
        return partial(self._forget, path, wake)

    def _forget(self, path: str, wake: Wake) -> None:
        for above in _up(path):
            wakes = self._wakes.get(above, set())
            wakes.discard(wake)
            if not wakes:
                self._wakes.pop(above, None)

    def _fired(self, path: str) -> None:
        """Wake on the state node or on the removal of a directory above it. The root's own event carries no
        news.
        """
        for wake in tuple(self._wakes.get(path, ())):
            wake()


def _up(path: str) -> Iterator[str]:
    """The path and the directories above it, below ROOT."""
    while path != ROOT:
        yield path
        path = path.rpartition("/")[0]
