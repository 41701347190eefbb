# SPDX-License-Identifier: Apache-2.0
from netback.dataplane.platform.events import Events

class XenEvents(Events):
    """One open /dev/xen/evtchn."""

    def __init__(self, fd: int) -> None: ...
