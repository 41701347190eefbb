# SPDX-License-Identifier: Apache-2.0
"""xen.h: which numbers are domids."""

DOMID_FIRST_RESERVED = 0x7FF0
"""Numbers from here on are special (DOMID_SELF, DOMID_IO, ...); none is a domain's."""
