# SPDX-License-Identifier: Apache-2.0
"""What a demo can be made of on this machine. The best that works is taken, and found by trying it.

Knows which stacks a tier has and how its rings' ends reach them; starts them, and nothing else.
"""

import os
import socket
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from netback.demo.links import TUN, Plug
from netback.demo.processes import Child, DemoError
from netback.demo.roles import INHERITED
from netback.errors import ConfigError

DOMID = 1
HOST_ADDRESS, GUEST_ADDRESS = "10.99.0.1", "10.99.0.2"
HOST_MAC, GUEST_MAC = "00:16:3e:99:00:01", "00:16:3e:99:00:02"


class Tier(StrEnum):
    """From the one that shows most."""

    TAPS = "taps"
    VETH = "veth"
    PYTHON = "python"

    @property
    def means(self) -> str:
        """What the stacks are."""
        return _MEANING[self]


_MEANING = {
    Tier.TAPS: "Linux's own stacks in two network namespaces, each behind a tap",
    Tier.VETH: "Linux's own stacks in two network namespaces, each behind a veth pair and a packet socket",
    Tier.PYTHON: "two stacks in plain Python",
}


@dataclass(frozen=True, slots=True)
class Side:
    """One end of the demo: its stack, and how a process that serves rings is joined to it."""

    stack: Child
    address: str
    net: str
    """The network, as the ring's end is told."""
    place: dict[str, object]
    """Where the ring's end has to run."""
    fds: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Stage:
    """Two stacks with nothing between them yet."""

    tier: Tier
    reason: str
    host: Side
    guest: Side


@dataclass(frozen=True, slots=True)
class _Names:
    """What one side's things are called."""

    role: str
    link: str
    wire: str
    address: str
    mac: str


HOST = _Names("host", "host0", "vif1.0", HOST_ADDRESS, HOST_MAC)
GUEST = _Names("guest", "eth0", "xn0", GUEST_ADDRESS, GUEST_MAC)


def _kernel_side(names: _Names, directory: Path, undo: ExitStack, *, tap: bool) -> Side:
    """A namespace, and in it a link with an address."""
    user = os.geteuid() != 0
    link = names.wire if tap and names is HOST else names.link
    wire = link if tap else names.wire
    stack = Child(
        "stack",
        {"kind": "tap" if tap else "veth", "plug": asdict(Plug(link, wire, names.address, names.mac))},
        log=directory / f"{names.role}.log",
        place={"new": True, "user": user},
    )
    undo.callback(stack.kill)
    net = f"tap:{wire}" if tap else f"packet:{wire}"
    return Side(stack, names.address, net, {"of": stack.pid, "user": user})


def _plain_side(names: _Names, directory: Path, undo: ExitStack) -> Side:
    """A process that holds one end of a socketpair; the other end stays open here, whoever serves the ring."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    undo.callback(ours.close)
    with theirs:
        stack = Child(
            "plain stack",
            {"fd": theirs.fileno(), "address": names.address, "mac": names.mac},
            log=directory / f"{names.role}.log",
            fds=(theirs.fileno(),),
        )
    undo.callback(stack.kill)
    return Side(stack, names.address, f"{INHERITED}{ours.fileno()}", {}, (ours.fileno(),))


MAKERS: dict[Tier, Callable[[_Names, Path, ExitStack], Side]] = {
    Tier.TAPS: lambda names, directory, undo: _kernel_side(names, directory, undo, tap=True),
    Tier.VETH: lambda names, directory, undo: _kernel_side(names, directory, undo, tap=False),
    Tier.PYTHON: _plain_side,
}


async def make_stage(tier: Tier, reason: str, directory: Path, undo: ExitStack) -> Stage:
    """Both stacks; DemoError where this tier cannot be here."""
    if tier is Tier.TAPS and (fault := _taps_fault()):
        raise DemoError(fault)
    with ExitStack() as made:
        host, guest = (MAKERS[tier](names, directory, made) for names in (HOST, GUEST))
        await host.stack.ready()
        await guest.stack.ready()
        undo.push(made.pop_all())
    return Stage(tier, reason, host, guest)


def _taps_fault() -> str:
    """What keeps taps from being, if it is known beforehand."""
    if os.geteuid() != 0:
        return "not root"
    return "" if os.access(TUN, os.R_OK | os.W_OK) else f"no {TUN}"


async def choose(forced: Tier | None, directory: Path, undo: ExitStack) -> Stage:
    """The forced tier, or the best that works. ConfigError where the forced one does not."""
    if forced:
        try:
            return await make_stage(forced, "as asked for", directory, undo)
        except DemoError as error:
            raise ConfigError(f"tier {forced} cannot be here: {error}") from error
    faults: list[str] = []
    for tier in Tier:
        try:
            return await make_stage(tier, _reason(tier, faults), directory, undo)
        except DemoError as error:
            faults.append(f"no {tier}: {error}")
    raise DemoError("; ".join(faults))


def _reason(tier: Tier, faults: list[str]) -> str:
    can = {
        Tier.TAPS: f"root, and {TUN} is there",
        Tier.VETH: "namespaces are allowed",
        Tier.PYTHON: "works everywhere",
    }
    return "; ".join([can[tier], *faults])
