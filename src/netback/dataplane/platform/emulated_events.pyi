# SPDX-License-Identifier: Apache-2.0
from collections.abc import Callable

from netback.dataplane.platform.events import Events

class EmulatedEvents(Events):
    """One handle of event channels on emulated Xen."""

    def __init__(
        self, eventfd: int, page_address: int, resolve: Callable[[int], tuple[int, int, int] | None]
    ) -> None: ...
    def forget(self, port: int) -> None: ...
