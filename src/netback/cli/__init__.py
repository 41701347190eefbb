# SPDX-License-Identifier: Apache-2.0
"""The command `netback`: entry point and signal handlers.

This module imports only what a signal during the start needs; it imports `app` once the handlers are
installed.
"""

import os
import signal
import sys

_SERVICES = ("run", "emulate", "guest", "metrics", "web")
"""Commands that run until a signal ends them; for these such an end is no failure."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def main() -> None:
    """Run the command of sys.argv. A failure prints one line and sets an exit code (docs/running.md, Exit
    codes).
    """
    ends_well = sys.argv[1:2] and sys.argv[1] in _SERVICES
    for number in _SIGNALS:
        signal.signal(number, _end if ends_well else signal.SIG_DFL)
    from netback.cli import app

    code = app.main()
    if ends_well:  # the interpreter's shutdown restores the default handler, but leaves SIG_IGN in place
        # Blocked, since Python complains of one that comes while that is set.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
    sys.exit(code)


def _end(_number: int, _frame: object) -> None:
    """Exit at once with 0: up to this point the process holds only what the kernel releases at its end."""
    os._exit(0)
