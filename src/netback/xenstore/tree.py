# SPDX-License-Identifier: Apache-2.0
"""The tree: nodes, permissions, transactions, accounting. It does not know connections, watches or messages.

Nodes never change, they are replaced, and they live in an immutable map from path to node. So a transaction
starts by keeping a reference, and a path is unchanged exactly if the same object still stands there.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count

from immutables import Map

from netback.abi.xs_wire import Errno
from netback.xenstore.errors import Refused
from netback.xenstore.paths import child, leaf, parent, upward
from netback.xenstore.perms import OWNER, READ, WRITE, Caller, Perm, Perms
from netback.xenstore.quota import NODE_HEADER_SIZE, PERM_SIZE

INTRODUCE_DOMAIN = b"@introduceDomain"
RELEASE_DOMAIN = b"@releaseDomain"

_DOM0_ONLY: Perms = (Perm(0, 0),)
_DOM0 = Caller(0)


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """What stands at a path. Children are in the order of their making, as xenstored lists them."""

    value: bytes
    perms: Perms
    children: tuple[bytes, ...]
    generation: int

    @property
    def owner(self) -> int:
        return self.perms[0].domid

    @property
    def listing(self) -> bytes:
        return b"".join([name + b"\0" for name in self.children])

    @property
    def size(self) -> int:
        """As xenstored's node-size limit counts it."""
        return NODE_HEADER_SIZE + PERM_SIZE * len(self.perms) + len(self.value) + len(self.listing)


Nodes = Map[bytes, Node]


class View:
    """Something to read and change: the store itself, or a transaction's copy of it.

    Every operation checks everything before it changes anything, so a refused one leaves no trace.
    """

    def __init__(self, nodes: Nodes, owned: Map[int, int], generations: Iterator[int]) -> None:
        self.nodes = nodes
        self.owned = owned  # nodes by owner
        self._generations = generations
        # What watches have to hear of. True: those on the path and everything above it; False: those on this
        # very path alone, because the removal was of a node further up.
        self.changed: dict[bytes, bool] = {}

    def peek(self, path: bytes) -> Node | None:
        return self.nodes.get(path)

    def find(self, path: bytes, caller: Caller, wanted: int) -> Node | None:
        """The node, if the caller has the wanted rights; None if it is missing and the caller may know."""
        node = self.peek(path)
        if node is None:
            self._may_know(path, caller, wanted)
        elif caller.rights(node.perms) & wanted != wanted:
            raise Refused(Errno.EACCES)
        return node

    def get(self, path: bytes, caller: Caller, wanted: int = READ) -> Node:
        node = self.find(path, caller, wanted)
        if node is None:
            raise Refused(Errno.ENOENT)
        return node

    def write(self, path: bytes, value: bytes, caller: Caller) -> None:
        node = self.find(path, caller, WRITE)
        if node is None:
            self._create(path, value, caller)
        else:
            written = self._fitting(replace(node, value=value), caller)
            self.put(path, written)
        self.changed[path] = True

    def mkdir(self, path: bytes, caller: Caller) -> None:
        if self.find(path, caller, WRITE) is None:
            self._create(path, b"", caller)
            self.changed[path] = True

    def rm(self, path: bytes, caller: Caller) -> None:
        node = self.find(path, caller, WRITE)
        if path == b"/":
            raise Refused(Errno.EINVAL)
        above = self.peek(parent(path))
        if above is None:
            raise Refused(Errno.ENOENT)
        if node is not None:  # a missing node below an existing one is what the caller wants
            self._cut(path, parent(path), above)

    def set_perms(self, path: bytes, perms: Perms, caller: Caller) -> None:
        node = self.get(path, caller, WRITE | OWNER)
        if not caller.privileged and perms[0].domid != node.owner:
            raise Refused(Errno.EPERM)
        self.put(path, self._fitting(replace(node, perms=perms), caller))
        self.changed[path] = True

    def put(self, path: bytes, node: Node | None) -> None:
        """Replace what stands at the path, and keep the accounts. Nothing is checked here."""
        before = self.nodes.get(path)
        if before is not None:
            self.owned = self.owned.set(before.owner, self.owned[before.owner] - 1)
        if node is None:
            self.nodes = self.nodes.delete(path)
        else:
            self.owned = self.owned.set(node.owner, self.owned.get(node.owner, 0) + 1)
            self.nodes = self.nodes.set(path, node)

    def take_changed(self) -> dict[bytes, bool]:
        changed, self.changed = self.changed, {}
        return changed

    def _may_know(self, path: bytes, caller: Caller, wanted: int) -> None:
        """Absence is told only to one who has one of the wanted rights on the nearest node that exists."""
        if caller.privileged:
            return
        there = (node for above in list(upward(path))[1:] if (node := self.peek(above)) is not None)
        nearest = next(there, None)
        if nearest is None or not caller.rights(nearest.perms) & wanted:
            raise Refused(Errno.EACCES)

    def _create(self, path: bytes, value: bytes, caller: Caller) -> None:
        """Make the node and what is missing above it. Permissions come from the nearest node that exists."""
        missing = [path]
        while (above := self.peek(parent(missing[-1]))) is None:
            missing.append(parent(missing[-1]))
        if self.owned.get(caller.domid, 0) + len(missing) > caller.quota.nodes:
            raise Refused(Errno.ENOSPC)
        perms = caller.inherit(above.perms)
        made = [parent(missing[-1]), *reversed(missing)]
        nodes = [self._fitting(replace(above, children=(*above.children, leaf(made[1]))), caller)]
        for below in made[2:]:
            nodes.append(self._fitting(Node(b"", perms, (leaf(below),), 0), caller))
        nodes.append(self._fitting(Node(value, perms, (), 0), caller))
        for place, node in zip(made, nodes, strict=True):
            self.put(place, node)

    def _fitting(self, node: Node, caller: Caller) -> Node:
        """The node with a generation of its own, if it is within the caller's limit."""
        if not caller.privileged and node.size > caller.quota.node_size:
            raise Refused(Errno.ENOSPC)
        return replace(node, generation=next(self._generations))

    def _cut(self, path: bytes, above_path: bytes, above: Node) -> None:
        gone = self._subtree(path)
        name = leaf(path)
        children = tuple([other for other in above.children if other != name])
        # No limit applies to a node that gets smaller.
        self.put(above_path, self._fitting(replace(above, children=children), _DOM0))
        for below in reversed(gone):
            self.put(below, None)
            self.changed[below] = below == path or self.changed.get(below, False)

    def _subtree(self, path: bytes) -> list[bytes]:
        """The path and all below it, parents first. Not recursive: a guest chooses how deep its nodes lie."""
        found = [path]
        for place in found:
            node = self.peek(place)
            found.extend([child(place, name) for name in (node.children if node else ())])
        return found


