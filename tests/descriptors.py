# SPDX-License-Identifier: Apache-2.0
"""How many descriptors this process has open."""

from __future__ import annotations

import gc
from pathlib import Path


def open_descriptors() -> int:
    """Count them, and one for the count itself; first what an earlier test dropped in a cycle closes its own.

    Without that the collector may run between two counts, and close descriptors that neither has to do with.
    """
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))
