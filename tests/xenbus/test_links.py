# SPDX-License-Identifier: Apache-2.0
"""Links that are removed, created and moved while a guest is connected, and names that no link can have.

The guest does nothing and sees no change in any of these tests: its rings and every state stay the same.
"""

import asyncio
import socket
from contextlib import closing
from pathlib import Path

import pytest

from netback.abi.xenbus import XenbusState as State
from netback.daemon import Backend
from netback.net.python import PythonNetwork
from netback.net.tap import TapNetwork
from netback.xenbus.names import DeviceName
from tests.net.contract import OURS
from tests.net.far import PLAIN, FarLink
from tests.net.namespace import bring_back, inside, ip, other_network, send_to, veth
from tests.vif.guest import FRAME, SECONDS, Guest, join, readable, serving, until, until_state
from tests.xenbus.test_refusals import driver_domain
from tests.xenbus.toolstack import add, gone, passing, take_away

pytestmark = pytest.mark.usefixtures("namespace")


def links() -> set[str]:
    return {name for _, name in socket.if_nameindex()}


def mac_frame(number: int) -> bytes:
    """A broadcast frame marked by the test."""
    return b"\xff" * 6 + b"\x02\0\0\0\0\x01" + OURS + bytes([number]) * 46


async def pass_frames(backend: Backend, guest: Guest, far_name: str) -> None:
    """Pass one frame each way between the guest and the far side of its link, once the link has its carrier."""
    await passing(backend, lambda: "state UP" in ip(f"link show {far_name}"))
    with closing(FarLink(far_name)) as far:
        assert await guest.answer(guest.send(mac_frame(1))) == 0
        async with asyncio.timeout(SECONDS):
            await readable(far.socket.fileno())
        assert far.recv()[len(PLAIN) :] == mac_frame(1)
        slot = guest.post()
        far.send(PLAIN + mac_frame(2))
        assert (await guest.receive(slot))[1] == mac_frame(2)


async def fault(backend: Backend, name: DeviceName, words: str) -> None:
    """Wait until the device reports this error in its status and in its error node."""
    await passing(backend, lambda: words in backend.devices[name].error)
    await until(backend.store, f"{name.errors}/error", lambda text: words in (text or ""))


async def mended(backend: Backend, name: DeviceName) -> None:
    await passing(backend, lambda: not backend.devices[name].error)
    await until(backend.store, f"{name.errors}/error", lambda text: text is None)


async def connect(backend: Backend, guest: Guest, net: str) -> DeviceName:
    """A connected device; from now on every change of its states fails the test."""
    name = await backend.attach(guest.domid, net)
    await guest.connect()
    return name


async def unchanged(guest: Guest, name: DeviceName, answered: int) -> None:
    """The rings are the same and not resumed: requests that the guest posted before still count."""
    assert await guest.store.read(f"{name.backend}/state") == str(int(State.CONNECTED))
    assert guest.tx.index(2) >= answered


@pytest.mark.parametrize("way", ["removed", "moved"])
async def test_the_link_of_a_packet_socket_goes_and_comes_back(
    backend: Backend, guest: Guest, way: str
) -> None:
    veth("eth1", "far1")
    name = await connect(backend, guest, "packet:eth1")
    await pass_frames(backend, guest, "far1")
    with other_network() as other:
        ip("link del eth1") if way == "removed" else send_to("eth1", other)
        await fault(backend, name, "packet:eth1: no link of that name")
        assert await guest.answer(guest.send(FRAME)) == 0  # as on a cable without a carrier
        veth("eth1", "far1") if way == "removed" else bring_back("eth1", other)
        await mended(backend, name)
        await pass_frames(backend, guest, "far1")
    await unchanged(guest, name, 3)


async def test_the_link_of_a_packet_socket_is_renamed(backend: Backend, guest: Guest) -> None:
    veth("eth1", "far1")
    name = await connect(backend, guest, "packet:eth1")
    ip("link set eth1 name eth9")
    vif = backend.devices[name].vif
    assert vif is not None
    assert vif.network.name == "eth9"
    await pass_frames(backend, guest, "far1")
    assert not backend.devices[name].error


