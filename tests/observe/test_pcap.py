# SPDX-License-Identifier: Apache-2.0
"""A capture that the backend keeps in a file: bounded, continued, with a disk that fails. tshark reads the files."""

import errno
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest

from netback.errors import ConfigError
from netback.observe.captures import Captures
from netback.observe.choice import Choice
from netback.observe.pcap import MIN_SIZE, RING_BYTES, PcapFile, PcapSpec, check_file, parse_pcap
from tests.crash.respawn import until
from tests.dataplane.harness import Bench
from tests.dataplane.test_capture import send
from tests.observe.test_pcapng import fields_of


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.close()


@contextmanager
def kept(bench: Bench, spec: PcapSpec) -> Iterator[PcapFile]:
    """The frames of the queue of vif3.0, kept; at the end what came is written."""
    with Captures(1).begun(Choice(frozenset({"vif3.0"}), snaplen=spec.snaplen), RING_BYTES) as capture:
        sink = capture.sink("vif3.0", 0, 0)
        assert sink is not None
        bench.queue.watch(traced=False, sinks=[sink])
        file = PcapFile("vif3.0", spec, capture)
        try:
            yield file
        finally:
            bench.queue.watch(traced=False)
            file.stop()
            file.join()


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("/a/b", PcapSpec(Path("/a/b"))),
        ("/a/b,snaplen=0", PcapSpec(Path("/a/b"), snaplen=0)),
        ("/a,size=64M,files=9", PcapSpec(Path("/a"), size=64 << 20, files=9)),
        ("/a,size=2048k,snaplen=1k", PcapSpec(Path("/a"), size=2 << 20, snaplen=1024)),
        ("/a,size=1024G", PcapSpec(Path("/a"), size=1 << 40)),
    ],
)
def test_what_is_kept(text: str, spec: PcapSpec) -> None:
    assert parse_pcap(text) == spec
    assert parse_pcap(str(spec)) == spec


@pytest.mark.parametrize(
    "text",
    ["", "a", "./a", "/a/", "/a\0b", "/a,size", "/a,size=", "/a,size=1", "/a,size=1T", "/a,size=-5M", "/a,files=0",
     "/a,files=101", "/a,files=1,files=1", "/a,snaplen=65554", "/a,colour=red", "/a,", "/a,size=٣M",
     "/a,size=9999999999999999999999M"],
)  # fmt: skip
def test_what_names_no_file(text: str) -> None:
    with pytest.raises(ConfigError, match="pcap") as raised:
        parse_pcap(text)
    assert "\n" not in str(raised.value)


async def test_a_file(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "frames.pcapng"
    with kept(bench, PcapSpec(path, snaplen=20)) as file:
        send(bench, 5)
        await until(lambda: file.state.frames == 5)
        assert (file.state.file, file.state.lost, file.state.error) == (str(path), 0, "")
    assert path.stat().st_mode & 0o777 == 0o600
    assert fields_of(path, "frame.interface_name", "frame.cap_len") == [["vif3.0 tx", "20"]] * 5


@pytest.mark.parametrize("cut", [0, 1, 11, 100])
async def test_a_file_is_continued_after_its_last_whole_block(bench: Bench, tmp_path: Path, cut: int) -> None:
    """As after kill -9, which may leave a part of a block."""
    path = tmp_path / "frames.pcapng"
    with kept(bench, PcapSpec(path)):
        send(bench, 5)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[: 4 * cut])  # of a section header: never a whole block with the wrong end
    with kept(bench, PcapSpec(path)):
        send(bench, 3, 5)
    assert path.read_bytes()[: len(whole)] == whole
    assert [each for (each,) in fields_of(path, "frame.section_number")][:8] == [*"11111222"] or cut == 100


