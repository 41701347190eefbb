# SPDX-License-Identifier: Apache-2.0
"""A scenario for each rule of daemon/rules.py: what goes wrong, on an emulated Xen, and the picture taken of it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from netback.abi.netif import RX_REQUEST, RX_SLOT, TX_REQUEST, TX_SLOT, ExtraType, TxFlag
from netback.abi.netif_control import CtrlType
from netback.abi.xenbus import XenbusState as State
from netback.abi.xs_wire import Op
from netback.daemon import Backend, BackendConfig
from netback.daemon.control import Methods
from netback.daemon.explain import observe
from netback.daemon.facts import Facts
from netback.daemon.machine import Machine
from netback.daemon.status import read_details, read_devices
from netback.frontend import FrontConfig, Frontend
from netback.net.python import PythonNetwork
from netback.net.tap import TapNetwork
from netback.platforms.emulated import EmulatedPlatform
from netback.vif.features import WaitTimes
from netback.vif.vif import Vif
from netback.xenbus.names import DeviceName
from netback.xenbus.nodes import CARRIER_OFF, LINK_DOWN
from netback.xenstore.aio import Store
from tests.frontend.frames import blank, ethernet, ones, plain
from tests.frontend.test_steering import frame_of
from tests.net.namespace import ip, new_network
from tests.offload_oracle import TCP, UDP
from tests.vif.guest import FRAME, Guest, join, serving, until, until_state
from tests.xenbus.refusals import Refusal, refusing
from tests.xenbus.toolstack import add, looked, passing, take_away

SCRIPT = "/etc/xen/scripts/vif-bridge"
GROUP = bytes.fromhex("01005e000009")


async def nothing() -> None:
    """What happens between the two readings of most scenarios."""


@dataclass
class Stage:
    """An emulated Xen, and what a scenario has put on it."""

    xen: Path
    undo: AsyncExitStack
    network: PythonNetwork = field(init=False)
    backend: Backend = field(init=False)
    guest: Guest = field(init=False)
    name: DeviceName = field(init=False)

    async def serve(self, network: PythonNetwork | None = None, **config: object) -> Backend:
        """Start the backend."""
        self.network = network or PythonNetwork()
        self.undo.callback(self.network.remove)
        self.backend = await self.undo.enter_async_context(serving(self.xen, self.network, **config))
        return self.backend

    async def join(self) -> Guest:
        """Start the guest."""
        self.guest = await self.undo.enter_async_context(join(self.xen, domid=1))
        return self.guest

    async def add(self, **nodes: str | None) -> DeviceName:
        """Start both, and give the guest a device whose backend directory has these nodes."""
        if not hasattr(self, "backend"):
            await self.serve()
        await self.join()
        self.name = await add(self.backend.store, 1, **nodes)
        return self.name

    async def connect(self, network: PythonNetwork | None = None, **keys: str | None) -> None:
        """The same, and the guest connects."""
        await self.serve(network)
        await self.add()
        await self.guest.connect(**keys)

    async def offer(self, **nodes: str | None) -> None:
        """Give the guest a device and wait for its InitWait."""
        name = await self.add(**nodes)
        await until_state(self.guest.store, name.backend, State.INIT_WAIT)

    async def fails(self, **nodes: str | None) -> None:
        """Give the guest a device and wait for its error."""
        name = await self.add(**nodes)
        await passing(self.backend, lambda: name in self.backend.devices and bool(self.error))

    @property
    def error(self) -> str:
        return self.backend.devices[self.name].error

    @property
    def vif(self) -> Vif:
        vif = self.backend.devices[self.name].vif
        assert vif is not None
        return vif

    async def counted(self, counter: str, least: int = 1) -> None:
        """Wait for a counter."""
        await passing(self.backend, lambda: self.vif.counters.get(counter, 0) >= least)

    async def see(
        self, act: Callable[[], Awaitable[None]] = nothing, machine: Machine | None = None
    ) -> Facts:
        """The picture; `act` happens between the two readings."""
        return await Methods(self.backend, machine).picture(str(self.name), act)

    async def send(self, *slots: bytes) -> None:
        """Put TX slots on the ring at once, and wait for the last response."""
        tx = self.guest.tx
        for number, slot in enumerate(slots):
            tx.slot(tx.index(0) + number, TX_SLOT)[:] = slot.ljust(TX_SLOT, b"\0")
        tx.index(0, tx.index(0) + len(slots))
        self.guest.kick()
        await self.guest.responses(tx, tx.index(0) - 1)

    def request(self, frame: bytes, flags: int = 0) -> bytes:
        """A TX slot with a frame of up to a page; all such frames share the page."""
        self.guest.domain.view(self.guest.pages[0].frame)[: len(frame)] = frame
        return TX_REQUEST.pack(self.guest.grefs[0], 0, flags, 0, len(frame))

    def post(self, count: int) -> None:
        """Post RX slots at once; all have the same page."""
        rx = self.guest.rx
        for number in range(count):
            RX_REQUEST.pack_into(rx.slot(rx.index(0) + number, RX_SLOT), 0, number, 0, self.guest.grefs[4])
        rx.index(0, rx.index(0) + count)
        self.guest.kick()

    async def receive(self, frames: int, message: bytes = FRAME) -> None:
        """Give the guest frames of one slot, with slots for them."""
        self.post(frames)
        for _ in range(frames):
            await self.network.send(message)
        await self.guest.responses(self.guest.rx, self.guest.rx.index(0) - 1)


Scenario = Callable[[Stage], Awaitable[Facts]]
SCENARIOS: dict[str, Scenario] = {}
"""By the rule that each provokes."""


def provokes(rule: str) -> Callable[[Scenario], Scenario]:
    def keep(scenario: Scenario) -> Scenario:
        assert rule not in SCENARIOS
        SCENARIOS[rule] = scenario
        return scenario

    return keep


async def played(rule: str, xen: Path) -> Facts:
    """The picture of a rule's scenario."""
    async with AsyncExitStack() as undo:
        return await SCENARIOS[rule](Stage(xen, undo))


