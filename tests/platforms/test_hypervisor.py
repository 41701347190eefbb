# SPDX-License-Identifier: Apache-2.0
"""The emulated hypervisor as its clients meet it: joining, refusals, what ends with a connection."""

import asyncio
import errno
import fcntl
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netback.errors import PlatformError
from netback.platforms.emulated import EmulatedDomain, EmulatedPlatform
from netback.platforms.emulated.memory import GrantRefused, sealed_pages
from netback.platforms.emulated.protocol import (
    HELLO_SIZE,
    MAX_PORTS,
    REQUEST_SIZE,
    STORE_SOCKET,
    Hello,
    HelloFlag,
    Op,
    PortState,
    Request,
)
from netback.xenstore.aio import Store, Watch
from tests.descriptors import open_descriptors

from .contract import fires
from .raw import Raw, joined, unsealed_memfd

SEALS = {"shrink": fcntl.F_SEAL_SHRINK, "grow": fcntl.F_SEAL_GROW, "seal": fcntl.F_SEAL_SEAL}


@pytest.fixture
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """No error and no traceback is logged, whatever a client does."""
    with caplog.at_level(logging.WARNING):
        yield caplog
    records = caplog.get_records("call")
    assert [record for record in records if record.exc_info or record.levelno > logging.WARNING] == []


def wait_served(xen: Path) -> None:
    """Wait until the hypervisor has served earlier requests: each answer takes one iteration of its loop, and an end a
    few.
    """
    with Raw(xen) as raw:
        assert raw.hello(Hello(flags=HelloFlag.ATTACH, domid=0), pages=1) is not None
        for _ in range(5):
            assert raw.ask(Op.STATUS) is not None


class Descriptors:
    """Counts what is open in this process, including the emulator's thread, while one connection stays."""

    def __init__(self, xen: Path) -> None:
        self._xen = xen
        self._raw = Raw(xen)
        assert self._raw.hello(Hello(flags=HelloFlag.ATTACH, domid=0), pages=1) is not None

    def __enter__(self) -> "Descriptors":
        return self

    def __exit__(self, *_: object) -> None:
        self._raw.__exit__(None, None, None)

    def count(self) -> int:
        """Count once everything earlier is served."""
        for _ in range(5):
            assert self._raw.ask(Op.STATUS) is not None
        return open_descriptors()