async def test_files_are_bounded(bench: Bench, tmp_path: Path) -> None:
    """Each is a capture of its own; the oldest goes."""
    path = tmp_path / "frames.pcapng"
    numbers = count(0, 64)
    with kept(bench, PcapSpec(path, size=MIN_SIZE, files=3)) as file:
        names = [path, *(tmp_path / f"frames.pcapng.{number}" for number in (1, 2))]
        while not names[-1].exists():
            for _ in range(20):
                send(bench, 64, next(numbers))
            await until(lambda: file.state.frames + file.state.lost == bench.queue.counters["tx_frames"])
        oldest = names[-1].read_bytes()
        while names[-1].read_bytes() == oldest:
            for _ in range(20):
                send(bench, 64, next(numbers))
            await until(lambda: file.state.frames + file.state.lost == bench.queue.counters["tx_frames"])
    assert set(os.listdir(tmp_path)) == {each.name for each in names}  # noqa: PTH208 (a path's would block)
    frames = [len(fields_of(each, "frame.number")) for each in names]
    assert all(each.stat().st_size <= MIN_SIZE + 4096 for each in names)
    assert 0 < sum(frames) < bench.queue.counters["tx_frames"]
    assert min(frames[1:]) > 5000


@contextmanager
def small_files(most: int) -> Iterator[None]:
    """No file of this process may grow beyond so many bytes: writes fail with EFBIG, as on a full disk with ENOSPC."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


async def test_a_disk_that_is_full(
    bench: Bench, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line in the log; the guest goes on; what was written is whole; later frames follow when there is room."""
    monkeypatch.setattr("netback.observe.pcap.RETRY_SECONDS", 0.01)
    path = tmp_path / "frames.pcapng"
    numbers = count(0, 64)
    with kept(bench, PcapSpec(path)) as file:
        with small_files(10_000):
            while not file.state.error:
                send(bench, 64, next(numbers))
                await until(
                    lambda: (
                        bool(file.state.error)
                        or file.state.frames + file.state.lost == bench.queue.counters["tx_frames"]
                    )
                )
            assert "File too large (EFBIG)" in file.state.error
            before = bench.queue.counters["tx_frames"]
            send(bench, 64, next(numbers))
            assert bench.queue.counters["tx_frames"] == before + 64
        await until(lambda: not file.state.error)
        send(bench, 1, next(numbers))
        await until(lambda: file.state.frames + file.state.lost == bench.queue.counters["tx_frames"])
        assert file.state.lost > 0
        frames = file.state.frames
    assert len(fields_of(path, "frame.number")) == frames
    assert [record.getMessage() for record in caplog.records if "pcap" in record.name] == [
        f"vif3.0: pcap {path}: File too large (EFBIG); its frames are lost"
    ]


def refusals(directory: Path) -> dict[str, Path]:
    """A file for each reason to refuse it."""
    found = {
        name: directory / name.replace(" ", "-")
        for name in ("no pcapng", "no regular", "another name", "loop")
    }
    found["no pcapng"].write_bytes(b"root:x:0:0::/root:/bin/sh\n")
    os.mkfifo(found["no regular"])
    check_file(found["another name"])
    os.link(found["another name"], directory / "other")
    found["loop"].symlink_to(directory / "elsewhere")
    found["No such file"] = directory / "missing" / "x"
    found["Is a directory"] = directory
    return found


def test_files_that_are_refused(tmp_path: Path) -> None:
    """None is changed or made."""
    for reason, path in refusals(tmp_path).items():
        with pytest.raises(OSError) as raised:  # noqa: PT011 (the reason is compared below)
            check_file(path)
        said = str(raised.value.strerror)
        assert reason in said or (reason == "loop" and raised.value.errno == errno.ELOOP), said
    assert not (tmp_path / "elsewhere").exists()
    assert (tmp_path / "no-pcapng").read_bytes().startswith(b"root")


async def test_two_captures_do_not_share_a_file(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "frames.pcapng"
    with kept(bench, PcapSpec(path)) as file:
        send(bench, 1)
        await until(lambda: file.state.frames == 1)
        with kept(bench, PcapSpec(path)) as other:
            await until(lambda: "another capture writes to it" in other.state.error)
    assert len(fields_of(path, "frame.number")) == 1