def linked(scenario: Scenario) -> Scenario:
    """A scenario with links, in a network namespace of its own."""

    async def play(stage: Stage) -> Facts:
        stage.undo.enter_context(new_network())
        return await scenario(stage)

    return play


def gso(frame: bytes, mss: int, flags: int, stage: Stage) -> list[bytes]:
    """The slots of a GSO frame."""
    extra = bytes([ExtraType.GSO, 0]) + mss.to_bytes(2, "little") + bytes([1, 0, 0, 0])
    return [stage.request(frame, flags | TxFlag.EXTRA_INFO), extra]


# ---- the backend's domain


@provokes("no-backend")
async def _(stage: Stage) -> Facts:
    store = await stage.undo.enter_async_context(await Store.connect(stage.xen / "xenstored.sock"))
    await stage.join()
    name = await add(store, 1)
    (found,) = await read_devices(store, 0, name)
    return await observe(store, name, await read_details(store, name, found), None, None, served=False)


async def on_a_machine(stage: Stage, file: str, text: str = "", **nodes: str | None) -> Facts:
    """A device on a machine that has this file."""
    await stage.offer(**nodes)
    path = stage.xen / "root" / file
    path.parent.mkdir(parents=True)
    path.write_text(text)
    return await stage.see(machine=Machine(root=stage.xen / "root"))


@provokes("kernel-backend")
async def _(stage: Stage) -> Facts:
    return await on_a_machine(stage, "sys/bus/xen-backend/drivers/vif/vif-1-0")


@provokes("kernel-backend-loaded")
async def _(stage: Stage) -> Facts:
    return await on_a_machine(stage, "sys/module/xen_netback/version")


@provokes("qemu-claims")
async def _(stage: Stage) -> Facts:
    await stage.serve()
    await stage.join()
    stage.name = await add(stage.backend.store, 1, kind="qnic")
    path = stage.xen / "root" / "proc/7/cmdline"
    path.parent.mkdir(parents=True)
    path.write_text("qemu\0-xen-attach\0")
    return await stage.see(machine=Machine(root=stage.xen / "root"))


