# SPDX-License-Identifier: Apache-2.0
"""The parts of the lab that need no machine: its parsers, generated files and counters."""

import gzip
import lzma
import math
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

from netback.errors import ConfigError
from netback.lab import image, initramfs
from netback.lab.host import Lab, open_lab
from netback.lab.inside.agent import ANSWER
from netback.lab.install import Medium
from netback.lab.machine import LabError, Machine, Options, choose_accel, processor_flags
from netback.lab.runner import Scenario, choose, find_scenarios, run_one
from netback.lab.tools import echoes

IMAGE = image.Image(Path("/nowhere"))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Types: deb\nURIs: http://here/debian\nSuites: x\n", "http://here/debian"),
        ("deb http://there/debian/ bookworm main\n", "http://there/debian/"),
        ("deb [arch=amd64] http://there/debian bookworm main\n", "http://there/debian"),
        ("# deb http://no/debian x\ndeb http://no/debian-security x\n", None),
        ("", None),
    ],
)
def test_the_mirror_is_this_machine_s(text: str, found: str | None) -> None:
    assert image.find_mirror(text) == found


def test_no_mirror_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no Debian mirror is named"):
        image.mirror(tmp_path)
    (tmp_path / "sources.list").write_text("deb http://one/debian x main\n")
    assert image.mirror(tmp_path) == "http://one/debian"


def test_what_is_missing_is_named_with_its_package() -> None:
    with pytest.raises(ConfigError, match="apt install some-package"):
        image.check_programs({"no-such-program": "some-package", "sh": "dash"})


def test_a_kernel_is_unpacked_and_what_is_none_is_left_alone() -> None:
    elf = b"\x7fELF" + bytes(1000)
    assert image.unpacked_kernel(b"bzImage" + lzma.compress(elf) + b"tail") == elf
    assert image.unpacked_kernel(b"bzImage" + lzma.compress(b"no ELF")) == b"bzImage" + lzma.compress(
        b"no ELF"
    )
    assert image.unpacked_kernel(elf) == elf


def test_modules_come_with_all_that_they_need() -> None:
    text = "k/a.ko.xz: k/b-x.ko.xz\nk/b-x.ko.xz: k/c.ko.xz\nk/c.ko.xz:\nk/d.ko.xz:\n"
    assert set(initramfs.closure(text, ["a", "none-such"])) == {"k/a.ko.xz", "k/b-x.ko.xz", "k/c.ko.xz"}
    assert set(initramfs.closure(text, ["b-x"])) == {"k/b-x.ko.xz", "k/c.ko.xz"}


def test_an_archive_is_what_cpio_reads(tmp_path: Path) -> None:
    archive = initramfs.Archive()
    archive.file("/etc/deep/name", b"content", 0o600)
    archive.link("/bin/sh", "busybox")
    data = archive.data()
    assert len(data) % 4 == 0
    listed = subprocess.run(
        ["cpio", "-it", "--quiet"], input=gzip.decompress(data), capture_output=True, check=True
    )
    assert listed.stdout.decode().split() == ["etc", "etc/deep", "etc/deep/name", "bin", "bin/sh"]


def test_a_link_stays_in_its_root(tmp_path: Path) -> None:
    (tmp_path / "usr/lib").mkdir(parents=True)
    (tmp_path / "usr/lib/real").write_text("x")
    (tmp_path / "lib").symlink_to("usr/lib")
    (tmp_path / "usr/lib/name").symlink_to("/lib/real")
    assert initramfs.inside(tmp_path, "/lib/name") == tmp_path / "usr/lib/real"
    (tmp_path / "loop").symlink_to("/loop")
    with pytest.raises(OSError, match="too many links"):
        initramfs.inside(tmp_path, "/loop")


def test_an_answer_is_found_among_what_a_kernel_prints() -> None:
    seen = b"[ 1.0] noise @@ not\r\n@@t7 0 aGVsbG8=@@\r\n[ 2.0] more @@t8 1 @@"
    assert [match.groups() for match in ANSWER.finditer(seen)] == [
        (b"t7", b"0", b"aGVsbG8="),
        (b"t8", b"1", b""),
    ]


@pytest.mark.parametrize(
    ("text", "sent", "received", "average"),
    [
        (
            "3 packets transmitted, 2 received, 33% packet loss\nrtt min/avg/max/mdev = 1.0/2.5/3.0/0.1 ms",
            3,
            2,
            2.5,
        ),
        (
            "3 packets transmitted, 3 packets received, 0% packet loss\nround-trip min/avg/max = 1.0/2.0/3 ms",
            3,
            3,
            2.0,
        ),
        ("1 packets transmitted, 0 received, 100% packet loss", 1, 0, math.nan),
    ],
)
def test_both_pings_are_understood(text: str, sent: int, received: int, average: float) -> None:
    seen = echoes(text)
    assert (seen.sent, seen.received) == (sent, received)
    assert seen.average == average or (math.isnan(average) and math.isnan(seen.average))
    with pytest.raises(LabError):
        echoes("no numbers")


def test_every_scenario_says_what_it_is_and_can_be_chosen() -> None:
    known = find_scenarios()
    assert all(scenario.title and callable(scenario.module.run) for scenario in known.values())
    assert {"ping", "kill", "network"} <= {scenario.name for scenario in choose([], full=False)}
    assert len(choose([], full=True)) == len(known)
    named = choose(
        ["upgrade", "systemd"], full=False
    )  # the upgrade purges the package that systemd's scenario starts
    assert [scenario.name for scenario in named] == ["systemd", "upgrade"]
    with pytest.raises(ConfigError, match=r"no scenario 'none-such': .*ping"):
        choose(["none-such"], full=False)


class Quiet(Lab):
    """A lab without a machine."""

    def __init__(self, directory: Path) -> None:
        super().__init__(Machine(IMAGE, Medium(directory), directory), "none")

    async def reset(self) -> None:
        pass


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (LabError("xl said no"), "xl said no"),
        (ValueError("too many values to unpack"), "test_pieces.py"),
        (AssertionError(), "AssertionError"),
    ],
)
async def test_whatever_a_scenario_stumbles_over_is_its_own_fault(
    tmp_path: Path, raised: Exception, message: str
) -> None:
    module = ModuleType("odd", "Odd.")

    async def run(_lab: Lab) -> None:
        raise raised

    module.run = run  # type: ignore[attr-defined]
    outcome = await run_one(Quiet(tmp_path), Scenario("odd", module), full=False)
    assert message in outcome.fault


async def test_a_machine_that_does_not_start_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bin" / "qemu-system-x86_64"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'kvm: no such processor' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/bin:/usr/bin")
    with pytest.raises(LabError, match=r"ended before dom0 was up\. kvm: no such processor"):
        async with Machine(IMAGE, Medium(tmp_path), tmp_path / "out", Options(accel="tcg")):
            pass


def test_an_acceleration_that_is_none() -> None:
    with pytest.raises(ConfigError, match="no acceleration is called 'warp': auto, kvm, tcg"):
        choose_accel(IMAGE, "warp")


async def test_a_directory_in_use_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "dom0.console").write_text("another lab's")
    with pytest.raises(ConfigError, match="is not empty"):
        async with open_lab(tmp_path, lambda _: None):
            pass


def test_processor_flags(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text("model name : x\nflags\t\t: fpu svm npt\nflags\t\t: fpu\n")
    assert processor_flags(path) == {"fpu", "svm", "npt"}
    path.write_text("no flags here")
    assert processor_flags(path) == set()
