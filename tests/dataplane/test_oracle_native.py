# SPDX-License-Identifier: Apache-2.0
"""The native data plane agrees with the oracle, on every byte, over random and hostile rings.

200,000 seeded operations and whatever hypothesis finds; and seeded faults of the native code show that it would be
noticed. Offloads and threads have their own tests.
"""

import random
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import netback
from tests.dataplane.ring_cases import case
from tests.dataplane.side_by_side import run

PARTS, OPERATIONS = 8, 25_000


@pytest.mark.parametrize("part", range(PARTS))
def test_seeded_operations(part: int) -> None:
    seed, played = part * 1_000_000, 0
    while played < OPERATIONS:
        try:
            played += run(case(random.Random(seed)))
        except AssertionError as error:
            raise AssertionError(f"case of seed {seed}: {error}") from error
        seed += 1


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.randoms(use_true_random=False))
def test_whatever_hypothesis_finds(rng: random.Random) -> None:
    run(case(rng, scenes=4))


FAULTS = {
    "a byte beyond the page is sent": (
        "back/tx",
        "back/tx.pyx",
        "request.offset + request.size > PAGE_SIZE",
        "request.offset + request.size > PAGE_SIZE + 1",
    ),
    "21 data slots are served": (
        "back/tx",
        "back/tx.pyx",
        "bad |= data_slots > MAX_DATA_SLOTS or",
        "bad |=",
    ),
    "extras are answered behind all data slots": (
        "back/tx",
        "back/tx.pyx",
        "if 0 < i <= chain.extras:\n            bodies",
        "if i >= chain.slots - chain.extras:\n            bodies",
    ),
    "every RX slot gets the offset": (
        "back/rx",
        "back/rx.pyx",
        "        flags = 0\n        offset = 0\n",
        "        flags = 0\n",
    ),
    "a failed copy to the guest is not reported": (
        "back/rx",
        "back/rx.pyx",
        "].status = NETIF_RSP_ERROR",
        "].status = 0",
    ),
    "RX waits for one slot, not for those it needs": (
        "back/rx",
        "back/rx.pyx",
        "back_arm(&queue.rx, needed)",
        "back_arm(&queue.rx, 1)",
    ),
    "responses run past the end of the ring": (
        "journal",
        "journal.pyx",
        "min(count, RING_SLOTS - at)",
        "count",
    ),
    "the frontend is notified one response late": (
        "journal",
        "ring.pxd",
        "rsp_event = load_relaxed(&ring.shared.rsp_event)",
        "rsp_event = load_relaxed(&ring.shared.rsp_event) - 1",
    ),
    "a full multicast list takes another address": (
        "back/tx",
        "back/tx.pyx",
        "bodies[slots].status = NETIF_RSP_ERROR",
        "bodies[slots].status = NETIF_RSP_OKAY",
    ),
    "broadcast frames are filtered": (
        "back/rx",
        "back/rx.pyx",
        "memcmp(address, BROADCAST, MAC_BYTES) != 0 and",
        "",
    ),
    "a read-only grant is written": (
        "platform/emulated_memory",
        "platform/emulated_memory.pyx",
        "entry.flags & GTF_readonly",
        "False",
    ),
}
"""Each fault: the module to rebuild, the source to change, and the change."""

PROBE = """
import random
from tests.dataplane.ring_cases import case
from tests.dataplane.side_by_side import run
for seed in range(300):
    run(case(random.Random(seed)))
"""


def build(package: Path, module: str) -> None:
    """Compile one native module of a copy of the package, optimised for a short build."""
    plane = package / "dataplane"
    source, target = plane / f"{module}.c", plane / f"{module}{sysconfig.get_config_var('EXT_SUFFIX')}"
    cython = [sys.executable, "-m", "cython", "-3", "-X", "boundscheck=False,wraparound=False,cdivision=True"]
    subprocess.run([*cython, "-o", source, plane / f"{module}.pyx"], cwd=package.parent, check=True)
    target.unlink()
    include = sysconfig.get_path("include")
    flags = ["-shared", "-fPIC", "-O1", "-w", "-fno-strict-aliasing", f"-I{include}", f"-I{plane}"]
    subprocess.run(["gcc", *flags, source, "-o", target], check=True)


def probe(root: Path) -> subprocess.CompletedProcess[str]:
    path = f"{root}:{Path(__file__).parents[2]}"
    return subprocess.run(
        [sys.executable, "-c", PROBE], env={"PYTHONPATH": path}, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("fault", FAULTS)
def test_seeded_faults_are_caught(fault: str, tmp_path: Path) -> None:
    module, source, right, wrong = FAULTS[fault]
    package = tmp_path / "netback"
    shutil.copytree(Path(netback.__file__).parent, package)
    text = (package / "dataplane" / source).read_text()
    assert text.count(right) == 1, "the line moved: seed this fault elsewhere"
    (package / "dataplane" / source).write_text(text.replace(right, wrong))
    build(package, module)
    result = probe(tmp_path)
    assert result.returncode == 1, result.stderr
    assert "AssertionError" in result.stderr


def test_no_fault_no_alarm(tmp_path: Path) -> None:
    """The same build without a fault passes, so the faults are what fails."""
    package = tmp_path / "netback"
    shutil.copytree(Path(netback.__file__).parent, package)
    for module in sorted({fault[0] for fault in FAULTS.values()}):
        build(package, module)
    result = probe(tmp_path)
    assert result.returncode == 0, result.stderr