# ---- who has the device


@provokes("detach-unanswered")
async def _(stage: Stage) -> Facts:
    await stage.connect()
    await take_away(stage.backend.store, stage.name)
    await looked(stage.backend, stage.backend.devices[stage.name], State.CONNECTED)
    return await stage.see()


@provokes("going")
async def _(stage: Stage) -> Facts:
    await stage.offer()
    await take_away(stage.backend.store, stage.name)
    await until_state(stage.guest.store, stage.name.backend, State.CLOSED)
    return await stage.see()


@provokes("other-backend")
async def _(stage: Stage) -> Facts:
    await stage.offer(net="null")
    await stage.guest.connect()
    second = Backend(EmulatedPlatform(stage.xen), BackendConfig(stage.xen / "second", workers=1))
    stage.undo.callback(second.platform.close)
    stage.backend = await stage.undo.enter_async_context(second)
    await passing(second, lambda: "another process" in stage.error)
    return await stage.see()


@provokes("store-quota")
async def _(stage: Stage) -> Facts:
    refusal = Refusal(Op.WATCH, "device/vif/0", "E2BIG", times=1000)
    stage.backend = await stage.undo.enter_async_context(refusing(stage.xen, refusal))
    await stage.fails(net="null")
    return await stage.see()


@provokes("journal")
async def _(stage: Stage) -> Facts:
    await stage.offer()
    (stage.xen / "journal" / "vif-1-0").mkdir()
    await stage.guest.connect(wait=False)
    await passing(stage.backend, lambda: bool(stage.error))
    return await stage.see()


# ---- states


@provokes("frontend-vanished")
async def _(stage: Stage) -> Facts:
    await stage.connect()
    await stage.backend.store.rm(stage.name.frontend)
    await until_state(stage.guest.store, stage.name.backend, State.CLOSED)
    return await stage.see()


@provokes("frontend-owner")
async def _(stage: Stage) -> Facts:
    await stage.offer()
    await stage.undo.enter_async_context(join(stage.xen, domid=7))
    await stage.backend.store.set_perms(stage.name.frontend, ["n7", "b0"])
    return await stage.see()


@provokes("keys-refused")
async def _(stage: Stage) -> Facts:
    await stage.add()
    await stage.guest.connect(wait=False, feature_sg="perhaps")
    await until_state(stage.guest.store, stage.name.backend, State.CLOSING)
    return await stage.see()


@provokes("protocol-broken")
async def _(stage: Stage) -> Facts:
    await stage.connect()
    stage.guest.tx.index(0, 300)
    stage.guest.kick()
    await until_state(stage.guest.store, stage.name.backend, State.CLOSING)
    return await stage.see()


@provokes("fault-recorded")
async def _(stage: Stage) -> Facts:
    await stage.serve(record="on")
    await stage.add()
    await stage.guest.connect()
    stage.guest.tx.index(0, 300)
    stage.guest.kick()
    await until_state(stage.guest.store, stage.name.backend, State.CLOSING)
    return await stage.see()


@provokes("hotplug-failed")
async def _(stage: Stage) -> Facts:
    await stage.offer(script=SCRIPT, hotplug_status="error", hotplug_error="no bridge xenbr0")
    return await stage.see()


@provokes("hotplug-waits")
async def _(stage: Stage) -> Facts:
    await stage.offer(script=SCRIPT, hotplug_status="")
    return await stage.see()


@provokes("frontend-never-came")
async def _(stage: Stage) -> Facts:
    await stage.offer()
    return await stage.see()


@provokes("frontend-half-way")
async def _(stage: Stage) -> Facts:
    await stage.offer()
    await stage.guest.set_state(State.INITIALISED)
    return await stage.see()


