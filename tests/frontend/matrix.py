# SPDX-License-Identifier: Apache-2.0
"""Every frontend profile against the backend on an emulated Xen: what each gets, observed at both ends.

    python -m tests.frontend.matrix > docs/frontends.md

A profile's frontend connects, passes frames of every kind both ways, closes as it does, and comes back.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from netback.abi import virtio_net
from netback.abi.netif_keys import Key
from netback.abi.virtio_net import F_NEEDS_CSUM, GSO_NONE
from netback.abi.xenbus import XenbusState as State
from netback.daemon import Backend
from netback.frontend import Frontend, Guest
from netback.frontend.profiles import PROFILES, Profile, Return
from netback.net.python import PythonNetwork
from netback.platforms.emulated import Emulator
from netback.xenbus.names import DeviceName
from tests.frontend.frames import all_on_the_wire, blank, ethernet, ones, plain
from tests.offload_oracle import TCP, UDP
from tests.vif.guest import SECONDS, serving, until_state
from tests.xenbus.toolstack import add, gone, looked, passing, take_away

MARK = plain(ethernet(77, 77))
SPEC = "python:lan"


@dataclass(frozen=True)
class Probe:
    """A message that shows a feature: `on` tells whether what arrived needed it."""

    name: str
    message: bytes
    on: Callable[[list[bytes]], bool]


def _arrives(messages: list[bytes]) -> bool:
    return bool(messages)


def _is_blank(messages: list[bytes]) -> bool:
    return any(virtio_net.HEADER.unpack(message[:10])[0] & F_NEEDS_CSUM for message in messages)


def _is_gso(messages: list[bytes]) -> bool:
    return any(virtio_net.HEADER.unpack(message[:10])[1] != GSO_NONE for message in messages)


def _is_filtered(messages: list[bytes]) -> bool:
    return not messages


PROBES = (
    Probe("frames over 4096 bytes", plain(ethernet(9014, 9014)), _arrives),
    Probe("IPv4 checksum", blank(4, UDP, ones(4, 1000)), _is_blank),
    Probe("IPv6 checksum", blank(6, UDP, ones(6, 1000)), _is_blank),
    Probe("TSO over IPv4", blank(4, TCP, ones(4, 30000), mss=1448), _is_gso),
    Probe("TSO over IPv6", blank(6, TCP, ones(6, 30000), mss=1428), _is_gso),
    Probe("multicast control", plain(bytes.fromhex("01005e7f0001") + ethernet(9, 90)[6:]), _is_filtered),
)


@dataclass
class Outcome:
    """What a run showed."""

    keys: tuple[str, ...] = ()
    """The frontend's keys while it is connected, without the toolstack's."""
    got: dict[str, str] = field(default_factory=dict)
    """The directions in which each probe's feature was used."""
    posted: int = 0
    """RX slots that wait for frames."""
    polled: bool = False
    """The backend polls for RX slots."""
    front: list[State] = field(default_factory=list)
    """The states that the frontend wrote until it was connected again."""
    back: list[State] = field(default_factory=list)


@dataclass
class Far:
    """The profile's frontend, connected, and the network behind its vif."""

    vif: Frontend
    network: PythonNetwork

    @property
    def near(self) -> PythonNetwork:
        assert isinstance(self.vif.network, PythonNetwork)
        return self.vif.network


async def observe(sender: PythonNetwork, receiver: PythonNetwork, message: bytes) -> list[bytes]:
    """The messages that arrive for one message: the same bytes on the wire, or none."""
    await sender.send(message)
    await sender.send(MARK)
    messages: list[bytes] = []
    while (arrived := await receiver.recv()) != MARK:
        messages.append(arrived)
    assert all_on_the_wire(messages) in ([], all_on_the_wire([message]))
    return messages


async def probe(far: Far) -> dict[str, str]:
    """The directions in which each feature is used: RX is toward the guest."""
    got = {}
    for each in PROBES:
        rx = each.on(await observe(far.network, far.near, each.message))
        tx = each.on(await observe(far.near, far.network, each.message))
        got[each.name] = {(True, True): "both", (True, False): "RX", (False, True): "TX"}.get((rx, tx), "-")
    return got


async def probe_xdp(backend: Backend, name: DeviceName, far: Far) -> str:
    """Whether a frontend that knows XDP gets headroom and frames with it."""
    if Key.XDP_HEADROOM not in far.vif.handshake.keys:
        return "-"
    headrooms = []
    for headroom in (256, 0):
        await far.vif.set_xdp_headroom(headroom)
        await far.vif.until(lambda: far.vif.backend_state is State.CONNECTED)
        await exchange(far, (60, 1514))
        config = backend.devices[name].config
        headrooms.append(config and config.live.xdp_headroom)
    return "RX" if headrooms == [256, 0] else "-"


