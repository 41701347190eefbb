# SPDX-License-Identifier: Apache-2.0
"""A network that needs no programs and no privileges: one host that gives the guest its addresses and answers it.
Nothing is routed anywhere.

All sandboxes of a process share a thread. After each burst it rests as long as it worked, so hostile guests cost half a
processor at most. Frames that it has not read wait in its socket, and then in the guest's ring.
"""

import asyncio
import ipaddress
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from contextlib import AsyncExitStack
from functools import cache
from typing import Any

from netback.dataplane.peers.peer import Peer
from netback.errors import ConfigError, PeerError
from netback.net.base import Linkless
from netback.net.options import Option, Options
from netback.net.python import PythonNetwork
from netback.net.sandbox.services import (
    Address,
    Dhcp,
    Dns,
    echo_datagram,
    router_advertisement,
    serve_chargen,
    serve_discard,
    serve_echo,
)
from netback.net.sandbox.stack import Stack
from netback.net.sandbox.tcpip import Host
from netback.net.user import IPV4, gateway, misfit, read_ipv4

IPV6 = ipaddress.IPv6Interface("fd00:10:0:2::2/64")
DOMAIN = "sandbox"
ECHO_PORT, DISCARD_PORT, CHARGEN_PORT, DNS_PORT, DHCP_PORT = 7, 9, 19, 53, 67
PATIENCE = 60.0
"""Seconds for which a TCP connection may be silent."""
IN_FLIGHT = 1 << 16
MAC = "52:55:0a:00:02:02"
LINK_LOCAL = "fe80::5055:aff:fe00:202"
"""Of that address (RFC 4291, appendix A)."""


def read_ipv6(text: str) -> ipaddress.IPv6Interface | None:
    """ADDRESS/64, None for "off". ValueError: it is neither."""
    if text == "off":
        return None
    found = ipaddress.IPv6Interface(text)
    if found.network.prefixlen != 64:
        raise ValueError("clients choose addresses in networks of /64 alone, as in fd00::2/64")
    return found


OPTIONS: Options = {
    "ipv4": Option("the guest's ADDRESS/PREFIX, or off", read_ipv4),
    "ipv6": Option("the sandbox's own ADDRESS/64, or off", read_ipv6),
}
"""Options of its spec."""


class _Thread:
    """The thread of all sandboxes: an event loop, as long as the process has lived since the first one."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="sandbox", daemon=True).start()

    def start(self, coroutine: Coroutine[Any, Any, None]) -> Future[None]:
        """Run it there."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)


@cache
def _thread() -> _Thread:
    """Made when it is first needed."""
    return _Thread()


def addresses(ipv4: ipaddress.IPv4Interface | None, ipv6: ipaddress.IPv6Interface | None) -> tuple[str, ...]:
    """The sandbox's own, the link-local one last."""
    own = [str(gateway(ipv4))] if ipv4 is not None else []
    return (*own, *([str(ipv6.ip), LINK_LOCAL] if ipv6 is not None else []))


def furnish(host: Host, ipv4: ipaddress.IPv4Interface | None, ipv6: ipaddress.IPv6Interface | None) -> None:
    """Give a host with these addresses what it answers, and its bounds."""
    own = (*((gateway(ipv4),) if ipv4 else ()), *((ipv6.ip,) if ipv6 else ()))
    names: dict[str, tuple[Address, ...]] = {DOMAIN: own}
    if ipv4 is not None:
        names[f"guest.{DOMAIN}"] = (ipv4.ip,)
    host.patience, host.in_flight = PATIENCE, IN_FLIGHT
    dns = Dns(names)
    host.tcp = {
        ECHO_PORT: serve_echo,
        DISCARD_PORT: serve_discard,
        CHARGEN_PORT: serve_chargen,
        DNS_PORT: dns.serve,
    }
    host.udp = {ECHO_PORT: echo_datagram, DNS_PORT: dns.answer}
    if ipv4 is not None:
        host.udp[DHCP_PORT] = Dhcp(ipv4, gateway(ipv4), DOMAIN).answer
    if ipv6 is not None:
        host.router = router_advertisement(ipv6.network, ipv6.ip, MAC)


class SandboxNetwork(Linkless):
    """One guest's. `ipv4`: what the guest gets by DHCP; `ipv6`: the sandbox's own address, in whose network the guest
    chooses one. ConfigError: both are None. PeerError: there are too many descriptors.
    """

    name = "sandbox"

    def __init__(
        self,
        *,
        ipv4: ipaddress.IPv4Interface | None = IPV4,
        ipv6: ipaddress.IPv6Interface | None = IPV6,
    ) -> None:
        if fault := misfit("", {"ipv4": ipv4, "ipv6": ipv6}):
            raise ConfigError(f"sandbox: {fault}")
        self._pair = PythonNetwork("sandbox", vnet_hdr=True)
        self._undo = AsyncExitStack()
        self._closed = False
        try:
            _thread().start(self._start(ipv4, ipv6)).result()
        except OSError as error:
            self._pair.remove()
            raise PeerError(f"sandbox: {error.strerror}") from error

    async def _start(
        self, ipv4: ipaddress.IPv4Interface | None, ipv6: ipaddress.IPv6Interface | None
    ) -> None:
        fd = os.dup(self._pair.socket.fileno())
        stack = await self._undo.enter_async_context(Stack(fd, addresses(ipv4, ipv6), MAC, gentle=True))
        furnish(stack.host, ipv4, ipv6)

    @property
    def peers(self) -> tuple[Peer, ...]:
        return self._pair.peers

    def offloads(self, caps: int) -> None:
        """Does nothing: the data plane completes and segments what the guest cannot accept."""

    def drain(self) -> int:
        """Discard the answers that the guest has not read."""
        return self._pair.drain()

    def drops(self) -> dict[str, int]:
        """No frame is counted as lost: what the sandbox has not read waits."""
        return {}

    def close(self) -> None:
        """End the host, in its thread; nothing waits for that."""
        if not self._closed:
            self._closed = True
            self._pair.remove()
            _thread().start(self._undo.aclose())

    def remove(self) -> None:
        self.close()