class TestJoining:
    """Hellos, good and bad."""

    def test_domids_count_up_and_are_not_used_again(self, xen: Path) -> None:
        for expected in (1, 2, 3):
            with EmulatedDomain.join(xen) as guest:
                assert guest.domid == expected

    def test_a_domid_that_was_asked_for_is_skipped_later(self, xen: Path) -> None:
        EmulatedDomain.join(xen, domid=2).close()
        wait_served(xen)
        with EmulatedDomain.join(xen) as first, EmulatedDomain.join(xen) as second:
            assert (first.domid, second.domid) == (1, 3)
        with EmulatedDomain.join(xen, domid=2) as again:
            assert again.domid == 2

    @pytest.mark.parametrize(
        ("hello", "expected"),
        [
            (Hello(magic=1, grant_pages=1), errno.EPROTO),
            (Hello(version=2, grant_pages=1), errno.EPROTO),
            (Hello(flags=2, grant_pages=1), errno.EINVAL),
            (Hello(grant_pages=1, reserved=1), errno.EINVAL),
            (Hello(grant_pages=0), errno.EINVAL),
            (Hello(grant_pages=65), errno.EINVAL),
            (Hello(grant_pages=2), errno.EINVAL),  # two pages hold no event page besides
            (Hello(grant_pages=1, domid=0), errno.EEXIST),
            (Hello(grant_pages=1, domid=0x7FF0), errno.EINVAL),
            (Hello(grant_pages=1, domid=0xFFFF), errno.EINVAL),
            (Hello(grant_pages=1, name=b"no/slash"), errno.EINVAL),
            (Hello(grant_pages=1, name=b"\xff\xfe"), errno.EINVAL),
            (Hello(grant_pages=1, name=b"x" * 40), errno.EINVAL),
            (Hello(flags=HelloFlag.ATTACH, domid=77), errno.ESRCH),
        ],
    )
    def test_a_bad_hello_is_answered_and_ends(
        self, xen: Path, quiet: pytest.LogCaptureFixture, hello: Hello, expected: int
    ) -> None:
        with Raw(xen) as raw:
            reply = raw.hello(hello)
            assert reply is not None
            assert reply.result == -expected
            assert raw.reply() is None

    def test_a_domid_in_use_is_refused(self, xen: Path) -> None:
        with EmulatedDomain.join(xen, domid=5), pytest.raises(PlatformError) as refused:
            EmulatedDomain.join(xen, domid=5)
        assert refused.value.errno == "EEXIST"
        assert "join as domain 5" in str(refused.value)

    @pytest.mark.parametrize("missing", SEALS)
    def test_memory_without_each_seal_is_refused(self, xen: Path, missing: str) -> None:
        seals = sum(bit for name, bit in SEALS.items() if name != missing)
        fd = unsealed_memfd(2, seals)
        self._refused(xen, fd, errno.EPERM)

    def test_memory_that_is_no_memfd_is_refused(self, xen: Path) -> None:
        with tempfile.TemporaryFile() as file:
            file.truncate(8192)
            self._refused(xen, os.dup(file.fileno()), errno.EINVAL)

    def test_memory_of_half_a_page_is_refused(self, xen: Path) -> None:
        fd = os.memfd_create("half", os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, 2 * 4096 + 1)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, sum(SEALS.values()))
        self._refused(xen, fd, errno.EINVAL)

    def test_memory_of_huge_pages_is_refused(self) -> None:
        fd = unsealed_memfd(512, sum(SEALS.values()), os.MFD_ALLOW_SEALING | os.MFD_HUGETLB)
        with pytest.raises(PlatformError, match="not of ordinary pages"):
            sealed_pages(fd)
        os.close(fd)

    def test_memory_that_cannot_be_written_is_refused(self, xen: Path) -> None:
        self._refused(xen, unsealed_memfd(2, sum(SEALS.values()) | fcntl.F_SEAL_WRITE), errno.EINVAL)

    @staticmethod
    def _refused(xen: Path, memfd: int, expected: int) -> None:
        with Raw(xen) as raw:
            raw.send(Hello(grant_pages=1).pack(), [memfd])
            os.close(memfd)
            reply = raw.reply()
            assert reply is not None
            assert reply.result == -expected
            assert raw.reply() is None

    @pytest.mark.parametrize("count", [0, 2, 5])
    def test_any_other_number_of_descriptors_is_refused_and_none_leaks(self, xen: Path, count: int) -> None:
        fd = unsealed_memfd(2, sum(SEALS.values()))
        with Descriptors(xen) as descriptors:
            before = descriptors.count()
            with Raw(xen) as raw:
                raw.send(Hello(grant_pages=1).pack(), [fd] * count)
                reply = raw.reply()
                assert reply is not None
                assert reply.result == -errno.EBADF
                assert raw.reply() is None
            assert descriptors.count() == before
        os.close(fd)


