# SPDX-License-Identifier: Apache-2.0
"""The other end: netfront for tests, demonstrations and benchmarks of any backend.

`Frontend` behaves as Linux's netfront does, `Script` as it is told. Both live in a `Guest`, of an emulated Xen or of
a real one.
"""

from netback.platforms.base import GrantedPage

from .config import BackFeatures, FrontConfig
from .device import BackendError, Frontend
from .guest import Guest
from .rings import Rings
from .run import run_guest
from .script import Script

__all__ = [
    "BackFeatures",
    "BackendError",
    "FrontConfig",
    "Frontend",
    "GrantedPage",
    "Guest",
    "Rings",
    "Script",
    "run_guest",
]