@provokes("frontend-left")
async def _(stage: Stage) -> Facts:
    await stage.connect()
    await stage.guest.set_state(State.CLOSED)
    await until_state(stage.guest.store, stage.name.backend, State.CLOSED)
    return await stage.see()


@provokes("mac-differs")
async def _(stage: Stage) -> Facts:
    await stage.connect()
    await stage.backend.store.write(f"{stage.name.frontend}/mac", "00:16:3e:99:99:99")
    return await stage.see()


@provokes("mac-twice")
@linked
async def _(stage: Stage) -> Facts:
    """Both devices of a guest, which has been given one address; another has the address in another network."""
    ip("link add br0 type bridge")
    await stage.offer(net="tap:t0,bridge=br0")
    for number, net in enumerate(("tap:t1,bridge=br0", "tap:t2"), 1):
        other = await add(stage.backend.store, 1, number=str(number), net=net)
        await until_state(stage.guest.store, other.backend, State.INIT_WAIT)
    facts = await stage.see()
    assert facts.twins == ("vif1.1",)
    return facts


# ---- the network


@provokes("tap-busy")
@linked
async def _(stage: Stage) -> Facts:
    held = TapNetwork("t0")
    stage.undo.callback(held.remove)
    await stage.fails(net="tap:t0")
    return await stage.see()


@provokes("no-such-bridge")
@linked
async def _(stage: Stage) -> Facts:
    await stage.fails(net="tap:t0,bridge=br9")
    return await stage.see()


@provokes("link-gone")
@linked
async def _(stage: Stage) -> Facts:
    await stage.fails(net="packet:e0")
    return await stage.see()


@provokes("far-end-gone")
async def _(stage: Stage) -> Facts:
    await stage.connect()
    stage.network.socket.close()
    await until(stage.guest.store, f"{stage.name.backend}/carrier", lambda value: value == "0")
    return await stage.see()


@provokes("link-cut")
async def _(stage: Stage) -> Facts:
    await stage.connect()
    await stage.backend.store.write(f"{stage.name.backend}/{LINK_DOWN}", "1")
    return await stage.see()


@provokes("carrier-off")
async def _(stage: Stage) -> Facts:
    await stage.connect()
    await stage.backend.store.write(f"{stage.name.backend}/{CARRIER_OFF}", "1")
    return await stage.see()


@provokes("link-down")
@linked
async def _(stage: Stage) -> Facts:
    await stage.offer(net="tap:t0")
    return await stage.see()


@provokes("no-carrier")
@linked
async def _(stage: Stage) -> Facts:
    ip("link add e0 type veth peer name far0")
    ip("link set e0 up")
    await stage.offer(net="packet:e0")
    return await stage.see()


@provokes("not-in-bridge")
@linked
async def _(stage: Stage) -> Facts:
    await stage.offer(net="tap:t0", script=SCRIPT, bridge="xenbr0", hotplug_status="connected")
    ip("link set t0 up")
    return await stage.see()


async def bridged(stage: Stage, wanted: str, mtu: int = 1500) -> Facts:
    """A tap in the bridge br0, with the MTU that the bridge is given; the toolstack wants another bridge."""
    await stage.offer(net="tap:t0", script=SCRIPT, bridge=wanted, hotplug_status="connected")
    ip("link add br0 type bridge")
    ip("link set t0 master br0 up")
    ip(f"link set br0 mtu {mtu}")
    return await stage.see()


@provokes("other-bridge")
@linked
async def _(stage: Stage) -> Facts:
    return await bridged(stage, "xenbr0")


@provokes("bridge-down")
@linked
async def _(stage: Stage) -> Facts:
    return await bridged(stage, "br0")


@provokes("bridge-mtu")
@linked
async def _(stage: Stage) -> Facts:
    return await bridged(stage, "br0", 1400)


# ---- sizes


@provokes("guest-mtu")
@linked
async def _(stage: Stage) -> Facts:
    await stage.offer(net="tap:t0")
    await stage.guest.connect()
    await stage.backend.store.write(f"{stage.name.frontend}/mtu", "1400")
    return await stage.see()


