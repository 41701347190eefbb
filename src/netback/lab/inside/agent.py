# SPDX-License-Identifier: Apache-2.0
"""Runs as dom0's last process: executes commands that the lab sends, in dom0 or in guests. Standard library only.

Protocol: one JSON object per line over a virtio-serial port. A request is {"id", "run", "seconds", "domid"?} and its
answer {"id", "code", "out", "err"}. Commands run concurrently.
"""

import base64
import json
import os
import re
import signal
import socket
import subprocess
import threading
import tty
from pathlib import Path
from typing import Any

PORTS = Path("/sys/class/virtio-ports")
TIMED_OUT = 124
"""The exit code of timeout(1)."""
SO_TIMESTAMP = 29
"""asm-generic/socket.h; Python's socket module lacks it."""
MAX_LINE = 4095
"""The longest line that a terminal takes, in bytes: N_TTY_BUF_SIZE of Linux's n_tty.c."""
ANSWER = re.compile(rb"@@(\S+) (\d+) ([A-Za-z0-9+/=]*)@@")


def find_port() -> str:
    """The device of the virtio-serial port named by the lab."""
    for port in PORTS.iterdir():
        if (port / "name").read_text().strip() == "netback.agent":
            return f"/dev/{port.name}"
    raise SystemExit("there is no virtio-serial port netback.agent")


def run_here(command: str, seconds: float) -> tuple[int, bytes, bytes]:
    """Run a shell command in dom0; at the time limit it is killed with its children."""
    process = subprocess.Popen(
        command,
        shell=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        return TIMED_OUT, out, err + b"\ntimed out"
    return process.returncode, out, err


def ask_for_timestamps() -> socket.socket:
    """Open a socket that asks for receive timestamps, as ping does, and keep it open.

    When the first such socket opens and the last one closes, Linux patches its receive path while another processor
    runs it. An emulated processor sometimes executes a half-patched byte, and dom0 dies: "int3 ... netif_receive_skb".
    """
    asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    asking.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMP, 1)
    return asking


class GuestConsole:
    """A guest's PV console; each answer carries the tag of its command."""

    def __init__(self, domid: int) -> None:
        path = f"/local/domain/{domid}/console/tty"
        name = subprocess.run(["xenstore-read", path], check=True, capture_output=True, text=True).stdout
        self._fd = os.open(name.strip(), os.O_RDWR | os.O_NOCTTY)
        tty.setraw(self._fd)
        self._answers: dict[str, tuple[int, bytes]] = {}
        self._news = threading.Condition()
        self.ended = False
        threading.Thread(target=self._read, daemon=True).start()

    def run(self, tag: str, command: str, seconds: float) -> tuple[int, bytes, bytes]:
        """Run a shell command in the guest."""
        line = f"{tag} {base64.b64encode(command.encode()).decode()}\n".encode()
        if len(line) > MAX_LINE:
            return 1, b"", b"the command is too long for a console"
        for at in range(0, len(line), 256):
            os.write(self._fd, line[at : at + 256])
        with self._news:
            self._news.wait_for(lambda: tag in self._answers or self.ended, seconds)
            code, out = self._answers.pop(tag, (TIMED_OUT, b"no answer from the guest"))
        return code, out, b""

    def _read(self) -> None:
        seen = b""
        while not self.ended:
            try:
                data = os.read(self._fd, 65536)
            except OSError:
                data = b""
            with self._news:
                self.ended = not data
                seen += data
                end = 0
                for found in ANSWER.finditer(seen):
                    self._answers[found[1].decode()] = int(found[2]), base64.b64decode(found[3])
                    end = found.end()
                seen = seen[max(end, len(seen) - (1 << 22)) :]
                self._news.notify_all()


class Agent:
    """Serve the port until the machine ends."""

    def __init__(self) -> None:
        self._port = open(find_port(), "r+b", buffering=0)  # noqa: SIM115, PTH123 (open for the life of the process)
        self._writing = threading.Lock()
        self._consoles: dict[int, GuestConsole] = {}
        self._opening = threading.Lock()

    def serve(self) -> None:
        self._say({"id": 0, "code": 0, "out": "ready", "err": ""})
        pending = b""
        while True:
            data = self._port.read(65536)
            if not data:
                threading.Event().wait(0.1)  # the host has not connected yet
            *lines, pending = (pending + (data or b"")).split(b"\n")
            for line in lines:
                threading.Thread(target=self._run, args=(json.loads(line),), daemon=True).start()

    def _run(self, asked: dict[str, Any]) -> None:
        try:
            code, out, err = self._dispatch(asked)
        except (OSError, subprocess.CalledProcessError) as error:
            code, out, err = 1, b"", str(error).encode()
        reply = {"id": asked["id"], "code": code}
        self._say(reply | {"out": out.decode(errors="replace"), "err": err.decode(errors="replace")})

    def _dispatch(self, asked: dict[str, Any]) -> tuple[int, bytes, bytes]:
        if "domid" not in asked:
            return run_here(asked["run"], asked["seconds"])
        return self._console(asked["domid"]).run(f"t{asked['id']}", asked["run"], asked["seconds"])

    def _console(self, domid: int) -> GuestConsole:
        with self._opening:
            known = self._consoles.get(domid)
            if known is None or known.ended:
                self._consoles[domid] = known = GuestConsole(domid)
            return known

    def _say(self, answer: dict[str, Any]) -> None:
        data = json.dumps(answer).encode() + b"\n"
        with self._writing:
            while data:
                data = data[self._port.write(data) or 0 :]


if __name__ == "__main__":
    asking = ask_for_timestamps()
    Agent().serve()
