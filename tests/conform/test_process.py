# SPDX-License-Identifier: Apache-2.0
"""The command of `netback conform --frontend`: those that crash, hang, never come, come twice or flood."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from netback.conform.backend import Limits
from netback.conform.observation import Exited, Observation
from netback.conform.profiles import find_profile
from netback.conform.rule import Verdict
from netback.conform.rules import RULES
from netback.conform.session import OUTPUT_BYTES, Setting, observe
from netback.conform.view import View
from netback.platforms.emulated import CFLAGS
from netback.process import children
from tests.conform.test_rules import broken
from tests.vif.guest import SECONDS

ROOT = Path(__file__).parents[2]
REFLECT = f"{sys.executable} {ROOT}/examples/reflecting_guest.py"
JOIN = f"""{sys.executable} -c '
import os, sys, pathlib
from netback.platforms.emulated import EmulatedDomain
guest = EmulatedDomain.join(pathlib.Path(os.environ["XENSTORED_PATH"]).parent)
%s
'"""
BRISK = Limits(join=10, answer=1, settle=0.3, event=0.1, end=0.5)


def observed(command: str, profile: str = "qnic", limits: Limits = BRISK) -> Observation:
    async def run() -> Observation:
        async with asyncio.timeout(SECONDS):
            return await observe(find_profile(profile), Setting(command=command, limits=limits))

    return asyncio.run(run())


def judged(seen: Observation) -> list[Verdict]:
    return RULES.judge(View(seen))


PATIENT = Limits(join=20, answer=20, settle=2, event=0.2, end=10)


@pytest.mark.parametrize(
    ("like", "deviations"),
    [
        ("linux-6.12", {}),
        ("windows", {"keys.queues-offered", "keys.multicast-offered"}),
        ("freebsd", {}),
        ("netbsd", {}),
        ("openbsd", {"xenbus.waits", "close.follows"}),
        ("mirageos", {"xenbus.waits", "close.follows"}),
        ("mini-os", {"xenbus.waits", "close.follows"}),
        ("unikraft", {"xenbus.waits", "close.follows", "keys.queues-offered"}),
        ("ipxe", {"close.follows"}),
    ],
)
@pytest.mark.parametrize("profile", ["strict", "adversarial"])
def test_the_known_frontends(like: str, deviations: set[str], profile: str) -> None:
    """What the sources of the known frontends say they do otherwise is all that is broken."""
    limits = Limits(join=20, answer=2 if "close.follows" in deviations else 20, settle=2, event=0.2, end=10)
    seen = observed(f"{REFLECT} {like}", profile, limits)
    assert {*broken(judged(seen))} <= set(deviations), broken(judged(seen))
    assert "close.follows" not in deviations or "close.follows" in broken(judged(seen))


def test_the_c_example_is_judged(tmp_path: Path) -> None:
    """It sends a frame, receives one and closes. It keeps its buffers' grants, as it ends right then."""
    guest = tmp_path / "guest"
    options = ("-std=c11", "-O2", CFLAGS, "-o", str(guest), str(ROOT / "examples/c/guest.c"))
    subprocess.run([os.environ.get("CC", "cc").split()[-1], *options], check=True)
    seen = observed(f'{guest} "$(dirname "$XENSTORED_PATH")"', "linux", PATIENT)
    assert {*broken(judged(seen))} <= {"close.grants", "close.ports"}, broken(judged(seen))
    assert View(seen).sent
    assert any(isinstance(event, Exited) and event.code == 0 for event in seen.events)


def test_a_frontend_that_never_comes() -> None:
    seen = observed("sleep 1000", limits=Limits(join=0.3, end=5))
    assert broken(judged(seen)) == {"domain.joins": "fail: no domain joined"}


def test_a_command_that_is_none() -> None:
    found = broken(judged(observed("/nowhere/guest")))
    assert {*found} == {"domain.joins", "process.sound"}
    assert "exit code 127" in found["process.sound"]


def test_a_frontend_that_crashes() -> None:
    found = broken(judged(observed(JOIN % 'sys.exit("out of luck")')))
    assert found == {"process.sound": "fail: exit code 1: out of luck"}


def test_a_frontend_that_a_fault_ends() -> None:
    found = broken(judged(observed(f"exec {JOIN % 'os.kill(os.getpid(), 11)'}")))
    assert found == {"process.sound": "fail: exit code -11: no output"}


def test_a_frontend_that_hangs() -> None:
    found = broken(judged(observed(JOIN % "import time; time.sleep(1000)")))
    assert {*found} == {"xenbus.connects"}


