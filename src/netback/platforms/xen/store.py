# SPDX-License-Identifier: Apache-2.0
"""The store of a real Xen: /dev/xen/xenbus, which every domain has, or xenstored's socket, which is dom0's."""

import os
import socket
from pathlib import Path

from netback.abi.xs_wire import Op
from netback.errors import PlatformError
from netback.platforms.xen.devices import DEVICES, open_device
from netback.xenstore.aio import Store
from netback.xenstore.client import Answer, Client, joined

_READ_BYTES = 4096
_SOCKET = Path("/run/xenstored/socket")


def find_store() -> Path | None:
    """xenstored's socket where there is one: it takes many requests at a time, /dev/xen/xenbus takes one."""
    named = os.environ.get("XENSTORED_PATH")
    if named is not None:
        return Path(named)
    return _SOCKET if _SOCKET.is_socket() else None


async def open_store(path: Path | None = None) -> Store:
    """A connection with this domain's privilege: to the socket at `path`, or by the device."""
    return await (Store.connect(path) if path is not None else Store.open_device(DEVICES / "xenbus"))


def own_domid(path: Path | None = None) -> int:
    """The domid of this domain, as the toolstack wrote it beside the domain's other nodes."""
    fd = _connect(path) if path is not None else open_device("xenbus")
    try:
        return int(_ask(fd, "domid"))
    except (OSError, ValueError) as error:
        raise PlatformError(f"the store does not say which domain this is: {error}") from error
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
    """One READ of a node below the own domain's directory; blocks for the answer."""
    client = Client()
    os.write(fd, client.request(Op.READ, joined(node.encode()), 0)[1])
    while data := os.read(fd, _READ_BYTES):
        for item in client.receive(data):
            if isinstance(item, Answer):
                if item.errno:
                    raise ValueError(f"READ {node}: {item.errno}")
                return item.payload
    raise OSError("the store ended the connection")
