# SPDX-License-Identifier: Apache-2.0
"""Finds the watches that a changed path fires.

The search walks up from the changed path, so its cost is the depth of the path and the number of matching watches, not
the number of watches.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from netback.xenstore.paths import upward
from netback.xenstore.perms import Caller


@dataclass(frozen=True, slots=True, eq=False)
class Watch:
    """One registered watch."""

    number: int
    """Watches fire in the order in which they were registered, as in xenstored."""
    caller: Caller
    path: bytes
    token: bytes
    skip: int
    """Bytes of an event's path to omit: the caller's home and a slash, if WATCH named a relative path."""
    fire: Callable[["Watch", bytes], None]

    def payload(self, path: bytes) -> bytes:
        """The payload of a WATCH_EVENT for `path` (xs_wire.h)."""
        return path[self.skip :] + b"\0" + self.token + b"\0"


class Watches:
    """All watches of a server."""

    def __init__(self) -> None:
        self._by_path: dict[bytes, dict[Watch, None]] = {}
        self._last = 0

    def add(
        self, caller: Caller, path: bytes, token: bytes, skip: int, fire: Callable[[Watch, bytes], None]
    ) -> Watch:
        """Register a watch; the fields are those of Watch."""
        self._last += 1
        watch = Watch(self._last, caller, path, token, skip, fire)
        self._by_path.setdefault(path, {})[watch] = None
        return watch

    def remove(self, watch: Watch) -> None:
        """Unregister a watch."""
        same_path = self._by_path[watch.path]
        del same_path[watch]
        if not same_path:
            del self._by_path[watch.path]

    def fire(self, changed: Mapping[bytes, bool], may_see: Callable[[Caller, bytes], bool]) -> None:
        """Fire the watches that match changed paths, where `may_see(owner, path)` allows it.

        `changed` is that of View: True for a path and all above it, False for the very path alone.
        """
        for path, subtree in changed.items():
            for watch in self._matching(path, subtree):
                if watch.caller.privileged or may_see(watch.caller, path):
                    watch.fire(watch, path)

    def _matching(self, path: bytes, subtree: bool) -> list[Watch]:
        found: list[Watch] = []
        for watched in upward(path) if subtree else (path,):
            found.extend(self._by_path.get(watched, ()))
        found.sort(key=_number)
        return found


def _number(watch: Watch) -> int:
    return watch.number
