# SPDX-License-Identifier: Apache-2.0
"""Opens Linux's Xen devices and makes their ioctls; errors name the device and the cause.

Numbers and layouts come from Linux's uapi headers xen/evtchn.h, xen/gntdev.h and xen/gntalloc.h.
"""

import errno
import fcntl
import os
from pathlib import Path

from netback.abi.xen import DEVICES
from netback.errors import ConfigError, PlatformError

_MODULES = {
    "evtchn": "xen-evtchn",
    "gntdev": "xen-gntdev",
    "gntalloc": "xen-gntalloc",
    "xenbus": "xenfs",
}
"""The kernel module of each device."""


def open_device(name: str, *, nonblocking: bool = False) -> int:
    """Open /dev/xen/NAME and return its descriptor. ConfigError: it is missing or not permitted; the text gives the
    remedy.
    """
    path = DEVICES / name
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_NONBLOCK if nonblocking else 0))
    except FileNotFoundError as error:
        raise ConfigError(
            f"there is no {path}: is this a Xen domain? Then load the module {_MODULES[name]}"
        ) from error
    except PermissionError as error:
        raise ConfigError(f"no permission to open {path}: be root, or change its mode") from error
    except OSError as error:
        raise PlatformError(f"cannot open {path}: {error.strerror}", _name(error)) from error


def xen_version(root: Path = Path("/")) -> str:
    """The hypervisor's version, as in "4.20"; empty if sysfs does not have it. `root` replaces the root of /sys."""
    parts = [root / "sys/hypervisor/version" / part for part in ("major", "minor")]
    try:
        return ".".join(part.read_text().strip() for part in parts)
    except OSError:
        return ""


def call(device: int, request: int, argument: bytearray, what: str) -> int:
    """Make an ioctl, which may fill `argument`, and return its result. PlatformError names `what` and the errno."""
    try:
        return int(fcntl.ioctl(device, request, argument))
    except OSError as error:
        raise PlatformError(f"{what}: {error.strerror}", _name(error)) from error


def _name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, "EIO")