@pytest.mark.parametrize("net", ["tap", "tap:web0"])
async def test_a_tap_of_netback_s_is_removed(backend: Backend, guest: Guest, net: str) -> None:
    """The tap is made again at once, with its carrier."""
    name = await connect(backend, guest, net)
    link = "web0" if net != "tap" else name.link
    ip(f"link set {link} up")
    await pass_frames(backend, guest, link)
    for _ in range(2):
        index = socket.if_nametoindex(link)
        ip(f"link del {link}")
        await passing(
            backend, lambda index=index: (links() >= {link}) and socket.if_nametoindex(link) != index
        )  # type: ignore[misc]
        ip(f"link set {link} up")
        await pass_frames(backend, guest, link)
        assert not backend.devices[name].error
    await unchanged(guest, name, 3)
    await take_away(backend.store, name)
    await guest.set_state(State.CLOSED)
    await gone(backend, name)
    assert links() == {"lo"}


async def test_a_tap_of_others_is_removed_and_made_again(backend: Backend, guest: Guest) -> None:
    """netback waits for the link: its creator may give it other flags or another owner."""
    ip("tuntap add t0 mode tap")
    name = await connect(backend, guest, "tap:t0")
    ip("link del t0")
    await fault(backend, name, "tap:t0: the link is gone; it is used again when it is back")
    assert await guest.answer(guest.send(FRAME)) == 0
    assert links() == {"lo"}
    ip("tuntap add t0 mode tap multi_queue")
    await mended(backend, name)
    ip("link set t0 up")
    await pass_frames(backend, guest, "t0")
    await unchanged(guest, name, 2)


@pytest.mark.parametrize("back", ["t0", "t9"], ids=["", "renamed there"])
@pytest.mark.parametrize("made", [True, False], ids=["made by netback", "adopted"])
async def test_a_tap_moves_to_another_namespace_and_back(
    backend: Backend, guest: Guest, made: bool, back: str
) -> None:
    """Frames keep passing in the tap's new namespace, since the descriptor stays joined to it."""
    if not made:
        ip("tuntap add t0 mode tap")
    name = await connect(backend, guest, "tap:t0")
    with other_network() as other:
        send_to("t0", other)
        await fault(backend, name, "tap:t0: the link is in another network namespace; frames pass there")
        assert links() == {"lo"}
        inside(other, "ip link set t0 up")
        before = rx_packets(other)
        assert await guest.answer(guest.send(FRAME)) == 0
        assert rx_packets(other) == before + 1
        inside(other, f"ip link set t0 name {back}")
        bring_back(back, other)
        await mended(backend, name)
        await pass_frames(backend, guest, back)
    await unchanged(guest, name, 2)


def rx_packets(pid: int) -> int:
    return int(inside(pid, "ip -o -s link show t0").partition("RX:")[2].split()[8])


async def test_the_namespace_of_a_tap_ends(backend: Backend, guest: Guest) -> None:
    """No rtnetlink message reports it here; the worker that waits for frames finds the descriptor dead."""
    name = await connect(backend, guest, "tap:t0")
    slot = guest.post()
    with other_network() as other:
        send_to("t0", other)
        await fault(backend, name, "another network namespace")
    await mended(backend, name)
    assert links() == {"lo", "t0"}
    ip("link set t0 up")
    await passing(backend, lambda: "state UP" in ip("link show t0"))
    with closing(FarLink("t0")) as far:
        far.send(PLAIN + mac_frame(1))
        assert (await guest.receive(slot))[1] == mac_frame(1)


async def test_a_tap_is_renamed(backend: Backend, guest: Guest) -> None:
    name = await connect(backend, guest, "tap")
    ip(f"link set {name.link} name web0 up")
    await pass_frames(backend, guest, "web0")
    vif = backend.devices[name].vif
    assert vif is not None
    assert vif.network.name == "web0"
    assert not backend.devices[name].error


async def test_the_owner_of_a_python_network_closes_it(
    backend: Backend, guest: Guest, network: PythonNetwork
) -> None:
    name = await connect(backend, guest, "python:lan")
    guest.post()  # a worker waits for frames only if the guest can take them
    network.socket.close()
    await fault(backend, name, "python: its far end is closed")
    assert await guest.answer(guest.send(FRAME)) == 0


async def test_a_link_that_comes_late(backend: Backend, guest: Guest) -> None:
    """Also a link that was first made with another kind: rtnetlink reports it, no timer is needed."""
    name = await add(backend.store, guest.domid, net="packet:late0")
    await fault(backend, name, "packet:late0: no link of that name")
    ip("tuntap add late0 mode tun")
    await fault(backend, name, "packet:late0: not an Ethernet link")
    ip("link del late0")
    await fault(backend, name, "packet:late0: no link of that name")
    veth("late0", "far0")
    await until_state(guest.store, name.backend, State.INIT_WAIT)
    await mended(backend, name)
    await guest.connect()
    await pass_frames(backend, guest, "far0")


