# SPDX-License-Identifier: Apache-2.0
"""`netback list` and `detach` beside stray nodes, and beside a process that answers wrongly."""

import json
import os
import socket
from pathlib import Path

import pytest
from msgspec import structs

from netback.cli.list import show
from netback.control.schema import DeviceStatus
from netback.xenstore.aio import Store
from tests.cli.commands import run, running
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
    assert "no answer within 5 s" in err


def test_a_stalled_guest_is_shown_with_its_time(capsys: pytest.CaptureFixture[str]) -> None:
    device = DeviceStatus(device="vif3.0", type="vif", domid=3, index="0", stalled=75.4)
    show([device, structs.replace(device, error="no tap")])
    first, second = capsys.readouterr().out.splitlines()[1:]
    assert "stalled for 75 s: the guest takes no frames" in first
    assert "no tap" in second
    assert "stalled" not in second


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
            assert "tx 10Mb/s rx 12Mb/s" in out
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
