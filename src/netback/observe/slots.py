# SPDX-License-Identifier: Apache-2.0
"""A ring's page as data: the types alone, for programs that read what `observe.rings` decoded."""

from typing import Literal

import msgspec


class Slot(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One slot. What its kind does not have is None."""

    index: int
    """Free-running, as in the ring's indices."""
    kind: Literal["request", "response", "extra"]
    """An extra belongs to the first slot of its frame; in the answered part of the TX ring it is a response."""
    id: int | None = None
    gref: int | None = None
    offset: int | None = None
    size: int | None = None
    """Bytes: of a TX request as the guest wrote it, the whole frame's in its first slot; of an RX response in this
    slot."""
    flags: tuple[str, ...] = ()
    """By name, as in netif.h without its prefix; bits without a name as one hexadecimal number."""
    status: str | None = None
    """Of a response, by name."""
    type: str | None = None
    """Of an extra or of a control message, by name."""
    data: tuple[int, ...] = ()
    """Of a control message: the words of the request, or the response's one."""
    value: str | None = None
    """What an extra says."""


class Ring(msgspec.Struct, frozen=True, kw_only=True):
    """One ring, at one moment."""

    ring: str
    """"tx", "rx", "tx-q1", ..., "ctrl"."""
    indices: dict[str, int]
    """The four shared ones."""
    consistent: bool
    """False: responses were published while the page was copied, so slots near rsp_prod may be newer than it."""
    slots_total: int
    pending: int | None
    """Requests without a response; None: the guest's req_prod is impossible."""
    quiet: float
    """Seconds since the backend last published a response, or was attached. A request that was left then has waited
    longer, one that came since has waited less."""
    state: str | None = None
    """The state of the ring's direction; None for the control ring."""
    means: str | None = None
    waiting: int = 0
    """RX: frames that netback has read and that wait for slots."""
    waiting_for: float = 0.0
    """Seconds that the first of them has waited."""
    slots: tuple[Slot, ...] = ()
    """The answered ones that were not used again, then the pending ones; in the order of the indices."""