@provokes("jumbo-without-sg")
@linked
async def _(stage: Stage) -> Facts:
    ip("link add e0 mtu 9000 type veth peer name far0")
    await stage.offer(net="packet:e0")
    await stage.guest.connect(feature_sg=None)
    return await stage.see()


@provokes("too-big")
async def _(stage: Stage) -> Facts:
    await stage.connect(feature_sg=None)
    await stage.network.send(ethernet(1, 9014))
    await stage.counted("rx_too_big")
    return await stage.see()


# ---- limits


@provokes("rate-zero")
async def _(stage: Stage) -> Facts:
    await stage.offer(rate="0,50000")
    return await stage.see()


@provokes("rate-unknown")
async def _(stage: Stage) -> Facts:
    await stage.offer(rate="fast")
    return await stage.see()


@provokes("rate-limited")
async def _(stage: Stage) -> Facts:
    await stage.offer(rate="1000,1000000", net="null")
    await stage.guest.connect()

    async def act() -> None:
        for _ in range(4):
            stage.guest.send(ethernet(1, 1514))
        await stage.counted("tx_throttled")

    return await stage.see(act)


# ---- filters


@provokes("antispoof-drops")
async def _(stage: Stage) -> Facts:
    await stage.offer(net="null", filters="antispoof", mac="00:16:3e:00:00:01")
    await stage.guest.connect()
    await stage.send(stage.request(FRAME))
    return await stage.see()


@provokes("vlan-drops")
async def _(stage: Stage) -> Facts:
    await stage.offer(net="null", filters="vlan,access=10")
    await stage.guest.connect()
    await stage.send(stage.request(FRAME[:12] + bytes.fromhex("8100000b") + FRAME[12:]))
    return await stage.see()


@provokes("faults-drops")
async def _(stage: Stage) -> Facts:
    await stage.offer(net="null", filters="faults,loss=100%")
    await stage.guest.connect()
    await stage.send(stage.request(FRAME))
    return await stage.see()


# ---- the guest's slots and events


@provokes("stalled")
async def _(stage: Stage) -> Facts:
    await stage.serve(times=WaitTimes(drain=3600, stall=0.01))
    await stage.add()
    await stage.guest.connect()
    await stage.network.send(FRAME)
    await passing(stage.backend, lambda: stage.vif.stalled is not None)
    return await stage.see()


@provokes("no-rx-notify")
async def _(stage: Stage) -> Facts:
    await stage.connect(feature_rx_notify=None)
    await stage.network.send(FRAME)
    await stage.counted("rx_expired")
    return await stage.see()


@provokes("no-rx-slots")
async def _(stage: Stage) -> Facts:
    await stage.connect()
    await stage.network.send(FRAME)
    await passing(stage.backend, lambda: stage.vif.dump()[1].state == "NO_SLOTS_LONG")
    return await stage.see()


@provokes("rx-expired")
async def _(stage: Stage) -> Facts:
    await stage.serve(times=WaitTimes(drain=0.05, stall=0))
    await stage.add()
    await stage.guest.connect()
    await stage.network.send(FRAME)
    await stage.counted("rx_expired")
    return await stage.see()


@provokes("few-rx-slots")
async def _(stage: Stage) -> Facts:
    await stage.connect()

    async def act() -> None:
        for number in range(1, 21):
            await stage.network.send(FRAME)
            await stage.counted("rx_stalls", number)
            await stage.guest.receive(stage.guest.post())

    return await stage.see(act)


@provokes("lost-event")
async def _(stage: Stage) -> Facts:
    """An event of the connection that is still on its way takes a request along."""
    await stage.connect()
    for number in range(1, 1000):
        await passing(stage.backend, lambda: stage.vif.dump()[0].state == "RING_IDLE")
        stage.guest.tx.index(0, number)
        facts = await stage.see()
        if facts.stuck(facts.rings[0]):
            break
    return facts


