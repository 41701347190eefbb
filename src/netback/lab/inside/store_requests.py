# SPDX-License-Identifier: Apache-2.0
"""Random xenstore requests: well-formed ones, and every kind of error that has an answer.

Draws payloads only; senders and answers are the caller's.
"""

from dataclasses import dataclass
from random import Random

from netback.abi.xs_wire import Op

_NAMES = (b"a", b"b", b"c")
_DEPTHS = (1, 1, 2, 3, 12)
_ODD = (b"", b"//", b"a//b", b"a/", b"@nobody")
_ODD_DOMIDS = (-1, 0x7FF0, 65536, 2**31, 10**12)
_BAD_PERMS = (b"x1", b"r", b"", b"1", b"r1x", b"R1")


@dataclass(frozen=True, slots=True)
class Draw:
    """Payloads below certain places and about certain domains.

    >>> draw = Draw(Random(1), places=(b"/tool/drawn/",), domids=(0, 1), ends=())
    >>> draw.payload(Op.READ)
    b'/tool/drawn/a\\x00'
    """

    rng: Random
    places: tuple[bytes, ...]
    """Prefixes of paths, each with its final slash; an empty one makes relative paths."""
    domids: tuple[int, ...]
    """Domids in permissions and queries."""
    ends: tuple[int, ...]
    """Domids in INTRODUCE, RELEASE and the like."""
    lengths: tuple[int, ...] = (60, 70, 2040, 2050, 3071, 3073)
    """Lengths of long names."""
    whole: tuple[bytes, ...] = ()
    """Paths used unchanged."""

    def path(self) -> bytes:
        rng = self.rng
        place = rng.choice(self.places)
        names = place + b"/".join(rng.choice(_NAMES) for _ in range(rng.choice(_DEPTHS)))
        return rng.choice(
            (
                *(names,) * 5,
                rng.choice(self.whole or (names,)),
                rng.choice(_ODD),
                place + b"x" * rng.choice(self.lengths),
                place + rng.randbytes(rng.randint(0, 8)).replace(b"\0", b"\xff"),
            )
        )

    def domid(self, domids: tuple[int, ...]) -> bytes:
        return b"%d" % self.rng.choice((*domids, *domids, *_ODD_DOMIDS))

    def perms(self) -> bytes:
        """Mostly valid entries, since one bad entry voids the list."""
        rng = self.rng
        count = rng.choice((1, 1, 2, 3, 4, 9))
        perms = [rng.choice((b"n", b"r", b"w", b"b")) + b"%d" % rng.choice(self.domids) for _ in range(count)]
        if rng.random() < 0.2:
            perms[rng.randrange(count)] = rng.choice(_BAD_PERMS)
        return b"\0".join(perms)

    def payload(self, op: int) -> bytes:
        """The request's payload, well-formed if its parts are."""
        rng = self.rng
        match op:
            case Op.WRITE:
                return self.path() + b"\0" + rng.randbytes(rng.choice((0, 1, 5, 150, 300, 2000)))
            case Op.WATCH | Op.UNWATCH:
                return self.path() + b"\0" + rng.choice((b"t", b"u", b"", b"t" * 3000)) + b"\0"
            case Op.SET_PERMS:
                return self.path() + b"\0" + self.perms() + b"\0"
            case Op.TRANSACTION_END:
                return rng.choice((b"T\0", b"T\0", b"F\0", b"X\0", b""))
            case Op.TRANSACTION_START | Op.RESET_WATCHES:
                return rng.choice((b"\0", b"\0", b"", b"x"))
            case Op.DIRECTORY_PART:
                return self.path() + b"\0" + rng.choice((b"0", b"0", b"2", self.domid(self.domids))) + b"\0"
            case Op.INTRODUCE | Op.SET_TARGET:
                return b"\0".join(self.domid(self.ends) for _ in range(rng.choice((1, 2, 3)))) + b"\0"
            case Op.RELEASE | Op.RESUME:
                return self.domid(self.ends) + b"\0"
            case Op.GET_DOMAIN_PATH | Op.IS_DOMAIN_INTRODUCED:
                return self.domid(self.domids) + b"\0"
            case _:
                return self.path() + b"\0"
