# SPDX-License-Identifier: Apache-2.0
"""What the store's two ends raise: the server of a request, the client of its server."""

from netback.abi.xs_wire import Errno
from netback.errors import GuestError, PlatformError


class Refused(GuestError):
    """The server cannot serve the request; `errno` is what the ERROR reply carries."""

    def __init__(self, errno: Errno) -> None:
        super().__init__(errno.value)
        self.errno = errno


class StoreProtocolError(PlatformError):
    """The client's server sent what xs_wire.h does not allow: it is no xenstored, or the stream is out of step."""

    def __init__(self, what: str) -> None:
        super().__init__(f"xenstore: not the protocol: {what}", Errno.EIO)
