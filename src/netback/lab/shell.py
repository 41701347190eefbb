# SPDX-License-Identifier: Apache-2.0
"""A prompt in dom0 through the agent: `netback lab up`."""

import signal
import sys
from pathlib import Path

from netback.lab.host import Guest, Lab, open_lab
from netback.lab.image import Say
from netback.lab.machine import Options

_SECONDS = 3600.0
_HELP = (
    "`guest CMD` runs CMD in the guest, anything else in dom0; an empty line, Ctrl-C or Ctrl-D ends it all"
)


async def shell(directory: Path, say: Say, *, accel: str, command: str | None, guest: bool) -> int:
    """Boot, then run `command`, or each line typed; returns the last exit code."""
    async with open_lab(directory, say, options=Options(accel=accel)) as lab:
        made = await lab.create("g1") if guest else None
        say(f"consoles and logs: {directory}")
        if command is not None:
            return await _run(lab, made, command)
        say(_HELP)
        code = 0
        while line := _ask():
            code = await _run(lab, made, line)
        return code


def _ask() -> str:
    """Read a line, blocking the idle loop: a thread that reads a terminal could not be interrupted."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return input("dom0# ").strip()
    except (EOFError, KeyboardInterrupt):
        return ""
    finally:
        signal.signal(signal.SIGINT, before)


async def _run(lab: Lab, guest: Guest | None, line: str) -> int:
    word, _, rest = line.partition(" ")
    domid = guest.domid if guest is not None and word == "guest" else None
    done = await lab.machine.run(rest if domid is not None else line, seconds=_SECONDS, domid=domid)
    sys.stdout.write(done.out)
    sys.stderr.write(done.err)
    return done.code
