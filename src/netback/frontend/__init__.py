# SPDX-License-Identifier: Apache-2.0
"""The guest's end: a netfront for tests, demonstrations and benchmarks of any backend.

`Frontend` behaves as Linux's netfront does; a test drives `Script` slot by slot. Both run in a `Guest`, of an emulated
Xen or of a real one.
"""

from netback.frontend.config import BackFeatures, FrontConfig, Handshake, HashConfig
from netback.frontend.device import BackendError, Frontend
from netback.frontend.guest import Guest
from netback.frontend.rings import Rings
from netback.frontend.run import run_guest
from netback.frontend.script import Script
from netback.platforms.base import GrantedPage

__all__ = [
    "BackFeatures",
    "BackendError",
    "FrontConfig",
    "Frontend",
    "GrantedPage",
    "Guest",
    "Handshake",
    "HashConfig",
    "Rings",
    "Script",
    "run_guest",
]
