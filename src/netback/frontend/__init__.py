# SPDX-License-Identifier: Apache-2.0
"""The other end: netfront for tests, demonstrations and benchmarks of any backend.

`Frontend` behaves as Linux's netfront does, `Script` as it is told. Both live in a `Guest` of emulated Xen.
"""

from .config import BackFeatures, FrontConfig
from .device import BackendError, Frontend
from .guest import Guest
from .rings import Granted, Rings
from .run import run_guest
from .script import Script

__all__ = [
    "BackFeatures",
    "BackendError",
    "FrontConfig",
    "Frontend",
    "Granted",
    "Guest",
    "Rings",
    "Script",
    "run_guest",
]
