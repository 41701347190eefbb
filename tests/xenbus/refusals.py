# SPDX-License-Identifier: Apache-2.0
"""A store that refuses the requests that a test selects, as xenstored may refuse any request."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from netback.abi.xs_wire import Op
from netback.daemon import Backend, BackendConfig
from netback.platforms.emulated import EmulatedPlatform
from netback.platforms.emulated.protocol import STORE_SOCKET
from netback.xenstore.aio import Store, StoreError


@dataclass
class Refusal:
    """Refuse requests of this type whose path ends with `path`, a number of times."""

    op: Op
    path: str
    errno: str
    times: int = 1
    seen: int = 0

    def meets(self, op: Op, path: str) -> bool:
        if op is not self.op or not path.endswith(self.path) or self.seen >= self.times:
            return False
        self.seen += 1
        return True


class RefusingStore(Store):
    """A store that refuses the requests in `refusals` without sending them."""

    refusals: tuple[Refusal, ...] = ()

    def _post(self, op: Op, what: str, payload: bytes, tx: int | None) -> asyncio.Future[bytes]:
        for refusal in self.refusals:
            if refusal.meets(op, what):
                raise StoreError(refusal.errno, f"{op.name} {what}".rstrip())
        return super()._post(op, what, payload, tx)


class RefusingPlatform(EmulatedPlatform):
    """Domain 0 on such a store."""

    refusals: tuple[Refusal, ...] = ()

    async def open_store(self) -> Store:
        store = await RefusingStore.connect(self.directory / STORE_SOCKET)
        store.refusals = self.refusals
        return store


@asynccontextmanager
async def refusing(directory: Path, *refusals: Refusal) -> AsyncIterator[Backend]:
    """A backend in domain 0 on such a store."""
    with RefusingPlatform(directory) as platform:
        platform.refusals = refusals
        async with Backend(platform, BackendConfig(directory, workers=1)) as backend:
            yield backend
