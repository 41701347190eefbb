# SPDX-License-Identifier: Apache-2.0
"""The errors of the store's two ends: the server of a request, the client of its server."""

from netback.abi.xs_wire import Errno
from netback.errors import GuestError, PlatformError


class Refused(GuestError):
    """The server refuses the request; `errno` is the name in the ERROR reply."""

    def __init__(self, errno: Errno) -> None:
        super().__init__(errno.value)
        self.errno = errno


class StoreProtocolError(PlatformError):
    """The client's server violated xs_wire.h: it is not xenstored, or the stream is out of step."""

    def __init__(self, what: str) -> None:
        super().__init__(f"xenstore: not the protocol: {what}", Errno.EIO)
