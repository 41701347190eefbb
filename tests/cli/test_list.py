# SPDX-License-Identifier: Apache-2.0
"""`netback list` and `detach` beside stray nodes, and beside a process that answers wrongly."""

import json
import os
import re
import socket
from pathlib import Path

import pytest
from msgspec import structs

from netback.cli.list import _COLUMNS, _DEFAULT, _Seen, show
from netback.cli.table import lay_out, short
from netback.control.schema import DeviceStatus
from netback.xenstore.aio import Store
from tests.cli.commands import run, running, start
from tests.daemon.test_control import answering
from tests.vif.guest import join, until

STRAY = "/local/domain/0/backend/vif/foo/0/state"


async def test_a_stray_node(xen: Path) -> None:
    async with join(xen) as guest, await Store.connect(xen / "xenstored.sock") as dom0:
        await run("attach", str(guest.domid), "--net", "null", "--dir", xen)
        await dom0.write(STRAY, "1")
        await dom0.write(f"/local/domain/{guest.domid}/name", "\udce4\x1b[31m")
        code, out, err = await run("list", "--dir", xen, PYTHONIOENCODING="ascii")
        assert (code, err.count("\n"), "\x1b" in out + err) == (0, 1, False)
        assert f"vif{guest.domid}.0" in out
        assert r"\xe4\x1b[31m" in out
        assert "'foo' is not a domain" in out
        assert (await run("detach", str(guest.domid), "--index", "44", "--dir", xen))[0] == 2
        assert (await run("detach", str(guest.domid), "--seconds", "0.1", "--dir", xen))[0] == 0
        assert (await run("list", "--json", "--dir", xen))[0] == 0


async def test_a_backend_that_dies_while_it_answers(xen: Path) -> None:
    async with join(xen) as guest:
        await run("attach", str(guest.domid), "--net", "null", "--dir", xen)
        async with answering(xen, b'{"result": [{"dev'):
            code, out, err = await run("list", "--json", "--dir", xen)
            failed, _, reason = await run("attach", str(guest.domid), "--net", "null", "--dir", xen)
    assert (failed, reason) == (1, f"netback: {xen}/control.sock: the answer ends in the middle\n")
    assert (code, err.count("\n")) == (0, 1)
    assert "the answer ends in the middle; showing the store's data only" in err
    assert json.loads(out)[0]["backend"] == "InitWait"


async def test_a_backend_that_hangs(xen: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(xen / "control.sock"))
        silent.listen()
        code, out, err = await run("list", "--json", "--dir", xen)
    assert (code, out, err.count("\n")) == (0, "[]\n", 1)
    assert "no answer within 10 s" in err


def test_a_stalled_guest_is_shown_with_its_time(capsys: pytest.CaptureFixture[str]) -> None:
    device = DeviceStatus(device="vif3.0", type="vif", domid=3, index="0", stalled=75.4)
    show([_Seen(device), _Seen(structs.replace(device, error="no tap"))])
    first, stalled, second, error = capsys.readouterr().out.splitlines()[1:]
    assert first == second
    assert (stalled, error) == ("  stalled for 75 s: the guest takes no frames", "  no tap")


async def test_limits_are_set_and_shown(xen: Path) -> None:
    """`attach` and `set` write nodes that the backend reads; a mistake is one line and changes nothing."""
    async with join(xen) as guest:
        domain = (str(guest.domid), "--dir", xen)
        assert (await run("set", *domain, "--tx-rate", "1Mb/s"))[0] == os.EX_TEMPFAIL
        async with running("serving domain 0", "run", "--dir", xen, "--workers", "1"):
            code, _, err = await run("attach", *domain, "--net", "null", "--tx-rate", "10Mb")
            assert (code, err.count("\n")) == (2, 1)
            assert "--tx-rate: '10Mb' is not a rate: as in 10Mb/s" in err
            assert (await run("attach", *domain, "--net", "null", "--tx-rate", "10Mb/s"))[0] == 0
            await guest.connect()
            name = f"vif{guest.domid}.0"
            assert await run("set", *domain, "--rx-rate", "1.5MB/s") == (
                0,
                f"{name}: tx 10Mb/s, rx 12Mb/s, carrier\n",
                "",
            )
            for words, reason in (
                ((), "nothing to set"),
                (("--rx-rate", "1"), "--rx-rate: '1' is not a rate"),
            ):
                code, out, err = await run("set", *domain, *words)
                assert (code, out, err.count("\n")) == (2, "", 1)
                assert reason in err
            _, out, _ = await run("list", "--dir", xen)
            assert " 10M/12M " in out
            assert (await run("set", *domain, "--tx-rate", "none"))[
                1
            ] == f"{name}: tx none, rx 12Mb/s, carrier\n"
            _, out, _ = await run("list", "--json", "--dir", xen)
            (device,) = json.loads(out)
            assert (device["tx_rate"], device["rx_rate"]) == (None, "12Mb/s")
            node = f"/local/domain/0/backend/vif/{guest.domid}/0/carrier"
            for word, text, value in (("--no-carrier", "no carrier", "0"), ("--carrier", "carrier", "1")):
                assert (await run("set", *domain, word))[1] == f"{name}: tx none, rx 12Mb/s, {text}\n"
                await until(guest.store, node, lambda found, value=value: found == value)


