# SPDX-License-Identifier: Apache-2.0
"""A function for each message type, and the table of their privileges."""

import re
from collections.abc import Callable
from typing import NamedTuple

from netback.abi.xen import DOMID_FIRST_RESERVED
from netback.abi.xs_wire import PAYLOAD_MAX, Errno, Op
from netback.xenstore import paths
from netback.xenstore.connection import Connection
from netback.xenstore.errors import Refused
from netback.xenstore.perms import parse_perm
from netback.xenstore.tree import View
from netback.xenstore.wire import joined, strings

OK = b"OK\0"
_NUMBER = re.compile(rb"[0-9]{1,20}")
_INTEGER = re.compile(rb"-?[0-9]{1,20}")


def _one(payload: bytes) -> bytes:
    """The only string of a payload. EINVAL: its NUL does not end the payload."""
    if payload.find(b"\0") != len(payload) - 1:
        raise Refused(Errno.EINVAL)
    return payload[:-1]


def _strings(payload: bytes, minimum: int, maximum: int) -> list[bytes]:
    """The strings of a payload. EINVAL: their number is out of bounds."""
    found = strings(payload)
    if not minimum <= len(found) <= maximum:
        raise Refused(Errno.EINVAL)
    return found


def _number(text: bytes) -> int:
    if not _NUMBER.fullmatch(text):
        raise Refused(Errno.EINVAL)
    return int(text)


def _integer(text: bytes) -> int:
    if not _INTEGER.fullmatch(text):
        raise Refused(Errno.EINVAL)
    return int(text)


def _domid(text: bytes) -> int:
    domid = _number(text)
    if domid >= DOMID_FIRST_RESERVED:
        raise Refused(Errno.EINVAL)
    return domid


def _guest(connection: Connection, text: bytes) -> int:
    """The domid of an introduced domain other than domain 0; ENOENT for any other number, as in xenstored."""
    domid = _integer(text)
    if domid == 0:
        raise Refused(Errno.EINVAL)
    if domid not in connection.server.introduced:
        raise Refused(Errno.ENOENT)
    return domid


# ---- nodes


def _read(connection: Connection, view: View, payload: bytes) -> bytes:
    return view.get(connection.path(_one(payload)), connection.caller).value


def _directory(connection: Connection, view: View, payload: bytes) -> bytes:
    return view.get(connection.path(_one(payload)), connection.caller).listing


def _directory_part(connection: Connection, view: View, payload: bytes) -> bytes:
    name, offset = _strings(payload, 2, 2)
    node = view.get(connection.path(name), connection.caller)
    generation = b"%d\0" % node.generation
    rest = node.listing[_number(offset) :]
    room = PAYLOAD_MAX - len(generation) - 1
    if len(rest) <= room:
        return generation + rest + b"\0"  # an empty name ends the listing
    return generation + rest[: rest.rfind(b"\0", 0, room) + 1]


def _write(connection: Connection, view: View, payload: bytes) -> bytes:
    name, nul, value = payload.partition(b"\0")
    if not nul:
        raise Refused(Errno.EINVAL)
    view.write(connection.path(name), value, connection.caller)
    return OK


def _mkdir(connection: Connection, view: View, payload: bytes) -> bytes:
    view.mkdir(connection.path(_one(payload)), connection.caller)
    return OK


def _rm(connection: Connection, view: View, payload: bytes) -> bytes:
    view.rm(connection.path(_one(payload)), connection.caller)
    return OK


def _get_perms(connection: Connection, view: View, payload: bytes) -> bytes:
    node = view.get(connection.path(_one(payload), special=True), connection.caller)
    return joined(*(perm.encode() for perm in node.perms))


def _set_perms(connection: Connection, view: View, payload: bytes) -> bytes:
    name, *texts = _strings(payload, 2, PAYLOAD_MAX)
    if len(texts) > connection.caller.quota.node_perms:  # before any other check, as in xenstored
        raise Refused(Errno.ENOSPC)
    perms = tuple([parse_perm(text) for text in texts])
    # otherwise the node would count for no domain and never be removed
    if perms[0].domid not in connection.server.introduced:
        raise Refused(Errno.ENOENT)
    view.set_perms(connection.path(name, special=True), perms, connection.caller)
    return OK


# ---- watches and transactions


def _watch(connection: Connection, view: View, payload: bytes) -> bytes:
    name, token = _strings(payload, 2, 2)
    connection.watch(connection.path(name, special=True), token, paths.relative(name))
    return OK


def _unwatch(connection: Connection, view: View, payload: bytes) -> bytes:
    name, token = _strings(payload, 2, 2)
    connection.unwatch(connection.path(name, special=True), token)
    return OK


