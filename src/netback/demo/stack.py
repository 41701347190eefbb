# SPDX-License-Identifier: Apache-2.0
"""Linux's own TCP/IP stack, in a namespace of this process: it pings, sends, receives and counts what it is asked to.

Knows sockets, and iperf3 where it is installed; what its link is joined to it does not know.
"""

import asyncio
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from netback.demo import links, namespaces
from netback.demo.payload import Payload, Tally
from netback.demo.tcpip import ECHO, ECHO_REPLY, ECHO_REQUEST, echo
from netback.errors import NetbackError

KINDS: dict[str, Callable[[links.Plug], None]] = {"veth": links.make_veth, "tap": links.make_tap}
PING_SECONDS = 1.0
PATIENCE = 20.0
"""Seconds without a byte before a transfer is given up."""
READ = 1 << 18
IPERF_PORT = 5201


class KernelStack:
    """The namespace that this process has entered, with its link."""

    def __init__(self, kind: str, plug: dict[str, str]) -> None:
        KINDS[kind](links.Plug(**plug))
        self._link = plug["link"]
        self._server: subprocess.Popen[str] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.kill()

    async def ping(self, address: str, times: int, gap: float) -> list[float | None]:
        """Round trips in microseconds; None for one that did not come back."""
        return await asyncio.to_thread(ping, address, times, gap)

    async def listen(self, checked: bool) -> int:
        """A port at which one sender may come."""
        self._listener, self._tally = socket.create_server(("", 0)), Tally(checked)
        return int(self._listener.getsockname()[1])

    async def receive(self) -> dict[str, Any]:
        """Take what the sender sends, all of it."""
        return await asyncio.to_thread(receive, self._listener, self._tally)

    async def send(
        self, address: str, port: int, seconds: float, most: int, checked: bool, patience: float
    ) -> dict[str, Any]:
        """Send for some time, or so many bytes."""
        return await asyncio.to_thread(send, (address, port), Payload(seconds, most, checked), patience)

    async def segmentation(self, on: bool) -> None:
        """Whether frames leave that a later link cuts, as `ethtool -K LINK tso on|off` has it."""
        links.set_segmentation(self._link, on)

    async def checksum_errors(self) -> int:
        """TCP segments that were thrown away since their checksum was wrong."""
        return tcp_statistics()["InCsumErrors"]

    # ---- iperf3

    async def serve_iperf(self) -> bool:
        """Start its server, if it is installed: whether it is."""
        if self._server is None and shutil.which("iperf3"):
            self._server = start_iperf()
        return self._server is not None and await asyncio.to_thread(_announced, self._server)

    async def iperf(self, address: str, seconds: int, reverse: bool) -> float:
        """Bits a second as its receiver has them."""
        words = ["iperf3", "--client", address, "--port", str(IPERF_PORT), "--time", str(seconds), "--json"]
        client = await asyncio.create_subprocess_exec(
            *words,
            *(["--reverse"] if reverse else []),
            stdout=subprocess.PIPE,
            preexec_fn=namespaces.dying_with_us(),
        )
        said, _ = await client.communicate()
        report = json.loads(said or b'{"error": "it says nothing"}')
        if "error" in report:
            raise NetbackError(f"iperf3: {report['error']}")
        return float(report["end"]["sum_received"]["bits_per_second"])


def start_iperf() -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["iperf3", "--server", "--forceflush", "--port", str(IPERF_PORT)],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=namespaces.dying_with_us(),
    )


def _announced(server: subprocess.Popen[str]) -> bool:
    """Whether the server says that it listens, which it does anew for each client."""
    assert server.stdout is not None
    return any("listening" in said for said in server.stdout)


# ---- ICMP


def ping(address: str, times: int, gap: float) -> list[float | None]:
    """So many echo requests, each after the last one's reply."""
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
    except (TimeoutError, OSError):  # EHOSTUNREACH: nobody answered ARP
        pass
    return None


# ---- TCP


def tcp_statistics() -> dict[str, int]:
    """What the stack of our namespace counts."""
    lines = Path("/proc/self/net/snmp").read_text().splitlines()
    names, values = (said.split()[1:] for said in lines if said.startswith("Tcp:"))
    return dict(zip(names, map(int, values), strict=True))


def receive(listener: socket.socket, tally: Tally) -> dict[str, Any]:
    """One connection from its first byte to its end."""
    with listener:
        listener.settimeout(PATIENCE)
        connection, _ = listener.accept()
    with connection:
        connection.settimeout(PATIENCE)
        room = bytearray(READ)
        view = memoryview(room)
        while got := connection.recv_into(room):
            tally.add(view[:got])
    return tally.report()


def send(where: tuple[str, int], payload: Payload, patience: float) -> dict[str, Any]:
    """Everything that the payload gives; returns when the receiver has closed, so that it has all of it."""
    with socket.create_connection(where, timeout=patience) as connection:
        connection.settimeout(PATIENCE)
        while piece := payload.next():
            connection.sendall(piece)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)
    return payload.report()