async def exchange(far: Far, sizes: Iterable[int] = (14, 60, 1514, 4096)) -> None:
    """Pass frames of one slot both ways."""
    for size in sizes:
        message = plain(ethernet(size, size))
        assert await observe(far.network, far.near, message) == [message]
        assert await observe(far.near, far.network, message) == [message]


@contextmanager
def walking(states: list[State]) -> Iterator[None]:
    """Append every state that the backend writes."""
    log = logging.getLogger("netback.xenbus")

    class Walk(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            _, between, after = record.getMessage().partition(" to ")
            if record.levelno == logging.DEBUG and between:
                states.append(next(state for state in State if state.title == after))

    handler, level = Walk(logging.DEBUG), log.level
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


async def plug(backend: Backend, domid: int) -> DeviceName:
    """Give a guest a device. libxl waits for InitWait before it lets the guest run."""
    name = await add(backend.store, domid)
    await until_state(backend.store, name.backend, State.INIT_WAIT)
    return name


async def unplug(backend: Backend, name: DeviceName, *, follows: bool = True) -> None:
    """Take the device away. If its frontend does not follow the backend, libxl removes the frontend's directory."""
    device = backend.devices[name]
    await take_away(backend.store, name)
    if not follows:
        await passing(backend, lambda: device.state is State.CLOSING)
        await looked(backend, device, State.CONNECTED)
        await backend.store.rm(name.frontend)
    await until_state(backend.store, name.backend, State.CLOSED)
    await gone(backend, name)
    for path in (name.frontend, name.backend):
        await backend.store.rm(path, missing_ok=True)


async def run(profile: Profile, directory: Path) -> Outcome:
    """Connect, pass frames, close and come back, with a new emulated Xen in this directory."""
    outcome = Outcome()
    network = PythonNetwork(vnet_hdr=True)
    try:
        with Emulator(directory), walking(outcome.back):
            async with asyncio.timeout(SECONDS), serving(directory, network) as backend:
                await _visit(profile, directory, backend, network, outcome)
    finally:
        network.remove()
    for states in (outcome.front, outcome.back):
        again = states.index(State.CONNECTED, states.index(State.CONNECTED) + 1)
        del states[again + 1 :]
    return outcome


async def _visit(
    profile: Profile, directory: Path, backend: Backend, network: PythonNetwork, outcome: Outcome
) -> None:
    def note(side: str, state: State) -> None:
        if side == "frontend":
            outcome.front.append(state)

    def frontend(guest: Guest) -> Frontend:
        return Frontend(guest, config=profile.config, handshake=profile.handshake, on_state=note)

    async def use(vif: Frontend) -> None:
        await vif.connected()
        await exchange(Far(vif, network))

    async def look(name: DeviceName, vif: Frontend) -> None:
        await use(vif)
        outcome.got = await probe(Far(vif, network))
        await _describe(backend, name, vif, outcome)
        outcome.got["XDP headroom"] = await probe_xdp(backend, name, Far(vif, network))
        for states in (outcome.front, outcome.back):  # the way up, without what XDP added to it
            del states[states.index(State.CONNECTED) + 1 :]

    if profile.returns is Return.NEW_DOMAIN:
        for domid in (1, 2):
            async with Guest(directory, domid=domid) as guest:
                name = await plug(backend, domid)
                async with frontend(guest) as vif:
                    await (look(name, vif) if domid == 1 else use(vif))
                await guest.close()
                await until_state(backend.store, name.backend, State.CLOSED)
                await unplug(backend, name)
        return
    async with Guest(directory, domid=1) as guest:
        name = await plug(backend, 1)
        async with frontend(guest) as vif:
            await look(name, vif)
            if profile.returns is Return.NEW_DEVICE:
                await unplug(backend, name)
                await vif.until(lambda: not vif.backend_path)
                await plug(backend, 1)
            else:
                await vif.reload()
            await use(vif)
            await unplug(backend, name, follows=profile.handshake.follows)


async def _describe(backend: Backend, name: DeviceName, vif: Frontend, outcome: Outcome) -> None:
    keys = await backend.store.directory(name.frontend)
    outcome.keys = tuple(key for key in keys if key not in ("backend", "backend-id", "state", "mac"))
    config = backend.devices[name].config
    assert config is not None
    outcome.polled = config.rx_unannounced
    assert vif.queue is not None
    rx = await vif.guest.submit(lambda _: vif.queue.rings["rx"] if vif.queue else {})
    outcome.posted = rx["req_prod"] - rx["rsp_prod"]


# ---- documentation


def _names(states: Iterable[State]) -> str:
    return ", ".join(state.title for state in states)


def row(profile: Profile, outcome: Outcome) -> list[str]:
    """The profile's rows of the page's tables."""
    how = profile.handshake
    channels = "one for each ring" if Key.EVENT_CHANNEL_TX in outcome.keys else "one"
    control = "yes" if Key.CTRL_RING_REF in outcome.keys else "-"
    got = (
        *outcome.got.values(),
        channels,
        control,
        str(outcome.posted),
        "polling" if outcome.polled else "event",
    )
    walk = (
        "yes" if how.waits else "no",
        "after Connected" if how.posts_late else "before Connected",
        _names(outcome.front),
        _names(outcome.back),
        "closes" if how.follows else "must be forced",
        profile.returns.value,
    )
    facts = (", ".join(f"`{key}`" for key in outcome.keys), profile.source, profile.notes)
    return [f"| {' | '.join((profile.name, *cells))} |" for cells in (got, walk, facts)]


def _table(heads: Iterable[str], rows: Iterable[str]) -> str:
    heads = list(heads)
    return "\n".join([f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}", *rows])


_GOT = (
    "frontend",
    *(probe.name for probe in PROBES),
    "XDP headroom",
    "event channels",
    "control ring",
    "RX slots posted",
    "RX slots noticed by",
)
_WALK = (
    "frontend",
    "waits for InitWait",
    "posts RX slots",
    "its states",
    "netback's states",
    "when detached",
    "comes back with",
)
_FACTS = ("frontend", "keys", "facts from", "also")


def render(outcomes: Mapping[Profile, Outcome]) -> str:
    """docs/frontends.md."""
    got, walk, facts = zip(*(row(*each) for each in outcomes.items()), strict=True)
    return f"""<!-- SPDX-License-Identifier: Apache-2.0 -->
# Frontends

Made by `make docs` (`python -m tests.frontend.matrix`) from runs of netback's own netfront as each of these frontends
(`src/netback/frontend/profiles.py`), against the backend on an emulated Xen. The frontends themselves did not run: the
profiles are what their sources say. `tests/frontend/test_matrix.py` runs each again and compares it with its rows here.

## What each gets

*both* directions, *RX* (toward the guest) or *TX*. A frame that needs a feature which a frontend lacks is completed,
segmented or, if it is too large, dropped. *Multicast control*: frames to addresses that the guest did not name are
dropped before its ring. *XDP headroom*: frames went on while the frontend reconfigured itself to 256 bytes and back.
*Polling*: the frontend has no `feature-rx-notify`, so the backend looks for its RX slots without an event.

{_table(_GOT, got)}

## How each connects, closes and comes back

The states are those that each end wrote until the frontend was connected again. Where the device or its domain is new,
the toolstack wrote Closing to take the first device away. A frontend that *must be forced* pays no attention to a
backend that closes: `netback detach` and `xl network-detach` wait 10 s for it and then remove its directory.

{_table(_WALK, walk)}

## What each writes

The keys are in the order in which they are written. Linux's netfront writes the same in the same order in all copies
that were read (5.17, 6.1.15, and one from after 6.3; `xdp-headroom` came with 5.9): what differs is what it reads and
checks. The sources of 5.10 and 7.x were not read; guests of 5.10, 6.1, 6.12 and 7.2 were served on real Xen.

{_table(_FACTS, facts)}

## netback's own frontend

It has every feature of the backend. What a profile leaves out can be turned on beside it.

| feature | `FrontConfig` | while connected | `netback guest` |
|---|---|---|---|
| several queues | `queues` | - | `--queues` |
| an event channel for each ring | `split` | - | by `--like` |
| frames of several slots, GSO, checksums | `sg`, `gso4`, `gso6`, `csum4`, `csum6`, `tx` | - | by `--like` |
| multicast control | `multicast` | `Frontend.set_multicast` | `--multicast` |
| XDP headroom | `xdp_headroom` | `Frontend.set_xdp_headroom` | - |
| control ring | `control` | `Frontend.control` | by the next two |
| Toeplitz hash, both ways | `hash` | `Frontend.set_hash` | `--hash` |
| staging grants | `stage` | `Frontend.stage`, `Frontend.control.unstage` | `--stage` |
| no events for RX slots | `rx_notify` | - | by `--like` |
| carrier | - | its tap's carrier follows | always |
| MTU | - | the MTU of a tap that it made follows | always |
"""


def run_all() -> dict[Profile, Outcome]:
    """Run every profile, each on an emulated Xen of its own."""
    outcomes = {}
    for profile in PROFILES:
        with tempfile.TemporaryDirectory() as directory:
            outcomes[profile] = asyncio.run(run(profile, Path(directory)))
    return outcomes


if __name__ == "__main__":
    print(render(run_all()), end="")
