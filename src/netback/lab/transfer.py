# SPDX-License-Identifier: Apache-2.0
"""Streams of known bytes between dom0 and guests, checked at their end."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from netback.lab.host import DOM0, Guest
from netback.lab.machine import LabError

_SECONDS = 600

Kind = Callable[[Guest, int, int], Awaitable["Transfer"]]


@dataclass(frozen=True, slots=True)
class Transfer:
    """A running transfer; `finish` returns once all bytes arrived and raises LabError if they differ."""

    guest: Guest
    kind: "Kind"
    size: int
    sending: "asyncio.Task[str]"
    receiving: "asyncio.Task[str]"

    async def finish(self) -> None:
        sent, received = await asyncio.gather(self.sending, self.receiving)
        if sent.split()[:1] != received.split()[:1]:
            raise LabError(
                f"{self.guest.name}: {self.size} bytes were sent as {sent!r} and came as {received!r}"
            )

    @property
    def going_on(self) -> bool:
        return not self.receiving.done()


def _payload(guest: Guest, size: int, port: int) -> str:
    """A command that prints bytes which follow from the port, so that both ends can compute the sum."""
    return f"yes '{guest.name} at {port}: netback checks every byte of this line' | head -c {size}"


async def to_guest(guest: Guest, size: int, port: int) -> Transfer:
    """dom0 sends and the guest receives; dom0 computes the expected sum separately."""
    receiving = asyncio.create_task(guest(f"nc -l -p {port} | sha256sum", seconds=_SECONDS))
    await asyncio.sleep(1)
    connect = f"timeout {_SECONDS} socat -u - TCP:{guest.address}:{port},retry=20,interval=0.2"
    payload = _payload(guest, size, port)
    sending = asyncio.create_task(
        guest.lab.dom0(f"{payload} | {connect} && {payload} | sha256sum", seconds=_SECONDS)
    )
    return Transfer(guest, to_guest, size, sending, receiving)


async def from_guest(guest: Guest, size: int, port: int) -> Transfer:
    """The guest sends and dom0 receives."""
    listen = f"timeout {_SECONDS} socat -u TCP-LISTEN:{port},reuseaddr - | sha256sum"
    receiving = asyncio.create_task(guest.lab.dom0(listen, seconds=_SECONDS))
    await guest.lab.dom0(f"until ss -Hltn sport = :{port} | grep -q .; do sleep 0.1; done")
    payload = _payload(guest, size, port)
    sending = asyncio.create_task(
        guest(f"{payload} | nc {DOM0} {port}; {payload} | sha256sum", seconds=_SECONDS)
    )
    return Transfer(guest, from_guest, size, sending, receiving)
