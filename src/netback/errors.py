# SPDX-License-Identifier: Apache-2.0
"""Every error that netback raises on purpose, by who is at fault."""


class NetbackError(Exception):
    """The root: its text is one clear line that names what was wrong and where."""


class GuestError(NetbackError):
    """The frontend broke the protocol: its vif closes, all others live. Guest bytes raise nothing else."""


class PeerError(NetbackError):
    """The network behind a vif is missing or refused: carrier off, tried again."""


class PlatformError(NetbackError):
    """The hypervisor or the store refused. `errno` is the symbolic name (`"EINVAL"`), empty where there is none."""

    def __init__(self, message: str, errno: str = "") -> None:
        super().__init__(message)
        self.errno = errno


class ConfigError(NetbackError):
    """The user asked for something that cannot be: exit code 2, never a traceback."""