def test_a_command_that_does_not_end() -> None:
    seen = observed(f"trap '' TERM; {REFLECT}; sleep 1000")
    assert broken(judged(seen)) == {"process.ends": "warn: needed signal 9"}


@pytest.mark.parametrize(
    "child",
    [
        "sleep 1000 &",
        "set -m; sleep 1000 &",
        "setsid sleep 1000 &",
        "setsid sh -c 'setsid sleep 1000 & echo $! >> {mark}; exec sleep 1000' &",
        "(setsid sleep 1000 & echo $! >> {mark}) &",
    ],
    ids=["background", "group", "session", "session-in-session", "orphan"],
)
@pytest.mark.parametrize("end", ["exec sleep 1000", "trap '' TERM; sleep 1000; true", "exit 0"])
def test_nothing_of_a_command_is_left(tmp_path: Path, child: str, end: str) -> None:
    """Every descendant ends, whatever its session, its process group and its parent, and however the command ends."""
    mark = tmp_path / "pids"
    before = children()
    observed(f"{child.format(mark=mark)} echo $! >> {mark}; {end}", limits=Limits(join=0.5, end=0.5))
    pids = mark.read_text().split()
    assert pids
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)
    assert children() == before


def test_the_end_of_the_command_is_seen_while_a_child_holds_its_output() -> None:
    """The child is ended, and nothing is counted as the command's own reluctance."""
    seen = observed("setsid sleep 1000 & echo out of luck; exit 3", limits=Limits(join=SECONDS, end=SECONDS))
    assert [event for event in seen.events if isinstance(event, Exited)] == [Exited(3, 0, "out of luck")]


def test_a_command_that_forks_without_an_end_is_ended(tmp_path: Path) -> None:
    """Each process of the chain ends as soon as it has made the next one, in a session of its own."""
    chain = tmp_path / "chain"
    chain.write_text(f"echo $$ >> {tmp_path}/pids; sh {chain} & exit\n")
    before = children()
    observed(f"setsid sh {chain}; exec sleep 1000", limits=Limits(join=0.5, end=0.5))
    chain.unlink()  # where the test fails, it ends
    assert children() == before
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pids").read_text().split()[-1]), 0)


def test_processes_that_cannot_be_ended_are_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As those of another user, whom this one may not signal: the rounds are bounded."""
    started: list[int] = []

    def refuse(group: int, _number: int) -> None:
        started.append(group)
        raise PermissionError

    with monkeypatch.context() as without:
        without.setattr(os, "killpg", refuse)
        observed("exec >/dev/null 2>&1; sleep 1000 & exit 0", limits=Limits(join=5, end=0.1))
    assert "left processes that SIGKILL did not end" in caplog.text
    os.killpg(started[0], signal.SIGKILL)


def test_output_without_an_end_is_cut() -> None:
    seen = observed("yes out of patience", limits=Limits(join=0.5, end=2))
    (exited,) = [event for event in seen.events if isinstance(event, Exited)]
    assert 0 < len(exited.output) <= OUTPUT_BYTES


def test_a_frontend_that_never_rests_does_not_stop_the_drive() -> None:
    """It sends as fast as its ring has slots, without a pause, and looks at nothing else."""
    flood = """
import asyncio
from netback.frontend import Script
async def main():
    async with Script(guest) as script:
        await script.offered()
        page = script.grant(bytes(6) + bytes.fromhex("00163e5e0002" "88b6") + bytes(46), readonly=True)
        await script.connect()
        number = 0
        while True:
            if (script.tx.req_prod - script.tx.rsp_prod) % 2**32 < 250:
                number += 1
                slot = page.gref.to_bytes(4, "little") + bytes(4) + (number % 65536).to_bytes(2, "little") + b"<\\0"
                script.post(script.tx, slot)
asyncio.run(main())
"""
    seen = observed(JOIN % flood, "strict", Limits(join=10, answer=2, settle=0.3, event=0.1, end=1))
    found = broken(judged(seen))
    assert {"rx.posts", "close.follows"} <= {*found}, found
    assert View(seen).sent
    assert len(seen.events) < 30000


def test_a_recording_is_bounded() -> None:
    """A frontend that floods the store costs a bounded number of events."""
    flood = (
        "import asyncio\nasync def main():\n    store = await guest.open_store()\n"
        '    for n in range(9000): await store.write("data/x", str(n))\nasyncio.run(main())'
    )
    seen = observed(JOIN % flood, limits=Limits(answer=SECONDS))
    assert {*broken(judged(seen))} == {"store.quiet"}
    assert len(seen.events) < 5000