@provokes("empty-events")
async def _(stage: Stage) -> Facts:
    await stage.connect()

    def kicks() -> bool:
        stage.guest.kick()
        return stage.vif.counters["events_empty"] >= 25

    return await stage.see(lambda: passing(stage.backend, kicks))


# ---- losses


@provokes("network-full")
async def _(stage: Stage) -> Facts:
    """The far end reads nothing, and its buffer is small."""
    network = PythonNetwork()
    with socket.fromfd(network.peers[0].fd, socket.AF_UNIX, socket.SOCK_SEQPACKET) as near:
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
    await stage.connect(network)
    for _ in range(64):
        stage.guest.send(ethernet(1, 4000))
    await passing(stage.backend, lambda: stage.vif.dump()[0].state in ("PEER_FULL", "PEER_BUSY"))
    return await stage.see()


@provokes("network-refuses")
async def _(stage: Stage) -> Facts:
    await stage.connect()
    stage.network.socket.close()
    await stage.send(stage.request(FRAME))
    await stage.counted("tx_refused")
    return await stage.see()


class Overflowing(PythonNetwork):
    """A network whose queue loses a frame at each look."""

    lost = 0

    def drops(self) -> dict[str, int]:
        self.lost += 1
        return {"rx_overflow": self.lost}


@provokes("network-drops")
async def _(stage: Stage) -> Facts:
    await stage.connect(Overflowing())
    return await stage.see()


@provokes("tx-errors")
async def _(stage: Stage) -> Facts:
    await stage.connect()
    await stage.send(stage.request(FRAME[:10]))
    return await stage.see()


@provokes("rx-copy-errors")
async def _(stage: Stage) -> Facts:
    await stage.connect()
    stage.guest.grefs[4] = 999
    await stage.receive(1)
    await stage.counted("rx_errors")
    return await stage.see()


@provokes("tx-checksum")
async def _(stage: Stage) -> Facts:
    await stage.connect()
    await stage.send(stage.request(ethernet(1, 60), TxFlag.CSUM_BLANK))
    return await stage.see()


@provokes("rx-checksum")
async def _(stage: Stage) -> Facts:
    """GSO in what is no packet at all."""
    await stage.connect(PythonNetwork(vnet_hdr=True))
    message = blank(4, TCP, ones(1, 3000), mss=1448)
    await stage.network.send(message[:10] + ethernet(1, 3000))
    await stage.counted("rx_dropped")
    return await stage.see()


@provokes("rx-truncated")
async def _(stage: Stage) -> Facts:
    await stage.connect()
    await stage.network.send(bytes(70000))
    await stage.counted("rx_truncated")
    return await stage.see()


async def two_queues(stage: Stage, network: PythonNetwork, rx_slots: int = 256) -> Frontend:
    """A frontend of netback's own with two queues."""
    await stage.serve(network, queues=2)
    vif = await stage.undo.enter_async_context(
        Frontend(stage.xen, config=FrontConfig(queues=2, rx_slots=rx_slots), domid=1)
    )
    stage.name = await add(stage.backend.store, 1)
    await vif.connected()
    return vif


@provokes("inbox-full")
async def _(stage: Stage) -> Facts:
    """Nothing reads what the guest receives."""
    await two_queues(stage, PythonNetwork(vnet_hdr=True), rx_slots=18)
    while stage.vif.counters.get("rx_inbox_full", 0) < 10:
        await stage.network.send(plain(frame_of(1, 1, 60000)))
        await asyncio.sleep(0)
    return await stage.see()


@provokes("multicast-full")
async def _(stage: Stage) -> Facts:
    await stage.connect(request_multicast_control="1")
    slots: list[bytes] = []
    for number in range(65):
        slots.append(stage.request(FRAME, TxFlag.EXTRA_INFO))
        slots.append(bytes([ExtraType.MCAST_ADD, 0]) + GROUP[:5] + bytes([number]))
    await stage.send(*slots)
    return await stage.see()


@provokes("multicast-filtered")
async def _(stage: Stage) -> Facts:
    await stage.connect(request_multicast_control="1")

    async def act() -> None:
        for _ in range(100):
            await stage.network.send(GROUP + FRAME[6:])
        await stage.counted("rx_filtered", 100)

    return await stage.see(act)


