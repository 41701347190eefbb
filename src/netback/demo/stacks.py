# SPDX-License-Identifier: Apache-2.0
"""The two kinds of stack for a demo's end; both answer the same calls (child.py).

KernelStack is Linux's own in a network namespace, PythonStack that of net/sandbox on a socket of frames.
"""

import asyncio
import ctypes
import fcntl
import hashlib
import json
import os
import random
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from netback.errors import NetbackError, PlatformError
from netback.net.link_names import pack_link_name
from netback.net.sandbox.packets import ECHO, ECHO_REPLY, ECHO_REQUEST, echo
from netback.net.sandbox.stack import Stack
from netback.net.tap import DEVICE
from netback.process import die_with

PING_SECONDS = 1.0
SILENCE_SECONDS = 20.0
"""Seconds without a byte after which a transfer has failed."""
PIECE = 1 << 18
IPERF_PORT = 5201
PREFIX = 24
SIOCETHTOOL = 0x8946
ETHTOOL_STSO = 0x1F
"""linux/ethtool.h: set TCP segmentation offload."""


# ---- the bytes of a transfer


class Payload:
    """Bytes for some seconds, up to a maximum. With `checked` no two pieces are equal, and all are hashed."""

    def __init__(self, seconds: float, most: int, checked: bool) -> None:
        self._end = time.monotonic() + seconds
        self._left = most
        self._checked = checked
        self._piece = random.Random(0x163E).randbytes(PIECE)
        self._sent = 0
        self._digest = hashlib.sha256()

    def next(self) -> bytes:
        """The next piece, empty at the end."""
        if time.monotonic() >= self._end or self._left <= 0:
            return b""
        piece = self._piece
        if self._checked:
            piece = self._sent.to_bytes(8, "big") + piece[8:]
            self._digest.update(piece)
        self._sent += PIECE
        self._left -= PIECE
        return piece

    def report(self) -> dict[str, Any]:
        return {"bytes": self._sent, "digest": self._digest.hexdigest()}


class Tally:
    """What a receiver measures: bytes, time, the longest silence and, with `checked`, a digest."""

    def __init__(self, checked: bool) -> None:
        self._checked = checked
        self._bytes = 0
        self._first = self._last = self._silence = 0.0
        self._digest = hashlib.sha256()

    def add(self, piece: bytes | memoryview) -> None:
        """Count received bytes."""
        now = time.monotonic()
        self._first = self._first or now
        self._silence = max(self._silence, now - (self._last or now))
        self._last = now
        self._bytes += len(piece)
        if self._checked:
            self._digest.update(piece)

    def report(self) -> dict[str, Any]:
        seconds, digest = self._last - self._first, self._digest.hexdigest()
        return {"bytes": self._bytes, "seconds": seconds, "silence": self._silence, "digest": digest}


# ---- a stack in plain Python


@asynccontextmanager
async def python_stack(fd: int, address: str, mac: str) -> AsyncIterator["PythonStack"]:
    """A stack on the socket `fd`."""
    async with Stack(fd, address, mac) as stack:
        yield PythonStack(stack)


class PythonStack:
    """The stack of net/sandbox."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack

    async def ping(self, address: str, times: int, gap: float) -> list[float | None]:
        """Round trips in microseconds, None for a lost one; `gap` seconds lie between them."""
        trips = []
        for _ in range(times):
            trips.append(await self._stack.ping(address))
            await asyncio.sleep(gap)
        return trips

    async def listen(self, checked: bool) -> int:
        """Listen for one connection; returns the port."""
        port, self._incoming = self._stack.host.listen()
        self._tally = Tally(checked)
        self._incoming.on_data = self._tally.add
        return port

    async def receive(self) -> dict[str, Any]:
        """Wait for the end of that connection; returns its Tally."""
        incoming, tally = self._incoming, self._tally
        await self._stack.wait(incoming, lambda: incoming.received_all, SILENCE_SECONDS)
        return tally.report()

    async def send(
        self, address: str, port: int, seconds: float, most: int, checked: bool, connect_seconds: float
    ) -> dict[str, Any]:
        """Connect within `connect_seconds` seconds and send a Payload: its report."""
        connection = await self._stack.connect(address, port, connect_seconds)
        payload = Payload(seconds, most, checked)
        connection.on_room = lambda: payload.next() or None
        connection.pump()
        await self._stack.wait(connection, lambda: connection.sent_all, seconds + SILENCE_SECONDS)
        return payload.report()

    async def segmentation(self, on: bool) -> None:
        """Whether the stack sends GSO frames."""
        self._stack.host.segmentation = on

    async def checksum_errors(self) -> int:
        """TCP segments dropped for a wrong checksum."""
        return self._stack.host.checksum_errors

    async def serve_iperf(self) -> bool:
        """iperf3 needs a kernel's stack."""
        return False


