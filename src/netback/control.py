# SPDX-License-Identifier: Apache-2.0
"""What a running backend tells other processes: one snapshot for each connection to a socket beside its lock.

Knows how a snapshot travels, not what it says.
"""

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

Snapshot = list[dict[str, Any]]

_SECONDS = 2.0
"""How long a backend may take to answer; one that hangs is as good as none."""


def control_path(directory: Path, domid: int) -> Path:
    """The socket of the backend that serves a domain's devices."""
    return directory / f"backend-{domid}.sock"


@asynccontextmanager
async def serve_snapshots(path: Path, take: Callable[[], Snapshot]) -> AsyncIterator[None]:
    """Answer while the context lasts. Whoever calls holds the lock, so a socket that is there is a dead one's."""

    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(json.dumps(take()).encode())
        writer.close()

    _remove(path)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    os.chmod(path, 0o600)  # noqa: PTH101 (a Path would be no less blocking, and it is instant)
    try:
        async with await asyncio.start_unix_server(answer, sock=listening):
            yield
    finally:
        _remove(path)


async def read_snapshot(path: Path) -> Snapshot | None:
    """What the backend says, or None where none runs."""
    try:
        async with asyncio.timeout(_SECONDS):
            reader, writer = await asyncio.open_unix_connection(str(path))
            data = await reader.read()
            writer.close()
    except (OSError, TimeoutError):
        return None
    snapshot: Snapshot = json.loads(data)
    return snapshot


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
