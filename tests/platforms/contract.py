# SPDX-License-Identifier: Apache-2.0
"""What every platform promises, as tests: a class to inherit, with a fixture `pair` that gives the two ends.

They use the seams of platforms/base only. On real Xen both ends may be the same domain, since
event channels and grants loop back there. What a platform cannot promise is an attribute of its class, with the reason.
"""

import asyncio
import ctypes
import os
import select
import subprocess
from dataclasses import dataclass

import pytest

from netback.dataplane.platform.events import Events
from netback.errors import PlatformError
from netback.platforms.base import Domain, EventChannels, GrantedPage, Platform

QUIET, SOON = 0.05, 5.0
ABSENT = 0x7FEE
"""A domid that no end of a pair has."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A backend's platform and a guest of it."""

    platform: Platform
    guest: Domain

    def grant(self, readonly: bool = False, domid: int | None = None) -> GrantedPage:
        """A page of the guest's for the backend, or for another domain."""
        to = self.platform.domid if domid is None else domid
        return self.guest.grant_pages(to, 1, readonly)[0]

    def connect(self) -> tuple[EventChannels, int, int]:
        """A new handle of the backend, bound to a new port of the guest: (handle, its port, the guest's)."""
        theirs = self.guest.events.alloc_unbound(self.platform.domid)
        handle = self.platform.open_events()
        return handle, handle.bind_interdomain(self.guest.domid, theirs), theirs


def fires(events: Events, within: float = SOON) -> list[int]:
    """The ports that fire, now masked; none if nothing fires in time."""
    poll = select.poll()  # select() ends at descriptor 1023
    poll.register(events.fd, select.POLLIN)
    return events.take() if poll.poll(within * 1000) else []