# ---- the MTU


@pytest.mark.parametrize("made", [True, False], ids=["made by netback", "adopted"])
async def test_a_guest_without_sg_lowers_the_mtu(
    xen: Path, network: PythonNetwork, guest: Guest, made: bool
) -> None:
    """The guest accepts no frame larger than a page. The earlier MTU outlives netback and returns with feature-sg."""
    if not made:
        ip("tuntap add j0 mode tap")
    async with serving(xen, network) as backend:
        name = await add(backend.store, guest.domid, net="tap:j0")
        await until_state(guest.store, name.backend, State.INIT_WAIT)
        ip("link set j0 mtu 9000 up")
        await until(guest.store, f"{name.frontend}/mtu", lambda text: text == "9000")
        await guest.connect(feature_sg="0")
        await until(guest.store, f"{name.frontend}/mtu", lambda text: text == "1500")
        assert "mtu 1500" in ip("link show j0")
        ip("link set j0 mtu 4000")
        await passing(backend, lambda: "mtu 1500" in ip("link show j0"))
    async with serving(xen, network) as backend:
        assert await guest.answer(guest.send(FRAME)) == 0
        assert "mtu 1500" in ip("link show j0")
        await guest.set_state(State.CLOSED)
        await until_state(guest.store, name.backend, State.CLOSED)
        await guest.set_state(State.INITIALISING)
        await guest.connect()
        await until(guest.store, f"{name.frontend}/mtu", lambda text: text == "4000")
        assert "mtu 4000" in ip("link show j0")


async def test_the_mtu_of_another_s_link_is_only_reported(
    backend: Backend, guest: Guest, caplog: pytest.LogCaptureFixture
) -> None:
    veth("eth1", "far1")
    ip("link set eth1 mtu 9000")
    name = await backend.attach(guest.domid, "packet:eth1")
    await guest.connect(feature_sg="0")
    assert "mtu 9000" in ip("link show eth1")
    assert f"{name}: eth1: its MTU is 9000, but this guest accepts no frame larger than a page" in caplog.text


async def test_a_bridge_of_another_mtu_is_reported(
    backend: Backend, guest: Guest, caplog: pytest.LogCaptureFixture
) -> None:
    """Once for each disagreement, whichever side changed. The frontend is told the link's."""
    ip("link add br0 type bridge")
    ip("link set br0 mtu 9000")
    name = await backend.attach(guest.domid, "tap:b0")
    await guest.connect()
    ip("link set b0 master br0")
    ip("link set br0 mtu 4000")
    ip("link set b0 mtu 1400")
    await until(guest.store, f"{name.frontend}/mtu", lambda text: text == "1400")
    ip("link set b0 mtu 4000")
    await until(guest.store, f"{name.frontend}/mtu", lambda text: text == "4000")
    ip("link set br0 mtu 3000")
    text = f"{name}: b0: its MTU is {{}}, but its bridge br0 has {{}}: frames longer than the smaller one are lost"
    await passing(backend, lambda: text.format(4000, 3000) in caplog.text)
    assert text.format(1400, 4000) in caplog.text
    assert "its MTU is 4000, but its bridge br0 has 4000" not in caplog.text
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == len(set(messages))


async def test_a_frontend_that_was_told_another_mtu(
    xen: Path, guest: Guest, network: PythonNetwork, caplog: pytest.LogCaptureFixture
) -> None:
    """One truth: what a toolstack wrote is replaced by the link's MTU."""
    veth("eth1", "far1")
    ip("link set eth1 up")
    ip("link set eth1 mtu 4000")
    async with serving(xen, network) as backend:
        name = await add(backend.store, guest.domid, net="packet:eth1")
        await backend.store.write(f"{name.frontend}/mtu", "9000")
        await guest.connect()
        await until(guest.store, f"{name.frontend}/mtu", lambda text: text == "4000")
        assert "its MTU is" not in caplog.text


async def test_a_driver_domain_reports_what_it_may_not_write(
    xen: Path, caplog: pytest.LogCaptureFixture
) -> None:
    veth("eth1", "far1")
    async with driver_domain(xen) as (backend, dom0), join(xen, backend=backend.platform.domid) as guest:
        name = await add(
            dom0,
            guest.domid,
            backend=backend.platform.domid,
            net="packet:eth1",
            script="s",
            hotplug_status="",
        )
        await dom0.write(f"{name.frontend}/mtu", "9000")
        await dom0.set_perms(f"{name.frontend}/mtu", [f"n{guest.domid}", f"r{backend.platform.domid}"])
        await dom0.write(f"{name.backend}/hotplug-status", "connected")
        await guest.connect()
        text = f"{name}: eth1: its MTU is 1500, but the frontend was told 9000: frames longer than the smaller one"
        async with asyncio.timeout(SECONDS):
            while text not in caplog.text:
                await dom0.read("/local/domain/0/name")


