# SPDX-License-Identifier: Apache-2.0
"""What a played backend does with a frontend, in order: offer, connect, frames of every form, oddities, the end.

Each step is recorded with its outcome. A frontend that leaves ends the drive early, which is its right.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from random import Random

from netback.abi.netif import GsoType, RxFlag
from netback.abi.netif_keys import Key
from netback.abi.xenbus import XenbusState as State
from netback.conform import frames
from netback.conform.backend import PlayedBackend
from netback.conform.chains import Gso
from netback.conform.frames import TCP, UDP, Addresses

Step = Callable[[], Awaitable[str]]
"""A step; returns its outcome."""
BURST = 300
"""Frames of the burst, more than a ring has slots, so that its indices wrap around."""
MSS = 1400

_BLANK = RxFlag.CSUM_BLANK | RxFlag.DATA_VALIDATED


@dataclass(frozen=True, slots=True)
class Form:
    """A form of RX frames."""

    build: Callable[[Addresses, Random], bytes]
    flags: RxFlag = RxFlag(0)  # noqa: RUF009 (frozen)
    gso: GsoType = GsoType.NONE
    split: int = 0
    """Bytes in a slot at most; 0: a page."""
    needs: tuple[str, ...] = ()
    """Keys that the frontend must have as "1"."""
    without: tuple[str, ...] = ()
    """Keys that it must not have as "1"."""
    hashed: bool = False
    """Its hash goes with it, if the frontend selected that."""

    def allowed(self, keys: Mapping[str, str]) -> bool:
        """Whether a frontend with these keys takes such frames (netif.h)."""
        return all(keys.get(key) == "1" for key in self.needs) and all(
            keys.get(key) != "1" for key in self.without
        )


_SG = (Key.SG,)
_CSUM4 = (Key.NO_CSUM,)
FORMS: Mapping[str, Form] = {
    "arp": Form(lambda ends, _: frames.arp_request(ends)),
    "neighbour": Form(lambda ends, _: frames.neighbour_solicitation(ends)),
    "echo": Form(lambda ends, rng: frames.echo_request(ends, 56, rng.randrange(1 << 16))),
    "shortest": Form(lambda ends, _: frames.local(ends, 14, 0)),
    "longest": Form(lambda ends, rng: frames.local(ends, 1514, rng.randrange(256))),
    "tcp": Form(lambda ends, rng: frames.transport(ends, 4, TCP, rng.randbytes(10), blank=False)),
    "broadcast": Form(lambda ends, rng: b"\xff" * 6 + frames.local(ends, 60, rng.randrange(256))[6:]),
    "two-slots": Form(lambda ends, rng: frames.local(ends, 1000, rng.randrange(256)), split=600, needs=_SG),
    "many-slots": Form(lambda ends, rng: frames.local(ends, 1440, rng.randrange(256)), split=80, needs=_SG),
    "udp-blank": Form(
        lambda ends, rng: frames.transport(ends, 4, UDP, rng.randbytes(100), blank=True),
        _BLANK,
        without=_CSUM4,
    ),
    "tcp-blank": Form(
        lambda ends, rng: frames.transport(ends, 4, TCP, rng.randbytes(100), blank=True),
        _BLANK,
        without=_CSUM4,
    ),
    "udp6-blank": Form(
        lambda ends, rng: frames.transport(ends, 6, UDP, rng.randbytes(100), blank=True),
        _BLANK,
        needs=(Key.IPV6_CSUM,),
    ),
    "gso4": Form(
        lambda ends, rng: frames.transport(ends, 4, TCP, rng.randbytes(9000), blank=True),
        _BLANK,
        GsoType.TCPV4,
        needs=(Key.SG, Key.GSO_TCPV4),
        without=_CSUM4,
    ),
    "gso6": Form(
        lambda ends, rng: frames.transport(ends, 6, TCP, rng.randbytes(9000), blank=True),
        _BLANK,
        GsoType.TCPV6,
        needs=(Key.SG, Key.GSO_TCPV6, Key.IPV6_CSUM),
    ),
    "hashed": Form(
        lambda ends, rng: frames.transport(ends, 4, TCP, rng.randbytes(20), blank=False), hashed=True
    ),
    "validated": Form(
        lambda ends, rng: frames.transport(ends, 4, UDP, rng.randbytes(100), blank=False),
        RxFlag.DATA_VALIDATED,
    ),
}
ODD_STATES = (State.INITIALISED, State.INIT_WAIT, State.RECONFIGURED, State.CONNECTED)
"""States that no backend writes while it is Connected, and Connected again: no reason for a frontend to move."""


class Drive:
    """One run of a played backend."""

    def __init__(self, backend: PlayedBackend, ends: Addresses, seed: int) -> None:
        self.backend, self.ends, self._rng = backend, ends, Random(seed)
        self._replies: set[asyncio.Task[bool]] = set()
        self._keys: Mapping[str, str] = {}
        self._queue = 0
        backend.on_frame = self._guest_sent

    async def run(self) -> None:
        """Every step, as far as the frontend comes along; then the end."""
        backend, profile = self.backend, self.backend.profile
        await backend.offer()
        if await self._step("connect", self._connect):
            steps: list[tuple[str, Step]] = [("post", self._post)]
            steps += [(name, partial(self._form, name)) for name in profile.forms]
            steps += [("burst", self._burst)]
            steps += [("late", self._late)] * profile.late
            steps += [("rx-error", self._rx_error)] * profile.rx_errors
            steps += [("odd-states", self._odd_states)] * profile.odd_states
            steps += [("return", self._return)] * profile.restarts
            steps += [("again", partial(self._form, "echo"))]
            for name, step in steps:
                if backend.gone or (not await self._step(name, step) and name in ("post", "burst")):
                    break
        for task in self._replies:
            task.cancel()
        await self._close()

    async def _step(self, name: str, step: Step) -> bool:
        self.backend.step(name)
        outcome = await step()
        if self.backend.gone:
            outcome = "left"
        self.backend.step(name, outcome)
        return outcome == "done"

    async def _connect(self) -> str:
        backend = self.backend
        using = (State.CONNECTED, State.INITIALISED, State.RECONFIGURING)
        if not await backend.until(lambda: backend.theirs in using, backend.limits.answer):
            return "timeout"
        error = await backend.connect()
        self._keys = await backend.keys()
        if error:
            await backend.set_state(State.CLOSING)
        return error or "done"

    async def _post(self) -> str:
        """Every queue has a buffer."""
        backend = self.backend
        rings = [ring for ring in backend.rings if ring.kind == "rx"]
        done = await backend.until(
            lambda: backend.gone or all(backend.posted(ring) for ring in rings), backend.limits.answer
        )
        return "done" if done else "timeout"

    async def _form(self, name: str) -> str:
        form = FORMS[name]
        if not form.allowed(self._keys) or (form.hashed and not await self._hashes()):
            return "not taken"
        before = self.backend.frames
        queue = self._queue % max(1, self.backend.queues)
        self._queue += 1
        gso = Gso(MSS, form.gso) if form.gso else None
        frame = form.build(self.ends, self._rng)
        if not await self.backend.put(
            name, queue, frame, flags=form.flags, gso=gso, split=form.split, hashed=form.hashed
        ):
            return "no slots"
        await self._quiet(before)
        return "done"

    async def _hashes(self) -> bool:
        """Whether the frontend selects a hash, for which a frontend with a control ring has a moment."""
        backend = self.backend
        if backend.ring("ctrl") is None:
            return False
        return (
            await backend.until(lambda: backend.gone or backend.hashes, backend.limits.settle)
            and not backend.gone
        )

    async def _quiet(self, before: int) -> None:
        """Wait for what the guest sends because of a frame, if it sends anything."""
        backend = self.backend
        await backend.until(lambda: backend.gone or backend.frames > before, backend.limits.settle)

    async def _burst(self) -> str:
        """More frames than the ring has slots, so that all indices wrap."""
        backend, before = self.backend, self.backend.frames
        for number in range(BURST):
            queue = number % max(1, backend.queues)
            if not await backend.put("burst", queue, frames.local(self.ends, 60, number), settle=False):
                return "no slots"
        await self._quiet(before)
        await backend.until(lambda: backend.gone or backend.caught_up(), backend.limits.settle)
        return "done"

    async def _late(self) -> str:
        """Responses to TX frames come only when the guest has sent more."""
        self.backend.hold(True)
        try:
            for name in ("echo", "longest", "echo", "tcp"):
                await self._form(name)
        finally:
            self.backend.hold(False)
        return "done"

    async def _rx_error(self) -> str:
        for queue in range(self.backend.queues):
            if not await self.backend.fail_buffer(queue):
                return "no slots"
        return await self._form("echo")

    async def _odd_states(self) -> str:
        for state in ODD_STATES:
            await self.backend.set_state(str(int(state)))
            await asyncio.sleep(self.backend.limits.event)
        return await self._form("echo")

    async def _return(self) -> str:
        error = await self.backend.leave_and_return()
        return error or await self._form("echo")

    async def _close(self) -> None:
        """The toolstack removes the device: online=0, Closing; the frontend should reach Closed."""
        backend = self.backend
        await asyncio.sleep(backend.limits.event)
        backend.rest()
        if backend.gone or backend.state is State.INIT_WAIT:
            await self._step("leave", self._left)
            return
        backend.step("close")
        if backend.state is State.CONNECTED:
            await backend.go_offline()
        done = await backend.until(
            lambda: backend.theirs in (State.CLOSED, State.UNKNOWN) and backend.state is State.CLOSED,
            backend.limits.answer,
        )
        backend.step("close", "done" if done else "timeout")
        if not done:
            await backend.force()

    async def _left(self) -> str:
        backend = self.backend
        ends = (State.CLOSED, State.UNKNOWN, State.INITIALISING)
        done = await backend.until(lambda: backend.theirs in ends, backend.limits.answer)
        return "done" if done else "timeout"

    def _guest_sent(self, frame: bytes) -> None:
        """Answer the guest's questions for the host's address."""
        reply = frames.arp_reply(frame, self.ends)
        if reply is not None and len(self._replies) < BURST:
            task = asyncio.get_running_loop().create_task(
                self.backend.put("arp-reply", 0, reply, settle=False)
            )
            self._replies.add(task)
            task.add_done_callback(self._replies.discard)
