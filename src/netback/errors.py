# SPDX-License-Identifier: Apache-2.0
"""Every error that netback raises on purpose, by the party at fault, the escaping of its text, and exit codes."""

from collections.abc import Mapping
from enum import IntEnum


class Exit(IntEnum):
    """The exit codes of commands."""

    DONE = 0
    FAILED = 1
    INVALID = 2
    NO_BACKEND = 75
    """EX_TEMPFAIL of sysexits.h."""
    INTERRUPTED = 130
    """As a shell says it: 128 and the number of SIGINT."""


EXIT_MEANINGS: Mapping[Exit, str] = {
    Exit.DONE: "done; for `run`, `emulate`, `guest`, `metrics` and `web`: ended by SIGTERM or SIGINT, at any time from"
    " the first line of netback on",
    Exit.FAILED: "something failed that a new start may find mended; `doctor`: a check failed; `explain`: there are"
    " findings; `conform`: a rule fails; `lab test`: a scenario does not hold",
    Exit.INVALID: "a mistake in the command or the configuration, a directory that is not private, a missing device of"
    " Xen, another netback: the unit does not restart it",
    Exit.NO_BACKEND: "there is no store or no backend, or it is gone (EX_TEMPFAIL)",
    Exit.INTERRUPTED: "`conform`, `demo` and `lab`: ended by SIGINT, `conform` also by SIGTERM; everything that they"
    " had made is removed",
}
"""What each says; docs/reference.md is made from it."""


class NetbackError(Exception):
    """The root. Its text is one line that names what was wrong and where."""


class GuestError(NetbackError):
    """The frontend broke the protocol: its vif closes, no other is affected. Guest bytes raise nothing else."""


class PeerError(NetbackError):
    """The network behind a vif is missing or refuses frames: its carrier goes off, and netback tries again."""


class GoneError(PeerError):
    """The link or the far end does not exist now: wait until it is back."""


class PlatformError(NetbackError):
    """The hypervisor or the store refused. `errno` is the symbolic name (`"EINVAL"`), empty if there is none."""

    def __init__(self, message: str, errno: str = "") -> None:
        super().__init__(message)
        self.errno = errno


class ConfigError(NetbackError):
    """The user's request is invalid: Exit.INVALID."""


def printable(text: str) -> str:
    """Escape a text from the store, a guest or a file for a terminal or a log, which it could otherwise control.

    Control and format characters (Unicode's "Other" and every separator but the space) become Python's escapes, so the
    result is one line. A byte that is not UTF-8 (PEP 383's surrogates) becomes `\\xNN`.
    """
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else _escape(character) for character in text)


def _escape(character: str) -> str:
    number = ord(character)
    return f"\\x{number - 0xDC00:02x}" if 0xDC80 <= number <= 0xDCFF else ascii(character)[1:-1]