class TestNonsense:
    """Bytes that violate the protocol end their own connection only."""

    @given(
        message=st.binary(max_size=3 * HELLO_SIZE),
        later=st.binary(max_size=2 * REQUEST_SIZE),
        fds=st.integers(0, 4),
    )
    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_bytes(self, xen: Path, message: bytes, later: bytes, fds: int) -> None:
        null = os.open("/dev/null", os.O_RDONLY)
        with Raw(xen) as raw:
            raw.send(message, [null] * fds)
            reply = raw.reply()
            assert reply is None or reply.result < 0
            assert raw.reply() is None
        raw, _ = joined(xen)
        with raw:
            raw.send(later, [null] * fds)
            reply = raw.reply()
            if len(later) != REQUEST_SIZE or fds:
                assert reply is None or reply.result < 0
                assert raw.reply() is None
        os.close(null)

    def test_none_of_it_leaks_or_alarms(self, xen: Path, quiet: pytest.LogCaptureFixture) -> None:
        with Descriptors(xen) as descriptors:
            null = os.open("/dev/null", os.O_RDONLY)
            before = descriptors.count()
            for size in range(0, 2 * HELLO_SIZE, 7):
                with Raw(xen) as raw:
                    raw.send(bytes(size), [null])
            raw, _ = joined(xen)
            with raw:
                raw.send(Request(Op.STATUS).pack(), [null, null])
                assert raw.reply() is not None
            assert descriptors.count() == before
            os.close(null)
        assert 0 < len(quiet.records) <= 10

    def test_an_unknown_request_is_refused_and_the_connection_lives(self, xen: Path) -> None:
        raw, _ = joined(xen)
        with raw:
            for op in (0, 9, 0xFFFFFFFF):
                reply = raw.ask(op)
                assert reply is not None
                assert reply.result == -errno.ENOSYS
            reply = raw.ask(Op.STATUS, number=1)
            assert reply is not None
            assert (reply.result, reply.status) == (0, PortState.CLOSED)

    def test_who_does_not_read_its_replies_is_dropped(
        self, xen: Path, quiet: pytest.LogCaptureFixture
    ) -> None:
        raw, reply = joined(xen)
        raw._socket.setblocking(False)
        with raw, EmulatedPlatform(xen) as platform:
            for _ in range(100_000):
                try:
                    raw._socket.send(Request(Op.STATUS).pack())
                except BlockingIOError:
                    continue
                except OSError:
                    break
            with pytest.raises(PlatformError):
                platform.open_memory(reply.domid)


class TestPorts:
    """Event channels beyond the contract: numbers, states, owners."""

    def test_states(self, xen: Path) -> None:
        with EmulatedPlatform(xen) as platform, EmulatedDomain.join(xen) as guest:
            handle = platform.open_events()
            assert guest.events.status(1) == PortState.CLOSED
            theirs = guest.events.alloc_unbound(0)
            assert guest.events.status(theirs) == PortState.UNBOUND
            ours = handle.bind_interdomain(guest.domid, theirs)
            assert guest.events.status(theirs) == PortState.INTERDOMAIN
            assert handle.status(ours) == PortState.INTERDOMAIN
            guest.events.unbind(theirs)
            assert guest.events.status(theirs) == PortState.CLOSED
            assert handle.status(ours) == PortState.UNBOUND

    def test_numbers_are_unique_in_a_domain_and_a_handle_closes_only_its_own(self, xen: Path) -> None:
        with EmulatedDomain.join(xen) as guest:
            other = guest.open_events()
            first, second = guest.events.alloc_unbound(0), other.alloc_unbound(0)
            assert first != second
            with pytest.raises(PlatformError):
                other.unbind(first)
            other.close()
            assert guest.events.status(second) == PortState.CLOSED
            assert guest.events.status(first) == PortState.UNBOUND

    def test_a_domain_has_a_bound_of_ports(self, xen: Path) -> None:
        with EmulatedDomain.join(xen) as guest:
            ports = {guest.events.alloc_unbound(0) for _ in range(1, MAX_PORTS)}
            assert ports == set(range(1, MAX_PORTS))
            with pytest.raises(PlatformError) as refused:
                guest.events.alloc_unbound(0)
            assert refused.value.errno == "ENOSPC"
            guest.events.unbind(77)
            assert guest.events.alloc_unbound(0) == 77

    def test_every_port_can_fire(self, xen: Path) -> None:
        with EmulatedDomain.join(xen) as one, EmulatedDomain.join(xen) as two:
            pairs = {}
            for _ in range(130):
                theirs = two.events.alloc_unbound(one.domid)
                pairs[one.events.bind_interdomain(two.domid, theirs)] = theirs
            assert sorted(fires(one.events.native)) == sorted(pairs)
            for ours in pairs:
                one.events.native.notify(ours)
            assert sorted(fires(two.events.native)) == sorted(pairs.values())

    def test_a_reused_number_begins_neither_pending_nor_masked(self, xen: Path) -> None:
        with EmulatedPlatform(xen) as platform, EmulatedDomain.join(xen) as guest:
            handle = platform.open_events()
            first = handle.bind_interdomain(guest.domid, guest.events.alloc_unbound(0))
            assert fires(handle.native) == [first]  # and masked from here on
            handle.unbind(first)
            second = handle.bind_interdomain(guest.domid, guest.events.alloc_unbound(0))
            assert second == first
            assert fires(handle.native) == [second]

    def test_a_full_eventfd_stops_no_notifier(self, xen: Path) -> None:
        with EmulatedPlatform(xen) as platform, EmulatedDomain.join(xen) as guest:
            handle = platform.open_events()
            os.eventfd_write(guest.events.native.fd, 2**64 - 2)
            os.set_blocking(guest.events.native.fd, True)
            theirs = handle.alloc_unbound(guest.domid)
            ours = guest.events.bind_interdomain(0, theirs)
            assert fires(guest.events.native) == [ours]

    def test_binding_to_a_domain_that_is_not_there(self, xen: Path) -> None:
        with EmulatedDomain.join(xen) as guest, pytest.raises(PlatformError) as refused:
            guest.events.bind_interdomain(9, 1)
        assert refused.value.errno == "ESRCH"


