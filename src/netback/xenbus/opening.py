# SPDX-License-Identifier: Apache-2.0
"""Opens a network in a thread: a tap may be busy for a moment, a switch slow."""

import asyncio
from collections.abc import Callable
from contextlib import suppress

from netback.errors import NetbackError
from netback.net.base import Network

FAULTS = (NetbackError, OSError)
"""What any operation of a network may raise."""


async def opened_in_thread(call: Callable[[], Network]) -> Network:
    """The network that `call` opens, or its error. If cancelled, the network is closed again."""
    opening = asyncio.ensure_future(asyncio.to_thread(call))
    try:
        await asyncio.wait((opening,))  # a cancelled shield would log an error of the call as unhandled
    except asyncio.CancelledError:
        with suppress(*FAULTS):
            (await opening).close()
        raise
    return opening.result()
