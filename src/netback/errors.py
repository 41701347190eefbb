# SPDX-License-Identifier: Apache-2.0
"""Every error that netback raises on purpose, by the party at fault, and how its text is made fit for a line."""


class NetbackError(Exception):
    """The root. Its text is one line that names what was wrong and where."""


class GuestError(NetbackError):
    """The frontend broke the protocol: its vif closes, no other is affected. Guest bytes raise nothing else."""


class PeerError(NetbackError):
    """The network behind a vif is missing or refused: its carrier goes off, and it is tried again."""


class GoneError(PeerError):
    """The link or the far end is not there: nothing to try before it is back."""


class PlatformError(NetbackError):
    """The hypervisor or the store refused. `errno` is the symbolic name (`"EINVAL"`), empty where there is none."""

    def __init__(self, message: str, errno: str = "") -> None:
        super().__init__(message)
        self.errno = errno


class ConfigError(NetbackError):
    """What the user asked for cannot be: exit code 2."""


def printable(text: str) -> str:
    """A text from the store, a guest or a file for a terminal or a log: what could steer either is escaped.

    Control and format characters (Unicode's "Other" and every separator but the space) become Python's escapes, so the
    result is one line. A byte that was no UTF-8 (PEP 383's surrogates) becomes `\\xNN`.
    """
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else _escape(character) for character in text)


def _escape(character: str) -> str:
    number = ord(character)
    return f"\\x{number - 0xDC00:02x}" if 0xDC80 <= number <= 0xDCFF else ascii(character)[1:-1]
