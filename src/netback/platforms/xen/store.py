# SPDX-License-Identifier: Apache-2.0
"""The store of real Xen: /dev/xen/xenbus in every domain, or xenstored's socket in dom0."""

import os
import socket
from pathlib import Path

from netback.abi.xen import DEVICES
from netback.abi.xs_wire import Op
from netback.errors import PlatformError
from netback.platforms.xen.devices import open_device
from netback.xenstore.aio import Store
from netback.xenstore.client import Answer, Client, joined

_READ_BYTES = 4096
_SOCKET = Path("/run/xenstored/socket")


def find_store() -> Path | None:
    """The path of xenstored's socket, if it exists: it accepts many requests at a time, /dev/xen/xenbus one."""
    named = os.environ.get("XENSTORED_PATH")
    if named is not None:
        return Path(named)
    return _SOCKET if _SOCKET.is_socket() else None


async def open_store(path: Path | None = None) -> Store:
    """Open a connection with this domain's privilege: to the socket at `path`, or through the device."""
    return await (Store.connect(path) if path is not None else Store.open_device(DEVICES / "xenbus"))


def own_domid(path: Path | None = None) -> int:
    """The domid of this domain, from the node `domid` that the toolstack writes. PlatformError: the node is missing."""
    fd = _connect(path) if path is not None else open_device("xenbus")
    try:
        return int(_ask(fd, "domid"))
    except (OSError, ValueError) as error:
        raise PlatformError(f"cannot read this domain's domid from the store: {error}") from error
    finally:
        os.close(fd)


def _connect(path: Path) -> int:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            sock.connect(str(path))
        except OSError as error:
            raise PlatformError(f"cannot connect to {path}: {error.strerror}", "EIO") from error
        return sock.detach()


def _ask(fd: int, node: str) -> bytes:
    """READ a node below this domain's home; blocks for the answer."""
    client = Client()
    os.write(fd, client.request(Op.READ, joined(node.encode()), 0)[1])
    while data := os.read(fd, _READ_BYTES):
        for item in client.receive(data):
            if isinstance(item, Answer):
                if item.errno:
                    raise ValueError(f"READ {node}: {item.errno}")
                return item.payload
    raise OSError("the store ended the connection")
