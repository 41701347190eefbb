# SPDX-License-Identifier: Apache-2.0
"""`netback conform` as users meet it: its exit codes, its files, one line for each mistake, and SIGINT."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.cli.commands import run, start
from tests.vif.guest import SECONDS

REFLECT = f"{sys.executable} {Path(__file__).parents[2]}/examples/reflecting_guest.py"


async def test_a_frontend_is_judged_recorded_and_judged_again(tmp_path: Path) -> None:
    record, junit = tmp_path / "runs", tmp_path / "junit.xml"
    chosen = ("--profile", "strict", "--profile", "qnic")
    code, out, err = await run(
        "conform", "--frontend", REFLECT, *chosen, "--record", record, "--junit", junit, "--limit", "20"
    )
    assert (code, err) == (0, "strict ...\nqnic ...\n"), out
    assert "0 fail" in out
    assert max(map(len, out.splitlines())) <= max(80, len(REFLECT) + 14)
    assert [suite.get("name") for suite in ET.parse(junit).getroot()] == ["strict", "qnic"]
    again = await run("conform", "--replay", record)
    assert (again[0], again[1].splitlines()[-3:]) == (0, out.splitlines()[-3:])
    code, out, _ = await run("conform", "--replay", record, "--json")
    assert code == 0
    assert json.loads(out)["holds"] is True
    code, out, _ = await run("conform", "--replay", record, "--tap")
    assert (code, out.splitlines()[0]) == (0, "TAP version 13")


async def test_a_rule_that_fails_is_exit_code_1() -> None:
    code, out, _ = await run("conform", "--frontend", "exit 3", "--profile", "qnic", "--limit", "1")
    assert code == 1
    assert "fail domain.joins" in out


@pytest.mark.parametrize("side", [(), ("--backend",)])
async def test_the_rules_are_listed(side: tuple[str, ...]) -> None:
    code, out, _ = await run("conform", "--rules", *side)
    assert code == 0
    assert "tx.ids " in out


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "give one of --frontend, --backend, --replay and --rules"),
        (("--frontend", "x", "--backend"), "--backend does not go with --frontend"),
        (("--frontend", "x", "--replay", "y"), "--replay does not go with --frontend"),
        (("--frontend", "x", "--platform", "xen"), "--platform does not go with --frontend"),
        (("--frontend", "x", "--dir", "y"), "--dir does not go with --frontend"),
        (("--backend", "--seed", "1"), "--seed does not go with --backend"),
        (("--backend", "--profile", "strict"), "--profile does not go with --backend"),
        (("--replay", "y", "--profile", "strict"), "--profile does not go with --replay"),
        (("--replay", "y", "--record", "z"), "--record does not go with --replay"),
        (("--replay", "y", "--backend", "--seed", "2"), "--seed does not go with --replay"),
        (("--replay", "y", "--limit", "2"), "--limit does not go with --replay"),
        (("--replay", "y", "--ip", "192.0.2.2"), "--ip does not go with --replay"),
        (("--replay", "y", "--ip6", "2001:db8::2"), "--ip6 does not go with --replay"),
        (("--replay", "y", "--index", "0"), "--index does not go with --replay"),
        (("--rules", "--replay", "y"), "--replay does not go with --rules"),
        (("--rules", "-v"), "--verbose does not go with --rules"),
        (("--frontend", "x", "--tap", "--json"), "--tap does not go with --json"),
        (("--frontend", " "), "--frontend is empty"),
        (("--frontend", "x", "--profile", "best"), "there is no backend profile 'best'; there are strict,"),
        (("--frontend", "x", "--ip", "192.0.2"), "--ip: Expected 4 octets in '192.0.2'"),
        (("--frontend", "x", "--ip", "224.0.0.1"), "--ip: 224.0.0.1 is no address of a host"),
        (("--frontend", "x", "--limit", "nan"), "is no number of seconds"),
        (("--frontend", "x", "--record", "y", "--junit", "y"), "--record and --junit name the same file, y"),
        (("--replay", "/nowhere"), "/nowhere: cannot be read: No such file or directory"),
        (("--replay", "/etc/hostname"), "/etc/hostname: line 1: no recording of `netback conform`"),
    ],
)
async def test_one_line_for_each_mistake(arguments: tuple[str, ...], reason: str) -> None:
    code, out, err = await run("conform", *arguments)
    assert (code, out) == (2, "")
    assert reason in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("option", ["--record", "--junit"])
async def test_a_file_that_cannot_be_written_is_found_before_the_runs(tmp_path: Path, option: str) -> None:
    ran, path = tmp_path / "ran", tmp_path / "none" / "results"
    code, out, err = await run("conform", "--frontend", f"touch {ran}", option, path)
    assert (code, out) == (2, "")
    assert err == f"netback: {option} {path}: cannot be written: No such file or directory\n"
    assert not ran.exists()


async def test_verdicts_are_printed_where_a_file_cannot_be_filled(tmp_path: Path) -> None:
    record = tmp_path / "runs"
    chosen = ("--profile", "qnic", "--limit", "1", "--record", record, "--junit", "/dev/full")
    code, out, err = await run("conform", "--frontend", "exit 3", *chosen)
    assert "fail domain.joins" in out
    assert (code, err) == (
        2,
        "qnic ...\nnetback: --junit /dev/full: cannot be written: No space left on device\n",
    )
    code, again, _ = await run("conform", "--replay", record)
    assert (code, again[again.index("\n\n") :]) == (1, out[out.index("\n\n") :])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_an_interrupt_ends_the_command_too(tmp_path: Path, number: signal.Signals) -> None:
    """With its children in sessions of their own; nothing is left of the run and of its files."""
    mark = tmp_path / "pids"
    os.mkfifo(mark)
    with tempfile.TemporaryDirectory() as temporary:  # tmp_path is too long for a socket in it
        process = await start(
            *("conform", "--frontend", f"setsid sleep 1000 & echo $$ $! > {mark}; exec sleep 1000"),
            *("--limit", "300", "--record", tmp_path / "runs", "--junit", tmp_path / "junit.xml"),
            TMPDIR=temporary,
        )
        async with asyncio.timeout(SECONDS):
            pids = await asyncio.to_thread(mark.read_text)
            process.send_signal(number)
            _, err = await process.communicate()
        assert os.listdir(temporary) == []  # noqa: PTH208 (names)
    assert process.returncode == 130
    assert b"Traceback" not in err
    for pid in pids.split():
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)
    assert os.listdir(tmp_path) == ["pids"]  # noqa: PTH208
