# SPDX-License-Identifier: Apache-2.0
"""Runs in a guest: netback's scripted frontend attacks the backend, one attack after the other.

Each attack ends as docs/decisions.md ("Slots and chains") says: its requests are answered ERROR and the vif goes on, or
the vif is closed and may connect again. The last attack leaves it closed. Prints a line for each; fails if the
backend does anything else.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from netback.abi.netif import EXTRA_GSO, TX_REQUEST, TX_SLOT, ExtraType, GsoType, Status, TxFlag
from netback.abi.xenbus import XenbusState as State
from netback.frontend import Script
from netback.platforms.xen import XenDomain

SECONDS = 60.0
"""Time limit of one attack, in seconds."""
STORM = 20_000
FLAPS = 50
FRAME = bytes.fromhex("ffffffffffff 00163e000001 88b5").ljust(60, b"x")
NEVER_GRANTED = 0x7FFFFFFF

Attack = Callable[[Script], Awaitable[None]]


class Case(NamedTuple):
    """An attack, and whether it closes the vif."""

    name: str
    attack: Attack
    fatal: bool


def request(
    script: Script, *, gref: int | None = None, offset: int = 0, flags: int = 0, size: int = 60
) -> bytes:
    """Post one TX request for a page that holds a frame."""
    return TX_REQUEST.pack(script.grant(FRAME).gref if gref is None else gref, offset, flags, 7, size)


def post_extra(script: Script, extra: bytes) -> None:
    """A frame with this payload."""
    flags = TxFlag.EXTRA_INFO | TxFlag.CSUM_BLANK | TxFlag.DATA_VALIDATED
    script.post(script.tx, request(script, flags=flags), extra.ljust(TX_SLOT, b"\0"), notify=True)


async def refused(script: Script, *slots: bytes) -> None:
    """Post these slots; each must be answered ERROR."""
    at = script.tx.req_prod
    script.post(script.tx, *slots, notify=True)
    await script.answered(script.tx, at + len(slots))
    statuses = {status for _, status in script.answers(script.tx, at, len(slots))}
    if statuses != {Status.ERROR}:
        raise AssertionError(f"answered {statuses}")


async def bad_gref(script: Script) -> None:
    await refused(script, request(script, gref=NEVER_GRANTED), request(script, gref=0xFFFFFFFF))


async def beyond_its_page(script: Script) -> None:
    await refused(
        script, request(script, offset=4000, size=1000), request(script, offset=0xFFFF, size=0xFFFF)
    )


async def one_slot_too_many(script: Script) -> None:
    more = request(script, flags=TxFlag.MORE_DATA, size=21 * 60)
    rest = [request(script, flags=TxFlag.MORE_DATA) for _ in range(19)]
    await refused(script, more, *rest, request(script))


async def event_storm(script: Script) -> None:
    for _ in range(STORM):
        script.notify()


async def flapping(script: Script) -> None:
    """Write every state in quick succession, then reconnect, perhaps amid the answer to an earlier one."""
    for number in range(FLAPS):
        await script.set_state(number % 10)
    await reconnect(script)


async def endless_chain(script: Script) -> None:
    script.post(script.tx, *[request(script, flags=TxFlag.MORE_DATA)] * 40, notify=True)


async def wild_req_prod(script: Script) -> None:
    script.tx.push(script.tx.req_prod + 0x1000)
    script.notify()


async def extra_of_type_0(script: Script) -> None:
    post_extra(script, EXTRA_GSO.pack(ExtraType.NONE, 0, 0, 0, 0, 0))


async def gso_of_size_0(script: Script) -> None:
    post_extra(script, EXTRA_GSO.pack(ExtraType.GSO, 0, 0, GsoType.TCPV4, 0, 0))


async def rings_not_granted(script: Script) -> None:
    """Use the rings' own grant references as pages."""
    await reconnect(script, connect=False)
    for key, value in {"tx-ring-ref": str(NEVER_GRANTED), "rx-ring-ref": "8"}.items():
        await script.write(key, value)
    await script.set_state(State.CONNECTED)


async def nonsense_keys(script: Script) -> None:
    await reconnect(script, connect=False)
    for key in ("tx-ring-ref", "rx-ring-ref", "event-channel"):
        await script.write(key, "-1" * 500)
    await script.set_state(State.CONNECTED)


CASES = (
    Case("bad grefs", bad_gref, fatal=False),
    Case("beyond its page", beyond_its_page, fatal=False),
    Case("21 slots", one_slot_too_many, fatal=False),
    Case("event storm", event_storm, fatal=False),
    Case("state flapping", flapping, fatal=False),
    Case("endless chain", endless_chain, fatal=True),
    Case("wild req_prod", wild_req_prod, fatal=True),
    Case("extra of type 0", extra_of_type_0, fatal=True),
    Case("GSO of size 0", gso_of_size_0, fatal=True),
    Case("rings that are not granted", rings_not_granted, fatal=True),
    Case("nonsense in keys", nonsense_keys, fatal=True),
    Case("wild req_prod again", wild_req_prod, fatal=True),
)


async def reconnect(script: Script, *, connect: bool = True) -> None:
    """Reconnect in order, with new rings."""
    await script.set_state(State.CLOSED)
    await script.backend(State.CLOSED)
    await script.set_state(State.INITIALISING)
    await script.backend(State.INIT_WAIT)
    await script.open_rings()
    if connect:
        await script.connect()


async def works(script: Script) -> None:
    """A correct frame must be answered OKAY."""
    at = script.tx.req_prod
    script.post(script.tx, request(script), notify=True)
    await script.answered(script.tx, at + 1)
    ((_, status),) = script.answers(script.tx, at, 1)
    if status != Status.OKAY:
        raise AssertionError(f"a good frame was answered {status}")


async def run(script: Script) -> None:
    async with asyncio.timeout(SECONDS):
        await script.offered()
        await script.connect()
    for case in CASES:
        try:
            async with asyncio.timeout(SECONDS):
                await attack(script, case)
        except TimeoutError:
            raise AssertionError(f"{case.name}: no end in {SECONDS:.0f} s") from None
        print(f"{case.name}: {'closed' if case.fatal else 'answered'}", flush=True)


async def attack(script: Script, case: Case) -> None:
    """Run every attack on rings that work before it and, except for the last, after it."""
    await works(script)
    await case.attack(script)
    if case.fatal:
        await script.backend(State.CLOSING, State.CLOSED)
    if case.fatal and case is not CASES[-1]:
        await reconnect(script)


async def main() -> None:
    async with Script(XenDomain()) as script:
        await run(script)


if __name__ == "__main__":
    asyncio.run(main())