class TestGrants:
    """Grants beyond the contract: what pins them, and for how long."""

    def test_a_pin_ends_with_its_handle(self, xen: Path) -> None:
        with EmulatedDomain.join(xen) as guest:
            gref = guest.grant(guest.alloc_page(), 0)
            with EmulatedPlatform(xen) as platform:
                platform.map_grant(guest.domid, gref)
                assert guest.still_in_use(gref)
            wait_served(xen)
            assert not guest.still_in_use(gref)

    def test_a_reader_and_a_writer_count_apart(self, xen: Path) -> None:
        with EmulatedDomain.join(xen) as guest, EmulatedPlatform(xen) as platform:
            gref = guest.grant(guest.alloc_page(), 0)
            entry = guest.memory.words
            reader = platform.map_grant(guest.domid, gref, readonly=True)
            assert entry.load64(gref * 8) & 24 == 8
            writer = platform.map_grant(guest.domid, gref)
            assert entry.load64(gref * 8) & 24 == 24
            writer.unmap()
            assert entry.load64(gref * 8) & 24 == 8
            writer = platform.map_grant(guest.domid, gref)
            reader.unmap()
            assert entry.load64(gref * 8) & 24 == 24
            writer.unmap()
            assert entry.load64(gref * 8) & 24 == 0

    def test_a_read_only_grant_maps_read_only(self, xen: Path) -> None:
        with EmulatedDomain.join(xen) as guest, EmulatedPlatform(xen) as platform:
            gref = guest.grant(guest.alloc_page(), 0, readonly=True)
            platform.map_grant(guest.domid, gref, readonly=True).unmap()

    def test_a_frame_out_of_range_is_a_bad_page_and_leaves_no_pin(self, xen: Path) -> None:
        with EmulatedDomain.join(xen, pages=10) as guest, EmulatedPlatform(xen) as platform:
            guest.put_entry(8, frame=19, domid=0)
            with pytest.raises(GrantRefused, match="bad_page"):
                platform.map_grant(guest.domid, 8)
            assert not guest.still_in_use(8)

    def test_unmapping_what_is_not_mapped(self, xen: Path) -> None:
        raw, _ = joined(xen)
        with raw:
            reply = raw.ask(Op.UNMAP, number=1)
            assert reply is not None
            assert (reply.result, reply.status) == (-errno.EINVAL, -4)

    def test_domain_0_has_no_memory(self, xen: Path) -> None:
        with EmulatedPlatform(xen) as platform, pytest.raises(PlatformError):
            platform.open_memory(0)


