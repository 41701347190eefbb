# SPDX-License-Identifier: Apache-2.0
"""Files by which a system runs netback: to be installed by a package, or by hand."""

from pathlib import Path

UNIT = Path(__file__).parent / "netback.service"
KEEP_KERNEL_OUT = Path(__file__).parent / "netback-no-kernel-backend.conf"
"""For /etc/modprobe.d, opt-in."""


def unit(program: str) -> str:
    """The unit for a netback that is installed as `program`."""
    return UNIT.read_text().replace("/usr/bin/netback", program)
