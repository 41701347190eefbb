# SPDX-License-Identifier: Apache-2.0
"""How much of the store one domain may take: xenstored's defaults. It does not know who counts, or when."""

import sys
from dataclasses import dataclass

from netback.abi.xs_wire import ABS_PATH_MAX, REL_PATH_MAX


@dataclass(frozen=True, slots=True)
class Quota:
    """Limits of one domain; the comment behind each names the answer when it is reached."""

    nodes: int = 1000  # owned nodes: ENOSPC
    node_size: int = 2048  # header, permissions, value and child names of one node: ENOSPC
    node_perms: int = 5  # permission entries of one node: ENOSPC
    path: int = REL_PATH_MAX  # bytes of a path below the domain's home: EINVAL
    watches: int = 128  # E2BIG
    transactions: int = 10  # open at once: ENOSPC
    transaction_nodes: int = 1024  # looked at in one transaction: ENOSPC, and its commit fails with ENOMEM
    # Watch events that wait for a slow reader. Equal ones are one; beyond the limit they are dropped and
    # counted. xenstored has 2.5 MB of memory for all of a domain's messages instead; this is the same order.
    events: int = 1024


GUEST = Quota()

_ANY = sys.maxsize
# Only what protects the server itself: a privileged reader this far behind has its connection ended.
PRIVILEGED = Quota(_ANY, _ANY, _ANY, ABS_PATH_MAX, _ANY, _ANY, _ANY, events=65536)

# sizeof in xenstored: what its node-size limit counts besides the value and the child names.
NODE_HEADER_SIZE = 16
PERM_SIZE = 8
