# SPDX-License-Identifier: Apache-2.0
"""Permissions of nodes, and what they give to a domain. It does not know nodes or connections."""

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
    """One entry. A node's first names its owner, who may do anything, and what domains not listed may do."""

    domid: int
    access: int

    def encode(self) -> bytes:
        return _ACCESS_LETTER[self.access] + b"%d" % self.domid


Perms = tuple[Perm, ...]


def parse_perm(text: bytes) -> Perm:
    match = _PERM.fullmatch(text)
    if match is None or int(match[2]) >= DOMID_FIRST_RESERVED:
        raise Refused(Errno.EINVAL)
    return Perm(int(match[2]), _LETTERS[match[1]])


@dataclass(slots=True)
class Caller:
    """On whose behalf a request is served. Domain 0 may do anything."""

    domid: int
    quota: Quota = PRIVILEGED
    target: int | None = None  # SET_TARGET: a stub domain has all rights of the guest that it serves, too

    @property
    def privileged(self) -> bool:
        return self.domid == 0

    def rights(self, perms: Perms) -> int:
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
        """What a node made below one with these permissions gets: a guest owns what it makes."""
        return perms if self.domid == 0 else (Perm(self.domid, perms[0].access), *perms[1:])