class Transaction(View):
    """A copy of the tree at one moment, and what was looked at in it."""

    def __init__(self, tree: "Tree", limit: int) -> None:
        super().__init__(tree.nodes, tree.owned, tree._generations)
        self.accessed: dict[bytes, Node | None] = {}  # as it was when the transaction began
        self.written: dict[bytes, None] = {}
        self.releases = tree.releases
        self.failed = False
        self._base = tree.nodes
        self._limit = limit

    def peek(self, path: bytes) -> Node | None:
        if path not in self.accessed:
            if len(self.accessed) >= self._limit:
                self.failed = True
                raise Refused(Errno.ENOSPC)
            self.accessed[path] = self._base.get(path)
        return self.nodes.get(path)

    def put(self, path: bytes, node: Node | None) -> None:
        super().put(path, node)
        self.written[path] = None


class Tree(View):
    """The store itself.

    >>> tree, dom0 = Tree(), Caller(0)
    >>> tree.write(b"/vm/name", b"one", dom0)
    >>> transaction = tree.begin(dom0)
    >>> transaction.write(b"/vm/name", b"two", dom0)
    >>> tree.get(b"/vm/name", dom0).value
    b'one'
    >>> tree.commit(transaction, dom0)
    >>> tree.get(b"/vm/name", dom0).value
    b'two'
    """

    def __init__(self) -> None:
        super().__init__(Map(), Map(), count(1))
        self.releases = 0
        for path in (b"/", INTRODUCE_DOMAIN, RELEASE_DOMAIN):
            self.put(path, Node(b"", _DOM0_ONLY, (), next(self._generations)))
        self.mkdir(b"/tool/xenstored", _DOM0)
        self.changed.clear()

    def begin(self, caller: Caller) -> Transaction:
        return Transaction(self, caller.quota.transaction_nodes)

    def commit(self, transaction: Transaction, caller: Caller) -> None:
        """Take over what the transaction changed, if nothing that it looked at has changed since it began."""
        if transaction.failed:
            raise Refused(Errno.ENOMEM)
        if self._conflict(transaction):
            raise Refused(Errno.EAGAIN)
        before = self.nodes, self.owned
        for path in transaction.written:
            node = transaction.nodes.get(path)
            if node is not None or path in self.nodes:
                self.put(path, node)
        if self.owned.get(caller.domid, 0) > max(caller.quota.nodes, before[1].get(caller.domid, 0)):
            self.nodes, self.owned = before
            raise Refused(Errno.ENOSPC)
        for path, itself in transaction.changed.items():
            if path in self.nodes or path in before[0]:  # what came and went within it is nobody's news
                self.changed[path] = itself

    def _conflict(self, transaction: Transaction) -> bool:
        # A permission written for a domain that went meanwhile must not wait for the next one of that domid.
        if transaction.written and transaction.releases != self.releases:
            return True
        get = self.nodes.get
        return any(get(path) is not node for path, node in transaction.accessed.items())

    def make_home(self, path: bytes, domid: int) -> None:
        """A place that the domain owns, unless somebody made it already."""
        if path not in self.nodes:
            self.mkdir(path, _DOM0)
            self.set_perms(path, (Perm(domid, 0),), _DOM0)

    def forget(self, domid: int) -> None:
        """The domain is gone: remove what it owned, and its permissions, before the domid is used again."""
        self.releases += 1
        for path, node in sorted(self.nodes.items()):
            if path not in self.nodes or not any(perm.domid == domid for perm in node.perms):
                continue
            if node.owner != domid:
                perms = tuple([perm for perm in node.perms if perm.domid != domid])
                self.put(path, self._fitting(replace(self.nodes[path], perms=perms), _DOM0))
            elif path.startswith(b"@"):
                self.put(path, replace(node, perms=_DOM0_ONLY, generation=next(self._generations)))
            else:
                self.rm(path, _DOM0)