async def test_filters_are_set_and_shown(xen: Path) -> None:
    """By `attach` and by `set`, in their order; a mistake is one line and changes nothing."""
    async with join(xen) as guest:
        domain = (str(guest.domid), "--dir", xen)
        code, _, err = await run("attach", *domain, "--net", "null", "--filter", "antispof")
        assert (code, err.count("\n")) == (2, 1)
        assert "filter 'antispof': unknown kind (kinds: antispoof, vlan" in err
        async with running("serving domain 0", "run", "--dir", xen, "--workers", "1"):
            words = ("--filter", "antispoof", "--filter", "vlan,access=10")
            assert (await run("attach", *domain, "--net", "null", *words))[0] == 0
            await guest.connect()
            name = f"vif{guest.domid}.0"
            _, out, _ = await run("show", *domain)
            assert re.search(r"^filters +antispoof; vlan,access=10$", out, re.MULTILINE)
            answer = await run("set", *domain, "--filter", "faults,loss=1%")
            assert answer == (0, f"{name}: tx none, rx none, carrier, filters faults,loss=1%\n", "")
            for words, reason in (
                (("--filter", "vlan"), "filter 'vlan': a port is either access=VLAN or trunk=VLANS"),
                (
                    ("--filter", "antispoof", "--no-filters"),
                    "--filter and --no-filters contradict each other",
                ),
            ):
                code, out, err = await run("set", *domain, *words)
                assert (code, out, err.count("\n")) == (2, "", 1)
                assert reason in err
            _, out, _ = await run("list", "--json", "--dir", xen)
            assert json.loads(out)[0]["filters"] == ["faults,loss=1%"]
            _, out, _ = await run("stats", *domain, "--all")
            assert "tx_faults_lost" in out
            assert (await run("set", *domain, "--no-filters"))[1] == f"{name}: tx none, rx none, carrier\n"


def test_the_table_fits_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long names of guests and links are cut, then limits; counts are whole. Nothing is shown for what is not known."""
    counted = {"tx_bytes": 123_456_789_012, "rx_bytes": 999, "tx_dropped": 7, "rx_too_big": 5, "tx_frames": 9}
    long = DeviceStatus(
        device="vif12345.10", type="vif", domid=12345, index="10", guest="a-guest-with-a-long-name", backend="Closing",
        frontend="Connected", network="vif12345.10-emu", bridge="xenbr0.4094", mtu=65535, counters=counted,
        tx_rate="62.5Mb/s", rx_rate="125Mb/s", drops={"rx_dropped": 100},
    )  # fmt: skip
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    show([_Seen(long), _Seen(DeviceStatus(device="vif1.0", type="vif", domid=1, index="0"))])
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.split() == [*_DEFAULT]
    assert max(map(len, (head, first, second))) <= 80
    assert re.fullmatch(
        r"vif12345\.10  a-gu~  Closing/Connected  vif12~  65535  123GB  999B  62\.5M~  112", first
    ), first
    assert second.split() == ["vif1.0", *["-"] * 8]


def test_rates_while_it_is_watched(capsys: pytest.CaptureFixture[str]) -> None:
    before = DeviceStatus(device="vif1.0", type="vif", domid=1, index="0", counters={"tx_bytes": 1000})
    now = structs.replace(before, counters={"tx_bytes": 2_001_000, "rx_bytes": 5})
    show([_Seen(now, before, 2.0)], ("device", "tx", "rx", "tx-frames"))
    assert capsys.readouterr().out.splitlines()[1].split() == ["vif1.0", "8Mb/s", "20b/s", "0"]


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1k"),
        (12_345, "12.3k"),
        (123_456, "123k"),
        (999_999, "1000k"),
        (10**10, "10G"),
    ],
)
def test_short_numbers(number: int, text: str) -> None:
    assert short(number) == text


def test_a_table_too_narrow_is_cut() -> None:
    assert lay_out([["name", "other"], ["a" * 20, "b" * 30]], 20, [0, 1]) == [
        "name       other",
        "aaaaaaaa~  bbbbbbbb~",
    ]
    assert lay_out([["name", "other"]], 9) == ["name  oth"]


async def test_columns_and_watching(xen: Path) -> None:
    code, out, err = await run("list", "-o", "device,speed", "--dir", xen)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "-o: there is no column 'speed'; there are wide, device, guest" in err
    _, out, _ = await run("list", "-o", "wide", "--dir", xen)
    assert out.split() == [*_COLUMNS]
    assert (await run("list", "--watch", "--dir", xen))[0] == os.EX_TEMPFAIL
    async with running("serving domain 0", "run", "--dir", xen), join(xen) as guest:
        await run("attach", str(guest.domid), "--net", "null", "--dir", xen)
        watching = await start("list", "--watch", "--interval", "0.1", "--json", "--dir", xen)
        assert watching.stdout is not None
        for _ in range(2):
            (device,) = json.loads(await watching.stdout.readline())
            assert device["device"] == f"vif{guest.domid}.0"
        watching.terminate()
        await watching.wait()