def _reset_watches(connection: Connection, view: View, payload: bytes) -> bytes:
    connection.reset()
    return OK


def _transaction_start(connection: Connection, view: View, payload: bytes) -> bytes:
    if view is not connection.server.tree:  # transactions do not nest
        raise Refused(Errno.EBUSY)
    return b"%d\0" % connection.begin()


_END = {b"T\0": True, b"F\0": False}


def _transaction_end(connection: Connection, view: View, payload: bytes) -> bytes:
    if payload not in _END:
        raise Refused(Errno.EINVAL)
    if view is connection.server.tree:
        raise Refused(Errno.ENOENT)
    connection.end(view, commit=_END[payload])
    return OK


# ---- domains


def _introduce(connection: Connection, view: View, payload: bytes) -> bytes:
    """The frame and port name a ring page, which this server does not map: a domain's connection is a socket."""
    domid, _frame, port = _strings(payload, 3, PAYLOAD_MAX)[:3]
    if _domid(domid) == 0 or _number(port) == 0:
        raise Refused(Errno.EINVAL)
    connection.server.introduce(_domid(domid), home=False)
    return OK


def _release(connection: Connection, view: View, payload: bytes) -> bytes:
    connection.server.release(_guest(connection, _one(payload)))
    return OK


def _resume(connection: Connection, view: View, payload: bytes) -> bytes:
    _guest(connection, _one(payload))  # @releaseDomain is never delayed here, so there is nothing else to do
    return OK


def _set_target(connection: Connection, view: View, payload: bytes) -> bytes:
    domid, target = (_guest(connection, text) for text in _strings(payload, 2, PAYLOAD_MAX)[:2])
    connection.server.set_target(domid, target)
    return OK


def _get_domain_path(connection: Connection, view: View, payload: bytes) -> bytes:
    return joined(paths.home(_integer(_one(payload))))  # of any number (xenstore.txt)


def _is_domain_introduced(connection: Connection, view: View, payload: bytes) -> bytes:
    return b"T\0" if _integer(_one(payload)) in connection.server.introduced else b"F\0"


# ---- control


def _help(connection: Connection, arguments: list[bytes]) -> bytes:
    return b", ".join(sorted(_COMMANDS)) + b"\0"


def _quota(connection: Connection, arguments: list[bytes]) -> bytes:
    """A domain's use of its quotas, and the number of its dropped events."""
    if len(arguments) != 1:
        raise Refused(Errno.EINVAL)
    domid = _guest(connection, arguments[0])
    usage = connection.server.usage(domid)
    lines = [f"{name:<17}: {used:8}" for name, used in usage.items()]
    return joined("\n".join([f"Domain {domid}:", *lines, ""]).encode())


_COMMANDS: dict[bytes, Callable[[Connection, list[bytes]], bytes]] = {b"help": _help, b"quota": _quota}


def _control(connection: Connection, view: View, payload: bytes) -> bytes:
    command, *arguments = _strings(payload, 1, PAYLOAD_MAX)
    if command not in _COMMANDS:
        raise Refused(Errno.EINVAL)
    return _COMMANDS[command](connection, arguments)


class Handler(NamedTuple):
    """How a message type is served."""

    serve: Callable[[Connection, View, bytes], bytes]
    """From the connection, the store or transaction, and the payload to the reply's payload; Refused for an ERROR."""
    privileged: bool = False
    """For domain 0 alone: EACCES for others."""
    whole: bool = False
    """The request's transaction id is ignored."""


HANDLERS: dict[int, Handler] = {
    Op.CONTROL: Handler(_control, privileged=True),
    Op.DIRECTORY: Handler(_directory),
    Op.READ: Handler(_read),
    Op.GET_PERMS: Handler(_get_perms),
    Op.WATCH: Handler(_watch, whole=True),
    Op.UNWATCH: Handler(_unwatch, whole=True),
    Op.TRANSACTION_START: Handler(_transaction_start),
    Op.TRANSACTION_END: Handler(_transaction_end),
    Op.INTRODUCE: Handler(_introduce, privileged=True),
    Op.RELEASE: Handler(_release, privileged=True),
    Op.GET_DOMAIN_PATH: Handler(_get_domain_path),
    Op.WRITE: Handler(_write),
    Op.MKDIR: Handler(_mkdir),
    Op.RM: Handler(_rm),
    Op.SET_PERMS: Handler(_set_perms),
    Op.IS_DOMAIN_INTRODUCED: Handler(_is_domain_introduced, privileged=True),
    Op.RESUME: Handler(_resume, privileged=True),
    Op.SET_TARGET: Handler(_set_target, privileged=True),
    Op.RESET_WATCHES: Handler(_reset_watches),
    Op.DIRECTORY_PART: Handler(_directory_part),
}
