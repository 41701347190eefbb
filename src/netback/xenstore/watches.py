# SPDX-License-Identifier: Apache-2.0
"""Who wants to hear of which path. It does not know how an event travels, or why a path changed.

Watches are found by walking up from the changed path, so the cost is the depth of the path and the watches
that match, however many others there are.
"""

from collections.abc import Callable
from dataclasses import dataclass

from netback.xenstore.paths import parent, upward
from netback.xenstore.perms import READ, Caller
from netback.xenstore.tree import Nodes


@dataclass(frozen=True, slots=True, eq=False)
class Watch:
    """One registered watch. `skip` is the length of the base that its owner left out of a relative path."""

    caller: Caller
    path: bytes
    token: bytes
    skip: int
    fire: Callable[["Watch", bytes], None]

    def payload(self, path: bytes) -> bytes:
        return path[self.skip :] + b"\0" + self.token + b"\0"


class Watches:
    """All watches of a server."""

    def __init__(self) -> None:
        self._by_path: dict[bytes, dict[Watch, None]] = {}

    def add(self, watch: Watch) -> None:
        self._by_path.setdefault(watch.path, {})[watch] = None

    def remove(self, watch: Watch) -> None:
        there = self._by_path[watch.path]
        del there[watch]
        if not there:
            del self._by_path[watch.path]

    def fire(self, changed: dict[bytes, bool], before: Nodes, after: Nodes) -> None:
        """Tell every watch that matches a changed path and whose owner may know of it."""
        for path, whole in changed.items():
            for watched in upward(path) if whole else (path,):
                for watch in tuple(self._by_path.get(watched, ())):
                    if watch.caller.privileged or _may_see(watch.caller, path, before, after):
                        watch.fire(watch, path)

    def fire_special(self, path: bytes, nodes: Nodes) -> None:
        self.fire({path: False}, nodes, nodes)


def _may_see(caller: Caller, path: bytes, before: Nodes, after: Nodes) -> bool:
    """Who may read the node, might read it until now, or may list its parent (xenstored's rule)."""
    places = [before.get(path), after.get(path)]
    if path.startswith(b"/"):
        places.append(after.get(parent(path)))
    return any(node is not None and caller.rights(node.perms) & READ for node in places)