# ---- names


@pytest.mark.parametrize(
    ("number", "vifname", "words"),
    [
        ("2147483640", None, "tap: link name 'vif{domid}.2147483640' is longer than 15 characters"),
        ("1", "vif%d", "tap: link name 'vif%d' has the character '%'"),
        ("1", "a-name-of-20-letters", "tap: link name 'a-name-of-20-letters' is longer than 15 characters"),
        ("1", "..", "tap: '..' cannot be the name of a link"),
        ("1", "a/b", "tap: link name 'a/b' has the character '/'"),
        ("1", "a b", "tap: link name 'a b' has the character ' '"),
        ("1", "lo", "tap:lo: a link of that name exists and is not a tap"),
    ],
)
async def test_a_name_that_cannot_be(
    backend: Backend,
    xen: Path,
    caplog: pytest.LogCaptureFixture,
    number: str,
    vifname: str | None,
    words: str,
) -> None:
    async with join(xen, domid=12345) as guest:
        name = await add(backend.store, guest.domid, number=number, net="tap", vifname=vifname)
        await fault(backend, name, words.format(domid=guest.domid))
        await backend.store.write(f"{name.backend}/online", "1")  # read again, the error is the same
        await passing(backend, lambda: not backend.devices[name].news.is_set())
        assert sum(str(name) in record.getMessage() for record in caplog.records) == 1
        assert links() == {"lo"}
        assert await guest.store.read(f"{name.backend}/state") == str(int(State.INITIALISING))


async def test_a_name_becomes_free(backend: Backend, guest: Guest) -> None:
    veth("web0", "far0")
    name = await add(backend.store, guest.domid, net="tap", vifname="web0")
    await fault(backend, name, "tap:web0: a link of that name exists and is not a tap")
    ip("link del web0")
    await until_state(guest.store, name.backend, State.INIT_WAIT)
    await mended(backend, name)
    assert links() == {"lo", "web0"}


async def test_two_devices_name_one_tap(backend: Backend, guest: Guest, xen: Path) -> None:
    """The first device keeps the tap under any name; the second gets it once the first is gone."""
    ip("tuntap add web0 mode tap multi_queue")  # where the kernel would admit both
    first = await add(backend.store, guest.domid, net="tap:web0")
    await until_state(guest.store, first.backend, State.INIT_WAIT)
    ip("link set web0 name lan0")
    async with join(xen) as other:
        for net in ("tap:web0", "tap:lan0"):
            second = await add(backend.store, other.domid, net=net)
            await fault(backend, second, f"{net}: vif{guest.domid}.0 uses it (EBUSY); choose another name")
            await take_away(backend.store, second)
            await gone(backend, second)
        second = await add(backend.store, other.domid, net="tap:lan0")
        await fault(backend, second, "(EBUSY)")
        await take_away(backend.store, first)
        await gone(backend, first)
        await until_state(other.store, second.backend, State.INIT_WAIT)


async def test_a_tap_that_is_back_is_another_device_s(backend: Backend, guest: Guest, xen: Path) -> None:
    """Its name was given to that one meanwhile."""
    for link in ("web0", "lan0"):
        ip(f"tuntap add {link} mode tap multi_queue")  # where the kernel would let both in
    first = await connect(backend, guest, "tap:web0")
    async with join(xen) as other:
        second = await add(backend.store, other.domid, net="tap:lan0")
        await until_state(other.store, second.backend, State.INIT_WAIT)
        ip("link del web0")
        await fault(backend, first, "tap:web0: the link is gone")
        ip("link set lan0 name web0")
        await fault(backend, first, f"tap:web0: {second} uses it (EBUSY); choose another name")
        await take_away(backend.store, second)
        await gone(backend, second)
    await mended(backend, first)
    ip("link set web0 up")
    await pass_frames(backend, guest, "web0")


async def test_another_process_holds_the_tap(backend: Backend, guest: Guest) -> None:
    holder = TapNetwork("web0")
    name = await add(backend.store, guest.domid, net="tap:web0")
    words = "tap:web0: another process holds it (EBUSY); stop it or choose another name"
    await fault(backend, name, words)
    holder.close()
    await until_state(guest.store, name.backend, State.INIT_WAIT)
