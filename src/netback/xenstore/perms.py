# SPDX-License-Identifier: Apache-2.0
"""Permissions of nodes and the rights that they give to a domain (xenstore.txt)."""

import re
from dataclasses import dataclass
from typing import NamedTuple

from netback.abi.xen import DOMID_FIRST_RESERVED
from netback.abi.xs_wire import Errno
from netback.xenstore.errors import Refused
from netback.xenstore.quota import PRIVILEGED, Quota

READ = 1
WRITE = 2
OWNER = 4
ALL = READ | WRITE | OWNER

_LETTERS = {b"n": 0, b"r": READ, b"w": WRITE, b"b": READ | WRITE}
_ACCESS_LETTER = {access: letter for letter, access in _LETTERS.items()}
_PERM = re.compile(rb"([nrwb])([0-9]{1,5})")


class Perm(NamedTuple):
    """One entry. A node's first entry names the owner, which has all rights, and the rights of unlisted domains."""

    domid: int
    access: int

    def encode(self) -> bytes:
        """As GET_PERMS sends it: a letter of n, r, w, b and the domid."""
        return _ACCESS_LETTER[self.access] + b"%d" % self.domid


Perms = tuple[Perm, ...]


def parse_perm(text: bytes) -> Perm:
    """Parse an entry of SET_PERMS. EINVAL: malformed, or not a possible domid."""
    match = _PERM.fullmatch(text)
    if match is None or int(match[2]) >= DOMID_FIRST_RESERVED:
        raise Refused(Errno.EINVAL)
    return Perm(int(match[2]), _LETTERS[match[1]])


@dataclass(slots=True)
class Caller:
    """The domain for which a request is served. Domain 0 has all rights and no quota."""

    domid: int
    quota: Quota = PRIVILEGED
    target: int | None = None
    """The guest whose rights a stub domain also has (SET_TARGET)."""

    @property
    def privileged(self) -> bool:
        """Whether it is domain 0."""
        return self.domid == 0

    def rights(self, perms: Perms) -> int:
        """READ, WRITE and OWNER, as far as the permissions give them to this domain."""
        if self.domid == 0:
            return ALL
        mine = (self.domid, self.target)
        if perms[0].domid in mine:
            return ALL
        for perm in perms[1:]:
            if perm.domid in mine:
                return perm.access
        return perms[0].access

    def inherit(self, perms: Perms) -> Perms:
        """The permissions of a new node below a node with `perms`: a guest owns the nodes that it creates."""
        return perms if self.domid == 0 else (Perm(self.domid, perms[0].access), *perms[1:])
