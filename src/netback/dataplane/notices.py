# SPDX-License-Identifier: Apache-2.0
"""What a worker reports of a link to Python: its condition, each time it changes."""

import enum


class Notice(enum.Enum):
    """A link's condition. `Worker.run` returns it, `WorkerThread` passes it to `on_notice(link, notice)`.

    A link begins READY, which is not reported. Later only changes are, in order of time; of several changes between two
    reports the last one counts. The values are LINK_* of dataplane/link.pxd.
    """

    READY = 0
    """Frames pass again: the peer works, or the far side takes frames."""
    STALLED = 1
    """The far side has taken no frame for the stall time, although frames waited for slots all that time. A backend
    drops those, and what the network has when the guest has posted the slots that the first of them lacked; a frontend
    keeps them."""
    PEER_GONE = 2
    """The network behind the link is gone: hang-up, a removed tap (EBADFD), a link that is down or removed (ENETDOWN,
    ENXIO, ENODEV). Frames from the guest are refused and counted, as on a cable without a carrier. READY follows by
    itself if the same descriptor works again, as a packet socket does when its link comes up. `Worker.refresh(link)`
    tries a descriptor that was joined to another link; `Worker.set_peer(link, peer)` gives the link another one."""
    BROKEN = 3
    """The far side broke the protocol: `Link.broken` has the reason. The worker no longer serves the link."""
