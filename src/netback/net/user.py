# SPDX-License-Identifier: Apache-2.0
"""The host's own network without a link or privileges: passt, a program that netback starts, opens the sockets for the
guest's connections.

The guest reaches what the host reaches, except the host's loopback addresses; nobody reaches the guest but by the ports
that the spec forwards. passt gives the guest its addresses by DHCP and router advertisements. It ends with its stream,
so none is left behind however netback ends; when it ends by itself, it is started again, and the guest's connections
through it are lost.
"""

import ipaddress
import os
import select
import socket
import struct
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

from netback.errors import ConfigError, PeerError, printable
from netback.net.buffers import BURSTS, make_room
from netback.net.connected import await_event
from netback.net.options import FLAG, Option, Options, integer, link_name
from netback.net.stream import StreamNetwork

PROGRAM = "passt"
START_SECONDS = 5.0
"""Until passt answers."""
END_SECONDS = 1.0
MAX_SAID = 65536
MAX_MTU = 65520
"""passt's own, and its most."""
MAX_MESSAGE = 200
"""Characters of what passt says at its end."""
NOISE = ("Failed to send ", "Don't run as root", "Started as root")
"""Begins of lines that are no reasons."""
LENGTH = struct.Struct(">I")
DNS_OFF = "none"

ARP_REQUEST = bytes.fromhex("ffffffffffff ffffffffffff 0806 0001 0800 0604 0001 ffffffffffff")
"""Up to the sender's address. From the broadcast address, since passt takes the last sender's as the guest's."""
ROUTER_SOLICITATION = bytes.fromhex(
    "333300000002 ffffffffffff 86dd 60000000 0008 3aff 00000000000000000000000000000000"
    "ff020000000000000000000000000002 8500 7bb8 00000000"
)
"""From no address (RFC 4861, 4.1), with its checksum."""


@dataclass(frozen=True, slots=True)
class Forward:
    """A port of the host that leads to a port of the guest."""

    address: str
    host: int
    guest: int

    def __str__(self) -> str:
        return f"{self.address}/{self.host}:{self.guest}"


def read_forward(text: str) -> Forward:
    """[ADDRESS/]PORT[:PORT]. Without an address, only the host itself reaches it. ValueError: it is none."""
    address, slash, ports = text.rpartition("/")
    host, colon, guest = ports.partition(":")
    port = integer(1, 65535).read
    address = str(ipaddress.ip_address(address)) if slash else "127.0.0.1"
    return Forward(address, port(host), port(guest) if colon else port(host))


def read_ipv4(text: str) -> ipaddress.IPv4Interface | None:
    """ADDRESS/PREFIX, None for "off". ValueError: it is neither."""
    if text == "off":
        return None
    if "/" not in text:
        raise ValueError("its network's length is missing, as in 10.0.2.15/24")
    found = ipaddress.IPv4Interface(text)
    if found.network.prefixlen > 29:
        raise ValueError("its network has no room for the gateway")
    return found


def read_ipv6(text: str) -> ipaddress.IPv6Address | None:
    """An address, None for "off". ValueError: it is neither."""
    return None if text == "off" else ipaddress.IPv6Address(text)


def read_dns(text: str) -> str:
    """An address, or "none". ValueError: it is neither."""
    return text if text == DNS_OFF else str(ipaddress.ip_address(text))


FORWARD = Option("[ADDRESS/]PORT[:PORT], the host's and the guest's", read_forward, many=True)
OPTIONS: Options = {
    "ipv4": Option("the guest's ADDRESS/PREFIX, or off", read_ipv4),
    "ipv6": Option("the guest's address, or off", read_ipv6),
    "dns": Option("the address of a name server, or none", read_dns),
    "link": Option("a link of the host, whose routes are used", link_name),
    "mtu": integer(1280, MAX_MTU),
    "tcp": FORWARD,
    "udp": FORWARD,
    "host_loopback": FLAG,
}
"""Options of its spec."""
IPV4 = ipaddress.IPv4Interface("10.0.2.15/24")
IPV6 = ipaddress.IPv6Address("fd00:10:0:2::15")


def misfit(_: str, options: Mapping[str, Any]) -> str | None:
    """Why options do not go together; None if they do."""
    if options.get("ipv4", IPV4) is None and options.get("ipv6", IPV6) is None:
        return "with ipv4=off and ipv6=off nothing is left"
    return None


def gateway(guest: ipaddress.IPv4Interface) -> ipaddress.IPv4Address:
    """The second address of the guest's network, or the first if that is the guest's."""
    first = guest.network.network_address
    return first + 2 if first + 2 != guest.ip else first + 1


