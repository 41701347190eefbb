# SPDX-License-Identifier: Apache-2.0
"""The pages that a guest lets its queues keep mapped: staging grants (netif.h, Static Grants).

This module maps and unmaps, and gives each queue its table; `control_messages` decides what may be staged.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress

from netback.dataplane.staged import Staged
from netback.errors import PlatformError
from netback.platforms.base import MappedPage, Platform
from netback.vif.control_messages import StagedPage
from netback.vif.control_ports import StagingBudget
from netback.vif.group import Group

_AT_A_TIME = 16
"""Pages mapped or unmapped before other tasks run."""


class Staging:
    """The staged pages of one connection."""

    def __init__(self, platform: Platform, domid: int, group: Group, budget: StagingBudget) -> None:
        self._platform, self._domid, self._group, self._budget = platform, domid, group, budget
        self._pages: dict[StagedPage, MappedPage] = {}

    async def change(self, wanted: Sequence[StagedPage], *, skip: bool) -> tuple[StagedPage, ...]:
        """Have exactly these pages staged; returns them. With `skip`, without those that cannot be mapped.

        PlatformError, and nothing is changed: a page cannot be mapped, or all guests' pages are used up.
        """
        before = dict(self._pages)
        try:
            await _slowly([page for page in wanted if page not in before], lambda page: self._map(page, skip))
        except PlatformError:
            await self._keep(before)
            raise
        kept = {page: self._pages[page] for page in wanted if page in self._pages}
        for queue in {page.queue for page in before.keys() ^ kept.keys()}:
            await self._group.set_staged(queue, _table(queue, kept))
        await self._keep(kept)
        return tuple(kept)

    def close(self) -> None:
        """Unmap all pages: the queues are closed. May be called again."""
        while self._pages:
            self._unmap(next(iter(self._pages)))

    async def _keep(self, kept: dict[StagedPage, MappedPage]) -> None:
        await _slowly([page for page in self._pages if page not in kept], self._unmap)

    def _map(self, page: StagedPage, skip: bool) -> None:
        try:
            if not self._budget.left:
                raise PlatformError("all pages that guests may stage are in use", "ENOSPC")
            self._pages[page] = self._platform.map_grant(self._domid, page.gref, readonly=page.readonly)
        except PlatformError:
            if not skip:
                raise
        else:
            self._budget.left -= 1

    def _unmap(self, page: StagedPage) -> None:
        self._budget.left += 1
        with suppress(PlatformError):  # the domain or the hypervisor is gone, and every mapping with it
            self._pages.pop(page).unmap()


async def _slowly(pages: Sequence[StagedPage], call: Callable[[StagedPage], None]) -> None:
    """Call it for each page, and let other tasks run in between."""
    for number, page in enumerate(pages, 1):
        call(page)
        if number % _AT_A_TIME == 0:
            await asyncio.sleep(0)


def _table(queue: int, pages: dict[StagedPage, MappedPage]) -> Staged | None:
    """What a queue looks its grefs up in; None if it has no staged page."""
    found = {
        page.gref: (mapped.address, not page.readonly)
        for page, mapped in pages.items()
        if page.queue == queue
    }
    return Staged(found) if found else None
