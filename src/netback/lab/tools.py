# SPDX-License-Identifier: Apache-2.0
"""iperf3, ping and leak checks as scenarios use them, with figures as numbers."""

import json
import re
from contextlib import suppress
from dataclasses import dataclass

from netback.lab.host import BRIDGE, DOM0, Guest, Lab
from netback.lab.machine import LabError

XEN_BIN = "/usr/lib/xen-4.20/bin"
"""Where Debian keeps Xen's tools that are not on PATH."""


@dataclass(frozen=True, slots=True)
class Flow:
    """What arrived: bits/s, datagrams/s, and the share lost (0 to 1)."""

    bits: float
    packets: float = 0.0
    lost: float = 0.0


async def serve_iperf(guest: Guest) -> None:
    """Restart iperf3's server after each test: one server does not survive lost UDP tests."""
    await guest("(while true; do iperf3 -s -1 >/dev/null 2>&1; done) & sleep 1")


async def iperf(
    guest: Guest,
    options: str = "",
    *,
    seconds: int = 3,
    address: str | None = None,
    tries: int = 3,
    where: str = "",
) -> Flow:
    """Measure from dom0, or with the prefix `where`, to the guest; -R in `options` reverses. LabError after `tries`."""
    command = f"{where} iperf3 -J -c {address or guest.address} -t {seconds} {options}"
    for _ in range(tries):
        text = await guest.lab.dom0(command, seconds=seconds + 20, check=False)
        with suppress(ValueError):
            result = json.loads(text)
            if "error" not in result:
                return _flow(result["end"], udp="-u" in options.split())
        await guest("killall -q iperf3; sleep 1")  # a lost test may leave the server busy
    raise LabError(f"{command}: {text[-500:] or 'no answer'}")


def _flow(end: dict[str, dict[str, float]], *, udp: bool) -> Flow:
    if not udp:
        return Flow(end["sum_received"]["bits_per_second"])
    total = end.get("sum_received") or end["sum"]
    seconds = total["seconds"] or 1.0
    got = total["packets"] - total["lost_packets"]
    share = total["lost_packets"] / total["packets"] if total["packets"] else 1.0
    return Flow(total["bits_per_second"] * (1 - share), got / seconds, share)


async def know_each_other(guest: Guest) -> None:
    """Add permanent neighbour entries, so that ARP's timeouts do not count as a backend's outage."""
    lab = guest.lab
    bridge = (await lab.dom0(f"cat /sys/class/net/{BRIDGE}/address")).strip()
    mac = (await guest("cat /sys/class/net/eth0/address")).strip()
    await guest(f"/usr/bin/ip neigh replace {DOM0} lladdr {bridge} nud permanent dev eth0")
    await lab.dom0(f"ip neigh replace {guest.address} lladdr {mac} nud permanent dev {BRIDGE}")


async def unharmed(guest: Guest) -> None:
    """Assert that neither netback nor the guest's netfront refused a frame (netfront counts them as rx_errors)."""
    device = next(one for one in await guest.lab.netback.list() if one["domid"] == guest.domid)
    assert device["counters"]["tx_errors"] == device["counters"]["rx_errors"] == 0, device["counters"]
    refused = (await guest("cat /sys/class/net/eth0/statistics/rx_errors")).strip()
    assert refused == "0", f"netfront refused {refused} frames: {await guest('dmesg | tail')}"


async def held(lab: Lab) -> dict[str, int]:
    """Counts of everything that could leak: links, nodes, ports, mapped grants, descriptors."""
    process = "/proc/$(cat /run/nb.pid)"
    counts = {
        "links": "ls /sys/class/net | wc -l",
        "nodes": "xenstore-ls | wc -l",
        "ports": f"{XEN_BIN}/lsevtchn 0 | wc -l",
        "mapped grants": f"grep -c gntdev {process}/maps || true",
        "descriptors": f"ls {process}/fd | wc -l",
    }
    found = {what: int(await lab.dom0(command)) for what, command in counts.items()}
    assert found["nodes"] > 0 < found["ports"], f"impossible counts: {found}"  # the tool failed
    return found


@dataclass(frozen=True, slots=True)
class Echoes:
    """A summary of ping; `average` in milliseconds."""

    sent: int
    received: int
    average: float


async def ping(guest: Guest, options: str, address: str | None = None, *, seconds: float = 60) -> Echoes:
    """Ping the guest from dom0."""
    text = await guest.lab.dom0(f"ping -q {options} {address or guest.address}", seconds=seconds, check=False)
    return echoes(text)


def echoes(text: str) -> Echoes:
    """Parse the summary of iputils' or busybox's ping."""
    counts = re.search(r"(\d+) packets transmitted, (\d+) (?:packets )?received", text)
    if counts is None:
        raise LabError(f"ping printed: {text}")
    times = re.search(r"= [\d.]+/([\d.]+)/", text)
    return Echoes(int(counts[1]), int(counts[2]), float(times[1]) if times else float("nan"))


__all__ = [
    "DOM0",
    "Echoes",
    "Flow",
    "echoes",
    "held",
    "iperf",
    "know_each_other",
    "ping",
    "serve_iperf",
    "unharmed",
]
