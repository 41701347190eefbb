# SPDX-License-Identifier: Apache-2.0
"""The examples in other languages, as their authors would test them: C everywhere, Rust where there is cargo."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from netback.platforms.emulated import CFLAGS
from netback.testing import ServedBackend, Xen
from tests.conftest import NO_CARGO

ROOT = Path(__file__).parents[2]
FRAME = bytes.fromhex("ffffffffffff 020000000001 88b5") + b"from the network".ljust(46, b"\0")


@pytest.fixture(scope="module", params=["c", "rust"])
def guest(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, built without a warning."""
    place = tmp_path_factory.mktemp(request.param)
    if request.param == "c":
        flags = ("-std=c11", "-Wall", "-Wextra", "-Werror", CFLAGS)
        source = ROOT / "examples" / "c" / "guest.c"
        subprocess.run(["cc", *flags, "-o", str(place / "guest"), str(source)], check=True)
        return place / "guest"
    if shutil.which("cargo") is None:
        pytest.skip(NO_CARGO)
    environment = {**os.environ, "CARGO_TARGET_DIR": str(place), "RUSTFLAGS": "-D warnings"}
    manifest = str(ROOT / "examples" / "rust" / "Cargo.toml")
    command = ["cargo", "build", "-q", "--offline", "--example", "guest", "--manifest-path", manifest]
    subprocess.run(command, env=environment, check=True)
    return place / "debug" / "examples" / "guest"


def test_a_frame_each_way(guest: Path, xen: Xen, xen_backend: ServedBackend) -> None:
    frontend = xen.spawn(str(guest), str(xen.directory), "author")
    frontend.says("domain 1\n")
    vif = xen_backend.attach("author", mac="00:16:3e:00:00:01")
    assert b"hello from domain 1" in vif.host.recv()
    vif.host.send(FRAME)
    assert frontend.wait() == 0, frontend.output
    assert f"received 60 bytes: {FRAME.hex(' ')}" in frontend.output


def test_a_restart_of_the_backend(guest: Path, xen: Xen, xen_backend: ServedBackend) -> None:
    """The event channel's far side is another one afterwards."""
    frontend = xen.spawn(str(guest), str(xen.directory))
    vif = xen_backend.attach(1)
    vif.connected()
    vif.host.recv()
    xen_backend.restart()
    vif.host.send(FRAME)
    assert frontend.wait() == 0, frontend.output


def test_errors_are_one_line(guest: Path, xen: Xen) -> None:
    assert (absent := xen.spawn(str(guest), "/nonexistent")).wait() == 1
    assert absent.output.count("\n") == 1, absent.output
    assert xen.spawn(str(guest)).wait() == 2
