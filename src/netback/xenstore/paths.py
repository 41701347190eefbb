# SPDX-License-Identifier: Apache-2.0
"""Paths of the store: validity, homes, ancestors (xenstore.txt, xs_wire.h)."""

import re
from collections.abc import Iterator

from netback.abi.xs_wire import ABS_PATH_MAX, Errno
from netback.xenstore.errors import Refused

_NAME = rb"[A-Za-z0-9_@-]"
_PATH = re.compile(rb"/(?:%b+(?:/%b+)*)?" % (_NAME, _NAME))
_SPECIAL = re.compile(rb"@%b*(?:/%b+)*" % (_NAME, _NAME))
_HOME = re.compile(rb"/local/domain/[0-9]{1,5}/")


def home(domid: int) -> bytes:
    """The directory in which a domain's relative paths begin."""
    return b"/local/domain/%d" % domid


def relative(name: bytes) -> bool:
    """Whether a path begins at its caller's home."""
    return not name.startswith((b"/", b"@"))


def canonical(name: bytes, base: bytes, limit: int, special: bool = False) -> bytes:
    """The absolute path of `name`, which begins at `base` if it is relative. Refused EINVAL if it is no valid path.

    `limit`: bytes of the part below a domain's home at most (XENSTORE_REL_PATH_MAX). `special`: "@..." is allowed.
    """
    if name.startswith(b"@"):
        valid = special and _SPECIAL.fullmatch(name)
        path = name
    else:
        path = base + b"/" + name if relative(name) else name
        valid = _PATH.fullmatch(path)
    if not valid or len(path) > ABS_PATH_MAX or len(path) > limit + _home_length(path):
        raise Refused(Errno.EINVAL)
    return path


def _home_length(path: bytes) -> int:
    match = _HOME.match(path)
    return match.end() if match else 0


def parent(path: bytes) -> bytes:
    """The parent's path; the root is its own parent."""
    return path[: path.rindex(b"/")] or b"/"


def leaf(path: bytes) -> bytes:
    """The last name of a path."""
    return path[path.rindex(b"/") + 1 :]


def child(path: bytes, name: bytes) -> bytes:
    """The path of a child."""
    return b"/" + name if path == b"/" else path + b"/" + name


def upward(path: bytes) -> Iterator[bytes]:
    """The path and its ancestors, nearest first; a special node has none."""
    yield path
    while path not in (b"/", b"") and path.startswith(b"/"):
        path = parent(path)
        yield path