@provokes("control-refused")
async def _(stage: Stage) -> Facts:
    await stage.serve()
    config = FrontConfig(control=True)
    vif = await stage.undo.enter_async_context(Frontend(stage.xen, config=config, domid=1))
    stage.name = await add(stage.backend.store, 1)
    await vif.connected()
    assert vif.control is not None
    await vif.control.request(CtrlType.GET_HASH_FLAGS)
    return await stage.see()


@provokes("nothing-received")
async def _(stage: Stage) -> Facts:
    await stage.offer(net="null")
    await stage.guest.connect()
    await stage.send(*[stage.request(FRAME)] * 100)
    return await stage.see()


@provokes("nothing-sent")
async def _(stage: Stage) -> Facts:
    await stage.connect()
    await stage.receive(100)
    await stage.counted("rx_frames", 100)
    return await stage.see()


# ---- speed


@provokes("guest-checksums")
async def _(stage: Stage) -> Facts:
    await stage.connect(PythonNetwork(vnet_hdr=True), feature_no_csum_offload="1")

    async def act() -> None:
        await stage.receive(100, blank(4, UDP, ones(4, 1000)))
        await stage.counted("rx_frames", 100)

    return await stage.see(act)


@provokes("guest-gso")
async def _(stage: Stage) -> Facts:
    await stage.connect(PythonNetwork(vnet_hdr=True))

    async def act() -> None:
        stage.post(100)
        await stage.network.send(blank(4, TCP, ones(4, 60000), mss=1448))
        await stage.counted("rx_segmented")

    return await stage.see(act)


def tcp(size: int) -> bytes:
    """A TCP frame without its checksum."""
    return blank(4, TCP, ones(4, size), mss=1000)[10:]


@provokes("network-gso")
async def _(stage: Stage) -> Facts:
    await stage.connect()

    async def act() -> None:
        frame = gso(tcp(3000), 1000, TxFlag.CSUM_BLANK | TxFlag.DATA_VALIDATED, stage)
        await stage.send(*frame * 20)

    return await stage.see(act)


async def busy(stage: Stage, frame: bytes, queues: int = 1) -> Facts:
    """A guest that sends a thousand frames, 250 at once."""
    await stage.serve(queues=queues)
    await stage.offer(net="null")
    await stage.guest.connect()

    async def act() -> None:
        for _ in range(4):
            await stage.send(*[stage.request(frame)] * 250)
        await stage.counted("tx_frames", 1000)

    return await stage.see(act)


@provokes("no-gso-from-guest")
async def _(stage: Stage) -> Facts:
    return await busy(stage, ethernet(1, 1514))


@provokes("gso-fixed-up")
async def _(stage: Stage) -> Facts:
    await stage.connect()

    async def act() -> None:
        await stage.send(*gso(tcp(3000), 1000, 0, stage) * 20)

    return await stage.see(act)


@provokes("one-queue")
async def _(stage: Stage) -> Facts:
    return await busy(stage, FRAME, queues=2)


@provokes("one-busy-queue")
async def _(stage: Stage) -> Facts:
    vif = await two_queues(stage, PythonNetwork())
    assert isinstance(vif.network, PythonNetwork)
    far = vif.network

    async def act() -> None:
        for number in range(1000):
            await stage.network.send(frame_of(1, number))
            await far.recv()
        await stage.counted("rx_frames", 1000)

    return await stage.see(act)


class Slow(PythonNetwork):
    """A tap whose spec asks for vhost-net, on a machine that has none (tests/net/test_tap.py)."""

    path = "system calls: /dev/vhost-net cannot be opened: No such file or directory"


@provokes("no-vhost-net")
async def _(stage: Stage) -> Facts:
    await stage.connect(Slow())
    return await stage.see()


@provokes("device-error")
async def _(stage: Stage) -> Facts:
    await stage.fails(net="wire")
    return await stage.see()
