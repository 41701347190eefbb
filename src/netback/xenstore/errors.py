# SPDX-License-Identifier: Apache-2.0
"""The one exception by which the store refuses a request. It does not know the request."""

from netback.abi.xs_wire import Errno
from netback.errors import GuestError


class Refused(GuestError):
    """The request cannot be served; `errno` is what the ERROR reply carries."""

    def __init__(self, errno: Errno) -> None:
        super().__init__(errno.value)
        self.errno = errno
