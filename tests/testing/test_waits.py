# SPDX-License-Identifier: Apache-2.0
"""What the classes of netback.testing say when what a test waits for does not come."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from netback.errors import ConfigError, PlatformError
from netback.testing import Guest, Namespace, ServedBackend, Vif, Xen

FRAME = bytes.fromhex("020000000002 020000000001 88b5").ljust(60, b"x")


def test_a_frontend_that_does_not_come(xen: Xen, xen_backend: ServedBackend) -> None:
    guest = xen.join("idle")
    device = xen_backend.attach(guest.domid)
    with pytest.raises(TimeoutError, match=r"the backend is InitWait, the frontend Initialising"):
        device.connected(seconds=0.05)


def test_a_guest_without_a_backend(xen: Xen, xen_guest: Guest) -> None:
    """It waits for whatever serves the vif that the store names; here nothing does."""
    message = f"domain {xen_guest.domid} is not connected after 0.05 s: the frontend is Unknown, the backend Unknown"
    with pytest.raises(TimeoutError, match=re.escape(message)):
        xen_guest.connected(seconds=0.05)
    assert xen.read(f"/local/domain/{xen_guest.domid}/name") == "guest"


def test_a_guest_whose_driver_is_reloaded(xen_backend: ServedBackend, xen_guest: Guest) -> None:
    """Each connection has rings of its own, and frames pass over the second one too."""
    vif = xen_backend.attach(xen_guest.domid)
    xen_guest.connected()
    first = xen_guest.frontend.rings
    xen_guest.reload()
    xen_guest.connected()
    vif.connected()
    assert xen_guest.frontend.rings is not first
    xen_guest.port.send(FRAME)
    assert vif.host.recv() == FRAME


def test_a_guest_that_loses_its_vif(xen_backend: ServedBackend, xen_guest: Guest) -> None:
    vif = xen_backend.attach(xen_guest.domid)
    xen_guest.connected()
    with pytest.raises(TimeoutError, match=r"is not disconnected after 0\.05 s: the frontend is Connected"):
        xen_guest.disconnected(seconds=0.05)
    assert vif.detach()
    xen_guest.disconnected()


def test_a_domain_that_does_not_exist(xen_backend: ServedBackend) -> None:
    with pytest.raises(ConfigError, match="no domain is named 'absent'"):
        xen_backend.attach("absent")


def test_a_frame_that_does_not_come(xen_vif: Vif) -> None:
    with pytest.raises(TimeoutError, match=r"in vain: a frame at vif1\.0's network"):
        xen_vif.host.recv(seconds=0.05)


def test_an_empty_frame_is_refused(xen_vif: Vif) -> None:
    with pytest.raises(ValueError, match="the frame is empty"):
        xen_vif.guest.send(b"")


def test_a_network_that_the_test_is_not(xen: Xen, xen_backend: ServedBackend) -> None:
    device = xen_backend.attach(xen.join().domid, "null")
    with pytest.raises(ConfigError, match="has a network of its own"):
        device.host.recv()


def test_a_node_that_keeps_its_value(xen: Xen) -> None:
    xen.write("/tool/answer", "41")
    with pytest.raises(TimeoutError, match=r"/tool/answer is '41' after 0\.05 s, not '42'"):
        xen.wait("/tool/answer", "42", seconds=0.05)
    xen.write("/tool/answer", "42")
    assert xen.wait("/tool/answer", "42") == "42"
    assert "answer" in xen.list("/tool")


def test_a_program_that_ends_without_a_word(xen: Xen) -> None:
    program = xen.spawn("sh", "-c", "echo other; exit 3")
    with pytest.raises(AssertionError, match=r"(?s)ended without .ready.; it printed:\n +other"):
        program.says("ready")
    assert program.wait() == 3


def test_a_program_that_does_not_end(xen: Xen) -> None:
    program = xen.spawn("sh", "-c", "echo begun; exec sleep 1000")
    program.says("begun")
    with pytest.raises(TimeoutError, match=r"(?s)still runs after 0.05 s; it printed:\nbegun"):
        program.wait(seconds=0.05)
    program.end()
    assert program.wait() != 0


def test_programs_end_with_their_xen() -> None:
    with Xen() as xen:
        program = xen.spawn("sleep", "1000")
    assert program.process.returncode is not None
    assert not xen.directory.exists()


def test_namespaces_are_apart(xen_namespace: Callable[[], Namespace]) -> None:
    one, other = xen_namespace(), xen_namespace()
    one.run("ip", "address", "add", "192.0.2.1/32", "dev", "lo")
    assert "192.0.2.1" in one.run("ip", "address")
    assert "192.0.2.1" not in other.run("ip", "address")
    with pytest.raises(AssertionError, match=re.escape("ip link set absent up: 1")):
        one.run("ip", "link", "set", "absent", "up")


def test_a_namespace_that_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises((PlatformError, FileNotFoundError)), Namespace():
        pass


def test_a_second_vif_of_a_guest(xen_backend: ServedBackend, xen_vif: Vif) -> None:
    second = xen_backend.attach(xen_vif.frontend.guest.domid)
    assert second.name == "vif1.1"
    assert xen_backend.client.devices(second.name)[0].backend == "InitWait"
    assert second.detach(seconds=0.05) in (True, False)
