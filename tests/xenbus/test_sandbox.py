# SPDX-License-Identifier: Apache-2.0
"""A guest on the network `sandbox`: Linux's stack in a namespace behind an emulated guest, with busybox's clients."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from netback.daemon import Backend, BackendConfig
from netback.frontend import Frontend
from netback.net.tap import TapNetwork
from netback.platforms.emulated import EmulatedPlatform
from tests.net.namespace import other_network, send_to
from tests.vif.guest import SECONDS
from tests.xenbus.toolstack import add

HOST, GUEST, HOST6 = "10.0.2.2", "10.0.2.15", "fd00:10:0:2::2"
IPV6 = "/proc/sys/net/ipv6/conf"
LEASE = """#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr add "$ip/$mask" dev "$interface"
echo "$ip/$mask $router $dns $domain $serverid $lease"
"""


class Client:
    """A namespace whose eth0 is the guest's NIC."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    async def run(self, *words: str, code: int = 0, stdin: bytes = b"") -> str:
        """Run a program there; its output."""
        process = await asyncio.create_subprocess_exec(
            "nsenter", "-t", str(self.pid), "-n", *words,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        async with asyncio.timeout(SECONDS):
            output, _ = await process.communicate(stdin)
        assert process.returncode == code, f"{words}: {output!r}"
        return output.decode(errors="replace")

    async def until(self, *words: str, holds: str) -> None:
        """Wait until a program's output has these words."""
        async with asyncio.timeout(SECONDS):
            while holds not in await self.run(*words):
                pass


async def enter(undo: AsyncExitStack, xen: Path, spec: str) -> Client:
    """A guest on this network, whose link is up."""
    platform = undo.enter_context(EmulatedPlatform(xen))
    backend = await undo.enter_async_context(Backend(platform, BackendConfig(xen, workers=1)))
    client = Client(undo.enter_context(other_network()))
    tap = TapNetwork("guest0")
    undo.callback(tap.remove)
    send_to("guest0", client.pid)
    vif = await undo.enter_async_context(Frontend(xen, tap))
    await add(backend.store, vif.guest.domid, net=spec)
    async with asyncio.timeout(SECONDS):
        await vif.connected()
    await client.run("ip", "link", "set", "lo", "up")
    await client.run("sh", "-c", f"echo 0 > {IPV6}/guest0/disable_ipv6; echo 0 > {IPV6}/guest0/accept_dad")
    await client.run("ip", "link", "set", "guest0", "up")
    return client


@pytest.fixture
async def client(xen: Path) -> AsyncIterator[Client]:
    async with AsyncExitStack() as undo:
        client = await enter(undo, xen, "sandbox")
        await client.run("ip", "addr", "add", f"{GUEST}/24", "dev", "guest0")
        yield client


async def test_dhcp(xen: Path, tmp_path: Path) -> None:
    script = tmp_path / "lease"
    script.write_text(LEASE)
    script.chmod(0o755)
    async with AsyncExitStack() as undo:
        client = await enter(undo, xen, "sandbox")
        said = await client.run(
            "busybox", "udhcpc", "-i", "guest0", "-q", "-n", "-t", "30", "-s", str(script)
        )
        assert f"{GUEST}/24 {HOST} {HOST} sandbox {HOST} 86400" in said
        await client.run("ping", "-c", "2", "-q", HOST)


async def test_dhcp_of_other_addresses(xen: Path, tmp_path: Path) -> None:
    script = tmp_path / "lease"
    script.write_text(LEASE)
    script.chmod(0o755)
    async with AsyncExitStack() as undo:
        client = await enter(undo, xen, "sandbox,ipv4=192.0.2.2/28,ipv6=off")
        said = await client.run(
            "busybox", "udhcpc", "-i", "guest0", "-q", "-n", "-t", "30", "-s", str(script)
        )
        assert "192.0.2.2/28 192.0.2.1 192.0.2.1 sandbox 192.0.2.1" in said
        await client.run("ping", "-c", "1", "-q", "192.0.2.1")


async def test_ipv6(client: Client) -> None:
    """The guest chooses an address in the prefix that is advertised, and reaches the sandbox by both of its own."""
    await client.until("ip", "-6", "addr", "show", "dev", "guest0", holds="fd00:10:0:2:")
    await client.run("ping", "-6", "-c", "2", "-q", HOST6)
    await client.run("ping", "-6", "-c", "2", "-q", "fe80::5055:aff:fe00:202%guest0")
    assert "default" not in await client.run("ip", "-6", "route")
    assert await client.run("busybox", "nc", HOST6, "7", stdin=b"by IPv6") == "by IPv6"


async def test_arp_and_ping(client: Client) -> None:
    said = await client.run("busybox", "arping", "-c", "2", "-I", "guest0", HOST)
    assert "52:55:0a:00:02:02" in said
    await client.run("ping", "-c", "3", "-s", "1400", "-q", HOST)
    await client.run("ping", "-c", "1", "-W", "1", "-q", "10.0.2.9", code=1)
    await client.run("ip", "route", "add", "default", "via", HOST)
    await client.run("ping", "-c", "1", "-W", "1", "-q", "192.0.2.1", code=1)  # nothing is routed


async def test_tcp_services(client: Client) -> None:
    sent = bytes(range(256)) * 4000
    echo = await asyncio.create_subprocess_exec(
        "nsenter", "-t", str(client.pid), "-n", "busybox", "nc", HOST, "7",
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(SECONDS):
        got, _ = await echo.communicate(sent)
    assert got == sent
    assert await client.run("busybox", "nc", HOST, "9", stdin=sent) == ""
    chargen = await client.run("sh", "-c", f"busybox nc {HOST} 19 </dev/null | head -c 74")
    assert chargen == "".join(map(chr, range(32, 104))) + "\r\n"
    refused = await client.run("busybox", "nc", HOST, "80", code=1)
    assert "refused" in refused


async def test_udp_echo(client: Client) -> None:
    program = f"""
import socket
for address in ("{HOST}", "{HOST6}"):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(30)
        sock.connect((address, 7))
        for size in (0, 1, 1400):
            sock.send(bytes(size))
            assert sock.recv(2000) == bytes(size)
"""
    await client.until("ip", "-6", "addr", "show", "dev", "guest0", holds="fd00:10:0:2:")
    await client.run("python3", "-c", program)


async def test_names(client: Client) -> None:
    """DNS knows the sandbox's own names and no other."""
    said = await client.run("busybox", "nslookup", "sandbox", HOST)
    assert HOST in said
    assert HOST6 in said
    said = await client.run("busybox", "nslookup", "guest.sandbox", HOST)
    assert GUEST in said
    assert "sandbox" in await client.run("busybox", "nslookup", HOST, HOST)
    assert "NXDOMAIN" in await client.run("busybox", "nslookup", "example.org", HOST, code=1)
