# SPDX-License-Identifier: Apache-2.0
"""`netback explain` as a process: exit codes, both outputs, and what it says without a backend."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from netback.abi.xenbus import XenbusState as State
from tests.cli.commands import run, running
from tests.vif.guest import join, until_state


async def test_explain(xen: Path) -> None:
    async with join(xen, domid=1) as guest:
        async with running("serving domain 0", "run", "--dir", xen):
            await run("attach", "1", "--net", "null", "--dir", xen)
            await until_state(guest.store, await guest.backend(), State.INIT_WAIT)
            code, out, err = await run("explain", "1", "--seconds", "0", "--dir", xen)
            assert (code, err) == (1, "")
            assert out.splitlines() == [
                "error    The guest's frontend has not started: it is Initialising.",
                "         [frontend-never-came]",
                "         seen: backend InitWait, frontend Initialising",
                "         do: In the guest, load the driver (modprobe xen-netfront) and see its",
                "         log; a guest that boots may need a moment.",
            ]
            await guest.connect()
            code, out, err = await run("explain", "vif1.0", "--seconds", "0.1", "--dir", xen)
            assert (code, err) == (0, "")
            assert out.startswith("vif1.0: none of ")
            code, out, _ = await run("explain", "vif1.0", "--json", "--seconds", "0", "--dir", xen)
            assert (code, json.loads(out)["findings"]) == (0, [])
        code, out, err = await run("explain", "vif1.0", "--json", "--dir", xen)
        assert err == (
            f"netback: no backend listens at {xen}/control.sock: start netback run; explaining from the store alone\n"
        )
        answer = json.loads(out)
        assert code == 1
        assert (answer["device"], answer["seconds"]) == ("vif1.0", 0)
        assert [finding["rule"] for finding in answer["findings"]] == ["no-backend"]
        await guest.store.write(f"{guest.path}/state", "5")
        _, out, _ = await run("explain", "1", "--json", "--dir", xen)
        found = [finding["rule"] for finding in json.loads(out)["findings"]]
        assert found == ["no-backend", "frontend-left"]
        code, out, err = await run("explain", "vif9.0", "--dir", xen)
        assert (code, out, err) == (2, "", "netback: there is no device vif9.0\n")


async def test_explain_without_xen(tmp_path: Path) -> None:
    code, out, err = await run("explain", "vif1.0", "--dir", tmp_path)
    reason = f"netback: no backend listens at {tmp_path}/control.sock: start netback run\n"
    assert (code, out, err) == (os.EX_TEMPFAIL, "", reason)


HERE = Path(__file__).parent
ASIDE = 'mount -t tmpfs names /run/netns && exec bash "$0" "$@"'


@pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces: needs root")
@pytest.mark.skipif(
    not all(map(shutil.which, ("ip", "ping", "unshare", "bash"))), reason="needs iproute2, ping"
)
def test_tcp_hangs_while_ping_works(tmp_path: Path) -> None:
    """Linux's TCP at both ends hangs, explain names the cause, and doing what it says ends that."""
    Path("/run/netns").mkdir(exist_ok=True)
    environment = {
        "HOME": str(tmp_path),
        "PATH": f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin",
    }
    with (tmp_path / "out").open("w+") as out:
        words = [ASIDE, HERE / "tcp_hangs.sh", tmp_path / "xen", HERE / "tcp_talk.py"]
        seen = subprocess.run(
            ["unshare", "--mount", "sh", "-c", *map(str, words)],
            stdout=out,
            stderr=subprocess.STDOUT,
            env=environment,
            check=False,
            timeout=120,
        )
        out.seek(0)
        output = out.read()
    assert seen.returncode == 0, output
    assert "Traceback" not in output
    assert output.count(" 0% packet loss") == 2
    assert "ping passes, and TCP with" in output
    assert "[jumbo-without-sg]" in output
    assert "\nTCP goes on\n" in output
