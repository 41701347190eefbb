# SPDX-License-Identifier: Apache-2.0
"""Emulated Xen: store, event channels and grants over shared memory, on any Linux machine (docs/emulated-xen.md)."""

from netback.platforms.emulated.domain import EmulatedDomain, Page
from netback.platforms.emulated.emulator import CFLAGS, Emulator, emulate, print_env
from netback.platforms.emulated.events import EmulatedEventChannels
from netback.platforms.emulated.platform import EmulatedMappedPage, EmulatedPlatform

__all__ = [
    "CFLAGS",
    "EmulatedDomain",
    "EmulatedEventChannels",
    "EmulatedMappedPage",
    "EmulatedPlatform",
    "Emulator",
    "Page",
    "emulate",
    "print_env",
]
