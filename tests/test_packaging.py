# SPDX-License-Identifier: Apache-2.0
"""The unit as systemd reads it."""

import subprocess
from pathlib import Path

import pytest

from netback.daemon.systemd.unit import UNIT, is_hidden, unit


def test_systemd_understands_every_line(tmp_path: Path) -> None:
    path = tmp_path / "netback.service"
    text = unit("/bin/true")
    path.write_text(text.replace("FileDescriptorStorePreserve=yes\n", ""))  # systemd 252 does not know it yet
    seen = subprocess.run(
        ["systemd-analyze", "verify", "--recursive-errors=no", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    about_ours = [line for line in seen.stderr.splitlines() if "netback.service" in line]
    assert (seen.returncode, about_ours) == (0, []), seen.stderr


@pytest.mark.parametrize(
    ("program", "hidden"),
    [("/root/venv/bin/netback", True), ("/home/x/netback", True), ("/opt/netback/bin/netback", False)],
)
def test_what_the_unit_cannot_see(program: str, hidden: bool) -> None:
    assert is_hidden(program) is hidden


def test_it_may_do_little() -> None:
    seen = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--threshold=20", "--no-pager", str(UNIT)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert seen.returncode == 0, seen.stdout[-400:] + seen.stderr
