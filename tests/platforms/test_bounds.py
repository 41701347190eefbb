# SPDX-License-Identifier: Apache-2.0
"""The claims of a joiner are bounded, each and in sum, and so is the log that it can cause."""

import asyncio
import errno
import logging
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from netback.abi.grant_table import ENTRY, GrantFlag, GrantStatus
from netback.directory import Directory
from netback.errors import PlatformError
from netback.platforms.emulated import EmulatedDomain
from netback.platforms.emulated.hypervisor import Hypervisor
from netback.platforms.emulated.memory import GrantRefused, GrantTable
from netback.platforms.emulated.protocol import (
    MAX_PAGES,
    MAX_TOTAL_PAGES,
    Hello,
    HelloFlag,
)
from netback.platforms.emulated.server import HypervisorServer

from .raw import Raw, joined, unsealed_memfd
from .test_hypervisor import SEALS

ATTACH = Hello(flags=HelloFlag.ATTACH, domid=0)


def claim(xen: Path, pages: int) -> tuple[Raw, int]:
    """A connection of domain 0 with a sparse memory of so many pages, and the result of its hello."""
    memfd = unsealed_memfd(pages, sum(SEALS.values()))
    raw = Raw(xen)
    raw.send(ATTACH.pack(), [memfd])
    os.close(memfd)
    reply = raw.reply()
    assert reply is not None
    return raw, reply.result


@pytest.mark.parametrize("pages", [MAX_PAGES + 1, 1 << 32], ids=["a page too many", "16 TiB"])
def test_a_memory_beyond_its_bound_is_refused(
    xen: Path, caplog: pytest.LogCaptureFixture, pages: int
) -> None:
    for _ in range(2):
        raw, result = claim(xen, pages)
        with raw:
            assert result == -errno.EFBIG
            assert raw.reply() is None
    assert [record.getMessage() for record in caplog.records] == [
        f"ended a connection: a memory of {pages} pages, {MAX_PAGES} at most"
    ] * 2


def test_all_memories_together_are_bounded(xen: Path, caplog: pytest.LogCaptureFixture) -> None:
    with ExitStack() as others:
        first, result = claim(xen, MAX_PAGES - 1)
        assert result == 0
        for _ in range(MAX_TOTAL_PAGES // MAX_PAGES - 1):
            other, result = claim(xen, MAX_PAGES - 1)
            others.enter_context(other)
            assert result == 0
        refused, result = claim(xen, MAX_PAGES)
        with refused:
            assert result == -errno.ENOMEM
            assert refused.reply() is None
        assert f"16 are left of {MAX_TOTAL_PAGES} for all domains" in caplog.records[-1].getMessage()
        with first:
            pass
        with joined(xen)[0]:  # answered after the end of the first one was seen
            pass
        again, result = claim(xen, MAX_PAGES - 1)
        with again:
            assert result == 0


@pytest.mark.parametrize(
    ("join", "named"),
    [
        (lambda xen: EmulatedDomain.join(xen, pages=1 << 32), f"pages, {MAX_PAGES} at most"),
        (lambda xen: EmulatedDomain.join(xen, pages=1 << 70), f"pages, {MAX_PAGES} at most"),
        (lambda xen: EmulatedDomain.join(xen, grant_pages=65), "65 pages of grants: 1 to 64"),
        (lambda xen: EmulatedDomain.join(xen, grant_pages=1 << 40), "pages of grants: 1 to 64"),
        (lambda xen: EmulatedDomain.join(xen, name="x" * 40), "at most 39 of"),
        (lambda xen: EmulatedDomain.join(xen, name="ü\udc80"), "at most 39 of"),
        (lambda xen: EmulatedDomain.join(xen, domid=-1), "domid -1: 0 to 32751"),
        (lambda xen: EmulatedDomain.join(xen, domid=1 << 32), "domid 4294967296: 0 to 32751"),
    ],
)
def test_a_claim_out_of_bounds_is_one_line_at_the_joiner_too(
    xen: Path, join: Callable[[Path], object], named: str
) -> None:
    with pytest.raises(PlatformError, match=named):
        join(xen)


class Restless:
    """A grant table whose owner changes the entry between every read and the exchange that follows."""

    def __init__(self) -> None:
        self.tries = 0

    def load64(self, _offset: int) -> int:
        return int.from_bytes(ENTRY.pack(GrantFlag.PERMIT_ACCESS, 0, 5), "little")

    def exchange64(self, _offset: int, _expected: int, _wanted: int) -> bool:
        self.tries += 1
        return False


def test_a_grant_that_never_rests_is_refused_as_xen_refuses_it() -> None:
    words = Restless()
    with pytest.raises(GrantRefused, match="gref 8 keeps changing") as refused:
        GrantTable(words, 512).pin(8, 0, readonly=False)  # type: ignore[arg-type]
    assert refused.value.status == GrantStatus.GENERAL_ERROR
    assert words.tries < 10


async def test_an_unexpected_error_ends_its_connection_within_the_log_s_budget(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_domid: int) -> object:
        raise RuntimeError("a fault of the server")

    caplog.set_level(logging.WARNING)
    with Directory.open(directory) as private:
        hypervisor = Hypervisor(lambda _domid, _name: None, lambda _domid: None)
        server = HypervisorServer(hypervisor, fail, private)  # type: ignore[arg-type]
        try:
            for _ in range(30):
                assert await asyncio.to_thread(_ended, directory)
        finally:
            server.close()
        private.unlink("hypervisor.sock")
    assert 1 <= len(caplog.records) <= 10
    assert all(
        "unexpected: RuntimeError('a fault of the server')" in record.getMessage()
        for record in caplog.records
    )
    assert list(hypervisor.domains) == [0], "no domain of a connection that ended is left"


def _ended(directory: Path) -> bool:
    with Raw(directory) as raw:
        return raw.hello(Hello(grant_pages=1)) is None