class UserNetwork(StreamNetwork):
    """passt on a pair of sockets.

    `tcp`, `udp`: forwarded ports. `host_loopback`: the gateway's address leads to the host's 127.0.0.1. `dns`: None for
    the host's servers. ConfigError: `ipv4` and `ipv6` are both None. PeerError: passt is missing, or ended at once.
    """

    def __init__(
        self,
        *,
        ipv4: ipaddress.IPv4Interface | None = IPV4,
        ipv6: ipaddress.IPv6Address | None = IPV6,
        dns: str | None = None,
        link: str | None = None,
        mtu: int | None = None,
        tcp: tuple[Forward, ...] = (),
        udp: tuple[Forward, ...] = (),
        host_loopback: bool = False,
    ) -> None:
        if fault := misfit("", {"ipv4": ipv4, "ipv6": ipv6}):
            raise ConfigError(f"user: {fault}")
        self.command = [PROGRAM, "-f", "-q"]
        if ipv4 is not None:
            self.command += ["-a", str(ipv4.ip), "-n", str(ipv4.network.prefixlen), "-g", str(gateway(ipv4))]
        if ipv6 is not None:
            self.command += ["-a", str(ipv6)]
        self.command += [] if ipv4 and ipv6 else ["-4" if ipv4 else "-6"]
        self.command += [] if host_loopback else ["--no-map-gw"]
        self.command += ["-D", dns] if dns else []
        self.command += ["-i", link] if link else []
        self.command += ["-m", str(mtu)] if mtu else []
        for option, forwards in (("-t", tcp), ("-u", udp)):
            for forward in forwards:
                self.command += [option, str(forward)]
        self._probe = ROUTER_SOLICITATION
        if ipv4 is not None:
            self._probe = ARP_REQUEST + ipv4.ip.packed + bytes(6) + gateway(ipv4).packed
        super().__init__(self._run_passt, name="user", seconds=START_SECONDS)

    # ---- in the network's thread

    def _run_passt(self, alarm: int) -> socket.socket:
        """Start passt, and return its stream once it answers. PeerError says why it does not."""
        near, far = socket.socketpair()
        for end in (near, far):
            make_room(end, BURSTS, BURSTS)
        with ExitStack() as undo:
            undo.enter_context(near)
            with far:
                self._passt = Passt(self.command, far)
            undo.callback(self._passt.end)
            if not self._answers(near, alarm):
                raise PeerError(self._passt.last_words("it does not answer"))
            self._passt.words()
            undo.pop_all()
        near.setblocking(False)
        return near

    def _answers(self, near: socket.socket, alarm: int) -> bool:
        """Ask for the gateway, and take the answer; False: passt ended, or is silent."""
        deadline = time.monotonic() + START_SECONDS

        def read(size: int) -> bytes:
            data = b""
            while len(data) < size:
                left = max(0.0, deadline - time.monotonic())
                if not await_event(near.fileno(), select.POLLIN, alarm, left):
                    raise TimeoutError
                more = near.recv(size - len(data), socket.MSG_DONTWAIT)
                if not more:
                    raise EOFError
                data += more
            return data

        try:
            near.sendall(LENGTH.pack(len(self._probe)) + self._probe)
            length = LENGTH.unpack(read(LENGTH.size))[0]
            return length <= MAX_MTU and bool(read(length))
        except (OSError, EOFError):
            return False

    def _serve(self, connection: socket.socket) -> None:
        try:
            super()._serve(connection)
        except PeerError as error:
            raise PeerError(self._passt.last_words("it ended")) from error
        finally:
            self._passt.end()


class Passt:
    """The process. What it says goes to a pipe that holds 64 KiB and then no more: its guest may make it say a lot."""

    def __init__(self, command: Sequence[str], far: socket.socket) -> None:
        self._said, said = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            self._process = subprocess.Popen(
                [*command, "-F", str(far.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=said,
                pass_fds=(far.fileno(),),
                start_new_session=True,
            )
        except OSError as error:
            os.close(self._said)
            raise PeerError(f"cannot start {command[0]}: {error.strerror}") from error
        finally:
            os.close(said)

    def last_words(self, otherwise: str) -> str:
        """The reason that it gives, if it has ended or ends now."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(END_SECONDS)
        return f"{PROGRAM}: {'; '.join(self.words()[-2:])[:MAX_MESSAGE] or otherwise}"

    def words(self) -> list[str]:
        """What it has said since the last call, by lines."""
        try:
            lines = os.read(self._said, MAX_SAID).decode(errors="replace").splitlines()
        except BlockingIOError:
            return []
        return [printable(line.strip()) for line in lines if line.strip() and not line.startswith(NOISE)]

    def end(self) -> None:
        """End it, however it is."""
        if self._said < 0:
            return
        self._process.terminate()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._said)
        self._said = -1
