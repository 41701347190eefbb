# SPDX-License-Identifier: Apache-2.0
"""xen.h: which numbers are domids; where Linux has Xen's devices."""

from pathlib import Path

DEVICES = Path("/dev/xen")
"""Linux's directory of Xen's devices. It exists in a Xen domain alone, even if a device in it is missing."""
DOMID_FIRST_RESERVED = 0x7FF0
"""Numbers from here on are special (DOMID_SELF, DOMID_IO, ...); none is a domain's."""
