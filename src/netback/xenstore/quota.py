# SPDX-License-Identifier: Apache-2.0
"""How much of the store one domain may use: xenstored's defaults."""

import sys
from dataclasses import dataclass

from netback.abi.xs_wire import ABS_PATH_MAX, REL_PATH_MAX


@dataclass(frozen=True, slots=True)
class Quota:
    """Limits of one domain; the comment behind each names the answer beyond it."""

    nodes: int = 1000  # owned nodes: ENOSPC
    node_size: int = 2048  # header, permissions, value and child names of one node: ENOSPC
    node_perms: int = 5  # permission entries of one node: ENOSPC
    path: int = REL_PATH_MAX  # bytes of a path below the domain's home: EINVAL
    watches: int = 128  # E2BIG
    transactions: int = 10  # open at once: ENOSPC
    transaction_nodes: int = 1024  # looked at in one transaction: ENOSPC, and its commit fails with ENOMEM
    events: int = 1024
    """Watch events that wait for a slow client. Equal ones wait once; beyond the limit they are dropped and counted.
    xenstored bounds the memory of all of a domain's messages to 2.5 MB instead, which is the same order."""


GUEST = Quota()

_ANY = sys.maxsize
# Its one bound protects the server: the connection of a privileged client that is this far behind is ended.
PRIVILEGED = Quota(_ANY, _ANY, _ANY, ABS_PATH_MAX, _ANY, _ANY, _ANY, events=65536)

NODE_HEADER_SIZE = 16
"""Bytes of a node that xenstored's node-size quota counts besides value, child names and permissions."""
PERM_SIZE = 8
"""Bytes of one permission, likewise."""
