# SPDX-License-Identifier: Apache-2.0
"""The offloads that a receiver of frames supports, for Python: CAN_* of offload.pxd."""

import enum


class Can(enum.IntFlag):
    """CAN_* of dataplane/offload.pxd."""

    CSUM4 = 1
    CSUM6 = 2
    TSO4 = 4
    TSO6 = 8


EVERYTHING = Can.CSUM4 | Can.CSUM6 | Can.TSO4 | Can.TSO6
"""A Linux link behind a virtio_net_hdr: the kernel completes and segments what its hardware cannot."""
