# SPDX-License-Identifier: Apache-2.0
"""Open vSwitch itself, with its userspace datapath, in a directory and in the present network namespace."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"
SECONDS = 20
ENVIRONMENT = os.environ | {"PATH": f"{os.environ['PATH']}:/usr/sbin"}
"""With Debian's directory of daemons, which a user's PATH lacks."""


class OpenVSwitch:
    """ovsdb-server, and ovs-vswitchd unless `alone`."""

    def __init__(self, place: Path, *, alone: bool = False) -> None:
        self.place, self.socket = place, place / "db.sock"
        place.mkdir(exist_ok=True)
        self._daemons: list[subprocess.Popen[bytes]] = []
        self.database = self._vswitchd = None
        self.start_database()
        self.vsctl("--no-wait init")
        if not alone:
            self.start_vswitchd()

    def start_database(self, *, empty: bool = True) -> None:
        """Start ovsdb-server, with an empty database or the one that is there."""
        if empty:
            (self.place / "conf.db").unlink(missing_ok=True)
            subprocess.run(["ovsdb-tool", "create", self.place / "conf.db", SCHEMA], check=True)
        self.database = self._start("ovsdb-server", self.place / "conf.db", f"--remote=punix:{self.socket}")
        deadline = time.monotonic() + SECONDS
        while not self.socket.is_socket():
            assert time.monotonic() < deadline, "ovsdb-server does not listen"
            assert self.database.poll() is None

    def kill_database(self) -> None:
        """End ovsdb-server at once; its socket stays, on which nobody listens."""
        assert self.database is not None
        self.database.kill()
        self.database.wait()
        self.socket.unlink()
        for lock in self.place.glob(".conf.db.~lock~"):
            lock.unlink()

    def start_vswitchd(self) -> None:
        """Start ovs-vswitchd."""
        self._vswitchd = self._start("ovs-vswitchd", f"unix:{self.socket}", "--disable-system")

    def _start(self, program: str, *arguments: object) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [program, *map(str, arguments), f"--unixctl={self.place / program}.ctl"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=ENVIRONMENT | {"OVS_RUNDIR": str(self.place)},
        )
        self._daemons.append(process)
        return process

    def vsctl(self, words: str) -> str:
        """What ovs-vsctl(8) says, which waits for ovs-vswitchd unless told otherwise."""
        command = ["ovs-vsctl", "--retry", f"--timeout={SECONDS}", f"--db=unix:{self.socket}", *words.split()]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def add_bridge(self, name: str) -> None:
        """A bridge with the userspace datapath."""
        self.vsctl(f"add-br {name} -- set bridge {name} datapath_type=netdev")

    def ports(self, bridge: str = "br0") -> list[str]:
        """Its ports."""
        return self.vsctl(f"list-ports {bridge}").split()

    def close(self) -> None:
        """End both. A vswitchd that is killed leaves its own taps, which its namespace takes along."""
        for process in reversed(self._daemons):
            process.kill()
            process.wait()
        with suppress(OSError):
            shutil.rmtree(self.place)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
