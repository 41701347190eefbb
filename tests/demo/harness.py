# SPDX-License-Identifier: Apache-2.0
"""Runs `netback demo` as a process, as root or unprivileged, and looks for what it left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import netback

SOURCE = str(Path(netback.__file__).parents[1])
LIBRARY = sysconfig.get_path("purelib")
PYTHON = os.path.realpath(sys.executable)
SHORT = """
from netback.demo import run
run.MAX_TRANSFER, run.MAX_RESTART, run.SYN_SECONDS = {seconds}, max({seconds}, 1.5), 1.5
from netback.cli import main
main()
"""
"""The command with short transfers, so that it needs a small part of its bound."""
BOUND = ("--seconds", "90")
MARK = "NETBACK_DEMO_TEST"
LINKS = {"host0", "xn0", "vif1.0"}
HANG_SECONDS = 100.0
"""A test that waits longer fails: a bound for hangs, far beyond what a busy machine takes."""


def wait_until(condition: Callable[[], bool], seconds: float = HANG_SECONDS) -> bool:
    """Wait for a condition that sends no event: whether it became true."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


@dataclass
class Place:
    """Where a demo runs: its working directory, its temporary directory, and the mark of its processes."""

    root: Path
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    _started: list[subprocess.Popen[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for directory in (self.cwd, self.tmp, self.stage):
            directory.mkdir()
            directory.chmod(0o777)

    @property
    def cwd(self) -> Path:
        return self.root / "cwd"

    @property
    def tmp(self) -> Path:
        return self.root / "tmp"

    @property
    def stage(self) -> Path:
        return self.root / "stage"

    def command(self, *words: str, user: str = "root", seconds: float = 0.3) -> list[str]:
        """The demo as root, as "nobody", or as "nobody without namespaces"; `seconds` bound each transfer."""
        demo = [PYTHON, "-c", SHORT.format(seconds=seconds), "demo", *BOUND, *words]
        if user == "root":
            return demo
        allowed = "yes" if user == "nobody" else "no"
        script = str(Path(__file__).with_name("unprivileged.py"))
        return [PYTHON, script, str(self.stage), allowed, SOURCE, LIBRARY, *demo]

    def start(
        self, *words: str, user: str = "root", cwd: Path | None = None, seconds: float = 0.3
    ) -> subprocess.Popen[str]:
        own = {"PYTHONPATH": os.pathsep.join([SOURCE, LIBRARY]), "TMPDIR": str(self.tmp), MARK: self.mark}
        process = subprocess.Popen(
            self.command(*words, user=user, seconds=seconds),
            env={**os.environ, **own, "HOME": str(self.tmp), "COLUMNS": "160"},
            cwd=cwd or self.cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._started.append(process)
        return process

    def end(self) -> None:
        """End every process of this place."""
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)
        for process in self._started:
            process.communicate()

    def processes(self) -> list[int]:
        """The processes of this demo."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and self.mark in (entry / "environ").read_text(errors="replace"):
                    found.append(int(entry.name))
            except OSError:
                continue
        return found

    def child(self, role: str) -> int | None:
        """The process with a role."""
        for pid in self.processes():
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"netback.demo.child" in words and role.encode() in words:
                return pid
        return None

    def left(self, *allowed: str) -> list[str]:
        """What the demo left behind, except files with the `allowed` names."""
        wait_until(lambda: not self.processes())
        files = [path.name for path in (*self.cwd.iterdir(), *self.tmp.iterdir()) if path.name not in allowed]
        processes = [f"process {pid}" for pid in self.processes()]
        links = [f"link {name}" for _, name in socket.if_nameindex() if name in LINKS]
        shared = [f"shared memory {path.name}" for path in Path("/dev/shm").glob("*netback*")]
        return files + processes + links + shared


@dataclass(frozen=True)
class Ended:
    """The end of a demo."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> dict[str, Any]:
        """Its JSON, alone on stdout."""
        data: dict[str, Any] = json.loads(self.out)
        return data


def finish(process: subprocess.Popen[str]) -> Ended:
    out, err = process.communicate(timeout=HANG_SECONDS)
    assert "Traceback" not in out + err, err
    return Ended(process.returncode, out, err)


def run(place: Place, *words: str, user: str = "root", cwd: Path | None = None) -> Ended:
    """Run a demo to its end; it must leave nothing but its capture."""
    ended = finish(place.start(*words, user=user, cwd=cwd))
    assert place.left("netback-demo.pcapng") == []
    return ended


@contextmanager
def new_place() -> Iterator[Place]:
    """A place that an unprivileged user can reach; its path is short, because sockets' paths must be."""
    root = Path(tempfile.mkdtemp(prefix="nbd"))
    root.chmod(0o755)
    place = Place(root)
    try:
        yield place
    finally:
        place.end()
        shutil.rmtree(root)
