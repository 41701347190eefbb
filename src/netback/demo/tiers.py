# SPDX-License-Identifier: Apache-2.0
"""The tiers: the kinds of stacks that a demo can have. The best tier that works on this machine is used."""

import os
import socket
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from netback.demo.child import Child, DemoError
from netback.demo.networks import INHERITED
from netback.demo.stacks import Plug
from netback.errors import ConfigError
from netback.net.tap import DEVICE

HOST = Plug("host0", "vif1.0", "10.99.0.1", "00:16:3e:99:00:01")
GUEST = Plug("eth0", "xn0", "10.99.0.2", "00:16:3e:99:00:02")


class Tier(StrEnum):
    """The best tier comes first."""

    TAPS = "taps"
    VETH = "veth"
    PYTHON = "python"

    @property
    def means(self) -> str:
        """The stacks, described."""
        return _WORDS[self][0]


_WORDS = {
    Tier.TAPS: (
        "Linux's own stacks in two network namespaces, each behind a tap",
        f"root, and {DEVICE} is there",
    ),
    Tier.VETH: (
        "Linux's own stacks in two network namespaces, each behind a veth pair and a packet socket",
        "namespaces are allowed",
    ),
    Tier.PYTHON: ("two stacks in plain Python", "works everywhere"),
}
"""The stacks of a tier, and its requirements."""


@dataclass(frozen=True, slots=True)
class Side:
    """One end of the demo: its stack, and how the process that serves its end of the rings reaches it.

    `net` is that process's network, `place` the namespaces and `fds` the descriptors that it needs for it.
    """

    stack: Child
    address: str
    net: str
    place: dict[str, object]
    fds: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Stage:
    """Two stacks without a path between them."""

    tier: Tier
    reason: str
    host: Side
    guest: Side


def _kernel_side(plug: Plug, log: Path, undo: ExitStack, kind: str) -> Side:
    """A namespace with a link; a tap's only link is both the stack's and the ring's."""
    user = os.geteuid() != 0
    if kind == "tap":
        name = plug.wire if plug is HOST else plug.link
        plug = Plug(name, name, plug.address, plug.mac)
    arguments = {"kind": kind, "plug": asdict(plug)}
    stack = Child("kernel stack", arguments, log=log, place={"new": True, "user": user})
    undo.callback(stack.kill)
    net = f"{'tap' if kind == 'tap' else 'packet'}:{plug.wire}"
    return Side(stack, plug.address, net, {"of": stack.pid, "user": user})


def _python_side(plug: Plug, log: Path, undo: ExitStack) -> Side:
    """A process with one end of a socketpair; the other end stays open here for each process that serves the rings."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    undo.callback(ours.close)
    with theirs:
        arguments = {"fd": theirs.fileno(), "address": plug.address, "mac": plug.mac}
        stack = Child("python stack", arguments, log=log, fds=(theirs.fileno(),))
    undo.callback(stack.kill)
    return Side(stack, plug.address, f"{INHERITED}{ours.fileno()}", {}, (ours.fileno(),))


MAKERS: dict[Tier, Callable[[Plug, Path, ExitStack], Side]] = {
    Tier.TAPS: lambda plug, log, undo: _kernel_side(plug, log, undo, "tap"),
    Tier.VETH: lambda plug, log, undo: _kernel_side(plug, log, undo, "veth"),
    Tier.PYTHON: _python_side,
}


async def make_stage(tier: Tier, reason: str, directory: Path, undo: ExitStack) -> Stage:
    """Start both stacks. DemoError: this tier cannot be made here."""
    if tier is Tier.TAPS and os.geteuid() != 0:
        raise DemoError("not root")
    if tier is Tier.TAPS and not os.access(DEVICE, os.R_OK | os.W_OK):
        raise DemoError(f"no {DEVICE}")
    with ExitStack() as made:
        host = MAKERS[tier](HOST, directory / "host.log", made)
        guest = MAKERS[tier](GUEST, directory / "guest.log", made)
        await host.stack.ready()
        await guest.stack.ready()
        undo.push(made.pop_all())
    return Stage(tier, reason, host, guest)


async def choose(forced: Tier | None, directory: Path, undo: ExitStack) -> Stage:
    """The forced tier, else the best that works. ConfigError: the forced one does not work."""
    if forced:
        try:
            return await make_stage(forced, "as asked for", directory, undo)
        except DemoError as error:
            raise ConfigError(f"tier {forced} is not possible here: {error}") from error
    faults: list[str] = []
    for tier in Tier:
        try:
            return await make_stage(tier, "; ".join([_WORDS[tier][1], *faults]), directory, undo)
        except DemoError as error:
            faults.append(f"no {tier}: {error}")
    raise DemoError("; ".join(faults))
