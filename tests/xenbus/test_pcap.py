# SPDX-License-Identifier: Apache-2.0
"""`set --pcap`: the backend keeps a device's frames, live, over its restart, and without harm to the device."""

from pathlib import Path

import pytest

from netback.control import Client
from netback.control.schema import PcapStatus
from netback.daemon import Backend
from netback.errors import ConfigError
from netback.net.python import PythonNetwork
from netback.xenbus.names import DeviceName
from netback.xenstore.aio import StoreError
from tests.crash.respawn import until
from tests.daemon.talk import client
from tests.observe.test_pcapng import fields_of
from tests.vif.guest import Guest, exchange, serving


async def settle(xen: Path, name: DeviceName, pcap: str) -> PcapStatus | None:
    return (await client(xen, lambda made: made.set(str(name), pcap=pcap))).pcap


async def status(xen: Path, name: DeviceName) -> PcapStatus | None:
    def show(made: Client) -> PcapStatus | None:
        return made.show(str(name)).device.pcap

    return await client(xen, show)


@pytest.fixture
async def name(backend: Backend, guest: Guest) -> DeviceName:
    made = await backend.attach(guest.domid, "python:lan")
    await guest.connect()
    return made


async def test_on_and_off(
    xen: Path, backend: Backend, name: DeviceName, guest: Guest, network: PythonNetwork, tmp_path: Path
) -> None:
    path = tmp_path / "web.pcapng"
    await exchange(guest, network)
    begun = await settle(xen, name, f"{path},snaplen=30")
    assert begun == PcapStatus(file=str(path), frames=0, lost=0, error=None)
    await exchange(guest, network)
    device = backend.devices[name]
    await until(lambda: device.pcap is not None and device.pcap.frames == 2)
    assert await status(xen, name) == PcapStatus(file=str(path), frames=2, lost=0, error=None)
    assert await settle(xen, name, "none") is None
    await exchange(guest, network)
    assert await status(xen, name) is None
    assert fields_of(path, "frame.interface_name", "frame.cap_len") == [
        [f"{name} tx", "30"], [f"{name} rx", "30"],
    ]  # fmt: skip


async def test_the_guest_does_not_learn_of_it(
    xen: Path, name: DeviceName, guest: Guest, tmp_path: Path
) -> None:
    assert await guest.store.read(f"{name.backend}/mac")
    await settle(xen, name, str(tmp_path / "web.pcapng"))
    with pytest.raises(StoreError) as raised:
        await guest.store.read(f"{name.backend}/pcap")
    assert raised.value.errno == "EACCES"


async def test_over_a_restart(xen: Path, guest: Guest, network: PythonNetwork, tmp_path: Path) -> None:
    """The next backend goes on with a section of its own; the guest notices nothing."""
    path = tmp_path / "web.pcapng"
    async with serving(xen, network) as backend:
        name = await backend.attach(guest.domid, "python:lan")
        await guest.connect()
        await settle(xen, name, str(path))
        await exchange(guest, network)
    async with serving(xen, network) as backend:
        await exchange(guest, network)
        device = backend.devices[name]
        await until(lambda: device.pcap is not None and device.pcap.frames == 2)
    assert [each for (each,) in fields_of(path, "frame.section_number")] == [*"1122"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("web.pcapng", "absolute path"),
        ("/nonexistent/web.pcapng", "No such file or directory"),
        ("/etc/passwd", "exists and is no pcapng capture"),
        ("/tmp,size=1", "size is"),
        ("/dev/null", "no regular file"),
    ],
)
async def test_a_wrong_value_changes_nothing(
    xen: Path, backend: Backend, name: DeviceName, tmp_path: Path, text: str, said: str
) -> None:
    path = tmp_path / "web.pcapng"
    await settle(xen, name, str(path))
    with pytest.raises(ConfigError, match=said):
        await settle(xen, name, text)
    found = await status(xen, name)
    assert found is not None
    assert found.file == str(path)
    assert (await backend.store.read(f"{name.backend}/pcap")).startswith(f"{path},")


@pytest.mark.parametrize(
    ("text", "said"), [("rubbish", "absolute path"), ("/nonexistent/x", "No such file or directory (ENOENT)")]
)
async def test_a_wrong_node(
    xen: Path,
    backend: Backend,
    name: DeviceName,
    guest: Guest,
    network: PythonNetwork,
    caplog: pytest.LogCaptureFixture,
    text: str,
    said: str,
) -> None:
    """As a toolstack may write it: one line, which `show` has, too; frames pass, also after the next connection."""
    await backend.store.write(f"{name.backend}/pcap", text)
    device = backend.devices[name]
    await until(lambda: device.pcap is not None and bool(device.pcap.error))
    found = await status(xen, name)
    assert found is not None
    assert found.error is not None
    assert said in found.error
    for _ in range(3):
        await exchange(guest, network)
    assert device.error == ""
    assert len([record for record in caplog.records if said in record.getMessage()]) == 1