class TestEnds:
    """An end, however it comes, releases what belonged to it and nothing else."""

    def test_a_guest_s_end_takes_its_grants_ports_and_handles(self, xen: Path) -> None:
        with EmulatedPlatform(xen) as platform:
            guest = EmulatedDomain.join(xen)
            gref = guest.grant(guest.alloc_page(), 0)
            theirs = guest.events.alloc_unbound(0)
            handle, second = platform.open_events(), guest.open_events()
            ours = handle.bind_interdomain(guest.domid, theirs)
            memory, mapped = platform.open_memory(guest.domid), platform.map_grant(guest.domid, gref)
            guest.events.close()  # the connection that made the domain; `second` is still open
            wait_served(xen)
            assert memory.read(gref, 0, 1)[0] < 0
            assert handle.status(ours) == PortState.UNBOUND
            handle.native.notify(ours)
            mapped.unmap()
            with pytest.raises(PlatformError) as refused:
                second.alloc_unbound(0)
            assert refused.value.errno == "EIO"
            guest.close()

    async def test_a_killed_guest_leaves_the_store(self, xen: Path) -> None:
        program = (
            "import sys, pathlib, signal; from netback.platforms.emulated import EmulatedDomain;"
            "guest = EmulatedDomain.join(pathlib.Path(sys.argv[1]), name='victim');"
            "print(guest.domid, flush=True); signal.pause()"
        )
        async with await Store.connect(xen / STORE_SOCKET) as store:
            guest = await asyncio.create_subprocess_exec(
                sys.executable, "-c", program, str(xen), stdout=subprocess.PIPE
            )
            assert guest.stdout is not None
            domid = int(await guest.stdout.readline())
            home = f"/local/domain/{domid}"
            assert await store.read(f"{home}/name") == "victim"
            assert await store.read(f"{home}/domid") == str(domid)
            machine = await store.read(f"{home}/vm")
            assert await store.read(f"{machine}/name") == "victim"
            assert machine == f"/vm/{await store.read(f'{machine}/uuid')}"
            with EmulatedDomain.join(xen, name="victim") as twin:
                assert await store.read(f"/local/domain/{twin.domid}/vm") == machine
            assert await store.read_or(f"{machine}/name") == "victim"
            assert await store.get_perms(home) == [f"n{domid}"]
            watch = await store.watch("@releaseDomain")
            assert await anext(watch) == "@releaseDomain"
            guest.send_signal(signal.SIGKILL)
            assert await anext(watch) == "@releaseDomain"
            assert await store.read_or(f"{home}/name") is None
            assert await store.read_or(f"{machine}/name") is None
            await guest.wait()

    async def test_a_store_connection_has_its_domain_s_privilege_and_end(self, xen: Path) -> None:
        with EmulatedDomain.join(xen) as first, EmulatedDomain.join(xen) as second:
            store, another = await first.open_store(), await first.open_store()
            await store.write("data/x", "1")
            assert await another.read("data/x") == "1"
            await another.close()
            with pytest.raises(PlatformError) as refused:
                await store.read(f"/local/domain/{second.domid}/name")
            assert refused.value.errno == "EACCES"
            watch = await store.watch("data")
            assert await anext(watch) == "data"
            first.close()
            with pytest.raises(PlatformError):
                await exhaust(watch)

    async def test_introduce_fires_at_a_join(self, xen: Path) -> None:
        async with await Store.connect(xen / STORE_SOCKET) as store:
            watch = await store.watch("@introduceDomain")
            await anext(watch)
            with EmulatedDomain.join(xen):
                assert await anext(watch) == "@introduceDomain"

    def test_joining_and_leaving_leaks_nothing(self, xen: Path) -> None:
        def once() -> None:
            with EmulatedPlatform(xen) as platform, EmulatedDomain.join(xen) as guest:
                handle = platform.open_events()
                ours = handle.bind_interdomain(guest.domid, guest.events.alloc_unbound(0))
                handle.native.notify(ours)
                platform.map_grant(guest.domid, guest.grant(guest.alloc_page(), 0))

        assert growth(xen, once) == 0


async def exhaust(watch: Watch) -> None:
    """Wait until the watch ends."""
    async for _ in watch:
        pass


def growth(xen: Path, once: Callable[[], None]) -> int:
    """The number of descriptors that thirty rounds leave open."""
    with Descriptors(xen) as descriptors:
        once()
        before = descriptors.count()
        for _ in range(30):
            once()
        return descriptors.count() - before


def test_a_handle_without_an_emulator(tmp_path: Path) -> None:
    with pytest.raises(PlatformError, match="no emulated Xen here"):
        EmulatedPlatform(tmp_path)
