# SPDX-License-Identifier: Apache-2.0
"""The store's nodes, their permissions, transactions and accounting.

A Node never changes; it is replaced. So a transaction remembers the Node that it read at a path, and the path is
unchanged exactly if the same object is still there. xenstored compares generation counts for the same purpose.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count

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
    """The content of a path. Children are in the order of their creation, as xenstored lists them."""

    value: bytes
    perms: Perms
    children: tuple[bytes, ...]
    generation: int

    @property
    def owner(self) -> int:
        """The domid that the node counts for."""
        return self.perms[0].domid

    @property
    def listing(self) -> bytes:
        """The payload of a DIRECTORY reply."""
        return b"".join([name + b"\0" for name in self.children])

    @property
    def size(self) -> int:
        """Bytes as xenstored's node-size quota counts them."""
        return NODE_HEADER_SIZE + PERM_SIZE * len(self.perms) + len(self.value) + len(self.listing)


class View(ABC):
    """What a request reads and changes: the store itself, or a transaction's view of it.

    Every operation checks everything before it changes anything, so a refused one has no effect (XSA-415). All raise
    Refused with the errno of the ERROR reply.
    """

    def __init__(self, generations: Iterator[int]) -> None:
        self._generations = generations
        self.changed: dict[bytes, bool] = {}
        """Changed paths. True fires the watches on the path and above it; False only those on this path itself, because
        a node further up was removed (xenstore.txt, WATCH)."""

    @abstractmethod
    def peek(self, path: bytes) -> Node | None:
        """The node at `path`, without a check of permissions."""

    @abstractmethod
    def put(self, path: bytes, node: Node | None) -> None:
        """Replace the node at `path` and adjust the accounts. Checks nothing; `path` was peeked at before."""

    @abstractmethod
    def owned_by(self, domid: int) -> int:
        """How many nodes count for a domain."""

    def find(self, path: bytes, caller: Caller, wanted: int) -> Node | None:
        """The node, if the caller has the wanted rights; None if it is missing and the caller may know that."""
        node = self.peek(path)
        if node is None:
            self._check_absence(path, caller, wanted)
        elif caller.rights(node.perms) & wanted != wanted:
            raise Refused(Errno.EACCES)
        return node

    def get(self, path: bytes, caller: Caller, wanted: int = READ) -> Node:
        """The node, if the caller has the wanted rights. ENOENT: it is missing."""
        node = self.find(path, caller, wanted)
        if node is None:
            raise Refused(Errno.ENOENT)
        return node

    def write(self, path: bytes, value: bytes, caller: Caller) -> None:
        """Set the value; make the node and its missing parents first."""
        node = self.find(path, caller, WRITE)
        if node is None:
            self._create(path, value, caller)
        else:
            self.put(path, self._sized(replace(node, value=value), caller))
        self.changed[path] = True

    def mkdir(self, path: bytes, caller: Caller) -> None:
        """Make the node and its missing parents; an existing node stays unchanged."""
        if self.find(path, caller, WRITE) is None:
            self._create(path, b"", caller)
            self.changed[path] = True

    def rm(self, path: bytes, caller: Caller) -> None:
        """Remove the node and all below it. A missing node below an existing one is not an error (xenstore.txt)."""
        node = self.find(path, caller, WRITE)
        if path == b"/":
            raise Refused(Errno.EINVAL)
        above = self.peek(parent(path))
        if above is None:
            raise Refused(Errno.ENOENT)
        if node is not None:
            self._cut(path, parent(path), above)

    def set_perms(self, path: bytes, perms: Perms, caller: Caller) -> None:
        """Set the permissions; only domain 0 may change the owner."""
        node = self.get(path, caller, WRITE | OWNER)
        if not caller.privileged and perms[0].domid != node.owner:
            raise Refused(Errno.EPERM)
        self.put(path, self._sized(replace(node, perms=perms), caller))
        self.changed[path] = True

    def _check_absence(self, path: bytes, caller: Caller, wanted: int) -> None:
        """Return only for callers with access to the nearest existing ancestor, else EACCES."""
        if caller.privileged:
            return
        ancestors = (node for above in list(upward(path))[1:] if (node := self.peek(above)) is not None)
        nearest = next(ancestors, None)
        if nearest is None or not caller.rights(nearest.perms) & wanted:
            raise Refused(Errno.EACCES)

    def _create(self, path: bytes, value: bytes, caller: Caller) -> None:
        """Make the node and its missing parents. They inherit the permissions of the nearest existing ancestor."""
        missing = [path]
        while (above := self.peek(parent(missing[-1]))) is None:
            missing.append(parent(missing[-1]))
        if self.owned_by(caller.domid) + len(missing) > caller.quota.nodes:
            raise Refused(Errno.ENOSPC)
        perms = caller.inherit(above.perms)
        made = [parent(missing[-1]), *reversed(missing)]
        nodes = [self._sized(replace(above, children=(*above.children, leaf(made[1]))), caller)]
        for below in made[2:]:
            nodes.append(self._sized(Node(b"", perms, (leaf(below),), 0), caller))
        nodes.append(self._sized(Node(value, perms, (), 0), caller))
        for place, node in zip(made, nodes, strict=True):
            self.put(place, node)

    def _sized(self, node: Node, caller: Caller) -> Node:
        """The node with a new generation. ENOSPC: it exceeds the caller's node-size quota."""
        if not caller.privileged and node.size > caller.quota.node_size:
            raise Refused(Errno.ENOSPC)
        return replace(node, generation=next(self._generations))

    def _cut(self, path: bytes, above_path: bytes, above: Node) -> None:
        """Remove the subtree. Its nodes fire in xenstored's order: children before their parent, in listing order."""
        removed = self._subtree(path)
        children = tuple([name for name in above.children if name != leaf(path)])
        self.put(
            above_path, self._sized(replace(above, children=children), _DOM0)
        )  # it gets smaller: no quota
        for below in removed:
            self.put(below, None)
            self.changed[below] = below == path or self.changed.get(below, False)

    def _subtree(self, path: bytes) -> list[bytes]:
        """The path and all below it, children before their parent.

        No recursion: a guest chooses how deep its nodes lie (XSA-418).
        """
        found: list[bytes] = []
        waiting = [(path, False)]
        while waiting:
            place, listed = waiting.pop()
            if listed:
                found.append(place)
            elif (node := self.peek(place)) is not None:
                waiting.append((place, True))
                waiting.extend([(child(place, name), False) for name in reversed(node.children)])
        return found


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
        super().__init__(count(1))
        self.nodes: dict[bytes, Node] = {}
        self.owned: dict[int, int] = {}
        """Nodes by owner."""
        self.releases = 0
        """How many domains have ended."""
        self.replaced: dict[bytes, Node | None] = {}
        """The previous nodes at changed paths, until they are announced."""
        for path in (b"/", INTRODUCE_DOMAIN, RELEASE_DOMAIN):
            self.put(path, Node(b"", _DOM0_ONLY, (), next(self._generations)))
        self.mkdir(b"/tool/xenstored", _DOM0)
        self.forget_changes()

    def peek(self, path: bytes) -> Node | None:
        return self.nodes.get(path)

    def put(self, path: bytes, node: Node | None) -> None:
        before = self.nodes.get(path)
        self.replaced.setdefault(path, before)
        if before is not None:
            self.owned[before.owner] -= 1
        if node is None:
            self.nodes.pop(path, None)
        else:
            self.owned[node.owner] = self.owned.get(node.owner, 0) + 1
            self.nodes[path] = node

    def owned_by(self, domid: int) -> int:
        return self.owned.get(domid, 0)

    def forget_changes(self) -> None:
        """Forget the changes so far, which were announced."""
        if self.replaced:
            self.changed = {}
            self.replaced = {}

    def may_see(self, caller: Caller, path: bytes) -> bool:
        """Whether a change of `path` may be announced to a watch's owner.

        xenstored's rule: to callers who may read the node, who could before the change, or who may read its parent.
        """
        places = [self.replaced.get(path), self.nodes.get(path)]
        if path.startswith(b"/"):
            places.append(self.nodes.get(parent(path)))
        return any(node is not None and caller.rights(node.perms) & READ for node in places)

    def begin(self, caller: Caller) -> "Transaction":
        """A transaction of the caller."""
        return Transaction(self, caller.quota.transaction_nodes)

    def commit(self, transaction: "Transaction", caller: Caller) -> None:
        """Apply a transaction's changes.

        EAGAIN: a node that it read has changed since. ENOMEM: it read more nodes than its quota. ENOSPC: the caller
        would own more nodes than its quota.
        """
        if transaction.failed:
            raise Refused(Errno.ENOMEM)
        if self._conflict(transaction):
            raise Refused(Errno.EAGAIN)
        owned = self.owned_by(caller.domid)
        if transaction.owned_by(caller.domid) > max(caller.quota.nodes, owned):
            raise Refused(Errno.ENOSPC)
        for path, node in transaction.written.items():
            if node is not None or path in self.nodes:
                self.put(path, node)
        for path in transaction.accessed:  # xenstored announces in the order of the first access
            if (
                path in transaction.changed and path in self.replaced
            ):  # not what was made and removed within it
                self.changed[path] = transaction.changed[path]

    def _conflict(self, transaction: "Transaction") -> bool:
        # A permission written for a domain that ended meanwhile would go to the next domain of that domid (XSA-417).
        if transaction.written and transaction.releases != self.releases:
            return True
        get = self.nodes.get
        return any(get(path) is not node for path, node in transaction.accessed.items())

    def make_home(self, path: bytes, domid: int) -> None:
        """A node that the domain owns, unless it exists."""
        if path not in self.nodes:
            self.mkdir(path, _DOM0)
            self.set_perms(path, (Perm(domid, 0),), _DOM0)

    def forget(self, domid: int) -> None:
        """Remove the nodes and the permissions of a domain that ended, before its domid is used again (XSA-417).

        `/` and the special nodes cannot be removed: domain 0 becomes their owner.
        """
        self.releases += 1
        for path, node in sorted(self.nodes.items()):
            if path not in self.nodes or not any(perm.domid == domid for perm in node.perms):
                continue
            if node.owner == domid and path != b"/" and not path.startswith(b"@"):
                self.rm(path, _DOM0)
            else:
                first, *rest = self.nodes[path].perms
                owner = first._replace(domid=0) if first.domid == domid else first
                perms = (owner, *(perm for perm in rest if perm.domid != domid))
                self.put(path, self._sized(replace(self.nodes[path], perms=perms), _DOM0))


