# SPDX-License-Identifier: Apache-2.0
"""The commands that stay: `top` and `trace`, beside a guest that connects and sends."""

import asyncio
import json
import os
import re
from asyncio.subprocess import Process
from collections import deque
from pathlib import Path

import pytest

from netback.cli.top import _Device, _draw, sparkline
from netback.control.schema import DeviceStatistics
from tests.cli.commands import run, running, start
from tests.vif.guest import FRAME, SECONDS, Guest, join


async def line(process: Process) -> str:
    assert process.stdout is not None
    async with asyncio.timeout(SECONDS):
        return (await process.stdout.readline()).decode()


async def sends(guest: Guest) -> None:
    assert await guest.answer(guest.send(FRAME)) == 0


def seen(time: float, frames: int, **counters: int) -> DeviceStatistics:
    counters |= {"tx_frames": frames, "tx_bytes": frames * 125_000, "rx_notifies": 2 * frames}
    return DeviceStatistics(
        device="vif3.0",
        time=time,
        counters=counters,
        pending={"tx": 1, "rx": 200, "tx-q1": 2},
        drops={"rx_overflow": frames},
    )


def test_rates_of_a_device(capsys: pytest.CaptureFixture[str]) -> None:
    """Of a device that was made again, which counts from 0, nothing negative is shown."""
    device = _Device()
    for snapshot in (seen(0, 10), seen(2, 30, rx_too_big=4), seen(3, 5)):
        device.add(snapshot)
        _draw({"vif3.0": device})
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["vif3.0", "0b/s", "0", "0b/s", "0", "3/200", "0", "0"]
    assert lines[3].split() == [
        "vif3.0",
        "10Mb/s",
        "10",
        "0b/s",
        "0",
        "3/200",
        "20",
        "12",
        "network",
        "rx_overflow",
    ]
    assert lines[5].split() == ["vif3.0", "0b/s", "0", "0b/s", "0", "3/200", "0", "0"]


def test_a_terminal_is_filled_and_no_more(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "10")
    devices = {f"vif{number}.0": _Device() for number in range(1000)}
    for number, device in enumerate(devices.values()):
        device.add(seen(0, 0))
        device.add(seen(1, number))
    _draw(devices)
    out = capsys.readouterr().out
    assert out.startswith("\x1b[H\x1b[J")
    lines = out.splitlines()
    assert (len(lines), lines[1].split()[0]) == (9, "vif999.0")
    assert max(len(line.removeprefix("\x1b[H\x1b[J")) for line in lines) <= 80


def test_a_sparkline() -> None:
    assert sparkline(deque([0, 1, 7])) == "▁▂█"
    assert sparkline(deque([0, 0])) == "▁▁"
    assert sparkline(deque()) == ""


async def test_top(xen: Path) -> None:
    assert (await run("top", "--dir", xen))[0] == os.EX_TEMPFAIL
    async with running("serving domain 0", "run", "--dir", xen), join(xen) as guest:
        await run("attach", str(guest.domid), "--net", "null", "--dir", xen)
        await guest.connect()
        code, out, err = await run(
            "top", "--count", "2", "--interval", "0.1", "--dir", xen, PYTHONIOENCODING="ascii"
        )
        assert (code, err) == (0, "")
        assert len(re.findall(rf"^vif{guest.domid}\.0 ", out, re.M)) == 2
        assert "\x1b" not in out
        _, out, _ = await run("top", "--count", "1", "--json", "--dir", xen)
        (device,) = json.loads(out)
        assert device["device"] == f"vif{guest.domid}.0"


async def test_trace(xen: Path) -> None:
    """The states of a device while it connects, then its slots, as text, as JSON and for Perfetto."""
    async with running("serving domain 0", "run", "--dir", xen), join(xen) as guest:
        name = f"vif{guest.domid}.0"
        await run("attach", str(guest.domid), "--net", "null", "--dir", xen)
        tracing = [
            await start("trace", "xen_device_*", "xen_netdev_tx", "--count", "2", *kind, "--dir", xen)
            for kind in ((), ("--json",), ("--perfetto",))
        ]
        assert await line(tracing[2]) == "[\n"
        for process in tracing:
            assert process.stderr is not None
            assert await process.stderr.readline() == b"netback: tracing\n"
        await guest.connect()
        await sends(guest)
        text, objects, perfetto = tracing
        (out, _), (data, _), (instants, _) = [await process.communicate() for process in tracing]
        assert [process.returncode for process in (text, objects, perfetto)] == [0, 0, 0]
        assert re.search(
            rf"^[\d:]{{8}}\.\d{{6}} xen_netdev_tx dev={name} gref=\d+ offset=0 size=60 ", out.decode(), re.M
        )
        events = [json.loads(each) for each in data.decode().splitlines()]
        assert len(events) == 2
        assert {event["values"]["dev"] for event in events} == {name}
        for each in instants.decode().splitlines():
            event = json.loads(each.removesuffix(","))
            assert (event["ph"], event["tid"]) == ("i", name)


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        (("trace", "nonsense"), 2, "no trace point matches 'nonsense': known are xen_device_backend_state"),
        (("trace", "--vif", "vif9.0"), 2, "there is no device vif9.0"),
        (("trace", "--vif", "nobody"), 2, "no domain is named 'nobody'"),
        (("trace", "--json", "--perfetto"), 2, "--json and --perfetto: choose one"),
        (("top", "--interval", "nan"), 2, "Invalid value for '--interval': 'nan' is no number of seconds"),
        (("detach", "vif9.0", "--seconds", "nan"), 2, "Invalid value for '--seconds': 'nan' is no number"),
        (
            ("metrics", "--socket", "/nonexistent/m"),
            2,
            "--socket: /nonexistent/m: there is no such directory",
        ),
        (("top", "--interval", "0"), 2, "Invalid value for '--interval': "),
    ],
)
async def test_one_line_for_each_mistake(xen: Path, words: tuple[str, ...], code: int, reason: str) -> None:
    async with running("serving domain 0", "run", "--dir", xen):
        found, out, err = await run(*words, "--dir", xen)
    assert (found, out, err.count("\n")) == (code, "", 1)
    assert err.startswith(f"netback: {reason}")