# ---- Linux's stack


@dataclass(frozen=True, slots=True)
class Plug:
    """A stack's link; `wire` is the link whose frames the ring's end moves: the veth's other end, or the tap itself."""

    link: str
    wire: str
    address: str
    mac: str


@asynccontextmanager
async def kernel_stack(kind: str, plug: dict[str, str]) -> AsyncIterator["KernelStack"]:
    """A stack in this process's namespace with a new link; `kind` is "veth" or "tap"."""
    made = Plug(**plug)
    make_link(made, **_attributes(kind, made))
    stack = KernelStack(made.link)
    try:
        yield stack
    finally:
        if stack.server is not None:
            stack.server.kill()


class KernelStack:
    """The stack of this process's network namespace, behind `link`."""

    def __init__(self, link: str) -> None:
        self.server: subprocess.Popen[str] | None = None
        self._link = link

    async def ping(self, address: str, times: int, gap: float) -> list[float | None]:
        """As PythonStack.ping."""
        return await asyncio.to_thread(ping, address, times, gap)

    async def listen(self, checked: bool) -> int:
        """Listen for one connection; returns the port."""
        self._listener, self._tally = socket.create_server(("", 0)), Tally(checked)
        return int(self._listener.getsockname()[1])

    async def receive(self) -> dict[str, Any]:
        """Wait for the end of that connection; returns its Tally."""
        return await asyncio.to_thread(receive, self._listener, self._tally)

    async def send(
        self, address: str, port: int, seconds: float, most: int, checked: bool, connect_seconds: float
    ) -> dict[str, Any]:
        """As PythonStack.send."""
        return await asyncio.to_thread(
            send, (address, port), Payload(seconds, most, checked), connect_seconds
        )

    async def segmentation(self, on: bool) -> None:
        """Whether the stack sends GSO frames, as `ethtool -K LINK tso on|off` sets it."""
        value = ctypes.create_string_buffer(struct.pack("=II", ETHTOOL_STSO, on))
        request = pack_link_name(self._link) + struct.pack("P16x", ctypes.addressof(value))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            fcntl.ioctl(sock, SIOCETHTOOL, request)

    async def checksum_errors(self) -> int:
        """TCP segments dropped for a wrong checksum: InCsumErrors of this namespace."""
        return read_checksum_errors()

    async def serve_iperf(self) -> bool:
        """Start iperf3's server if it is installed; returns whether it listens."""
        if self.server is None and shutil.which("iperf3"):
            self.server = start_iperf()
        return self.server is not None and await asyncio.to_thread(_listens, self.server)

    async def iperf(self, address: str, seconds: int, reverse: bool) -> float:
        """Run iperf3's client; returns the bits per second received."""
        words = ["iperf3", "--client", address, "--port", str(IPERF_PORT), "--time", str(seconds), "--json"]
        client = await asyncio.create_subprocess_exec(
            *words,
            *(["--reverse"] if reverse else []),
            stdout=subprocess.PIPE,
            preexec_fn=die_with(os.getpid()),
        )
        output, _ = await client.communicate()
        report = json.loads(output or b'{"error": "it printed nothing"}')
        if "error" in report:
            raise NetbackError(f"iperf3: {report['error']}")
        return float(report["end"]["sum_received"]["bits_per_second"])


