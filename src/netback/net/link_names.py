# SPDX-License-Identifier: Apache-2.0
"""Names of Linux links: checks them, and is the only place that packs one into a struct.

`struct.pack("16s")` silently truncates a longer name, and the kernel then answers about another link.
"""

import os
import re

from netback.errors import ConfigError

MAX_LINK_NAME = 15
"""linux/if.h: IFNAMSIZ without its final zero byte."""

_BAD_CHARACTER = re.compile(r"[^!-~]|[/:%]")
"""dev_valid_name refuses slash, colon and blank; a percent sign makes the name a pattern; others would garble a log."""


def link_name_fault(name: str) -> str | None:
    """Why a link cannot have this name; None if it can."""
    if not name:
        return "a link name is empty"
    if len(name) > MAX_LINK_NAME:
        return f"link name {name!a} is longer than {MAX_LINK_NAME} characters"
    if bad := _BAD_CHARACTER.search(name):
        return f"link name {name!a} has the character {bad.group()!a}"
    if name in (".", ".."):
        return f"{name!a} cannot be the name of a link"
    return None


def pack_link_name(name: str) -> bytes:
    """The name as a char[IFNAMSIZ]. ConfigError: a link cannot have this name."""
    if fault := link_name_fault(name):
        raise ConfigError(fault)
    return name.encode("ascii").ljust(MAX_LINK_NAME + 1, b"\0")


def unpack_link_name(data: bytes) -> str:
    """The zero-terminated name that the kernel wrote; its bytes above 0x7f survive os.fsencode."""
    return os.fsdecode(data.partition(b"\0")[0])


def show_link_name(name: str) -> str:
    """The name for logs and tables, escaped: the kernel allows control characters and any other byte."""
    return ascii(name)[1:-1]
