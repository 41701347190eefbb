# SPDX-License-Identifier: Apache-2.0
"""The command `netback`: words, defaults and exit codes. What a command does is in other rooms.

Only what a signal at this point needs is imported here; `app` is imported once its handlers stand.
"""

import os
import signal
import sys

_SERVICES = ("run", "emulate", "guest")
"""Commands that go on until a signal ends them, which is no failure."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def main() -> None:
    """Run the command of sys.argv. What goes wrong is one line and an exit code (docs/running.md, Exit codes)."""
    ends_well = sys.argv[1:2] and sys.argv[1] in _SERVICES
    for number in _SIGNALS:
        signal.signal(number, _end if ends_well else signal.SIG_DFL)
    from netback.cli import app

    code = app.main()
    if ends_well:  # the interpreter's own end puts the default back, but not in place of SIG_IGN
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
    sys.exit(code)


def _end(_number: int, _frame: object) -> None:
    """End at once with 0: up to here the process holds nothing that the kernel does not take back."""
    os._exit(0)
