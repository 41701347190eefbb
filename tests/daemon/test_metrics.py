# SPDX-License-Identifier: Apache-2.0
"""Prometheus' metrics of a real backend: their names and values, whoever scrapes, and a dashboard that fits them."""

import asyncio
import json
import re
import socket
from collections.abc import Iterable
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from netback.control.metrics import BackendCollector
from netback.daemon import Backend
from netback.net.python import PythonNetwork
from netback.xenbus.names import DeviceName
from tests.cli.commands import run, running, start
from tests.vif.guest import FRAME, SECONDS, Guest, exchange

DASHBOARD = Path(__file__).parents[2] / "examples" / "grafana.json"
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parse(text: str) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def scrape(directory: Path) -> Samples:
    registry = CollectorRegistry()
    registry.register(BackendCollector(directory))
    return parse((await asyncio.to_thread(generate_latest, registry)).decode())


@pytest.fixture
async def name(backend: Backend, guest: Guest, network: PythonNetwork) -> DeviceName:
    made = await backend.attach(guest.domid, "python:lan")
    await guest.connect()
    await exchange(guest, network)
    return made


async def test_a_device(xen: Path, guest: Guest, name: DeviceName) -> None:
    """The words for directions are the netdev's: what the guest sent was received."""
    samples = await scrape(xen)
    vif = {"vif": str(name), "domid": str(guest.domid), "devid": "0"}

    def value(metric: str, **labels: str) -> float:
        return samples[metric, frozenset({**vif, **labels}.items())]

    assert samples["netback_up", frozenset()] == 1
    assert value("netback_vif_receive_packets_total", queue="0") == 1
    assert value("netback_vif_receive_bytes_total", queue="0") == len(FRAME)
    assert value("netback_vif_transmit_packets_total", queue="0") == 1
    assert value("netback_vif_drops_total", direction="transmit", reason="too_big") == 0
    assert value("netback_vif_state", end="frontend", state="Connected") == 1
    assert value("netback_ring_slots_used", ring="rx") == 0
    assert value("netback_vif_queues") == 1
    assert value("netback_vif_events_total") >= 1


async def test_without_a_backend(tmp_path: Path) -> None:
    assert await scrape(tmp_path) == {("netback_up", frozenset()): 0}


def queries() -> Iterable[str]:
    dashboard = json.loads(DASHBOARD.read_text())
    for panel in dashboard["panels"]:
        yield from (target["expr"] for target in panel["targets"])


async def test_the_dashboard_asks_for_what_there_is(xen: Path, name: DeviceName) -> None:
    """Every metric and every label of its queries and legends is in the real output."""
    samples = await scrape(xen)
    labels: dict[str, set[str]] = {}
    for metric, pairs in samples:
        labels.setdefault(metric, set()).update(label for label, _ in pairs)
    dashboard = json.loads(DASHBOARD.read_text())
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            (metric,) = re.findall(r"netback_\w+", target["expr"])
            wanted = set(re.findall(r'(\w+)=~?"', target["expr"]))
            for group in re.findall(r"by \(([^)]*)\)", target["expr"]):
                wanted |= set(group.split(", "))
            wanted |= set(re.findall(r"{{(\w+)}}", target.get("legendFormat", "")))
            assert metric in labels, target["expr"]
            assert wanted <= labels[metric], target["expr"]
    assert re.findall(r"label_values\((\w+), (\w+)\)", DASHBOARD.read_text()) == [
        ("netback_vif_state", "vif")
    ]


async def get(family: int, address: object) -> str:
    loop = asyncio.get_running_loop()
    with socket.socket(family) as sock:
        sock.setblocking(False)
        await loop.sock_connect(sock, address)  # type: ignore[arg-type]
        await loop.sock_sendall(sock, b"GET /metrics HTTP/1.1\r\nHost: netback\r\nConnection: close\r\n\r\n")
        answer = b""
        async with asyncio.timeout(SECONDS):
            while data := await loop.sock_recv(sock, 1 << 16):
                answer += data
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b" 200 OK" in head.splitlines()[0]
    return body.decode()


async def test_the_exporter(xen: Path) -> None:
    """On a socket that only its user can reach, or on loopback; mistakes are one line."""
    path = xen / "metrics.sock"
    async with running("metrics at", "metrics", "--dir", xen):
        assert path.stat().st_mode & 0o777 == 0o600
        assert parse(await get(socket.AF_UNIX, str(path))) == {("netback_up", frozenset()): 0}
        async with running("serving domain 0", "run", "--dir", xen):
            assert parse(await get(socket.AF_UNIX, str(path)))["netback_up", frozenset()] == 1
            code, out, _ = await run("metrics", "--once", "--dir", xen)
            assert (code, parse(out)["netback_up", frozenset()]) == (0, 1)
    assert not path.exists()
    exporter = await start("metrics", "--tcp", "0", "--dir", xen)
    assert exporter.stderr is not None
    line = (await exporter.stderr.readline()).decode()
    (port,) = re.findall(r"^metrics at http://127\.0\.0\.1:(\d+)/metrics$", line)
    assert "netback_up 0" in await get(socket.AF_INET, ("127.0.0.1", int(port)))
    code, _, err = await run("metrics", "--tcp", port, "--dir", xen)
    assert (code, err) == (2, f"netback: --tcp: 127.0.0.1:{port}: Address already in use\n")
    code, _, err = await run("metrics", "--tcp", port, "--socket", xen / "x", "--dir", xen)
    assert (code, err) == (2, "netback: --tcp and --socket: choose one\n")
    exporter.terminate()
    await exporter.communicate()