class PlatformContract:
    """Inherit, and give a fixture `pair`."""

    knows_domains = True
    """The memory of a missing domain is refused when it is opened, not only at its first copy."""

    # ---- event channels

    def test_a_bound_port_is_pending_at_once(self, pair: Pair) -> None:
        handle, ours, _ = pair.connect()
        assert fires(handle.native) == [ours]

    def test_what_was_sent_before_the_bind_fires_after_it(self, pair: Pair) -> None:
        theirs = pair.guest.events.alloc_unbound(pair.platform.domid)
        pair.guest.events.native.notify(theirs)
        handle = pair.platform.open_events()
        ours = handle.bind_interdomain(pair.guest.domid, theirs)
        assert fires(handle.native) == [ours]

    def test_events_go_both_ways(self, pair: Pair) -> None:
        handle, ours, theirs = pair.connect()
        fires(handle.native)
        handle.native.unmask(ours)
        pair.guest.events.native.notify(theirs)
        assert fires(handle.native) == [ours]
        handle.native.notify(ours)
        assert fires(pair.guest.events.native) == [theirs]

    def test_only_one_can_bind(self, pair: Pair) -> None:
        _handle, _, theirs = pair.connect()
        second = pair.platform.open_events()
        with pytest.raises(PlatformError) as refused:
            second.bind_interdomain(pair.guest.domid, theirs)
        assert refused.value.errno == "EINVAL"
        second.close()

    def test_a_port_for_another_domain_cannot_be_bound(self, pair: Pair) -> None:
        theirs = pair.guest.events.alloc_unbound(ABSENT)
        handle = pair.platform.open_events()
        with pytest.raises(PlatformError) as refused:
            handle.bind_interdomain(pair.guest.domid, theirs)
        assert refused.value.errno == "EINVAL"
        handle.close()

    def test_a_taken_port_is_silent_until_unmasked(self, pair: Pair) -> None:
        handle, ours, theirs = pair.connect()
        assert fires(handle.native) == [ours]
        pair.guest.events.native.notify(theirs)
        assert fires(handle.native, QUIET) == []
        handle.native.unmask(ours)
        assert fires(handle.native) == [ours]

    def test_a_late_unmask_finds_one_event_for_many(self, pair: Pair) -> None:
        handle, ours, theirs = pair.connect()
        fires(handle.native)
        for _ in range(5):
            pair.guest.events.native.notify(theirs)
        handle.native.unmask(ours)
        assert fires(handle.native) == [ours]
        handle.native.unmask(ours)
        assert fires(handle.native, QUIET) == []

    def test_one_port_masked_leaves_the_others(self, pair: Pair) -> None:
        handle, first, _ = pair.connect()
        fires(handle.native)
        theirs = pair.guest.events.alloc_unbound(pair.platform.domid)
        second = handle.bind_interdomain(pair.guest.domid, theirs)
        assert first != second
        assert fires(handle.native) == [second]

    def test_notifying_a_closed_far_side_is_nothing(self, pair: Pair) -> None:
        handle, ours, theirs = pair.connect()
        handle.native.notify(ours)
        assert fires(pair.guest.events.native) == [theirs]
        pair.guest.events.native.unmask(theirs)
        pair.guest.events.unbind(theirs)
        handle.native.notify(ours)
        assert fires(pair.guest.events.native, QUIET) == []

    def test_closing_one_end_makes_the_other_unbound_again(self, pair: Pair) -> None:
        handle, ours, theirs = pair.connect()
        fires(handle.native)
        handle.native.unmask(ours)
        pair.guest.events.unbind(theirs)
        again = pair.guest.events.bind_interdomain(pair.platform.domid, ours)
        assert fires(pair.guest.events.native) == [again]
        pair.guest.events.native.notify(again)
        assert fires(handle.native) == [ours]

    def test_a_new_backend_binds_where_the_last_one_closed(self, pair: Pair) -> None:
        first, ours, theirs = pair.connect()
        first.native.notify(ours)
        assert fires(pair.guest.events.native) == [theirs]
        pair.guest.events.native.unmask(theirs)
        pair.guest.events.native.notify(theirs)
        first.close()
        pair.guest.events.native.notify(theirs)
        second = pair.platform.open_events()
        ours = second.bind_interdomain(pair.guest.domid, theirs)
        assert fires(second.native) == [ours]
        second.native.unmask(ours)
        pair.guest.events.native.notify(theirs)
        assert fires(second.native) == [ours]
        second.native.notify(ours)
        assert fires(pair.guest.events.native) == [theirs]

    def test_a_closed_port_cannot_be_closed_again(self, pair: Pair) -> None:
        handle, ours, _ = pair.connect()
        handle.unbind(ours)
        with pytest.raises(PlatformError):
            handle.unbind(ours)

    # ---- the store

    async def test_the_store_connection_has_the_platform_s_privilege(self, pair: Pair) -> None:
        path = f"/local/domain/{pair.platform.domid}/contract"
        async with await pair.platform.open_store() as one, await pair.platform.open_store() as two:
            await one.write(path, "held")
            assert await two.read(path) == "held"
            await one.rm(path)

    async def test_the_store_s_tools_find_the_store(self, pair: Pair) -> None:
        """By the platform's environment, and with its prefix a relative path is this domain's own."""
        found = os.environ | pair.platform.environment
        path = f"/local/domain/{pair.platform.domid}/contract"
        async with await pair.platform.open_store() as store:
            await store.write(path, "held")
            command = ("xenstore-read", f"{pair.platform.prefix}contract")
            seen = await asyncio.to_thread(
                subprocess.run, command, env=found, capture_output=True, text=True, timeout=30, check=False
            )
            assert (seen.returncode, seen.stdout) == (0, "held\n"), seen.stderr
            await store.rm(path)

    # ---- grants

    def test_granted_pages_are_copied_both_ways(self, pair: Pair) -> None:
        page = pair.grant()
        memory = pair.platform.open_memory(pair.guest.domid)
        page.write(4000, bytes(range(96)))
        assert memory.read(page.gref, 4000, 96) == (0, bytes(range(96)))
        assert memory.write(page.gref, 7, b"answer") == 0
        assert page.read(6, 8) == b"\0answer\0"

    def test_pages_granted_together_are_pages_of_their_own(self, pair: Pair) -> None:
        pages = pair.guest.grant_pages(pair.platform.domid, 9)
        memory = pair.platform.open_memory(pair.guest.domid)
        assert len({page.gref for page in pages}) == len({page.address for page in pages}) == len(pages)
        for number, page in enumerate(pages):
            assert memory.write(page.gref, 0, bytes([number + 1]) * 4096) == 0
        assert [page.read() for page in pages] == [bytes([number + 1]) * 4096 for number in range(9)]

    def test_pages_that_were_taken_back_come_empty(self, pair: Pair) -> None:
        pages = pair.guest.grant_pages(pair.platform.domid, 3)
        for page in pages:
            page.write(0, b"x" * 4096)
        pair.guest.take_back(pages)
        assert [page.read() for page in pair.guest.grant_pages(pair.platform.domid, 3)] == [bytes(4096)] * 3

    def test_more_pages_than_there_are_is_none_and_one_clear_error(self, pair: Pair) -> None:
        with pytest.raises(PlatformError) as refused:
            pair.guest.grant_pages(pair.platform.domid, 1 << 17)
        assert refused.value.errno == "ENOSPC"
        assert pair.guest.grant_pages(pair.platform.domid, 0) == []
        pair.grant()

    def test_a_read_only_grant_is_read_and_not_written(self, pair: Pair) -> None:
        page = pair.grant(readonly=True)
        memory = pair.platform.open_memory(pair.guest.domid)
        assert memory.read(page.gref, 0, 1) == (0, b"\0")
        assert memory.write(page.gref, 0, b"x") < 0
        assert page.read(0, 1) == b"\0"
        with pytest.raises(PlatformError):
            pair.platform.map_grant(pair.guest.domid, page.gref)

    def test_a_read_only_grant_is_mapped_read_only(self, pair: Pair) -> None:
        page = pair.grant(readonly=True)
        page.write(5, b"to read")
        mapped = pair.platform.map_grant(pair.guest.domid, page.gref, readonly=True)
        assert mapped.address % 4096 == 0
        assert ctypes.string_at(mapped.address + 5, 7) == b"to read"
        mapped.unmap()

    def test_what_was_taken_back_is_refused(self, pair: Pair) -> None:
        page = pair.grant()
        memory = pair.platform.open_memory(pair.guest.domid)
        assert memory.read(page.gref, 0, 1)[0] == 0
        pair.guest.take_back([page])
        self._refused(pair, page.gref)

    def test_a_grant_for_another_domain_is_refused(self, pair: Pair) -> None:
        self._refused(pair, pair.grant(domid=ABSENT).gref)

    @pytest.mark.parametrize("gref", [0xFFFFFFFF, 1 << 20])
    def test_a_gref_out_of_range_is_refused(self, pair: Pair, gref: int) -> None:
        self._refused(pair, gref)

    def test_no_copy_crosses_its_page(self, pair: Pair) -> None:
        gref = pair.grant().gref
        memory = pair.platform.open_memory(pair.guest.domid)
        assert memory.read(gref, 4095, 1)[0] == 0
        assert memory.read(gref, 4095, 2)[0] < 0
        assert memory.write(gref, 4090, b"7 bytes") < 0

    def test_a_mapped_page_is_shared(self, pair: Pair) -> None:
        page = pair.grant()
        mapped = pair.platform.map_grant(pair.guest.domid, page.gref)
        assert mapped.address % 4096 == 0
        page.write(17, b"from the guest")
        assert ctypes.string_at(mapped.address + 17, 14) == b"from the guest"
        mapped.unmap()
        mapped.unmap()

    def test_taking_back_a_mapped_page_harms_no_mapping(self, pair: Pair) -> None:
        """The mapping stays valid, and the page is not reused as long as it exists."""
        page = pair.grant()
        page.write(0, b"still here")
        mapped = pair.platform.map_grant(pair.guest.domid, page.gref)
        pair.guest.take_back([page])
        assert all(other.gref != page.gref for other in pair.guest.grant_pages(pair.platform.domid, 16))
        assert ctypes.string_at(mapped.address, 10) == b"still here"
        mapped.unmap()

    def test_no_domain_has_no_memory(self, pair: Pair) -> None:
        if self.knows_domains:
            with pytest.raises(PlatformError):
                pair.platform.open_memory(ABSENT)
        else:
            memory = pair.platform.open_memory(ABSENT)
            assert memory.read(8, 0, 1)[0] < 0
            assert memory.write(8, 0, b"x") < 0

    def _refused(self, pair: Pair, gref: int) -> None:
        memory = pair.platform.open_memory(pair.guest.domid)
        assert memory.read(gref, 0, 1)[0] < 0
        assert memory.write(gref, 0, b"x") < 0
        with pytest.raises(PlatformError):
            pair.platform.map_grant(pair.guest.domid, gref)
