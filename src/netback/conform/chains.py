# SPDX-License-Identifier: Apache-2.0
"""TX requests as frames: which slots are a frame's data, which are extra infos (netif.h). Pure; nothing is refused."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Self

from netback.abi.netif import EXTRA_FLAG_MORE, EXTRA_GSO, TX_REQUEST, ExtraType, TxFlag

WRAP = 1 << 32
EXTRA_SIZE = 8
_MCAST = {ExtraType.MCAST_ADD, ExtraType.MCAST_DEL}


class TxRequest(NamedTuple):
    """A data slot, at index `slot` of its ring."""

    slot: int
    gref: int
    offset: int
    flags: int
    id: int
    size: int


class Gso(NamedTuple):
    """A GSO extra."""

    size: int
    type: int


class Chain(NamedTuple):
    """The slots of one frame."""

    queue: int
    first: int
    requests: tuple[TxRequest, ...]
    """The data slots; of a dummy for a change of the multicast list, the dummy alone."""
    extras: tuple[bytes, ...]
    """The extra infos' 8 bytes."""
    slots: int
    missing: str
    """What the chain lacks before req_prod: "" if it is complete."""

    @classmethod
    def read(cls, queue: int, first: int, slots: Sequence[bytes]) -> Self:
        """The chain that begins with `slots[0]`, at index `first`."""
        requests, extras, at, missing = [], [], 0, ""
        while True:
            if at >= len(slots):
                missing = "data slot"
                break
            requests.append(TxRequest((first + at) % WRAP, *_fields(slots[at])))
            at += 1
            if len(requests) == 1 and requests[0].flags & TxFlag.EXTRA_INFO:
                more = True
                while more and at < len(slots):
                    extras.append(slots[at][:EXTRA_SIZE])
                    more = bool(slots[at][1] & EXTRA_FLAG_MORE)
                    at += 1
                if more:
                    missing = "extra info"
                    break
            if any(extra[0] in _MCAST for extra in extras) or not requests[-1].flags & TxFlag.MORE_DATA:
                break
        return cls(queue, first, tuple(requests), tuple(extras), at, missing)

    @property
    def total(self) -> int:
        """The frame's bytes, as the first slot has them."""
        return self.requests[0].size

    @property
    def flags(self) -> TxFlag:
        """The first slot's flags."""
        return TxFlag(self.requests[0].flags)

    @property
    def lengths(self) -> tuple[int, ...]:
        """The bytes of each data slot: the first has what the others leave of the total. The first may be negative."""
        rest = [request.size for request in self.requests[1:]]
        return (self.total - sum(rest), *rest)

    @property
    def multicast(self) -> bool:
        """A change of the multicast list, which is no frame."""
        return any(extra[0] in _MCAST for extra in self.extras)

    @property
    def gso(self) -> Gso | None:
        """Its first GSO extra."""
        for extra in self.extras:
            if extra[0] == ExtraType.GSO:
                _, _, size, kind, _, _ = EXTRA_GSO.unpack(extra)
                return Gso(size, kind)
        return None

    def __str__(self) -> str:
        return f"TX {self.queue}:{self.first}"


def _fields(slot: bytes) -> tuple[int, int, int, int, int]:
    gref, offset, flags, ident, size = TX_REQUEST.unpack(slot)
    return gref, offset, flags, ident, size


def read_chains(queue: int, first: int, slots: Sequence[bytes]) -> Iterator[Chain]:
    """All chains of `slots`, which begin at index `first`; the last may be incomplete."""
    at = 0
    while at < len(slots):
        chain = Chain.read(queue, (first + at) % WRAP, slots[at:])
        at += chain.slots
        yield chain