def read_checksum_errors() -> int:
    lines = Path("/proc/self/net/snmp").read_text().splitlines()
    names, values = (line.split() for line in lines if line.startswith("Tcp:"))
    return int(values[names.index("InCsumErrors")])


def start_iperf() -> subprocess.Popen[str]:
    command = ["iperf3", "--server", "--forceflush", "--port", str(IPERF_PORT)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=die_with(os.getpid()))


def _listens(server: subprocess.Popen[str]) -> bool:
    """Wait until iperf3's server prints that it listens, which it does before each client."""
    assert server.stdout is not None
    return any("listening" in line for line in server.stdout)


def _attributes(kind: str, plug: Plug) -> dict[str, object]:
    if kind == "veth":
        return {"kind": "veth", "peer": {"ifname": plug.wire}}
    if not Path(DEVICE).exists():
        raise PlatformError(f"there is no {DEVICE}")
    return {"kind": "tuntap", "mode": "tap"}


def make_link(plug: Plug, **attributes: object) -> None:
    """Make the link by rtnetlink, set it up and give it its addresses. PlatformError: the kernel refuses it."""
    from pyroute2.netlink.exceptions import NetlinkError

    def make(ip: Any) -> None:
        ip.link("add", ifname=plug.link, **attributes)
        for name in ("lo", plug.link, plug.wire):
            ip.link("set", index=ip.link_lookup(ifname=name)[0], state="up")
        index = ip.link_lookup(ifname=plug.link)[0]
        ip.link("set", index=index, address=plug.mac)
        ip.addr("add", index=index, address=plug.address, prefixlen=PREFIX)

    try:
        rtnetlink(make)
    except (NetlinkError, OSError) as error:
        raise PlatformError(f"cannot make a {attributes['kind']} link ({error})") from error


def rtnetlink(call: Callable[[Any], None]) -> None:
    """Make `call(ip)` with an rtnetlink socket of pyroute2.

    In a thread, since pyroute2 runs an event loop to answer and the caller's loop runs already; a new thread is in this
    thread's network namespace.
    """
    from pyroute2 import IPRoute

    def run() -> None:
        with IPRoute() as ip:
            call(ip)

    with ThreadPoolExecutor(1) as thread:
        thread.submit(run).result()


def ping(address: str, times: int, gap: float) -> list[float | None]:
    """Send echo requests, each after the previous reply."""
    trips = []
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
        sock.connect((address, 0))
        for sequence in range(times):
            trips.append(_trip(sock, sequence))
            time.sleep(gap)
    return trips


def _trip(sock: socket.socket, sequence: int) -> float | None:
    begin = time.perf_counter()
    try:
        sock.send(echo(ECHO_REQUEST, 1, sequence, bytes(56)))
        while (left := begin + PING_SECONDS - time.perf_counter()) > 0:
            sock.settimeout(left)
            packet = sock.recv(2048)
            kind, _, _, _, number = ECHO.unpack_from(packet, (packet[0] & 15) * 4)
            if kind == ECHO_REPLY and number == sequence:
                return (time.perf_counter() - begin) * 1e6
    except (TimeoutError, OSError):  # EHOSTUNREACH: no reply to ARP
        pass
    return None


def receive(listener: socket.socket, tally: Tally) -> dict[str, Any]:
    """Accept one connection and read it to its end."""
    with listener:
        listener.settimeout(SILENCE_SECONDS)
        connection, _ = listener.accept()
    with connection:
        connection.settimeout(SILENCE_SECONDS)
        buffer = bytearray(PIECE)
        view = memoryview(buffer)
        while got := connection.recv_into(buffer):
            tally.add(view[:got])
    return tally.report()


def send(address: tuple[str, int], payload: Payload, connect_seconds: float) -> dict[str, Any]:
    """Send the whole payload; return once the receiver has closed, and so has every byte."""
    with socket.create_connection(address, timeout=connect_seconds) as connection:
        connection.settimeout(SILENCE_SECONDS)
        while piece := payload.next():
            connection.sendall(piece)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)
    return payload.report()