class Transaction(View):
    """A caller's changes over the store, until they are committed.

    A node is seen as it was when first read; `Tree.commit` refuses the transaction if any of them has changed. So a
    committed transaction is as if all its requests had been made at its end, as in xenstored.
    """

    def __init__(self, tree: Tree, limit: int) -> None:
        super().__init__(tree._generations)
        self.accessed: dict[bytes, Node | None] = {}
        """The node at each path when it was first read."""
        self.written: dict[bytes, Node | None] = {}
        self.releases = tree.releases
        self.failed = False
        self._tree = tree
        self._limit = limit
        self._gained: dict[int, int] = {}
        """By owner: nodes made less nodes removed."""

    def peek(self, path: bytes) -> Node | None:
        if path in self.written:
            return self.written[path]
        if path not in self.accessed:
            if len(self.accessed) >= self._limit:
                self.failed = True
                raise Refused(Errno.ENOSPC)
            self.accessed[path] = self._tree.nodes.get(path)
        return self.accessed[path]

    def put(self, path: bytes, node: Node | None) -> None:
        before = self.peek(path)
        if before is not None:
            self._gained[before.owner] = self._gained.get(before.owner, 0) - 1
        if node is not None:
            self._gained[node.owner] = self._gained.get(node.owner, 0) + 1
        self.written[path] = node

    def owned_by(self, domid: int) -> int:
        return self._tree.owned_by(domid) + self._gained.get(domid, 0)
