# SPDX-License-Identifier: Apache-2.0
"""The recorder of a vif and the directory of saved faults: both are bounded, whatever a guest does."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from netback.directory import Directory
from netback.errors import ConfigError
from netback.observe import recorder as module
from netback.observe.recorder import MAX_OF_DEVICE, Recorder, Recordings, parse_mode, write_new
from netback.observe.recording import decode

NOTES, NOTE_LENGTH = 256, 256


@pytest.fixture
def saved(tmp_path: Path) -> Iterator[tuple[Recordings, Path]]:
    with Directory.open(tmp_path / "recordings") as directory:
        yield Recordings(directory), tmp_path / "recordings"


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file at any time."""
    monkeypatch.setattr(module, "PAUSE", 0.0)


def names(path: Path) -> list[str]:
    return sorted(each.name for each in path.iterdir())


def test_modes() -> None:
    assert [parse_mode(mode) for mode in ("off", "on", "payload")] == ["off", "on", "payload"]
    with pytest.raises(ConfigError, match=r"^record: 'all\\n' is none of off, on, payload$"):
        parse_mode("all\n")


def test_off_keeps_nothing() -> None:
    recorder = Recorder("vif1.0")
    recorder.note("x")
    recorder.note_keys({"key": "1"})
    assert recorder.flight(0) is None
    made = decode(recorder.encode([])).header
    assert (made.notes, made.queues) == ((), ())


def test_notes_are_bounded_and_printable() -> None:
    recorder = Recorder("vif1.0")
    recorder.change("on")
    for number in range(1000):
        recorder.note_keys({"request-rx-copy": f"{number}\x1b[2J" + "x" * 5000, "feature-sg": None})
    notes = [note.what for note in decode(recorder.encode([])).header.notes]
    assert len(notes) == NOTES
    assert notes[-1].startswith("the guest's request-rx-copy is '999\\")
    assert all(len(note) <= NOTE_LENGTH and note.isprintable() for note in notes)
    recorder.change("off")
    recorder.change("on")
    assert decode(recorder.encode([])).header.notes == ()


def test_only_changes_of_keys_are_noted() -> None:
    recorder = Recorder("vif1.0")
    recorder.change("on")
    for value in ("1", "1", None, None, "1"):
        recorder.note_keys({"feature-sg": value})
    assert [note.what for note in decode(recorder.encode([])).header.notes] == [
        "the guest's feature-sg is '1'",
        "the guest's feature-sg is absent",
        "the guest's feature-sg is '1'",
    ]


def test_memory_goes_with_the_mode() -> None:
    recorder = Recorder("vif1.0")
    recorder.change("on")
    first = recorder.flight(1), recorder.flight(0)
    assert [recorder.flight(1), recorder.flight(0)] == [*first]
    assert recorder.flights == [first[1], first[0]]
    recorder.begin()
    assert recorder.flights == []
    recorder.flight(0)
    recorder.change("off")
    assert (recorder.flights, recorder.flight(0)) == ([], None)


def test_a_device_has_few_files(saved: tuple[Recordings, Path], often: None) -> None:
    recordings, path = saved
    for number in range(10):
        made = recordings.save("vif1.0", bytes([number]))
        assert made is not None
        assert Path(made).read_bytes() == bytes([number])
        assert stat.S_IMODE(Path(made).stat().st_mode) == 0o600
    recordings.save("vif11.0", b"other")
    assert len(names(path)) == MAX_OF_DEVICE + 1
    kept = sorted(each.read_bytes() for each in path.glob("vif1.0-*"))
    assert kept == [bytes([number]) for number in range(6, 10)]


def test_not_more_often_than_that(saved: tuple[Recordings, Path]) -> None:
    recordings, path = saved
    assert recordings.save("vif1.0", b"1") is not None
    assert recordings.save("vif1.0", b"2") is None
    assert recordings.save("vif2.0", b"3") is not None
    assert len(names(path)) == 2


def test_all_files_are_bounded(
    saved: tuple[Recordings, Path], often: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    recordings, path = saved
    monkeypatch.setattr(module, "MAX_FILES", 8)
    for number in range(20):
        recordings.save(f"vif{number}.0", b"x")
    assert names(path) == sorted(f"vif{number}.0-{number + 1}.recording" for number in range(12, 20))
    monkeypatch.setattr(module, "MAX_BYTES", 1000)
    recordings.save("vif30.0", bytes(997))
    assert sum(each.stat().st_size for each in path.iterdir()) <= 1000
    assert len(names(path)) == 4


def test_the_newest_of_a_device(saved: tuple[Recordings, Path], often: None, tmp_path: Path) -> None:
    """Also for the next process, and not once the file is gone."""
    recordings, _ = saved
    assert recordings.newest("vif1.0") is None
    for _ in range(11):
        made = recordings.save("vif1.0", b"x")
        assert recordings.newest("vif1.0") == made
    recordings.save("vif1.01", b"x")
    with Directory.open(tmp_path / "recordings") as directory:
        assert Recordings(directory).newest("vif1.0") == made
    assert made is not None
    Path(made).unlink()
    assert recordings.newest("vif1.0") is None


def test_other_files_stay(saved: tuple[Recordings, Path], often: None) -> None:
    recordings, path = saved
    for name in ("notes", "vif1.0-x.recording", "vif1.0-.recording"):
        (path / name).write_bytes(bytes(100))
    for _ in range(6):
        recordings.save("vif1.0", b"x")
    assert {"notes", "vif1.0-x.recording", "vif1.0-.recording"} < set(names(path))


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_new(tmp_path / "none" / "file", b"x")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(FileExistsError):
        write_new(tmp_path / "link", b"x")
    assert not (tmp_path / "target").exists()
