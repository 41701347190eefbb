# SPDX-License-Identifier: Apache-2.0
"""Runs in a guest: attaches an XDP program of two instructions to a link, for a number of seconds.

`python3 -P -m netback.lab.inside.xdp LINK pass|drop SECONDS` prints "attached", waits, and detaches. The driver itself
runs the program (native mode): Linux's netfront then asks its backend for headroom (linux/bpf.h, bpf(2)).
"""

import ctypes
import os
import platform
import socket
import struct
import sys
import time

_BPF = {"x86_64": 321, "aarch64": 280}
"""The number of the bpf system call."""
_PROG_LOAD, _LINK_CREATE = 5, 28
_PROG_TYPE_XDP, _ATTACH_XDP, _DRIVER_MODE = 6, 37, 4
_ACTIONS = {"drop": 1, "pass": 2}
_INSTRUCTION = struct.Struct("=BBhi")
_MOVE_TO_R0, _EXIT = 0xB7, 0x95
_LICENSE = b"Apache-2.0\0"


def bpf(command: int, attributes: bytes) -> int:
    """A descriptor. OSError: the kernel refuses."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(_BPF[platform.machine()], command, attributes, len(attributes))
    if fd < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(fd)


def load(action: int) -> int:
    """A program that returns one action for every frame."""
    code = _INSTRUCTION.pack(_MOVE_TO_R0, 0, 0, action) + _INSTRUCTION.pack(_EXIT, 0, 0, 0)
    instructions, license_ = (
        ctypes.create_string_buffer(code, len(code)),
        ctypes.create_string_buffer(_LICENSE),
    )
    where = (ctypes.addressof(instructions), ctypes.addressof(license_))
    return bpf(_PROG_LOAD, struct.pack("=IIQQIIQII", _PROG_TYPE_XDP, 2, *where, 0, 0, 0, 0, 0))


def attach(link: str, action: int) -> int:
    """Attach such a program to a link until the descriptor is closed."""
    attributes = (load(action), socket.if_nametoindex(link), _ATTACH_XDP, _DRIVER_MODE)
    return bpf(_LINK_CREATE, struct.pack("=IIII", *attributes))


if __name__ == "__main__":
    link, action, seconds = sys.argv[1:]
    fd = attach(link, _ACTIONS[action])
    print("attached", flush=True)
    time.sleep(float(seconds))
    os.close(fd)
