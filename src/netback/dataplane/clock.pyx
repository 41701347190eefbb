# SPDX-License-Identifier: Apache-2.0
"""The worker's clock for Python: the system's monotonic clock, or a time that a test has fixed."""
from libc.stdint cimport uint64_t


def now() -> int:
    """Nanoseconds."""
    return now_ns()


def fix(uint64_t ns) -> None:
    """Make every clock reading of the data plane return `ns`, until the next call; 0: the system's clock. For tests."""
    global fixed_ns
    fixed_ns = ns
