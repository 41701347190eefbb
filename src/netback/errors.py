# SPDX-License-Identifier: Apache-2.0
"""Every error that netback raises on purpose, by the party at fault, and the escaping of its text."""


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
    """The user's request is invalid: exit code 2."""


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
