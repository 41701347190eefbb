# SPDX-License-Identifier: Apache-2.0
"""Files by which a system runs netback: to be installed by a package, or by hand."""

from pathlib import Path

UNIT = Path(__file__).parent / "netback.service"
KEEP_KERNEL_OUT = Path(__file__).parent / "netback-no-kernel-backend.conf"
"""For /etc/modprobe.d, opt-in."""


_HOMES = ("/home", "/root", "/run/user")
"""What ProtectHome=yes in the unit hides."""


def is_hidden(program: str) -> bool:
    """Whether the unit could not start a netback that is installed there."""
    return any(Path(program).resolve().is_relative_to(home) for home in _HOMES)


def unit(program: str) -> str:
    """The unit for a netback that is installed as `program`."""
    return UNIT.read_text().replace("/usr/bin/netback", program)
