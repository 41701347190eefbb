# SPDX-License-Identifier: Apache-2.0
"""`netback add`, `remove`, `rules` and `config check`, as a user calls them."""

import json
import os
import signal
from pathlib import Path

import pytest

from netback.platforms.emulated import EmulatedDomain
from tests.cli.commands import run, running


@pytest.fixture
def main(tmp_path: Path) -> Path:
    path = tmp_path / "netback.toml"
    path.write_text('net = "null"\n')
    return path


async def test_add_rules_remove(xen: Path, main: Path) -> None:
    """A rule is in force at once, after a reload and after kill -9, and its device goes with it on request."""
    serve = ("run", "--dir", xen, "--workers", "1", "--config", main)
    rule = ("--net", "null", "--guest", "web", "--index", "0", "--attach", "--tx-rate", "10Mb/s")
    rule += ("--filter", "antispoof")
    with EmulatedDomain.join(xen, domid=1, name="web"):
        async with running("serving domain 0", *serve) as backend:
            assert (await run("add", *rule, "--dir", xen))[:2] == (0, "added-1 vif1.0\n")
            code, out, err = await run(
                "add", "--net", "null", "--domid", "7", "--name", "seven", "--json", "--dir", xen
            )
            assert (code, json.loads(out)["rule"]["name"]) == (0, "seven"), err
            (main.parent / main.name).write_text('net = "null"\n[[device]]\nnet = "tap"\n')
            backend.send_signal(signal.SIGHUP)
            assert backend.stderr is not None
            while b"the configuration is loaded" not in await backend.stderr.readline():
                pass
            _, out, _ = await run("rules", "--json", "--dir", xen)
            assert [one["name"] for one in json.loads(out)] == ["added-1", "seven", None]
            backend.kill()
            await backend.wait()
        async with running("serving domain 0", *serve):
            _, out, _ = await run("rules", "--dir", xen)
            head, first, second, third = (line.split() for line in out.splitlines())
            assert head == ["name", "matches", "net", "attach", "limits", "filters", "file"]
            added = str(main.parent / "conf.d" / "50-added.toml")
            assert first == ["added-1", "guest=web", "index=0", "null", "yes", "10Mb/s/-", "antispoof", added]
            assert (second[0], third) == ("seven", ["-", "all", "tap", "no", "-", "-", str(main)])
            assert await run("remove", "seven", "--dir", xen) == (0, "", "")
            assert await run("remove", "added-1", "--detach", "--dir", xen) == (0, "vif1.0\n", "")
            assert (await run("list", "--json", "--dir", xen))[1] == "[]\n"
    assert list((main.parent / "conf.d").iterdir()) == []


async def test_a_device_that_cannot_be_attached(xen: Path, main: Path) -> None:
    with EmulatedDomain.join(xen, domid=1, name="web"):
        async with running("serving domain 0", "run", "--dir", xen, "--config", main):
            await run("attach", "1", "--net", "null", "--type", "qnic", "--index", "0", "--dir", xen)
            rule = ("--net", "null", "--guest", "web", "--index", "0", "--attach")
            code, out, err = await run("add", *rule, "--dir", xen)
            assert (code, out, err.count("\n")) == (1, "added-1\n", 1)
            assert err.startswith(
                "netback: vif1.0: cannot attach it to guest web: domain 1 has a device 0 already"
            )


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("add", "--net", "wire"), "net: network 'wire': unknown kind 'wire'"),
        (("add", "--net", "null", "--attach"), "attach needs guest and index"),
        (("add", "--net", "null", "--mac", "1:2"), "mac: failed to parse MAC address: '1:2'"),
        (("add", "--net", "null", "--tx-rate", "fast"), "--tx-rate: "),
        (("add", "--net", "null", "--name", "a b"), "name: 'a b': at most 64 letters"),
        (("add", "--net", "null", "--domid", "32752"), "add: Expected `int` <= 32751"),
        (("remove", "none"), "there is no rule none: netback rules"),
    ],
)
async def test_one_line_for_each_mistake(
    xen: Path, main: Path, arguments: tuple[str, ...], reason: str
) -> None:
    async with running("serving domain 0", "run", "--dir", xen, "--config", main):
        code, out, err = await run(*arguments, "--dir", xen)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith(f"netback: {reason}")


@pytest.mark.parametrize("arguments", [("add", "--net", "null"), ("remove", "x"), ("rules",)])
async def test_without_a_backend(xen: Path, arguments: tuple[str, ...]) -> None:
    code, out, err = await run(*arguments, "--dir", xen)
    assert (code, out, err.count("\n")) == (os.EX_TEMPFAIL, "", 1)
    assert err.startswith("netback: no backend listens at ")


async def test_config_check(main: Path) -> None:
    conf = main.parent / "conf.d"
    conf.mkdir()
    (conf / "10-a.toml").write_text('[[device]]\nnet = "tap"\n')
    good = await run("config", "check", "--config", main)
    assert good == (0, f"{conf}/10-a.toml, {main}: no mistake, 1 rules\n", "")
    _, out, _ = await run("config", "check", "--json", "--config", main)
    assert json.loads(out) == {"files": [f"{conf}/10-a.toml", str(main)], "rules": 1}
    (conf / "10-a.toml").write_text('[[device]]\nnett = "tap"\n')
    code, out, err = await run("config", "check", "--config", main)
    assert (code, out) == (2, "")
    assert err == f"netback: {conf}/10-a.toml: device[0].nett: unknown key; did you mean net?\n"
    code, _, err = await run("config", "check", "--config", main.parent / "none.toml")
    assert (code, err) == (2, f"netback: {main.parent}/none.toml: there is no such file\n")


async def test_run_checks_the_drop_ins(main: Path) -> None:
    (main.parent / "conf.d").mkdir()
    (main.parent / "conf.d" / "x.toml").write_text("nett = 1")
    code, _, err = await run("run", "--check", "--config", main)
    assert (code, "x.toml: nett: unknown key" in err) == (2, True)
